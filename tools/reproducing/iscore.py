"""Cells that select features: those of one network take it from one training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from classify.iscore_train import IscoreConfig, train_iscore
from reproducing.shared import shared_folder


def iscore_cell(config: IscoreConfig) -> Path:
    """classify.iscore_train, its network in OUT/shared; returns the cell's folder."""
    with shared_folder(config.out, "single", config.to_single()) as folder:
        return train_iscore(replace(config, trained=str(folder)))
