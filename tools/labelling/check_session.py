"""The faults of a labelling session: its label files against its films, one by one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from cxr.workdir import sha256_file
from labelling.box_rules import (
    Fault,
    Follow,
    count_boxes,
    find_box_faults,
    find_wrong_label,
    name_film,
    no_bar,
)
from labelling.labelme_file import Shape
from labelling.session import DONE_STATES, Answer, Session, SessionFilm

START = "python tools/annotate.py start --session"
_ACCEPTED, _DOUBTFUL = "accepted", "doubtful"


def find_session_faults(
    session: Session, hashes: bool = True, complete: bool = False, follow: Follow = no_bar
) -> list[Fault]:
    """All faults of a session, in the order of its films.

    Args:
        hashes: look at the films' files too: whether they are there and still the same.
        complete: a film without an answer is a fault as well.
        follow: wraps the walk over the films in a progress bar.
    """
    faults = []
    # One line for a folder that is gone, not one for each film in it.
    folder_gone = hashes and not session.root.is_dir()
    if folder_gone:
        faults.append(
            Fault(
                str(session.root),
                "the folder of the films is missing",
                "Put it back, or check the boxes alone: --hashes=false",
            )
        )
    last = {str(entry["number"]): entry.get("state") for entry in session.history()}
    answered = {number for number, state in last.items() if state in DONE_STATES}
    answers = session.answers()
    for film, answer in follow(answers, len(answers)):
        if answer.state == "unreadable":
            continue  # it never had a view to draw on
        if hashes and not folder_gone:
            faults += _film_faults(session, film)
        own: list[Fault] = []
        if answer.fault:
            own += _file_faults(session, film, answer, str(film.number) in answered)
        elif answer.state != "skipped":
            own += _answer_faults(session, film, answer, str(film.number) in answered)
        if complete and answer.state == "todo" and not own:
            what = "still ticked as doubtful" if _DOUBTFUL in answer.flags else "no answer yet"
            own.append(_fault(session, film, what, "Draw or accept its box"))
        faults += own
    return faults + list(_stray_faults(session))


def _fault(session: Session, film: SessionFilm, what: str, fix: str) -> Fault:
    """A fault that is mended in labelme, with the command that opens it at this film."""
    command = f"{START} {shlex.quote(str(session.path))} --film {film.number}"
    return Fault(name_film(film.number, film.film), what, f"{fix} in labelme: {command}")


def _film_faults(session: Session, film: SessionFilm) -> list[Fault]:
    path, name = session.film_path(film), name_film(film.number, film.film)
    try:
        same = sha256_file(path) == film.sha256
    except FileNotFoundError:
        return [Fault(name, "the film is missing", f"Put it back at {path}")]
    except OSError as error:
        fix = f"Make {path} readable, or put the film back there"
        return [Fault(name, f"the film cannot be opened: {error.strerror}", fix)]
    if same:
        return []
    fix = f"Put the old film back at {path}, or label this one in a session of its own"
    return [Fault(name, "the film has changed since the session was made", fix)]


def _file_faults(
    session: Session, film: SessionFilm, answer: Answer, answered: bool
) -> list[Fault]:
    """A label file that cannot be used at all."""
    path = session.label_path(film)
    why = answer.fault if answer.fault.startswith("belongs to") else f"is of no use: {answer.fault}"
    what = f"its label file {path.name} {why}"
    start = f"{START} {shlex.quote(str(session.path))}"
    fix = f"Move {path} elsewhere and draw the box again: {start} --film {film.number}"
    if answered:  # the history holds the box; `start` takes it from there
        fix = f"Its last answer is kept, and put back by: {start}"
    return [Fault(name_film(film.number, film.film), what, fix)]


def _answer_faults(
    session: Session, film: SessionFilm, answer: Answer, answered: bool
) -> Iterator[Fault]:
    boxes = answer.boxes
    if not boxes:
        if fault := _no_box_fault(session, film, answer, answered):
            yield fault
        return
    if len(boxes) > 1:
        what = count_boxes(len(boxes))
        if any(b.prelabelled for b in boxes):
            what += ", one of them pre-drawn"
        many = "Delete the one that is wrong" if len(boxes) == 2 else "Delete all but the right one"
        yield _fault(session, film, what, many)
    for number, box in enumerate(boxes, start=1):
        if not box.prelabelled:  # nobody has answered for that one yet
            name = "the box" if len(boxes) == 1 else f"box {number} of {len(boxes)}"
            for what, fix in _box_faults(session, film, box, name):
                yield _fault(session, film, what, fix)


def _no_box_fault(
    session: Session, film: SessionFilm, answer: Answer, answered: bool
) -> Fault | None:
    """`start` writes no label file without a box: an empty one was saved by hand."""
    if not session.label_path(film).exists():
        if not answered:
            return None
        path = session.label_path(film)
        fix = f"Its last answer is kept, and put back by: {START} {shlex.quote(str(session.path))}"
        return Fault(name_film(film.number, film.film), f"its label file {path.name} is gone", fix)
    if _DOUBTFUL in answer.flags:
        return None  # sent back to be looked at again: still to do
    said = "accepted is ticked" if _ACCEPTED in answer.flags else "it was saved"
    fix = "Draw the box, or tick unreadable or not frontal,"
    return _fault(session, film, f"no box, though {said}", fix)


def _box_faults(
    session: Session, film: SessionFilm, box: Shape, name: str
) -> Iterator[tuple[str, str]]:
    wrong_label = find_wrong_label(box.label, session.classes, name)
    if wrong_label:
        yield wrong_label, f"Give it the label {' or '.join(session.classes)}"
    if box.shape_type != "rectangle":
        kind = box.shape_type.replace("_", " ")
        yield f"{name} is of the shape {kind}, not a rectangle", "Delete it and draw a rectangle"
    elif box.crossed:
        what = f"{name} has no width or height, or its edges are crossed"
        yield what, "Delete it and draw it again"
    else:
        yield from find_box_faults(box.xyxy, film.size_hw, name)


def _stray_faults(session: Session) -> Iterator[Fault]:
    """Label files in views/ of no film: somebody drew on a picture that is not the session's."""
    own = {session.label_path(film).name for film in session.films if film.view}
    folder = session.path / "views"
    for path in sorted(folder.glob("*.json")):
        if path.name not in own:
            yield Fault(
                f"views/{path.name}",
                "this label file belongs to no film of the session",
                f"Move it out of {folder}, or delete it",
            )
