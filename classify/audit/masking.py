"""Films with the lungs, or all but the lungs, blacked out: does a member need the lungs at all?

After Maguolo and Nanni 2021 (arXiv 2004.12823), whose networks told films apart with the lungs
blacked out. Blacking out comes first and the members' own preprocessing after it, so that no
contrast step carries what was hidden into the rest of the film.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch

from cxr.boxes import Frame
from cxr.stream import batched

OUTSIDE_ONLY, LUNGS_ONLY, SHAPE_ONLY = "outside_only", "lungs_only", "shape_only"
CONTROLS = (OUTSIDE_ONLY, LUNGS_ONLY, SHAPE_ONLY)
FILLS = ("black", "mean")
MARGIN = 0.02  # of the film's longer side: lung that a mask misses lies mostly within it
AS_IS = "as is"
_GREY = 0.5


class Judges(Protocol):
    """What the controls need of an Ensemble."""

    def prepare(self, pixels: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[Frame]]:
        """N arrays (H, W) to the members' input and the Frames that lead back."""
        ...

    def predict_prepared(self, batch: torch.Tensor) -> np.ndarray:
        """What `prepare` gave to logits (N, M, 3)."""
        ...


@dataclass(frozen=True, eq=False)
class MaskedFilm:
    """What the members see of a film and where its lungs are.

    Args:
        pixels: (h, w) float32 in [0, 1], the film, or its crop.
        lung: (H, W) bool in the film's pixels, also for a crop.
        frame: how the crop was cut out of the film; None for a whole film.
    """

    pixels: np.ndarray
    lung: np.ndarray
    frame: Frame | None = None


def apply_control(
    pixels: np.ndarray,
    lung: np.ndarray,
    control: str,
    margin: float = MARGIN,
    fill: str = "black",
    frame: Frame | None = None,
) -> np.ndarray:
    """A copy of a film or crop (h, w) float32 in [0, 1] with a part of it hidden.

    Args:
        pixels: the film; or a crop, and then `frame` says how it was cut out of the film.
        lung: (H, W) bool, the lungs in the film's pixels; at least one.
        control: outside_only hides the lungs and `margin` round them. lungs_only hides all but the
            lungs, without a margin, so that the rim belongs to neither: what outside_only shows
            is certainly not lung, and what lungs_only shows is. shape_only hides the lungs as
            outside_only does and paints the rest an even grey: what is left is the outline, which
            outside_only cannot help but show.
        margin: as a fraction of the film's longer side, also for a crop.
        fill: black is 0, as air outside the patient; mean is the mean of what stays, which shows
            whether the blackness itself was the cue.

    Raises ValueError for arguments that do not fit.
    """
    _check(pixels, lung, control, margin, fill, frame)
    # The region is grown on the film and cut afterwards: lung just outside a crop hides its edge.
    region = lung if control == LUNGS_ONLY else grow(lung, margin)
    if frame is not None:
        # beyond the film the Frame gives False: there is no lung, and the crop is black already
        region = frame.apply(region.astype(np.uint8), nearest=True).astype(bool)
    shown = region if control == LUNGS_ONLY else ~region
    if control == SHAPE_ONLY:
        return np.where(shown, np.float32(_GREY), np.float32(0.0))
    value = pixels[shown].mean() if fill == "mean" and shown.any() else 0.0
    return np.where(shown, pixels, np.float32(value)).astype(np.float32, copy=False)


def grow(mask: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """(H, W) bool mask and all within `margin` × the longer side of it (Euclidean distance)."""
    radius = margin * max(mask.shape)
    if radius < 1 or not mask.any():
        return mask.copy()
    # by distance and not by a round kernel, whose cost grows with the square of the radius
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away <= radius + 1e-3


def control_logits(
    members: Judges,
    films: Iterable[MaskedFilm],
    controls: Sequence[str] = CONTROLS,
    margin: float = MARGIN,
    fill: str = "black",
    batch_size: int = 16,
) -> dict[str, np.ndarray]:
    """Logits (N, M, 3) of every member for each control, by its name in the tables.

    The first is `as is`; then `outside only` and so on, with the fill behind it unless that is
    black. Films are taken `batch_size` at a time, so that any number of them may come.
    """
    found: dict[str, list[np.ndarray]] = {AS_IS: [], **{name_of(c, fill): [] for c in controls}}
    for batch in batched(films, batch_size):
        found[AS_IS].append(_logits(members, [f.pixels for f in batch]))
        for control in controls:
            hidden = [
                apply_control(f.pixels, f.lung, control, margin, fill, f.frame) for f in batch
            ]
            found[name_of(control, fill)].append(_logits(members, hidden))
    if not found[AS_IS]:
        raise ValueError("films of control_logits must hold at least one film. Got none.")
    return {name: np.concatenate(parts) for name, parts in found.items()}


def name_of(control: str, fill: str = "black") -> str:
    """A control's name in the tables: `outside only`, or `outside only, mean`."""
    words = control.replace("_", " ")
    return words if fill == "black" or control == SHAPE_ONLY else f"{words}, {fill}"


def _logits(members: Judges, pixels: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(members.predict_prepared(members.prepare(pixels)[0]), np.float64)


def _check(
    pixels: np.ndarray,
    lung: np.ndarray,
    control: str,
    margin: float,
    fill: str,
    frame: Frame | None,
) -> None:
    if control not in CONTROLS:
        raise ValueError(f"control must be one of {', '.join(CONTROLS)}. Got {control!r} instead.")
    if fill not in FILLS:
        raise ValueError(f"fill must be one of {', '.join(FILLS)}. Got {fill!r} instead.")
    if not 0 <= margin < 0.5:
        raise ValueError(
            f"margin must lie in [0, 0.5) of the film's longer side. Got {margin} instead."
        )
    if lung.dtype != np.bool_ or lung.ndim != 2:
        raise ValueError(
            f"lung must be (H, W) bool. Got {lung.shape} of {lung.dtype} instead: "
            "give probability > 0.5."
        )
    if not lung.any():
        raise ValueError(
            "lung must hold at least one pixel of lung. Got none: leave the film "
            "out of the control and count it."
        )
    wanted = lung.shape if frame is None else frame.canvas_hw
    if pixels.shape != tuple(wanted):
        raise ValueError(
            f"pixels must be {tuple(wanted)}, the size of the "
            + ("lung mask" if frame is None else "frame's crop")
            + f". Got {pixels.shape} instead: for a crop give its frame and the film's lungs."
        )
