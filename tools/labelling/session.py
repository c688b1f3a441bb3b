"""A labelling session's folder: its films, what each label file says, and what changed when.

    session.json   who labels, with which classes, and how the films were chosen
    films.jsonl    a line a film, in the order of asking, with its Frame and pre-label
    views/         8-bit views with labelme's label files beside them
    history.jsonl  a line each time a film's answer changed; never rewritten

The label files are the state. The history is the second copy of each human box: a label file that
was torn or deleted is made again from it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cxr.workdir import drop_torn_line, write_atomic
from labelling.answers import (
    DONE_STATES,
    FLAGS,
    PRELABELLED,
    SKIP_FLAGS,
    Answer,
    LabelledBox,
    SessionFilm,
    find_foreign,
    find_state,
    to_box,
    to_shape,
)
from labelling.labelme_file import Shape, read_label_file, write_label_file

__all__ = [
    "DONE_STATES",
    "FLAGS",
    "PRELABELLED",
    "SKIP_FLAGS",
    "Answer",
    "LabelledBox",
    "Session",
    "SessionFilm",
    "is_session",
    "to_shape",
    "write_films",
]

SCHEMA, VERSION = "lungfirst.labelling", 1


def is_session(path: str | Path) -> bool:
    """Whether this is the folder of a labelling session."""
    return (Path(path) / "session.json").is_file()


class Session:
    """An opened session. Reading is always from the files: labelme may be writing them."""

    def __init__(self, path: Path, meta: dict[str, Any], films: Sequence[SessionFilm]) -> None:
        self.path, self.meta = path, meta
        self.films = sorted(films, key=lambda f: f.number)
        self.annotator = str(meta["annotator"])
        self.classes = tuple(meta["classes"])
        self.session_id = str(meta["session_id"])
        self.root = Path(os.path.normpath(path / meta["root"]))
        self._last: dict[int, dict[str, Any]] | None = None

    @classmethod
    def open(cls, path: str | Path) -> Session:
        """Open the folder; raises FileNotFoundError or ValueError that says how to go on."""
        path = Path(path)
        if not is_session(path):
            raise FileNotFoundError(
                f"session must be a folder that `annotate.py start` made. Got '{path}' instead, "
                "which has no session.json."
            )
        try:
            meta = json.loads((path / "session.json").read_text(encoding="utf-8"))
            if meta.get("schema") != SCHEMA or meta.get("version") != VERSION:
                raise ValueError(f"schema {meta.get('schema')!r} version {meta.get('version')!r}")
            lines = (path / "films.jsonl").read_text(encoding="utf-8").splitlines()
            return cls(path, meta, [SessionFilm.from_dict(json.loads(line)) for line in lines])
        except FileNotFoundError as error:
            raise ValueError(
                f"'{path}' was not prepared to the end; run `annotate.py start` again."
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"'{path}' is no session of this version: {error}") from error

    def film_path(self, film: SessionFilm) -> Path:
        """Where the film's file should lie."""
        return self.root / film.film

    def view_path(self, film: SessionFilm) -> Path:
        """The film's 8-bit view."""
        return self.path / film.view

    def label_path(self, film: SessionFilm) -> Path:
        """The film's label file beside its view; it may not exist yet."""
        return self.view_path(film).with_suffix(".json")

    def answer(self, film: SessionFilm) -> Answer:
        """What the film's label file says now."""
        if not film.view:
            return Answer("unreadable", fault=film.reason)
        entry = self._last_entries().get(film.number, {})
        try:
            file = read_label_file(self.label_path(film))
        except FileNotFoundError:
            return Answer("todo")
        except ValueError as error:
            return Answer("todo", fault=str(error))
        fault = find_foreign(film, file)
        boxes = tuple(to_box(film, s, file.flags) for s in file.shapes)
        if fault:
            return Answer("todo", boxes, file.flags, fault)
        state = find_state(film, boxes, file.flags)
        if entry.get("state") == state:
            return Answer(state, boxes, file.flags, "", str(entry["via"]), str(entry["time"]))
        return Answer(state, boxes, file.flags, "", "labelme", _changed(self.label_path(film)))

    def answers(self) -> list[tuple[SessionFilm, Answer]]:
        """Each film with its answer, in the order of asking."""
        return [(film, self.answer(film)) for film in self.films]

    def history(self) -> list[dict[str, Any]]:
        """Each change of an answer, oldest first. A torn last line is left out."""
        path = self.path / "history.jsonl"
        if not path.exists():
            return []
        entries = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return [e for e in entries if isinstance(e, dict) and "number" in e]

    def set_answer(
        self,
        film: SessionFilm,
        *,
        xyxy: Sequence[float] | None = None,
        label: str | None = None,
        flags: Collection[str] = (),
        via: str = "review",
    ) -> Answer:
        """Answer for one film and note it in the history.

        Args:
            xyxy: the box in film pixels; None keeps the boxes that are there.
            label: of the box; None takes the old box' label or the session's first class.
            flags: replace the ticked ones; "accepted" accepts the box that is there.
            via: who says so: review or import.

        Raises:
            ValueError: for a film without a view, a box outside the film, an unknown flag or label.
        """
        self._check_answer(film, xyxy, label, flags)
        assert film.frame is not None
        old = self.answer(film)
        shapes: tuple[Shape, ...] = ()
        with contextlib.suppress(FileNotFoundError, ValueError):
            shapes = read_label_file(self.label_path(film)).shapes
        if "accepted" in flags:
            shapes = tuple(
                Shape(s.label, s.points, s.shape_type, s.flags - {PRELABELLED}) for s in shapes
            )
        if xyxy is not None:
            name = label or (old.boxes[0].label if old.boxes else self.classes[0])
            shapes = (to_shape(film, xyxy, name),)
        self.write_shapes(film, shapes, flags)
        self.note_change(film, via)
        return self.answer(film)

    def _check_answer(
        self,
        film: SessionFilm,
        xyxy: Sequence[float] | None,
        label: str | None,
        flags: Collection[str],
    ) -> None:
        where = f"film {film.number} ({film.film})"
        if not film.view:
            raise ValueError(f"{where} cannot be read and takes no box: {film.reason}")
        if set(flags) - set(FLAGS):
            raise ValueError(
                f"flags must be of {', '.join(FLAGS)}. Got {', '.join(flags)} instead."
            )
        if label is not None and label not in self.classes:
            raise ValueError(f"label must be of {', '.join(self.classes)}. Got {label!r} instead.")
        if xyxy is None:
            return
        x0, y0, x1, y1 = xyxy
        height, width = film.size_hw
        if not (-0.5 <= x0 < x1 <= width + 0.5 and -0.5 <= y0 < y1 <= height + 0.5):
            raise ValueError(
                f"the box of {where} must lie on the film of {width} × {height} px with its left "
                f"edge before its right one. Got {x0:.1f}, {y0:.1f}, {x1:.1f}, {y1:.1f} instead."
            )

    def write_shapes(
        self, film: SessionFilm, shapes: Sequence[Shape], flags: Collection[str] = ()
    ) -> None:
        """Write the film's label file; `flags` are the ticked ones."""
        assert film.frame is not None
        ticks = {name: name in flags for name in FLAGS}
        name = Path(film.view).name
        write_label_file(
            self.label_path(film), name, film.frame.canvas_hw, shapes, ticks, film.film, film.sha256
        )

    def note_change(self, film: SessionFilm, via: str) -> bool:
        """Add a line to the history if the film's answer differs from the last one noted."""
        answer = self.answer(film)
        last = self._last_entries().get(film.number)
        entry = _to_entry(film, answer, via)
        if _same(entry, last):
            return False
        if answer.fault:  # a torn file is no answer; the last good one stands
            return False
        path = self.path / "history.jsonl"
        if path.exists():
            drop_torn_line(path)
        if via == "labelme":  # when the hand moved, not when it was seen
            entry["time"] = _changed(self.label_path(film)) or entry["time"]
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._last_entries()[film.number] = entry
        return True

    def note_changes(self, via: str = "labelme") -> int:
        """Note all films whose answers changed; returns how many."""
        return sum(self.note_change(film, via) for film in self.films if film.view)

    def restore_lost(self) -> list[SessionFilm]:
        """Make label files again that are gone or torn though a human had answered."""
        restored = []
        for film in self.films:
            last = self._last_entries().get(film.number)
            if not film.view or last is None or last["state"] not in DONE_STATES:
                continue
            path = self.label_path(film)
            if path.exists():
                if not self.answer(film).fault:
                    continue
                os.replace(path, path.with_suffix(".torn"))  # noqa: PTH105 - kept, never deleted
            box = last["xyxy"]
            shapes = [to_shape(film, box, last["label"] or self.classes[0])] if box else []
            self.write_shapes(film, shapes, last["flags"])
            restored.append(film)
        return restored

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the session; raises ValueError while labelme or another command is at it."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"'{self.path}' is open in labelme or in another command; close that first."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _last_entries(self) -> dict[int, dict[str, Any]]:
        if self._last is None:
            self._last = {entry["number"]: entry for entry in self.history()}
        return self._last


def write_films(path: Path, films: Sequence[SessionFilm]) -> None:
    """Write films.jsonl of the session in `path`, atomically."""
    lines = [json.dumps(f.to_dict(), ensure_ascii=False) for f in films]
    write_atomic(path / "films.jsonl", "".join(line + "\n" for line in lines))


def _to_entry(film: SessionFilm, answer: Answer, via: str) -> dict[str, Any]:
    box = answer.box
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "number": film.number,
        "film": film.film,
        "state": answer.state,
        "label": box.label if box else "",
        "xyxy": [round(v, 3) for v in box.xyxy] if box else None,
        "flags": sorted(answer.flags),
        "via": via,
    }


def _same(entry: dict[str, Any], last: dict[str, Any] | None) -> bool:
    if last is None:  # an untouched film is nothing to note
        return entry["state"] == "todo" and not entry["flags"]
    return all(entry[key] == last.get(key) for key in ("state", "label", "xyxy", "flags"))


def _changed(path: Path) -> str:
    """When a label file was written, as UTC time; "" where it is gone."""
    try:
        seconds = path.stat().st_mtime
    except FileNotFoundError:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
