"""configs/experiments/NAME.yaml: one table of a paper as a list of trainings.

A file holds the paper's recipe (`base`), what its rows and columns change, the figures that the
paper gives, and what each budget changes so that the table can be made here. What nobody told us
is listed under `guessed`, so that no table passes our choice off as the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from cxr.cli import from_plain
from cxr.rules import require
from cxr.training.recipe import flatten

BUDGETS = ("smoke", "small", "paper")
MEASURES = (
    *("accuracy", "balanced_accuracy", "mean_class_accuracy"),
    *("macro_auc", "macro_f1", "lift"),
)
OF_A_CLASS = ("accuracy", "auc", "f1", "sensitivity", "specificity")
OF_A_PART = ("lift",)  # lift.NAME: of one network of a fusion
OF_A_TIER = ("normal", "target", "others")  # what a screened ensemble says of the tier's films
# a training leaves these in figures.json
OF_THE_TRAINING = (
    *("goes", "kept", "found", "gain", "features", "screen", "cleared"),
    *OF_A_TIER,
)
COUNTED_BY = ("part", "source", "label")


@dataclass(frozen=True)
class Change:
    """What a budget changes: settings, and notes that stand under the table."""

    set: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """A row or a column: its name, its settings, and what a budget changes in them. One that is
    `quoted` has the paper's figures alone: nothing is trained for it here."""

    name: str
    set: dict[str, Any] = field(default_factory=dict)
    budgets: dict[str, Change] = field(default_factory=dict)
    quoted: bool = False


@dataclass(frozen=True)
class Measure:
    """A figure of each cell. `name`: one of MEASURES, or one of OF_A_CLASS with .CLASS, or
    lift.NETWORK, or one that the training itself leaves in figures.json (OF_THE_TRAINING).
    With `ours_only` the paper did not measure it, so it has no column for it; a `counted` share is
    shown as a count of films, too."""

    name: str
    title: str = ""
    ours_only: bool = False
    counted: bool = False

    @property
    def group(self) -> str:
        """The name without its class or network."""
        return self.name.partition(".")[0]

    @property
    def of(self) -> str:
        """The class or network of the name; empty without one."""
        return self.name.partition(".")[2]


@dataclass(frozen=True)
class Published:
    """Figures (measure → value) that the paper gives for one cell; words where it gives a count,
    such as 109/162, or a bound."""

    row: str
    figures: dict[str, float | str]
    column: str = ""


@dataclass(frozen=True)
class Films:
    """How many films the paper had: row → column → number. Rows are classes (or `all`).

    `by`: part (of the split), source, or label (columns hard, whose region somebody drew, and
    weak).
    """

    title: str
    by: str
    figures: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Shown:
    """A picture that the training of one cell leaves beside its answers, shown under the table."""

    file: str
    caption: str
    row: str
    column: str = ""


