"""A single network for K classes, or one for each fold: trained, its films of the test part
answered, figures, pictures and the bundle written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classify.augment import GuideConfig, build_change
from classify.dataset import (
    NO_REGION,
    FilmDataset,
    PixelCache,
    balance_films,
    build_cache,
    cache_of,
    class_weights,
    drop_cache,
    film_loader,
    load_films,
    predict,
    train_loader,
)
from classify.ensemble import build_net, save_single
from classify.films import (
    PARTS,
    Films,
    Shares,
    licence_note,
    require_more_than_one,
    require_two,
    share_films,
    tell_films,
)
from classify.models.unets import CXRNet
from classify.preprocess import PreprocessConfig, to_input
from classify.tasks.guided import Guide
from classify.tasks.restore import BUNDLE as PRETRAINED
from classify.tasks.restore import pretrain
from classify.tasks.settings import FinetuneConfig, SingleConfig
from cxr import stats
from cxr.cli import to_plain
from cxr.draw import draw_confusion, draw_curves
from cxr.ledger import Answer, read_answers, write_answers
from cxr.stats import Figure, Report, classification_report, softmax
from cxr.training.learner import BEST, LAST, Batch, Learner, best_epoch, fit, load_best
from cxr.training.recipe import OptimConfig, keep_to_recipe
from cxr.workdir import Workdir, log, provenance, seed_everything, write_json

ANSWERS, BUNDLE, HISTORY = "answers.csv", "single.safetensors", "history.json"
ANSWERED = {"val": "answers_val.csv", "test": ANSWERS}
_OF_A_FOLD = ("films", "patients", "epochs", "kept_epoch", "kept", "seconds")


@dataclass(frozen=True)
class SingleJob:
    """Everything that one network is trained from. `number` is that of the fold; one that is not
    `alone` leaves the pictures to all folds together."""

    name: str
    folder: Path
    config: SingleConfig
    films: Films
    shares: Shares
    cache: PixelCache
    number: int = 0
    alone: bool = True

    def dataset(self, indices: Sequence[int], training: bool = False) -> FilmDataset:
        """Films as they are, or as training sees them."""
        config, labels, side = self.config, self.films.labels, self.config.preprocess.side
        if not training:
            return FilmDataset(self.cache, labels, indices, side)
        chosen = balance_films(labels, indices, config.balance, config.seed)
        how = (build_change(config.augment, config.seed), config.copies)
        return FilmDataset(self.cache, labels, chosen, side, *how, guide=config.guide)


def finetune(config: FinetuneConfig) -> Path:
    """Pretrain where wanted and not done yet, then train; returns `config.out`. Raises ValueError,
    OSError or ImportError for what a user can mend, and NonFiniteLossError."""
    if config.start == "own":
        return train_single(config.to_single())
    if not (Path(config.out) / "done.json").exists():
        films, _ = shared_films(config)  # what fails there, fails before the pretraining
        build_cache_of(config, films)
    return train_single(config.to_single(pretrain(config.to_pretraining()) / PRETRAINED))


def train_single(config: SingleConfig) -> Path:
    """Train (or go on, or load what is finished); returns `config.out` with answers.csv. Raises
    ValueError, OSError or ImportError for what a user can mend, and NonFiniteLossError."""
    films, every = shared_films(config)
    out = Path(config.out)
    keep_to_recipe(out, {**config.recipe(), "films": films.mark()})
    if (out / "done.json").exists():
        log.info("%s is finished: nothing is trained", out)
        return out
    workdir = Workdir(out)
    workdir.start(to_plain(config), config.seed)
    tell_films(every[0].parts, {**films.left_out, **every[0].dropped}, len(every))
    cache = build_cache_of(config, films)
    nets = " + ".join(config.nets)
    if len(every) == 1:
        _run_job(SingleJob(nets, out, config, films, every[0], cache))
    else:
        jobs = [
            SingleJob(f"{nets}, fold {k}", out / f"fold{k}", config, films, shares, cache, k, False)
            for k, shares in enumerate(every)
        ]
        _pool(config, jobs, [_run_job(job) for job in jobs])
    workdir.update(finished=True)
    drop_cache(config)
    return out


def shared_films(config: SingleConfig, chooses: bool = False) -> tuple[Films, list[Shares]]:
    """The films of a training, and their parts in each fold; raises ValueError where they do not
    allow it. With `chooses` an AUC of the validation films decides, as for choose: val_auc."""
    films = load_films(config)
    every = share_films([case.row for case in films.cases], films.labels, config.protocol)
    for shares in every:
        require_more_than_one(shares.parts["train"], config.batch)
    for shares in every if chooses or config.choose == "val_auc" else ():
        labels = [films.labels[i] for i in shares.parts["val"]]
        require_two("val", labels, config.classes, "its AUC chooses what is kept")
    return films, every


def build_cache_of(config: SingleConfig, films: Films) -> PixelCache:
    """The decoded films, kept in the configuration's cache."""
    settings = config.preprocess
    side, guide = settings.side, config.guide
    return build_cache(films.cases, settings, NO_REGION, cache_of(config), side, guide=guide)


