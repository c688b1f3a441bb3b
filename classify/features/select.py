"""A logistic regression on the convolution features that the I-score keeps, and how many it needs.

    train = Part.of(net, batches, labels, patients)  # (N, C) pooled maps of any Backbone
    selection = select_features(train, validation, test, ("normal", "pneumonia"))
    write_selection("runs/iscore", selection)  # of classify.tasks.select

After Lo and Yin (2021, arXiv 2104.12672): the pooled maps of a trained network are cut in two,
features are dropped from many random sets (see `iscore`), and a plain classifier gets what is left.
Features come in the order in which they appear in the return sets, best set first, and within a set
the one that would have stayed last first; those of no return set follow by their own I-score.
Everything is fitted on training films: cuts, sets, order, regression. How many are kept is chosen
by the AUC on validation films, and the test films are only reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify.features.iscore import (
    Module,
    SelectConfig,
    draw_subsets,
    drop_backwards,
    fit_cuts,
    is_useful,
    modules_of,
    one_hot,
    single_scores,
    to_bits,
)
from classify.models.backbones import Backbone
from classify.saliency.hooks import left_as_found, on_device_of
from cxr.cli import to_plain
from cxr.stats import (
    Figure,
    Report,
    bootstrap_weights,
    classification_report,
    figure_of,
    macro_auc,
    weighted_auc,
)

Array = np.ndarray
ORDERS = {
    "i_score": "I-score, backward dropping",
    "single": "I-score of each feature alone",
    "random": "at random",
}


@dataclass(frozen=True, eq=False)
class Part:
    """Films of one part: features (N, F), class numbers (N,), and N patients."""

    features: Array
    labels: Array
    patients: tuple[str, ...]

    @classmethod
    def of(
        cls, net: Backbone, batches: Iterable[torch.Tensor], labels: Any, patients: Sequence[str]
    ) -> Self:
        """The pooled maps of films in the network's own normalisation."""
        return cls(pooled_features(net, batches), np.asarray(labels, dtype=int), tuple(patients))


def pooled_features(net: Backbone, batches: Iterable[torch.Tensor]) -> Array:
    """(N, C) float32 means of the last maps, as the network's own head gets them; the network is
    left as it was found. Batches are (n, 3, h, w) in its normalisation."""
    with left_as_found(net), torch.inference_mode():
        pooled = [net.maps(on_device_of(net, b)).mean((2, 3)).float().cpu() for b in batches]
    if not pooled:
        raise ValueError("batches must hold at least one film. Got none.")
    return torch.cat(pooled).numpy()


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

    The parts share no patient, and training has films of every class. Raises ValueError where no
    feature differs between the training films.
    """
    config = config or SelectConfig()
    bits = to_bits(train.features, fit_cuts(train.features, config.split))
    outcomes = one_hot(train.labels, len(classes))
    subsets = draw_subsets(bits, config.start, config.subsets, config.seed)
    modules = modules_of(drop_backwards(bits, outcomes, subsets))
    orders = _orders(bits, outcomes, modules, config.seed)
    width, n = train.features.shape[1], len(test.labels)
    doubling = tuple(1 << i for i in range(width.bit_length()))
    own = sorted({min(k, width) for k in (*(config.counts or doubling), width)})
    weights = bootstrap_weights(test.patients, config.draws, config.seed)
    on_validation, aucs, tested = {}, {}, {}
    for name, order in orders.items():
        for k in own:
            seen, tested[name, k] = regress(train, (validation, test), order[:k], config.penalty)
            on_validation[name, k] = macro_auc(seen, validation.labels)
            aucs[name, k] = _aucs(tested[name, k], test.labels, weights)
    kept = max(own, key=lambda k: (np.nan_to_num(on_validation["i_score", k], nan=-1.0), -k))
    scores = tested["i_score", kept]
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
            Point(name, k, None if np.isnan(auc) else float(auc), figure_of(aucs[name, k], n))
            for (name, k), auc in on_validation.items()
        ),
        classification_report(
            logits, test.labels, test.patients, classes, config.draws, config.seed
        ),
        figure_of(difference, n),
        scores,
    )


def regress(
    train: Part, parts: Iterable[Part], features: Iterable[int], penalty: float = 1.0
) -> list[Array]:
    """(N, K) probabilities for the films of each part, by a regression on these features that is
    fitted on the films of `train`, as is their standardisation; K are the classes there."""
    chosen = list(features)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=5000))
    model.fit(train.features[:, chosen].astype(np.float64), train.labels)
    return [model.predict_proba(part.features[:, chosen].astype(np.float64)) for part in parts]


def patients_permuted(patients: Sequence[str], rng: np.random.Generator) -> Array:
    """(N,) which film's label each film gets when labels are dealt out anew among patients: those
    of one patient stay together as far as patients have as many films."""
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    taken_from = np.argsort(rng.permutation(len(names))[group], kind="stable")
    given_to = np.argsort(rng.permutation(len(names))[group], kind="stable")
    out = np.empty(len(group), dtype=int)
    out[given_to] = taken_from
    return out


def _orders(bits: Array, outcomes: Array, modules: Sequence[Module], seed: int) -> dict[str, Array]:
    """Name of ORDERS → all features; those that are alike on all films come last of all."""
    alone = single_scores(bits, outcomes) - 2.0 * ~is_useful(bits)
    single = np.argsort(-alone, kind="stable")
    chosen = list(dict.fromkeys(f for m in modules for f in m.features))
    own = np.concatenate([np.array(chosen, int), single[~np.isin(single, chosen)]])
    drawn = np.random.default_rng(seed).permutation(len(single))
    return dict(zip(ORDERS, (own, single, drawn), strict=True))


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


def _aucs(scores: Array, labels: Array, weights: Array) -> Array:
    """(1 + B,) macro AUC of the films themselves and of each draw, over the classes there are."""
    weights = np.concatenate([np.ones((1, len(labels))), weights])
    every = [weighted_auc(scores[:, k], labels == k, weights) for k in range(scores.shape[1])]
    present = [a for a in every if not np.isnan(a[0])]
    return np.mean(present, axis=0) if present else np.full(len(weights), np.nan)
