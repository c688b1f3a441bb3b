"""Makes one table: trains what is not finished, measures, and writes Markdown, HTML and JSON."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cxr.cli import to_plain
from cxr.films_table import read_films_table
from cxr.workdir import git_commit, library_versions, write_atomic, write_json
from reproducing.cells import Cell, Place, make_cells
from reproducing.engine import Engine, run_cells
from reproducing.experiment import Experiment, flatten
from reproducing.lungless import probe_rows, split_of
from reproducing.markdown import markdown
from reproducing.page import page_html
from reproducing.pictures import Picture, pictures_of
from reproducing.runners import find_runner
from reproducing.table import Made, Table, fill_rows, notes_of
from reproducing.work import Outcome

_SHOWN = ("python", "torch", "torchvision", "timm", "lightning")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """One table to be made. `command` is what a reader gives to make it again."""

    experiment: Experiment
    budget: str
    place: Place
    engine: Engine
    command: str
    docs: str = ""

    @property
    def stem(self) -> str:
        """Name of the table's files."""
        return f"{self.experiment.name}_{self.budget}_{self.place.input}"


def make_table(order: Order, tell: Tell) -> Table:
    """Train, measure, write; returns the table. Raises ValueError for wrong settings or data."""
    cells = make_cells(order.experiment, order.budget, order.place)
    train_cells(cells, order.engine, tell)
    table = collect(order, cells)
    write_table(order, table, pictures_of(table, cells, order.stem))
    return table


def train_cells(cells: Sequence[Cell], engine: Engine, tell: Tell) -> None:
    """Train what is not finished, with a line a cell and an estimate of what remains."""
    pending = {cell.key for cell in cells if not cell.finished}
    done = len({cell.key for cell in cells}) - len(pending)
    if done:
        tell(f"{done} of {done + len(pending)} cells are finished and are not trained again")
    started = time.monotonic()
    for n, outcome in enumerate(run_cells(cells, engine), 1):
        spent = time.monotonic() - started
        tell(progress(outcome, n, len(pending), spent))


def progress(outcome: Outcome, n: int, of: int, spent: float) -> str:
    """A line on a cell that ended; the estimate takes the rest to be like the mean so far."""
    how = f"failed: {outcome.reason}" if outcome.reason else f"{outcome.seconds:.0f} s"
    left = spent / n * (of - n)
    rest = f"; about {left / 60:.1f} min left" if n < of else ""
    return f"[{n}/{of}] {outcome.name}: {how}{rest}"


def collect(order: Order, cells: Sequence[Cell]) -> Table:
    """The table from what is finished, whatever that is."""
    experiment, place = order.experiment, order.place
    films = films_words(experiment, cells, place)
    rows, legend = fill_rows(experiment, cells, place, order.budget, data_sentence(order, films))
    split, why = split_of(cells)
    probe, reason = probe_rows(experiment, split, place)
    made = Made(
        command=order.command,
        made=datetime.now(UTC).date().isoformat(),
        commit=git_commit(),
        versions={k: v for k, v in library_versions().items() if k in _SHOWN},
        seed=place.seed,
        draws=place.draws,
        parts=split.parts if split else {},
        films=films,
    )
    return Table(
        experiment,
        order.budget,
        place.input,
        rows,
        legend,
        probe,
        why or reason,
        notes_of(experiment, order.budget, cells),
        made,
    )


def films_words(experiment: Experiment, cells: Sequence[Cell], place: Place) -> str:
    """The films that the table's sources hold, such as «kermany, 833 of 500 patients»."""
    wanted = sources_of(experiment, cells[0])
    rows = [
        r
        for r in read_films_table(Path(place.data) / "films.csv")
        if not wanted or r.source in wanted
    ]
    films = Counter(r.source for r in rows)
    patients = {s: len({r.patient_id for r in rows if r.source == s}) for s in films}
    return "; ".join(
        f"{s.replace('_', ' ')}, {n} of {patients[s]} patients" for s, n in sorted(films.items())
    )


def sources_of(experiment: Experiment, cell: Cell) -> tuple[str, ...]:
    """Sources of films that a cell takes; empty for all."""
    found = flatten(cell.settings).get(find_runner(experiment.runner).sources) or ()
    return tuple(str(s) for s in found)


def data_sentence(order: Order, films: str) -> str:
    """What differs in the films, for every cell; never silent, since the films are never those."""
    return f"films: {films} (paper: {order.experiment.paper_data})"


def write_table(order: Order, table: Table, pictures: Sequence[Picture] = ()) -> None:
    """OUT/<table>_<budget>_<input>.md, .html, .json and pictures; the Markdown and its pictures to
    `docs`, too."""
    out = Path(order.place.out)
    text = markdown(table, pictures)
    for folder in filter(None, (str(out), order.docs)):
        for picture in pictures:
            write_atomic(Path(folder) / picture.name, picture.png)
    write_atomic(out / f"{order.stem}.md", text)
    write_atomic(out / f"{order.stem}.html", page_html(table, pictures))
    plain = to_plain(table)
    json.dumps(plain)  # a wrong type must fail here, not write half
    write_json(
        out / f"{order.stem}.json",
        {
            "schema": "lungfirst.table",
            "version": 1,
            "means_nothing": order.budget == "smoke",
            **plain,
        },
    )
    if order.docs:
        write_atomic(Path(order.docs) / f"{order.stem}.md", text)
