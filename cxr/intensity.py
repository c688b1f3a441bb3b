"""Grey values: clip, stretch, equalise, pad, resize. Pure: (H, W) float32 in [0, 1] in and out.

The order of Kim's thesis (SCXNN) is percentile_clip → min_max → pad_square → clahe → resize.
"""

from __future__ import annotations

import cv2
import numpy as np

_BINS = 256


def check_pixels(pixels: np.ndarray, function: str) -> None:
    """Raise ValueError unless pixels are (H, W) float32, finite, in [0, 1] and not empty."""
    rule = f"The 'pixels' parameter of {function} must be (H, W) float32 in [0, 1]."
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.dtype != np.float32:
        shape, kind = getattr(pixels, "shape", None), getattr(pixels, "dtype", type(pixels))
        raise ValueError(f"{rule} Got {kind} of shape {shape} instead; use cxr.film.read_film.")
    if pixels.size == 0:
        raise ValueError(f"{rule} Got the empty shape {pixels.shape} instead; check the crop.")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0.0 and high <= 1.0):  # also False for NaN
        raise ValueError(f"{rule} Got values from {low} to {high} instead; divide by the range.")


def percentile_clip(pixels: np.ndarray, low: float = 0.5, high: float = 99.5) -> np.ndarray:
    """Clip to the percentiles `low` and `high` of the pixels (SCXNN: 0.5 and 99.5)."""
    check_pixels(pixels, "percentile_clip")
    if not 0 <= low < high <= 100:
        raise ValueError(
            "The 'low' and 'high' parameters of percentile_clip must be 0 <= low < high <= 100. "
            f"Got {low} and {high} instead; give percentiles, such as 0.5 and 99.5."
        )
    floor, ceiling = np.percentile(pixels, [low, high])
    return np.clip(pixels, np.float32(floor), np.float32(ceiling))


def min_max(pixels: np.ndarray) -> np.ndarray:
    """Stretch to [0, 1]; a constant image becomes zeros."""
    check_pixels(pixels, "min_max")
    low, high = pixels.min(), pixels.max()
    if high <= low:
        return np.zeros_like(pixels)
    return np.clip((pixels - low) / (high - low), 0.0, 1.0).astype(np.float32)


def pad_square(pixels: np.ndarray) -> np.ndarray:
    """(H, W) to (S, S), S the longer side, with the image centred on zeros. The offset is (S - H)
    // 2 rows and (S - W) // 2 columns."""
    check_pixels(pixels, "pad_square")
    height, width = pixels.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), dtype=np.float32)
    square[top : top + height, left : left + width] = pixels
    return square


