"""An ensemble of SCXNN members: each is trained through its phases, then writes its figures,
pictures and bundle; or cross-fitted, which gives logits of every patient from members that never
saw the patient: enough patients to calibrate a screener on, without any that training would miss.

Cross-fitting: Chernozhukov et al. 2018; why, and what it proves: docs/training.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from classify.augment import GuideConfig, build_augment, cache_side
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
from classify.ensemble import member_of
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
from classify.members import NORMAL, OTHERS, TARGET, label_of
from classify.models.multitask import SCXNN, build_member
from classify.predictions import PredictionRow, PredictionWriter
from classify.preprocess import PreprocessConfig, to_input
from classify.tasks.guided import Guide
from classify.tasks.settings import CrossfitConfig, PhaseConfig, TrainConfig
from cxr.bundle import load_bundle, save_bundle
from cxr.cli import to_plain
from cxr.draw import draw_curves, draw_panels
from cxr.films_table import has_disease, is_among
from cxr.split import Split, make_split, strata_of
from cxr.stats import Figure, classification_report, in_words
from cxr.training.learner import BEST, LAST, Batch, Learner, fit, load_best
from cxr.training.recipe import OptimConfig, keep_to_recipe
from cxr.workdir import Workdir, log, provenance, seed_everything, write_json

Parts = dict[str, list[int]]
REST = "aside"
FOLDS = "folds.json"  # which patients the members of which fold answered


@dataclass(frozen=True)
class MemberJob:
    """Everything one network is trained from, which is one target's member, or that of several:
    `labels` holds a class of each target for each film, `parts` indices into `cases` for each part;
    `wide` are the training pictures (with room for the box jitter), `exact` the inputs."""

    name: str
    targets: tuple[str, ...]
    order: int
    config: TrainConfig
    cases: Sequence[Case]
    labels: Sequence[tuple[int, ...]]
    parts: Parts
    wide: PixelCache
    exact: PixelCache

    @property
    def folder(self) -> Path:
        """For history, pictures and checkpoints."""
        return Path(self.config.out) / self.name

    @property
    def bundle(self) -> Path:
        """The finished network."""
        return Path(self.config.out) / f"{self.name}.safetensors"

    @property
    def decode(self) -> bool:
        """Does the member restore anything?"""
        return self.config.decoder != "none"

    def labels_of(self, indices: Sequence[int], target: int = 0) -> list[int]:
        """Class numbers of those films, for the target of that number."""
        return [self.labels[i][target] for i in indices]

    def films(self, indices: Sequence[int], training: bool = False) -> FilmDataset:
        """Films as prediction sees them, or as training does."""
        config, cache, augment = self.config, self.exact, None
        side, goal = config.preprocess.side, "mask" if config.decoder == "segmentation" else "film"
        if training:
            cache = self.wide
            augment = build_augment(config.augment, side, bool(config.crops), config.seed)
        how: Any = {"goal": goal, "dilation": config.region.dilation, "guide": config.guide}
        return FilmDataset(cache, self.labels, indices, side, augment, **how)


def train_ensemble(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Train all members into `config.out`; returns each network's metrics by its name."""
    cases, parts, left_out = _share(config)
    workdir, networks = Workdir(config.out), config.networks
    for name in networks:
        keep_to_recipe(workdir / name, config.recipe())
    workdir.start(to_plain(config), config.seed)
    tell_films(parts, left_out)
    records: dict[str, dict[str, Any]] = {}
    jobs: list[MemberJob] = []  # all are made before the first is trained: what fails, fails now
    for order, (name, targets) in enumerate(networks.items()):
        finished = workdir / name / "metrics.json"
        if finished.exists() and (workdir / f"{name}.safetensors").exists():
            log.info("%s is finished: skipped", name)
            records[name] = json.loads(finished.read_text())
        else:
            jobs.append(member_job(config, cases, parts, name, targets, order))
    for job in jobs:
        records[job.name] = fit_member(job)
        for target, figures in records[job.name]["figures"]["val"].items():
            auc = in_words(Figure(**figures["macro_auc"]), missing="?")
            log.info("%s: validation macro AUC %s", target, auc)
    workdir.update(finished=sorted(records))
    drop_cache(config)
    return {name: records[name] for name in networks}


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
    config: TrainConfig,
    cases: list[Case],
    parts: Parts,
    name: str,
    targets: tuple[str, ...],
    order: int,
) -> MemberJob:
    """All that one network is trained from; its films are decoded where they are not yet."""
    by_target: list[list[int]] = []
    for target in targets:
        labels = [label_of(case.row, target, config.classes, config.words) for case in cases]
        known = [k for k in labels if k is not None]
        assert len(known) == len(cases), "select_cases leaves unknown truths out"
        if not any(has_disease(cases[i].row, [target]) for i in parts["train"]):
            raise ValueError(
                f"targets must stand in the label or sublabel of training films. "
                f"Got {target!r}, which stands nowhere."
            )
        names = config.class_names(target)
        require_two("train", [known[i] for i in parts["train"]], names, "they are told apart")
        require_two("val", [known[i] for i in parts["val"]], names, "its AUC chooses the epoch")
        by_target.append(known)
    require_more_than_one(parts["train"], config.batch)

    def decode(side: int, jitter: float = 0.0) -> PixelCache:
        about = (cases, config.preprocess, config.region, cache_of(config), side, jitter)
        return build_cache(*about, targets, config.guide)

    side = config.preprocess.side
    wide_side = cache_side(side, config.augment, bool(config.crops))
    exact = decode(side)
    wide = exact if wide_side == side else decode(wide_side, config.augment.box_jitter)
    rows = list(zip(*by_target, strict=True))
    return MemberJob(name, targets, order, config, cases, rows, parts, wide, exact)


