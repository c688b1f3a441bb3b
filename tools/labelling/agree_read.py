"""Boxes to be compared, from a session, a COCO file or a CSV: a Reader is one hand, one box a film.

Boxes are xyxy in pixels of a picture of `size_hw`; a CSV seldom knows that size.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr.coco import read_coco
from labelling.session import Session, is_session

Xyxy = tuple[float, float, float, float]

FILM_COLUMNS = ("image", "film", "file_name")
CORNERS = ("x0", "y0", "x1", "y1")
XYWH = ("x", "y", "w", "h")
_COLUMNS = "image, x, y, w, h (or x0, y0, x1, y1) and, where there are several, reader"


@dataclass(frozen=True)
class Mark:
    """What one reader says of one film.

    Attributes:
        film: the film's name as the set has it.
        xyxy: in pixels of a picture of `size_hw`; None says that the film has no box.
        size_hw: None where the set does not say it.
        patient_id, source: "" where unknown.
        path: the film's file where the set knows it (sessions do).
        as_prelabelled: the detector's box, accepted as it was drawn.
    """

    film: str
    xyxy: Xyxy | None
    size_hw: tuple[int, int] | None = None
    patient_id: str = ""
    source: str = ""
    path: Path | None = None
    as_prelabelled: bool = False


@dataclass(frozen=True)
class Reader:
    """One hand: at most one Mark a film."""

    name: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Side:
    """A or B: where it was read from, its readers, and what must be known about it."""

    path: Path
    readers: tuple[Reader, ...]
    notes: tuple[str, ...] = ()


def read_sides(paths: Sequence[str], reader: str = "") -> tuple[Side, Side]:
    """A and B; `reader` keeps that hand only wherever a CSV has it.

    Raises:
        FileNotFoundError, ValueError: with a sentence that names file, film and fix.
    """
    a, b = (read_side(path) for path in paths)
    if not reader:
        return a, b
    sides = [s for s in (a, b) if s.path.suffix.lower() == ".csv"]
    known = sorted({r.name for s in sides for r in s.readers})
    if reader not in known:
        raise ValueError(
            f"--reader must be a reader of a CSV ({', '.join(known) or 'none is given'}). "
            f"Got '{reader}' instead."
        )
    return _keep(a, reader), _keep(b, reader)


def _keep(side: Side, reader: str) -> Side:
    kept = tuple(r for r in side.readers if r.name == reader)
    return Side(side.path, kept, side.notes) if kept else side


def read_side(path: str | Path) -> Side:
    """A session's folder, a COCO JSON or a CSV, told apart by what they are."""
    path = Path(path)
    if path.is_dir() or is_session(path):
        return _read_session(path)
    if not path.exists():
        raise FileNotFoundError(
            f"A and B must be a session's folder, a COCO JSON or a CSV. Got '{path}', which does "
            "not exist."
        )
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    if path.suffix.lower() == ".json":
        return _read_coco(path)
    raise ValueError(
        f"A and B must be a session's folder, a COCO file named .json or a table named .csv. "
        f"Got '{path}' instead."
    )


def _read_session(path: Path) -> Side:
    session = Session.open(path)
    marks, faulty, notes = [], [], []
    for film, answer in session.answers():
        if answer.fault and answer.state != "unreadable":
            faulty.append(film.film)
        if not answer.done:
            continue
        human = answer.human
        if answer.box and len(human) > 1:
            raise ValueError(
                f"'{path}' has {len(human)} boxes on film {film.film}; agree compares one box a "
                f"film. Delete the wrong one (`python tools/annotate.py check` lists them)."
            )
        box = answer.box.xyxy if answer.box else None
        as_drawn = answer.state == "accepted" and film.prelabel_xyxy is not None
        marks.append(
            Mark(
                film.film,
                box,
                film.size_hw,
                film.patient_id,
                film.source,
                session.film_path(film),
                as_drawn,
            )
        )
    if not marks:
        raise ValueError(
            f"'{path}' has no film done yet; go on with `python tools/annotate.py start`."
        )
    if faulty:
        notes.append(
            f"{len(faulty)} label files of '{path}' cannot be used, the first of film "
            f"{faulty[0]}: see `python tools/annotate.py check`."
        )
    accepted = sum(m.as_prelabelled for m in marks)
    if accepted:
        notes.append(
            f"{accepted} of the {len(marks)} answers of '{path}' are the detector's box, "
            "accepted as drawn: two readers shown the same box agree more."
        )
    return Side(path, (Reader(session.annotator or path.name, tuple(marks)),), tuple(notes))


