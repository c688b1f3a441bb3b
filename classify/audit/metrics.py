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
    *("inside_share", "area_share", "lift", "gaussian_lift", "random_lift", "random_sd"),
    *("pointing_hit", "border_share", "border_area_share", "outside_box_share"),
    *("text_share", "text_area_share"),
    *("finding_share", "finding_area_share", "finding_lift", "finding_hit"),
)
Array = np.ndarray
Metrics = dict[str, Any]  # the METRICS as float, bool (…_hit) or None; `empty` bool; `reason` str
Window = tuple[slice, slice]  # rows and columns

_BORDER = 0.05  # of the seen area's shorter side
_TOLERANCE = 15 / 512  # of the film's longer side
_STRAY = 1e-3  # share of energy outside the seen area that rounding of its edges may leave
_REACH = 3  # cells: where a Gaussian of σ = 1 cell ends


@dataclass(frozen=True, eq=False)
class Regions:
    """What is where on a film; all in the film's own pixels. `lung` (H, W) bool; `box_xyxy` the
    thorax box or None; `finding_boxes_xyxy` (N, 4) radiologists' boxes; `text` (H, W) bool or None;
    `seen_xyxy` what the member saw, None for the whole film. Boxes may reach beyond the film."""

    lung: Array
    box_xyxy: Any = None
    finding_boxes_xyxy: Any = ()
    text: Array | None = None
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
    saliency: Array,
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
    the seen area."""
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

    def on(region: Array) -> tuple[float, float, bool]:
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


def _checked_energy(whole: Array, seen: Array) -> float:
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


def _peak(seen: Array) -> tuple[int, int]:
    """Row and column of the maximum; of several the one nearest to their centre."""
    rows, columns = np.divmod(np.flatnonzero(seen == cv2.minMaxLoc(seen)[1]), seen.shape[1])
    nearest = ((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin()
    return int(rows[nearest]), int(columns[nearest])


def _is_near(region: Array, peak: tuple[int, int], reach: float) -> bool:
    """Does the region hold a pixel no further than `reach` px from the peak?"""
    row, column = peak
    top, left = max(0, row - int(reach)), max(0, column - int(reach))
    rows, columns = np.nonzero(region[top : row + int(reach) + 1, left : column + int(reach) + 1])
    away = (rows + top - row) ** 2 + (columns + left - column) ** 2
    return bool((away <= reach**2).any())


def _sum(values: Array) -> float:
    return float(cv2.sumElems(values)[0]) if values.size else 0.0


def _share(value: float) -> float:
    return float(min(1.0, max(0.0, value)))  # rounding may leave -1e-17, or 1 + 2e-16


# --- what a map that looks at nothing scores


def baseline_lifts(
    lung: Array, film: str = "", cam_hw: tuple[int, int] = (7, 7), draws: int = 256, seed: int = 0
) -> dict[str, float | None]:
    """gaussian_lift, random_lift and random_sd of a lung field (h, w) bool over the seen area. It
    must hold a pixel; the latter two are None where none of the few maps drawn has any energy.

    Random: normal noise at the resolution of the map that is judged, blurred by one cell, cut at 0
    and scaled up bilinearly, all as a CAM is made. Every pixel has the same expectation, so all
    draws together put the area share of their energy on a region. The mean of the draws' own lifts
    still lies a little below 1 for a region in the middle (0.92 on two lungs at 7 × 7, 0.98 at 14 ×
    10): a bump at the edge is cut, and what is left of it is then most of a small energy.

    A map scaled up and summed over a mask is the small map times the mask scaled down by the
    transposed weights, so the random maps are never drawn at full size."""
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


def random_maps(draws: int, cam_hw: tuple[int, int], seed: int) -> Array:
    """(draws, h, w) float64 ≥ 0: noise cut at 0."""
    return np.maximum(coarse_noise(np.random.default_rng(seed), draws, cam_hw), 0.0)


def coarse_noise(rng: np.random.Generator, draws: int, cam_hw: tuple[int, int]) -> Array:
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
def _blur(cells: int) -> Array:
    """(cells, cells + 6) Gaussian weights of each cell over its neighbours."""
    away = np.arange(cells + 2 * _REACH) - np.arange(cells)[:, None] - _REACH
    weights = np.exp(-(away**2) / 2) * (np.abs(away) <= _REACH)
    return weights / weights.sum(1, keepdims=True)


@lru_cache(maxsize=64)
def _upscaling(pixels: int, cells: int) -> Array:
    """(pixels, cells) float32 weights of a bilinear resize, centres aligned as in OpenCV."""
    place = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


@lru_cache(maxsize=64)
def _bell(pixels: int) -> Array:
    """(pixels,) float32 Gaussian at the middle, σ = ¼ of the length."""
    place = (np.arange(pixels) + 0.5) / pixels - 0.5
    return np.exp(-0.5 * (place / 0.25) ** 2).astype(np.float32)


# --- burnt-in text
# Burnt-in text of a film: letters, arrows, dates, lead markers such as R and L.
#
# A bright stroke stands out of the film's opening by an ellipse wider than it (white top-hat). Of
# the connected components of such strokes those are kept that look printed: dark on every side, not
# only on one as the edge of a rib; steep at their rim, as nothing inside a body is; not solid as a
# blob and not drawn out as a wire. A line of several may be fainter than a character alone.
#
# All lengths are pixels of the film scaled to a long side of 512, at which the rules were chosen
# and measured. Judged by eye on 144 films that did not choose them (48 each of kermany, ieee8023
# and nih): 456 of 473 marks are text (0.96; the others are electrodes, clips and a catheter), and
# text is found on 118 of the 130 films that carry any (0.91; 116 before one bound, on how full a
# letter with holes may be, was loosened after those films had been seen). On 40 films drawn anew
# (16, 12, 12) text is found on 31 of the 34 that carry any, and 45 of 47 marked areas are text.
# Missed are lead letters over bright shoulders, letters of little contrast, dark letters, outlined
# arrowheads, and letters with a stroke along the film's very edge.

_SIDE = 512  # films are measured at this long side; larger ones are shrunk to it
_STROKE = 11  # strokes narrower than this stand out, px at _SIDE
_RISE = 0.14  # of a stroke over the opening
_BRIGHT = 0.4  # of a stroke itself
_CROSS = np.ones((3, 3), np.uint8)
_SECTORS = 6  # sides of a component on which it must be the brighter
_GROW = 2  # px at _SIDE by which the mask reaches over the strokes' blurred rim


@dataclass(frozen=True)
class _Mark:
    """One bright component. Lengths in px at _SIDE, contrasts in grey levels of [0, 1]."""

    hull: Array  # (K, 1, 2) its convex hull, x and y
    xywh: tuple[int, int, int, int]
    length: float  # longer side of the smallest rectangle around it, at any angle
    aspect: float  # longer over shorter side of that rectangle
    fill: float  # its area over that rectangle's
    solid: float  # its area over its hull's
    holes: int
    stroke: float  # width of its widest stroke
    contrast: float  # over the median of the ring around it
    over_most: float  # over all but the brightest fifth of that ring
    over_side: float  # over the brightest of the ring's sides
    edge: float  # steepness of its rim, grey levels a px

    @property
    def sharp(self) -> float:
        """Share of the contrast that is climbed within one px."""
        return self.edge / max(self.contrast, 0.05)

    @property
    def shaped(self) -> bool:
        """Has it the bays or holes that strokes make?"""
        return self.solid < 0.82 or self.holes > 0

    @property
    def stands_alone(self) -> bool:
        """Is it a character or an arrow without looking at its neighbours?"""
        bright = self._rises(0.25, 0.2, 0.085)
        faint = self._rises(0.17, 0.16, 0.075) and self.length > 12 and self.solid < 0.8
        return (
            (bright or (faint and self.sharp > 0.32))
            and self.sharp > 0.3
            and (self.shaped or (self.over_most > 0.4 and self.solid < 0.86))
            and 0.18 < self.fill < (0.9 if self.holes else 0.8)
            and self.aspect < 3.0
            and 6 < self.length < 48
            and self.stroke < 0.5 * self.length
        )

    @property
    def may_belong(self) -> bool:
        """Could it be a character in a line of others?"""
        return self._rises(0.1, 0.06, 0.04) and self.sharp > 0.2 and self.length < 40

    @property
    def is_clear(self) -> bool:
        """Is it clear enough to vouch for a line?"""
        return self.over_most > 0.15 and self.edge > 0.05

    def _rises(self, over_most: float, over_side: float, edge: float) -> bool:
        return self.over_most > over_most and self.over_side > over_side and self.edge > edge


def find_text(pixels: Array) -> Array:
    """(H, W) float film in [0, 1] to (H, W) bool: hulls of the characters found, 2 px of 512 wider.
    Conservative: silence does not prove that there is none. Raises ValueError for other pixels."""
    rule = "pixels of find_text must be (H, W) of at least 16 px a side"
    require(pixels.ndim == 2 and min(pixels.shape) >= 16, rule, pixels.shape)
    height, width = pixels.shape
    scale = _SIDE / max(height, width)
    small: Array = np.asarray(pixels, np.float32)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    ends = float(small.min()), float(small.max())
    rule = "pixels of find_text must be finite and lie in [0, 1]"
    require(ends[0] > -0.01 and ends[1] < 1.01, rule, ends)  # NaN fails too
    unit = max(small.shape) / _SIDE
    marks = _marks(small, unit)
    kept = [m for m in marks if m.stands_alone]
    for line in _lines([m for m in marks if m.may_belong]):
        if sum(m.is_clear for m in line) >= 3 and sum(m.shaped for m in line) >= 2:
            kept += line
    if not kept:
        return np.zeros((height, width), bool)
    hulls = np.zeros(small.shape, np.uint8)
    for mark in kept:
        cv2.fillConvexPoly(hulls, mark.hull, 1)
    grow = 2 * max(1, round(_GROW * unit)) + 1
    mask = cv2.dilate(hulls, np.ones((grow, grow), np.uint8))
    if mask.shape != (height, width):
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    return mask.astype(bool)


def _marks(film: Array, unit: float) -> list[_Mark]:
    """Bright components of text-like size on a film whose long side is 512 × `unit` px."""
    side = round(_STROKE * unit) | 1
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # the film is continued beyond its edge: letters there are cut off, not bright without end
    wide = cv2.copyMakeBorder(film, side, side, side, side, cv2.BORDER_REPLICATE)
    opened = cv2.morphologyEx(wide, cv2.MORPH_OPEN, ellipse)[side:-side, side:-side]
    bright = ((film - opened > _RISE) & (film > _BRIGHT)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    slope = cv2.magnitude(
        cv2.Sobel(film, cv2.CV_32F, 1, 0, scale=1 / 8),
        cv2.Sobel(film, cv2.CV_32F, 0, 1, scale=1 / 8),
    )
    long = stats[:, 2:4].max(1) / unit
    right = (stats[:, 4] >= 5 * unit) & (long >= 3.5) & (long <= 60)
    return [_measure(n, film, labels, slope, stats[n], unit) for n in range(1, count) if right[n]]


def _measure(
    number: int, film: Array, labels: Array, slope: Array, stats: Array, unit: float
) -> _Mark:
    x, y, w, h, area = (int(v) for v in stats)
    x0, y0 = max(0, x - 4), max(0, y - 4)
    here = (slice(y0, y + h + 4), slice(x0, x + w + 4))
    found, pixels = labels[here], film[here]
    part = (found == number).astype(np.uint8)
    others = ((found > 0) & (part == 0)).astype(np.uint8)
    rim = cv2.dilate(part, _CROSS)
    ring = (cv2.dilate(rim, _CROSS, iterations=2) > 0) & (rim == 0)
    ring &= cv2.dilate(others, _CROSS) == 0  # a neighbouring letter is no ground
    inner = cv2.erode(part, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    core = float(np.median(pixels[part > 0]))
    outlines, _ = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x0, y0))
    hull = cv2.convexHull(np.vstack(outlines))
    _, sides, _ = cv2.minAreaRect(hull)
    short, long = sorted(s + 1 for s in sides)  # from centres of pixels to their outer edges
    hull_area = cv2.contourArea(hull) + cv2.arcLength(hull, True) / 2 + 1
    framed = cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    ground = pixels[ring]
    return _Mark(
        hull=hull,
        xywh=(x, y, w, h),
        length=long / unit,
        aspect=long / short,
        fill=area / (long * short),
        solid=area / hull_area,
        holes=len(outlines) - 1,
        stroke=float(cv2.distanceTransform(framed, cv2.DIST_L2, 3).max()) * 2 / unit,
        contrast=core - float(np.median(ground)) if ground.size else 0.0,
        over_most=core - float(np.quantile(ground, 0.8)) if ground.size > 3 else 0.0,
        over_side=core - _brightest_side(ring, ground, y + h / 2 - y0, x + w / 2 - x0),
        edge=float(np.median(slope[here][(rim > 0) & (inner == 0)])),
    )


def _brightest_side(ring: Array, ground: Array, cy: float, cx: float) -> float:
    """Highest of the medians of the ring's pixels in each sector around (cy, cx)."""
    rows, columns = np.nonzero(ring)
    turn = (np.arctan2(rows - cy, columns - cx) / (2 * np.pi)) % 1.0
    sector = np.minimum((turn * _SECTORS).astype(int), _SECTORS - 1)
    sides = [np.median(ground[sector == n]) for n in range(_SECTORS) if (sector == n).sum() > 1]
    return float(max(sides, default=1.0))


def _lines(marks: list[_Mark]) -> list[list[_Mark]]:
    """Marks that stand beside or above one another as the characters of a line do."""
    if not marks:
        return []
    x, y, w, h = np.array([m.xywh for m in marks], dtype=float).T
    beside = _neighbours(x, w, y, h) | _neighbours(y, h, x, w)
    line_of = np.arange(len(marks))
    for a, b in np.argwhere(np.triu(beside, 1)):
        line_of[line_of == line_of[a]] = line_of[b]
    return [[marks[n] for n in np.flatnonzero(line_of == k)] for k in np.unique(line_of)]


def _neighbours(along: Array, run: Array, across: Array, tall: Array) -> Array:
    """(N, N) bool: alike in height, a character's gap apart, and on one base line."""
    high = np.maximum(tall[:, None], tall)
    gap = np.maximum(along[:, None], along) - np.minimum((along + run)[:, None], along + run)
    centre = across + tall / 2
    return (
        (np.minimum(tall[:, None], tall) >= 0.5 * high)
        & (high >= 4)
        & (gap <= 0.9 * high + 2)
        & (gap >= -0.3 * high)
        & (np.abs(centre[:, None] - centre) <= 0.3 * high + 1)
    )
