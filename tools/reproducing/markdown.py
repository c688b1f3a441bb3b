"""A table as Markdown that reads well on a code host and as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cxr.page.words import printable
from reproducing.layout import KEY, SMOKE, Grid, facts, grids, headline, probe_grid
from reproducing.pictures import Picture
from reproducing.table import Table

# /home/someone/films/a.png in a message: nobody else has that folder
_PATH = re.compile(r"(?<![\w/:.~])~?/(?:[^\s/:'\"|]+/)+")


def markdown(table: Table, pictures: Sequence[Picture] = ()) -> str:
    """The whole file; no folder of this machine is named in it."""
    experiment = table.experiment
    lines = [f"# {_text(experiment.title)}", ""]
    lines += [f"{_text(experiment.study)}. Budget `{table.budget}`. {headline(table)}", ""]
    if table.budget == "smoke":
        lines += [f"> **{SMOKE}**", ""]
    lines += [_text(experiment.about), "", KEY, ""]
    for grid in grids(table):
        lines += [*([f"## {_text(grid.title)}", ""] if grid.title else []), *_grid(grid), ""]
    for picture in pictures:
        lines += [f"![{_text(picture.caption)}]({picture.name})", "", _text(picture.caption), ""]
    lines += ["## What differs from the paper", ""]
    lines += [f"- **{letter}** {_text(text)}" for letter, text in table.legend] or [
        "- nothing in the settings"
    ]
    lines += ["", *_probe(table)]
    if table.notes:
        lines += ["## Notes", "", *(f"- {_text(note)}" for note in table.notes), ""]
    lines += ["## How it was made", ""]
    for what, text in facts(table):
        shown = f"`{_plain(text)}`" if what == "Command" else _text(text)
        lines.append(f"- {what}: {shown}")
    return "\n".join(lines) + "\n"


def _probe(table: Table) -> list[str]:
    grid = probe_grid(table)
    if grid is None:
        why = "it only runs" if table.budget == "smoke" else table.probe_reason
        return ["## The same films without a lung", "", f"No shortcut probe: {_text(why)}.", ""]
    return [
        f"## {grid.title}",
        "",
        "Shortcut probe: logistic regressions on almost nothing, fitted on this table's training "
        "films and tested on its test films. A network is worth what it adds to these."
        + (f" ({_text(table.probe_reason)}.)" if table.probe_reason else ""),
        "",
        *_grid(grid),
        "",
    ]


def _grid(grid: Grid) -> list[str]:
    heads = [
        ": ".join(filter(None, (group, column)))
        for group, columns in grid.groups
        for column in columns
    ]
    rule = ["---", *["---:"] * len(heads)]
    rows = [[_text(name), *map(_text, texts)] for name, texts in grid.rows]
    return [_row([_text(grid.row_title), *map(_text, heads)]), _row(rule), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """A text that cannot break out of its cell, be taken for markup, or name a local folder."""
    safe = _plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("`", "'")
    safe = safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"(\*|(?<!\w)_|_(?!\w)|(?<=\])\()", r"\\\1", safe)


def _plain(text: str) -> str:
    return _PATH.sub("…/", printable(" ".join(text.split())))
