"""One training of a single network: fit, answer, write figures, pictures and the bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from classify.bundles import build_net, save_single
from classify.dataset import class_weights
from classify.films import Case
from classify.singles.config import PARTS, SingleConfig
from classify.singles.data import balance_films, film_loader, train_loader
from classify.singles.figures import answer_films, draw_report, report_of
from classify.singles.films import Films
from classify.singles.module import SingleModule
from classify.singles.parts import Shares
from cxr.answers import write_answers
from cxr.plots import draw_curves
from cxr.training.learner import best_epoch
from cxr.training.loop import BEST, LAST, fit_learner
from cxr.workdir import log, provenance, seed_everything, write_json

ANSWERS, VAL_ANSWERS, BUNDLE = "answers.csv", "answers_val.csv", "single.safetensors"
HISTORY = "history.json"
ANSWERED = {"val": VAL_ANSWERS, "test": ANSWERS}


@dataclass(frozen=True)
class SingleJob:
    """Everything that one network is trained from; `images` are the decoded films (N, S, S).

    `number` is that of the fold; one that is not `alone` leaves the pictures to all folds together.
    """

    name: str
    folder: Path
    config: SingleConfig
    films: Films
    shares: Shares
    images: np.ndarray
    number: int = 0
    alone: bool = True

    @property
    def cases(self) -> list[Case]:
        """The films."""
        return self.films.cases

    @property
    def labels(self) -> list[int]:
        """The number of each film's class."""
        return self.films.labels


def is_done(folder: Path) -> bool:
    """Whether a training has left all its files in `folder`."""
    return (folder / "done.json").exists()


def run_job(job: SingleJob) -> dict[str, Any]:
    """Train or go on, unless it is finished; returns what its metrics.json holds."""
    if not is_done(job.folder):
        seed_everything(job.config.seed + job.number)
        net = build_net(job.config.network())
        module = _module(job, net)
        _fit(job, module)
        history = read_history(job.folder)
        _write(job, net, history, best_epoch(history, job.config.choose))
        write_json(job.folder / "done.json", {"epochs": len(history)})
        for checkpoint in (BEST, LAST):
            (job.folder / checkpoint).unlink(missing_ok=True)
    return json.loads((job.folder / "metrics.json").read_text())


def _module(job: SingleJob, net: nn.Module) -> SingleModule:
    config, weights = job.config, None
    if config.balance == "weights":
        train = [job.labels[i] for i in job.shares.parts["train"]]
        weights = class_weights(train, len(config.classes))
    return SingleModule(net, config.preprocess, config.optim, config.choose, weights)


def read_history(folder: Path) -> list[dict[str, float]]:
    """A row an epoch of a training that is over; an AUC that JSON cannot hold is NaN again."""
    rows = json.loads((folder / HISTORY).read_text())
    return [{k: np.nan if v is None else v for k, v in row.items()} for row in rows]


def _fit(job: SingleJob, module: SingleModule) -> None:
    """Train `module`, which has the weights of the kept epoch afterwards."""
    config, parts, folder = job.config, job.shares.parts, job.folder
    finished = folder / HISTORY  # written when the last epoch is over
    if not finished.exists():
        train = balance_films(job.labels, parts["train"], config.balance, config.seed)
        fit_learner(
            module,
            job.name,
            folder,
            train_loader(config, job.images, job.labels, train),
            film_loader(config, job.images, job.labels, parts["val"]),
            config.device,
            config.precision,
        )
        write_json(finished, [_plain(row) for row in module.history])
    state = torch.load(folder / BEST, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)


def _write(job: SingleJob, net: nn.Module, history: Sequence[dict[str, float]], kept: int) -> None:
    """answers.csv, answers_val.csv, metrics.json, curves.png, confusion.png and the bundle."""
    config, parts = job.config, job.shares.parts
    figures: dict[str, Any] = {}
    for part, file in ANSWERED.items():
        answers = answer_films(net, config, job.cases, job.labels, job.images, parts[part])
        write_answers(job.folder / file, config.classes, answers)
        report = report_of(config.classes, answers, config.draws, config.seed)
        figures[part] = report.to_dict()
        if part == "test":
            if job.alone:
                draw_report(report, job.folder / "confusion.png")
            log.info("%s: %s", job.name, in_words(figures[part]))
    if job.alone:
        draw_curves(history, job.folder / "curves.png", job.name, kept)
    record = {
        **counts_of(job.films, job.shares, config.classes),
        "pictures_an_epoch": config.copies
        * len(balance_films(job.labels, parts["train"], config.balance, config.seed)),
        "epochs": len(history),
        "kept_epoch": kept + 1,
        "kept": _plain({k: history[kept][k] for k in ("val_loss", "val_auc", "val_accuracy")}),
        "seconds": sum(row["seconds"] for row in history),
        "figures": figures,
        **provenance(),
    }
    if config.bundle:
        _save(job, net, record)
    write_json(job.folder / "metrics.json", record)


def counts_of(films: Films, shares: Shares, classes: Sequence[str]) -> dict[str, Any]:
    """Films of each class and patients in each part, and the films in none by reason."""
    labels = {part: [films.labels[i] for i in shares.parts[part]] for part in PARTS}
    return {
        "films": {
            part: {name: labels[part].count(k) for k, name in enumerate(classes)} for part in PARTS
        },
        "patients": {
            part: len({films.cases[i].patient for i in shares.parts[part]}) for part in PARTS
        },
        "left_out": films.left_out,
        "dropped": shares.dropped,
    }


def in_words(figures: dict[str, Any]) -> str:
    """Accuracy and macro AUC of a report, for the log."""
    texts = []
    for key, name in (("accuracy", "accuracy"), ("macro_auc", "macro AUC")):
        shown = [
            f"{v:.3f}" if (v := figures[key][k]) is not None else "?"
            for k in ("value", "low", "high")
        ]
        texts.append(f"{name} {shown[0]} ({shown[1]} to {shown[2]})")
    return f"{', '.join(texts)} on {figures['films']} tested films"


def _save(job: SingleJob, net: nn.Module, record: dict[str, Any]) -> None:
    licences = sorted({job.cases[i].row.licence for i in job.shares.parts["train"]})
    save_single(
        job.folder / BUNDLE,
        net,
        job.config,
        training={
            **{k: record[k] for k in ("films", "patients", "epochs", "git_commit", "versions")},
            "seed": job.config.seed,
            "sources": list(job.config.sources),
            "protocol": job.config.protocol.kind,
        },
        metrics={"command": record["command"], "figures": record["figures"]},
        licence_note="trained on films under: " + "; ".join(licences),
    )


def _plain(row: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a validation part of one class has no AUC."""
    return {k: None if np.isnan(v) else v for k, v in row.items()}
