"""What all trainings share: a network in training, with its losses, epochs, rates and stop rule,
and the loop that runs it, with checkpoints, resume and one line an epoch in the log."""

from __future__ import annotations

import io
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cxr.draw import draw_history, encode_png, sheet
from cxr.stats import macro_auc, softmax
from cxr.training.recipe import OptimConfig, disk_need, require_writable
from cxr.workdir import log, write_atomic, write_json

Batch = dict[str, Tensor]


class NonFiniteLossError(FloatingPointError):
    """The loss became infinite or NaN: training on would only spoil the weights."""


def best_epoch(history: Sequence[Mapping[str, float]], choose: str) -> int:
    """Number, from 0, of the epoch that is kept: the first of equals; one without a value never is,
    unless none has one. A loss is best where it is lowest, any other column where it is highest."""
    sign = -1.0 if choose.endswith("loss") else 1.0
    values = [sign * row.get(choose, math.nan) for row in history]
    return max(range(len(values)), key=lambda k: -math.inf if math.isnan(values[k]) else values[k])


class PlateauHalving:
    """The thesis' rule: cut the rate after `patience` epochs without gain; end when it lies below
    `floor_rate` and another `patience` epochs bring no gain. A gain must exceed the share
    `least_gain` of the best loss."""

    _moving = ("rate", "best", "without_gain", "finished")

    def __init__(
        self, rate: float, patience: int, factor: float, floor_rate: float, least_gain: float = 0.0
    ) -> None:
        self.rate, self.patience, self.factor = rate, patience, factor
        self.floor_rate, self.least_gain = floor_rate, least_gain
        self.best = math.inf
        self.without_gain = 0
        self.finished = False

    def step(self, loss: float) -> float:
        """Tell it an epoch's validation loss; returns the rate of the next epoch."""
        if math.isinf(self.best) or loss < self.best - self.least_gain * abs(self.best):
            self.best, self.without_gain = loss, 0
            return self.rate
        self.without_gain += 1
        if self.without_gain >= self.patience:
            self.without_gain = 0
            if self.rate < self.floor_rate:
                self.finished = True
            else:
                self.rate *= self.factor
        return self.rate

    def state_dict(self) -> dict[str, float]:
        """For the checkpoint."""
        return {name: getattr(self, name) for name in self._moving}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """From the checkpoint."""
        for name in self._moving:
            setattr(self, name, state[name])


def cosine_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Factor on the rate at a step: a line from 0 to 1, then half a cosine down to 0.01."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


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


# --- the loop ---

BEST, LAST = "best.ckpt", "last.ckpt"
_USUAL = (  # what Lightning says of small trainings and of frozen networks
    ".*does not have many workers.*",
    ".*Checkpoint directory.*",
    ".*number of training batches.*",
    r".*module\(s\) in eval mode.*",
    ".*isinstance.treespec.*",
)


