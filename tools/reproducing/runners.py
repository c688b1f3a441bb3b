"""The systems that a table can train: name → configuration, training, and where paths go in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cxr.cli import from_plain, load_named, to_plain
from reproducing.experiment import flatten
from reproducing.place import FREE, Place, SplitOf, content_of, fingerprint

if TYPE_CHECKING:
    from classify.tasks.settings import FinetuneConfig, IscoreConfig


@dataclass(frozen=True)
class Runner:
    """One kind of training.

    Args:
        config: the configuration's dataclass, or its module:name.
        train: the training, which returns its folder with answers.csv, or its module:name, which
            is looked up late, since it imports torch.
        keys: what a run decides → the dotted key of the configuration that takes it. Without
            "crops" the system works on whole films only.
        free: further keys that do not change a result.
        files: files of the data folder that a result hangs on.
        protocol: key of the kind of split; empty where the system knows `only` that one.
        only: the kind of split where `protocol` is empty.
        sources: key of the sources of films that are taken.
        split_files: keys of files of cxr.split; drawn films bring one of their own.
        split: settings → the films learnt from and those tested, or its module:name; None where it
            is not known.
        later: keys, or groups of keys, that came when there were finished cells: at their default
            they do not make a cell another one.
        version: raised when the same configuration gives another result than before.
    """

    config: str | type[Any]
    train: str | Callable[[Any], Path]
    keys: Mapping[str, str]
    free: tuple[str, ...] = ()
    files: tuple[str, ...] = ("films.csv",)
    protocol: str = ""
    only: str = "pooled"
    sources: str = "sources"
    split_files: tuple[str, ...] = ()
    split: str | Callable[[dict[str, Any]], SplitOf] | None = None
    later: tuple[str, ...] = ()
    version: int = 1

    @property
    def config_class(self) -> type[Any]:
        """The configuration's dataclass."""
        found: type[Any] = load_named(self.config)
        return found


def split_of_single(settings: dict[str, Any]) -> SplitOf:
    """Of classify.single and what is built on it: the split is made again, from the same settings
    and seed."""
    from classify.dataset import load_films
    from classify.films import share_films
    from classify.tasks.settings import SingleConfig

    own = SingleConfig.__dataclass_fields__
    config = from_plain(SingleConfig, {k: v for k, v in settings.items() if k in own})
    films = load_films(config)
    rows = [case.row for case in films.cases]
    truths = {row.image: config.classes[k] for row, k in zip(rows, films.labels, strict=True)}
    trainings = [
        {
            part: [(rows[i].image, rows[i].patient_id) for i in numbers]
            for part, numbers in share.parts.items()
        }
        for share in share_films(rows, films.labels, config.protocol)
    ]
    return SplitOf.of(config.classes, truths, trainings)


def split_of_film_class(settings: dict[str, Any]) -> SplitOf:
    """Of detect.film_class: the split is made again, from the same settings and seed."""
    from detect.data import select_films
    from detect.film_class import FilmClassConfig
    from detect.film_class_answers import film_truth

    config = from_plain(FilmClassConfig, settings)
    classes = config.model.classes
    parts = select_films(config.data, config.seed, classes, trained=False).films
    truths: dict[str, str] = {}
    films: dict[str, list[tuple[str, str]]] = {part: [] for part in parts if parts[part]}
    for part, found in films.items():
        for film in parts[part]:
            truth = film_truth(film, config.data.class_from, classes)
            if truth:
                truths[film.file_name] = truth
                found.append((film.file_name, film.patient_id))
    return SplitOf.of(classes, truths, [films], config.answered_part)


@contextmanager
def shared_folder(out: str, kind: str, config: Any) -> Iterator[Path]:
    """OUT/shared/KIND-HASH for a cell that trains in OUT/cells/KEY, held for this process alone.

    HASH is over the films of `config.data` and `config.crops` and over its keys but those that
    change no result. `kind` says what is trained; change it when the same configuration gives
    another result than before.
    """
    flat = {k: content_of(k, v) for k, v in flatten(to_plain(config)).items() if k not in FREE}
    marks = fingerprint(Place(config.data, config.crops, ""), ("films.csv",))
    text = json.dumps([bool(config.crops), list(marks), flat], sort_keys=True)
    mark = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(out).parent.parent / "shared" / f"{kind}-{mark}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield folder


def iscore_cell(config: IscoreConfig) -> Path:
    """classify.iscore_train, its network in OUT/shared; returns the cell's folder."""
    from classify.tasks.select import train_iscore

    with shared_folder(config.out, "single", config.to_single()) as folder:
        return train_iscore(replace(config, trained=str(folder)))


def finetune_cell(config: FinetuneConfig) -> Path:
    """classify.finetune, its pretraining in OUT/shared; returns the cell's folder."""
    from classify.tasks.single import finetune

    if config.start == "own":
        return finetune(config)
    with shared_folder(config.out, "pretrain", config.to_pretraining()) as folder:
        shared = replace(config.pretraining, out=str(folder))
        return finetune(replace(config, pretraining=shared))


# What a run decides about each cell, by the field of cells.Place.
_PLACES = ("data", "crops", "out", "cache", "device", "workers", "seed", "draws")

_SINGLE: dict[str, Any] = {
    "keys": {**{name: name for name in _PLACES}, "split_seed": "protocol.seed"},
    "protocol": "protocol.kind",
    "split": split_of_single,
    "split_files": ("protocol.split",),
}

RUNNERS: dict[str, Runner] = {
    "single": Runner(
        "classify.tasks.settings:SingleConfig",
        "classify.tasks.single:train_single",
        **_SINGLE,
        later=("protocol.learn", "cxrnet"),
    ),
    "finetune": Runner(
        "classify.tasks.settings:FinetuneConfig",
        "reproducing.runners:finetune_cell",
        **_SINGLE,
    ),
    "iscore": Runner(
        "classify.tasks.settings:IscoreConfig",
        "reproducing.runners:iscore_cell",
        **_SINGLE,
        free=("trained",),
    ),
    "scxnn": Runner(
        "reproducing.scxnn:ScxnnConfig",
        "reproducing.scxnn:train_scxnn",
        {name: name for name in _PLACES},
        free=("evaluate",),
        only="file",
        split="reproducing.scxnn:split_of",
        split_files=("split",),
    ),
    "film_class": Runner(
        "detect.film_class:FilmClassConfig",
        "detect.film_class:train_film_class",
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
