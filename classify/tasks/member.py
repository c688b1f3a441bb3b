"""An ensemble of SCXNN members: each is trained through its phases, then writes its figures,
pictures and bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from classify.augment import build_augment, cache_side
from classify.dataset import (
    FilmDataset,
    PixelCache,
    build_cache,
    cache_of,
    cases_of,
    class_weights,
    drop_cache,
    film_loader,
    predict,
    train_loader,
)
from classify.films import (
    Case,
    licence_note,
    read_split,
    require_more_than_one,
    require_part,
    require_two,
    share_cases,
    tell_films,
)
from classify.labels import NORMAL, OTHERS, TARGET, label_of
from classify.models.multitask import SCXNN, build_member
from classify.preprocess import PreprocessConfig, to_input
from classify.tasks.settings import PhaseConfig, TrainConfig
from cxr.bundle import save_bundle
from cxr.cli import to_plain
from cxr.films_table import has_disease
from cxr.plots import draw_curves, draw_panels
from cxr.stats import Figure, classification_report, in_words
from cxr.training.learner import Batch, Learner
from cxr.training.loop import fit, load_best
from cxr.training.optim import OptimConfig
from cxr.training.recipe import keep_to_recipe
from cxr.workdir import Workdir, log, provenance, seed_everything, write_json

Parts = dict[str, list[int]]


@dataclass(frozen=True)
class MemberJob:
    """Everything one member is trained from. `parts` holds indices into `cases` for each part;
    `wide` are the training pictures (with room for the box jitter), `exact` the inputs."""

    target: str
    order: int
    config: TrainConfig
    cases: Sequence[Case]
    labels: Sequence[int]
    parts: Parts
    wide: PixelCache
    exact: PixelCache

    @property
    def folder(self) -> Path:
        """For history, pictures and checkpoints."""
        return Path(self.config.out) / self.target

    @property
    def bundle(self) -> Path:
        """The finished member."""
        return Path(self.config.out) / f"{self.target}.safetensors"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the answers."""
        return self.config.class_names(self.target)

    @property
    def decode(self) -> bool:
        """Does the member restore anything?"""
        return self.config.decoder != "none"

    def labels_of(self, indices: Sequence[int]) -> list[int]:
        """Class numbers of those films."""
        return [self.labels[i] for i in indices]

    def films(self, indices: Sequence[int], training: bool = False) -> FilmDataset:
        """Films as prediction sees them, or as training does."""
        config = self.config
        side, augment = config.preprocess.side, None
        if training:
            augment = build_augment(config.augment, side, bool(config.crops), config.seed)
        return FilmDataset(
            self.wide if training else self.exact,
            self.labels,
            indices,
            side,
            augment,
            goal="mask" if config.decoder == "segmentation" else "film",
            dilation=config.region.dilation,
        )