def fit(
    learner: Learner,
    name: str,
    folder: Path,
    train: DataLoader[Any],
    val: DataLoader[Any],
    device: str = "auto",
    precision: str = "auto",
    *,
    devices: str | int = 1,
    strategy: str = "auto",
    restart: bool = False,
    events: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    """Train until the schedule or the stop rule ends it; `folder` then holds the best epoch
    (BEST, by `learner.choose`) and the last (LAST), from which a killed training goes on, unless
    it is to `restart`. `name` stands in the log.

    `device` is auto, cpu or cuda, or any of Lightning's accelerators; `precision` auto (16-mixed on
    a GPU, 32 elsewhere) or any of Lightning's. More than one of the `devices` train with DDP.
    TensorBoard's `events` have a folder of their own, or `folder`.

    Raises NonFiniteLossError, ValueError where the checkpoints find no place, and
    KeyboardInterrupt when it was stopped.
    """
    optim, last = learner.optim, folder / LAST
    require_writable(folder, disk_need(learner.model))
    if restart:
        last.unlink(missing_ok=True)
    if precision == "auto":
        on_gpu = torch.cuda.is_available() and device in ("auto", "gpu", "cuda")
        precision = "16-mixed" if on_gpu else "32-true"
    # At the end of an epoch, or a resume would repeat it; and two of them, as one with `save_last`
    # writes no `last` in an epoch that brings no gain.
    often: Any = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(
        folder,
        Path(BEST).stem,
        monitor=learner.choose,
        mode="min" if learner.choose.endswith("loss") else "max",
        save_weights_only=not optim.ema_decay,  # the averaged weights come by the whole road only
        **often,
    )
    newest = ModelCheckpoint(folder, Path(LAST).stem, **often)
    watching: list[pl.Callback] = [best, newest, LearningRateMonitor(), EpochLine(name), *callbacks]
    if optim.ema_decay:
        watching.append(EMAWeightAveraging(decay=optim.ema_decay))
    trainer = pl.Trainer(
        accelerator=device,
        devices=devices,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=optim.epochs,
        gradient_clip_val=optim.clip_norm or None,
        callbacks=watching,
        logger=TensorBoardLogger(str(events or folder), name="", version="tensorboard"),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        default_root_dir=str(folder),
        plugins=[_WholeCheckpoints()],
    )
    if last.exists():
        log.info("%s: going on from the last finished epoch", name)
    with warnings.catch_warnings():
        for message in _USUAL:
            warnings.filterwarnings("ignore", message=message)
        trainer.fit(
            learner, train, val, ckpt_path=str(last) if last.exists() else None, weights_only=True
        )
    if trainer.interrupted:
        raise KeyboardInterrupt


class _WholeCheckpoints(TorchCheckpointIO):
    """Written whole or not at all: Lightning copies its own into place, and a full disk or a kill
    would leave a part, from which nothing can go on."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """As Lightning has it."""
        data = io.BytesIO()
        torch.save(checkpoint, data)
        write_atomic(path, data.getvalue())


def load_best(learner: Learner, folder: Path, which: str = BEST) -> None:
    """The weights of the best epoch, or of LAST, into `learner`, ready to answer on the CPU."""
    state = torch.load(folder / which, map_location="cpu", weights_only=True)
    learner.load_state_dict(state["state_dict"])
    learner.eval().to("cpu")


class EpochLine(pl.Callback):
    """One line an epoch in the run's log."""

    def __init__(self, name: str) -> None:
        self.name = name
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Loss, AUC and time of the epoch just ended."""
        assert isinstance(pl_module, Learner)
        epoch = int(pl_module.history[-1]["epoch"]) + 1
        log.info("%s epoch %d of %s: %s", self.name, epoch, trainer.max_epochs, pl_module.line())


class HistoryFile(pl.Callback):
    """The history so far in history.json, and `shown` of its columns drawn in curves.png."""

    def __init__(self, folder: Path, shown: Sequence[str]) -> None:
        self.path, self.shown = folder / "history.json", shown

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A checkpoint of a detector from before had no history along."""
        if trainer.ckpt_path and not pl_module.history and self.path.exists():
            rows = json.loads(self.path.read_text())
            pl_module.history = [r for r in rows if r["epoch"] < trainer.current_epoch]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """After each epoch."""
        if trainer.is_global_zero:
            write_json(self.path, rounded(pl_module.history))
            draw_history(pl_module.history, self.shown, self.path.with_name("curves.png"))


def rounded(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """As history.json has it: five digits behind the point."""
    return [{k: round(v, 5) for k, v in row.items()} for row in history]


Tile = tuple[np.ndarray, str]


class ValidationPicture(pl.Callback):
    """Twelve validation films each `every` epochs as one PNG; `tile` draws one and says how good
    it is, from the network, the film's picture (3, S, S) and its target."""

    def __init__(
        self, path: Path, films: Dataset[Any], every: int, tile: Callable[[Any, Any, Any], Tile]
    ) -> None:
        self.path, self.films, self.every, self.tile = path, films, every, tile

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw where it is time."""
        if (trainer.current_epoch + 1) % self.every or not trainer.is_global_zero:
            return
        films: Any = self.films
        chosen = range(0, len(films), max(1, len(films) // 12))[:12]
        with torch.inference_mode():
            made = [self.tile(pl_module.model, *films[i]) for i in chosen]
        picture = sheet([t for t, _ in made], [c for _, c in made], columns=6, tile=220)
        write_atomic(self.path, encode_png(picture))
        board: Any = trainer.logger
        board.experiment.add_image(
            self.path.stem.replace("_", " "), picture, trainer.current_epoch, dataformats="HWC"
        )
