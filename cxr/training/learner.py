"""What all trainings in this package share: losses, epochs, rates, stop rule, optimiser."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from cxr.stats import macro_auc, softmax
from cxr.training.optim import CHOICES, OptimConfig, PlateauHalving, cosine_factor

Batch = dict[str, Tensor]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN: training on would only spoil the weights."""


def best_epoch(history: Sequence[Mapping[str, float]], choose: str) -> int:
    """Number, from 0, of the epoch that is kept: the first of equals; one without a value never is,
    unless none has one."""
    sign = -1.0 if choose == "val_loss" else 1.0
    values = [sign * row[choose] for row in history]
    return max(range(len(values)), key=lambda k: -math.inf if math.isnan(values[k]) else values[k])


class Learner(pl.LightningModule):
    """A network in training; a subclass gives `losses`.

    `model` has an `encoder`, whose rate may be another. `choose` is the column of `history` by
    which the best epoch is known: val_auc (the highest) or val_loss (the lowest).
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, choose: str = "val_auc") -> None:
        super().__init__()
        assert choose in CHOICES, choose
        self.model: Any = model
        self.optim, self.choose = optim, choose
        self.plateau = PlateauHalving(optim.rate, optim.patience, optim.factor, optim.floor_rate)
        self.history: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._answers: list[tuple[Tensor, Tensor]] = []
        self._began = time.monotonic()

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The loss (key `loss`) with its terms, and the logits (N, K), of one batch."""
        raise NotImplementedError

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
        self._add("train", terms, len(next(iter(batch.values()))))
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
        row = {
            "epoch": float(self.current_epoch),
            "rate": self._rate(),
            "seconds": time.monotonic() - self._began,
        }
        for key, total in self._sums.items():
            part, term = key.split(".")
            if term != "n":
                row[f"{part}_{term}"] = float(total / self._sums[f"{part}.n"])
        if self._answers:  # none where a network does not classify
            logits = torch.cat([a for a, _ in self._answers]).numpy()
            labels = torch.cat([b for _, b in self._answers]).numpy()
            row["val_auc"] = macro_auc(softmax(logits), labels)
            row["val_accuracy"] = float((logits.argmax(1) == labels).mean())
        self.history.append(row)
        names = [k for k in row if k != "epoch"]
        self.log_dict({k: row[k] for k in names}, prog_bar=False, on_epoch=True)
        self._after_epoch(row)

    def line(self) -> str:
        """The newest epoch in words, for the log."""
        row = self.history[-1]
        known = ("val_loss", "val_auc", "val_accuracy")
        terms = [
            f"{k.removeprefix('val_')} {row[k]:.4f}"
            for k in row
            if k.startswith("val_") and k not in known
        ]
        within = f" ({', '.join(terms)})" if terms else ""
        return (
            f"loss {row.get('train_loss', float('nan')):.3f}, val loss {row['val_loss']:.3f}"
            f"{within}, macro AUC {row['val_auc']:.3f}, accuracy {row['val_accuracy']:.3f}, "
            f"rate {row['rate']:.2g}, {row['seconds']:.0f} s"
        )

    def _after_epoch(self, row: dict[str, float]) -> None:
        if self.optim.schedule == "plateau":
            rate = self.plateau.step(row["val_loss"])
            for group in self.optimizers().param_groups:  # type: ignore[union-attr]
                group["lr"] = rate * group["factor"]
            if self.plateau.finished:
                self.trainer.should_stop = True
        elif (
            self.optim.patience
            and len(self.history) - 1 - best_epoch(self.history, self.choose) >= self.optim.patience
        ):
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
            for ps, factor in ((encoder, optim.encoder_rate), (rest, 1.0))
            if ps
        ]
        decay = optim.weight_decay
        optimizer: torch.optim.Optimizer
        if optim.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=decay)
        elif optim.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, weight_decay=decay)
        else:
            optimizer = torch.optim.AdamW(groups, weight_decay=decay)
        if optim.schedule in ("plateau", "constant"):
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
