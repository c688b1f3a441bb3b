"""Pictures beside a table: its figures as curves, and what its trainings drew themselves."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from cxr.plots import LINES, new_figure, to_png
from reproducing.cells import Cell
from reproducing.table import Table
from reproducing.work import answers_folder


@dataclass(frozen=True)
class Picture:
    """A PNG, the name of its file beside the table, and what it shows."""

    name: str
    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """For a page that needs no other file."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


def pictures_of(table: Table, cells: Sequence[Cell], stem: str) -> list[Picture]:
    """The plot of a table that wants one (not at smoke, where figures mean nothing), and the files
    of finished cells that it shows; what a cell did not draw is left out."""
    experiment = table.experiment
    found = []
    if experiment.plot and table.budget != "smoke" and table.finished:
        caption = f"{table.title_of(experiment.plot)} by {experiment.row_title.lower()}"
        found.append(Picture(f"{stem}.png", f"{caption}, 95 % intervals by patient", plot(table)))
    for shown in experiment.pictures:
        cell = next(c for c in cells if (c.row, c.column) == (shown.row, shown.column))
        path = answers_folder(cell) / shown.file if cell.finished else None
        if path is not None and path.is_file():
            words = re.sub(r"\W+", "_", f"{cell.name}_{path.stem}").strip("_").lower()
            found.append(Picture(f"{stem}_{words}.png", shown.caption, path.read_bytes()))
    return found


def plot(table: Table) -> bytes:
    """The plotted measure of each column against the numbers that rows are named by, as PNG."""
    experiment, measure = table.experiment, table.experiment.plot
    canvas = new_figure(6.4, 4.2)
    axis = canvas.subplots()
    columns = [c.name for c in experiment.columns] or [""]
    for number, column in enumerate(columns):
        colour, style = LINES[number % 4]
        points = sorted(_points(table, column, measure))
        if points:
            x, value, low, high = zip(*points, strict=True)
            axis.plot(x, value, style, color=colour, label=column or experiment.title)
            axis.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    ticks = [row_number(row.name) for row in experiment.rows]
    axis.set_xscale("log")
    axis.set_xticks(ticks, [row.name for row in experiment.rows])
    axis.minorticks_off()
    axis.set(xlabel=experiment.row_title, ylabel=table.title_of(measure), title=experiment.title)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return to_png(canvas, dpi=140)


def row_number(name: str) -> float:
    """The number that a row is named by, such as «25 %»; raises ValueError where there is none."""
    found = re.search(r"\d+(\.\d+)?", name)
    if found is None:
        raise ValueError(f"rows of a table with plot must be named by a number. Got {name!r}.")
    return float(found.group())


def _points(table: Table, column: str, measure: str) -> list[tuple[float, float, float, float]]:
    points = []
    for row in table.rows:
        ours = row.entries[measure].ours
        if row.column == column and ours is not None and ours.value is not None:
            low = ours.value if ours.low is None else ours.low
            high = ours.value if ours.high is None else ours.high
            points.append((row_number(row.row), ours.value, low, high))
    return points
