"""Training of the lung-field network: `python -m detect.lungfield train --config …`

The loop, its checkpoints and its resume are the detector's (`detect.train.fit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional as F

from cxr import draw
from cxr.bundle import save_bundle
from cxr.cli import to_plain
from cxr.workdir import Workdir, console, log, provenance, write_atomic
from detect.lungfield.data import VIEWS, FieldAugment, FieldDataConfig, FieldDataset, select_rows
from detect.lungfield.metrics import overlap
from detect.lungfield.net import FieldNet, FieldNetConfig, build_field_net
from detect.module import Batch, DetectorModule, OptimiserConfig
from detect.train import fit

BUNDLE = "lungfield.safetensors"


@dataclass(frozen=True)
class FieldTrainConfig:
    """Train the lung-field network and write it as one bundle.

    The run's folder holds run.json, run.log, checkpoints/, TensorBoard events, history.json,
    curves.png, val_fields.png and, at the end, lungfield.safetensors with the best epoch's
    weights. A killed run goes on where its last checkpoint stands.

    Args:
        out: the run's folder.
        data: films, masks and their split.
        model: the network.
        optimiser: how it is fitted.
        crops: share of the training pictures that are random crops about the lungs.
        negatives: share of the training pictures replaced by ones without lungs.
        epochs: at most.
        batch: films a step.
        workers: processes that prepare films; 0 prepares them in the trainer.
        patience: stop after so many epochs without a better validation IoU; 0 never.
        ema: decay of the averaged weights that are validated and kept; 0 for none.
        accelerator: auto, cpu, gpu … as Lightning takes it.
        devices: how many; above 1 trains with DDP.
        strategy: Lightning's strategy, such as ddp.
        precision: auto (16-mixed on a GPU, 32 elsewhere) or any of Lightning's.
        fields_every: epochs between two pictures of validation fields; 0 for none.
        seed: of everything random.
        restart: begin anew although the folder holds checkpoints.
        half: store the bundle's weights as fp16.
    """

    out: str = "runs/lungfield"
    data: FieldDataConfig = field(default_factory=FieldDataConfig)
    model: FieldNetConfig = field(default_factory=FieldNetConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    crops: float = 0.4
    negatives: float = 0.06
    epochs: int = 30
    batch: int = 8
    workers: int = 0
    patience: int = 0
    ema: float = 0.99
    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    precision: str = "auto"
    fields_every: int = 5
    seed: int = 0
    restart: bool = False
    half: bool = True

    def __post_init__(self) -> None:
        for name in ("crops", "negatives"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"--{name} must lie in [0, 1]. Got {value} instead.")

    @property
    def picture_every(self) -> int:
        """The detector's pictures show boxes: none of them here."""
        return 0


def field_loss(logits: Tensor, share: Tensor) -> dict[str, Tensor]:
    """BCE over all pixels and 1 − soft Dice over the pictures that show lungs.

    Args:
        logits: (N, S, S).
        share: (N, S, S), the field's share of each pixel, in [0, 1].

    A picture without lungs has no Dice: there BCE alone teaches that nothing is to be marked.
    """
    losses = {"loss_bce": F.binary_cross_entropy_with_logits(logits, share)}
    shown = share.amax((1, 2)) > 0
    if shown.any():
        p, t = torch.sigmoid(logits[shown]), share[shown]
        dice = (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
        losses["loss_dice"] = 1 - dice.mean()
    return losses


class FieldModule(DetectorModule):
    """The detector's module with another network, loss and measure; optimiser and schedule are its.

    Validation logs `val_iou` (mean over whole films and crops, which selects the epoch) and Dice of
    both, at 0.5, in letterbox pixels; a batch may be (list of (3, S, S), list of {"mask"}).
    """

    def __init__(
        self, model: FieldNet, optimiser: OptimiserConfig, picture: Callback | None = None
    ) -> None:
        super().__init__(model, optimiser)
        self._picture = picture
        self._dice: list[float] = []

    def configure_callbacks(self) -> list[Callback]:
        return [self._picture] if self._picture is not None else []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, share = _stack(batch)
        losses = field_loss(self.model(images)[:, 0], share)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            terms = ", ".join(f"{k} {v.item():.4g}" for k, v in losses.items())
            raise FloatingPointError(
                f"the loss is not finite in step {self.global_step} ({terms}):"
                " lower --optimiser.rate."
            )
        logged = {"loss": total.detach(), **{f"train/{k}": v.detach() for k, v in losses.items()}}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=len(images))
        return total

    def validation_step(self, batch: Batch, index: int) -> None:
        images, share = _stack(batch)
        found = (self.model(images)[:, 0] > 0).cpu().numpy()
        for mask, truth in zip(found, (share > 0.5).cpu().numpy(), strict=True):
            measured = overlap(mask, truth)
            self._ious.append(measured.iou)
            self._dice.append(measured.dice)

    def on_validation_epoch_end(self) -> None:
        dice = np.array_split(np.asarray(self._dice), len(VIEWS))  # whole films, then crops
        for view, values in zip(VIEWS, dice, strict=True):
            if len(values):
                self.log(f"val/dice_{view}", float(values.mean()), sync_dist=True)
        self._dice = []
        self.log("val_iou", float(np.mean(self._ious or [0.0])), sync_dist=True)
        self._ious = []