def fit_member(job: MemberJob) -> dict[str, Any]:
    """Train (or go on), evaluate, write; returns what metrics.json holds."""
    config = job.config
    seed_everything(config.seed + job.order)
    model = build_member(config.member, job.decode, config.class_count, len(job.targets))
    history: list[dict[str, float]] = []
    for number, phase in enumerate(config.phases_to_run()):
        log.info("%s: phase %s", job.name, phase.name)
        history += [{"phase": number, **row} for row in _run_phase(job, model, phase, number)]
    record = {
        "targets": list(job.targets),
        "films": {target: _count(job, m) for m, target in enumerate(job.targets)},
        "epochs": len(history),
        "best_val_auc": max((r["val_auc"] for r in history), default=float("nan")),
        "figures": {p: evaluate(job, model, p) for p in dict.fromkeys(("val", *config.evaluate))},
        **provenance(),
    }
    write_json(job.folder / "history.json", history)
    draw_curves(history, job.folder / "curves.png", job.name)
    if job.decode:
        for m in range(len(job.targets)):
            _write_panels(job, model, m)
    _save(job, model, record)
    write_json(job.folder / "metrics.json", record)
    return record


def _count(job: MemberJob, target: int) -> dict[str, dict[str, int]]:
    """Films of each class in each part."""
    names = [*enumerate(job.config.class_names(job.targets[target]))]
    labels = {part: job.labels_of(indices, target) for part, indices in job.parts.items()}
    return {p: {name: own.count(k) for k, name in names} for p, own in labels.items()}


def _run_phase(
    job: MemberJob, model: SCXNN, phase: PhaseConfig, number: int
) -> list[dict[str, float]]:
    """Train one phase into `model` (its best epoch); a finished phase is only loaded."""
    config, folder = job.config, job.folder / f"{number}_{phase.name}"
    train = films_of_phase(job, phase)
    labels = [job.labels_of(train, m) for m in range(len(job.targets))]
    weights = torch.stack([class_weights(own, config.class_count) for own in labels])
    if not config.balance_classes:
        weights = torch.ones_like(weights)
    about = (config.preprocess, phase.optim, phase.name, weights, config.restore_weight)
    module = MemberModule(model, *about, phase.guide or config.guide)
    done = folder / "done.json"
    if not done.exists():
        loader = train_loader(job.films(train, training=True), config)
        val = film_loader(job.films(job.parts["val"]), config)
        fit(module, job.name, folder, loader, val, config.device, config.precision)
        write_json(done, module.history)
    load_best(module, folder, LAST if phase.keep == "last" else BEST)
    return json.loads(done.read_text())


