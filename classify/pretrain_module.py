"""Distorted films, and the training that restores them, as Lightning wants them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from classify.genesis import GenesisConfig, distort, draw_kinds
from classify.models.unet_cbam import UnetCbam
from classify.schedule import OptimConfig, PlateauHalving, cosine_factor
from classify.ssim import ssim

Key = tuple[int, int]  # epoch, and the film's number among the cached ones
Batch = dict[str, Tensor]


class EpochOrder(Sampler[Key]):
    """The training films in another order in each epoch, which Lightning tells by `set_epoch`.

    The epoch goes along with each film, so that its distortion hangs on seed, epoch and film alone:
    a training that was killed goes on as if it had not been, with any number of workers.
    """

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices, self.seed, self.epoch = list(indices), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.indices))
        return iter([(self.epoch, self.indices[i]) for i in order])


class DistortedFilms(Dataset[Batch]):
    """Cached films (N, S, S) uint8 by Key → {"film", "seen"}, each (1, S, S) float32 in [0, 1].

    `kinds` distorts each film in these ways; None draws them as in training.
    """

    def __init__(
        self, images: np.ndarray, config: GenesisConfig, seed: int,
        kinds: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self.images, self.config, self.seed, self.kinds = images, config, seed, kinds

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Batch:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        film = np.asarray(self.images[index]).astype(np.float32) / 255
        drawn = draw_kinds(self.config, rng)
        seen = distort(film, drawn if self.kinds is None else self.kinds, self.config, rng)
        return {"film": torch.from_numpy(film)[None], "seen": torch.from_numpy(seen)[None]}


class PretrainModule(pl.LightningModule):
    """Loss 1 − SSIM between restored and original film.

    `history` holds a row an epoch: epoch, rate, seconds, train_loss, val_loss, the mean absolute
    differences train_mae and val_mae, and val_untouched, the loss of the distorted films themselves
    (what a network has to beat).
    """

    def __init__(self, net: UnetCbam, optim: OptimConfig) -> None:
        super().__init__()
        self.net, self.optim = net, optim
        self.plateau = PlateauHalving(optim.rate, optim.patience, optim.factor, optim.floor_rate)
        self.history: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._began = time.monotonic()

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The loss and what is watched beside it, and the restored films (N, 1, S, S)."""
        restored = self.net(batch["seen"]).float()
        likeness = ssim(restored, batch["film"]).mean()
        mae = F.l1_loss(restored, batch["film"])
        return {"loss": 1 - likeness, "mae": mae}, restored

    def on_train_epoch_start(self) -> None:
        """A fresh sum of the losses."""
        self._sums, self._began = {}, time.monotonic()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Loss of one batch; raises FloatingPointError with its terms."""
        terms, _restored = self.losses(batch)
        if not torch.isfinite(terms["loss"]):
            shown = ", ".join(f"{k} {v.item():g}" for k, v in terms.items())
            raise FloatingPointError(
                f"the loss must be finite. Got {shown} in epoch {self.current_epoch}: "
                "lower the learning rate (optim.rate), or clip the gradient (optim.clip_norm)."
            )
        self._add("train", terms, len(batch["film"]))
        return terms["loss"]

    def validation_step(self, batch: Batch, _: int) -> None:
        """Adds up the losses until the epoch's end."""
        terms, _restored = self.losses(batch)
        terms["untouched"] = 1 - ssim(batch["seen"], batch["film"]).mean()
        self._add("val", terms, len(batch["film"]))

    def on_validation_epoch_end(self) -> None:
        """Logs the epoch, sets the next rate, and stops when the rule says so."""
        row = {"epoch": float(self.current_epoch), "rate": self._rate(),
               "seconds": time.monotonic() - self._began}  # fmt: skip
        for part in ("train", "val"):
            count = self._sums.get(f"{part}_n", 0.0)
            row |= {k: v / count for k, v in self._sums.items()
                    if k.startswith(f"{part}_") and not k.endswith("_n")}  # fmt: skip
        self.history.append(row)
        self.log_dict({k: v for k, v in row.items() if k != "epoch"}, prog_bar=False)
        self._after_epoch(row["val_loss"])

    def _after_epoch(self, loss: float) -> None:
        if self.optim.schedule == "plateau":
            rate = self.plateau.step(loss)
            for group in self.optimizers().param_groups:  # type: ignore[union-attr]
                group["lr"] = rate
            self.trainer.should_stop = self.trainer.should_stop or self.plateau.finished
        elif self.optim.patience:
            losses = [r["val_loss"] for r in self.history]
            if len(losses) - 1 - losses.index(min(losses)) >= self.optim.patience:
                self.trainer.should_stop = True

    def _rate(self) -> float:
        return float(self.optimizers().param_groups[-1]["lr"])  # type: ignore[union-attr]

    def _add(self, part: str, terms: dict[str, Tensor], films: int) -> None:
        for name, value in [*terms.items(), ("n", torch.ones(()))]:
            key = f"{part}_{name}"
            self._sums[key] = self._sums.get(key, 0.0) + value.item() * films

    def configure_optimizers(self) -> Any:
        """Optimiser over all weights, and its schedule by step."""
        optim, weights = self.optim, list(self.net.parameters())
        optimizer: torch.optim.Optimizer
        if optim.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                weights, optim.rate, momentum=0.9, nesterov=True, weight_decay=optim.weight_decay
            )
        else:
            kind = torch.optim.Adam if optim.optimizer == "adam" else torch.optim.AdamW
            optimizer = kind(weights, optim.rate, weight_decay=optim.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if optim.schedule == "onecycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, optim.rate, total_steps=steps + 1
            )
        elif optim.schedule == "cosine":
            warm = round(optim.warmup_epochs * steps / optim.epochs)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: cosine_factor(step, steps, warm)
            )
        else:  # plateau sets the rate itself, a constant one stays
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The history and the stop rule's state go along."""
        checkpoint["history"] = self.history
        checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And come back when a killed run is resumed."""
        self.history = list(checkpoint["history"])
        self.plateau.load_state_dict(checkpoint["plateau"])
