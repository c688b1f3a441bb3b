"""The systems that a table can train: name → configuration, training, and where paths go in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproducing.splits import SplitOf, split_of_film_class, split_of_scxnn, split_of_single

Training = Callable[[Any], Path]


@dataclass(frozen=True)
class Runner:
    """One kind of training.

    Args:
        load: gives the configuration's dataclass and the training, which returns its folder with
            answers.csv; called late, since it imports torch.
        keys: what a run decides → the dotted key of the configuration that takes it. Without
            "crops" the system works on whole films only.
        free: further keys that do not change a result.
        files: files of the data folder that a result hangs on.
        protocol: key of the kind of split; empty where the system knows `only` that one.
        only: the kind of split where `protocol` is empty.
        sources: key of the sources of films that are taken.
        split_files: keys of files of cxr.split; drawn films bring one of their own.
        split: settings → the films learnt from and those tested; None where it is not known.
        later: keys, or groups of keys, that came when there were finished cells: at their default
            they do not make a cell another one.
        version: raised when the same configuration gives another result than before.
    """

    load: Callable[[], tuple[type[Any], Training]]
    keys: Mapping[str, str]
    free: tuple[str, ...] = ()
    files: tuple[str, ...] = ("films.csv",)
    protocol: str = ""
    only: str = "pooled"
    sources: str = "sources"
    split_files: tuple[str, ...] = ()
    split: Callable[[dict[str, Any]], SplitOf] | None = None
    later: tuple[str, ...] = ()
    version: int = 1


def _single() -> tuple[type[Any], Training]:
    from classify.singles.config import SingleConfig
    from classify.singles.fit import train_single

    return SingleConfig, train_single


def _finetune() -> tuple[type[Any], Training]:
    from classify.finetune import FinetuneConfig
    from reproducing.pretraining import finetune_cell

    return FinetuneConfig, finetune_cell


def _scxnn() -> tuple[type[Any], Training]:
    from reproducing.scxnn import ScxnnConfig, train_scxnn

    return ScxnnConfig, train_scxnn


def _iscore() -> tuple[type[Any], Training]:
    from classify.iscore_train import IscoreConfig
    from reproducing.iscore import iscore_cell

    return IscoreConfig, iscore_cell


def _film_class() -> tuple[type[Any], Training]:
    from detect.film_class import FilmClassConfig, train_film_class

    return FilmClassConfig, train_film_class


# What a run decides about each cell, by the field of cells.Place.
_PLACES = ("data", "crops", "out", "cache", "device", "workers", "seed", "draws")

RUNNERS: dict[str, Runner] = {
    "single": Runner(
        _single,
        {**{name: name for name in _PLACES}, "split_seed": "protocol.seed"},
        protocol="protocol.kind",
        split=split_of_single,
        split_files=("protocol.split",),
        later=("protocol.learn", "cxrnet"),
    ),
    "finetune": Runner(
        _finetune,
        {**{name: name for name in _PLACES}, "split_seed": "protocol.seed"},
        protocol="protocol.kind",
        split=split_of_single,
        split_files=("protocol.split",),
    ),
    "iscore": Runner(
        _iscore,
        {**{name: name for name in _PLACES}, "split_seed": "protocol.seed"},
        free=("trained",),
        protocol="protocol.kind",
        split=split_of_single,
        split_files=("protocol.split",),
    ),
    "scxnn": Runner(
        _scxnn,
        {name: name for name in _PLACES},
        free=("evaluate",),
        only="file",
        split=split_of_scxnn,
        split_files=("split",),
    ),
    "film_class": Runner(
        _film_class,
        {
            "data": "data.data",
            "out": "out",
            "device": "accelerator",
            "workers": "workers",
            "seed": "seed",
        },
        free=("picture_every", "restart", "keep_checkpoints", "strategy", "devices"),
        files=("films.csv", "thorax.json"),
        sources="data.sources",
        split=split_of_film_class,
    ),
}


def find_runner(name: str) -> Runner:
    """The runner of a name; raises ValueError, with the names there are, for another."""
    if name not in RUNNERS:
        raise ValueError(f"runner must be one of {', '.join(RUNNERS)}. Got {name!r} instead.")
    return RUNNERS[name]
