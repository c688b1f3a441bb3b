"""The cells of a table: each is one training, known by the hash of all that its result hangs on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.cli import from_plain, to_plain
from cxr.manifest import read_manifest
from cxr.workdir import sha256_file
from reproducing.experiment import Experiment, flatten, merge
from reproducing.runners import Runner, find_runner

DRAWN = "drawn_films"  # folder and source of films that nobody took of anybody
SPLIT = "split.json"  # of the drawn films, in their folder

# None of these changes a result: two cells that differ in nothing else are one.
FREE = ("data", "crops", "out", "cache", "device", "workers", "draws")


@dataclass(frozen=True)
class Place:
    """What a run decides about every cell: where the films are, and on what it is trained.

    Args:
        data: folder with films.csv.
        crops: folder of detect.crop; empty for whole films.
        out: folder of all tables; a cell lies in out/cells/KEY.
        device: auto, cpu or gpu.
        workers: processes that make training pictures.
        seed: of everything random.
        draws: bootstrap draws of the intervals.
        sources: sources of films.csv in place of the table's own; empty leaves those.
    """

    data: str
    crops: str
    out: str
    device: str = "auto"
    workers: int = 0
    seed: int = 0
    draws: int = 1000
    sources: tuple[str, ...] = ()

    @property
    def input(self) -> str:
        """What the networks see."""
        return "crops" if self.crops else "films"

    @property
    def drawn(self) -> bool:
        """Are these the drawn films of the budget smoke?"""
        return self.sources == (DRAWN,)

    @property
    def split_seed(self) -> int:
        """The shuffle of patients hangs on the run's one seed, too."""
        return self.seed

    @property
    def cache(self) -> str:
        """Decoded pixels, shared by all cells."""
        return str(Path(self.out) / "cache")


@dataclass(frozen=True)
class Cell:
    """One training. `settings` are resolved: every key of the runner's configuration has its value.

    `paper` are the settings of the same cell at the budget paper, nested as in the file.
    """

    table: str
    row: str
    column: str
    runner: str
    key: str
    folder: Path
    settings: dict[str, Any]
    paper: dict[str, Any]

    @property
    def name(self) -> str:
        """Row and column for a person."""
        return " · ".join(filter(None, (self.row, self.column)))

    @property
    def finished(self) -> bool:
        """Was it trained to its end?"""
        return (self.folder / "result.json").is_file()


def make_cells(
    experiment: Experiment, budget: str, place: Place, with_paper: bool = True
) -> list[Cell]:
    """All cells at a budget; raises ValueError naming the cell whose settings are wrong.

    Resolving takes a while: without `with_paper` the cells' `paper` stays empty.
    """
    runner = find_runner(experiment.runner)
    if place.crops and "crops" not in runner.keys:
        raise ValueError(
            f"input must be films for {experiment.name}: its detector looks at whole "
            "films. Got crops instead."
        )
    marks = fingerprint(place, runner.files)
    cells = []
    for row, column in experiment.cells():
        try:
            settings = resolve(runner, experiment.settings(budget, row, column), place)
            wanted = experiment.settings("paper", row, column)
            paper = resolve(runner, wanted, place) if with_paper else {}
            check_protocol(runner, settings, experiment.protocol)
        except ValueError as error:
            where = " ".join(filter(None, (row.name, column.name)))
            raise ValueError(f"{experiment.name}, {where}, {budget}: {error}") from error
        key = cell_key(experiment.runner, settings, place, marks)
        folder = Path(place.out) / "cells" / key
        merge(settings, {runner.keys["out"]: str(folder)})
        cells.append(
            Cell(
                experiment.name,
                row.name,
                column.name,
                experiment.runner,
                key,
                folder,
                settings,
                paper,
            )
        )
    return cells


def resolve(runner: Runner, settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """Settings with the run's own put in and every default written out, checked by the runner's
    configuration; raises ValueError."""
    filled: dict[str, Any] = {}
    merge(filled, settings)
    merge(filled, {key: getattr(place, name) for name, key in runner.keys.items()})
    if place.sources:
        merge(filled, {runner.sources: list(place.sources)})
    if place.drawn:  # the drawn films' patients are in no other split
        own = str(Path(place.data) / SPLIT)
        merge(filled, {k: own for k in runner.split_files if flatten(filled).get(k)})
    config_class, _ = runner.load()
    plain: dict[str, Any] = to_plain(from_plain(config_class, filled))
    return plain


def check_protocol(runner: Runner, settings: dict[str, Any], wanted: str) -> None:
    """The resolved kind of split, defaults included, must be the table's."""
    kind = flatten(settings)[runner.protocol] if runner.protocol else runner.only
    if kind != wanted:
        raise ValueError(f"protocol must be the table's for every cell, {wanted}. Got {kind}.")


def cell_key(runner: str, settings: dict[str, Any], place: Place, marks: Sequence[str]) -> str:
    """16 hex digits of all that a result hangs on: settings, films, the runner and its version."""
    kind = find_runner(runner)
    free = {kind.keys[name] for name in FREE if name in kind.keys} | set(kind.free)
    flat = {k: content_of(k, v) for k, v in flatten(settings).items() if k not in free}
    if kind.later:
        usual = flatten(to_plain(kind.load()[0]()))
        later = [k for k in flat if any(f"{k}.".startswith(f"{name}.") for name in kind.later)]
        flat = {k: v for k, v in flat.items() if k not in later or v != usual.get(k)}
    text = json.dumps([runner, kind.version, place.input, list(marks), flat], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_of(key: str, value: Any) -> Any:
    """A file of first weights, or of a split, counts by what is in it, wherever it lies."""
    is_file = key.rpartition(".")[2] in ("weights", "split") and value and Path(value).is_file()
    return f"sha256:{sha256_file(value)}" if is_file else value


def fingerprint(place: Place, files: Sequence[str]) -> tuple[str, ...]:
    """Hashes of the tables that say which films there are, and of the crops' rows; paths and dates
    are left out, so that a copy of the same data counts as the same."""
    data = Path(place.data)
    if not (data / "films.csv").is_file():
        raise ValueError(
            f"data must be a folder with films.csv. Got {place.data!r} instead: give "
            "--data FOLDER, or see tools/explore.py --source."
        )
    marks = [sha256_file(data / f) for f in files if (data / f).is_file()]
    if place.crops:
        rows = [
            (Path(r.film).name, r.sha256, r.status, r.crop_xyxy)
            for r in read_manifest(Path(place.crops))[1]
        ]
        text = json.dumps(sorted(rows, key=str), default=list)
        marks.append(hashlib.sha256(text.encode()).hexdigest())
    return tuple(marks)
