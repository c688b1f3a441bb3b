"""How alike two saliency maps of one film are: rank correlation and SSIM."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from scipy.stats import rankdata

from classify.ssim import ssim_of

SIDE = 224  # maps are compared at this size by SSIM, whose window must be small against them


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
            out.append(Likeness(rank_correlation(a, b), ssim_of(_scaled(a), _scaled(b))))
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


def _scaled(plane: np.ndarray) -> np.ndarray:
    scaled = (plane / plane.max()).astype(np.float32)
    return cv2.resize(scaled, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).astype(np.float64)
