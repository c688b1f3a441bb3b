"""Trains one single network, or one for each fold, and answers the films of the test part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classify.dataset import build_cache
from classify.regions import RegionConfig
from classify.singles.config import SingleConfig
from classify.singles.figures import draw_report, report_of
from classify.singles.films import Films, load_films
from classify.singles.parts import Shares, share_films
from classify.singles.training import (
    ANSWERED,
    ANSWERS,
    SingleJob,
    in_words,
    is_done,
    read_history,
    run_job,
)
from cxr.answers import Answer, read_answers, write_answers
from cxr.cli import to_plain
from cxr.plots import draw_curves
from cxr.training.recipe import keep_to_recipe
from cxr.workdir import Workdir, log, provenance, write_json

# What may change between a stop and the next start; films and network are marked otherwise.
_FREE = (
    "out",
    "cache",
    "workers",
    "device",
    "draws",
    "data",
    "crops",
    "backbone",
    "fusion",
    "cxrnet",
)


def train_single(config: SingleConfig) -> Path:
    """Train (or go on, or load what is finished); returns `config.out` with answers.csv.

    Raises ValueError, OSError or ImportError for what a user can mend, and NonFiniteLossError.
    """
    films = load_films(config)
    every = share_films([case.row for case in films.cases], films.labels, config.protocol)
    out = Path(config.out)
    keep_to_recipe(out, _recipe(config, films))
    if is_done(out):
        log.info("%s is finished: nothing is trained", out)
        return out
    workdir = Workdir(out)
    workdir.start(to_plain(config), config.seed)
    _tell(films, every)
    jobs = _jobs(config, films, every)
    records = [run_job(job) for job in jobs]
    if len(jobs) > 1:
        _pool(config, jobs, records)
    workdir.update(finished=True)
    return out


def _recipe(config: SingleConfig, films: Films) -> dict[str, Any]:
    plain = {k: v for k, v in to_plain(config).items() if k not in _FREE}
    return {
        **plain,
        "network": to_plain(config.network()),
        "films": films.mark(),
        "trained_on": "crops" if config.crops else "films",
    }


def _tell(films: Films, every: Sequence[Shares]) -> None:
    parts = [f"{name} {len(indices)}" for name, indices in every[0].parts.items()]
    left_out = {**films.left_out, **every[0].dropped}
    log.info(
        "%d films (%s%s), left out: %s",
        len(films.cases),
        ", ".join(parts),
        f" in the first of {len(every)} folds" if len(every) > 1 else "",
        ", ".join(f"{k} {n}" for k, n in left_out.items()) or "none",
    )


def read_images(config: SingleConfig, films: Films) -> np.ndarray:
    """The decoded films (N, side, side) uint8, kept in the configuration's cache."""
    return build_cache(
        films.cases,
        config.preprocess,
        RegionConfig("none"),
        Path(config.cache or Path(config.out) / "cache"),
        config.preprocess.side,
    ).images


def _jobs(config: SingleConfig, films: Films, every: Sequence[Shares]) -> list[SingleJob]:
    """One training in `config.out`, or one a fold in its folders fold0, fold1 …"""
    out, images = Path(config.out), read_images(config, films)
    folders = [out] if len(every) == 1 else [out / f"fold{k}" for k in range(len(every))]
    nets = " + ".join(config.nets)
    return [
        SingleJob(
            nets if len(every) == 1 else f"{nets}, fold {k}",
            folder,
            config,
            films,
            shares,
            images,
            k,
            len(every) == 1,
        )
        for k, (folder, shares) in enumerate(zip(folders, every, strict=True))
    ]


def _pool(config: SingleConfig, jobs: Sequence[SingleJob], records: list[dict[str, Any]]) -> None:
    """The folds' answers together, as if they were one training's; each film is tested once."""
    out = Path(config.out)
    figures = {}
    for part, file in ANSWERED.items():
        answers: list[Answer] = []
        for job in jobs:
            answers += read_answers(job.folder / file)[1]
        write_answers(out / file, config.classes, answers)
        report = report_of(config.classes, answers, config.draws, config.seed)
        figures[part] = report.to_dict()
        if file == ANSWERS:
            draw_report(report, out / "confusion.png")
    history = [
        {"phase": k, **row} for k, job in enumerate(jobs) for row in read_history(job.folder)
    ]
    write_json(out / "history.json", history)
    draw_curves(history, out / "curves.png", f"{' + '.join(config.nets)}, {len(jobs)} folds")
    log.info("all folds: %s", in_words(figures["test"]))
    write_json(
        out / "metrics.json",
        {
            "folds": [
                {
                    k: record[k]
                    for k in ("films", "patients", "epochs", "kept_epoch", "kept", "seconds")
                }
                for record in records
            ],
            "left_out": records[0]["left_out"],
            "dropped": records[0]["dropped"],
            "epochs": sum(record["epochs"] for record in records),
            "seconds": sum(record["seconds"] for record in records),
            "figures": figures,
            **provenance(),
        },
    )
    write_json(out / "done.json", {"folds": len(jobs)})
