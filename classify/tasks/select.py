"""Features of a trained network, kept by the I-score: a plain regression on them answers the tested
films.

Leaves answers.csv, metrics.json, confusion.png and figures.json; with keep: iscore also iscore.json
and iscore.png, the AUC against the number of kept features.

After Lo and Yin (2021, arXiv 2104.12672): the pooled maps of a trained network are cut in two,
features are dropped from many random sets (see `iscore`), and a plain classifier gets what is left.
Features come in the order in which they appear in the return sets, best set first, and within a set
the one that would have stayed last first; those of no return set follow by their own I-score.
Everything is fitted on training films: cuts, sets, order, regression. How many are kept is chosen
by the AUC on validation films, and the test films are only reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from classify.dataset import FilmDataset, cache_of, drop_cache, film_loader
from classify.ensemble import Single, load_single
from classify.films import PARTS, Films, Shares
from classify.models.backbones import Backbone
from classify.preprocess import to_input
from classify.saliency.hooks import left_as_found, on_device_of
from classify.tasks.iscore import (
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
from classify.tasks.settings import IscoreConfig
from classify.tasks.single import (
    ANSWERS,
    BUNDLE,
    answers_of,
    build_cache_of,
    in_words,
    shared_films,
    train_single,
    write_report,
)
from cxr.cli import to_plain
from cxr.draw import LINES, new_figure, write_figure
from cxr.engines import pick_device
from cxr.ledger import Answer, read_answers
from cxr.stats import (
    Figure,
    Report,
    bootstrap_weights,
    classification_report,
    figure_of,
    macro_auc,
    weighted_auc,
)
from cxr.training.recipe import keep_to_recipe
from cxr.workdir import Workdir, log, provenance, write_json

Array = np.ndarray
ORDERS = {
    "i_score": "I-score, backward dropping",
    "single": "I-score of each feature alone",
    "random": "at random",
}
FIGURES = "figures.json"
_LOOKS = {"i_score": LINES[0], "single": LINES[1], "random": ("#666666", "^:")}


def train_iscore(config: IscoreConfig) -> Path:
    """Train or take the network, choose, answer; returns `config.out` with answers.csv. Raises
    ValueError, OSError or ImportError for what a user can mend, and NonFiniteLossError."""
    out = Path(config.out)
    kept_in = replace(config, cache=str(cache_of(config)))  # both take films from one cache
    films, (shares,) = shared_films(config, config.keep == "iscore")
    folder = train_single(kept_in.to_single())
    single = load_single(folder / BUNDLE)
    select = {k: v for k, v in to_plain(config.to_select()).items() if k != "draws"}
    marks = {"network": single.sha256, "films": films.mark()}
    keep_to_recipe(out, {"keep": config.keep, "select": select, **marks})
    if (out / "done.json").exists():
        log.info("%s is finished: nothing is chosen anew", out)
        return out
    workdir = Workdir(out)
    workdir.start(to_plain(config), config.seed, weights={BUNDLE: single.sha256})
    if config.keep == "head":
        answers = read_answers(folder / ANSWERS)[1]
        head: Any = single.net.head
        kept = next(m.in_features for m in head.modules() if isinstance(m, nn.Linear))
        own: dict[str, Figure] = {}
    else:
        answers, kept, own = _answer(kept_in, single, films, shares)
    # a number of features is no estimate and has no interval
    figures = {"features.kept": Figure(float(kept), None, None, len(answers)), **own}
    report = write_report(config, answers, out / ANSWERS, out / "confusion.png")
    log.info("keep %s: %s", config.keep, in_words(report))
    write_json(out / FIGURES, {name: asdict(value) for name, value in figures.items()})
    record = {"keep": config.keep, "figures": {"test": report}, **provenance()}
    write_json(out / "metrics.json", record)
    write_json(out / "done.json", {"keep": config.keep})
    workdir.update(finished=True)
    drop_cache(config)
    return out


def _answer(
    config: IscoreConfig, single: Single, films: Films, shares: Shares
) -> tuple[list[Answer], int, dict[str, Figure]]:
    """The regression's answers to the tested films, how many features it has, and own figures."""
    cache = build_cache_of(config, films)
    net: Any = single.net.to(pick_device(config.device))

    def pool(indices: Sequence[int]) -> Part:
        """What the network's head is given of those films."""
        data = FilmDataset(cache, films.labels, indices, config.preprocess.side)
        batches = (to_input(b["image"], config.preprocess) for b in film_loader(data, config))
        patients = [films.cases[i].patient for i in indices]
        labels = np.array([films.labels[i] for i in indices], dtype=int)
        return Part(pooled_features(net, batches), labels, tuple(patients))

    train, validation, test = (pool(shares.parts[name]) for name in PARTS)
    if config.keep == "all":
        kept = train.features.shape[1]
        (scores,) = regress(train, [test], range(kept), config.select.penalty)
        return answers_of(config, films, shares.parts["test"], scores), kept, {}
    found = select_features(train, validation, test, config.classes, config.to_select())
    write_selection(config.out, found)
    log.info(
        "%d of %d features are kept; macro AUC less that of all features: %s",
        found.kept,
        len(found.order),
        "?" if found.gain.value is None else f"{found.gain.value:+.3f}",
    )
    answers = answers_of(config, films, shares.parts["test"], found.scores)
    return answers, found.kept, {"gain.auc": found.gain}


