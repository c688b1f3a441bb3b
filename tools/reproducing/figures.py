"""A cell's figures from its answers.csv, with intervals by patient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cxr.answers import Answer, read_answers
from cxr.stats import Figure, Report
from reproducing.cells import Cell, ReproduceConfig
from reproducing.engine import short_reason
from reproducing.experiment import OF_A_PART, OF_THE_TRAINING, Experiment, Measure

ATTENTION_FILMS = {"smoke": 8, "small": 120, "paper": 0}  # the lift is measured on; 0 for all
NOT_ITS = "does not apply"  # why a training has no figure that others of its table have
Figures = dict[str, Figure | None]  # measure → figure, None where there is none


@dataclass(frozen=True)
class Entry:
    """One measure of one cell. `state`: ok, missing (no cell or no figure) or failed."""

    paper: float | None
    ours: Figure | None
    state: str
    reason: str = ""


def entries_of(cell: Cell, experiment: Experiment, config: ReproduceConfig) -> dict[str, Entry]:
    """Measure → what is known of it, whatever became of the cell."""
    figures: Figures = {}
    reasons: dict[str, str] = {}
    failed = cell.failure
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
        elif failed or not cell.finished:
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
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
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
    found = getattr(report, "class_accuracy" if class_name and group == "accuracy" else group, None)
    if class_name:
        return found.get(class_name) if isinstance(found, dict) else None
    return found if isinstance(found, Figure) else None


def _lifts(cell: Cell, config: ReproduceConfig) -> tuple[dict[str, Figure], str]:
    """lift and lift.NET of a training, and why there is none."""
    from reproducing.attention import attention_of

    films = config.data, config.crops, ATTENTION_FILMS[config.budget]
    how = config.draws, config.seed
    try:
        found = attention_of(cell.answers, *films, *how, device=config.torch_device)
    except Exception as error:  # a table without the attention is better than none
        return {}, short_reason(error)
    return {"lift": found.figure} | {f"lift.{n}": f for n, f in found.nets.items()}, NOT_ITS