def _stack(batch: Batch) -> tuple[Tensor, Tensor]:
    images, targets = batch
    stacked = torch.stack(images).contiguous(memory_format=torch.channels_last)
    return stacked, torch.stack([t["mask"] for t in targets])


class FieldPicture(Callback):
    """Twelve validation pictures each few epochs: truth in white, the found field in orange."""

    def __init__(self, path: Path, films: FieldDataset, every: int) -> None:
        self.path, self.films, self.every = path, films, every

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        due = (trainer.current_epoch + 1) % self.every == 0
        if not due or not trainer.is_global_zero or trainer.sanity_checking:
            return
        step = max(1, len(self.films) // 12)
        tiles, captions = [], []
        for index in range(0, len(self.films), step)[:12]:
            image, target = self.films[index]
            with torch.inference_mode():
                model: Any = module.model
                found = (model(image[None].to(module.device))[0, 0] > 0).cpu().numpy()
            truth = target["mask"].numpy() > 0.5
            tile = draw.draw_contour(draw.to_rgb(image[0].numpy()), truth, (255, 255, 255))
            tiles.append(draw.draw_contour(tile, found, draw.ORANGE))
            captions.append(f"Dice {overlap(found, truth).dice:.3f}")
        write_atomic(self.path, draw.encode_png(draw.sheet(tiles, captions, columns=6, tile=220)))


def train(config: FieldTrainConfig) -> int:
    """Read films, fit, write the bundle; 2 when data or weights do not fit."""
    workdir = Workdir(config.out)
    side, root = config.model.side, config.data.data
    try:
        rows, val_rows = select_rows(config.data, config.seed, workdir)
        model = build_field_net(config.model)
        workdir.start(to_plain(config), config.seed)
        films = FieldDataset(rows, root, side, FieldAugment(config.crops), config.negatives)
        val = FieldDataset(val_rows, root, side)
    except (ValueError, OSError, ImportError) as error:
        console.print(f"[red]{error}[/red]", soft_wrap=True)
        return 2
    log.info(
        "%d films to train, %d to validate, each whole and as a crop",
        len(films.items),
        len(val.items),
    )
    every = config.fields_every
    picture = FieldPicture(workdir / "val_fields.png", val, every) if every else None
    module = FieldModule(model, config.optimiser, picture)
    # the detector's loop asks its configuration and datasets for nothing that these do not have
    history = fit(cast(Any, config), workdir, module, cast(Any, films), cast(Any, val))
    best = max((h for h in history if "val_iou" in h), key=lambda h: h["val_iou"], default={})
    write_bundle(config, workdir / BUNDLE, module.model, best, films, val)
    console.print(f"best validation IoU {best.get('val_iou', 0):.4f}; wrote {workdir / BUNDLE}")
    return 0


def write_bundle(
    config: FieldTrainConfig,
    path: Path,
    model: torch.nn.Module,
    best: dict[str, float],
    films: FieldDataset,
    val: FieldDataset,
) -> None:
    """The best weights with all that is needed to use them."""
    save_bundle(
        path,
        "lungfield",
        model.state_dict(),
        half=config.half,
        # rebuilt without any download, and not to be trained on
        model={**to_plain(config.model), "weights": "none", "freeze_stages": 0},
        preprocessing="letterbox padded right and below, 0.5 / 99.5 percentile stretch to 8 bits",
        operating_point={"threshold": 0.5},
        trained_on={
            "films": len(films.items),
            "patients": _patients(films),
            "sources": _sources(films),
            "val_films": len(val.items),
            "split": config.data.split,
            "publishable_only": config.data.publishable_only,
        },
        metrics={
            **{k: v for k, v in best.items() if k.startswith("val")},
            "where": "validation films, whole and as crops, best epoch",
        },
        licence="weights: Apache-2.0; see the model card for the films' licences",
        provenance=provenance(),
    )


def _patients(films: FieldDataset) -> int:
    return len({row.patient_id for row in films.rows})


def _sources(films: FieldDataset) -> Sequence[str]:
    return sorted({row.source for row in films.rows})
