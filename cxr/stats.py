"""Figures with intervals by patient, exact bounds, and paired tests. Pure NumPy.

A bootstrap draw takes patients with replacement, all films of a patient together: films of one
patient are no independent evidence. Each draw is a weight for each film, so that all draws are
done at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cxr.rules import require

Array = np.ndarray
SWAP_TEST = "permutation: the arms swapped patient by patient"
BOOTSTRAP_TEST = "paired bootstrap of patients"
_CELLS = 4_000_000  # a block of draws is at most this many numbers: 32 MiB


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval; None where it is undefined. `n` films stand behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Interval:
    """A value over films with its 95 % interval by patient; NaN where it is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan


def in_words(found: Figure | Interval, signed: bool = False, missing: str = "–") -> str:
    """A value with its interval, for tables: 0.837 [0.715, 0.936]; `missing` without a value."""
    form = "+.3f" if signed else ".3f"
    if found.value is None or math.isnan(found.value):
        return missing
    if found.low is None or found.high is None or math.isnan(found.low):
        return f"{found.value:{form}}"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


# --- the bootstrap ---


def _patient_draws(
    patients: Sequence[str] | Array, draws: int, seed: int
) -> tuple[Array, Iterator[Array]]:
    """(N,) the number of each film's patient; and (B, P) how often each patient stands in a draw,
    a block of draws at a time."""
    _, group = np.unique(np.asarray(patients), return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    step = max(1, _CELLS // max(1, count))

    def blocks() -> Iterator[Array]:
        rng, shares = np.random.default_rng(seed), np.full(count, 1 / max(count, 1))
        for start in range(0, draws, step):
            yield rng.multinomial(count, shares, size=min(step, draws - start))

    return group, blocks()


def bootstrap_weights(patients: Sequence[str], draws: int = 1000, seed: int = 0) -> Array:
    """(draws, N) how often each of the N films stands in each draw of patients."""
    group, blocks = _patient_draws(patients, draws, seed)
    parts = [times[:, group].astype(np.float64) for times in blocks]
    return np.concatenate(parts) if parts else np.zeros((0, len(group)))


def with_draws(patients: Sequence[str], draws: int = 1000, seed: int = 0) -> Array:
    """(1 + draws, N) weights: row 0 the films themselves, then bootstrap draws of patients."""
    return np.concatenate([np.ones((1, len(patients))), bootstrap_weights(patients, draws, seed)])


def figure(value: float, draws: Array, n: int, level: float = 0.95) -> Figure:
    """A value with the percentile interval of its bootstrap draws; draws without a value are
    left out, and when more than half have none there is no interval."""
    known = draws[~np.isnan(draws)]
    if np.isnan(value):
        return Figure(None, None, None, n)
    if len(known) * 2 < len(draws) or not len(draws):
        return Figure(float(value), None, None, n)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Figure(float(value), float(low), float(high), n)


def figure_of(values: Array, n: int) -> Figure:
    """(1 + B,) the value of the films themselves, then its draws: what `with_draws` leads to."""
    return figure(float(values[0]), values[1:], n)


def _known(values: Any, patients: Sequence[str] | Array) -> tuple[Array, Array]:
    """The values that are not NaN (None is), and their patients."""
    x = np.asarray(values, dtype=np.float64)
    if x.shape != (len(patients),):
        raise ValueError(
            f"values and patients must be of one length. Got {x.shape} and {len(patients)} instead."
        )
    known = ~np.isnan(x)
    return x[known], np.asarray(patients)[known]


def mean_figure(
    values: Any, patients: Sequence[str] | Array, draws: int = 1000, seed: int = 0
) -> Figure:
    """Mean of values (N,) with its 95 % interval by patient; NaN and None are left out and not
    counted."""
    known, owners = _known(values, patients)
    if not len(known):
        return Figure(None, None, None, 0)
    group, blocks = _patient_draws(owners, draws, seed)
    sums, counts = np.bincount(group, known), np.bincount(group)
    means = np.concatenate([np.zeros(0), *((t @ sums) / (t @ counts) for t in blocks)])
    return figure(float(known.mean()), means, len(known))


def share_figure(hits: Any, patients: Sequence[str], draws: int = 1000, seed: int = 0) -> Figure:
    """Share of N films with a 95 % bootstrap interval by patient. Where all or none are hit, the
    bootstrap knows no spread: the interval is then the exact one with each patient counted once."""
    found = mean_figure(hits, patients, draws, seed)
    if found.value is None or 0 < found.value < 1:
        return found
    count = len(set(patients))
    return Figure(found.value, *exact_interval(round(found.value) * count, count), found.n)


def bootstrap_mean(
    values: Any, patients: Sequence[str], draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean of (N,) values with the percentile interval of resampled *patients*. Films of one
    patient are alike, so films must not be drawn one by one (Efron and Tibshirani 1993, chapter 8).
    NaN values are left out with their films. Fewer than two patients give no interval."""
    known, owners = _known(values, patients)
    found = mean_figure(known, owners, draws, seed)
    if found.value is None:
        return Interval(math.nan)
    if len(np.unique(owners)) < 2:
        return Interval(found.value)
    return Interval(found.value, found.low or 0.0, found.high or 0.0)


def bootstrap_quantiles(
    values: Any,
    patients: Sequence[str],
    quantiles: Sequence[float],
    draws: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """Quantiles of (N,) values, each with the percentile interval of resampled *patients*; fewer
    than two patients give no interval."""
    x, q = np.asarray(values, dtype=np.float64), np.asarray(quantiles, dtype=np.float64)
    if not len(x):
        return [Interval(math.nan)] * len(q)
    found = np.quantile(x, q)
    if len(set(patients)) < 2:
        return [Interval(float(v)) for v in found]
    group, blocks = _patient_draws(patients, draws, seed)
    drawn = [np.quantile(np.repeat(x, t[group]), q) for times in blocks for t in times]
    lows, highs = np.quantile(drawn, [0.025, 0.975], axis=0)
    return [Interval(*map(float, row)) for row in zip(found, lows, highs, strict=True)]


# --- exact bounds (Clopper and Pearson 1934) ---


def exact_interval(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Clopper–Pearson interval of hits / total; (0, 1) when total is 0."""
    tail = (1 - confidence) / 2
    return lower_bound(hits, total, 1 - tail), 1 - lower_bound(total - hits, total, 1 - tail)


def lower_bound(hits: int, total: int, confidence: float = 0.95) -> float:
    """One-sided Clopper–Pearson lower bound of hits / total; 0 when there is no hit."""
    from scipy.special import betaincinv

    if not 0 <= hits <= total:
        raise ValueError(f"hits must lie in 0…total. Got {hits} of {total} instead.")
    return float(betaincinv(hits, total - hits + 1, 1 - confidence)) if hits else 0.0


def exact_share(hits: int, total: int) -> Figure:
    """A share with its exact 95 % interval; without any, no value."""
    if not total:
        return Figure(None, None, None, 0)
    return Figure(hits / total, *exact_interval(hits, total), total)


def sign_p(first: int, second: int) -> float | None:
    """Two-sided exact binomial p of `first` against `second`, both alike; None without any."""
    from scipy.stats import binomtest

    total = first + second
    return float(binomtest(first, total).pvalue) if total else None


# --- one classifier ---


@dataclass(frozen=True)
class Report:
    """All figures of one classifier on N films of P patients."""

    films: int
    patients: int
    classes: tuple[str, ...]
    macro_auc: Figure
    accuracy: Figure
    balanced_accuracy: Figure
    auc: dict[str, Figure]
    sensitivity: dict[str, Figure]
    specificity: dict[str, Figure]
    class_accuracy: dict[str, Figure]
    f1: dict[str, Figure]
    macro_f1: Figure
    confusion: list[list[int]]  # rows: truth, columns: answer
    draws: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**asdict(self), "classes": list(self.classes)}


def _divided(part: Array, whole: Array) -> Array:
    """(B,) quotients; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def weighted_auc(scores: Any, positive: Any, weights: Array | None = None) -> Array:
    """(B,) area under the ROC curve for each row of weights (B, N); NaN where a side is empty.
    Equal scores count half, as in the Mann-Whitney statistic."""
    scores, positive = np.asarray(scores, float), np.asarray(positive, bool)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(
            "scores and positive must both be (N,). Got "
            f"{scores.shape} and {positive.shape} instead."
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite. Got NaN or infinity: leave those films out.")
    weights = np.ones((1, len(scores))) if weights is None else np.atleast_2d(weights)
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # groups of equal scores
    sorted_weights = weights[:, order]
    plus = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    minus = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1)
    below = np.cumsum(minus, axis=1) - minus
    pairs = plus.sum(1) * minus.sum(1)
    wins = (plus * (below + minus / 2)).sum(1)
    return _divided(wins, pairs)


def auc(scores: Any, positive: Any) -> float:
    """Area under the ROC curve of (N,) scores; NaN when one side is empty."""
    return float(weighted_auc(scores, positive)[0])


def macro_auc(probabilities: Any, labels: Any) -> float:
    """Mean of one-against-rest AUCs over the classes of which there are films and non-films."""
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels)
    every = [auc(probabilities[:, k], labels == k) for k in range(probabilities.shape[1])]
    known = [a for a in every if not np.isnan(a)]
    return float(np.mean(known)) if known else float("nan")


def softmax(logits: Any) -> Array:
    """(..., K) logits to probabilities."""
    logits = np.asarray(logits, float)
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def ratio(hits: Any, among: Any, weights: Array | None = None) -> Array:
    """(B,) weighted share of `hits` among the films of `among`, both (N,) bool; NaN for none."""
    hits, among = np.asarray(hits, bool), np.asarray(among, bool)
    weights = np.ones((1, len(hits))) if weights is None else np.atleast_2d(weights)
    return _divided(weights @ (hits & among).astype(float), weights @ among.astype(float))


def f1(said: Any, truth: Any, weights: Array | None = None) -> Array:
    """(B,) harmonic mean of precision and sensitivity of one class, 2 TP / (2 TP + FP + FN), from
    (N,) bool; NaN for rows of weights that hold no film of the class. A class that is there and
    never answered has 0 (its precision would be 0 / 0)."""
    said, truth = np.asarray(said, bool), np.asarray(truth, bool)
    weights = np.ones((1, len(truth))) if weights is None else np.atleast_2d(weights)
    here = weights @ truth.astype(float)
    both = weights @ (said & truth).astype(float)
    whole = here + weights @ said.astype(float)  # TP + FN and TP + FP
    return np.where(here > 0, _divided(2 * both, whole), np.nan)


def weighted_mean(values: Any, weights: np.ndarray) -> np.ndarray:
    """(B,) means of values (N,) for each row of weights (B, N); NaN where all weigh nothing."""
    return _divided(weights @ np.asarray(values, float), weights.sum(1))


def classification_report(
    logits: Any,
    labels: Any,
    patients: Sequence[str],
    classes: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
) -> Report:
    """Figures of logits (N, K) against labels (N,); the answer is the largest logit. Sensitivity,
    specificity and accuracy of a class are those of the answer, one class against the rest."""
    probabilities, labels = softmax(logits), np.asarray(labels)
    _check(probabilities, labels, patients, classes)
    weights = with_draws(patients, draws, seed)
    answer, kinds = probabilities.argmax(1), range(len(classes))
    truth = [labels == k for k in kinds]
    said = [answer == k for k in kinds]
    aucs = [weighted_auc(probabilities[:, k], truth[k], weights) for k in kinds]
    sens = [ratio(said[k], truth[k], weights) for k in kinds]
    spec = [ratio(~said[k], ~truth[k], weights) for k in kinds]
    alike = [weighted_mean(said[k] == truth[k], weights) for k in kinds]
    f1s = [f1(said[k], truth[k], weights) for k in kinds]
    n, own = len(labels), [int(t.sum()) for t in truth]
    every, others = [n] * len(own), [n - count for count in own]

    def by_class(values: list[Array], films: list[int]) -> dict[str, Figure]:
        return dict(zip(classes, map(figure_of, values, films), strict=True))

    return Report(
        films=n,
        patients=len(set(patients)),
        classes=tuple(classes),
        macro_auc=figure_of(_mean_of_known(aucs), n),
        accuracy=figure_of(weighted_mean(answer == labels, weights), n),
        balanced_accuracy=figure_of(_mean_of_known(sens), n),
        auc=by_class(aucs, every),
        sensitivity=by_class(sens, own),
        specificity=by_class(spec, others),
        class_accuracy=by_class(alike, every),
        f1=by_class(f1s, own),
        macro_f1=figure_of(_mean_of_known(f1s), n),
        confusion=[[int((truth[i] & said[j]).sum()) for j in kinds] for i in kinds],
        draws=draws,
        seed=seed,
    )


def _mean_of_known(values: list[Array]) -> Array:
    """(B,) mean over the classes that the films hold at all; a draw that lost one has no value."""
    present = [v for v in values if not np.isnan(v[0])]
    return np.mean(present, axis=0) if present else np.full_like(values[0], np.nan)


def _check(
    probabilities: Array, labels: Array, patients: Sequence[str], classes: Sequence[str]
) -> None:
    wanted = (len(labels), len(classes))
    require(probabilities.shape == wanted, f"logits must be (N, K) = {wanted}", probabilities.shape)
    rule = f"patients must name one for each of the {len(labels)} films"
    require(len(patients) == len(labels), rule, len(patients))
    if not len(labels):
        raise ValueError("labels must hold at least one film. Got none: check the split.")


# --- two arms on the same films ---


def swap_p(differences: Any, patients: Sequence[str], draws: int = 2000, seed: int = 0) -> float:
    """Two-sided p of a mean paired difference: how often chance gives one as large. If the arms do
    not differ, each patient's differences (N,) may as well have the other sign, all films of a
    patient together. Every pattern of signs is tried where there are at most `draws` of them, and
    the p is exact; else `draws` random ones are, and the films as they are count as one more, so
    that p is never 0 (Phipson and Smyth 2010). NaN without films."""
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
    """Each p corrected for the number of tests (Holm 1979); None stays None and is no test. The
    smallest p is multiplied by the number of tests, the next by one less, and so on; none becomes
    smaller than the one before it, or larger than 1."""
    tests = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    out: list[float | None] = [None] * len(ps)
    floor = 0.0
    for rank, (p, i) in enumerate(tests):
        floor = max(floor, min(1.0, p * (len(tests) - rank)))
        out[i] = floor
    return out
