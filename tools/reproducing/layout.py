"""A table as grids of texts in the paper's own layout; Markdown and HTML show the same ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

from cxr.draw import LINES, new_figure, to_data_uri, to_png
from cxr.page import printable
from cxr.page.build import page_text
from cxr.stats import Figure, in_words
from reproducing.cells import Cell
from reproducing.experiment import OF_A_CLASS, OF_A_TIER, Measure
from reproducing.table import Row, Table, spans

NOT_GIVEN, NOT_TRAINED = "–", "not trained yet"
KEY = (
    "«Paper» is the paper's own figure on its own films, – one that it does not give. «Ours» has "
    "a 95 % interval in brackets. The letters say what differs between the two."
)
SMOKE = (
    "This table only shows that everything runs. It was made at the budget smoke, with next to no "
    "training on next to no films, so its figures mean nothing and are left out."
)
ABOUT_PROBE = (
    "Shortcut probe: logistic regressions on almost nothing, fitted on this table’s training "
    "films and tested on its test films. A network is worth what it adds to these."
)
NOTHING_TO_PROBE = "no figure of this table is one that a linear model could have, too"
MIXED = "No figure here was made by another kind of split than the others of this table."
SPLITS = {
    "pooled": "all films shared anew by patient",
    "official": "the set's published test films",
    "folds": "cross-validation: each film tested once",
    "file": "a split kept in a file",
}


PROBE = "The same films without a lung"
Heads = tuple[str, tuple[str, ...]]  # a title, and the columns under it


@dataclass(frozen=True)
class Grid:
    """A title, a head of groups, and rows (name, a text for each column)."""

    title: str
    row_title: str
    groups: tuple[Heads, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def grids(table: Table) -> list[Grid]:
    """One grid of all measures for a table with rows alone; else one for each measure."""
    experiment, title = table.experiment, table.experiment.row_title or "System"
    if not experiment.columns:
        apart = _class_measures(table)
        together = [m for m in table.measures if all(m not in row for row in apart.values())]
        heads = (*(_heads(m) for m in together), ("What differs", ("",)))
        rows = tuple((row.row, _texts(table, row, together, True)) for row in table.rows)
        first = Grid("", title, heads, rows)
        return [first, _by_class(table, apart, title)] if apart else [first]
    of = {(row.row, row.column): row for row in table.rows}
    found = []
    for measure in table.measures:
        heads = tuple((c.name, (*_heads(measure)[1], "differs")) for c in experiment.columns)
        texts = {
            line.name: [
                text
                for column in experiment.columns
                for text in _texts(table, of[line.name, column.name], [measure], True)
            ]
            for line in experiment.rows
        }
        rows = tuple((name, tuple(own)) for name, own in texts.items())
        found.append(Grid(measure.title, title, heads, rows))
    return found


def probe_grid(table: Table) -> Grid | None:
    """The shortcut probe by the same measures; None where there is none."""
    if not table.probe or table.smoke:
        return None
    apart = [m for found in _class_measures(table).values() for m in found]
    known = table.probe[0].figures
    measures = [m for m in table.measures if m.name in known and m not in apart]
    if not measures:
        return None
    rows = [(p.name, tuple(number(p.figures[m.name]) for m in measures)) for p in table.probe]
    heads = tuple((m.title, ("ours",)) for m in measures)
    return Grid(PROBE, "A linear model on", heads, tuple(rows))


def _class_measures(table: Table) -> dict[str, list[Measure]]:
    """Class → its measures, where several classes have the same ones, two at least: side by side
    with all others they would make a row that nobody can read."""
    classes: dict[str, list[Measure]] = {}
    for measure in table.measures:
        if measure.of and measure.group in (*OF_A_CLASS, *OF_A_TIER):
            classes.setdefault(measure.of, []).append(measure)
    kinds = {name: tuple(m.group for m in found) for name, found in classes.items()}
    several = [kind for kind, n in Counter(kinds.values()).most_common() if n > 1 and len(kind) > 1]
    return {name: classes[name] for name, kind in kinds.items() if [kind] == several[:1]}


def _by_class(table: Table, classes: dict[str, list[Measure]], title: str) -> Grid:
    """A row for each class of each system; without a column for the paper where it gives none."""
    named = {m for known in table.experiment.published for m in known.figures}
    bare = not any(m.name in named for found in classes.values() for m in found)
    shown = {
        name: [replace(m, ours_only=m.ours_only or bare) for m in found]
        for name, found in classes.items()
    }
    first = next(iter(classes.values()))
    words = [m.group.replace("auc", "AUC") for m in first]
    heads = zip(words, next(iter(shown.values())), strict=True)
    groups = tuple((word[:1].upper() + word[1:], _heads(m)[1]) for word, m in heads)
    rows = [
        (f"{row.row}: {name.replace('_', ' ')}", _texts(table, row, measures))
        for row in table.rows
        for name, measures in shown.items()
    ]
    whole = "Each tier's films" if first[0].group in OF_A_TIER else "Each class against the rest"
    return Grid(whole, title, groups, tuple(rows))


def film_grids(table: Table) -> list[Grid]:
    """How many films the paper had and how many are here."""
    found = []
    for title, rows in groupby(table.films, lambda row: row.title):
        own = list(rows)
        heads = tuple((name.replace("_", " "), ("paper", "ours")) for name in own[0].counts)
        texts = [
            (row.row.replace("_", " "), tuple(map(_count, chain(*row.counts.values()))))
            for row in own
        ]
        found.append(Grid(title, "Films", heads, tuple(texts)))
    return found


def _count(films: int | None) -> str:
    return NOT_GIVEN if films is None else f"{films:,}"


def _heads(measure: Measure) -> Heads:
    return measure.title, ("ours",) if measure.ours_only else ("paper", "ours")


def _texts(
    table: Table, row: Row, measures: Sequence[Measure], letters: bool = False
) -> tuple[str, ...]:
    """What stands in a row under each measure: the paper's figure, if it gives any, and ours;
    and, where wanted, what differs."""
    texts = []
    for measure in measures:
        entry = row.entries[measure.name]
        if not measure.ours_only:
            texts.append(_paper(entry.paper))
        if entry.state == "ok":
            texts.append("runs" if table.smoke else number(entry.ours, measure.counted))
        elif entry.state == "quoted":
            texts.append(NOT_GIVEN)
        else:
            failed = "failed: " * (entry.state == "failed")
            texts.append(failed + entry.reason or NOT_TRAINED)
    told = spans(row.letters) or ("nothing" if row.key else NOT_GIVEN)
    return (*texts, *([told] if letters else []))


def _paper(figure: float | str | None) -> str:
    """The paper's figure, if it gives any; of a count also the share."""
    if not isinstance(figure, str):
        return NOT_GIVEN if figure is None else f"{figure:.3f}"
    part, _, whole = figure.partition("/")
    return f"{figure} = {int(part) / int(whole):.3f}" if whole.isdigit() else figure