def _run_job(job: SingleJob) -> dict[str, Any]:
    """Train or go on, unless it is finished; returns what its metrics.json holds."""
    folder, config = job.folder, job.config
    if not (folder / "done.json").exists():
        seed_everything(config.seed + job.number)
        net = build_net(config.network())
        _fit(job, net)
        history = read_history(folder)
        _write(job, net, history, best_epoch(history, config.choose))
        write_json(folder / "done.json", {"epochs": len(history)})
        for checkpoint in (BEST, LAST):
            (folder / checkpoint).unlink(missing_ok=True)
    return json.loads((folder / "metrics.json").read_text())


def read_history(folder: Path) -> list[dict[str, float]]:
    """A row an epoch of a training that is over; an AUC that JSON cannot hold is NaN again."""
    rows = json.loads((folder / HISTORY).read_text())
    return [{k: np.nan if v is None else v for k, v in row.items()} for row in rows]


def _fit(job: SingleJob, net: nn.Module) -> None:
    """Train `net`, which has the weights of the kept epoch afterwards."""
    config, parts, folder = job.config, job.shares.parts, job.folder
    weights = None
    if config.balance == "weights":
        labels = [job.films.labels[i] for i in parts["train"]]
        weights = class_weights(labels, len(config.classes))
    about = (config.optim, config.choose, weights, config.guide)
    module = SingleModule(net, config.preprocess, *about)
    finished = folder / HISTORY  # written when the last epoch is over
    if not finished.exists():
        train = train_loader(job.dataset(parts["train"], training=True), config)
        val = film_loader(job.dataset(parts["val"]), config)
        fit(module, job.name, folder, train, val, config.device, config.precision)
        write_json(finished, [_plain(row) for row in module.history])
    load_best(module, folder)