@dataclass(frozen=True)
class Experiment:
    """One table; see the package's configs/experiments for files that use every field.

    `protocol` is the one kind of split of all its cells: figures of two kinds do not compare.
    `plot` names a measure to be drawn, too, against the numbers that the rows are named by. `data`
    are the folders that it takes where the command names none, `films` the paper's own counts.
    """

    study: str
    title: str
    about: str
    runner: str
    protocol: str
    base: dict[str, Any]
    rows: list[Line]
    measures: list[Measure]
    budgets: dict[str, Change]
    row_title: str = ""
    columns: list[Line] = field(default_factory=list)
    column_title: str = ""
    published: list[Published] = field(default_factory=list)
    paper_data: str = "not given"
    data: list[str] = field(default_factory=list)
    films: list[Films] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plot: str = ""
    pictures: list[Shown] = field(default_factory=list)
    name: str = ""

    def cells(self) -> Iterator[tuple[Line, Line]]:
        """Row and column of each cell, in reading order; one nameless column where none is, and
        none for quoted lines."""
        lines = self.lines()
        return ((row, column) for row, column in lines if not row.quoted and not column.quoted)

    def lines(self) -> Iterator[tuple[Line, Line]]:
        """As `cells`, the quoted ones too."""
        columns = self.columns or [Line("")]
        return ((row, column) for row in self.rows for column in columns)

    def settings(self, budget: str, row: Line, column: Line) -> dict[str, Any]:
        """Nested settings of a cell: base, budget, row, column, then what the budget changes in
        that row and column; the later wins."""
        layers = [self.base, self.budgets[budget].set, row.set, column.set]
        layers += [line.budgets[budget].set for line in (row, column) if budget in line.budgets]
        merged: dict[str, Any] = {}
        for layer in layers:
            merge(merged, layer)
        return merged

    def paper_figure(self, row: str, column: str, measure: str) -> float | str | None:
        """The paper's figure of a cell, None where it gives none."""
        for known in self.published:
            if (known.row, known.column) == (row, column) and measure in known.figures:
                return known.figures[measure]
        return None


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put `layer` over `into`, in place: groups are merged, all else is replaced.

    `optim.rate: 0.1` is the same as `optim: {rate: 0.1}`.
    """
    for key, value in layer.items():
        head, _, rest = str(key).partition(".")
        inner = {rest: value} if rest else value
        if isinstance(inner, Mapping):
            old = into.get(head)
            into[head] = old if isinstance(old, dict) else {}
            merge(into[head], inner)
        else:
            into[head] = deepcopy(inner)


def read_experiment(path: str | Path) -> Experiment:
    """Read and check one file; raises ValueError that names the file and what is wrong."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("the file must hold keys and values.")
        experiment = from_plain(Experiment, {**data, "name": path.stem})
        _check(experiment)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    return experiment


def find_experiments(folder: str | Path) -> dict[str, Path]:
    """Name → file of all tables, by name; raises ValueError for a folder without any."""
    found = {p.stem: p for p in sorted(Path(folder).glob("*.yaml"))}
    if not found:
        raise ValueError(
            f"experiments must be a folder with a YAML file for each table. "
            f"Got none in {folder}: run from the project's root."
        )
    return found


def _check(experiment: Experiment) -> None:
    every, columns = ", ".join(BUDGETS), experiment.columns
    if not experiment.rows or not experiment.measures:
        raise ValueError("rows and measures must name one each at least.")
    for what, lines in (("rows", experiment.rows), ("columns", columns)):
        names = [line.name for line in lines]
        rule = f"{what} must each have a name of their own"
        require(len(set(names)) == len(names) and "" not in names, rule, names)
        for line in lines:
            unknown = sorted(set(line.budgets) - set(BUDGETS))
            require(not unknown, f"budgets of {line.name} must be of {every}", unknown)
    found = list(experiment.budgets)
    require(set(found) == set(BUDGETS), f"budgets must be {every}", found)
    cells = {(row.name, column.name) for row, column in experiment.lines()}
    named = [(known.row, known.column) for known in experiment.published]
    for place in [*named, *((shown.row, shown.column) for shown in experiment.pictures)]:
        rule = "published and pictures must name a row and a column of the table"
        require(place in cells, rule, place)
    names = [measure.name for measure in experiment.measures]
    for name in [*names, *(n for known in experiment.published for n in known.figures)]:
        group, _, rest = name.partition(".")
        grouped = rest and group in OF_A_CLASS + OF_A_PART + OF_THE_TRAINING
        rule = (
            f"a measure must be one of {', '.join(MEASURES)}, or one of "
            f"{', '.join(OF_A_CLASS)} with .CLASS"
        )
        require(name in MEASURES or bool(grouped), rule, name)
        require(name in names, "published must give figures of the measures only", name)
    for counted in experiment.films:
        rule = f"films must be counted by {', '.join(COUNTED_BY)}"
        require(counted.by in COUNTED_BY, rule, counted.by)
    rule = "plot must be one of the measures"
    require(not experiment.plot or experiment.plot in names, rule, experiment.plot)
    # No cell of any budget may be split another way: an official test's figure beside a pooled one
    # says nothing (Kermany: about 0.92 against 0.98 for like networks).
    for budget, (row, column) in product(BUDGETS, experiment.cells()):
        settings = flatten(experiment.settings(budget, row, column))
        kind = settings.get("protocol.kind", experiment.protocol)
        if kind != experiment.protocol:
            raise ValueError(
                f"all cells must be split alike (protocol: {experiment.protocol}). Got "
                f"{kind} for {row.name} {column.name} at {budget}: make a table of its own."
            )
