"""A logistic regression on the convolution features that the I-score keeps, and how many it needs.

    train = Part.of(net, batches, labels, patients)  # (N, C) pooled maps of any Backbone
    selection = select_features(train, validation, test, ("normal", "pneumonia"))
    write_selection("runs/iscore", selection)  # of classify.iscore_report

After Lo and Yin (2021, arXiv 2104.12672): the pooled maps of a trained network are cut in two,
features are dropped from many random sets (classify.iscore), and a plain classifier gets what is
left. Features come in the order in which they appear in the return sets, best set first, and within
a set the one that would have stayed last first; those of no return set follow by their own I-score.
Everything is fitted on training films: cuts, sets, order, regression. How many are kept is chosen
by the AUC on validation films, and the test films are only reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.linear_model import LogisticRegression

from classify.features.iscore import (
    Module,
    draw_subsets,
    drop_backwards,
    fit_cuts,
    is_useful,
    modules_of,
    one_hot,
    single_scores,
    to_bits,
)
from classify.features.parts import Part, SelectConfig, check_parts, pooled_features
from cxr.cli import to_plain
from cxr.stats import (
    Figure,
    Report,
    bootstrap_weights,
    classification_report,
    figure_of,
    macro_auc,
    softmax,
    weighted_auc,
)

__all__ = [
    "Part",
    "Point",
    "SelectConfig",
    "Selection",
    "pooled_features",
    "regress",
    "select_features",
]

Array = np.ndarray
ORDERS = {
    "i_score": "I-score, backward dropping",
    "single": "I-score of each feature alone",
    "random": "at random",
}


@dataclass(frozen=True)
class Point:
    """The regression on the first `kept` features of an order."""

    order: str
    kept: int
    validation_auc: float | None
    test_auc: Figure


@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen and what it is worth. `scores` (N_test, K) are the chosen regression's
    probabilities; `gain` is its AUC less that of all features, on the same test films."""

    config: SelectConfig
    classes: tuple[str, ...]
    order: tuple[int, ...]
    modules: tuple[Module, ...]
    chance: float | None
    kept: int
    points: tuple[Point, ...]
    report: Report
    gain: Figure
    scores: Array

    def to_dict(self) -> dict[str, Any]:
        """For iscore.json; `chance` is what the best set of permuted labels reaches in 1 of 20."""
        above = None if self.chance is None else sum(m.score > self.chance for m in self.modules)
        return {
            "schema": "lungfirst.iscore",
            "version": 1,
            "config": to_plain(self.config),
            "classes": list(self.classes),
            "kept": self.kept,
            "features": list(self.order[: self.kept]),
            "chance": self.chance,
            "sets": len(self.modules),
            "sets_above_chance": above,
            "best_sets": [to_plain(m) for m in self.modules[:20]],
            "gain": to_plain(self.gain),
            "points": [to_plain(p) for p in self.points],
            "test": self.report.to_dict(),
        }


def select_features(
    train: Part,
    validation: Part,
    test: Part,
    classes: Sequence[str],
    config: SelectConfig | None = None,
) -> Selection:
    """Order by I-score on `train`, number by `validation`, figures on `test`; see the module.

    Raises ValueError for parts that do not fit each other, share a patient, or lack a class in
    training.
    """
    config = config or SelectConfig()
    check_parts({"train": train, "validation": validation, "test": test}, len(classes))
    bits = to_bits(train.features, fit_cuts(train.features, config.split))
    outcomes = one_hot(train.labels, len(classes))
    subsets = draw_subsets(bits, config.start, config.subsets, config.seed)
    modules = modules_of(drop_backwards(bits, outcomes, subsets))
    orders = _orders(bits, outcomes, modules, config.seed)
    fits = {
        (name, kept): _Fit.of(train, order[:kept], config.penalty)
        for name, order in orders.items()
        for kept in _counts(config, train.features.shape[1])
    }
    on_validation = {
        key: macro_auc(fit.scores(validation), validation.labels) for key, fit in fits.items()
    }
    own = [kept for name, kept in fits if name == "i_score"]
    kept = max(own, key=lambda k: (np.nan_to_num(on_validation["i_score", k], nan=-1.0), -k))
    weights = bootstrap_weights(test.patients, config.draws, config.seed)
    aucs = {key: _aucs(fit.scores(test), test.labels, weights) for key, fit in fits.items()}
    n = len(test.labels)
    scores = fits["i_score", kept].scores(test)
    difference = aucs["i_score", kept] - aucs["i_score", max(own)]
    logits = np.log(np.maximum(scores, 1e-300))
    return Selection(
        config,
        tuple(classes),
        tuple(int(f) for f in orders["i_score"]),
        tuple(modules),
        _chance(bits, outcomes, train.patients, subsets, config),
        kept,
        tuple(
            Point(name, k, _known(on_validation[name, k]), figure_of(a, n))
            for (name, k), a in aucs.items()
        ),
        classification_report(
            logits, test.labels, test.patients, classes, config.draws, config.seed
        ),
        figure_of(difference, n),
        scores,
    )


