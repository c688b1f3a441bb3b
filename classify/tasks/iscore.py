"""The I-score of a set of features, and the sets that dropping features one by one leaves.

    bits = to_bits(features, fit_cuts(features))  # cuts of the training films only
    found = drop_backwards(bits, labels, draw_subsets(bits, size=8, draws=4000, seed=0))
    found.return_set(0), found.best_scores[0]

Features cut in two part N films into cells j of n_j films each. After Chernoff, Lo and Zheng (2009,
"Discovering influential variables: a method of partitions", Annals of Applied Statistics 3)

    I = Σ_j n_j² (Ȳ_j − Ȳ)² / Σ_i (Y_i − Ȳ)²

The line below is n times the variance of Y, by which Lo and Yin (2021, arXiv 2104.12672), who
choose features of chest films so, divide the plain score; it is the same for all sets. I does not
estimate how well Y is told: if Y has nothing to do with the cells, its mean over all ways to deal
the labels out is (N² − Σ n_j²) / (N (N − 1)), which is below 1.

With K classes Y is the vector of zeros and a one, and the squares are those of vectors (ours). One
table of the cells' sums of Y − Ȳ for each set gives the scores of all sets below it: dropping a
feature adds up its two halves. For whole numbers Y the sums are exact, so equal scores are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr.rules import require, require_not_negative, require_one_of

Array = np.ndarray

SPLITS = ("median", "kmeans")
MOST_FEATURES = 14  # of a starting set: its table has 2 to the power of that many cells
_CELLS = 1 << 20  # of the tables worked on at a time


@dataclass(frozen=True)
class SelectConfig:
    """How features are chosen.

    Args:
        split: median, or kmeans (two clusters): where a feature is cut in two.
        start: features of a random starting set. Its 2^start cells should hold films still: 8 for
            700 films.
        subsets: random starting sets. Two of F features stand together in one of them with
            probability start · (start − 1) / (F · (F − 1)), so that few sets miss interactions.
        counts: numbers of kept features to try; empty doubles from 1 on, up to all.
        penalty: inverse strength C of the regression's L2 penalty, on standardised features.
        permutations: times that labels are dealt out anew among patients, to learn which scores
            chance gives; 0 goes without.
        draws: bootstrap draws of patients.
        seed: of sets, permutations, draws and the random order.
    """

    split: str = "median"
    start: int = 8
    subsets: int = 4000
    counts: tuple[int, ...] = ()
    penalty: float = 1.0
    permutations: int = 20
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        require_one_of(self, split=SPLITS)
        rule = f"start must lie between 2 and {MOST_FEATURES}"
        require(2 <= self.start <= MOST_FEATURES, rule, self.start)
        require(
            min(self.subsets, self.draws, *self.counts) >= 1,
            "subsets, draws and counts must be at least 1",
            (self.subsets, self.draws, self.counts),
        )
        require_not_negative(self, "permutations")
        require(self.penalty > 0, "penalty must be above 0", self.penalty)


@dataclass(frozen=True, eq=False)
class Dropped:
    """What dropping left of D starting sets of m features.

    Attributes:
        order: (D, m) features in the order in which they were dropped; the last one stayed.
        scores: (D, m) I-score after 0, 1, … m − 1 of them had been dropped.
    """

    order: Array
    scores: Array

    @property
    def best_scores(self) -> Array:
        """(D,) highest I on each way."""
        return self.scores.max(1)

    def return_set(self, draw: int) -> tuple[int, ...]:
        """The features with the highest I on one way (of equal scores the smaller set), the one
        that would have stayed last first."""
        kept = 1 + int(self.scores[draw, ::-1].argmax())
        return tuple(int(f) for f in self.order[draw, ::-1][:kept])


@dataclass(frozen=True)
class Module:
    """A set of features that some way led to, and its I-score."""

    features: tuple[int, ...]
    score: float


def fit_cuts(features: Any, split: str = "median") -> Array:
    """(F,) cut of each feature of (N, F) training films: its median, or the middle of the gap
    between the best two clusters (k-means with k = 2, which in one dimension is found exactly).
    Raises ValueError."""
    values = np.asarray(features)
    fits = values.ndim == 2 and len(values) > 0 and bool(np.isfinite(values).all())
    rule = "features must be (N, F) finite values of at least one film"
    require(fits, rule, f"shape {values.shape}")
    return np.median(values, axis=0) if split == "median" else _two_means(values)


def to_bits(features: Any, cuts: Any) -> Array:
    """(N, F) bool: is the feature above its cut?"""
    return np.asarray(features) > cuts


def one_hot(labels: Any, classes: int) -> Array:
    """(N,) class numbers to the Y of the score: (N, 1) for two classes, else (N, classes)."""
    wide = np.eye(classes)[np.asarray(labels, dtype=int)]
    return wide[:, 1:] if classes == 2 else wide


def i_score(bits: Any, outcomes: Any) -> float:
    """I of one set: bits (N, m) of its features, any number of them, and Y (N,) or (N, K)."""
    bits = np.asarray(bits, dtype=bool)
    contrasts, whole = _contrasts(outcomes, len(bits))
    packed = np.packbits(bits, axis=1) if bits.shape[1] else np.zeros((len(bits), 1), np.uint8)
    _, cell = np.unique(packed, axis=0, return_inverse=True)
    sums = [np.bincount(cell.ravel(), weights=c) for c in contrasts]
    return float(np.square(sums).sum() / whole)


def draw_subsets(bits: Any, size: int, draws: int, seed: int = 0) -> Array:
    """(draws, size) features of random starting sets, none of which holds one that is alike on all
    films; a smaller size where there are fewer features. Raises ValueError."""
    useful = np.flatnonzero(is_useful(bits))
    if not len(useful):
        raise ValueError(
            "features must differ between films. Got none that lies above its cut on "
            "some films and not on others."
        )
    rng, size = np.random.default_rng(seed), min(size, len(useful))
    places = [rng.choice(len(useful), size, replace=False) for _ in range(draws)]
    return useful[np.stack(places)]


def is_useful(bits: Any) -> Array:
    """(F,) bool: does the feature part the films at all?"""
    return np.asarray(np.any(bits, 0) & ~np.all(bits, 0))


def drop_backwards(bits: Any, outcomes: Any, subsets: Any) -> Dropped:
    """From each starting set, drop the feature without which I is highest until one is left; of
    equal scores the one that stands first in its set.

    `bits` are (N, F) bool of the films on which the features are chosen; Y is (N,) or (N, K), where
    class numbers of two classes may stand as they are, and those of more need `one_hot`; `subsets`
    are (D, m) features of each starting set, m at most MOST_FEATURES. Raises ValueError where
    `outcomes` are alike on all films.
    """
    by_feature = np.ascontiguousarray(np.asarray(bits, dtype=np.uint8).T)
    subsets = np.asarray(subsets, dtype=np.int64)
    contrasts, whole = _contrasts(outcomes, by_feature.shape[1])
    step = max(1, _CELLS // (len(contrasts) << subsets.shape[1]))
    order, scores = subsets.copy(), np.zeros(subsets.shape)
    for i in range(0, len(subsets), step):
        order[i : i + step], scores[i : i + step] = _drop(
            by_feature, contrasts, subsets[i : i + step]
        )
    return Dropped(order, scores / whole)


def modules_of(dropped: Dropped) -> list[Module]:
    """The different return sets, highest score first."""
    found: dict[frozenset[int], Module] = {}
    for draw in np.argsort(-dropped.best_scores, kind="stable"):
        features = dropped.return_set(int(draw))
        found.setdefault(frozenset(features), Module(features, float(dropped.best_scores[draw])))
    return list(found.values())


def single_scores(bits: Any, outcomes: Any) -> Array:
    """(F,) I of every feature by itself."""
    bits = np.asarray(bits, dtype=np.float64)
    contrasts, whole = _contrasts(outcomes, len(bits))
    above = contrasts @ bits  # what lies below the cut sums to minus that, as all sum to 0
    return np.asarray(2 * np.square(above).sum(0) / whole)


def _drop(by_feature: Array, contrasts: Array, subsets: Array) -> tuple[Array, Array]:
    """Features in the order dropped and undivided scores, both (D, m)."""
    draws, size = subsets.shape
    left, row = subsets, np.arange(draws)
    table = _table(by_feature, contrasts, subsets)
    order, scores = np.empty_like(subsets), np.empty(subsets.shape)
    for step in range(size):
        scores[:, step] = np.square(table).sum((1, 2))
        if step == size - 1:
            break
        halves = [_without(table, place) for place in range(size - step)]
        worth = np.stack([np.square(h).sum((1, 2)) for h in halves])  # (m − step, D)
        chosen = worth.argmax(0)
        order[:, step] = left[row, chosen]
        stays = np.ones(left.shape, dtype=bool)
        stays[row, chosen] = False
        left = left[stays].reshape(draws, -1)
        table = np.stack(halves)[chosen, row]
    order[:, -1] = left[:, 0]
    return order, scores


def _table(by_feature: Array, contrasts: Array, subsets: Array) -> Array:
    """(D, K, 2^m) sum of each contrast in each cell; bit k of a cell's number is feature k's."""
    draws, size = subsets.shape
    cell = np.repeat(np.arange(draws, dtype=np.int64)[:, None] << size, by_feature.shape[1], axis=1)
    for place in range(size):
        cell |= by_feature[subsets[:, place]].astype(np.int64) << place
    flat = cell.ravel()
    sums = [np.bincount(flat, np.tile(c, draws), draws << size) for c in contrasts]
    return np.stack([s.reshape(draws, -1) for s in sums], axis=1)


def _without(table: Array, place: int) -> Array:
    """The table when the feature at `place` is dropped: its two halves added up."""
    draws, classes, cells = table.shape
    halves = table.reshape(draws, classes, -1, 2, 1 << place)
    return np.asarray(halves.sum(3).reshape(draws, classes, cells >> 1))


def _contrasts(outcomes: Any, films: int) -> tuple[Array, float]:
    """N (Y − Ȳ) as (K, N), whole numbers where Y is, and the sum of their squares."""
    values = np.asarray(outcomes, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    fits = values.ndim == 2 and len(values) == films and bool(np.isfinite(values).all())
    rule = f"outcomes must be (N,) or (N, K) finite values of the {films} films"
    require(fits, rule, f"shape {np.shape(outcomes)}")
    contrasts = (films * values - values.sum(0)).T
    whole = float(np.square(contrasts).sum())
    if whole == 0:
        raise ValueError("outcomes must differ between films. Got one value on all of them.")
    return contrasts, whole


def _two_means(values: Array) -> Array:
    """Each column's cut in the middle of the gap where the squares within two clusters are least;
    the column's one value where all are equal."""
    ordered = np.sort(values.astype(np.float64), axis=0)
    ordered_from_0 = ordered - ordered[:1]  # so that large offsets lose no digits
    count = np.arange(1, len(values))[:, None]
    lower = np.cumsum(ordered_from_0, axis=0)[:-1]
    upper = ordered_from_0.sum(0) - lower
    between = lower**2 / count + upper**2 / (len(values) - count)
    between[ordered[1:] == ordered[:-1]] = -1.0  # no cut between equals
    if not len(between):
        return np.asarray(ordered[0])
    at, column = between.argmax(0), np.arange(values.shape[1])
    return np.asarray((ordered[at, column] + ordered[at + 1, column]) / 2)
