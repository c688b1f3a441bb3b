"""What goes out of a session or a COCO file, and what is left behind and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cxr.boxes import as_boxes
from cxr.coco import CocoFilm, CocoSet, read_coco
from labelling.film_finder import name_below
from labelling.label_sets import Unusable
from labelling.labelme_file import PRELABELLED, Shape
from labelling.session import Answer, Session, SessionFilm, is_session

_KEPT = ("patient_id", "label", "sublabel", "source")


@dataclass(frozen=True)
class Outgoing:
    """The films that go out, and the rest.

    Attributes:
        coco: films with boxes (N, 4) xyxy in film pixels; `extra["prelabelled"]` marks a box that
            no human touched.
        films: the folder that file names are relative to, None where unknown.
        faults: films that should go out and cannot.
        left: how many films stayed behind because of their state.
    """

    coco: CocoSet
    films: Path | None
    faults: list[Unusable] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


def read_outgoing(
    source: Path, films: Path | None, classes: Sequence[str], untouched: bool
) -> Outgoing:
    """Read a session or a COCO file.

    Args:
        films: the folder that file names shall be relative to; None keeps the source's own.
        classes: the labels that may go out, in their order; empty takes the source's.
        untouched: take pre-labels that no human touched too.

    Raises:
        FileNotFoundError, ValueError: for a source that cannot be read.
    """
    if films is not None and not films.is_dir():
        raise FileNotFoundError(f"films must be a folder. Got '{films}' instead.")
    if is_session(source):
        session = Session.open(source)
        return _read_session(session, films, tuple(classes) or session.classes, untouched)
    if not source.is_file():
        raise FileNotFoundError(
            f"source must be a session's folder or a COCO file. Got '{source}' instead."
        )
    try:
        coco = read_coco(source)
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"{source} must be a COCO file. {error}") from error
    return _take_classes(coco, films, tuple(classes) or coco.classes)


def _take_classes(coco: CocoSet, films: Path | None, classes: tuple[str, ...]) -> Outgoing:
    kept, faults = [], []
    for film in coco.films:
        labels = [coco.classes[i] for i in film.labels]
        foreign = sorted(set(labels) - set(classes))
        if foreign:
            faults.append(Unusable(film.file_name, _say_foreign(foreign[0], classes)))
        else:
            kept.append(replace(film, labels=tuple(classes.index(label) for label in labels)))
    return Outgoing(CocoSet(kept, classes, coco.info), films, faults)


def _read_session(
    session: Session, films: Path | None, classes: tuple[str, ...], untouched: bool
) -> Outgoing:
    faults: list[Unusable] = []
    left: Counter[str] = Counter()
    kept = []
    for film, answer in session.answers():
        box = answer.box or (_find_untouched(answer) if untouched else None)
        name = name_below(session.film_path(film), films) if films else film.film
        reason = _find_fault(film, answer, box, classes)
        if not reason and box and name is None:
            reason = f"its film lies outside {films}; pass --films with a folder that holds all"
        if reason:
            faults.append(Unusable(film.film, reason))
        elif box is None or name is None:
            left["doubtful" if "doubtful" in answer.flags else answer.state] += 1
        else:
            kept.append(_to_film(session, film, answer, box, name, classes))
    info = {"description": f"Boxes drawn by {session.annotator}", "session": session.session_id}
    return Outgoing(CocoSet(kept, classes, info), films or session.root, faults, left)


def _find_fault(
    film: SessionFilm, answer: Answer, box: Shape | None, classes: Sequence[str]
) -> str:
    if answer.fault and answer.state != "unreadable":
        return f"its label file {answer.fault}"
    human = answer.human
    if answer.box and len(human) > 1:
        return (
            f"{len(human)} boxes were drawn; delete the wrong one (`annotate.py check` lists such)"
        )
    if box and box.label not in classes:
        return _say_foreign(box.label, classes)
    return ""


def _find_untouched(answer: Answer) -> Shape | None:
    """The detector's box of a film that still waits for a human."""
    if answer.state != "todo":
        return None
    return next((b for b in answer.boxes if b.usable and b.prelabelled), None)


def _to_film(
    session: Session,
    film: SessionFilm,
    answer: Answer,
    box: Shape,
    name: str,
    classes: tuple[str, ...],
) -> CocoFilm:
    extra: dict[str, Any] = {k: getattr(film, k) for k in _KEPT if getattr(film, k)}
    if box.prelabelled:
        extra[PRELABELLED] = True
    else:
        extra["annotator"] = session.annotator
    flags = sorted(answer.flags - {"accepted"})
    if flags:
        extra["flags"] = flags
    return CocoFilm(name, film.size_hw, as_boxes(box.xyxy), (classes.index(box.label),), extra)


def _say_foreign(label: str, classes: Sequence[str]) -> str:
    return f"label {label!r} is not of {', '.join(classes) or 'no class'}"
