"""A table's cells as Markdown and HTML show them: figures from each answers.csv, with intervals by
patient, and in words what differs from the paper (words.yaml)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import groupby, product
from pathlib import Path
from string import ascii_lowercase
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from cxr.ledger import Answer, read_answers
from cxr.stats import Figure, Report
from cxr.training.recipe import flatten
from cxr.workdir import read_json
from reproducing.cells import Cell, ReproduceConfig, short_reason
from reproducing.experiment import OF_A_PART, OF_THE_TRAINING, Experiment, Measure
from reproducing.runners import find_runner

LETTERS = [*ascii_lowercase, *map("".join, product(ascii_lowercase, repeat=2))]  # a … z, aa, ab …
ATTENTION_FILMS = {"smoke": 8, "small": 120, "paper": 0}  # the lift is measured on; 0 for all
NOT_ITS = "does not apply"  # why a training has no figure that others of its table have
Figures = dict[str, Figure | None]  # measure → figure, None where there is none


@dataclass(frozen=True)
class Entry:
    """One measure of one cell. `paper` is a number, or words such as 109/162. `state`: ok, missing
    (no cell or no figure), failed, or quoted (the paper's alone)."""

    paper: float | str | None
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
class CountRow:
    """Films of one row of one of the paper's tables of films: column → the paper's number and ours,
    None where there is none."""

    title: str
    row: str
    counts: dict[str, tuple[int | None, int | None]]


@dataclass(frozen=True)
class Table:
    """Everything that the Markdown and the page show.

    `made`: command, made (the date), commit, versions, seed, draws, parts and films; nothing in it
    names a folder of this machine.
    """

    experiment: Experiment
    budget: str
    input: str
    rows: tuple[Row, ...]
    legend: tuple[tuple[str, str], ...]
    probe: tuple[ProbeRow, ...]
    probe_reason: str
    notes: tuple[str, ...]
    made: dict[str, Any]
    films: tuple[CountRow, ...] = ()

    @property
    def stem(self) -> str:
        """Name of the table's files."""
        return f"{self.experiment.name}_{self.budget}_{self.input}"  # as stem_of has it

    @property
    def smoke(self) -> bool:
        """Do its figures mean nothing?"""
        return self.budget == "smoke"

    @property
    def failed(self) -> int:
        """Cells without a training that came to its end."""
        return sum(any(e.state == "failed" for e in row.entries.values()) for row in self.rows)

    @property
    def finished(self) -> int:
        """Cells with figures."""
        return sum(row.seconds is not None for row in self.rows)

    @property
    def cells(self) -> int:
        """Rows that are trained here, or could be."""
        return sum(bool(row.key) for row in self.rows)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures with their titles."""
        return tuple(
            replace(m, title=m.title or measure_title(m)) for m in self.experiment.measures
        )


def stem_of(experiment: Experiment, config: ReproduceConfig) -> str:
    """Name of the files of a table that is still to be made."""
    return f"{experiment.name}_{config.budget}_{config.seen}"


def measure_title(measure: Measure) -> str:
    """A measure's name for a person."""
    words, rest = _words(), measure.of
    if title := words["measures"].get(measure.name):
        return title
    phrase = words["measures_of"].get(measure.group, f"{measure.group.capitalize()} of {{}}")
    rest = {"lift": _named, "gain": str.upper}.get(measure.group, str)(rest)
    said = phrase.format(rest)
    return said.capitalize().replace("Auc", "AUC") if phrase.startswith("{}") else said


def fill_rows(
    experiment: Experiment,
    cells: Sequence[Cell],
    config: ReproduceConfig,
    data: str = "",
    kept: Mapping[tuple[str, str], Kept] = MappingProxyType({}),
) -> tuple[tuple[Row, ...], tuple[tuple[str, str], ...]]:
    """Figures of all cells and quoted lines, and the legend of what differs: (letter, sentence).

    `data` is the sentence about films that differ from the paper's; it goes with every cell. `kept`
    are figures of cells that are not finished here (`read_kept`).
    """
    letters: dict[str, str] = {}
    rows, of = [], {(cell.row, cell.column): cell for cell in cells}
    for row, column in experiment.lines():
        place = row.name, column.name
        cell = of.get(place)
        if cell is None:
            quoted = {
                m.name: Entry(experiment.paper_figure(*place, m.name), None, "quoted")
                for m in experiment.measures
            }
            rows.append(Row(*place, quoted, (), "", None))
            continue
        sentences = [data] if data else []
        sentences += differences(experiment, cell.settings, cell.paper)
        once = dict.fromkeys(sentences)  # two phases may differ alike
        found = [letters.setdefault(sentence, LETTERS[len(letters)]) for sentence in once]
        known = kept.get(place) if not cell.finished else None
        entries = entries_of(cell, experiment, config, known)
        seconds = float(cell.result["seconds"]) if cell.finished else known and known.seconds
        ours = tuple(sorted(found, key=LETTERS.index))
        rows.append(Row(*place, entries, ours, cell.key, seconds))
    return tuple(rows), tuple((letter, sentence) for sentence, letter in letters.items())


class Kept(NamedTuple):
    """What an earlier run left of one cell: its figures, why it has no others, and its time."""

    figures: Figures
    reasons: dict[str, str]
    seconds: float


def read_kept(path: Path, cells: Sequence[Cell]) -> dict[tuple[str, str], Kept]:
    """(row, column) → what the JSON of an earlier run of the same table holds of the cells whose
    settings and films are still the same, which their keys tell; empty without such a file."""
    if not path.is_file():
        return {}
    keys, kept = {(cell.row, cell.column): cell.key for cell in cells}, {}
    for row in read_json(path)["rows"]:
        if keys.get(place := (row["row"], row["column"])) == row["key"]:
            known = row["figures"].items()
            reasons = {name: f for name, f in known if isinstance(f, str)}
            figures: Figures = {name: Figure(**f) for name, f in known if name not in reasons}
            kept[place] = Kept(figures, reasons, row["seconds"])
    return kept


def to_keep(table: Table) -> list[dict[str, Any]]:
    """The rows that `read_kept` reads."""
    return [
        {
            **{"row": row.row, "column": row.column, "key": row.key, "seconds": row.seconds},
            "figures": {n: asdict(e.ours) if e.ours else e.reason for n, e in row.entries.items()},
        }
        for row in table.rows
        if row.seconds is not None
    ]


def entries_of(
    cell: Cell,
    experiment: Experiment,
    config: ReproduceConfig,
    kept: Kept | None = None,
) -> dict[str, Entry]:
    """Measure → what is known of it, whatever became of the cell; `kept` counts where it is not
    finished here."""
    figures, reasons, _ = kept or Kept({}, {}, 0.0)
    failed = "" if kept else cell.failure
    if cell.finished:
        try:
            figures, reasons = measure_cell(cell, experiment.measures, config)
        except (ValueError, OSError) as error:
            failed = short_reason(error)
    entries = {}
    for name in (m.name for m in experiment.measures):
        paper, ours = experiment.paper_figure(cell.row, cell.column, name), figures.get(name)
        if ours is not None and ours.value is not None:
            entries[name] = Entry(paper, ours, "ok")
        elif failed or not (cell.finished or kept):
            entries[name] = Entry(paper, None, "failed" if failed else "missing", failed)
        else:
            reason = reasons.get(name, "undefined on these films")
            entries[name] = Entry(paper, None, "missing", reason)
    return entries


def measure_cell(
    cell: Cell, measures: Sequence[Measure], config: ReproduceConfig
) -> tuple[Figures, dict[str, str]]:
    """All measures of a finished cell, and why some have no figure; raises ValueError for a broken
    answers.csv.

    What the training alone knows it left in figures.json: {measure: {value, low, high, n}}.
    """
    folder, wanted = cell.answers, {m.name: m.group for m in measures}
    classes, answers = read_answers(folder / "answers.csv")
    figures = measure_answers(classes, answers, measures, config.draws, config.seed)
    path = folder / "figures.json"
    own = read_json(path) if path.is_file() else {}
    for name in (n for n, group in wanted.items() if group in OF_THE_TRAINING):
        figures[name] = Figure(**own[name]) if name in own else None
    reasons = {name: NOT_ITS for name, known in figures.items() if known is None}
    lifted = [name for name, group in wanted.items() if group in OF_A_PART]
    lifts, reason = _lifts(cell, config) if lifted else ({}, "")
    figures |= {name: lifts.get(name) for name in lifted}
    return figures, reasons | {name: reason for name in lifted if name not in lifts}


def measure_answers(
    classes: Sequence[str],
    answers: Sequence[Answer],
    measures: Sequence[Measure],
    draws: int,
    seed: int,
) -> Figures:
    """The measures that need nothing but answers."""
    from classify.tasks.single import report_of

    report, others = report_of(classes, answers, draws, seed), OF_A_PART + OF_THE_TRAINING
    return {m.name: _pick(report, m.name) for m in measures if m.group not in others}


def _pick(report: Report, name: str) -> Figure | None:
    """A figure by its measure's name; None for a class that the system does not know.

    With two classes `f1` of one is the usual F1; `macro_f1` is the mean over classes.
    """
    group, _, class_name = name.partition(".")
    if name == "mean_class_accuracy":
        return mean_class_accuracy(report.accuracy, len(report.classes))
    found = getattr(report, "class_accuracy" if class_name and group == "accuracy" else group, None)
    if class_name:
        return found.get(class_name) if isinstance(found, dict) else None
    return found if isinstance(found, Figure) else None


def mean_class_accuracy(accuracy: Figure, classes: int) -> Figure:
    """Mean of the K classes' own accuracies, one class against the rest: a wrong answer is wrong
    for two of them, so it is 1 − 2 (1 − accuracy) / K, and so are the ends of its interval."""

    def mean(value: float | None) -> float | None:
        return None if value is None else 1 - 2 * (1 - value) / classes

    return Figure(mean(accuracy.value), mean(accuracy.low), mean(accuracy.high), accuracy.n)


def _lifts(cell: Cell, config: ReproduceConfig) -> tuple[dict[str, Figure], str]:
    """lift and lift.NET of a training, and why there is none."""
    from reproducing.attention import attention_of

    films = config.data, config.crops, ATTENTION_FILMS[config.budget]
    how = config.draws, config.seed
    try:
        found = attention_of(cell.answers, *films, *how, device=config.device)
    except Exception as error:  # a table without the attention is better than none
        return {}, short_reason(error)
    return {"lift": found.figure} | {f"lift.{n}": f for n, f in found.nets.items()}, NOT_ITS


def notes_of(experiment: Experiment, budget: str, cells: Sequence[Cell]) -> tuple[str, ...]:
    """The file's notes, the budget's, those of its rows and columns, and what had to be chosen."""
    notes = [*experiment.notes, *experiment.budgets[budget].notes]
    for line in (*experiment.rows, *experiment.columns):
        if budget in line.budgets:
            notes += [f"{line.name}: {note}" for note in line.budgets[budget].notes]
    guess = guesses(experiment, [cell.paper for cell in cells])
    return tuple(filter(None, [*notes, guess]))


def spans(letters: Sequence[str]) -> str:
    """Letters in short: a, b, c, e as «a–c, e»."""
    words = []
    numbers = enumerate(sorted(map(LETTERS.index, letters)))
    for _, run in groupby(numbers, lambda pair: pair[1] - pair[0]):
        found = [LETTERS[number] for _, number in run]
        words.append(", ".join(found) if len(found) < 3 else f"{found[0]}–{found[-1]}")
    return ", ".join(words)


# Settings that two cells of one result may differ in without a reader caring.
_SILENT = re.compile(
    "data|crops|out|cache|device|workers|draws|seed|precision|accelerator|devices|bundle|"
    "picture_every|half|restart|split|follow|path"
)
_SHARED = ("parts", "per_label")  # their shares make one phrase, in this order:
_ORDER = ("train", "val", "test", "normal", "pneumonia", "bacterial", "viral", "covid")
_COPY = re.compile(r"(?<=^1 )copies")
_BEFORE = "pretraining."  # settings of what came before the training itself
# A network's name and its first weights make one phrase.
_PAIRS = {
    "backbone.name": "backbone.weights",
    "model.backbone": "model.weights",
    "member.encoder": "member.weights",
}


def differences(
    experiment: Experiment, ours: Mapping[str, Any], paper: Mapping[str, Any]
) -> list[str]:
    """A sentence for each setting in which `ours` (resolved) is not `paper` (resolved), in the
    order of the settings' fields."""
    mine, theirs = _spread(ours, paper), _spread(paper, ours)
    keys = find_runner(experiment.runner).keys
    free = {*keys.values(), *find_runner(experiment.runner).free}
    alone = mine.get("start") == "own"  # it has no pretraining
    sentences, told = [], set[str]()
    for key in {**theirs, **mine}:
        silent = key in free or _SILENT.fullmatch(key.rpartition(".")[2])
        if silent or key in told or mine.get(key) == theirs.get(key):
            continue
        if alone and key.startswith(_BEFORE):
            continue
        group = _group(key, {*mine, *theirs})
        if key in _PAIRS.values() and mine.get(group[0]) == theirs.get(group[0]):
            group = (key,)  # the same network from other weights
        told |= set(group)
        guessed = any(k in experiment.guessed for k in group)
        source = "paper not given, full recipe" if guessed else "paper"
        there = f"{source} {_say(group, theirs, alone=True)}"
        sentences.append(f"{_stage(key)}{_say(group, mine)} ({there})")
    if "crops" in keys and mine.get("crops"):
        sentences.append("crops of the thorax (paper whole films)")
    return sentences


def guesses(experiment: Experiment, papers: Sequence[Mapping[str, Any]]) -> str:
    """What the full recipe takes where the paper's is not known to us; empty when all is known.

    `papers`: the settings of every cell at the budget paper; a setting with several values among
    them is told with all of them.
    """
    every = [_spread(paper, paper) for paper in papers]
    said = []
    for key in experiment.guessed:
        if known := [flat for flat in every if key in flat]:
            group = (key,) if key in _PAIRS.values() else _group(key, set(known[0]))
            _, *others = dict.fromkeys(_say(group, flat, alone=True) for flat in known)
            said.append(_stage(key) + " or ".join([_say(group, known[0]), *others]))
    whole = "The paper as we have it does not give these, so the full recipe takes"
    return f"{whole}: {', '.join(said)}." if said else ""


def _stage(key: str) -> str:
    return "pretraining: " if key.startswith(_BEFORE) else ""


def _spread(settings: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key. A list of phases becomes their names, and phase by phase what is set
    in those that `other` has, too: `phases.hard.films`."""
    flat, theirs = flatten(settings), flatten(other)
    for key, value in list(flat.items()):
        if phases := _phases(value):
            flat[key] = list(phases)
            common = {n: p for n, p in phases.items() if n in _phases(theirs.get(key))}
            flat |= {f"{key}.{name}": v for name, v in flatten(common).items()}
    return flat


def _phases(value: Any) -> dict[str, dict[str, Any]]:
    """Name → the rest of each mapping of a list; empty for another value."""
    if not isinstance(value, list | tuple):
        return {}
    named = [dict(v) for v in value if isinstance(v, Mapping) and "name" in v]
    return {str(v.pop("name")): v for v in named}


def _group(key: str, keys: set[str]) -> tuple[str, ...]:
    """The settings that are told in one phrase with `key`."""
    for pair in _PAIRS.items():
        if key in pair and keys.issuperset(pair):
            return pair
    head = key.rpartition(".")[0]
    if head.endswith(_SHARED):  # three shares are one split
        return tuple(f"{head}.{name}" for name in _ORDER if f"{head}.{name}" in keys)
    return (key,)


@cache
def _words() -> dict[str, dict[str, str]]:
    text = Path(__file__).with_name("words.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def _say(group: Sequence[str], settings: Mapping[str, Any], alone: bool = False) -> str:
    """Settings in words; `alone` is the short form for the brackets."""
    key, value = group[0], settings.get(group[0])
    start, phrases = _words()["start"], _words()["settings"]
    if key in _PAIRS and len(group) > 1:
        name, weights = (str(settings.get(k)) for k in group)
        return f"{_words()['names'].get(name, name)} with {start.get(weights, weights)}"
    head, _, last = key.rpartition(".")
    if last in ("max_films", "sources") and not value:
        return "all" if alone else "all films"
    said = _value(value)
    if last in ("weights", "name"):
        return start.get(str(value), said)
    if head.endswith(_SHARED):
        head, _, last = head.rpartition(".")
        shares = [(k.rpartition(".")[2], settings[k]) for k in group if k in settings]
        said = ", ".join(f"{part} {_value(share)}" for part, share in shares)
    both = f"{head.rpartition('.')[2]}.{last}"  # a kind is a kind of what
    phrase = phrases.get(both) or phrases.get(last) or f"{last.replace('_', ' ')} {{}}"
    said = said if alone else phrase.format(said)
    return said.removesuffix("s") if said in ("1 epochs", "1 folds") else _COPY.sub("copy", said)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(_named, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value in ("", None, 0) else _named(value)


def _named(value: Any) -> str:
    return _words()["names"].get(str(value), str(value).replace("_", " "))
