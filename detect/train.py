"""python -m detect.train --config configs/detect/thorax_lite0.yaml

A quick look on any machine:  python -m detect.train --config configs/detect/mobilenet_v3.yaml
--epochs 1 --data.max_films 40 --model.side 128
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from cxr.cli import parse_config, to_plain
from cxr.workdir import Workdir, console, log, provenance, write_json
from detect.augment import build_augmentation
from detect.callbacks import History, ValidationPicture
from detect.data import DataConfig, select_films
from detect.dataset import ThoraxDataset, collate
from detect.model import DetectorConfig, build_detector
from detect.module import DetectorModule, OptimiserConfig
from detect.thresholds import choose_thresholds


@dataclass(frozen=True)
class TrainConfig:
    """Train the thorax detector and write it as one bundle.

    The run's folder holds run.json, run.log, checkpoints/, TensorBoard events, history.json,
    curves.png, val_boxes.png and, at the end, thorax.safetensors with thresholds chosen on the
    validation films. A killed run goes on where its last checkpoint stands.

    Args:
        out: the run's folder.
        data: films, boxes and their split.
        model: the network.
        optimiser: how it is fitted.
        augment: none, affine (20°, 0.15/0.20), rotate (30°) or strong.
        negatives: share of the training pictures replaced by ones without a thorax.
        epochs: at most.
        batch: films a step.
        workers: processes that prepare films; 0 prepares them in the trainer.
        patience: stop after so many epochs without a better validation IoU; 0 never.
        ema: decay of the averaged weights that are validated and kept; 0 for none.
        accelerator: auto, cpu, gpu … as Lightning takes it.
        devices: how many; above 1 trains with DDP.
        strategy: Lightning's strategy, such as ddp.
        precision: auto (16-mixed on a GPU, 32 elsewhere) or any of Lightning's.
        picture_every: epochs between two pictures of validation boxes; 0 for none.
        seed: of everything random.
        restart: begin anew although the folder holds checkpoints.
        half: store the bundle's weights as fp16.
    """

    out: str = "runs/detect"
    data: DataConfig = field(default_factory=DataConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    augment: str = "affine"
    negatives: float = 0.05
    epochs: int = 30
    batch: int = 16
    workers: int = 0
    patience: int = 0
    ema: float = 0.995
    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    precision: str = "auto"
    picture_every: int = 5
    seed: int = 0
    restart: bool = False
    half: bool = True


class RefusedError(ValueError):
    """The settings or the data do not allow a training."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and train; 2 for wrong settings or data."""
    config = parse_config(
        TrainConfig,
        argv,
        "python -m detect.train",
        "python -m detect.train --config configs/detect/mobilenet_v3.yaml --out runs/mobilenet",
    )
    try:
        history = train(config)
    except RefusedError as error:
        log.error("%s", error)
        return 2
    best = best_epoch(history, DetectorModule.monitor)
    console.print(
        f"best validation IoU {best.get('val_iou', 0):.4f}; "
        f"wrote {Path(config.out) / 'thorax.safetensors'}"
    )
    return 0


def train(
    config: TrainConfig, module_class: type[DetectorModule] = DetectorModule
) -> list[dict[str, float]]:
    """Read films, fit, choose thresholds, write the bundle; returns the history, a row an epoch.

    Args:
        config: `config.out` is the folder that holds all results (see TrainConfig).
        module_class: of the LightningModule; its `monitor` picks the epoch.

    Raises:
        RefusedError: for wrong settings, and for data that are missing or do not fit together.
    """
    workdir = Workdir(config.out)
    try:
        train_films, val_films, masks = select_films(
            config.data, config.seed, workdir, config.model.classes
        )
        model = build_detector(config.model)
        augment = build_augmentation(config.augment)
    except (ValueError, OSError, ImportError) as error:
        raise RefusedError(str(error)) from error
    workdir.start(to_plain(config), config.seed)
    root, side = config.data.data, config.model.side
    try:
        learnt = ThoraxDataset(train_films, root, side, augment, config.negatives, masks)
        val = ThoraxDataset(val_films, root, side)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    log.info("%d films to train, %d to validate", len(learnt), len(val))
    module = module_class(model.to(memory_format=torch.channels_last), config.optimiser)
    history = fit(config, workdir, module, learnt, val)
    thresholds = choose_thresholds(module.model, val)
    best = best_epoch(history, module.monitor)
    write_bundle(config, workdir, module.model, thresholds, best, learnt, val)
    return history


