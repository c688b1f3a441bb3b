"""Trains one member through its phases, then writes its figures, pictures and bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from classify.augment import build_augment
from classify.dataset import MemberDataset, PixelCache, class_weights
from classify.films import Case
from classify.labels import TARGET
from classify.models.multitask import SCXNN, build_member
from classify.module import MemberModule
from classify.preprocess import to_input
from classify.recipe import PhaseConfig, TrainConfig
from cxr.bundle import save_bundle
from cxr.cli import to_plain
from cxr.plots import draw_curves, draw_panels
from cxr.stats import classification_report
from cxr.training.loop import BEST, fit_learner
from cxr.workdir import log, provenance, seed_everything, write_json


@dataclass(frozen=True)
class MemberJob:
    """Everything one member is trained from. `parts` holds indices into `cases` for each part;
    `wide` are the training pictures (with room for the box jitter), `exact` the inputs."""

    target: str
    order: int
    folder: Path
    bundle: Path
    config: TrainConfig
    cases: Sequence[Case]
    labels: Sequence[int]
    parts: dict[str, list[int]]
    wide: PixelCache
    exact: PixelCache

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the answers."""
        return self.config.class_names(self.target)

    @property
    def decode(self) -> bool:
        """Does the member restore anything?"""
        return self.config.decoder != "none"


def fit_member(job: MemberJob) -> dict[str, Any]:
    """Train (or go on), evaluate, write; returns what metrics.json holds."""
    config = job.config
    seed_everything(config.seed + job.order)
    model = build_member(config.member, job.decode, len(job.classes))
    history: list[dict[str, float]] = []
    for number, phase in enumerate(config.phases_to_run()):
        log.info("%s: phase %s", job.target, phase.name)
        history += [{"phase": number, **row} for row in _run_phase(job, model, phase, number)]
    model.eval()
    parts = dict.fromkeys(("val", *config.evaluate))
    figures = {part: evaluate(job, model, part) for part in parts}
    best = max((r["val_auc"] for r in history), default=float("nan"))
    record = {
        "target": job.target,
        "films": {part: _counts(job, part) for part in job.parts},
        "epochs": len(history),
        "best_val_auc": best,
        "figures": figures,
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
    folder = job.folder / f"{number}_{phase.name}"
    train = films_of_phase(job, phase)
    weights = class_weights([job.labels[i] for i in train], len(job.classes))
    if not job.config.balance_classes:
        weights = torch.ones_like(weights)
    module = MemberModule(
        model, job.config.preprocess, phase.optim, phase.name, weights, job.config.restore_weight
    )
    done = folder / "done.json"
    if not done.exists():
        fit_learner(
            module,
            job.target,
            folder,
            _train_loader(job, train),
            loader(job, job.parts["val"]),
            job.config.device,
            job.config.precision,
        )
        write_json(done, module.history)
    state = torch.load(folder / BEST, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    return json.loads(done.read_text())


def films_of_phase(job: MemberJob, phase: PhaseConfig) -> list[int]:
    """Training films of a phase: all, or those whose restoration goal is known."""
    train = job.parts["train"]
    known = [job.labels[i] != TARGET or job.exact.region_of[i] >= 0 for i in train]
    if phase.films == "with_region":
        train = [i for i, k in zip(train, known, strict=True) if k]
    if not train:
        raise ValueError(f"phase {phase.name} with films: {phase.films} must have films. Got none.")
    return train


def _train_loader(job: MemberJob, train: list[int]) -> DataLoader[Any]:
    config = job.config
    augment = build_augment(config.augment, config.preprocess.side, bool(config.crops), config.seed)
    films = MemberDataset(
        job.wide,
        job.labels,
        train,
        config.preprocess.side,
        config.region.dilation,
        augment,
        config.decoder == "segmentation",
    )
    lonely = len(train) % config.batch == 1  # BatchNorm cannot learn from a batch of one film
    return DataLoader(
        films,
        config.batch,
        shuffle=True,
        num_workers=config.workers,
        drop_last=lonely,
        persistent_workers=config.workers > 0,
    )


def loader(job: MemberJob, indices: Sequence[int]) -> DataLoader[Any]:
    """Films as prediction sees them, in order."""
    config = job.config
    films = MemberDataset(
        job.exact,
        job.labels,
        indices,
        config.preprocess.side,
        config.region.dilation,
        masks=config.decoder == "segmentation",
    )
    return DataLoader(films, max(config.batch, 16), shuffle=False)


def predict(job: MemberJob, model: SCXNN, indices: Sequence[int]) -> np.ndarray:
    """(N, K) logits of those films, K classes."""
    device = next(model.parameters()).device
    logits = []
    with torch.inference_mode():
        for batch in loader(job, indices):
            x = to_input(batch["image"].to(device), job.config.preprocess)
            logits.append(model(x).float().cpu().numpy())
    return np.concatenate(logits)


def evaluate(job: MemberJob, model: SCXNN, part: str) -> dict[str, Any]:
    """Figures with intervals by patient on one part of the split."""
    indices = job.parts[part]
    labels = [job.labels[i] for i in indices]
    patients = [job.cases[i].patient for i in indices]
    report = classification_report(
        predict(job, model, indices),
        labels,
        patients,
        job.classes,
        job.config.draws,
        job.config.seed,
    )
    return report.to_dict()


def _counts(job: MemberJob, part: str) -> dict[str, int]:
    labels = [job.labels[i] for i in job.parts[part]]
    return {name: labels.count(k) for k, name in enumerate(job.classes)}


def _write_panels(job: MemberJob, model: SCXNN, rows: int = 6) -> None:
    """Pictures of the restoration: films with the target first, then others and normal ones."""
    indices = job.parts["val"]
    by_class = [[i for i in indices if job.labels[i] == k] for k in (TARGET, 2, 0)]
    share = (rows - rows // 3, rows // 6 or 1, rows // 6 or 1)
    chosen = [i for films, n in zip(by_class, share, strict=True) for i in films[:n]]
    batch = next(iter(loader(job, chosen)))
    device = next(model.parameters()).device
    with torch.inference_mode():
        _, restored = model.restore(to_input(batch["image"].to(device), job.config.preprocess))
    names = [job.classes[job.labels[i]] for i in chosen]
    draw_panels(
        batch["image"][:, 0].numpy(),
        batch["goal"][:, 0].numpy(),
        restored[:, 0].float().cpu().numpy(),
        names[: len(restored)],
        job.folder / "restored.png",
    )


def _save(job: MemberJob, model: SCXNN, record: dict[str, Any]) -> None:
    config = job.config
    licences = sorted({job.cases[i].row.licence for i in job.parts["train"]})
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
        trained_on="crops" if config.crops else "films",
        training={
            "films": record["films"],
            "epochs": record["epochs"],
            "seed": config.seed,
            "sources": list(config.sources),
            "git_commit": record["git_commit"],
            "versions": record["versions"],
        },
        metrics={"command": record["command"], "figures": record["figures"]},
        licence_note="trained on films under: " + "; ".join(licences),
    )
