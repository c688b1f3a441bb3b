"""Sheets of films with their boxes, numbers and rulers, and the record of what stood on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from cxr import draw
from cxr.workdir import console, read_json, write_atomic, write_json
from labelling.session import Answer, Session, SessionFilm

RECORD = "sheets.json"
_HEAD = {"schema": "lungfirst.review", "version": 1}
_TICK_INK: draw.Colour = (190, 190, 190)
_GROUND: draw.Colour = (24, 24, 24)
_TENTHS = [n / 10 for n in range(1, 10)]

Film = tuple[SessionFilm, Answer]


def draw_sheets(
    session: Session,
    films: Sequence[Film],
    folder: Path,
    per_sheet: int = 24,
    columns: int = 6,
    tile: int = 320,
    grid: bool = False,
) -> dict[Path, list[int]]:
    """Draw the films into `folder`, sheet after sheet, and record what is drawn; returns the
    numbers on each sheet. `tile`: px of one film's longer side.

    The sheets of an earlier call go away first: an old sheet must not pass for a new one.
    """
    parts = [films[i : i + per_sheet] for i in range(0, len(films), per_sheet)]
    names = [f"sheet_{number:03d}.png" for number in range(1, len(parts) + 1)]
    record = {**_HEAD, "session_id": session.session_id, "sheets": names, "drawn": {}}
    remove_sheets(folder)
    # The names stand in the record before the first sheet: what a stopped call drew is ours too.
    write_json(folder / RECORD, record)
    drawn: dict[int, Any] = {}
    sheets = {}
    pairs = list(zip(names, parts, strict=True))
    for name, part in track(pairs, "drawing sheets", console=console, transient=True):
        tiles = []
        for film, answer in part:
            picture, seen = draw_tile(session, film, answer, tile, grid)
            tiles.append(picture)
            if seen:
                boxes = [{"label": b.label, "xyxy": list(b.xyxy)} for b in answer.boxes]  # film px
                doubtful = "doubtful" in answer.flags
                drawn[film.number] = {"sheet": name, "boxes": boxes, "doubtful": doubtful}
        numbers = [film.number for film, _ in part]
        title = f"{session.path.resolve().name}   {name}   films {join_numbers(numbers)}"
        captions = [write_caption(film, answer) for film, answer in part]
        image = draw.sheet(tiles, captions, columns, tile, title)
        sheets[write_atomic(folder / name, draw.encode_png(image))] = numbers
    write_json(folder / RECORD, {**record, "drawn": drawn})
    return sheets


def remove_sheets(folder: Path) -> None:
    """Delete the sheets that an earlier call drew there, and their record."""
    names = _read_record(folder).get("sheets", [])
    (folder / RECORD).unlink(missing_ok=True)
    for name in names:  # a record that somebody edited must not delete other files
        if isinstance(name, str) and re.fullmatch(r"sheet_\d{3,}\.png", name):
            (folder / name).unlink(missing_ok=True)


def read_drawn(folder: Path, session: Session) -> dict[int, dict[str, Any]]:
    """What stands on the sheets in `folder`, by film's number; empty when none were drawn for
    this session."""
    record = _read_record(folder)
    if record.get("session_id") != session.session_id:
        return {}
    try:
        return {
            int(number): {
                "boxes": [{**b, "xyxy": [*map(float, b["xyxy"])]} for b in seen["boxes"]],
                "doubtful": bool(seen["doubtful"]),
            }
            for number, seen in record["drawn"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # edited by hand: nothing was seen
        return {}


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / RECORD)
    except (FileNotFoundError, ValueError):
        return {}
    ours = isinstance(record, dict) and all(record.get(k) == v for k, v in _HEAD.items())
    return record if ours else {}


def draw_tile(
    session: Session, film: SessionFilm, answer: Answer, tile: int = 320, grid: bool = False
) -> tuple[np.ndarray, bool]:
    """One film's view with its boxes, number and rulers, uint8 RGB of at most `tile` px; and
    whether the film is to be seen on it."""
    margin = max(12, tile // 15)
    view = _read_view(session, film)
    if view is None or film.frame is None:
        blank = np.full((tile // 2, tile - margin, 3), _GROUND, np.uint8)
        words = "cannot be read" if not film.view else "no view: run start again"
        blank = draw.draw_text(blank, words, (margin, tile // 6), draw.RED, margin)
        return draw.draw_text(blank, str(film.number), (4, 2), size=tile // 11), False
    picture = draw.fit(view, tile - margin)
    height, width = picture.shape[:2]
    scale = np.array([width / view.shape[1], height / view.shape[0]])
    film_h, film_w = film.size_hw
    # Where tenths of the film fall on the tile: views may be cut or padded, rulers count the film.
    marks = [film.frame.to_model_xyxy([film_w * t, film_h * t] * 2)[0][:2] * scale for t in _TENTHS]
    if grid:
        lines = picture.copy()
        for x, y in marks:
            cv2.line(lines, (round(x), 0), (round(x), height), (255, 255, 255), 1)
            cv2.line(lines, (0, round(y)), (width, round(y)), (255, 255, 255), 1)
        picture = cv2.addWeighted(picture, 0.75, lines, 0.25, 0)
    for box in (*answer.ignored, *answer.boxes):
        xyxy = film.frame.to_model_xyxy(box.xyxy)[0] * np.tile(scale, 2)
        colour = draw.ORANGE if box.prelabelled else _TICK_INK if box.marks else draw.BLUE
        for grown in (0, 1):  # outwards: what lies inside the box is what it is judged by
            picture = draw.draw_box(picture, xyxy + np.array([-1, -1, 1, 1]) * grown, colour)
    picture = draw.draw_text(picture, str(film.number), (4, 1), size=tile // 11)
    framed = np.full((height + margin, width + margin, 3), _GROUND, np.uint8)
    framed[margin:, margin:] = picture
    size, tick = max(9, round(margin * 0.58)), max(3, margin // 5)
    for (x, y), tenth in zip(marks, _TENTHS, strict=True):  # rulers on the upper and left edge
        at_x, at_y = margin + round(x), margin + round(y)
        cv2.line(framed, (at_x, margin - tick), (at_x, margin - 1), _TICK_INK, 1)
        cv2.line(framed, (margin - tick, at_y), (margin - 1, at_y), _TICK_INK, 1)
        words = f".{tenth * 10:.0f}"
        framed = draw.draw_text(framed, words, (at_x - size // 2, 1), _TICK_INK, size)
        framed = draw.draw_text(framed, words, (1, at_y - size // 2 - 1), _TICK_INK, size)
    return framed, True


def _read_view(session: Session, film: SessionFilm) -> np.ndarray | None:
    """The view as RGB; None where there is none, or none that can be read."""
    try:  # not cv2.imread, which knows no names of Windows beyond its code page
        raw = np.frombuffer(session.view_path(film).read_bytes() if film.view else b"", np.uint8)
    except FileNotFoundError:
        return None
    grey = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE) if raw.size else None
    return None if grey is None else draw.to_rgb(grey)


def write_caption(film: SessionFilm, answer: Answer) -> str:
    """Three lines: where the edges lie, how sure the detector is or what the human said, which
    film it is."""
    where = f"{len(answer.boxes)} boxes" if answer.boxes else "no box"
    if len(answer.boxes) == 1:
        height, width = film.size_hw
        shares = np.divide(answer.boxes[0].xyxy, (width, height, width, height))
        named = zip("LTRB", shares, strict=True)
        where = "  ".join(f"{edge} {share:.2f}".replace("0.", ".") for edge, share in named)
    words = [] if answer.state == "todo" else [answer.state]
    if answer.fault:
        words = [answer.fault]
    elif answer.state == "todo" and any(b.prelabelled for b in answer.boxes):
        words = [f"score {film.prelabel_score:.2f}  uncertain {film.uncertainty:.2f}"]
    labels = {b.label for b in answer.boxes} - {"thorax"}
    words += [f"{len(answer.ignored)} not to count"] * bool(answer.ignored)
    said = ", ".join([*words, *sorted(labels), *sorted(answer.flags - {"accepted"})])
    return "\n".join([where, said, "  ".join(filter(None, [film.label, Path(film.film).name]))])


def join_numbers(numbers: Iterable[int]) -> str:
    """1, 2, 3, 7 as "1-3,7", the way the command line takes them."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