def resize(pixels: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Resize to (height, width) in pixels: by area when shrinking, bilinear when growing."""
    check_pixels(pixels, "resize")
    height, width = int(hw[0]), int(hw[1])
    if min(height, width) < 1:
        raise ValueError(
            "The 'hw' parameter of resize must be (height, width) of at least 1 pixel. "
            f"Got {hw} instead; give a size such as (512, 512)."
        )
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(pixels, (width, height), interpolation=method)
    return np.clip(resized, 0.0, 1.0).astype(np.float32, copy=False)


def equalize(pixels: np.ndarray) -> np.ndarray:
    """Histogram equalisation over 65,536 grey levels; a constant image stays as it is."""
    check_pixels(pixels, "equalize")
    levels = to_uint16(pixels)
    cumulative = np.cumsum(np.bincount(levels.ravel(), minlength=65536))
    first = int(cumulative[cumulative > 0][0])
    if first == pixels.size:
        return pixels.copy()
    table = np.clip((cumulative - first) / (pixels.size - first), 0.0, 1.0)
    return table[levels].astype(np.float32)


def clahe(pixels: np.ndarray, clip_limit: float = 2.0, tiles: int = 8) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994), without rounding. The
    tables have 256 bins and are read between bins, so that a 16-bit film keeps its steps. OpenCV's
    own 16-bit CLAHE has 65,536 bins: a tile of a film holds fewer pixels than that, every bin is
    clipped to one count, and the film comes out nearly as it went in. `clip_limit` is the highest
    count of a bin, in multiples of the mean count, as in OpenCV; `tiles` are along a side."""
    check_pixels(pixels, "clahe")
    if tiles < 1 or clip_limit <= 0:
        raise ValueError(
            "The 'clip_limit' and 'tiles' parameters of clahe must be positive. "
            f"Got {clip_limit} and {tiles} instead; the paper's 2.0 and 8 are a good start."
        )
    height, width = pixels.shape
    tile_h, tile_w = -(-height // tiles), -(-width // tiles)
    bottom, right = tile_h * tiles - height, tile_w * tiles - width
    whole = np.pad(pixels, ((0, bottom), (0, right)), mode="symmetric")
    tables = _clahe_tables(whole.reshape(tiles, tile_h, tiles, tile_w), clip_limit)
    mapped = np.empty_like(pixels)
    rows, columns = (_blend(n, size, tiles) for n, size in ((height, tile_h), (width, tile_w)))
    for row, above, below, weight_y in rows:
        for column, left, right_tile, weight_x in columns:
            level = pixels[row, column] * np.float32(_BINS - 1)
            corners = (
                (tables[above, left], (1 - weight_y)[:, None] * (1 - weight_x)),
                (tables[above, right_tile], (1 - weight_y)[:, None] * weight_x),
                (tables[below, left], weight_y[:, None] * (1 - weight_x)),
                (tables[below, right_tile], weight_y[:, None] * weight_x),
            )
            mapped[row, column] = _interpolate(level, corners)
    return np.clip(mapped, 0.0, 1.0)


def _clahe_tables(tiled: np.ndarray, clip_limit: float) -> np.ndarray:
    """(T, h, T, w) tiles to (T, T, 256) float32 tables of the clipped cumulative histogram."""
    tiles, tile_h, _, tile_w = tiled.shape
    bins = np.rint(tiled * np.float32(_BINS - 1)).astype(np.int64)
    bins += (np.arange(tiles)[:, None] * tiles + np.arange(tiles))[:, None, :, None] * _BINS
    counts = np.bincount(bins.ravel(), minlength=tiles * tiles * _BINS).astype(np.float64)
    counts = counts.reshape(tiles, tiles, _BINS)
    area = tile_h * tile_w
    limit = max(clip_limit * area / _BINS, 1.0)
    excess = np.clip(counts - limit, 0.0, None).sum(axis=-1, keepdims=True)
    counts = np.minimum(counts, limit) + excess / _BINS
    return (np.cumsum(counts, axis=-1) / area).astype(np.float32)


def _blend(length: int, size: int, tiles: int) -> list[tuple[slice, int, int, np.ndarray]]:
    """Stretches of a side between tile centres: slice, first tile, second tile, its weight."""
    edges = [0, *(round((i + 0.5) * size) for i in range(tiles)), length]
    stretches = []
    for i in range(tiles + 1):
        start, stop = edges[i], min(edges[i + 1], length)
        if start < stop:
            first, second = max(i - 1, 0), min(i, tiles - 1)
            at = (np.arange(start, stop) + 0.5) / size - 0.5
            weight = np.clip(at - first, 0.0, 1.0) if first < second else np.zeros(stop - start)
            stretches.append((slice(start, stop), first, second, weight.astype(np.float32)))
    return stretches


def _interpolate(
    level: np.ndarray, corners: tuple[tuple[np.ndarray, np.ndarray], ...]
) -> np.ndarray:
    """Blend of four tables, each read between its bins."""
    low = level.astype(np.intp)
    high = np.minimum(low + 1, _BINS - 1)
    part = level - low
    mapped = np.zeros_like(level)
    for table, weight in corners:
        below = table[low]
        mapped += weight * (below + part * (table[high] - below))
    return mapped


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """(H, W) uint8, 0 to 255, rounded."""
    check_pixels(pixels, "to_uint8")
    return np.rint(pixels * np.float32(255)).astype(np.uint8)


def to_uint16(pixels: np.ndarray) -> np.ndarray:
    """(H, W) uint16, 0 to 65,535, rounded."""
    check_pixels(pixels, "to_uint16")
    return np.rint(pixels * np.float32(65535)).astype(np.uint16)
