"""Cells that start from a pretraining: it is done once for all cells with the same one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from classify.finetune import FinetuneConfig, finetune
from reproducing.shared import shared_folder


def finetune_cell(config: FinetuneConfig) -> Path:
    """classify.finetune, its pretraining in OUT/shared; returns the cell's folder."""
    if config.start == "own":
        return finetune(config)
    with shared_folder(config.out, "pretrain", config.to_pretraining()) as folder:
        shared = replace(config.pretraining, out=str(folder))
        return finetune(replace(config, pretraining=shared))
