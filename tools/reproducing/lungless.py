"""The shortcut probe's rows under a table: the same split, the same measures, no lung."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from classify.films import Case, select_cases
from cxr.films_table import read_films_table
from detect.predict import DEFAULT_WEIGHTS
from reproducing.cells import Cell, Place
from reproducing.experiment import Experiment
from reproducing.figures import is_attention, is_own, measure_answers
from reproducing.probe import Fold, probe_of
from reproducing.runners import find_runner
from reproducing.splits import SplitOf
from reproducing.table import ProbeRow
from reproducing.work import short_reason

NOT_YET = "it needs the split of a finished cell"


def split_of(cells: Sequence[Cell]) -> tuple[SplitOf | None, str]:
    """The split that all cells of a table share, or why it is not known. A fault here must not
    cost the table."""
    cell = next((c for c in cells if c.finished), None)
    if cell is None:
        return None, NOT_YET
    split = find_runner(cell.runner).split
    if split is None:
        return None, f"runner {cell.runner} does not tell its split"
    try:
        return split(cell.settings), ""
    except Exception as error:
        return None, short_reason(error)


def probe_rows(
    experiment: Experiment, split: SplitOf | None, place: Place
) -> tuple[tuple[ProbeRow, ...], str]:
    """The probe's rows and which films they miss; or none and why."""
    if split is None:
        return (), NOT_YET
    try:
        return _rows(experiment, split, place)
    except Exception as error:
        return (), short_reason(error)


def _rows(experiment: Experiment, split: SplitOf, place: Place) -> tuple[tuple[ProbeRow, ...], str]:
    classes = split.classes
    cases, index = _cases(place, split.truths)
    numbered: list[Fold] = [
        ([index[i] for i in train if i in index], [index[i] for i in test if i in index])
        for train, test in split.folds
    ]
    labels = [classes.index(split.truths[case.row.image]) for case in cases]
    cache = Path(place.out) / "cache"
    probe = probe_of(cases, labels, classes, numbered, place.data, cache, DEFAULT_WEIGHTS)
    measures = [m for m in experiment.measures if not (is_attention(m.name) or is_own(m.name))]
    rows = []
    for name, (known, answers) in probe.answers.items():
        found = measure_answers(known, answers, measures, place.draws, place.seed)
        rows.append(ProbeRow(name, found.figures))
    missed = ", ".join(f"{n} {why}" for why, n in probe.left_out.items())
    return tuple(rows), f"films that the probe leaves out: {missed}" if missed else ""


def _cases(place: Place, truths: dict[str, str]) -> tuple[list[Case], dict[str, int]]:
    """The films whose truth is known, and image → number."""
    data = Path(place.data)
    rows = [r for r in read_films_table(data / "films.csv") if r.image in truths]
    crops = Path(place.crops) if place.crops else None
    cases, _ = select_cases(rows, data, (), False, crops)
    return cases, {case.row.image: n for n, case in enumerate(cases)}
