"""The cells of a table: each is one training, known by the hash of all that its result hangs on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as Shown

from cxr.cli import from_plain, to_plain
from reproducing.experiment import BUDGETS, Experiment, flatten, merge
from reproducing.place import FREE, SPLIT, Place, content_of, fingerprint
from reproducing.runners import Runner, find_runner


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
    check_input(runner, experiment, bool(place.crops))
    marks = fingerprint(place, runner.files)
    cells = []
    for row, column in experiment.cells():
        try:
            settings = resolve(runner, experiment.settings(budget, row, column), place)
            wanted = experiment.settings("paper", row, column)
            paper = resolve(runner, wanted, place) if with_paper else {}
            kind = flatten(settings)[runner.protocol] if runner.protocol else runner.only
            if kind != experiment.protocol:  # defaults included
                raise ValueError(
                    f"protocol must be the table's for every cell, {experiment.protocol}. "
                    f"Got {kind}."
                )
        except ValueError as error:
            where = " ".join(filter(None, (row.name, column.name)))
            raise ValueError(f"{experiment.name}, {where}, {budget}: {error}") from error
        key = cell_key(experiment.runner, settings, place, marks)
        folder = Path(place.out) / "cells" / key
        merge(settings, {runner.keys["out"]: str(folder)})
        names = experiment.name, row.name, column.name, experiment.runner
        cells.append(Cell(*names, key, folder, settings, paper))
    return cells


def check_input(runner: Runner, experiment: Experiment, cropped: bool) -> None:
    """Raises ValueError for crops that the runner does not take."""
    if cropped and "crops" not in runner.keys:
        raise ValueError(
            f"input must be films for {experiment.name}: its detector looks at whole "
            "films. Got crops instead."
        )


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
    plain: dict[str, Any] = to_plain(from_plain(runner.config_class, filled))
    return plain


def cell_key(runner: str, settings: dict[str, Any], place: Place, marks: Sequence[str]) -> str:
    """16 hex digits of all that a result hangs on: settings, films, the runner and its version."""
    kind = find_runner(runner)
    free = {kind.keys[name] for name in FREE if name in kind.keys} | set(kind.free)
    flat = {k: content_of(k, v) for k, v in flatten(settings).items() if k not in free}
    if kind.later:
        usual = flatten(to_plain(kind.config_class()))
        later = [k for k in flat if any(f"{k}.".startswith(f"{name}.") for name in kind.later)]
        flat = {k: v for k, v in flat.items() if k not in later or v != usual.get(k)}
    text = json.dumps([runner, kind.version, place.input, list(marks), flat], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def list_tables(experiments: Sequence[Experiment], places: Mapping[str, Place]) -> Shown:
    """A row a table: study, cells, and the finished ones at each budget (`places`: budget →
    where to look)."""
    shown = Shown("table", "study", "cells", *BUDGETS, highlight=False)
    for experiment in experiments:
        done = [finished(experiment, budget, places[budget]) for budget in BUDGETS]
        cells = len(list(experiment.cells()))
        shown.add_row(experiment.name, experiment.study, str(cells), *done)
    return shown


def finished(experiment: Experiment, budget: str, place: Place) -> str:
    """How many cells are finished at a budget; «–» where there are no films to be trained on."""
    if not (Path(place.data) / "films.csv").is_file():
        return "–"
    if not any((Path(place.out) / "cells").glob("*/result.json")):
        return "0"
    try:
        cells = make_cells(experiment, budget, place, with_paper=False)
    except (ValueError, OSError):
        return "–"
    return str(sum(cell.finished for cell in cells))
