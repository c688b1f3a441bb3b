"""The lung field of a film: segment it, and compare it with the thorax box.

The lung field is both lungs as the masks of the training films have it: drawn through the heart's
shadow and, where seen, behind the diaphragm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cxr.boxes import iou_xyxy
from cxr.engines import OnnxNet, pick_engine
from cxr.intensity import check_pixels
from detect.predict import TrainedNet, load_net, prepare_film, to_input
from detect.settings import FieldNetConfig

if TYPE_CHECKING:  # torch is imported where a network is at work
    from torch import nn

DEFAULT_WEIGHTS = Path("weights/lungfield.safetensors")  # commands run from the project's folder

VIEWS = ("film", "crop")
CROP_MARGIN = 0.05  # detect.crop's own
MIN_COMPONENT = 0.02  # of the film: smaller specks are no lung
EDGE_BAND, EDGE_LENGTH = 0.01, 0.03  # of the film's side across, and along, the edge
_BATCH = 8  # films in one forward pass: bounds memory whatever the number asked for


class LungField(TrainedNet):
    """A trained lung-field network with its preprocessing."""

    def __init__(
        self,
        model: nn.Module | OnnxNet,
        side: int,
        device: str = "auto",
        weights: dict[str, str] | None = None,
        meta: dict[str, Any] | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(model, device, weights, meta, precision)
        self.side = side
        self.threshold = float(self.meta.get("operating_point", {}).get("threshold", 0.5))

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        device: str = "auto",
        engine: str = "torch",
        precision: str = "fp32",
    ) -> LungField:
        """Read a bundle; the shipped one when `path` is None. `engine` and `precision`: see
        `cxr.engines`. Raises FileNotFoundError or ValueError for what is no bundle of a lung-field
        network."""
        path = Path(path or DEFAULT_WEIGHTS)
        engine = pick_engine(engine, [path], device, precision == "bf16")
        net = ("lungfield", FieldNetConfig, "detect.lungfield.net:build_field_net")
        model, config, weights, meta = load_net(path, *net, engine=engine, precision=precision)
        return cls(model, config.side, device, weights, meta, precision)

    def segment(self, films: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The lung field of N films or thorax crops, each (H, W) float32 in [0, 1], of any sizes:
        as float32 in [0, 1], in the pixels of that film; above 0.5 is lung field. Nothing else is
        done to it: a film without lungs gives a map without values above 0.5. Raises ValueError for
        pixels that are no such film."""
        out: list[np.ndarray] = []
        for start in range(0, len(films), _BATCH):
            batch = films[start : start + _BATCH]
            for pixels in batch:
                check_pixels(pixels, "segment")
            prepared = [prepare_film(pixels, self.side) for pixels in batch]
            maps = self.forward([canvas for canvas, _ in prepared])
            for field, (_, frame), pixels in zip(maps, prepared, batch, strict=True):
                out.append(frame.restore(field, (pixels.shape[0], pixels.shape[1])))
        return out

    def forward(self, canvases: Sequence[np.ndarray]) -> np.ndarray:
        """(N, S, S) float32 probabilities of «lung field» on N letterboxed films (S, S) uint8."""
        if self.exported is not None:
            return self.exported.run(np.stack(canvases))["field"]
        return self._run(self.model, canvases)[:, 0].float().sigmoid().cpu().numpy()

    def look(self, canvases: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """`forward`, and from the same pass what the network sees, (N, C, G, G) float32 (see
        `FieldNet.look`): what `detect.view` judges."""
        if self.exported is not None:
            found = self.exported.run(np.stack(canvases))
            return found["field"], found["seen"]
        logits, features = self._run(self.model.look, canvases)
        return logits[:, 0].float().sigmoid().cpu().numpy(), features.float().cpu().numpy()

    def _run(self, network: Any, canvases: Sequence[np.ndarray]) -> Any:
        import torch

        images = torch.stack([to_input(canvas) for canvas in canvases]).to(self.device)
        with self.inferring():
            return network(images.contiguous(memory_format=torch.channels_last))


def field_box_xyxy(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """The tight box xyxy round the parts of a field (H, W) bool of at least 2 % of the film, as the
    rule of the annotations has it (the tight union of both lungs); None without one. Smaller parts
    are left out: one speck would stretch the box."""
    large = large_parts(_as_mask(mask, "field_box_xyxy"))
    if large is None:
        return None
    (x0, x1), (y0, y1) = (np.flatnonzero(large.any(axis))[[0, -1]] for axis in (0, 1))
    return float(x0), float(y0), float(x1 + 1), float(y1 + 1)


def large_parts(mask: np.ndarray) -> np.ndarray | None:
    """The connected parts of a mask (H, W) bool of at least 2 % of it; None without one."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= MIN_COMPONENT * mask.size
    large[0] = False  # what is no part
    return large[labels] if large.any() else None


def cut_edges(mask: np.ndarray) -> tuple[str, ...]:
    """Where a lung field (H, W) bool runs into the film's edge: of left, top, right, bottom, in
    that order. An edge cuts it when field lies within the outermost 1 % of the film over at least 3
    % of the edge's length: a corner that grazes the edge does not count."""
    inside = _as_mask(mask, "cut_edges")
    height, width = inside.shape
    rows, columns = max(1, round(EDGE_BAND * height)), max(1, round(EDGE_BAND * width))
    along = {
        "left": inside[:, :columns].any(1),
        "top": inside[:rows].any(0),
        "right": inside[:, -columns:].any(1),
        "bottom": inside[-rows:].any(0),
    }
    return tuple(name for name, line in along.items() if line.mean() >= EDGE_LENGTH)


def disagreement(mask: np.ndarray, box_xyxy: Sequence[float] | np.ndarray) -> float:
    """How far a lung field (H, W) bool and a thorax box (4,) in its pixels contradict each other,
    in [0, 1]: 1 − IoU of the field's box; 1 when there is no field."""
    own = field_box_xyxy(mask)
    return 1.0 if own is None else 1.0 - float(iou_xyxy(own, box_xyxy)[0, 0])


def _as_mask(mask: np.ndarray, function: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool or not mask.size:
        raise ValueError(
            f"mask of {function} must be (H, W) bool. Got {mask.dtype} of shape "
            f"{mask.shape} instead: compare probabilities with 0.5."
        )
    return mask


@dataclass(frozen=True)
class Overlap:
    """Agreement of a found mask with the true one; NaN where there is nothing to measure. `dice` is
    2|A∩B| / (|A| + |B|) (Dice 1945), `iou` |A∩B| / |A∪B|; both 1 when both masks are empty.
    `coverage` is the share of the truth that was found, `precision` the share of the found that is
    true."""

    dice: float
    iou: float
    coverage: float
    precision: float


def overlap(found: np.ndarray, truth: np.ndarray) -> Overlap:
    """Overlap of two masks (H, W) of one size, everything above 0 inside. Raises ValueError for
    masks of different sizes."""
    a, b = np.asarray(found) > 0, np.asarray(truth) > 0
    if a.shape != b.shape:
        raise ValueError(
            f"found and truth of overlap must be of one size. Got {a.shape} and {b.shape} instead."
        )
    both, n_a, n_b = (int(np.count_nonzero(m)) for m in (a & b, a, b))
    if not n_a + n_b:
        return Overlap(1.0, 1.0, math.nan, math.nan)
    return Overlap(
        2 * both / (n_a + n_b),
        both / (n_a + n_b - both),
        both / n_b if n_b else math.nan,
        both / n_a if n_a else math.nan,
    )
