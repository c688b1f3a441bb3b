"""Imported boxes into a session: only where no human has answered yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cxr.boxes import clip_xyxy
from cxr.coco import CocoFilm, CocoSet
from labelling.film_finder import name_below
from labelling.label_sets import ticked
from labelling.session import PRELABELLED, SKIP_FLAGS, Answer, Session, SessionFilm

CARRIED_FLAGS = ("apices cut off",)  # those that say something of the box and ask for nothing


@dataclass
class FillReport:
    """Films by what became of their labels, by name.

    Attributes:
        filled: boxes set.
        skipped: films without a box whose flags say why (unreadable, not frontal).
        kept: a human has answered, or begun to.
        untouched: the imported box is a detector's that no human touched.
        boxless: the labels say that there is no box; a session needs a human for that.
        unknown: not of this session.
        faults: film and reason, where the session could not take the box.
    """

    filled: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)
    boxless: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)


def name_films(session: Session, films: Path) -> dict[str, SessionFilm]:
    """The session's films by their path relative to `films`; those outside keep their own name."""
    return {name_below(session.film_path(f), films) or f.film: f for f in session.films}


def fill_session(session: Session, coco: CocoSet, named: Mapping[str, SessionFilm]) -> FillReport:
    """Set the session's answers; to be called with the session locked."""
    report = FillReport()
    for film in coco.films:
        target = named.get(film.file_name)
        if target is None:
            report.unknown.append(film.file_name)
        elif _is_answered(session.answer(target)):
            report.kept.append(film.file_name)
        elif film.extra.get(PRELABELLED):
            report.untouched.append(film.file_name)
        else:
            _fill_one(session, target, film, coco.classes, report)
    return report


def _is_answered(answer: Answer) -> bool:
    """Whether a human said anything: an answer, a box still in doubt, a ticked flag, or something
    that cannot be read and may be an answer."""
    human = any(not box.prelabelled for box in answer.boxes)
    return answer.done or human or bool(answer.flags) or bool(answer.fault)


def _fill_one(
    session: Session,
    target: SessionFilm,
    film: CocoFilm,
    classes: tuple[str, ...],
    report: FillReport,
) -> None:
    name, flags = film.file_name, ticked(film.extra)
    try:
        if len(film.boxes_xyxy) > 1:
            raise ValueError(f"a session takes one box a film. Got {len(film.boxes_xyxy)}")
        if len(film.boxes_xyxy):
            box: np.ndarray = clip_xyxy(film.boxes_xyxy, target.size_hw)[0]
            session.set_answer(
                target,
                xyxy=box.tolist(),
                label=classes[film.labels[0]],
                flags=[f for f in flags if f in CARRIED_FLAGS],
                via="import",
            )
            report.filled.append(name)
        elif set(flags) & set(SKIP_FLAGS):
            session.set_answer(target, flags=[f for f in flags if f in SKIP_FLAGS], via="import")
            report.skipped.append(name)
        else:
            report.boxless.append(name)
    except ValueError as error:
        report.faults.append((name, str(error)))