def number(figure: Figure | None, counted: bool = False) -> str:
    """A figure with its 95 % interval; a count, such as 512 features, as it is; with `counted` a
    share as the count of films that it is."""
    if figure is None or figure.value is None:
        return "–"
    if counted:
        return f"{round(figure.value * figure.n)}/{figure.n} = {in_words(figure)}"
    counted = figure.low is None and figure.value > 1 and figure.value.is_integer()
    return f"{figure.value:.0f}" if counted else in_words(figure)


def facts(table: Table) -> list[tuple[str, str]]:
    """What a reader must know before the figures: (what, text)."""
    made, experiment = table.made, table.experiment
    parts = ", ".join(
        f"{name} {p['films']} films of {p['patients']} patients"
        for name, p in made["parts"].items()
    )
    first = " of the first fold" if experiment.protocol == "folds" else ""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return [
        ("Split", f"{experiment.protocol}: {SPLITS.get(experiment.protocol, '')}. {MIXED}"),
        ("The paper's films", experiment.paper_data),
        ("Films here", made["films"]),
        (f"Films by part{first}", parts or "not known before a cell is finished"),
        ("Networks see", "the thorax's crop" if table.input == "crops" else "the whole film"),
        ("Intervals", f"95 %, {made['draws']:,} bootstrap draws of patients"),
        ("Seed", str(made["seed"])),
        ("Made", f"{made['made']}, code {made['commit'] or 'unknown'}, {versions}"),
        ("Command", made["command"]),
    ]


def headline(table: Table) -> str:
    """One sentence on how far the table is."""
    failed = f", {table.failed} failed" if table.failed else ""
    return f"{table.finished} of {table.cells} cells are trained{failed}."


def markdown(table: Table, pictures: Sequence[Picture] = ()) -> str:
    """The whole file; no folder of this machine is named in it."""
    experiment, probe = table.experiment, probe_grid(table)
    lines = [f"# {_text(experiment.title)}", ""]
    lines += [f"{_text(experiment.study)}. Budget `{table.budget}`. {headline(table)}", ""]
    lines += [f"> **{SMOKE}**", ""] if table.smoke else []
    lines += [_text(experiment.about), "", KEY, ""]
    for grid in grids(table):
        lines += [*([f"## {_text(grid.title)}", ""] if grid.title else []), *_grid(grid), ""]
    for picture in pictures:
        lines += [f"![{_text(picture.caption)}]({picture.name})", "", _text(picture.caption), ""]
    for grid in film_grids(table):
        lines += [f"## {_text(grid.title)}", "", *_grid(grid), ""]
    legend = [f"- **{letter}** {_text(text)}" for letter, text in table.legend]
    lines += ["## What differs from the paper", "", *(legend or ["- nothing in the settings"]), ""]
    lines += [f"## {PROBE}", ""]
    if probe is None:
        why = "it only runs" if table.smoke else table.probe_reason or NOTHING_TO_PROBE
        lines += [f"No shortcut probe: {_text(why)}.", ""]
    else:
        missed = f" ({_text(table.probe_reason)}.)" if table.probe_reason else ""
        lines += [ABOUT_PROBE + missed, "", *_grid(probe), ""]
    if table.notes:
        lines += ["## Notes", "", *(f"- {_text(note)}" for note in table.notes), ""]
    lines += ["## How it was made", ""]
    for what, text in facts(table):
        lines.append(f"- {what}: " + (f"`{_plain(text)}`" if what == "Command" else _text(text)))
    return "\n".join(lines) + "\n"


