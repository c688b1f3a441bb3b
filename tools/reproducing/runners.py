"""The systems that a table can train (name → configuration, training, where paths go in it), and
the marks by which the same films are known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cxr.cli import from_plain, load_named, to_plain
from cxr.data_folders import Data, DataFolders
from cxr.manifest import read_manifest
from cxr.rules import require
from cxr.training.recipe import flatten
from cxr.workdir import sha256_file

if TYPE_CHECKING:
    from classify.tasks.settings import FinetuneConfig, IscoreConfig

DRAWN = "drawn_films"  # folder and source of films that nobody took of anybody
SPLIT = "split.json"  # of the drawn films, in their folder

# None of these changes a result: two cells that differ in nothing else are one. Not the `free`
# fields of a training's recipe, which one training may change between a stop and the next start:
# its targets and split make another cell. The keys of finished cells hang on this list.
FREE = ("data", "crops", "out", "cache", "device", "workers", "draws")


def content_of(key: str, value: Any) -> Any:
    """A file of first weights, or of a split, counts by what is in it, wherever it lies."""
    is_file = key.rpartition(".")[2] in ("weights", "split") and value and Path(value).is_file()
    return f"sha256:{sha256_file(value)}" if is_file else value


def digest(*parts: Any) -> str:
    """16 hex digits of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(data: Data, crops: str = "", files: Sequence[str] = ()) -> list[str]:
    """Hashes of the tables that say which films there are, and of the crops' rows; paths and dates
    are left out, so that a copy of the same data counts as the same."""
    folders = DataFolders(data)
    if lost := [str(folder) for folder in folders if not (folder / "films.csv").is_file()]:
        raise ValueError(
            f"data must be a folder with films.csv. Got {lost[0]!r} instead: give "
            "--data FOLDER, or see tools/explore.py --source."
        )
    named = [folder / f for folder in folders for f in files or ("films.csv",)]
    marks = [sha256_file(path) for path in named if path.is_file()]
    if crops:
        rows = [
            (Path(r.film).name, r.sha256, r.status, r.crop_xyxy) for r in read_manifest(crops)[1]
        ]
        text = json.dumps(sorted(rows, key=str), default=list)
        marks.append(hashlib.sha256(text.encode()).hexdigest())
    return marks


@dataclass(frozen=True)
class SplitOf:
    """The split behind a cell.

    Attributes:
        classes: names of the truths.
        truths: image of films.csv → class.
        folds: the images learnt from and those tested, of each fold; one pair without folds.
        parts: part → films and patients, of the first fold.
        images: part → its films, of the first fold.
    """

    classes: tuple[str, ...]
    truths: dict[str, str]
    folds: list[tuple[list[str], list[str]]]
    parts: dict[str, dict[str, int]]
    images: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        films: Mapping[str, tuple[str, str | None]],
        trainings: Sequence[Mapping[str, Sequence[str]]],
        tested: str = "test",
    ) -> SplitOf:
        """From image → (patient, truth), and each fold's part → images; a film without a truth is
        in none."""
        truths = {image: truth for image, (_, truth) in films.items() if truth}
        known = [{p: [i for i in own if i in truths] for p, own in t.items()} for t in trainings]
        parts = {
            part: {"films": len(own), "patients": len({films[image][0] for image in own})}
            for part, own in known[0].items()
        }
        folds = [(p["train"], p[tested]) for p in known]
        return cls(tuple(classes), truths, folds, parts, known[0])


@dataclass(frozen=True)
class Runner:
    """One kind of training. What is named as module:name is imported late.

    Args:
        config: the configuration's dataclass, or its module:name.
        train: the training, which returns its folder with answers.csv, or its module:name.
        keys: what a run decides (ReproduceConfig.decides) → the dotted key of the configuration
            that takes it. Without "crops" the system works on whole films only.
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
        later_in: the same inside a list of settings: its key, and what came with its defaults.
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
    later_in: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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
    known = {
        row.image: (row.patient_id, config.classes[k])
        for row, k in zip(rows, films.labels, strict=True)
    }
    trainings = [
        {part: [rows[i].image for i in numbers] for part, numbers in share.parts.items()}
        for share in share_films(rows, films.labels, config.protocol)
    ]
    return SplitOf.of(config.classes, known, trainings)


def split_of_film_class(settings: dict[str, Any]) -> SplitOf:
    """Of detect.film_class: the split is made again, from the same settings and seed."""
    from detect.data import select_films
    from detect.film_class import FilmClassConfig
    from detect.film_class_answers import film_truth

    config = from_plain(FilmClassConfig, settings)
    classes, truth_from = config.model.classes, config.data.class_from
    parts = select_films(config.data, config.seed, classes, trained=False).films
    known = {
        film.file_name: (film.patient_id, film_truth(film, truth_from, classes))
        for films in parts.values()
        for film in films
    }
    named = {part: [film.file_name for film in films] for part, films in parts.items() if films}
    return SplitOf.of(classes, known, [named], config.answered_part)


@contextmanager
def shared_folder(out: str, kind: str, config: Any) -> Iterator[Path]:
    """OUT/shared/KIND-HASH for a cell that trains in OUT/cells/KEY, held for this process alone.

    HASH is over the films of `config.data` and `config.crops` and over its keys but those that
    change no result. `kind` says what is trained; change it when the same configuration gives
    another result than before.
    """
    flat = {k: content_of(k, v) for k, v in flatten(to_plain(config)).items() if k not in FREE}
    mark = digest(bool(config.crops), fingerprint(config.data, config.crops), flat)
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


_KEYS = {name: name for name in (*FREE, "seed")}
_SINGLE: dict[str, Any] = {
    "keys": {**_KEYS, "split_seed": "protocol.seed"},
    "protocol": "protocol.kind",
    "split": split_of_single,
    "split_files": ("protocol.split",),
}
_SETTINGS = "classify.tasks.settings"

RUNNERS: dict[str, Runner] = {
    "single": Runner(
        f"{_SETTINGS}:SingleConfig",
        "classify.tasks.single:train_single",
        **_SINGLE,
        later=("protocol.learn", "cxrnet", "guide"),
    ),
    "finetune": Runner(f"{_SETTINGS}:FinetuneConfig", finetune_cell, **_SINGLE, later=("guide",)),
    "iscore": Runner(
        f"{_SETTINGS}:IscoreConfig", iscore_cell, **_SINGLE, free=("trained",), later=("guide",)
    ),
    "scxnn": Runner(
        "reproducing.scxnn:ScxnnConfig",
        "reproducing.scxnn:train_scxnn",
        _KEYS,
        free=("evaluate",),
        only="file",
        split="reproducing.scxnn:split_of",
        split_files=("split",),
        later=("guide", "shared", "tested", "asked"),
        later_in={"phases": {"guide": None, "keep": "best"}},
    ),
    "film_class": Runner(
        "detect.film_class:FilmClassConfig",
        "detect.film_class:train_film_class",
        {
            **{"data": "data.data", "device": "accelerator"},
            **{name: name for name in ("out", "workers", "seed")},
        },
        free=("picture_every", "restart", "keep_checkpoints", "strategy", "devices"),
        files=("films.csv", "thorax.json"),
        sources="data.sources",
        split=split_of_film_class,
        later=("for_processing", "data.rest"),
    ),
}


def find_runner(name: str) -> Runner:
    """The runner of a name; raises ValueError, with the names there are, for another."""
    require(name in RUNNERS, f"runner must be one of {', '.join(RUNNERS)}", name)
    return RUNNERS[name]
