"""What tables there are, and what is finished of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table as Shown

from reproducing.cells import Place, make_cells
from reproducing.experiment import BUDGETS, Experiment


def list_tables(experiments: Sequence[Experiment], places: Mapping[str, Place]) -> Shown:
    """A row a table: study, cells, and the finished ones at each budget (`places`: budget →
    where to look)."""
    shown = Shown("table", "study", "cells", *BUDGETS, highlight=False)
    for experiment in experiments:
        done = [finished(experiment, budget, places[budget]) for budget in BUDGETS]
        cells = len(list(experiment.cells()))
        shown.add_row(experiment.name, experiment.study, str(cells), *done)
    return shown


def finished(experiment: Experiment, budget: str, place: Place) -> str:
    """How many cells are finished at a budget; «–» where there are no films to be trained on."""
    if not (Path(place.data) / "films.csv").is_file():
        return "–"
    if not any((Path(place.out) / "cells").glob("*/result.json")):
        return "0"
    try:
        cells = make_cells(experiment, budget, place, with_paper=False)
    except (ValueError, OSError):
        return "–"
    return str(sum(cell.finished for cell in cells))