def best_epoch(history: Sequence[dict[str, float]], monitor: str) -> dict[str, float]:
    """The history's first row with the highest `monitor`; empty where none has it."""
    return max((h for h in history if monitor in h), key=lambda h: h[monitor], default={})


def fit(
    config: TrainConfig,
    workdir: Workdir,
    module: DetectorModule,
    train: ThoraxDataset,
    val: ThoraxDataset,
) -> list[dict[str, float]]:
    """Lightning's loop with resume; leaves the best weights in the module."""
    saving: dict[str, Any] = {
        "dirpath": workdir / "checkpoints",
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    keep = ModelCheckpoint(filename="best", monitor=module.monitor, mode="max", **saving)
    # one of its own: `save_last` writes nothing in an epoch that is not the best
    latest = ModelCheckpoint(filename="last", **saving)
    shown = tuple(dict.fromkeys(("loss", "val_iou", module.monitor)))
    history = History(workdir.path, shown)
    callbacks: list[Callback] = [keep, latest, history, LearningRateMonitor()]
    if config.patience:
        callbacks.append(EarlyStopping(module.monitor, mode="max", patience=config.patience))
    if config.ema:
        callbacks.append(EMAWeightAveraging(decay=config.ema))
    if config.picture_every:
        callbacks.append(ValidationPicture(workdir / "val_boxes.png", val, config.picture_every))
    on_gpu = torch.cuda.is_available() and config.accelerator in ("auto", "gpu", "cuda")
    precision: Any = (
        config.precision if config.precision != "auto" else ("16-mixed" if on_gpu else "32")
    )
    trainer = Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy=config.strategy,
        precision=precision,
        max_epochs=config.epochs,
        callbacks=callbacks,
        logger=TensorBoardLogger(workdir.path, name="", version="tensorboard"),
        gradient_clip_val=5.0,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    loader: dict[str, Any] = {
        "batch_size": config.batch,
        "collate_fn": collate,
        "num_workers": config.workers,
        "persistent_workers": config.workers > 0,
    }
    last = workdir / "checkpoints/last.ckpt"
    if config.restart:
        last.unlink(missing_ok=True)
    resume = str(last) if last.exists() else None
    if resume:
        log.info("going on from %s", last)
    trainer.fit(
        module,
        DataLoader(train, shuffle=True, drop_last=len(train) > config.batch, **loader),
        DataLoader(val, **loader),
        ckpt_path=resume,
        weights_only=True,
    )
    if keep.best_model_path and Path(keep.best_model_path).exists():
        state = torch.load(keep.best_model_path, map_location="cpu", weights_only=True)
        module.load_state_dict(state["state_dict"])
    module.eval().to("cpu")
    return history.rows


def write_bundle(
    config: TrainConfig,
    workdir: Workdir,
    model: torch.nn.Module,
    thresholds: dict[str, Any],
    best: dict[str, float],
    train: ThoraxDataset,
    val: ThoraxDataset,
) -> None:
    """The best weights with all that is needed to use them."""
    from cxr.bundle import save_bundle

    sources = sorted({str(f.extra.get("source", "")) for f in train.films} - {""})
    trained_on = {
        "films": len(train),
        "patients": len({f.patient_id for f in train.films}),
        "sources": sources,
        "val_films": len(val),
        "split": config.data.split,
        "publishable_only": config.data.publishable_only,
    }
    save_bundle(
        workdir / "thorax.safetensors",
        "thorax",
        model.state_dict(),
        half=config.half,
        model={**to_plain(config.model), "weights": "none"},  # rebuilt without any download
        operating_point=thresholds,
        trained_on=trained_on,
        metrics={
            "val_iou": best.get("val_iou"),
            **{k: v for k, v in best.items() if k.startswith("val_")},
            "where": "validation films, best epoch",
        },
        licence="weights: Apache-2.0; see the model card for the films' licences",
        provenance=provenance(),
    )
    write_json(workdir / "thresholds.json", thresholds)


if __name__ == "__main__":
    sys.exit(main())
