"""Features of a trained network, kept by the I-score: a plain regression on them answers the tested
films.

Leaves answers.csv, metrics.json, confusion.png and figures.json; with keep: iscore also iscore.json
and iscore.png, the AUC against the number of kept features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from classify.dataset import FilmDataset, cache_of, drop_cache, film_loader
from classify.ensemble import Single, load_single
from classify.features.select import ORDERS, Part, Selection, regress, select_features
from classify.films import PARTS, Films, Shares
from classify.preprocess import to_input
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
from cxr.answers import Answer, read_answers
from cxr.cli import to_plain
from cxr.devices import pick_device
from cxr.plots import LINES, new_figure, write_figure
from cxr.stats import Figure
from cxr.training.recipe import keep_to_recipe
from cxr.workdir import Workdir, log, provenance, write_json

FIGURES = "figures.json"
_LOOKS = {"i_score": LINES[0], "single": LINES[1], "random": ("#666666", "^:")}


def train_iscore(config: IscoreConfig) -> Path:
    """Train or take the network, choose, answer; returns `config.out` with answers.csv.

    Raises ValueError, OSError or ImportError for what a user can mend, and NonFiniteLossError.
    """
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
        return Part.of(net, batches, [films.labels[i] for i in indices], patients)

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
