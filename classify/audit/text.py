"""Burnt-in text of a film: letters, arrows, dates, lead markers such as R and L.

A bright stroke stands out of the film's opening by an ellipse wider than it (white top-hat). Of
the connected components of such strokes those are kept that look printed: dark on every side, not
only on one as the edge of a rib; steep at their rim, as nothing inside a body is; not solid as a
blob and not drawn out as a wire. A line of several may be fainter than a character alone.

All lengths are pixels of the film scaled to a long side of 512, at which the rules were chosen and
measured. Judged by eye on 144 films that did not choose them (48 each of kermany, ieee8023 and
nih): 456 of 473 marks are text (0.96; the others are electrodes, clips and a catheter), and text is
found on 118 of the 130 films that carry any (0.91: 42 of 43, 37 of 41, 39 of 46). One bound, on
how full a letter with holes may be, was loosened after those films had been seen; before it they
were 116. 40 films drawn anew (16, 12, 12) agree: text is found on 31 of the 34 that carry
any (14 of 14, 7 of 9, 10 of 11), and 45 of 47 marked areas are text. Missed are lead letters over
bright shoulders, letters of little contrast, dark letters, outlined arrowheads, and letters with a
stroke along the film's very edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cxr.rules import require

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

    hull: np.ndarray  # (K, 1, 2) its convex hull, x and y
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
        bright = self.over_most > 0.25 and self.over_side > 0.2 and self.edge > 0.085
        faint = (
            self.over_most > 0.17
            and self.over_side > 0.16
            and self.edge > 0.075
            and self.sharp > 0.32
            and self.length > 12
            and self.solid < 0.8
        )
        return (
            (bright or faint)
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
        return (
            self.over_most > 0.1
            and self.over_side > 0.06
            and self.edge > 0.04
            and self.sharp > 0.2
            and self.length < 40
        )

    @property
    def is_clear(self) -> bool:
        """Is it clear enough to vouch for a line?"""
        return self.over_most > 0.15 and self.edge > 0.05


def find_text(pixels: np.ndarray) -> np.ndarray:
    """(H, W) float film in [0, 1] to (H, W) bool: hulls of the characters found, 2 px of 512 wider.

    Conservative, see above: silence does not prove that there is no text. Films above 512 px are
    shrunk to it first. Raises ValueError for pixels that are not (H, W), too few, or not in [0, 1].
    """
    rule = "pixels of find_text must be (H, W) of at least 16 px a side"
    require(pixels.ndim == 2 and min(pixels.shape) >= 16, rule, pixels.shape)
    height, width = pixels.shape
    scale = _SIDE / max(height, width)
    small: np.ndarray = np.asarray(pixels, np.float32)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    low, high = float(small.min()), float(small.max())  # NaN fails too
    rule = "pixels of find_text must be finite and lie in [0, 1]"
    require(low > -0.01 and high < 1.01, rule, (low, high))
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


def _marks(film: np.ndarray, unit: float) -> list[_Mark]:
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
    number: int,
    film: np.ndarray,
    labels: np.ndarray,
    slope: np.ndarray,
    stats: np.ndarray,
    unit: float,
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


def _brightest_side(ring: np.ndarray, ground: np.ndarray, cy: float, cx: float) -> float:
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


def _neighbours(
    along: np.ndarray, run: np.ndarray, across: np.ndarray, tall: np.ndarray
) -> np.ndarray:
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
