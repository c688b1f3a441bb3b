"""How well two readers agree: IoU, and limits of agreement of each edge.

Limits of agreement after Bland and Altman (Lancet 1986): mean difference ± 1.96 standard
deviations; about 95 % of differences lie between them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr.stats import Interval, bootstrap_mean, bootstrap_quantiles
from detect.metrics import SIDES
from labelling.agree_match import A_ONLY, B_ONLY, BOTH, NEITHER, UNLIKE, Pair

Z95 = 1.96  # as the paper has it
LEVELS = (0.9, 0.95)


@dataclass(frozen=True)
class Limits:
    """Mean difference B − A, its standard deviation, and the 95 % limits of agreement."""

    bias: float
    sd: float  # NaN for fewer than two pairs, and so are the limits
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """All pairs of a block. IoU and edges are over pairs with two boxes.

    Attributes:
        pairs: pairs with two boxes; films and patients are counted among these.
        share_90, share_95: of pairs with an IoU of at least 0.9 and 0.95.
        edges_px, edges_pct: left, top, right, bottom.
        a_only, b_only: pairs where the other says "no box"; neither: where both do.
        unlike: pairs whose two pictures differ in shape and were not compared.
    """

    pairs: int
    films: int
    patients: int
    mean_iou: Interval
    median_iou: Interval
    p5_iou: Interval
    share_90: Interval
    share_95: Interval
    edges_px: tuple[Limits, ...]
    edges_pct: tuple[Limits, ...]
    a_only: int
    b_only: int
    neither: int
    unlike: int


def limits(differences: Any) -> Limits:
    """Bias and limits of agreement of (N,) differences; the SD has N − 1 below."""
    x = np.asarray(differences, dtype=np.float64)
    if not len(x):
        return Limits(*(math.nan,) * 4)
    bias = float(x.mean())
    sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    return Limits(bias, sd, bias - Z95 * sd, bias + Z95 * sd)


def measure(pairs: Sequence[Pair], seed: int = 0) -> Agreement:
    """One Agreement of these pairs; NaN where there is nothing to measure."""
    both = [p for p in pairs if p.verdict == BOTH]
    iou = np.array([p.iou for p in both], dtype=np.float64)
    patients = [p.patient for p in both]
    # 1e-9: boxes that meet at exactly 0.9 must not fail by rounding
    shares = [
        bootstrap_mean((iou >= level - 1e-9).astype(float), patients, seed=seed) for level in LEVELS
    ]
    median, p5 = bootstrap_quantiles(iou, patients, (0.5, 0.05), seed=seed)
    px, pct = (
        np.array([getattr(p, name) for p in both], dtype=np.float64).reshape(-1, 4)
        for name in ("edges_px", "edges_pct")
    )
    verdicts = Counter(p.verdict for p in pairs)
    return Agreement(
        pairs=len(both),
        films=len({p.film for p in both}),
        patients=len(set(patients)),
        mean_iou=bootstrap_mean(iou, patients, seed=seed),
        median_iou=median,
        p5_iou=p5,
        share_90=shares[0],
        share_95=shares[1],
        edges_px=tuple(limits(px[:, i]) for i in range(len(SIDES))),
        edges_pct=tuple(limits(pct[:, i]) for i in range(len(SIDES))),
        a_only=verdicts[A_ONLY],
        b_only=verdicts[B_ONLY],
        neither=verdicts[NEITHER],
        unlike=verdicts[UNLIKE],
    )


def measure_blocks(pairs: Sequence[Pair], seed: int = 0) -> dict[str, Agreement]:
    """All pairs; then each reader and each source where there are several of them."""
    blocks = {"all": measure(pairs, seed)}
    for word in ("reader", "source"):
        names = list(dict.fromkeys(getattr(p, word) for p in pairs if getattr(p, word)))
        if len(names) > 1:
            blocks |= {
                f"{word} {name}": measure([p for p in pairs if getattr(p, word) == name], seed)
                for name in names
            }
    return blocks
