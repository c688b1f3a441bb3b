"""A cell's figures from its answers.csv, with intervals by patient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxr.answers import Answer, read_answers
from cxr.stats import Figure, Report
from reproducing.cells import Cell
from reproducing.engine import answers_folder, short_reason
from reproducing.experiment import OF_THE_TRAINING, Measure
from reproducing.place import Place

NOT_ITS = "does not apply"  # why a training has no figure that others of its table have


@dataclass(frozen=True)
class Found:
    """What one system answered, measured. `figures`: measure → figure, None where there is none;
    `reasons`: why a measure is missing."""

    figures: dict[str, Figure | None]
    films: int
    patients: int
    reasons: dict[str, str] = field(default_factory=dict)


def pick(report: Report, name: str) -> Figure | None:
    """A figure by its measure's name; None for a class that the system does not know.

    With two classes `f1` of one is the usual F1; `macro_f1` is the mean over classes.
    """
    group, _, class_name = name.partition(".")
    name = "class_accuracy" if class_name and group == "accuracy" else group
    found = getattr(report, name, None)
    if class_name:
        return found.get(class_name) if isinstance(found, dict) else None
    return found if isinstance(found, Figure) else None


def measure_answers(
    classes: Sequence[str],
    answers: Sequence[Answer],
    measures: Sequence[Measure],
    draws: int,
    seed: int,
) -> Found:
    """The measures that need nothing but answers."""
    from classify.tasks.single import report_of

    report = report_of(classes, answers, draws, seed)
    wanted = [m.name for m in measures if not (is_attention(m.name) or is_own(m.name))]
    return Found({n: pick(report, n) for n in wanted}, report.films, report.patients)


def is_attention(name: str) -> bool:
    """Does the measure need the network and the films?"""
    return name.partition(".")[0] == "lift"


def is_own(name: str) -> bool:
    """Is the measure one that only the training itself can know?"""
    return name.partition(".")[0] in OF_THE_TRAINING


def own_figures(folder: Path) -> dict[str, Figure]:
    """What a training left in figures.json beside its answers: {measure: {value, low, high, n}}."""
    path = folder / "figures.json"
    if not path.is_file():
        return {}
    return {k: Figure(**v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()}


def measure_cell(
    cell: Cell, measures: Sequence[Measure], place: Place, attention_films: int
) -> Found:
    """All measures of a finished cell; raises ValueError for a broken answers.csv.

    `attention_films`: the lift is measured on so many of the tested films; 0 for all.
    """
    folder = answers_folder(cell)
    found = measure_answers(
        *read_answers(folder / "answers.csv"), measures, place.draws, place.seed
    )
    own = own_figures(folder)
    figures = found.figures | {m.name: own.get(m.name) for m in measures if is_own(m.name)}
    reasons = {name: NOT_ITS for name, known in figures.items() if known is None}
    wanted = [m.name for m in measures if is_attention(m.name)]
    if not wanted:
        return Found(figures, found.films, found.patients, reasons)
    lifts, reason = _lifts(folder, place, attention_films)
    reasons |= dict.fromkeys((n for n in wanted if lifts.get(n) is None), reason)
    figures |= {name: lifts.get(name) for name in wanted}
    return Found(figures, found.films, found.patients, reasons)


def _lifts(folder: Path, place: Place, films: int) -> tuple[dict[str, Figure], str]:
    """lift and lift.NET of a training, and why there is none."""
    from reproducing.attention import AttentionConfig, attention_of

    device = {"gpu": "cuda"}.get(place.device, place.device)
    settings = AttentionConfig(films, draws=place.draws, seed=place.seed, device=device)
    try:
        found = attention_of(folder, place.data, place.crops, settings)
    except Exception as error:  # a table without the attention is better than none
        return {}, short_reason(error)
    return {"lift": found.figure} | {f"lift.{n}": f for n, f in found.nets.items()}, NOT_ITS
