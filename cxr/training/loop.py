"""Runs one training of a Learner: checkpoints, resume, one line an epoch in the log."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from cxr.training.learner import Learner
from cxr.workdir import log

BEST, LAST = "best.ckpt", "last.ckpt"


def fit_learner(
    learner: Learner,
    name: str,
    folder: Path,
    train: DataLoader[Any],
    val: DataLoader[Any],
    device: str,
    precision: str,
) -> None:
    """Train until the schedule or the stop rule ends it; `folder` then holds the best epoch
    (BEST, by `learner.choose`) and the last (LAST), from which a killed training goes on.

    Raises NonFiniteLossError, and KeyboardInterrupt when it was stopped.
    """
    optim = learner.optim
    # At the end of an epoch, or a resume would repeat it; and two of them, as one with `save_last`
    # writes no `last` in an epoch that brings no gain.
    often: Any = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    best = ModelCheckpoint(
        folder,
        Path(BEST).stem,
        monitor=learner.choose,
        mode="min" if learner.choose == "val_loss" else "max",
        save_weights_only=not optim.ema_decay,  # the averaged weights come by the whole road only
        **often,
    )
    newest = ModelCheckpoint(folder, Path(LAST).stem, **often)
    callbacks: list[pl.Callback] = [best, newest, EpochLine(name)]
    if optim.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=optim.ema_decay))
    trainer = pl.Trainer(
        accelerator=device,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=optim.epochs,
        gradient_clip_val=optim.clip_norm or None,
        callbacks=callbacks,
        logger=TensorBoardLogger(str(folder), name="", version="tensorboard"),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1_000_000,
        default_root_dir=str(folder),
    )
    last = folder / LAST
    if last.exists():
        log.info("%s: going on from the last finished epoch", name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        warnings.filterwarnings(
            "ignore", message=r".*module\(s\) in eval mode.*"
        )  # frozen on purpose
        warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
        trainer.fit(
            learner, train, val, ckpt_path=str(last) if last.exists() else None, weights_only=True
        )
    if trainer.interrupted:
        raise KeyboardInterrupt


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
