"""What a map that looks at nothing scores: random maps and a centred blob over the same lungs.

Random: normal noise at the resolution of the map that is judged, blurred by one cell, cut at 0 and
scaled up bilinearly, all as a CAM is made. Every pixel has the same expectation, so all draws
together put the area share of their energy on a region. The mean of the draws' own lifts still
lies a little below 1 for a region in the middle (0.92 on two lungs at 7 × 7, 0.98 at 14 × 10): a
bump at the edge is cut, and what is left of it is then most of a small energy. That mean is the
chance level of a map as coarse as this, and the deviation tells how far luck alone carries one.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

_REACH = 3  # cells: where a Gaussian of σ = 1 cell ends


def baseline_lifts(
    lung: np.ndarray,
    film: str = "",
    cam_hw: tuple[int, int] = (7, 7),
    draws: int = 256,
    seed: int = 0,
) -> dict[str, float | None]:
    """gaussian_lift, random_lift and random_sd of a lung field (h, w) bool over the seen area.

    A map scaled up and summed over a mask is the small map times the mask scaled down by the
    transposed weights, so the random maps are never drawn at full size. The two of the random maps
    are None where none of the few drawn has any energy. Raises ValueError for an empty lung field,
    no draw, or a resolution below 2 × 2.
    """
    height, width = lung.shape
    area = np.count_nonzero(lung) / lung.size
    if area == 0:
        raise ValueError("lung of baseline_lifts must hold a pixel. Got an empty lung field.")
    mask = lung.astype(np.float32)
    rows, columns = _bell(height), _bell(width)
    gaussian = float(rows @ (mask @ columns)) / float(rows.sum() * columns.sum())
    up_y, up_x = _upscaling(height, cam_hw[0]), _upscaling(width, cam_hw[1])
    # cell by cell: a matrix product of this shape wakes all threads, which costs more than it does
    across = np.stack([mask @ weights for weights in up_x.T.copy()], axis=1)
    inside = (up_y.T @ across).ravel()
    everywhere = np.outer(up_y.sum(0), up_x.sum(0)).ravel()
    maps = random_maps(draws, cam_hw, _seed(film, seed)).reshape(draws, -1)
    energy = maps @ everywhere
    drawn = energy > 0  # a map without any energy has no lift, as among real maps
    lifts = (maps @ inside)[drawn] / energy[drawn] / area
    return {
        "gaussian_lift": float(gaussian / area),
        "random_lift": float(lifts.mean()) if len(lifts) else None,
        "random_sd": float(lifts.std()) if len(lifts) else None,
    }


def random_maps(draws: int, cam_hw: tuple[int, int], seed: int) -> np.ndarray:
    """(draws, h, w) float64 ≥ 0: normal noise blurred by σ = 1 cell and cut at 0.

    The noise reaches beyond the map, so that the map's edge is as any other place.
    """
    height, width = cam_hw
    if draws < 1 or min(height, width) < 2:
        raise ValueError(
            "draws must be at least 1 and cam_hw at least (2, 2). Got "
            f"{draws} and {cam_hw} instead."
        )
    size = (draws, height + 2 * _REACH, width + 2 * _REACH)
    noise = np.random.default_rng(seed).standard_normal(size)
    return np.maximum(_blur(height) @ noise @ _blur(width).T, 0.0)


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


def _seed(film: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{film}".encode()).digest()[:8], "big")
