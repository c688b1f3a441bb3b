"""How alike two saliency maps of one film are: rank correlation and SSIM."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from scipy.stats import rankdata

SIDE = 224  # maps are compared at this size by SSIM, whose window must be small against them
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # for values in [0, 1]


class Likeness(NamedTuple):
    """Of one pair of maps; both NaN where one of them is the same everywhere."""

    rank_correlation: float
    ssim: float


def likeness(maps_a: np.ndarray, maps_b: np.ndarray) -> list[Likeness]:
    """Likeness of the absolute maps (N, h, w) and (N, h, w), pair by pair.

    Ranks are taken of the maps as they are. For SSIM each is divided by its maximum, since its unit
    says nothing of where it looks, and brought to SIDE × SIDE px.
    """
    if maps_a.shape != maps_b.shape or maps_a.ndim != 3:
        raise ValueError(
            "maps_a and maps_b must both be (N, h, w). "
            f"Got {maps_a.shape} and {maps_b.shape} instead."
        )
    out = []
    for a, b in zip(np.abs(maps_a), np.abs(maps_b), strict=True):
        if min(np.ptp(a), np.ptp(b)) > 0:
            out.append(Likeness(rank_correlation(a, b), ssim(_scaled(a), _scaled(b))))
        else:
            out.append(Likeness(float("nan"), float("nan")))
    return out


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two arrays of one shape; equal values share their mean rank. NaN
    where one is the same everywhere."""
    x, y = rankdata(a), rankdata(b)
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two pictures (h, w) in [0, 1], at least 11 × 11.

    As in the paper: Gaussian window of 11 × 11 and σ 1.5, K1 0.01, K2 0.03; the mean over all
    places where the window lies inside.
    """
    if a.shape != b.shape or a.ndim != 2 or min(a.shape) < _WINDOW:
        raise ValueError(
            f"a and b of ssim must be (h, w), one size and at least {_WINDOW} × "
            f"{_WINDOW}. Got {a.shape} and {b.shape} instead."
        )
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    local = ((2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)) / (
        (mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2)
    )
    edge = _WINDOW // 2
    return float(local[edge:-edge, edge:-edge].mean())


def _smooth(plane: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(plane, (_WINDOW, _WINDOW), _SIGMA)


def _scaled(plane: np.ndarray) -> np.ndarray:
    scaled = (plane / plane.max()).astype(np.float32)
    return cv2.resize(scaled, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
