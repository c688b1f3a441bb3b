"""The shortcut probe's rows under a table: the same split, the same measures, no lung."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from classify.cases import Case, select_cases
from cxr.films_table import read_films_table
from reproducing.cells import Cell, Place
from reproducing.experiment import Experiment
from reproducing.figures import is_attention, measure_answers
from reproducing.probe import Fold, probe_of
from reproducing.runners import find_runner
from reproducing.table import ProbeRow
from reproducing.work import answers_folder, short_reason

NOT_YET = "it needs the split of a finished cell"


def probe_rows(
    experiment: Experiment, cells: Sequence[Cell], place: Place
) -> tuple[tuple[ProbeRow, ...], str]:
    """The probe's rows, or none and why. A fault here must not cost the table."""
    cell = next((c for c in cells if c.finished), None)
    if cell is None:
        return (), NOT_YET
    try:
        return _rows(experiment, cell, place), ""
    except Exception as error:
        return (), short_reason(error)


def _rows(experiment: Experiment, cell: Cell, place: Place) -> tuple[ProbeRow, ...]:
    split = find_runner(cell.runner).split
    if split is None:
        raise ValueError(f"runner {cell.runner} does not tell its split")
    classes, truths, folds = split(cell.settings, answers_folder(cell))
    cases, index = _cases(place, truths)
    numbered: list[Fold] = [
        ([index[i] for i in train if i in index], [index[i] for i in test if i in index])
        for train, test in folds
    ]
    labels = [classes.index(truths[case.row.image]) for case in cases]
    cache = Path(place.out) / "cache"
    probe = probe_of(cases, labels, classes, numbered, place.data, cache)
    measures = [m for m in experiment.measures if not is_attention(m.name)]
    rows = []
    for name, (known, answers) in probe.answers.items():
        found = measure_answers(known, answers, measures, place.draws, place.seed)
        rows.append(ProbeRow(name, found.figures))
    return tuple(rows)


def _cases(place: Place, truths: dict[str, str]) -> tuple[list[Case], dict[str, int]]:
    """The films whose truth is known, and image → number."""
    data = Path(place.data)
    rows = [r for r in read_films_table(data / "films.csv") if r.image in truths]
    crops = Path(place.crops) if place.crops else None
    cases, _ = select_cases(rows, data, (), False, crops)
    return cases, {case.row.image: n for n, case in enumerate(cases)}
