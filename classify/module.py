"""One phase of a member's training as a LightningModule."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from classify.metrics import macro_auc, softmax
from classify.models.multitask import SCXNN
from classify.preprocess import PreprocessConfig, to_input
from classify.schedule import OptimConfig, PlateauHalving, cosine_factor

Batch = dict[str, Tensor]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN: training on would only spoil the weights."""


def restoration_loss(restored: Tensor, goal: Tensor, known: Tensor) -> Tensor:
    """Mean squared error over the films whose goal is known; 0 when none is.

    `restored` is (N, 1, h', w'), `goal` (N, 1, h, w) is averaged down to its size, `known` is (N,)
    of 0 or 1.
    """
    if goal.shape != restored.shape:
        goal = F.adaptive_avg_pool2d(goal, (restored.shape[-2], restored.shape[-1]))
    each = F.mse_loss(restored.float(), goal.float(), reduction="none").mean((1, 2, 3))
    return (each * known).sum() / known.sum().clamp(min=1)


class MemberModule(pl.LightningModule):
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
        super().__init__()
        if phase not in ("hard", "weak"):
            raise ValueError(f"phase must be hard or weak. Got {phase!r} instead.")
        self.model, self.preprocessing, self.optim, self.phase = model, preprocessing, optim, phase
        self.restore_weight = restore_weight if model.decoder is not None else 0.0
        self.register_buffer("class_weights", class_weights, persistent=False)
        (model.freeze_first if phase == "hard" else model.freeze_all_but_fc)()
        self.plateau = PlateauHalving(optim.rate, optim.patience, optim.factor, optim.floor_rate)
        self.history: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._answers: list[tuple[Tensor, Tensor]] = []
        self._began = time.monotonic()

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

    def on_train_epoch_start(self) -> None:
        """A fresh sum of the losses."""
        self._sums, self._began = {}, time.monotonic()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Loss of one batch; raises NonFiniteLossError with its terms."""
        terms, _logits = self.losses(batch)
        if not torch.isfinite(terms["loss"]):
            shown = ", ".join(f"{k} {v.item():g}" for k, v in terms.items())
            raise NonFiniteLossError(
                f"the loss must be finite. Got {shown} in epoch {self.current_epoch}: "
                "lower the learning rate, or clip the gradient (clip_norm)."
            )
        self._add("train", terms, len(batch["label"]))
        return terms["loss"]

    def on_validation_epoch_start(self) -> None:
        """Forget the answers of the epoch before."""
        self._answers = []

    def validation_step(self, batch: Batch, _: int) -> None:
        """Keeps logits and labels until the epoch's end."""
        terms, logits = self.losses(batch)
        self._add("val", terms, len(batch["label"]))
        self._answers.append((logits.float().cpu(), batch["label"].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Logs the epoch, sets the next rate, and stops when the rule says so."""
        logits = torch.cat([a for a, _ in self._answers]).numpy()
        labels = torch.cat([b for _, b in self._answers]).numpy()
        row = {"epoch": float(self.current_epoch), "rate": self._rate(),
               "seconds": time.monotonic() - self._began}  # fmt: skip
        for part in ("train", "val"):
            n = self._sums.get(f"{part}.n", torch.tensor(0.0))
            if n > 0:
                row |= {f"{part}_{k}": float(self._sums[f"{part}.{k}"] / n)
                        for k in ("loss", "ce", "mse")}  # fmt: skip
        row["val_auc"] = macro_auc(softmax(logits), labels)
        row["val_accuracy"] = float((logits.argmax(1) == labels).mean())
        self.history.append(row)
        names = [k for k in row if k != "epoch"]
        self.log_dict({k: row[k] for k in names}, prog_bar=False, on_epoch=True)
        self._after_epoch(row)

    def _after_epoch(self, row: dict[str, float]) -> None:
        if self.optim.schedule == "plateau":
            rate = self.plateau.step(row["val_loss"])
            for group in self.optimizers().param_groups:  # type: ignore[union-attr]
                group["lr"] = rate * group["factor"]
            if self.plateau.finished:
                self.trainer.should_stop = True
        elif self.optim.patience:
            aucs = [r["val_auc"] for r in self.history]
            if len(aucs) - 1 - aucs.index(max(aucs)) >= self.optim.patience:
                self.trainer.should_stop = True

    def _rate(self) -> float:
        return float(self.optimizers().param_groups[-1]["lr"])  # type: ignore[union-attr]

    def _add(self, part: str, terms: dict[str, Tensor], n: int) -> None:
        for name, value in [*terms.items(), ("n", torch.ones(()))]:
            key = f"{part}.{name}"
            add = value.detach().float().cpu() * n
            self._sums[key] = self._sums.get(key, torch.zeros(())) + add

    def configure_optimizers(self) -> Any:
        """Optimiser over what is trained, the encoder at its own rate; schedule by step."""
        optim = self.optim
        encoder = [p for p in self.model.encoder.parameters() if p.requires_grad]
        known = {id(p) for p in encoder}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        groups = [
            {"params": ps, "lr": optim.rate * factor, "factor": factor}
            for ps, factor in ((encoder, optim.encoder_rate), (rest, 1.0)) if ps
        ]  # fmt: skip
        decay = optim.weight_decay
        optimizer: torch.optim.Optimizer
        if optim.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=decay)
        elif optim.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, weight_decay=decay)
        else:
            optimizer = torch.optim.AdamW(groups, weight_decay=decay)
        if optim.schedule == "plateau":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if optim.schedule == "onecycle":
            rates = [g["lr"] for g in optimizer.param_groups]
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps + 1)
        else:
            warm = round(optim.warmup_epochs * steps / optim.epochs)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: cosine_factor(step, steps, warm)
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The history and the stop rule's state go along."""
        checkpoint["history"] = self.history
        checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And come back when a killed run is resumed."""
        self.history = list(checkpoint["history"])
        self.plateau.load_state_dict(checkpoint["plateau"])