def films_of_phase(job: MemberJob, phase: PhaseConfig) -> list[int]:
    """Training films of a phase: all, or those whose restoration goals are known."""
    train = job.parts["train"]
    if phase.films == "with_region":
        labels, drawn = np.array(job.labels)[train], job.exact.region_of[train] >= 0
        train = [train[k] for k in np.flatnonzero(((labels != TARGET) | drawn).all(1))]
    if not train:
        raise ValueError(f"phase {phase.name} with films: {phase.films} must have films. Got none.")
    return train


def evaluate(job: MemberJob, model: SCXNN, part: str) -> dict[str, dict[str, Any]]:
    """Figures of each target, with intervals by patient, on one part of the split."""
    config, indices = job.config, job.parts[part]
    logits = predict(model, film_loader(job.films(indices), config), config)
    logits = logits.reshape(len(logits), len(job.targets), -1)
    patients = [job.cases[i].patient for i in indices]
    return {
        target: classification_report(
            logits[:, m],
            job.labels_of(indices, m),
            patients,
            config.class_names(target),
            config.draws,
            config.seed,
        ).to_dict()
        for m, target in enumerate(job.targets)
    }


def member_logits(
    config: TrainConfig, cases: list[Case], parts: dict[str, list[int]], wanted: Sequence[int]
) -> np.ndarray:
    """Logits (N, M, K) of the trained members, from the bundles that they left, on N films."""
    found = []
    for order, (name, targets) in enumerate(config.networks.items()):
        job = member_job(config, cases, parts, name, targets, order)
        net = member_of(load_bundle(job.bundle, "member"))
        logits = predict(net, film_loader(job.films(wanted), config), config)
        found.append(logits.reshape(len(wanted), len(targets), -1))
    return np.concatenate(found, axis=1)


def _write_panels(job: MemberJob, model: SCXNN, target: int) -> None:
    """Pictures of the restoration: four films with the target, then one of others, one normal."""
    labels, chosen = job.labels_of(range(len(job.labels)), target), list[int]()
    for label, most in ((TARGET, 4), (OTHERS, 1), (NORMAL, 1)):
        chosen += [i for i in job.parts["val"] if labels[i] == label][:most]
    batch = next(iter(film_loader(job.films(chosen), job.config)))
    device = next(model.parameters()).device
    with torch.inference_mode():
        _, restored = model.restore(to_input(batch["image"].to(device), job.config.preprocess))
    name, names = job.targets[target], job.config.class_names(job.targets[target])
    draw_panels(
        batch["image"][:, 0].numpy(),
        batch["goal"][:, target].numpy(),
        restored[:, target].float().cpu().numpy(),
        [names[labels[i]] for i in chosen][: len(restored)],
        job.folder / (f"restored_{name}.png" if len(job.targets) > 1 else "restored.png"),
    )


