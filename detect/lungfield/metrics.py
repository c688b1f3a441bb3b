"""How well two masks agree. Pure NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Overlap:
    """Agreement of a found mask with the true one; NaN where there is nothing to measure.

    `dice` is 2|A∩B| / (|A| + |B|) (Dice 1945), `iou` |A∩B| / |A∪B|; both 1 when both masks are
    empty. `coverage` is the share of the truth that was found, `precision` the share of the found
    that is true.
    """

    dice: float
    iou: float
    coverage: float
    precision: float


def overlap(found: np.ndarray, truth: np.ndarray) -> Overlap:
    """Overlap of two masks (H, W) of one size, everything above 0 inside.

    Raises ValueError for masks of different sizes.
    """
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
