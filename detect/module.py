"""The detector's LightningModule: losses, optimiser and schedule, validation by IoU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn

from cxr.boxes import iou_xyxy

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


@dataclass(frozen=True)
class OptimiserConfig:
    """How the detector is fitted.

    Args:
        name: sgd (momentum 0.9), adam or adamw.
        rate: learning rate at its height.
        weight_decay: of weights; biases and norms are spared.
        warmup_epochs: the rate climbs linearly for so long; may be a fraction.
        schedule: cosine (to 1 % of the rate), plateau (halved after `patience` epochs without
            gain), or constant.
        patience: epochs for plateau.
    """

    name: str = "adamw"
    rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_epochs: float = 1.0
    schedule: str = "cosine"
    patience: int = 5

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "adam", "adamw"):
            raise ValueError(
                f"optimiser.name must be sgd, adam or adamw. Got {self.name!r} instead."
            )
        if self.schedule not in ("cosine", "plateau", "constant"):
            raise ValueError(
                "optimiser.schedule must be cosine, plateau or constant. "
                f"Got {self.schedule!r} instead."
            )


class DetectorModule(LightningModule):
    """Trains what `build_detector` gives. Validation logs `val_iou`: the mean IoU of the best box
    with misses as 0, in letterbox pixels (a similarity of the film: the IoU is the film's).

    `monitor` names the validation figure whose highest value picks the epoch that is kept.
    """

    monitor = "val_iou"

    def __init__(self, model: nn.Module, optimiser: OptimiserConfig) -> None:
        super().__init__()
        self.model = model
        self.optimiser = optimiser
        self._ious: list[float] = []
        self.history: list[dict[str, float]] = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            terms = ", ".join(f"{k} {v.item():.4g}" for k, v in losses.items())
            raise FloatingPointError(
                f"the loss is not finite in step {self.global_step} ({terms}): lower "
                "--optimiser.rate, or look at the boxes of this batch."
            )
        size = len(images)
        self.log(
            "loss", total.detach(), on_step=False, on_epoch=True, batch_size=size, prog_bar=True
        )
        parts = {f"train/{k}": v.detach() for k, v in losses.items()}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=size)
        return total

    def validation_step(self, batch: Batch, index: int) -> None:
        images, targets = batch
        for found, target in zip(self.model(images), targets, strict=True):
            self.measure(found, target)

    def measure(self, found: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        """Take one validation film's boxes into the epoch's figures."""
        truth = target["boxes"].double().cpu().numpy()
        if not len(truth):
            return
        best = found["boxes"][found["scores"].argsort(descending=True)[:1]]
        iou = iou_xyxy(best.double().cpu().numpy(), truth)
        self._ious.append(float(iou.max()) if iou.size else 0.0)

    def on_validation_epoch_end(self) -> None:
        ious = np.asarray(self._ious or [0.0])
        self._ious = []
        values = {
            "val_iou": ious.mean(),
            "val/share_09": (ious >= 0.9).mean(),
            "val/misses": (ious == 0).mean(),
        }
        for name, value in values.items():
            self.log(name, float(value), prog_bar=name == "val_iou", sync_dist=True)

    def configure_optimizers(self) -> Any:
        config = self.optimiser
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if config.name == "sgd":
            optimiser: torch.optim.Optimizer = torch.optim.SGD(groups, config.rate, momentum=0.9)
        elif config.name == "adam":
            optimiser = torch.optim.Adam(groups, config.rate)
        else:
            optimiser = torch.optim.AdamW(groups, config.rate)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        each = max(1, total // max(1, self.trainer.max_epochs or 1))
        warm = int(config.warmup_epochs * each)
        if config.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimiser, mode="max", factor=0.5, patience=config.patience
            )
            return {
                "optimizer": optimiser,
                "lr_scheduler": {"scheduler": plateau, "monitor": self.monitor},
            }

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / (warm + 1)
            if config.schedule == "constant":
                return 1.0
            done = min(1.0, (step - warm) / max(1, total - warm))
            return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * done)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
