"""A cell's figures from its answers.csv, with intervals by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from classify.metrics import Figure, Report, classification_report
from cxr.answers import Answer, read_answers
from reproducing.attention import AttentionConfig, attention_of
from reproducing.cells import Cell, Place
from reproducing.experiment import Measure
from reproducing.work import answers_folder, short_reason

_LEAST = 1e-12  # a score of 0 has no logarithm


@dataclass(frozen=True)
class Found:
    """What one system answered, measured. `figures`: measure → figure, None where there is none;
    `reasons`: why a measure is missing."""

    figures: dict[str, Figure | None]
    films: int
    patients: int
    reasons: dict[str, str] = field(default_factory=dict)


def report_of(classes: Sequence[str], answers: Sequence[Answer], draws: int, seed: int) -> Report:
    """All figures of an answers.csv; the answer is the class of the largest score."""
    scores = np.array([answer.scores for answer in answers], float).reshape(-1, len(classes))
    labels = np.array([list(classes).index(answer.truth) for answer in answers], int)
    logits = np.log(np.maximum(scores, _LEAST))
    return classification_report(logits, labels, [a.patient for a in answers], classes, draws, seed)


def pick(report: Report, name: str) -> Figure | None:
    """A figure by its measure's name; None for a class that the system does not know.

    With two classes `f1` of one is the usual F1; `macro_f1` is the mean over classes.
    """
    group, _, class_name = name.partition(".")
    found = getattr(report, group, None)
    if class_name:
        return found.get(class_name) if isinstance(found, dict) else None
    return found if isinstance(found, Figure) else None


def measure_answers(
    classes: Sequence[str], answers: Sequence[Answer], measures: Sequence[Measure],
    draws: int, seed: int,
) -> Found:  # fmt: skip
    """The measures that need nothing but answers."""
    report = report_of(classes, answers, draws, seed)
    wanted = [m.name for m in measures if not is_attention(m.name)]
    return Found({n: pick(report, n) for n in wanted}, report.films, report.patients)


def is_attention(name: str) -> bool:
    """Does the measure need the network and the films?"""
    return name.partition(".")[0] == "lift"


def measure_cell(
    cell: Cell, measures: Sequence[Measure], place: Place, attention_films: int
) -> Found:
    """All measures of a finished cell; raises ValueError for a broken answers.csv.

    `attention_films`: the lift is measured on so many of the tested films; 0 for all.
    """
    folder = answers_folder(cell)
    found = measure_answers(*read_answers(folder / "answers.csv"), measures, place.draws,
                            place.seed)  # fmt: skip
    wanted = [m.name for m in measures if is_attention(m.name)]
    if not wanted:
        return found
    lifts, reason = _lifts(folder, place, attention_films)
    reasons = dict.fromkeys((n for n in wanted if lifts.get(n) is None), reason)
    figures = found.figures | {name: lifts.get(name) for name in wanted}
    return Found(figures, found.films, found.patients, reasons)


def _lifts(folder: Path, place: Place, films: int) -> tuple[dict[str, Figure], str]:
    """lift and lift.NET of a training, and why there is none."""
    device = {"gpu": "cuda"}.get(place.device, place.device)
    settings = AttentionConfig(films, draws=place.draws, seed=place.seed, device=device)
    try:
        found = attention_of(folder, place.data, place.crops, settings)
    except Exception as error:  # a table without the attention is better than none
        return {}, short_reason(error)
    return {"lift": found.figure} | {f"lift.{n}": f for n, f in found.nets.items()}, "not measured"