def train_ensemble(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Train all members into `config.out`; returns each member's metrics by target."""
    cases, parts, left_out = _share(config)
    workdir = Workdir(config.out)
    for target in config.targets:
        keep_to_recipe(workdir / target, config.recipe())
    workdir.start(to_plain(config), config.seed)
    tell_films(parts, left_out)
    records: dict[str, dict[str, Any]] = {}
    jobs: list[MemberJob] = []  # all are made before the first is trained: what fails, fails now
    for order, target in enumerate(config.targets):
        finished = workdir / target / "metrics.json"
        if finished.exists() and (workdir / f"{target}.safetensors").exists():
            log.info("%s is finished: skipped", target)
            records[target] = json.loads(finished.read_text())
        else:
            jobs.append(member_job(config, cases, parts, target, order))
    for job in jobs:
        records[job.target] = fit_member(job)
        auc = Figure(**records[job.target]["figures"]["val"]["macro_auc"])
        log.info("%s: validation macro AUC %s", job.target, in_words(auc, missing="?"))
    workdir.update(finished=sorted(records))
    drop_cache(config)
    return {target: records[target] for target in config.targets}


def load_cases(config: TrainConfig) -> tuple[list[Case], Parts]:
    """The films of a configuration, and the indices of each part of the split; raises ValueError
    where a file, a disease or a part's films are missing."""
    return _share(config)[:2]


def _share(config: TrainConfig) -> tuple[list[Case], Parts, dict[str, int]]:
    """`load_cases`, and how many films were left out for which reason."""
    every, left_out = cases_of(config)
    split = read_split(config.split)
    names = sorted(set(split.part_of.values()))
    cases, parts = share_cases(every, split, names, config.max_films, config.seed)
    if len(cases) < len(every):
        left_out["over max_films"] = len(every) - len(cases)
    for disease in config.unseen:
        films = {i for i, case in enumerate(cases) if has_disease(case.row, [disease])}
        if not films:
            raise ValueError(
                "unseen must stand in the label or sublabel of films. "
                f"Got {disease!r}, which stands nowhere."
            )
        for part in {"train", "val"} & set(parts):
            parts[part] = [i for i in parts[part] if i not in films]
    require_part(parts, "train", "val", *config.evaluate)
    return cases, parts, left_out


def member_job(
    config: TrainConfig, cases: list[Case], parts: Parts, target: str, order: int
) -> MemberJob:
    """All that one member is trained from; its films are decoded where they are not yet."""
    labels = [label_of(case.row, target, config.classes, config.words) for case in cases]
    known = [k for k in labels if k is not None]
    assert len(known) == len(cases), "select_cases leaves unknown truths out"
    if not any(has_disease(cases[i].row, [target]) for i in parts["train"]):
        raise ValueError(
            f"targets must stand in the label or sublabel of training films. "
            f"Got {target!r}, which stands nowhere."
        )
    require_more_than_one(parts["train"], config.batch)
    names = config.class_names(target)
    require_two("train", [known[i] for i in parts["train"]], names, "they are told apart")
    require_two("val", [known[i] for i in parts["val"]], names, "its AUC chooses the epoch")

    def decode(side: int, jitter: float = 0.0) -> PixelCache:
        folder = cache_of(config)
        return build_cache(cases, config.preprocess, config.region, folder, side, jitter, target)

    side = config.preprocess.side
    wide_side = cache_side(side, config.augment, bool(config.crops))
    exact = decode(side)
    wide = exact if wide_side == side else decode(wide_side, config.augment.box_jitter)
    return MemberJob(target, order, config, cases, known, parts, wide, exact)


def fit_member(job: MemberJob) -> dict[str, Any]:
    """Train (or go on), evaluate, write; returns what metrics.json holds."""
    config = job.config
    seed_everything(config.seed + job.order)
    model = build_member(config.member, job.decode, len(job.classes))
    history: list[dict[str, float]] = []
    for number, phase in enumerate(config.phases_to_run()):
        log.info("%s: phase %s", job.target, phase.name)
        history += [{"phase": number, **row} for row in _run_phase(job, model, phase, number)]
    counts = {part: job.labels_of(indices) for part, indices in job.parts.items()}
    record = {
        "target": job.target,
        "films": {
            part: {name: labels.count(k) for k, name in enumerate(job.classes)}
            for part, labels in counts.items()
        },
        "epochs": len(history),
        "best_val_auc": max((r["val_auc"] for r in history), default=float("nan")),
        "figures": {p: evaluate(job, model, p) for p in dict.fromkeys(("val", *config.evaluate))},
        **provenance(),
    }
    write_json(job.folder / "history.json", history)
    draw_curves(history, job.folder / "curves.png", job.target)
    if job.decode:
        _write_panels(job, model)
    _save(job, model, record)
    write_json(job.folder / "metrics.json", record)
    return record


def _run_phase(
    job: MemberJob, model: SCXNN, phase: PhaseConfig, number: int
) -> list[dict[str, float]]:
    """Train one phase into `model` (its best epoch); a finished phase is only loaded."""
    config, folder = job.config, job.folder / f"{number}_{phase.name}"
    train = films_of_phase(job, phase)
    weights = class_weights(job.labels_of(train), len(job.classes))
    if not config.balance_classes:
        weights = torch.ones_like(weights)
    module = MemberModule(
        model, config.preprocess, phase.optim, phase.name, weights, config.restore_weight
    )
    done = folder / "done.json"
    if not done.exists():
        loader = train_loader(job.films(train, training=True), config)
        val = film_loader(job.films(job.parts["val"]), config)
        fit(module, job.target, folder, loader, val, config.device, config.precision)
        write_json(done, module.history)
    load_best(module, folder)
    return json.loads(done.read_text())


def films_of_phase(job: MemberJob, phase: PhaseConfig) -> list[int]:
    """Training films of a phase: all, or those whose restoration goal is known."""
    train = job.parts["train"]
    if phase.films == "with_region":
        train = [i for i in train if job.labels[i] != TARGET or job.exact.region_of[i] >= 0]
    if not train:
        raise ValueError(f"phase {phase.name} with films: {phase.films} must have films. Got none.")
    return train


def evaluate(job: MemberJob, model: SCXNN, part: str) -> dict[str, Any]:
    """Figures with intervals by patient on one part of the split."""
    config, indices = job.config, job.parts[part]
    return classification_report(
        predict(model, film_loader(job.films(indices), config), config),
        job.labels_of(indices),
        [job.cases[i].patient for i in indices],
        job.classes,
        config.draws,
        config.seed,
    ).to_dict()


def _write_panels(job: MemberJob, model: SCXNN) -> None:
    """Pictures of the restoration: four films with the target, then one of others, one normal."""
    chosen: list[int] = []
    for label, most in ((TARGET, 4), (OTHERS, 1), (NORMAL, 1)):
        chosen += [i for i in job.parts["val"] if job.labels[i] == label][:most]
    batch = next(iter(film_loader(job.films(chosen), job.config)))
    device = next(model.parameters()).device
    with torch.inference_mode():
        _, restored = model.restore(to_input(batch["image"].to(device), job.config.preprocess))
    draw_panels(
        batch["image"][:, 0].numpy(),
        batch["goal"][:, 0].numpy(),
        restored[:, 0].float().cpu().numpy(),
        [job.classes[k] for k in job.labels_of(chosen)][: len(restored)],
        job.folder / "restored.png",
    )


def _save(job: MemberJob, model: SCXNN, record: dict[str, Any]) -> None:
    config = job.config
    save_bundle(
        job.bundle,
        "member",
        model.shipped_tensors(config.ship_decoder),
        half=True,
        target=job.target,
        order=job.order,
        classes=list(job.classes),
        network=to_plain(config.member),
        decoder=config.ship_decoder and job.decode,
        preprocessing=config.preprocess.to_dict(),
        trained_on=config.trained_on,
        training={
            **{k: record[k] for k in ("films", "epochs", "git_commit", "versions")},
            "seed": config.seed,
            "sources": list(config.sources),
        },
        metrics={"command": record["command"], "figures": record["figures"]},
        licence_note=licence_note(job.cases[i].row for i in job.parts["train"]),
    )


def restoration_loss(restored: Tensor, goal: Tensor, known: Tensor) -> Tensor:
    """Mean squared error over the films whose goal is known; 0 when none is.

    `restored` is (N, 1, h', w'), `goal` (N, 1, h, w) is averaged down to its size, `known` is (N,)
    of 0 or 1.
    """
    if goal.shape != restored.shape:
        goal = F.adaptive_avg_pool2d(goal, (restored.shape[-2], restored.shape[-1]))
    each = F.mse_loss(restored.float(), goal.float(), reduction="none").mean((1, 2, 3))
    return (each * known).sum() / known.sum().clamp(min=1)


class MemberModule(Learner):
    """Loss CE + weight × MSE in phase `hard`, CE of the last layer alone in phase `weak`."""

    def __init__(
        self,
        model: SCXNN,
        preprocessing: PreprocessConfig,
        optim: OptimConfig,
        phase: str,
        class_weights: Tensor,
        restore_weight: float = 0.8,
    ) -> None:
        super().__init__(model, optim)
        self.preprocessing, self.phase = preprocessing, phase
        self.restore_weight = restore_weight if model.decoder is not None else 0.0
        self.register_buffer("class_weights", class_weights, persistent=False)
        (model.freeze_first if phase == "hard" else model.freeze_all_but_fc)()
        model.train()  # the phase before left it in evaluation mode

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The loss and its terms, and the logits (N, 3), of one batch."""
        x = to_input(batch["image"], self.preprocessing)
        if self.phase == "hard" and self.restore_weight:
            logits, restored = self.model.restore(x)
            mse = restoration_loss(restored, batch["goal"], batch["known"])
        else:
            logits = self.model(x)
            mse = logits.new_zeros(())
        ce = F.cross_entropy(logits.float(), batch["label"], self.class_weights)  # type: ignore[arg-type]
        return {"loss": ce + self.restore_weight * mse, "ce": ce, "mse": mse}, logits
