"""A table as grids of texts in the paper's own layout; Markdown and HTML show the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cxr.stats import Figure
from reproducing.experiment import OF_A_CLASS, Measure
from reproducing.table import Entry, Row, Table, spans

NOT_GIVEN, NOT_TRAINED = "–", "not trained yet"
KEY = (
    "«Paper» is the paper's own figure on its own films, – one that is not known to us. «Ours» has "
    "a 95 % interval in brackets. The letters say what differs between the two."
)
SMOKE = (
    "This table only shows that everything runs. It was made at the budget smoke, with next to no "
    "training on next to no films, so its figures mean nothing and are left out."
)
MIXED = "No figure here was made by another kind of split than the others of this table."
SPLITS = {
    "pooled": "all films shared anew by patient",
    "official": "the set's published test films",
    "folds": "cross-validation: each film tested once",
    "file": "a split kept in a file",
}


@dataclass(frozen=True)
class Grid:
    """A title, a head of groups (title, its columns), and rows (name, a text for each column)."""

    title: str
    row_title: str
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def width(self) -> int:
        """Columns beside the rows' names."""
        return sum(len(columns) for _, columns in self.groups)


def grids(table: Table) -> list[Grid]:
    """One grid of all measures for a table with rows alone; else one for each measure."""
    if table.experiment.columns:
        return [_by_column(table, measure) for measure in table.measures]
    apart = _class_measures(table)
    together = [m for m in table.measures if all(m not in row for row in apart.values())]
    return [_by_measure(table, together), *([_by_class(table, apart)] if apart else [])]


def probe_grid(table: Table) -> Grid | None:
    """The shortcut probe by the same measures; None where there is none."""
    if not table.probe or table.budget == "smoke":
        return None
    apart = [m.name for found in _class_measures(table).values() for m in found]
    measures = [
        m for m in table.measures if m.name in table.probe[0].figures and m.name not in apart
    ]
    rows = [(p.name, tuple(number(p.figures[m.name]) for m in measures)) for p in table.probe]
    return Grid(
        "The same films without a lung",
        "A linear model on",
        tuple((m.title, ("ours",)) for m in measures),
        tuple(rows),
    )


def _class_measures(table: Table) -> dict[str, list[Measure]]:
    """Class → its measures, where several classes have the same ones, two at least: side by side
    with all others they would make a row that nobody can read."""
    classes: dict[str, list[Measure]] = {}
    for measure in table.measures:
        group, _, name = measure.name.partition(".")
        if name and group in OF_A_CLASS:
            classes.setdefault(name, []).append(measure)
    kinds = [[m.name.partition(".")[0] for m in found] for found in classes.values()]
    alike = len(kinds) > 1 and all(kind == kinds[0] for kind in kinds) and len(kinds[0]) > 1
    return classes if alike else {}


def _by_class(table: Table, classes: dict[str, list[Measure]]) -> Grid:
    """A row for each class of each system; without a column for the paper where it gives none."""
    first = next(iter(classes.values()))
    names = [m.name.partition(".")[0].replace("auc", "AUC") for m in first]
    named = {m for known in table.experiment.published for m in known.figures}
    bare = not any(m.name in named for found in classes.values() for m in found)
    shown = {
        name: [replace(m, ours_only=m.ours_only or bare) for m in found]
        for name, found in classes.items()
    }
    heads = [_heads(m) for m in next(iter(shown.values()))]
    groups = tuple((n[:1].upper() + n[1:], head) for n, head in zip(names, heads, strict=True))
    rows = []
    for row in table.rows:
        for name, measures in shown.items():
            texts = [t for m in measures for t in _texts(row.entries[m.name], m, table.budget)]
            rows.append((f"{row.row}: {name}", tuple(texts)))
    title = table.experiment.row_title or "System"
    return Grid("Each class against the rest", title, groups, tuple(rows))


def _by_measure(table: Table, measures: Sequence[Measure]) -> Grid:
    groups = [(m.title, _heads(m)) for m in measures]
    rows = []
    for row in table.rows:
        texts: list[str] = []
        for measure in measures:
            texts += _texts(row.entries[measure.name], measure, table.budget)
        rows.append((row.row, (*texts, _letters(row))))
    title = table.experiment.row_title or "System"
    return Grid("", title, (*groups, ("What differs", ("",))), tuple(rows))


def _by_column(table: Table, measure: Measure) -> Grid:
    experiment = table.experiment
    groups = [(c.name, (*_heads(measure), "differs")) for c in experiment.columns]
    rows = []
    for line in experiment.rows:
        texts: list[str] = []
        for column in experiment.columns:
            row = table.cell(line.name, column.name)
            texts += [*_texts(row.entries[measure.name], measure, table.budget), _letters(row)]
        rows.append((line.name, tuple(texts)))
    return Grid(measure.title, experiment.row_title or "System", tuple(groups), tuple(rows))


def _heads(measure: Measure) -> tuple[str, ...]:
    return ("ours",) if measure.ours_only else ("paper", "ours")


def _texts(entry: Entry, measure: Measure, budget: str) -> list[str]:
    if entry.state == "failed":
        ours = f"failed: {entry.reason}"
    elif entry.state == "missing":
        ours = entry.reason or NOT_TRAINED
    else:
        ours = "runs" if budget == "smoke" else number(entry.ours)
    if measure.ours_only:
        return [ours]
    return [NOT_GIVEN if entry.paper is None else f"{entry.paper:.3f}", ours]


def _letters(row: Row) -> str:
    return spans(row.letters) or "nothing"


def number(figure: Figure | None) -> str:
    """A figure with its 95 % interval; a count, such as 512 features, as it is."""
    if figure is None or figure.value is None:
        return "–"
    if figure.low is None and figure.value > 1 and figure.value == int(figure.value):
        return f"{figure.value:.0f}"
    if figure.low is None or figure.high is None:
        counted = figure.value > 1 and figure.value.is_integer()  # so many features
        return f"{figure.value:.0f}" if counted else f"{figure.value:.3f}"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def facts(table: Table) -> list[tuple[str, str]]:
    """What a reader must know before the figures: (what, text)."""
    made, experiment = table.made, table.experiment
    parts = ", ".join(
        f"{name} {p.get('films', '?')} films of {p.get('patients', '?')} patients"
        for name, p in made.parts.items()
    )
    first = " of the first fold" if experiment.protocol == "folds" else ""
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    return [
        ("Split", f"{experiment.protocol}: {SPLITS.get(experiment.protocol, '')}. {MIXED}"),
        ("The paper's films", experiment.paper_data),
        ("Films here", made.films),
        (f"Films by part{first}", parts or "not known before a cell is finished"),
        ("Networks see", "the thorax's crop" if table.input == "crops" else "the whole film"),
        ("Intervals", f"95 %, {made.draws:,} bootstrap draws of patients"),
        ("Seed", str(made.seed)),
        ("Made", f"{made.made}, code {made.commit or 'unknown'}, {versions}"),
        ("Command", made.command),
    ]


def headline(table: Table) -> str:
    """One sentence on how far the table is."""
    whole = len(table.rows)
    failed = f", {table.failed} failed" if table.failed else ""
    return f"{table.finished} of {whole} cells are trained{failed}."
