"""How far a box's `quality` can be trusted: the IoU that it promises beside the IoU that it has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cxr.plots import COLOURS, new_figure, write_figure
from cxr.stats import Interval, bootstrap_mean


class Promised(NamedTuple):
    """(N,) the IoUs that films' boxes promise, the IoUs that they have, and the films' patients."""

    quality: np.ndarray
    iou: np.ndarray
    patients: np.ndarray


@dataclass(frozen=True)
class Reliability:
    """Of N films: the mean |quality − IoU|, Spearman's rho of both (NaN where one is all the same),
    and the mean IoU of the fifth of the films with the lowest quality, and of the rest."""

    films: int
    error: Interval
    spearman: float
    lowest_fifth: Interval
    rest: Interval


def measure_quality(promised: Promised, seed: int = 0) -> Reliability:
    """Compare promised with measured IoUs; intervals by patient."""
    from scipy.stats import rankdata

    said, iou, owners = promised
    ranks = [rankdata(said), rankdata(iou)]
    flat = any(np.ptp(r) == 0 for r in ranks)
    order = np.argsort(said, kind="stable")
    fifth = math.ceil(len(said) / 5)
    low, rest = (
        bootstrap_mean(iou[part], list(owners[part]), seed=seed)
        for part in (order[:fifth], order[fifth:])
    )
    error = bootstrap_mean(np.abs(said - iou), list(owners), seed=seed)
    rho = math.nan if flat else float(np.corrcoef(*ranks)[0, 1])
    return Reliability(len(said), error, rho, low, rest)


def draw_quality(promised: Promised, path: Path, seed: int = 0) -> Path:
    """Films in bins of equal number by quality: the bin's mean quality against its mean IoU with
    the 95 % interval by patient; how many films have which quality below."""
    said, iou, owners = promised
    groups = np.array_split(np.argsort(said, kind="stable"), min(10, max(1, len(said) // 20)))
    x = [said[g].mean() for g in groups]
    found = [bootstrap_mean(iou[g], list(owners[g]), seed=seed) for g in groups]
    figure = new_figure(5, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    lows = [said.min(), *(f.value for f in found), *(f.low for f in found)]
    ends = float(np.nanmin(lows)) - 0.02, 1.0
    above.plot(ends, ends, color="grey", linestyle=":", label="as promised")
    shown = np.maximum(iou, ends[0])
    above.plot(said, shown, ".", color="silver", clip_on=False, label="a film (lower: on the edge)")
    spread = np.transpose([(f.value - f.low, f.high - f.value) for f in found])
    values = [f.value for f in found]
    above.errorbar(x, values, spread, fmt="o-", color=COLOURS[0], capsize=3, label="bin [95 %]")
    above.set(ylabel="IoU with a person's box", title=f"{len(said)} films", xlim=ends, ylim=ends)
    below.hist(said, bins=np.linspace(*ends, 30), color=COLOURS[0])
    below.set(xlabel="quality: the IoU that is promised", ylabel="films")
    above.grid(alpha=0.3)
    above.legend(frameon=False, loc="upper left")
    return write_figure(figure, path)
