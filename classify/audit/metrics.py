"""Where one saliency map's energy lies: in the lungs, at the edge, on text, on a finding.

Energy is the map's sum, and every share is a share of the energy over what the member saw: the
whole film, or its crop. Definitions, for a map s ≥ 0 over the seen pixels V and a region R:

inside_share, outside_box_share, border_share, text_share, finding_share
    Σ s over R ∩ V / Σ s over V: the energy-based pointing game (Score-CAM, Wang et al. 2020, arXiv
    1910.01279). R is the lung field; all but the thorax box; the outermost 5 % (of V's shorter
    side) of V; burnt-in text; the union of the radiologists' boxes.
area_share, border_area_share, text_area_share, finding_area_share
    |R ∩ V| / |V|: what a map without any preference would give.
lift, finding_lift
    The share over its area share; 1 is chance. A share alone cannot be compared between film and
    crop: lungs cover about 0.37 of a film but 0.59 of a tight crop, so cropping alone raises the
    inside share by more than half without any change of the network's attention.
random_lift, random_sd
    Mean and standard deviation of the lifts of smooth random maps over V. Noise without any
    structure has lift 1 by construction; a map as coarse as a CAM is near 1, and spreads widely:
    (lift - random_lift) / random_sd tells luck from attention. See classify.audit.baselines.
gaussian_lift
    The lift of a map that looks at nothing: a Gaussian at the centre of V, σ = ¼ of its sides.
pointing_hit, finding_hit
    Does the map's maximum fall on R or within 15 px of it (pointing game, Zhang et al. 2016, arXiv
    1608.00507)? Their pictures are about 500 px long: the tolerance is 15 px on a film whose long
    side is 512, in proportion on others, and the same for film and crop. Of several equal maxima
    the one nearest to their centre is taken, as the edge of a CAM scaled up is flat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from classify.audit.baselines import baseline_lifts
from cxr.boxes import as_boxes

LUNG_SOURCES = ("human", "lungfield")
METRICS = (
    "inside_share",
    "area_share",
    "lift",
    "gaussian_lift",
    "random_lift",
    "random_sd",
    "pointing_hit",
    "border_share",
    "border_area_share",
    "outside_box_share",
    "text_share",
    "text_area_share",
    "finding_share",
    "finding_area_share",
    "finding_lift",
    "finding_hit",
)
Metrics = dict[str, Any]  # the METRICS as float, bool (…_hit) or None; `empty` bool; `reason` str

_BORDER = 0.05  # of the seen area's shorter side
_TOLERANCE = 15 / 512  # of the film's longer side
_STRAY = 1e-3  # share of energy outside the seen area that rounding of its edges may leave


@dataclass(frozen=True, eq=False)
class Regions:
    """What is where on a film; all in the film's own pixels.

    `lung` (H, W) bool and who drew it, `lung_by` ("human" or "lungfield"); `box_xyxy` the thorax
    box or None; `finding_boxes_xyxy` (N, 4) radiologists' boxes; `text` (H, W) bool or None;
    `seen_xyxy` what the member saw, None for the whole film. Boxes may reach beyond the film.
    Raises ValueError, naming the part.
    """

    lung: np.ndarray
    lung_by: str
    box_xyxy: Any
    size_hw: tuple[int, int]
    finding_boxes_xyxy: Any = ()
    text: np.ndarray | None = None
    seen_xyxy: Any = None
    _seen: tuple[slice, slice] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.lung_by not in LUNG_SOURCES:
            raise ValueError(
                f"lung_by must be one of {', '.join(LUNG_SOURCES)}. Got {self.lung_by!r} instead."
            )
        size = (int(self.size_hw[0]), int(self.size_hw[1]))
        for name in ("lung", "text"):
            mask = getattr(self, name)
            if mask is None and name == "text":
                continue
            if np.shape(mask) != size:
                raise ValueError(
                    f"{name} must be (H, W) = {size} as size_hw says. Got {np.shape(mask)} instead."
                )
            if mask.dtype != bool:
                raise ValueError(
                    f"{name} must be bool. Got {mask.dtype} instead: compare it "
                    "with its threshold first."
                )
        whole = (0, 0, size[1], size[0])
        seen = whole if self.seen_xyxy is None else self.seen_xyxy
        object.__setattr__(self, "_seen", _window(seen, size, "seen_xyxy"))
        if self.box_xyxy is not None:
            _window(self.box_xyxy, size, "box_xyxy")
        for box in as_boxes(self.finding_boxes_xyxy):
            _window(box, size, "finding_boxes_xyxy")

    @property
    def seen(self) -> tuple[slice, slice]:
        """Rows and columns of the film that the member saw, whole pixels."""
        return self._seen


def measure(
    saliency: np.ndarray,
    regions: Regions,
    film: str = "",
    cam_hw: tuple[int, int] = (7, 7),
    draws: int = 256,
    seed: int = 0,
) -> Metrics:
    """The METRICS of one map, see the module; None where a region or the energy is missing.

    `empty` is True for a map that is 0 everywhere, and then no metric has a value. `reason` says
    why the lift, or the metrics of the finding, have none.

    Args:
        saliency: (H, W) float ≥ 0 in film pixels, 0 outside what the member saw. Not changed.
        regions: of the same film.
        film: name of the film; with `seed` it seeds the random maps.
        cam_hw: resolution at which the map was made, over the seen area.
        draws: random maps.

    Raises ValueError for a map of another size, negative or not finite values, or energy outside
    the seen area.
    """
    if np.shape(saliency) != tuple(regions.size_hw):
        raise ValueError(
            f"saliency must be (H, W) = {tuple(regions.size_hw)} in film pixels. "
            f"Got {np.shape(saliency)} instead: see to_pixels."
        )
    whole = np.asarray(saliency)
    if whole.dtype not in (np.float32, np.float64):
        whole = whole.astype(np.float32)
    seen = whole[regions.seen]
    total = _checked_energy(whole, seen)
    if total == 0:
        blank: Metrics = dict.fromkeys(METRICS)
        return {**blank, "empty": True, "reason": "the map is 0 everywhere"}
    lung, reason = regions.lung[regions.seen], ""
    out: Metrics = dict.fromkeys(METRICS)
    area = float(np.count_nonzero(lung) / lung.size)
    out["area_share"] = area
    peak = _peak(seen)
    reach = _TOLERANCE * max(whole.shape)
    if area > 0:
        out["inside_share"] = _share(_energy(seen, lung) / total)
        out["lift"] = out["inside_share"] / area
        out["pointing_hit"] = _is_near(lung, peak, reach)
        out.update(baseline_lifts(lung, film, cam_hw, draws, seed))
    else:
        reason = "no lung field in what the member saw"
    out.update(_border(seen, total))
    if regions.box_xyxy is not None:
        box = _window(regions.box_xyxy, whole.shape, "box_xyxy")
        out["outside_box_share"] = _share(1 - _sum(whole[_overlap(box, regions.seen)]) / total)
    if regions.text is not None and (text := regions.text[regions.seen]).any():
        out["text_share"] = _share(_energy(seen, text) / total)
        out["text_area_share"] = float(np.count_nonzero(text) / text.size)
    if len(as_boxes(regions.finding_boxes_xyxy)):
        found, why = _finding(seen, total, regions, peak, reach)
        out.update(found)
        reason = "; ".join(part for part in (reason, why) if part)
    return {**out, "empty": False, "reason": reason}


def _checked_energy(whole: np.ndarray, seen: np.ndarray) -> float:
    total, everywhere = _sum(seen), _sum(whole)
    if not np.isfinite(everywhere):
        count = int((~np.isfinite(whole)).sum())
        raise ValueError(
            f"saliency must be finite, and its sum too. Got NaN or infinity in "
            f"{count} of {whole.size} pixels instead."
        )
    lowest = cv2.minMaxLoc(whole)[0]
    if lowest < 0:
        raise ValueError(
            f"saliency must be at least 0. Got {lowest:.6g} instead: cut it at 0, as Grad-CAM does."
        )
    if everywhere - total > _STRAY * everywhere:
        stray = (everywhere - total) / everywhere
        raise ValueError(
            f"saliency must be 0 outside seen_xyxy. Got {100 * stray:.3g} % of its "
            "energy there: give the box that the member saw."
        )
    return total


def _border(seen: np.ndarray, total: float) -> Mapping[str, float]:
    height, width = seen.shape
    band = max(1, round(_BORDER * min(height, width)))
    inner = seen[band : height - band, band : width - band]
    return {
        "border_share": _share(1 - _sum(inner) / total),
        "border_area_share": 1 - inner.size / seen.size,
    }


def _finding(
    seen: np.ndarray, total: float, regions: Regions, peak: tuple[int, int], reach: float
) -> tuple[Mapping[str, float | bool], str]:
    """Metrics of the union of the finding boxes, or the reason why there are none."""
    rows, columns = regions.seen
    region = np.zeros(seen.shape, np.uint8)
    for box in as_boxes(regions.finding_boxes_xyxy):
        window = _overlap(_window(box, regions.size_hw, "finding_boxes_xyxy"), regions.seen)
        region[
            window[0].start - rows.start : window[0].stop - rows.start,
            window[1].start - columns.start : window[1].stop - columns.start,
        ] = 1
    area = float(np.count_nonzero(region) / region.size)
    if area == 0:
        return {}, "the finding lies outside what the member saw"
    share = _share(_energy(seen, region) / total)
    return {
        "finding_share": share,
        "finding_area_share": area,
        "finding_lift": share / area,
        "finding_hit": _is_near(region, peak, reach),
    }, ""


def _peak(seen: np.ndarray) -> tuple[int, int]:
    """Row and column of the maximum; of several the one nearest to their centre."""
    rows, columns = np.divmod(np.flatnonzero(seen == cv2.minMaxLoc(seen)[1]), seen.shape[1])
    away = (rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2
    nearest = int(away.argmin())
    return int(rows[nearest]), int(columns[nearest])


def _is_near(region: np.ndarray, peak: tuple[int, int], reach: float) -> bool:
    """Does the region hold a pixel no further than `reach` px from the peak?"""
    row, column = peak
    if region[row, column]:
        return True
    far = int(reach)
    top, left = max(0, row - far), max(0, column - far)
    rows, columns = np.nonzero(region[top : row + far + 1, left : column + far + 1])
    away = (rows + top - row) ** 2 + (columns + left - column) ** 2
    return bool((away <= reach**2).any())


def _window(box_xyxy: Any, size_hw: Any, name: str) -> tuple[slice, slice]:
    """Rows and columns of a box, on whole pixels as Frame rounds them, cut to the film."""
    numbers = np.asarray(box_xyxy, dtype=np.float64).ravel()
    if len(numbers) != 4:
        raise ValueError(
            f"{name} must be one box x0, y0, x1, y1. Got {len(numbers)} numbers instead."
        )
    x0, y0, x1, y1 = numbers
    if not (np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0):
        raise ValueError(
            f"{name} must be finite with x0 < x1 and y0 < y1. "
            f"Got {[float(v) for v in (x0, y0, x1, y1)]} instead."
        )
    height, width = size_hw
    rows = slice(max(0, int(np.rint(y0))), min(height, int(np.rint(y1))))
    columns = slice(max(0, int(np.rint(x0))), min(width, int(np.rint(x1))))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise ValueError(
            f"{name} must hold a pixel of the film of {width} × {height} px. "
            f"Got {[float(v) for v in (x0, y0, x1, y1)]} instead."
        )
    return rows, columns


def _overlap(one: tuple[slice, slice], other: tuple[slice, slice]) -> tuple[slice, slice]:
    starts = [max(a.start, b.start) for a, b in zip(one, other, strict=True)]
    stops = [max(s, min(a.stop, b.stop)) for s, a, b in zip(starts, one, other, strict=True)]
    return slice(starts[0], stops[0]), slice(starts[1], stops[1])


def _energy(values: np.ndarray, mask: np.ndarray) -> float:
    """Sum of the values under a mask, in double precision, without a copy of either."""
    flat = mask.view(np.uint8)
    return float(cv2.mean(values, mask=flat)[0]) * int(np.count_nonzero(mask))


def _sum(values: np.ndarray) -> float:
    return float(cv2.sumElems(values)[0]) if values.size else 0.0


def _share(value: float) -> float:
    return float(min(1.0, max(0.0, value)))  # rounding may leave -1e-17, or 1 + 2e-16
