"""Two arms judged on the same films: paired tests by patient, and Holm's correction. Pure NumPy.

Films of one patient are no independent evidence, so a patient's films are drawn, or swapped
between the arms, all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr.stats import Figure, bootstrap_weights, figure

SWAP_TEST = "permutation: the arms swapped patient by patient"
BOOTSTRAP_TEST = "paired bootstrap of patients"
_CELLS = 4_000_000  # a block of draws is at most this many numbers: 32 MiB


def weighted_mean(values: Any, weights: np.ndarray) -> np.ndarray:
    """(B,) means of values (N,) for each row of weights (B, N); NaN where all weigh nothing."""
    values = np.asarray(values, float)
    whole = weights.sum(1)
    out = np.full(len(weights), np.nan)
    return np.divide(weights @ values, whole, out=out, where=whole > 0)


def with_draws(patients: Sequence[str], draws: int, seed: int) -> np.ndarray:
    """(1 + draws, N) weights: row 0 the films themselves, then bootstrap draws of patients."""
    return np.concatenate([np.ones((1, len(patients))), bootstrap_weights(patients, draws, seed)])


def mean_figure(values: Any, patients: Sequence[str], draws: int = 1000, seed: int = 0) -> Figure:
    """Mean of values (N,) with its 95 % interval by patient; NaN are left out and not counted."""
    values = np.asarray(values, float)
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return Figure(None, None, None, 0)
    found = weighted_mean(
        values[known], with_draws([patients[i] for i in known.tolist()], draws, seed)
    )
    return figure(float(found[0]), found[1:], len(known))


def swap_p(differences: Any, patients: Sequence[str], draws: int = 2000, seed: int = 0) -> float:
    """Two-sided p of a mean paired difference: how often chance gives one as large.

    If the arms do not differ, each patient's differences (N,) may as well have the other sign, all
    films of a patient together. Every pattern of signs is tried where there are at most `draws` of
    them, and the p is exact; else `draws` random ones are, and the films as they are count as one
    more, so that p is never 0 (Phipson and Smyth 2010). NaN without films.
    """
    differences = np.asarray(differences, float)
    if not len(differences):
        return float("nan")
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    sums = np.bincount(group, weights=differences, minlength=len(names))
    if not np.isfinite(sums).all():
        raise ValueError(
            "differences of swap_p must be finite. Got NaN or infinity: leave those films out."
        )
    # a hair below, so that patterns that give the same sum in another order count as equal
    reached = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    if 2 ** min(len(sums), 60) <= draws:
        patterns = np.arange(2 ** len(sums))
        signs = 1.0 - 2.0 * ((patterns[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ sums) >= reached).mean())
    rng = np.random.default_rng(seed)
    beyond, left = 0, draws
    while left:
        block = min(left, max(1, _CELLS // len(sums)))
        signs = rng.integers(0, 2, (block, len(sums))) * 2.0 - 1.0
        beyond += int((np.abs(signs @ sums) >= reached).sum())
        left -= block
    return (1 + beyond) / (1 + draws)


def bootstrap_p(draws: Any) -> float:
    """Two-sided p of a difference from its bootstrap draws (B,): twice the smaller share of draws
    on either side of 0, at least 2 / (B + 1). It says the same as the percentile interval: p is
    below 0.05 where the 95 % interval leaves 0 out. Draws without a value (NaN) are left out; NaN
    when more than half have none."""
    draws = np.asarray(draws, float)
    known = draws[~np.isnan(draws)]
    if not len(known) or len(known) * 2 < len(draws):
        return float("nan")
    tail = 1 + min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * tail / (1 + len(known)))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for the number of tests (Holm 1979); None stays None and is no test.

    The smallest p is multiplied by the number of tests, the next by one less, and so on; none
    becomes smaller than the one before it, or larger than 1.
    """
    tests = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    out: list[float | None] = [None] * len(ps)
    floor = 0.0
    for rank, (p, i) in enumerate(tests):
        floor = max(floor, min(1.0, p * (len(tests) - rank)))
        out[i] = floor
    return out