def write_selection(folder: str | Path, selection: Selection) -> Path:
    """iscore.json, and iscore.png: validation AUC, by which the number was chosen, and test AUC
    with intervals by patient, against the number of kept features."""
    folder = Path(folder)
    write_json(folder / "iscore.json", selection.to_dict())
    figure = new_figure(9.5, 3.9)
    axes = figure.subplots(1, 2, sharey=True)
    for name, label in ORDERS.items():
        points = [p for p in selection.points if p.order == name]
        kept, (colour, style) = [p.kept for p in points], _LOOKS[name]
        values = [
            (p.validation_auc, p.test_auc.value, p.test_auc.low, p.test_auc.high) for p in points
        ]
        validation, test, low, high = np.array(values, dtype=float).T  # None becomes NaN
        for axis, aucs in zip(axes, (validation, test), strict=True):
            axis.plot(kept, aucs, style, color=colour, label=label, markersize=4)
        axes[1].fill_between(kept, low, high, color=colour, alpha=0.12, linewidth=0)
    titles = ("validation films: chooses", "test films: reported")
    for axis, title in zip(axes, titles, strict=True):
        axis.axvline(selection.kept, color="black", linewidth=0.8)
        axis.axhline(0.5, color="grey", linestyle="--", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel=f"kept features (chosen: {selection.kept})")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("macro AUC" if len(selection.classes) > 2 else "AUC")
    axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    write_figure(figure, folder / "iscore.png")
    return folder


@dataclass(frozen=True, eq=False)
class Part:
    """Films of one part: features (N, F), class numbers (N,), and N patients."""

    features: Array
    labels: Array
    patients: tuple[str, ...]


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
    """Order by I-score on `train`, number by `validation`, figures on `test`; see the module. The
    parts share no patient, and training has films of every class. Raises ValueError where no
    feature differs between the training films."""
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
    points = (
        Point(name, k, None if np.isnan(auc) else float(auc), figure_of(aucs[name, k], n))
        for (name, k), auc in on_validation.items()
    )
    drawn, logits = (config.draws, config.seed), np.log(np.maximum(scores, 1e-300))
    return Selection(
        config,
        tuple(classes),
        tuple(int(f) for f in orders["i_score"]),
        tuple(modules),
        _chance(bits, outcomes, train.patients, subsets, config),
        kept,
        tuple(points),
        classification_report(logits, test.labels, test.patients, classes, *drawn),
        figure_of(aucs["i_score", kept] - aucs["i_score", max(own)], n),
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
    dealt = [outcomes[patients_permuted(patients, rng)] for _ in range(config.permutations)]
    best = [drop_backwards(bits, own, subsets).best_scores.max() for own in dealt]
    return float(np.quantile(best, 0.95))


def _aucs(scores: Array, labels: Array, weights: Array) -> Array:
    """(1 + B,) macro AUC of the films themselves and of each draw, over the classes there are."""
    weights = np.concatenate([np.ones((1, len(labels))), weights])
    every = [weighted_auc(scores[:, k], labels == k, weights) for k in range(scores.shape[1])]
    present = [a for a in every if not np.isnan(a[0])]
    return np.mean(present, axis=0) if present else np.full(len(weights), np.nan)
