"""Sheets of films with their boxes, numbers and rulers, and the record of what stood on them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr import draw
from cxr.workdir import write_atomic, write_json
from labelling.session import Answer, Session, SessionFilm

RECORD = "sheets.json"
_SCHEMA, _VERSION = "lungfirst.review", 1
_TICK_INK: draw.Colour = (190, 190, 190)
_GROUND: draw.Colour = (24, 24, 24)
_TENTHS = [n / 10 for n in range(1, 10)]

Film = tuple[SessionFilm, Answer]
Follow = Any  # wraps an iterable of that length in a progress bar, as rich's track does


@dataclass(frozen=True)
class SheetLook:
    """How a sheet is laid out; `tile` in px."""

    per_sheet: int = 24
    columns: int = 6
    tile: int = 320
    grid: bool = False


@dataclass(frozen=True)
class Sheet:
    """One drawn sheet: its file and the numbers on it."""

    path: Path
    numbers: tuple[int, ...]


def draw_sheets(
    session: Session,
    films: Sequence[Film],
    folder: Path,
    look: SheetLook,
    follow: Follow = lambda sheets, _: sheets,
) -> list[Sheet]:
    """Draw the films into `folder`, sheet after sheet, and record what is drawn.

    The sheets of an earlier call go away first: an old sheet must not pass for a new one.
    """
    parts = [films[i : i + look.per_sheet] for i in range(0, len(films), look.per_sheet)]
    names = [f"sheet_{number:03d}.png" for number in range(1, len(parts) + 1)]
    remove_sheets(folder)
    # The names stand in the record before the first sheet: what a stopped call drew is ours too.
    _write_record(folder, session, names, {})
    drawn: dict[int, Any] = {}
    sheets = []
    for name, part in follow(list(zip(names, parts, strict=True)), len(parts)):
        tiles, captions = [], []
        for film, answer in part:
            tile, seen = draw_tile(session, film, answer, look)
            tiles.append(tile)
            captions.append(write_caption(film, answer))
            if seen:
                drawn[film.number] = {"sheet": name, **_to_record(answer)}
        numbers = tuple(film.number for film, _ in part)
        title = f"{session.path.resolve().name}   {name}   films {join_numbers(numbers)}"
        image = draw.sheet(tiles, captions, look.columns, look.tile, title)
        path = write_atomic(folder / name, draw.encode_png(image))
        sheets.append(Sheet(path, numbers))
    _write_record(folder, session, names, drawn)
    return sheets


def remove_sheets(folder: Path) -> None:
    """Delete the sheets that an earlier call drew there, and their record."""
    record = folder / RECORD
    names = _read_record(record).get("sheets", [])
    record.unlink(missing_ok=True)
    for name in names:  # a record that somebody edited must not delete other files
        if isinstance(name, str) and re.fullmatch(r"sheet_\d{3,}\.png", name):
            (folder / name).unlink(missing_ok=True)


def read_drawn(folder: Path, session: Session) -> dict[int, dict[str, Any]]:
    """What stands on the sheets in `folder`, by film's number; empty when none were drawn for
    this session."""
    record = _read_record(folder / RECORD)
    if record.get("session_id") != session.session_id:
        return {}
    try:
        return {int(number): _from_record(seen) for number, seen in record["drawn"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):  # edited by hand: nothing was seen
        return {}


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    ours = isinstance(record, dict) and record.get("schema") == _SCHEMA
    return record if ours and record.get("version") == _VERSION else {}


def _write_record(
    folder: Path, session: Session, names: Sequence[str], drawn: Mapping[int, Any]
) -> None:
    write_json(
        folder / RECORD,
        {
            "schema": _SCHEMA,
            "version": _VERSION,
            "session_id": session.session_id,
            "sheets": list(names),
            "drawn": drawn,
        },
    )


def _to_record(answer: Answer) -> dict[str, Any]:
    boxes = [{"label": b.label, "xyxy": list(b.xyxy)} for b in answer.boxes]  # film px
    return {"boxes": boxes, "doubtful": "doubtful" in answer.flags}


def _from_record(seen: Mapping[str, Any]) -> dict[str, Any]:
    boxes = [{"label": b["label"], "xyxy": [float(v) for v in b["xyxy"]]} for b in seen["boxes"]]
    if any(len(box["xyxy"]) != 4 for box in boxes):
        raise ValueError("a box has four edges")
    return {"boxes": boxes, "doubtful": bool(seen["doubtful"])}


def draw_tile(
    session: Session, film: SessionFilm, answer: Answer, look: SheetLook
) -> tuple[np.ndarray, bool]:
    """One film's view with its boxes, number and rulers; uint8 RGB of at most `look.tile` px.

    Returns:
        The tile, and whether the film is to be seen on it.
    """
    margin = max(12, look.tile // 15)
    view = _read_view(session, film)
    if view is None or film.frame is None:
        blank = np.full((look.tile // 2, look.tile - margin, 3), _GROUND, np.uint8)
        words = "cannot be read" if not film.view else "no view: run start again"
        blank = draw.draw_text(blank, words, (margin, look.tile // 6), draw.RED, margin)
        return draw.draw_text(blank, str(film.number), (4, 2), size=look.tile // 11), False
    picture = draw.fit(view, look.tile - margin)
    height, width = picture.shape[:2]
    scale = np.array([width / view.shape[1], height / view.shape[0]])
    film_h, film_w = film.size_hw
    # Where tenths of the film fall on the tile: views may be cut or padded, rulers count the film.
    marks = [film.frame.to_model_xyxy([film_w * t, film_h * t] * 2)[0][:2] * scale for t in _TENTHS]
    if look.grid:
        picture = _draw_grid(picture, marks)
    for box in answer.boxes:
        xyxy = film.frame.to_model_xyxy(box.xyxy)[0] * np.tile(scale, 2)
        colour = draw.ORANGE if box.prelabelled else draw.BLUE
        for grown in (0, 1):  # outwards: what lies inside the box is what it is judged by
            picture = draw.draw_box(
                picture, xyxy + np.array([-grown, -grown, grown, grown]), colour
            )
    picture = draw.draw_text(picture, str(film.number), (4, 1), size=look.tile // 11)
    tile = np.full((height + margin, width + margin, 3), _GROUND, np.uint8)
    tile[margin:, margin:] = picture
    return _draw_rulers(tile, marks, margin), True


def _read_view(session: Session, film: SessionFilm) -> np.ndarray | None:
    """The view as RGB; None where there is none, or none that can be read."""
    if not film.view:
        return None
    try:
        raw = np.frombuffer(session.view_path(film).read_bytes(), np.uint8)
    except FileNotFoundError:
        return None
    grey = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE) if raw.size else None
    return None if grey is None else draw.to_rgb(grey)


def _draw_grid(picture: np.ndarray, marks: Sequence[np.ndarray]) -> np.ndarray:
    lines = picture.copy()
    for x, y in marks:
        cv2.line(lines, (round(x), 0), (round(x), picture.shape[0]), (255, 255, 255), 1)
        cv2.line(lines, (0, round(y)), (picture.shape[1], round(y)), (255, 255, 255), 1)
    return cv2.addWeighted(picture, 0.75, lines, 0.25, 0)


def _draw_rulers(tile: np.ndarray, marks: Sequence[np.ndarray], margin: int) -> np.ndarray:
    """Ticks at each tenth of the film along the upper and the left edge, with their numbers."""
    size, tick = max(9, round(margin * 0.58)), max(3, margin // 5)
    for (x, y), tenth in zip(marks, _TENTHS, strict=True):
        at_x, at_y = margin + round(x), margin + round(y)
        cv2.line(tile, (at_x, margin - tick), (at_x, margin - 1), _TICK_INK, 1)
        cv2.line(tile, (margin - tick, at_y), (margin - 1, at_y), _TICK_INK, 1)
        words = f".{tenth * 10:.0f}"
        tile = draw.draw_text(tile, words, (at_x - size // 2, 1), _TICK_INK, size)
        tile = draw.draw_text(tile, words, (1, at_y - size // 2 - 1), _TICK_INK, size)
    return tile


def write_caption(film: SessionFilm, answer: Answer) -> str:
    """Three lines: where the edges lie, how sure the detector is or what the human said, which
    film it is."""
    return "\n".join(
        [
            _say_box(film, answer),
            _say_state(film, answer),
            "  ".join(filter(None, [film.label, Path(film.film).name])),
        ]
    )


def _say_box(film: SessionFilm, answer: Answer) -> str:
    if not answer.boxes:
        return "no box"
    if len(answer.boxes) > 1:
        return f"{len(answer.boxes)} boxes"
    height, width = film.size_hw
    x0, y0, x1, y1 = answer.boxes[0].xyxy
    shares = (x0 / width, y0 / height, x1 / width, y1 / height)
    named = zip("LTRB", shares, strict=True)
    return "  ".join(f"{edge} {share:.2f}".replace("0.", ".") for edge, share in named)


def _say_state(film: SessionFilm, answer: Answer) -> str:
    words = [] if answer.state == "todo" else [answer.state]
    if answer.fault:
        words = [answer.fault]
    elif answer.state == "todo" and any(b.prelabelled for b in answer.boxes):
        words.append(f"score {film.prelabel_score:.2f}  uncertain {film.uncertainty:.2f}")
    labels = {b.label for b in answer.boxes} - {"thorax"}
    return ", ".join([*words, *sorted(labels), *sorted(answer.flags - {"accepted"})])


def join_numbers(numbers: Iterable[int]) -> str:
    """1, 2, 3, 7 as "1-3,7", the way the command line takes them."""
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in _runs(numbers))


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = None
    for number in sorted(numbers):
        if first is None or last is None:
            first = number
        elif number != last + 1:
            yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last
