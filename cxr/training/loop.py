"""Runs one training of a Learner: checkpoints, resume, one line an epoch in the log."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader, Dataset

from cxr import draw
from cxr.plots import draw_history
from cxr.training.learner import Learner
from cxr.training.recipe import disk_need, require_writable
from cxr.workdir import log, write_atomic, write_json

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
    (BEST, by `learner.choose`) and the last (LAST), from which a killed training goes on.

    Args:
        learner: has the epochs, the gradient's clip and the moving average in its `optim`.
        name: of the training, in the log.
        folder: of the checkpoints.
        train: batches to learn from.
        val: batches to validate on.
        device: auto, cpu or cuda; gpu and Lightning's other accelerators are taken too.
        precision: auto (16-mixed on a GPU, 32 elsewhere) or any of Lightning's.
        devices: how many; above 1 trains with DDP.
        strategy: Lightning's.
        restart: begin anew although there is a checkpoint.
        events: folder of TensorBoard's events; None: `folder`.
        callbacks: what else looks on.

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
        sheet = draw.sheet([t for t, _ in made], [c for _, c in made], columns=6, tile=220)
        write_atomic(self.path, draw.encode_png(sheet))
        board: Any = trainer.logger
        board.experiment.add_image(
            self.path.stem.replace("_", " "), sheet, trainer.current_epoch, dataformats="HWC"
        )