def _read_coco(path: Path) -> Side:
    marks = []
    for film in read_coco(path).films:
        if len(film.boxes_xyxy) > 1:
            raise ValueError(
                f"'{path}' has {len(film.boxes_xyxy)} boxes on film {film.file_name}; agree "
                "compares one box a film. Delete the wrong one."
            )
        box = _to_xyxy(film.boxes_xyxy[0]) if len(film.boxes_xyxy) else None
        patient, source = (str(film.extra.get(k) or "") for k in ("patient_id", "source"))
        marks.append(Mark(film.file_name, box, film.size_hw, patient, source))
    return Side(path, (Reader(path.stem, tuple(marks)),))


def _to_xyxy(values: Sequence[float]) -> Xyxy:
    x0, y0, x1, y1 = (float(v) for v in values)
    return x0, y0, x1, y1


def _read_csv(path: Path) -> Side:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a mark first
            table = csv.DictReader(file, restval="")
            head = tuple(table.fieldnames or ())
            film_column = next((c for c in FILM_COLUMNS if c in head), "")
            kind = next((k for k in (CORNERS, XYWH) if set(k) <= set(head)), ())
            if not film_column or not kind:
                raise ValueError(
                    f"'{path}' must have the columns {_COLUMNS}. Got {', '.join(head) or 'none'}."
                )
            marks: dict[str, dict[str, tuple[int, Mark]]] = {}
            for row in table:
                _add_row(path, table.line_num, row, film_column, kind, marks)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' must be a CSV in UTF-8. {error}") from error
    if not marks:
        raise ValueError(f"'{path}' must have a row for each film. Got none.")
    readers = (Reader(n, tuple(m for _, m in own.values())) for n, own in marks.items())
    return Side(path, tuple(readers))


def _add_row(
    path: Path,
    line: int,
    row: dict[str, str],
    film_column: str,
    kind: Sequence[str],
    marks: dict[str, dict[str, tuple[int, Mark]]],
) -> None:
    """Put a row under its reader and film; raises ValueError for one that stands twice."""
    film = (row[film_column] or "").strip()
    if not film:
        raise ValueError(f"'{path}' line {line}: {film_column} must name a film. Got nothing.")
    name = (row.get("reader") or "").strip() or path.stem
    own = marks.setdefault(name, {})
    if film in own:
        raise ValueError(
            f"'{path}' has two boxes by {name} on film {film} (lines {own[film][0]} and {line}); "
            "agree compares one box a film. Delete the wrong row, or name the readers in a column "
            "reader."
        )
    size = _read_size(f"'{path}' line {line} ({film})", row)
    patient = (row.get("patient_id") or row.get("patient") or "").strip()
    box = _read_box(f"'{path}' line {line} ({film})", row, kind)
    own[film] = line, Mark(film, box, size, patient, (row.get("source") or "").strip())


def _read_box(where: str, row: dict[str, str], kind: Sequence[str]) -> Xyxy | None:
    """The row's box; None where all four cells are empty."""
    cells = [(row[c] or "").strip() for c in kind]
    if not any(cells):
        return None
    try:
        x0, y0, x1, y1 = (float(c) for c in cells)
    except ValueError:
        x0 = math.nan
    if not math.isfinite(x0) or not all(map(math.isfinite, (y0, x1, y1))):
        raise ValueError(
            f"{where}: {', '.join(kind)} must be four numbers, or all empty for a film without a "
            f"box. Got {', '.join(repr(c) for c in cells)}."
        )
    if kind == XYWH:
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"{where}: the box must have a width and a height above 0. Got {', '.join(cells)}."
        )
    return x0, y0, x1, y1


def _read_size(where: str, row: dict[str, str]) -> tuple[int, int] | None:
    """(height, width) where the table has both columns."""
    width, height = (row.get("width") or "").strip(), (row.get("height") or "").strip()
    if not width and not height:
        return None
    try:
        size = int(float(height)), int(float(width))
    except (ValueError, OverflowError):
        size = 0, 0
    if min(size) < 1:
        raise ValueError(
            f"{where}: width and height must be the film's size in whole pixels. "
            f"Got '{width}' and '{height}'."
        )
    return size
