"""Trains one single network, or one for each fold, and answers the films of the test part."""

from __future__ import annotations

from pathlib import Path

from classify.singles.config import SingleConfig


def train_single(config: SingleConfig) -> Path:
    """Train (or go on, or load what is finished); returns `config.out` with answers.csv."""
    raise NotImplementedError