def _save(job: MemberJob, model: SCXNN, record: dict[str, Any]) -> None:
    config = job.config
    save_bundle(
        job.bundle,
        "member",
        model.shipped_tensors(config.ship_decoder),
        half=True,
        targets=list(job.targets),
        order=job.order,
        classes=list(config.class_names(job.targets[0])),
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


def crossfit(config: CrossfitConfig) -> Path:
    """Train a fold after the other (or go on); returns `config.out` with predictions.csv,
    split.json and folds.json. Raises ValueError or OSError for what a user can mend."""
    workdir = Workdir(config.out)
    own = {f.name: getattr(config, f.name) for f in fields(TrainConfig)}
    own |= {"evaluate": ("val",), "cache": config.cache or str(workdir / "cache")}
    every = TrainConfig(**own)
    cases, parts = load_cases(replace(every, evaluate=()))
    kept = read_split(config.split).part_of
    every_fold = {c.patient for c in cases if is_among(c.row.source, config.always)}
    pooled = [cases[i] for part in config.pooled for i in parts.get(part, [])]
    pooled = [case for case in pooled if case.patient not in every_fold]
    folds = _dealt(pooled, {str(k): 1 / config.folds for k in range(config.folds)}, config.seed)
    workdir.start(to_plain(config), config.seed)
    shares = {"fit": config.fit_share, "calibration": 1 - config.fit_share}
    chosen = _dealt(pooled, shares, config.seed).part_of
    rest = {p: "test" if part == "test" else REST for p, part in kept.items()}
    Split(config.seed, {**rest, **chosen}).save(workdir / "split.json")
    folds.save(workdir / FOLDS)
    with PredictionWriter(workdir / "predictions.csv", config.targets) as table:
        for fold in range(config.folds):
            film_of = [c for c in pooled if folds.part_of[c.patient] == str(fold)]
            if all(c.row.image in table.done for c in film_of):
                continue
            others = [c for c in pooled if folds.part_of[c.patient] != str(fold)]
            part_of = {**dict.fromkeys(kept, REST), **dict.fromkeys(every_fold, "train")}
            part_of |= _dealt(others, {"train": 0.85, "val": 0.15}, config.seed).part_of
            part_of |= {c.patient: "held" for c in film_of}
            place = workdir / f"fold{fold}"
            Split(config.seed, part_of).save(place / "split.json")
            recipe = replace(every, split=str(place / "split.json"), out=str(place))
            log.info("fold %d of %d: %d films held out", fold + 1, config.folds, len(film_of))
            train_ensemble(recipe)
            films, own_parts = load_cases(recipe)
            wanted = own_parts["held"]
            logits = member_logits(recipe, films, own_parts, wanted)
            for i, row in zip(wanted, logits, strict=True):
                name, crop = films[i].row.image, films[i].crop_row
                if name not in table.done:
                    table.add(PredictionRow(name, crop.status if crop else "ok", logits=row))
    return Path(config.out)


def _dealt(cases: list[Case], shares: dict[str, float], seed: int) -> Split:
    return make_split([c.patient for c in cases], strata_of([c.row for c in cases]), shares, seed)


def restoration_loss(restored: Tensor, goal: Tensor, known: Tensor) -> Tensor:
    """Mean squared error over the films and targets whose goal is known; 0 when none is. `restored`
    is (N, M, h', w'), `goal` (N, M, h, w) is averaged down to its size, `known` is (N, M) of 0 or
    1."""
    if goal.shape != restored.shape:
        goal = F.adaptive_avg_pool2d(goal, (restored.shape[-2], restored.shape[-1]))
    each = F.mse_loss(restored.float(), goal.float(), reduction="none").mean((2, 3))
    return (each * known).sum() / known.sum().clamp(min=1)


class MemberModule(Learner):
    """Loss CE + weight × MSE in phase `hard`, CE of the last layer alone in phase `weak`; the mean
    of several targets. `class_weights` is (targets, classes). What guides comes on top."""

    def __init__(
        self,
        model: SCXNN,
        preprocessing: PreprocessConfig,
        optim: OptimConfig,
        phase: str,
        class_weights: Tensor,
        restore_weight: float = 0.8,
        guide: GuideConfig | None = None,
    ) -> None:
        super().__init__(model, optim)
        self.phase = phase
        self.restore_weight = restore_weight if model.decoder is not None else 0.0
        self.class_weights: Tensor
        self.register_buffer("class_weights", class_weights, persistent=False)
        (model.freeze_first if phase == "hard" else model.freeze_all_but_fc)()
        model.train()  # the phase before left it in evaluation mode
        targets, classes = class_weights.shape
        sought = TARGET if classes == 3 else None
        self.guide = Guide(guide or GuideConfig(), model, preprocessing, targets, sought)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The loss and its terms, and the logits (N, targets × classes), of one batch."""
        restores = self.phase == "hard" and self.restore_weight
        if restores:
            both, terms = self.guide.ask(self.model.restore, batch, self.training)
            logits, mse = both[0], restoration_loss(both[1], batch["goal"], batch["known"])
        else:
            logits, terms = self.guide.ask(self.model, batch, self.training)
            mse = logits.new_zeros(())
        weights, labels = self.class_weights, batch["label"].view(len(logits), -1)
        own = logits.float().view(len(logits), *weights.shape)
        ce = torch.stack(
            [F.cross_entropy(own[:, m], labels[:, m], w) for m, w in enumerate(weights)]
        ).mean()
        loss = torch.stack([ce, self.restore_weight * mse, *terms.values()]).sum()
        return {"loss": loss, "ce": ce, "mse": mse, **terms}, logits
