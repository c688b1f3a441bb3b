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
    Mean and standard deviation of the lifts of smooth random maps over V, see `baseline_lifts`:
    (lift - random_lift) / random_sd tells luck from attention.
gaussian_lift
    The lift of a map that looks at nothing: a Gaussian at the centre of V, σ = ¼ of its sides.
pointing_hit, finding_hit
    Does the map's maximum fall on R or within 15 px of it (pointing game, Zhang et al. 2016, arXiv
    1608.00507)? Their pictures are about 500 px long: the tolerance is 15 px on a film whose long
    side is 512, in proportion on others, and the same for film and crop. Of several equal maxima
    the one nearest to their centre is taken, as the edge of a CAM scaled up is flat.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np

from cxr.boxes import as_boxes
from cxr.rules import require

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
Window = tuple[slice, slice]  # rows and columns

_BORDER = 0.05  # of the seen area's shorter side
_TOLERANCE = 15 / 512  # of the film's longer side
_STRAY = 1e-3  # share of energy outside the seen area that rounding of its edges may leave
_REACH = 3  # cells: where a Gaussian of σ = 1 cell ends


@dataclass(frozen=True, eq=False)
class Regions:
    """What is where on a film; all in the film's own pixels.

    `lung` (H, W) bool; `box_xyxy` the thorax box or None; `finding_boxes_xyxy` (N, 4) radiologists'
    boxes; `text` (H, W) bool or None; `seen_xyxy` what the member saw, None for the whole film.
    Boxes may reach beyond the film.
    """

    lung: np.ndarray
    box_xyxy: Any = None
    finding_boxes_xyxy: Any = ()
    text: np.ndarray | None = None
    seen_xyxy: Any = None

    @cached_property
    def seen(self) -> Window:
        """What the member saw; raises ValueError for what is no box with a pixel of the film."""
        height, width = self.lung.shape
        whole = (0, 0, width, height)
        return self._window(whole if self.seen_xyxy is None else self.seen_xyxy, "seen_xyxy")

    def in_seen(self, box_xyxy: Any, name: str) -> Window:
        """A box in what was seen; raises ValueError as `seen` does."""
        rows, columns = (
            slice(max(a.start - b.start, 0), max(min(a.stop, b.stop) - b.start, 0))
            for a, b in zip(self._window(box_xyxy, name), self.seen, strict=True)
        )
        return rows, columns

    def _window(self, box_xyxy: Any, name: str) -> Window:
        """Rows and columns of a box, on whole pixels as Frame rounds them, cut to the film."""
        box = np.asarray(box_xyxy, np.float64).ravel().tolist()
        height, width = self.lung.shape
        rule = f"{name} must be x0, y0, x1, y1"
        require(len(box) == 4 and bool(np.isfinite(box).all()), f"{rule}, finite", box)
        x0, y0, x1, y1 = (int(v) for v in np.rint(box))
        rows, columns = slice(max(0, y0), min(height, y1)), slice(max(0, x0), min(width, x1))
        holds = rows.start < rows.stop and columns.start < columns.stop
        require(holds, f"{rule} with a pixel of the film of {width} × {height} px", box)
        return rows, columns


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

    `saliency` is (H, W) float ≥ 0 in film pixels, 0 outside what the member saw, and not changed;
    `cam_hw` the resolution at which it was made, over the seen area. `film`, its name, and `seed`
    seed so many `draws` of random maps.

    Raises ValueError for a map of another size, negative or not finite values, or energy outside
    the seen area.
    """
    whole, size = np.asarray(saliency), regions.lung.shape
    require(whole.shape == size, f"saliency must be (H, W) = {size} in film pixels", whole.shape)
    if whole.dtype not in (np.float32, np.float64):
        whole = whole.astype(np.float32)
    seen = whole[regions.seen]
    total = _checked_energy(whole, seen)
    out: Metrics = {**dict.fromkeys(METRICS), "empty": total == 0, "reason": ""}
    if total == 0:
        return out | {"reason": "the map is 0 everywhere"}
    peak, reach = _peak(seen), _TOLERANCE * max(whole.shape)

    def on(region: np.ndarray) -> tuple[float, float, bool]:
        """Share of the energy, share of the area, and whether the maximum is there."""
        energy = float(cv2.mean(seen, mask=region.view(np.uint8))[0]) * np.count_nonzero(region)
        area = float(np.count_nonzero(region) / region.size)
        return _share(energy / total), area, _is_near(region, peak, reach)

    lung = regions.lung[regions.seen]
    share, area, hit = on(lung)
    out["area_share"] = area
    if area > 0:
        out |= {"inside_share": share, "lift": share / area, "pointing_hit": hit}
        out |= baseline_lifts(lung, film, cam_hw, draws, seed)
    else:
        out["reason"] = "no lung field in what the member saw"
    band = max(1, round(_BORDER * min(seen.shape)))
    inner = seen[band : seen.shape[0] - band, band : seen.shape[1] - band]
    out["border_share"] = _share(1 - _sum(inner) / total)
    out["border_area_share"] = 1 - inner.size / seen.size
    if regions.box_xyxy is not None:
        box = regions.in_seen(regions.box_xyxy, "box_xyxy")
        out["outside_box_share"] = _share(1 - _sum(seen[box]) / total)
    if regions.text is not None and (text := regions.text[regions.seen]).any():
        out["text_share"], out["text_area_share"], _ = on(text)
    if len(boxes := as_boxes(regions.finding_boxes_xyxy)):
        region = np.zeros(seen.shape, bool)
        for box in boxes:
            region[regions.in_seen(box, "finding_boxes_xyxy")] = True
        share, area, hit = on(region)
        if area > 0:
            out |= {"finding_share": share, "finding_area_share": area}
            out |= {"finding_lift": share / area, "finding_hit": hit}
        else:
            why = "the finding lies outside what the member saw"
            out["reason"] = "; ".join(part for part in (out["reason"], why) if part)
    return out


def _checked_energy(whole: np.ndarray, seen: np.ndarray) -> float:
    total, everywhere = _sum(seen), _sum(whole)
    if not np.isfinite(everywhere):
        wrong = f"{int((~np.isfinite(whole)).sum())} of {whole.size} pixels"
        raise ValueError(f"saliency must be finite. Got NaN or infinity in {wrong} instead.")
    lowest, stray = cv2.minMaxLoc(whole)[0], everywhere - total
    require(lowest >= 0, "saliency must be cut at 0, as Grad-CAM does: at least 0", lowest)
    if stray > _STRAY * everywhere:
        raise ValueError(
            f"saliency must be 0 outside seen_xyxy. Got {100 * stray / everywhere:.3g} % of its "
            "energy there: give the box that the member saw."
        )
    return total


def _peak(seen: np.ndarray) -> tuple[int, int]:
    """Row and column of the maximum; of several the one nearest to their centre."""
    rows, columns = np.divmod(np.flatnonzero(seen == cv2.minMaxLoc(seen)[1]), seen.shape[1])
    nearest = ((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin()
    return int(rows[nearest]), int(columns[nearest])


def _is_near(region: np.ndarray, peak: tuple[int, int], reach: float) -> bool:
    """Does the region hold a pixel no further than `reach` px from the peak?"""
    row, column = peak
    top, left = max(0, row - int(reach)), max(0, column - int(reach))
    rows, columns = np.nonzero(region[top : row + int(reach) + 1, left : column + int(reach) + 1])
    away = (rows + top - row) ** 2 + (columns + left - column) ** 2
    return bool((away <= reach**2).any())


def _sum(values: np.ndarray) -> float:
    return float(cv2.sumElems(values)[0]) if values.size else 0.0


def _share(value: float) -> float:
    return float(min(1.0, max(0.0, value)))  # rounding may leave -1e-17, or 1 + 2e-16


# --- what a map that looks at nothing scores


def baseline_lifts(
    lung: np.ndarray,
    film: str = "",
    cam_hw: tuple[int, int] = (7, 7),
    draws: int = 256,
    seed: int = 0,
) -> dict[str, float | None]:
    """gaussian_lift, random_lift and random_sd of a lung field (h, w) bool over the seen area. It
    must hold a pixel; the latter two are None where none of the few maps drawn has any energy.

    Random: normal noise at the resolution of the map that is judged, blurred by one cell, cut at 0
    and scaled up bilinearly, all as a CAM is made. Every pixel has the same expectation, so all
    draws together put the area share of their energy on a region. The mean of the draws' own lifts
    still lies a little below 1 for a region in the middle (0.92 on two lungs at 7 × 7, 0.98 at
    14 × 10): a bump at the edge is cut, and what is left of it is then most of a small energy.

    A map scaled up and summed over a mask is the small map times the mask scaled down by the
    transposed weights, so the random maps are never drawn at full size.
    """
    height, width = lung.shape
    area = np.count_nonzero(lung) / lung.size
    mask = lung.astype(np.float32)
    rows, columns = _bell(height), _bell(width)
    gaussian = float(rows @ (mask @ columns)) / float(rows.sum() * columns.sum())
    up_y, up_x = _upscaling(height, cam_hw[0]), _upscaling(width, cam_hw[1])
    # cell by cell: a matrix product of this shape wakes all threads, which costs more than it does
    across = np.stack([mask @ weights for weights in up_x.T.copy()], axis=1)
    inside = (up_y.T @ across).ravel()
    everywhere = np.outer(up_y.sum(0), up_x.sum(0)).ravel()
    maps = random_maps(draws, cam_hw, film_seed(film, seed)).reshape(draws, -1)
    energy = maps @ everywhere
    drawn = energy > 0  # a map without any energy has no lift, as among real maps
    lifts = (maps @ inside)[drawn] / energy[drawn] / area
    return {
        "gaussian_lift": float(gaussian / area),
        "random_lift": float(lifts.mean()) if len(lifts) else None,
        "random_sd": float(lifts.std()) if len(lifts) else None,
    }


def random_maps(draws: int, cam_hw: tuple[int, int], seed: int) -> np.ndarray:
    """(draws, h, w) float64 ≥ 0: noise cut at 0."""
    return np.maximum(coarse_noise(np.random.default_rng(seed), draws, cam_hw), 0.0)


def coarse_noise(rng: np.random.Generator, draws: int, cam_hw: tuple[int, int]) -> np.ndarray:
    """(draws, h, w) float64: normal noise blurred by σ = 1 cell. It reaches beyond the map, so that
    the map's edge is as any other place."""
    height, width = cam_hw
    noise = rng.standard_normal((draws, height + 2 * _REACH, width + 2 * _REACH))
    return _blur(height) @ noise @ _blur(width).T


def film_seed(film: str, seed: int) -> int:
    """A seed of the film's own, whatever its name holds."""
    digest = hashlib.sha256(f"{seed}/{film}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


@lru_cache(maxsize=16)
def _blur(cells: int) -> np.ndarray:
    """(cells, cells + 6) Gaussian weights of each cell over its neighbours."""
    away = np.arange(cells + 2 * _REACH) - np.arange(cells)[:, None] - _REACH
    weights = np.exp(-(away**2) / 2) * (np.abs(away) <= _REACH)
    return weights / weights.sum(1, keepdims=True)


@lru_cache(maxsize=64)
def _upscaling(pixels: int, cells: int) -> np.ndarray:
    """(pixels, cells) float32 weights of a bilinear resize, centres aligned as in OpenCV."""
    place = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


@lru_cache(maxsize=64)
def _bell(pixels: int) -> np.ndarray:
    """(pixels,) float32 Gaussian at the middle, σ = ¼ of the length."""
    place = (np.arange(pixels) + 0.5) / pixels - 0.5
    return np.exp(-0.5 * (place / 0.25) ** 2).astype(np.float32)