def _grid(grid: Grid) -> list[str]:
    heads = [f"{group}: {c}" if c else group for group, columns in grid.groups for c in columns]
    lines = [[grid.row_title, *heads], *([name, *texts] for name, texts in grid.rows)]
    head, *rows = (f"| {' | '.join(map(_text, line))} |" for line in lines)
    return [head, f"| --- |{' ---: |' * len(heads)}", *rows]


# /home/someone/films/a.png in a message: nobody else has that folder
_PATH = re.compile(r"(?<![\w/:.~])~?/(?:[^\s/:'\"|]+/)+")


def _plain(text: str) -> str:
    return _PATH.sub("…/", printable(" ".join(text.split())))


def _text(text: str) -> str:
    """A text that cannot break out of its cell, be taken for markup, or name a local folder."""
    safe = _plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("`", "'")
    safe = safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"(\*|(?<!\w)_|_(?!\w)|(?<=\])\()", r"\\\1", safe)


class Picture(NamedTuple):
    """A PNG, the name of its file beside the table, and what it shows."""

    name: str
    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """For a page that needs no other file."""
        return to_data_uri(self.png)


def pictures_of(table: Table, cells: Sequence[Cell], kept: Path | None = None) -> list[Picture]:
    """The plot of a table that wants one (not at smoke, where figures mean nothing), and the files
    of finished cells that it shows, else those that an earlier run left in the folder `kept`; what
    a cell did not draw is left out."""
    experiment = table.experiment
    found = []
    if experiment.plot and not table.smoke and table.finished:
        measure = next(m for m in table.measures if m.name == experiment.plot)
        caption = f"{measure.title} by {experiment.row_title.lower()}, 95 % intervals by patient"
        found.append(Picture(f"{table.stem}.png", caption, plot(table, measure)))
    for shown in experiment.pictures:
        cell = next(c for c in cells if (c.row, c.column) == (shown.row, shown.column))
        words = re.sub(r"\W+", "_", f"{cell.name}_{Path(shown.file).stem}").strip("_").lower()
        name = f"{table.stem}_{words}.png"
        path = cell.answers / shown.file if cell.finished else (kept or Path()) / name
        if path.is_file() and (cell.finished or kept):
            found.append(Picture(name, shown.caption, path.read_bytes()))
    return found


def plot(table: Table, measure: Measure) -> bytes:
    """The measure of each column against the numbers that rows are named by, as PNG."""
    experiment = table.experiment
    canvas = new_figure(6.4, 4.2)
    axis = canvas.subplots()
    for n, column in enumerate([c.name for c in experiment.columns] or [""]):
        colour, style = LINES[n % 4]
        points = []
        for row in table.rows:
            ours = row.entries[measure.name].ours
            if row.column == column and ours is not None and ours.value is not None:
                low, high = (ours.value if end is None else end for end in (ours.low, ours.high))
                points.append((row_number(row.row), ours.value, low, high))
        if points:
            x, value, lows, highs = zip(*sorted(points), strict=True)
            axis.plot(x, value, style, color=colour, label=column or experiment.title)
            axis.fill_between(x, lows, highs, color=colour, alpha=0.13, linewidth=0)
    ticks = [row_number(row.name) for row in experiment.rows]
    axis.set_xscale("log")
    axis.set_xticks(ticks, [row.name for row in experiment.rows])
    axis.minorticks_off()
    axis.set(xlabel=experiment.row_title, ylabel=measure.title, title=experiment.title)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return to_png(canvas, dpi=140)


def row_number(name: str) -> float:
    """The number that a row is named by, such as «25 %»; raises ValueError where there is none."""
    found = re.search(r"\d+(\.\d+)?", name)
    if found is None:
        raise ValueError(f"rows of a table with plot must be named by a number. Got {name!r}.")
    return float(found.group())


def page_html(table: Table, pictures: Sequence[Picture] = ()) -> str:
    """The whole page."""
    return page_text(
        Path(__file__).with_name("page.html"),
        table=table,
        smoke=SMOKE if table.smoke else "",
        headline=headline(table),
        key=KEY,
        grids=[*grids(table), *film_grids(table)],
        probe=probe_grid(table),
        probe_title=PROBE,
        about_probe=ABOUT_PROBE,
        facts=facts(table),
        pictures=pictures,
        probe_reason="this budget only shows that it runs"
        if table.smoke
        else table.probe_reason or NOTHING_TO_PROBE * (probe_grid(table) is None),
    )
