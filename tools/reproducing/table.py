"""A table's finished cells put into the paper's layout, ready for Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from string import ascii_lowercase

from cxr.stats import Figure
from reproducing.cells import Cell, Place
from reproducing.differs import NAMES, differences, guesses
from reproducing.experiment import Experiment, Measure
from reproducing.figures import Found, measure_cell
from reproducing.work import failure, read_result, short_reason

TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_auc": "AUC (macro)",
    "macro_f1": "F1 (macro)",
    "lift": "Attention: lift in the lungs",
}
LIFTS = {"explanation": "Lift of its own map", "explanation_class": "Lift of that for the class"}
ATTENTION_FILMS = {"smoke": 8, "small": 120, "paper": 0}


@dataclass(frozen=True)
class Entry:
    """One measure of one cell. `state`: ok, missing (no cell or no figure) or failed."""

    paper: float | None
    ours: Figure | None
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """A cell of the table with all its measures, and the letters of what differs."""

    row: str
    column: str
    entries: dict[str, Entry]
    letters: tuple[str, ...]
    key: str
    seconds: float | None


@dataclass(frozen=True)
class ProbeRow:
    """What a model without lungs reaches on the same films."""

    name: str
    figures: dict[str, Figure | None]


@dataclass(frozen=True)
class Made:
    """How a table was made: nothing here names a folder of this machine."""

    command: str
    made: str
    commit: str
    versions: dict[str, str]
    seed: int
    draws: int
    parts: dict[str, dict[str, int]]
    films: str


@dataclass(frozen=True)
class Table:
    """Everything that the Markdown and the page show."""

    experiment: Experiment
    budget: str
    input: str
    rows: tuple[Row, ...]
    legend: tuple[tuple[str, str], ...]
    probe: tuple[ProbeRow, ...]
    probe_reason: str
    notes: tuple[str, ...]
    made: Made

    @property
    def failed(self) -> int:
        """Cells without a training that came to its end."""
        return sum(any(e.state == "failed" for e in row.entries.values()) for row in self.rows)

    @property
    def finished(self) -> int:
        """Cells with figures."""
        return sum(row.seconds is not None for row in self.rows)

    def cell(self, row: str, column: str) -> Row:
        """One cell."""
        return next(r for r in self.rows if (r.row, r.column) == (row, column))

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures with their titles."""
        return tuple(
            Measure(m.name, m.title or measure_title(m.name), m.ours_only)
            for m in self.experiment.measures
        )

    def title_of(self, measure: str) -> str:
        """A measure's title."""
        return next(m.title for m in self.measures if m.name == measure)


def measure_title(name: str) -> str:
    """A measure's name for a person."""
    if name in TITLES:
        return TITLES[name]
    group, _, rest = name.partition(".")
    return {
        "f1": f"F1 of {rest}",
        "auc": f"AUC of {rest}",
        "lift": LIFTS.get(rest, f"Lift, {NAMES.get(rest, rest)} alone"),
        "goes": f"Held-out films called {rest}",
        "kept": f"{rest}: kept for reading".capitalize(),
        "found": f"{rest}: found by its member".capitalize(),
        "features": f"Features {rest}",
        "gain": f"Gain in {rest.upper()} over all features",
    }.get(group, f"{group.capitalize()} of {rest}")


def fill_rows(
    experiment: Experiment, cells: Sequence[Cell], place: Place, budget: str, data: str = ""
) -> tuple[tuple[Row, ...], tuple[tuple[str, str], ...]]:
    """The cells' figures, and the legend of what differs: (letter, sentence).

    `data` is the sentence about films that differ from the paper's; it goes with every cell.
    """
    letters: dict[str, str] = {}
    names = letter_names()
    rows = []
    for cell in cells:
        sentences = differences(experiment, cell.settings, cell.paper)
        sentences = [data, *sentences] if data else sentences
        for sentence in sentences:
            if sentence not in letters:
                letters[sentence] = next(names)
        found, reason = _measure(cell, experiment, place, budget)
        entries = {
            m.name: _entry(experiment, cell, m.name, found, reason) for m in experiment.measures
        }
        seconds = float(read_result(cell)["seconds"]) if cell.finished else None
        ours = tuple(sorted((letters[s] for s in sentences), key=lambda x: (len(x), x)))
        rows.append(Row(cell.row, cell.column, entries, ours, cell.key, seconds))
    return tuple(rows), tuple((letter, sentence) for sentence, letter in letters.items())


def _measure(
    cell: Cell, experiment: Experiment, place: Place, budget: str
) -> tuple[Found | None, str]:
    if not cell.finished:
        return None, failure(cell)
    try:
        return measure_cell(cell, experiment.measures, place, ATTENTION_FILMS[budget]), ""
    except (ValueError, OSError) as error:
        return None, short_reason(error)


def _entry(
    experiment: Experiment, cell: Cell, measure: str, found: Found | None, reason: str
) -> Entry:
    paper = experiment.paper_figure(cell.row, cell.column, measure)
    if found is None:
        return Entry(paper, None, "failed" if reason else "missing", reason)
    ours = found.figures.get(measure)
    if ours is None or ours.value is None:
        return Entry(paper, None, "missing", found.reasons.get(measure, "undefined on these films"))
    return Entry(paper, ours, "ok")


def notes_of(experiment: Experiment, budget: str, cells: Sequence[Cell]) -> tuple[str, ...]:
    """The file's notes, the budget's, those of its rows and columns, and what had to be chosen."""
    notes = [*experiment.notes, *experiment.budgets[budget].notes]
    for line in (*experiment.rows, *experiment.columns):
        if budget in line.budgets:
            notes += [f"{line.name}: {note}" for note in line.budgets[budget].notes]
    guess = guesses(experiment, [cell.paper for cell in cells])
    return tuple(filter(None, [*notes, guess]))


def letter_names() -> Iterator[str]:
    """a, b … z, aa, ab …"""
    for length in count(1):
        yield from map("".join, product(ascii_lowercase, repeat=length))


def spans(letters: Sequence[str]) -> str:
    """Letters in short: a, b, c, e as «a–c, e»."""
    names = letter_names()
    place = {name: i for i, name in zip(range(2000), names, strict=False)}
    runs: list[list[str]] = []
    for letter in sorted(letters, key=place.__getitem__):
        if runs and place[letter] == place[runs[-1][-1]] + 1:
            runs[-1].append(letter)
        else:
            runs.append([letter])
    words = [", ".join(run) if len(run) < 3 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join(words)