def regress(train: Part, test: Part, features: Sequence[int], penalty: float = 1.0) -> Array:
    """(N_test, K) probabilities of the regression on these features, fitted on `train`; K are the
    classes of the training films."""
    return _Fit.of(train, np.asarray(features, dtype=int), penalty).scores(test)


def patients_permuted(patients: Sequence[str], rng: np.random.Generator) -> Array:
    """(N,) which film's label each film gets when labels are dealt out anew among patients: those
    of one patient stay together as far as patients have as many films."""
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    taken_from = np.argsort(rng.permutation(len(names))[group], kind="stable")
    given_to = np.argsort(rng.permutation(len(names))[group], kind="stable")
    out = np.empty(len(group), dtype=int)
    out[given_to] = taken_from
    return out


@dataclass(frozen=True, eq=False)
class _Fit:
    """A regression on some features, standardised by the training films."""

    features: Array
    mean: Array
    scale: Array
    model: LogisticRegression

    @classmethod
    def of(cls, train: Part, features: Array, penalty: float) -> Self:
        values = train.features[:, features].astype(np.float64)
        mean, scale = values.mean(0), values.std(0)
        scale[scale == 0] = 1.0
        model = LogisticRegression(C=penalty, max_iter=5000)
        return cls(features, mean, scale, model.fit((values - mean) / scale, train.labels))

    def scores(self, part: Part) -> Array:
        """(N, K) probabilities."""
        values = (part.features[:, self.features] - self.mean) / self.scale
        decision = self.model.decision_function(values)
        if decision.ndim == 1:  # two classes have one decision value
            decision = np.stack([np.zeros_like(decision), decision], axis=1)
        return softmax(decision)


def _orders(bits: Array, outcomes: Array, modules: Sequence[Module], seed: int) -> dict[str, Array]:
    """Name of ORDERS → all features; those that are alike on all films come last of all."""
    alone = single_scores(bits, outcomes) - 2.0 * ~is_useful(bits)
    single = np.argsort(-alone, kind="stable")
    chosen = list(dict.fromkeys(f for m in modules for f in m.features))
    own = np.concatenate([np.array(chosen, int), single[~np.isin(single, chosen)]])
    return dict(
        zip(
            ORDERS, (own, single, np.random.default_rng(seed).permutation(len(single))), strict=True
        )
    )


def _counts(config: SelectConfig, features: int) -> list[int]:
    wanted = config.counts or tuple(1 << i for i in range(features.bit_length()))
    return sorted({min(k, features) for k in (*wanted, features)})


def _chance(
    bits: Array, outcomes: Array, patients: Sequence[str], subsets: Array, config: SelectConfig
) -> float | None:
    """95th percentile of the best score over all sets when labels are dealt out anew."""
    if not config.permutations:
        return None
    rng = np.random.default_rng(config.seed)
    best = []
    for _ in range(config.permutations):
        dealt = drop_backwards(bits, outcomes[patients_permuted(patients, rng)], subsets)
        best.append(dealt.best_scores.max())
    return float(np.quantile(best, 0.95))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _aucs(scores: Array, labels: Array, weights: Array) -> Array:
    """(1 + B,) macro AUC of the films themselves and of each draw, over the classes there are."""
    weights = np.concatenate([np.ones((1, len(labels))), weights])
    every = [weighted_auc(scores[:, k], labels == k, weights) for k in range(scores.shape[1])]
    present = [a for a in every if not np.isnan(a[0])]
    return np.mean(present, axis=0) if present else np.full(len(weights), np.nan)
