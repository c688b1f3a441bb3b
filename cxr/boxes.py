"""Box arithmetic and the Frame that ties a crop or a letterbox back to the film.

Boxes are xyxy floats in continuous pixel coordinates: pixel i covers [i, i + 1), so the box of a
whole film is (0, 0, width, height). All functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from operator import index
from typing import Any

import cv2
import numpy as np

FloatArray = np.ndarray
Xyxy = tuple[float, float, float, float]


def as_boxes(boxes_xyxy: Any) -> FloatArray:
    """Return any list of boxes as (N, 4) float64; an empty one as (0, 4)."""
    return np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)


def as_xyxy(box_xyxy: Iterable[float]) -> Xyxy:
    """One box as four plain numbers."""
    x0, y0, x1, y1 = (float(v) for v in box_xyxy)
    return x0, y0, x1, y1


def xywh_to_xyxy(boxes_xywh: Any) -> FloatArray:
    """(N, 4) x, y, width, height (COCO) to (N, 4) xyxy."""
    boxes = as_boxes(boxes_xywh)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def xyxy_to_xywh(boxes_xyxy: Any) -> FloatArray:
    """(N, 4) xyxy to (N, 4) x, y, width, height (COCO)."""
    boxes = as_boxes(boxes_xyxy)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def area_xyxy(boxes_xyxy: Any) -> FloatArray:
    """(N,) areas in px²; a crossed box has area 0."""
    boxes = as_boxes(boxes_xyxy)
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None), axis=1)


def intersection_xyxy(boxes_a: Any, boxes_b: Any) -> FloatArray:
    """(N, M) areas of overlap of (N, 4) and (M, 4) boxes."""
    a, b = as_boxes(boxes_a)[:, None], as_boxes(boxes_b)[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., 2:], b[..., 2:])
    return np.prod(np.clip(high - low, 0.0, None), axis=-1)


def iou_xyxy(boxes_a: Any, boxes_b: Any) -> FloatArray:
    """(N, M) intersection over union; 0 where both boxes are empty."""
    overlap = intersection_xyxy(boxes_a, boxes_b)
    union = area_xyxy(boxes_a)[:, None] + area_xyxy(boxes_b)[None] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def clip_xyxy(boxes_xyxy: Any, size_hw: tuple[int, int]) -> FloatArray:
    """(N, 4) boxes cut to a film of (height, width)."""
    height, width = size_hw
    return np.clip(as_boxes(boxes_xyxy), 0.0, [width, height, width, height])


def union_xyxy(boxes_xyxy: Any) -> FloatArray:
    """(4,) smallest box round all boxes; raises ValueError when there is none."""
    boxes = as_boxes(boxes_xyxy)
    if not len(boxes):
        raise ValueError("boxes_xyxy of union_xyxy must hold at least one box. Got 0 instead.")
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def mask_box_xyxy(mask: np.ndarray) -> FloatArray | None:
    """(4,) tight xyxy box of the pixels above 0 of a mask (H, W); None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def expand_xyxy(box_xyxy: Any, margin: float) -> FloatArray:
    """(4,) box grown on each side by `margin` × that side's length."""
    x0, y0, x1, y1 = as_boxes(box_xyxy)[0]
    dx, dy = (x1 - x0) * margin, (y1 - y0) * margin
    return np.array([x0 - dx, y0 - dy, x1 + dx, y1 + dy])


def square_xyxy(box_xyxy: Any) -> FloatArray:
    """(4,) the box grown about its centre to a square of its longer side."""
    x0, y0, x1, y1 = as_boxes(box_xyxy)[0]
    half = max(x1 - x0, y1 - y0) / 2
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return np.array([cx - half, cy - half, cx + half, cy + half])


def keeps_aspect(size_hw: tuple[int, int], new_hw: tuple[int, int]) -> bool:
    """Whether a copy of `new_hw` has the aspect ratio of `size_hw` within 1 %."""
    (height, width), (new_height, new_width) = size_hw, new_hw
    return abs(new_width / width / (new_height / height) - 1) <= 0.01


def scale_xyxy(boxes_xyxy: Any, size_hw: tuple[int, int], new_hw: tuple[int, int]) -> FloatArray:
    """(N, 4) boxes of a film of `size_hw` on its copy of `new_hw`. Raises ValueError when the
    aspect ratios differ by more than 1 %: a copy that was cut or stretched has its thorax
    elsewhere."""
    (height, width), (new_height, new_width) = size_hw, new_hw
    if not keeps_aspect(size_hw, new_hw):
        raise ValueError(
            f"new_hw of scale_xyxy must keep the aspect ratio within 1 %. Got {new_width} × "
            f"{new_height} px for {width} × {height} px instead."
        )
    return stretch_xyxy(boxes_xyxy, size_hw, new_hw)