def _write(job: SingleJob, net: nn.Module, history: Sequence[dict[str, float]], kept: int) -> None:
    """answers.csv, answers_val.csv, metrics.json, curves.png, confusion.png and the bundle."""
    config, parts, films = job.config, job.shares.parts, job.films
    figures: dict[str, Any] = {}
    for part, file in ANSWERED.items():
        logits = predict(net, film_loader(job.dataset(parts[part]), config), config)
        answers = answers_of(config, films, parts[part], softmax(logits))
        picture = job.folder / "confusion.png" if part == "test" and job.alone else None
        figures[part] = write_report(config, answers, job.folder / file, picture)
    log.info("%s: %s", job.name, in_words(figures["test"]))
    if job.alone:
        draw_curves(history, job.folder / "curves.png", job.name, kept)
    labels = {part: [films.labels[i] for i in parts[part]] for part in PARTS}
    record = {
        "films": {
            part: {name: labels[part].count(k) for k, name in enumerate(config.classes)}
            for part in PARTS
        },
        "patients": {part: len({films.cases[i].patient for i in parts[part]}) for part in PARTS},
        "left_out": films.left_out,
        "dropped": job.shares.dropped,
        "pictures_an_epoch": len(job.dataset(parts["train"], training=True)),
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


def answers_of(
    config: SingleConfig, films: Films, indices: Sequence[int], scores: np.ndarray
) -> list[Answer]:
    """(N, K) scores of those N films as rows of an answers.csv."""
    return [
        Answer(
            films.cases[i].row.image,
            films.cases[i].patient,
            films.cases[i].row.source,
            config.classes[films.labels[i]],
            tuple(float(v) for v in row),
        )
        for i, row in zip(indices, scores, strict=True)
    ]


def write_report(
    config: SingleConfig, answers: Sequence[Answer], path: Path, picture: Path | None = None
) -> dict[str, Any]:
    """answers.csv and, where wanted, the confusion matrix as a picture; returns the figures."""
    write_answers(path, config.classes, answers)
    report = report_of(config.classes, answers, config.draws, config.seed)
    if picture:
        right = "?" if report.accuracy.value is None else f"{report.accuracy.value:.3f}"
        title = f"{report.films} tested films, accuracy {right}"
        draw_confusion(report.confusion, report.classes, report.classes, picture, title)
    return report.to_dict()


def report_of(
    classes: Sequence[str], answers: Sequence[Answer], draws: int = 1000, seed: int = 0
) -> Report:
    """Figures of an answers.csv, with intervals by patient; the answer is the highest score."""
    scores = np.array([answer.scores for answer in answers]).reshape(-1, len(classes))
    logits = np.log(np.maximum(scores, np.finfo(float).tiny))
    labels = [list(classes).index(answer.truth) for answer in answers]
    patients = [answer.patient for answer in answers]
    return classification_report(logits, labels, patients, classes, draws, seed)


def in_words(figures: dict[str, Any]) -> str:
    """Accuracy and macro AUC of a report, for the log."""
    right, area = (
        stats.in_words(Figure(**figures[key]), missing="?") for key in ("accuracy", "macro_auc")
    )
    return f"accuracy {right}, macro AUC {area} on {figures['films']} tested films"


def _save(job: SingleJob, net: nn.Module, record: dict[str, Any]) -> None:
    config = job.config
    save_single(
        job.folder / BUNDLE,
        net,
        config,
        training={
            **{k: record[k] for k in ("films", "patients", "epochs", "git_commit", "versions")},
            "seed": config.seed,
            "sources": list(config.sources),
            "protocol": config.protocol.kind,
        },
        metrics={"command": record["command"], "figures": record["figures"]},
        licence_note=licence_note(job.films.cases[i].row for i in job.shares.parts["train"]),
    )


def _pool(config: SingleConfig, jobs: Sequence[SingleJob], records: list[dict[str, Any]]) -> None:
    """The folds' answers together, as if they were one training's; each film is tested once."""
    out, figures = Path(config.out), {}
    for part, file in ANSWERED.items():
        answers = [answer for job in jobs for answer in read_answers(job.folder / file)[1]]
        picture = out / "confusion.png" if part == "test" else None
        figures[part] = write_report(config, answers, out / file, picture)
    history = [{"phase": k, **r} for k, job in enumerate(jobs) for r in read_history(job.folder)]
    write_json(out / HISTORY, history)
    draw_curves(history, out / "curves.png", f"{' + '.join(config.nets)}, {len(jobs)} folds")
    log.info("all folds: %s", in_words(figures["test"]))
    record = {
        "folds": [{k: one[k] for k in _OF_A_FOLD} for one in records],
        **{k: records[0][k] for k in ("left_out", "dropped")},
        **{k: sum(one[k] for one in records) for k in ("epochs", "seconds")},
        "figures": figures,
        **provenance(),
    }
    write_json(out / "metrics.json", record)
    write_json(out / "done.json", {"folds": len(jobs)})


def _plain(row: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a validation part of one class has no AUC."""
    return {k: None if np.isnan(v) else v for k, v in row.items()}


class SingleModule(Learner):
    """Cross-entropy of (N, K) logits, and what a network that draws its own map adds (CXRNet). With
    class weights, each film's loss is multiplied by its class' weight and the mean is over the
    films: so it does not hang on how the films are shared among batches."""

    def __init__(
        self,
        net: nn.Module,
        settings: PreprocessConfig,
        optim: OptimConfig,
        choose: str = "val_loss",
        weights: Tensor | None = None,
        guide: GuideConfig | None = None,
    ) -> None:
        super().__init__(net, optim, choose)
        self.settings = settings
        self.guide = Guide(guide or GuideConfig(), net, settings)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The loss and the logits (N, K) of pictures (N, 1, side, side) in [0, 1]."""
        own = isinstance(self.model, CXRNet)  # which draws its map and has a loss for it
        terms: dict[str, Tensor] = {}
        if not own or self.guide.config.on:
            logits, terms = self.guide.ask(self.model, batch, self.training)
        if own:
            x = to_input(batch["image"], self.settings)
            logits, terms["map"] = self.model.terms(x, batch["label"], self.class_weights)
        each = F.cross_entropy(logits.float(), batch["label"], self.class_weights, reduction="none")
        answer = each.mean()
        told = {"answer": answer, **terms} if terms else {}
        return {"loss": torch.stack([answer, *terms.values()]).sum(), **told}, logits.float()
