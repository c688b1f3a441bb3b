"""What all trainings in this package share: losses, epochs, rates, stop rule, optimiser."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from cxr.stats import macro_auc, softmax
from cxr.training.optim import OptimConfig, PlateauHalving, cosine_factor

Batch = dict[str, Tensor]


class NonFiniteLossError(FloatingPointError):
    """The loss became infinite or NaN: training on would only spoil the weights."""


def best_epoch(history: Sequence[Mapping[str, float]], choose: str) -> int:
    """Number, from 0, of the epoch that is kept: the first of equals; one without a value never is,
    unless none has one. A loss is best where it is lowest, any other column where it is highest."""
    sign = -1.0 if choose.endswith("loss") else 1.0
    values = [sign * row.get(choose, math.nan) for row in history]
    return max(range(len(values)), key=lambda k: -math.inf if math.isnan(values[k]) else values[k])


class Learner(pl.LightningModule):
    """A network in training; a subclass gives `losses`.

    `choose` is the column of `history` by which the best epoch is known (see `best_epoch`); after
    `stop_after` epochs without a better one training ends (0 never; None: the optimiser's
    patience, unless that is the plateau's). Here `model` has an `encoder`, whose rate may be
    another, and answers with logits; what is trained otherwise says so in `groups`,
    `validation_step` and `figures`.
    """

    nesterov = True
    least_gain = 0.0  # of the schedule plateau
    advice = "lower the learning rate, or clip the gradient (clip_norm)"

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        choose: str = "val_auc",
        stop_after: int | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.optim, self.choose = optim, choose
        waits = optim.patience if optim.schedule != "plateau" else 0
        self.stop_after = waits if stop_after is None else stop_after
        self.plateau = PlateauHalving(
            optim.rate, optim.patience, optim.factor, optim.floor_rate, self.least_gain
        )
        self.history: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._answers: list[tuple[Tensor, Tensor]] = []
        self._began = time.monotonic()

    def losses(self, batch: Any) -> tuple[dict[str, Tensor], Any]:
        """The loss (key `loss`) with its terms, and the logits (N, K), of one batch; of labels
        (N, M) those of each of M answers side by side, and the epoch's AUC is their mean."""
        raise NotImplementedError

    def on_train_epoch_start(self) -> None:
        """A fresh sum of the losses."""
        self._sums, self._began = {}, time.monotonic()

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Loss of one batch; raises NonFiniteLossError with its terms."""
        terms, _logits = self.losses(batch)
        if not torch.isfinite(terms["loss"]):
            shown = ", ".join(f"{k} {v.item():g}" for k, v in terms.items())
            raise NonFiniteLossError(
                f"the loss must be finite. Got {shown} in epoch {self.current_epoch}: "
                f"{self.advice}."
            )
        films = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        self._add("train", terms, len(films))
        return terms["loss"]

    def on_validation_epoch_start(self) -> None:
        """Forget the answers of the epoch before."""
        self._answers = []

    def validation_step(self, batch: Any, _: int) -> None:
        """Keeps logits and labels until the epoch's end."""
        terms, logits = self.losses(batch)
        self._add("val", terms, len(batch["label"]))
        self._answers.append((logits.float().cpu(), batch["label"].cpu()))

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        """The epoch's row of `history`, from the mean of each loss term (train_loss, val_loss)."""
        seconds = time.monotonic() - self._began
        epoch = float(self.current_epoch)
        row = {"epoch": epoch, "rate": self._rate(), "seconds": seconds, **means}
        if self._answers:  # none where a network does not classify
            logits = torch.cat([a for a, _ in self._answers]).numpy()
            labels = torch.cat([b for _, b in self._answers]).numpy()
            labels = labels.reshape(len(labels), -1)
            logits = logits.reshape(*labels.shape, -1)
            areas = [macro_auc(softmax(logits[:, m]), labels[:, m]) for m in range(labels.shape[1])]
            row["val_auc"] = float(np.mean([a for a in areas if not np.isnan(a)] or [np.nan]))
            row["val_accuracy"] = float((logits.argmax(2) == labels).mean())
        return row

    def on_validation_epoch_end(self) -> None:
        """Logs the epoch, sets the next rate, and stops when the rule says so."""
        means = {}
        for key, total in self._sums.items():
            part, term = key.split(".")
            if term != "n":
                means[f"{part}_{term}"] = float(total / self._sums[f"{part}.n"])
        row = self.figures(means)
        if self.trainer.world_size > 1:
            values = {k: torch.tensor(v, device=self.device) for k, v in row.items()}
            reduce = self.trainer.strategy.reduce
            row = {k: float(reduce(v, reduce_op="mean")) for k, v in values.items()}
        self.history.append(row)
        self.log_dict({k: v for k, v in row.items() if k != "epoch"})
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

    def plateau_loss(self, row: Mapping[str, float]) -> float:
        """What the schedule plateau wants lower."""
        return row["val_loss"]

    def _after_epoch(self, row: dict[str, float]) -> None:
        if self.optim.schedule == "plateau":
            rate = self.plateau.step(self.plateau_loss(row))
            for group in self.optimizers().param_groups:  # type: ignore[union-attr]
                group["lr"] = rate * group["factor"]
        late = len(self.history) - 1 - best_epoch(self.history, self.choose)
        if self.plateau.finished or (self.stop_after and late >= self.stop_after):
            self.trainer.should_stop = True

    def _rate(self) -> float:
        return float(self.optimizers().param_groups[-1]["lr"])  # type: ignore[union-attr]

    def _add(self, part: str, terms: dict[str, Tensor], n: int) -> None:
        for name, value in [*terms.items(), ("n", torch.ones(()))]:
            key = f"{part}.{name}"
            add = value.detach().float().cpu() * n
            self._sums[key] = self._sums.get(key, torch.zeros(())) + add

    def groups(self) -> list[dict[str, Any]]:
        """What is trained, each group with the `factor` on its rate."""
        encoder = [p for p in self.model.encoder.parameters() if p.requires_grad]
        known = {id(p) for p in encoder}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in known]
        return [
            {"params": encoder, "factor": self.optim.encoder_rate},
            {"params": rest, "factor": 1.0},
        ]

    def rate_factor(self, step: int, steps: int) -> float:
        """Factor on the rate at a step of so many, for the schedules cosine and constant."""
        if self.optim.schedule == "constant":
            return 1.0
        warm = round(self.optim.warmup_epochs * steps / self.optim.epochs)
        return cosine_factor(step, steps, warm)

    def configure_optimizers(self) -> Any:
        """Optimiser over `groups`, and the schedule by step."""
        optim, kinds = self.optim, torch.optim
        make: Any = {
            "sgd": partial(kinds.SGD, momentum=0.9, nesterov=self.nesterov),
            "adam": kinds.Adam,
            "adamw": kinds.AdamW,
        }[optim.optimizer]
        groups = [{"lr": optim.rate * g["factor"], **g} for g in self.groups() if g["params"]]
        optimizer = make(groups, weight_decay=optim.weight_decay)
        still = optim.schedule == "constant" and not optim.warmup_epochs
        if optim.schedule == "plateau" or still:
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule: torch.optim.lr_scheduler.LRScheduler
        if optim.schedule == "onecycle":
            rates = [g["lr"] for g in optimizer.param_groups]
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps + 1)
        else:
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: self.rate_factor(step, steps)
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The history and the stop rule's state go along."""
        checkpoint["history"] = self.history
        checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And come back when a killed run is resumed; a detector's old checkpoint has neither."""
        self.history = list(checkpoint.get("history", []))
        self.plateau.load_state_dict(checkpoint.get("plateau", self.plateau.state_dict()))