def stretch_xyxy(boxes_xyxy: Any, size_hw: tuple[int, int], new_hw: tuple[int, int]) -> FloatArray:
    """(N, 4) boxes of a film of `size_hw` on the same film resampled to `new_hw`, along each axis
    by itself: between a film's pixels as stored and its square ones."""
    (height, width), (new_height, new_width) = size_hw, new_hw
    return as_boxes(boxes_xyxy) * np.tile([new_width / width, new_height / height], 2)


def flip_x_xyxy(boxes_xyxy: Any, width: float) -> FloatArray:
    """(N, 4) boxes mirrored left to right on a film of that width."""
    boxes = as_boxes(boxes_xyxy)
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def turn_xyxy(boxes_xyxy: Any, size_hw: tuple[int, int], degrees: int) -> FloatArray:
    """(N, 4) boxes of a film of (height, width) on the film turned anticlockwise by 0, 90, 180 or
    270 degrees, as `np.rot90` turns it."""
    boxes, (height, width) = as_boxes(boxes_xyxy), size_hw
    for _ in range(degrees // 90 % 4):
        boxes = np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], 1)
        height, width = width, height
    return boxes


@dataclass(frozen=True)
class Frame:
    """How a model's picture was cut out of a film: cut, resize, pad; and the way back.

    `source_xyxy` are whole pixels of the film and may reach beyond it (filled with 0, as the air
    outside a film is black). The cut is resized to `content_hw` and laid at (`pad_x`, `pad_y`)
    on a canvas of `canvas_hw`. After segment-anything's transforms and opencxr's `size_changes`:
    every result is reported in original pixels.

    `stored_xy` are the original pixels for each of the film's along x and y: other than 1 where a
    film's pixels are not square and it was resampled. A film that lay on its side or upside down
    is turned anticlockwise by `turned` degrees first; `film_hw` is its size before that, and
    `source_xyxy` are pixels of the turned film. `apply` and `restore` work on the film as it is
    read; boxes come and go in original pixels.
    """

    source_xyxy: tuple[int, int, int, int]
    content_hw: tuple[int, int]
    canvas_hw: tuple[int, int]
    pad_x: int = 0
    pad_y: int = 0
    stored_xy: tuple[float, float] = (1.0, 1.0)
    turned: int = 0
    film_hw: tuple[int, int] | None = None

    @classmethod
    def letterbox(cls, size_hw: tuple[int, int], side: int, centre: bool = False) -> Frame:
        """A whole film of (height, width) fitted into a square of `side` px, padded right and
        below (or on both sides with `centre`)."""
        return cls.of_box((0, 0, size_hw[1], size_hw[0]), side, centre)

    @classmethod
    def of_box(cls, box_xyxy: Any, side: int, centre: bool = True) -> Frame:
        """A box of the film fitted into a square of `side` px with its aspect ratio kept."""
        x0, y0, x1, y1 = (int(v) for v in np.rint(as_boxes(box_xyxy)[0]))
        width, height = max(1, x1 - x0), max(1, y1 - y0)
        scale = side / max(width, height)
        h, w = max(1, round(height * scale)), max(1, round(width * scale))
        pad_x, pad_y = ((side - w) // 2, (side - h) // 2) if centre else (0, 0)
        return cls((x0, y0, x0 + width, y0 + height), (h, w), (side, side), pad_x, pad_y)

    @classmethod
    def cut(cls, box_xyxy: Any) -> Frame:
        """A box of the film at full resolution: no resize, no padding but beyond the edges."""
        x0, y0, x1, y1 = (int(v) for v in np.rint(as_boxes(box_xyxy)[0]))
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        return cls((x0, y0, x1, y1), (y1 - y0, x1 - x0), (y1 - y0, x1 - x0))

    @property
    def film_xyxy(self) -> tuple[float, float, float, float]:
        """The cut in pixels of the film as it is read."""
        x0, y0, x1, y1 = self._turn(self.source_xyxy, back=True)[0].tolist()
        return (x0, y0, x1, y1) if self.turned else self.source_xyxy

    @property
    def original_xyxy(self) -> tuple[float, float, float, float]:
        """The cut in original pixels."""
        (x0, y0, x1, y1), (sx, sy) = self.film_xyxy, self.stored_xy
        return self.film_xyxy if sx == sy == 1 else (x0 * sx, y0 * sy, x1 * sx, y1 * sy)

    def _turn(self, boxes_xyxy: Any, back: bool = False) -> FloatArray:
        """(N, 4) boxes of the film as it is read on the film as it is cut, or back."""
        if not self.turned or self.film_hw is None:
            return as_boxes(boxes_xyxy)
        if not back:
            return turn_xyxy(boxes_xyxy, self.film_hw, self.turned)
        turned_hw = self.film_hw if self.turned == 180 else self.film_hw[::-1]
        return turn_xyxy(boxes_xyxy, turned_hw, 360 - self.turned)

    def _scale_and_shift(self) -> tuple[FloatArray, FloatArray]:
        """(4,) model pixels for each pixel of the film that is cut, and where its (0, 0) lies."""
        x0, y0, x1, y1 = self.source_xyxy
        scale = np.array([self.content_hw[1] / (x1 - x0), self.content_hw[0] / (y1 - y0)] * 2)
        return scale, np.array([self.pad_x, self.pad_y] * 2) - np.array([x0, y0] * 2) * scale

    def to_model_xyxy(self, boxes_xyxy: Any) -> FloatArray:
        """(N, 4) boxes in original pixels to (N, 4) in model pixels."""
        scale, shift = self._scale_and_shift()
        return self._turn(as_boxes(boxes_xyxy) / np.tile(self.stored_xy, 2)) * scale + shift

    def to_original_xyxy(self, boxes_xyxy: Any) -> FloatArray:
        """(N, 4) boxes in model pixels to (N, 4) in original pixels."""
        scale, shift = self._scale_and_shift()
        boxes = self._turn((as_boxes(boxes_xyxy) - shift) / scale, back=True)
        return boxes * np.tile(self.stored_xy, 2)

    def apply(self, pixels: np.ndarray, nearest: bool = False) -> np.ndarray:
        """Film pixels (H, W) to the model's canvas; `nearest` for masks."""
        pixels = np.rot90(pixels, self.turned // 90)
        x0, y0, x1, y1 = self.source_xyxy
        height, width = pixels.shape[:2]
        cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        patch = pixels[cy0 : max(cy0, cy1), cx0 : max(cx0, cx1)]  # empty when all of it is outside
        if (cx0, cy0, cx1, cy1) != self.source_xyxy:
            inside = patch
            patch = np.zeros((y1 - y0, x1 - x0, *pixels.shape[2:]), pixels.dtype)
            if inside.size:
                patch[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0] = inside
        h, w = self.content_hw
        if patch.shape[:2] != (h, w):
            shrinks = h < patch.shape[0] or w < patch.shape[1]
            how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR  # area: no aliasing of ribs
            patch = cv2.resize(patch, (w, h), interpolation=cv2.INTER_NEAREST if nearest else how)
        if (h, w) == self.canvas_hw:
            return np.ascontiguousarray(patch)
        canvas = np.zeros((*self.canvas_hw, *pixels.shape[2:]), pixels.dtype)
        canvas[self.pad_y : self.pad_y + h, self.pad_x : self.pad_x + w] = patch
        return canvas

    def restore(self, canvas: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        """A map (h, w) in model pixels laid back on a film of `size_hw`; 0 outside the cut."""
        if self.turned:
            upright_hw = size_hw if self.turned == 180 else size_hw[::-1]
            upright = replace(self, turned=0).restore(canvas, upright_hw)
            return np.ascontiguousarray(np.rot90(upright, -self.turned // 90))
        h, w = self.content_hw
        x0, y0, x1, y1 = self.source_xyxy
        patch = canvas[self.pad_y : self.pad_y + h, self.pad_x : self.pad_x + w]
        if patch.shape[:2] != (y1 - y0, x1 - x0):
            patch = cv2.resize(patch, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        out = np.zeros(size_hw, canvas.dtype)
        cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x1, size_hw[1]), min(y1, size_hw[0])
        if cx1 > cx0 and cy1 > cy0:
            out[cy0:cy1, cx0:cx1] = patch[cy0 - y0 : cy1 - y0, cx0 - x0 : cx1 - x0]
        return out

    def to_dict(self) -> dict[str, Any]:
        """As plain lists and numbers, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Frame:
        """The inverse of `to_dict`; older ones lack the last three. ValueError for what is none."""
        keys = ("source_xyxy", "content_hw", "canvas_hw")
        try:
            (x0, y0, x1, y1), (h, w), (canvas_h, canvas_w) = (map(index, data[k]) for k in keys)
            pads = index(data["pad_x"]), index(data["pad_y"])
            sx, sy = map(float, data.get("stored_xy", (1, 1)))
            turned, film_hw = index(data.get("turned", 0)), data.get("film_hw")
            film_hw = None if film_hw is None else tuple(map(index, film_hw))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"frame must hold whole pixels as written. Got {data!r}.") from error
        if x0 >= x1 or y0 >= y1 or min(h, w, canvas_h, canvas_w) < 1 or not min(sx, sy) > 0:
            raise ValueError(f"frame must have a width and a height. Got {data!r}.")
        if turned not in (0, 90, 180, 270) or (turned and (not film_hw or len(film_hw) != 2)):
            raise ValueError(f"frame must be turned by quarters, with film_hw. Got {data!r}.")
        canvas_hw = (canvas_h, canvas_w)
        return cls((x0, y0, x1, y1), (h, w), canvas_hw, *pads, (sx, sy), turned, film_hw)
