"""Figures of a three-way classifier with bootstrap intervals by patient. Pure NumPy.

A draw takes patients with replacement, all films of a patient together: films of one patient are
no independent evidence. Each draw is a weight for each film, so that all draws are done at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval; None where it is undefined. `n` films stand behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int


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


def bootstrap_weights(patients: Sequence[str], draws: int = 1000, seed: int = 0) -> Array:
    """(draws, N) how often each of the N films stands in each draw of patients."""
    _, group = np.unique(np.asarray(patients), return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / max(count, 1)), size=draws)
    return drawn[:, group].astype(np.float64)


def weighted_auc(scores: Any, positive: Any, weights: Array | None = None) -> Array:
    """(B,) area under the ROC curve for each row of weights (B, N); NaN where a side is empty.

    Equal scores count half, as in the Mann-Whitney statistic.
    """
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
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


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
    whole = weights @ among.astype(float)
    part = weights @ (hits & among).astype(float)
    return np.divide(part, whole, out=np.full(len(weights), np.nan), where=whole > 0)


def f1(said: Any, truth: Any, weights: Array | None = None) -> Array:
    """(B,) harmonic mean of precision and sensitivity of one class, 2 TP / (2 TP + FP + FN), from
    (N,) bool; NaN for rows of weights that hold no film of the class.

    A class that is there and never answered has 0 (its precision would be 0 / 0).
    """
    said, truth = np.asarray(said, bool), np.asarray(truth, bool)
    weights = np.ones((1, len(truth))) if weights is None else np.atleast_2d(weights)
    here = weights @ truth.astype(float)
    both = weights @ (said & truth).astype(float)
    whole = here + weights @ said.astype(float)  # TP + FN and TP + FP
    return np.divide(2 * both, whole, out=np.full(len(weights), np.nan), where=here > 0)


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


def classification_report(
    logits: Any,
    labels: Any,
    patients: Sequence[str],
    classes: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
) -> Report:
    """Figures of logits (N, K) against labels (N,); the answer is the largest logit.

    Sensitivity, specificity and accuracy of a class are those of the answer, one class against the
    rest.
    """
    probabilities, labels = softmax(logits), np.asarray(labels)
    _check(probabilities, labels, patients, classes)
    weights = np.concatenate(
        [np.ones((1, len(labels))), bootstrap_weights(patients, draws, seed)]
    )  # row 0: the films themselves
    answer, kinds = probabilities.argmax(1), range(len(classes))
    truth = [labels == k for k in kinds]
    said = [answer == k for k in kinds]
    aucs = [weighted_auc(probabilities[:, k], truth[k], weights) for k in kinds]
    sens = [ratio(said[k], truth[k], weights) for k in kinds]
    spec = [ratio(~said[k], ~truth[k], weights) for k in kinds]
    alike = [ratio(said[k] == truth[k], np.ones(len(labels), bool), weights) for k in kinds]
    f1s = [f1(said[k], truth[k], weights) for k in kinds]
    right = ratio(answer == labels, np.ones(len(labels), bool), weights)

    def by_class(values: list[Array], among: list[Array]) -> dict[str, Figure]:
        return {
            name: _figure_of(v, int(a.sum()))
            for name, v, a in zip(classes, values, among, strict=True)
        }

    n = len(labels)
    every = [np.ones(n, bool)] * len(classes)
    return Report(
        films=n,
        patients=len(set(patients)),
        classes=tuple(classes),
        macro_auc=_figure_of(_mean_of_known(aucs), n),
        accuracy=_figure_of(right, n),
        balanced_accuracy=_figure_of(_mean_of_known(sens), n),
        auc=by_class(aucs, every),
        sensitivity=by_class(sens, truth),
        specificity=by_class(spec, [~t for t in truth]),
        class_accuracy=by_class(alike, every),
        f1=by_class(f1s, truth),
        macro_f1=_figure_of(_mean_of_known(f1s), n),
        confusion=[[int((truth[i] & said[j]).sum()) for j in kinds] for i in kinds],
        draws=draws,
        seed=seed,
    )


def _figure_of(values: Array, n: int) -> Figure:
    """(1 + B,) the value of the films themselves, then its draws."""
    return figure(values[0], values[1:], n)


def _mean_of_known(values: list[Array]) -> Array:
    """(B,) mean over the classes that the films hold at all; a draw that lost one has no value."""
    present = [v for v in values if not np.isnan(v[0])]
    return np.mean(present, axis=0) if present else np.full_like(values[0], np.nan)


def _check(
    probabilities: Array, labels: Array, patients: Sequence[str], classes: Sequence[str]
) -> None:
    if probabilities.ndim != 2 or probabilities.shape != (len(labels), len(classes)):
        raise ValueError(
            f"logits must be (N, K) = ({len(labels)}, {len(classes)}). "
            f"Got {probabilities.shape} instead."
        )
    if len(patients) != len(labels):
        raise ValueError(
            f"patients must name one for each of the {len(labels)} films. "
            f"Got {len(patients)} instead."
        )
    if not len(labels):
        raise ValueError("labels must hold at least one film. Got none: check the split.")
