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
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from cxr.boxes import Frame, Xyxy, clip_xyxy
from cxr.ledger import append_line, drop_torn_line
from cxr.rules import require
from cxr.workdir import read_json, read_text, write_atomic
from labelling.labelme import PRELABELLED, LabelFile, Shape, read_label_file, write_label_file

SCHEMA, VERSION = "lungfirst.labelling", 1
FLAGS = ("accepted", "doubtful", "unreadable", "not frontal", "apices cut off")
SKIP_FLAGS = ("unreadable", "not frontal")
BOX_STATES = ("accepted", "corrected", "drawn")
DONE_STATES = (*BOX_STATES, "skipped")
TOUCHED_PX = 0.05  # view pixels; less than this is rounding, not a hand

# What the history says of a film that it does not name.
_UNTOUCHED: dict[str, Any] = {"state": "todo", "label": "", "xyxy": None, "flags": []}


@dataclass(frozen=True)
class SessionFilm:
    """One film of the session; boxes in its own pixels."""

    number: int  # from 1, the order of asking; 0 for a film that is not in the session yet
    film: str  # posix path relative to the session's root, or absolute where it lies elsewhere
    sha256: str = ""  # of the film's file; "" when it cannot be read
    size_hw: tuple[int, int] = (0, 0)  # of the film; (0, 0) when it cannot be read
    view: str = ""  # 8 bits, relative to the session's folder; "" when the film cannot be read
    frame: Frame | None = None  # film → view
    patient_id: str = ""
    label: str = ""
    sublabel: str = ""
    source: str = ""
    original_hw: tuple[int, int] | None = None  # in the public set, where films.csv knows it
    prelabel_xyxy: Xyxy | None = None  # of the detector and the lung field
    prelabel_score: float = 0.0
    disagreement: float = 0.0  # 1 − IoU of the two networks' boxes
    uncertainty: float = 0.0  # how doubtful the pre-label is; the order of asking
    reason: str = ""  # why the film cannot be read

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SessionFilm:
        """From what `asdict` gives; raises TypeError or KeyError for what is none."""
        values = dict(data)
        values["frame"] = Frame.from_dict(values["frame"]) if values["frame"] else None
        for key in ("size_hw", "original_hw", "prelabel_xyxy"):
            values[key] = tuple(values[key]) if values[key] is not None else None
        return cls(**values)


@dataclass(frozen=True)
class Answer:
    """What is known of one film now: the shapes of its label file, in film pixels."""

    state: str  # todo, accepted, corrected, drawn, skipped or unreadable
    boxes: tuple[Shape, ...] = ()  # all but those marked not to count
    flags: frozenset[str] = frozenset()
    fault: str = ""
    via: str = ""  # who changed it last
    changed: str = ""  # when (UTC, or "")
    ignored: tuple[Shape, ...] = ()  # those marked not to count

    @property
    def done(self) -> bool:
        """Whether a human has answered for this film."""
        return self.state in DONE_STATES

    @property
    def human(self) -> tuple[Shape, ...]:
        """The rectangles that a human drew, moved or accepted."""
        return tuple(b for b in self.boxes if b.usable and not b.prelabelled)

    @property
    def untouched(self) -> bool:
        """Whether no human said anything: no answer, no box still in doubt, no ticked flag, nothing
        that cannot be read and may be an answer."""
        said = self.done or self.ignored or self.flags or self.fault
        return not said and all(box.prelabelled for box in self.boxes)

    @property
    def box(self) -> Shape | None:
        """The box that counts: the first human one of a film that is done and not skipped."""
        return next(iter(self.human), None) if self.state in BOX_STATES else None


def count_states(answers: Iterable[Answer]) -> dict[str, int]:
    """Films by state; `doubtful` ones are part of `todo`, `done` are those that a human has
    answered for, and `films` all."""
    known = list(answers)
    counts = Counter(answer.state for answer in known)
    return {
        **{state: counts[state] for state in (*DONE_STATES, "todo")},
        "doubtful": sum(a.state == "todo" and "doubtful" in a.flags for a in known),
        "unreadable": counts["unreadable"],
        "done": sum(counts[state] for state in DONE_STATES),
        "films": len(known),
    }


def so_many(number: int, word: str) -> str:
    """`3 films`, `1 box`, `2 boxes`."""
    return f"{number} {word}{'' if number == 1 else 'es' if word.endswith('x') else 's'}"


def split_names(names: Sequence[str] | str) -> tuple[str, ...]:
    """Names with commas between, or a list of them, each once."""
    parts = names.split(",") if isinstance(names, str) else names
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


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
            rule = "session must be a folder that `annotate.py start` made"
            raise FileNotFoundError(f"{rule}. Got '{path}' instead, which has no session.json.")
        try:
            meta = read_json(path / "session.json")
            if meta.get("schema") != SCHEMA or meta.get("version") != VERSION:
                raise ValueError(f"schema {meta.get('schema')!r} version {meta.get('version')!r}")
            lines = filter(None, read_text(path / "films.jsonl").split("\n"))
            return cls(path, meta, [SessionFilm.from_dict(json.loads(x)) for x in lines])
        except FileNotFoundError as error:
            what = f"'{path}' was not prepared to the end"
            raise ValueError(f"{what}; run `annotate.py start` again.") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"'{path}' is no session of this version: {error}") from error

    def film_path(self, film: SessionFilm) -> Path:
        """Where the film's file should lie."""
        return self.root / film.film

    def view_path(self, film: SessionFilm) -> Path:
        return self.path / film.view

    def label_path(self, film: SessionFilm) -> Path:
        """The film's label file beside its view; it may not exist yet."""
        return self.view_path(film).with_suffix(".json")

    def answer(self, film: SessionFilm) -> Answer:
        """What the film's label file says now; whatever is wrong with it becomes its `fault`."""
        if not film.view:
            return Answer("unreadable", fault=film.reason)
        try:
            answer = judge(film, read_label_file(self.label_path(film)))
        except FileNotFoundError:
            return Answer("todo")
        except ValueError as error:
            return Answer("todo", fault=str(error))
        except Exception as error:  # a fault in one film must not hide those of the others
            return Answer("todo", fault=f"cannot be read: {error}")
        return answer if answer.fault else self._date(film, answer)

    def answers(self) -> list[tuple[SessionFilm, Answer]]:
        """Each film with its answer, in the order of asking."""
        return [(film, self.answer(film)) for film in self.films]

    def history(self) -> list[dict[str, Any]]:
        """Each change of an answer, oldest first, with every key; what is no such line, as a torn
        last one, is left out."""
        path = self.path / "history.jsonl"
        entries = []
        for line in read_text(path, errors="replace").splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, RecursionError):
                entries.append(json.loads(line))
        known = (e for e in entries if isinstance(e, dict) and isinstance(e.get("number"), int))
        return [{**_UNTOUCHED, "time": "", "via": "", **entry} for entry in known]

    def set_answer(
        self,
        film: SessionFilm,
        *,
        xyxy: Sequence[float] | None = None,
        label: str | None = None,
        flags: Collection[str] = (),
        via: str = "review",
        ignored: Iterable[Shape] = (),
    ) -> Answer:
        """Answer for one film and note it in the history.

        Args:
            xyxy: the box in film pixels; None keeps the boxes that are there.
            label: of the box; None takes the old box' label or the session's first class.
            flags: replace the ticked ones; "accepted" accepts the box that is there.
            via: who says so: review or import.
            ignored: shapes in film pixels to add, marked not to count; those there always stay.
        Raises ValueError for a film without a view, a box outside the film, an unknown flag or
        label.
        """
        where = f"film {film.number} ({film.film})"
        if not film.view:
            raise ValueError(f"{where} cannot be read and takes no box: {film.reason}")
        if set(flags) - set(FLAGS):
            rule = f"flags must be of {', '.join(FLAGS)}"
            raise ValueError(f"{rule}. Got {', '.join(flags)} instead.")
        known = label is None or label in self.classes
        require(known, f"label must be of {', '.join(self.classes)}", label)
        if xyxy is not None:
            _check_on_film(where, xyxy, film.size_hw)
        try:
            shapes = read_label_file(self.label_path(film)).shapes
        except (FileNotFoundError, ValueError):
            shapes = ()
        if "accepted" in flags:
            shapes = tuple(replace(s, flags=s.flags - {PRELABELLED}) for s in shapes)
        if xyxy is not None:
            counted = [s for s in shapes if not s.marks]
            name = label or (counted[0].label if counted else self.classes[0])
            shapes = (to_shape(film, xyxy, name), *(s for s in shapes if s.marks))
        shapes += tuple(to_shape(film, s.xyxy, s.label, marks=s.marks) for s in ignored)
        file = self._to_file(film, shapes, flags)
        answer = judge(film, file)
        self.note(film, answer, via)  # before the file: a kill between them leaves what to redo
        write_label_file(self.label_path(film), file, FLAGS)
        return self._date(film, answer)

    def write_shapes(
        self, film: SessionFilm, shapes: Iterable[Shape], flags: Collection[str] = ()
    ) -> None:
        """Write the film's label file, shapes in view pixels; `flags` are the ticked ones."""
        write_label_file(self.label_path(film), self._to_file(film, shapes, flags), FLAGS)

    @staticmethod
    def _to_file(film: SessionFilm, shapes: Iterable[Shape], flags: Collection[str]) -> LabelFile:
        assert film.frame is not None
        name, size_hw = Path(film.view).name, film.frame.canvas_hw
        return LabelFile(name, tuple(shapes), frozenset(flags), size_hw, film.film, film.sha256)

    def note(self, film: SessionFilm, answer: Answer, via: str) -> bool:
        """Add a line to the history if the answer differs from the film's last one noted. A fault
        is no answer: the last good one stands. An untouched film is nothing to note."""
        box = answer.box
        said: dict[str, Any] = {
            "state": answer.state,
            "label": box.label if box else "",
            "xyxy": [round(v, 3) for v in box.xyxy] if box else None,
            "flags": sorted(answer.flags),
        }
        if answer.ignored:
            said["ignored"] = [
                {"xyxy": [round(v, 3) for v in s.xyxy], "label": s.label, "marks": sorted(s.marks)}
                for s in answer.ignored
            ]
        last = self._last_entries().get(film.number, _UNTOUCHED)
        if answer.fault or all(last.get(key) == said.get(key) for key in (*_UNTOUCHED, "ignored")):
            return False
        moved = self._changed(film) if via == "labelme" else ""  # not when it was seen
        now = moved or datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"time": now, "number": film.number, "film": film.film, **said, "via": via}
        path = self.path / "history.jsonl"
        drop_torn_line(path)
        with path.open("ab") as file:
            append_line(file, json.dumps(entry).encode() + b"\n")
        self._last_entries()[film.number] = entry
        return True

    def note_changes(self, since: float = 0.0) -> int:
        """Note all films whose answers were changed in labelme; returns how many. `since` leaves
        out label files that were written before that time (s)."""
        films = (f for f in self.films if f.view and self._written(f) >= since)
        return sum(self.note(film, self.answer(film), "labelme") for film in films)

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
            shapes += [to_shape(film, **entry) for entry in last.get("ignored", [])]
            self.write_shapes(film, shapes, last["flags"])
            restored.append(film)
        return restored

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the session; raises ValueError while labelme or another command is at it."""
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout as error:
            what = f"'{self.path}' is open in labelme or in another command"
            raise ValueError(f"{what}; close that first.") from error

    def _last_entries(self) -> dict[int, dict[str, Any]]:
        if self._last is None:
            self._last = {entry["number"]: entry for entry in self.history()}
        return self._last

    def _date(self, film: SessionFilm, answer: Answer) -> Answer:
        """The answer with who gave it and when: from the history, or just now in labelme."""
        entry = self._last_entries().get(film.number, {})
        if entry.get("state") == answer.state:
            return replace(answer, via=str(entry["via"]), changed=str(entry["time"]))
        return replace(answer, via="labelme", changed=self._changed(film))

    def _written(self, film: SessionFilm) -> float:
        """When the label file was written (s); 0 where it is gone."""
        with contextlib.suppress(FileNotFoundError):
            return self.label_path(film).stat().st_mtime
        return 0.0

    def _changed(self, film: SessionFilm) -> str:
        """The same as UTC time, or ""."""
        if seconds := self._written(film):
            return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
        return ""


def _check_on_film(where: str, xyxy: Sequence[float], size_hw: tuple[int, int]) -> None:
    (x0, y0, x1, y1), (height, width) = xyxy, size_hw
    if not (-0.5 <= x0 < x1 <= width + 0.5 and -0.5 <= y0 < y1 <= height + 0.5):
        raise ValueError(
            f"the box of {where} must lie on the film of {width} × {height} px with its left "
            f"edge before its right one. Got {x0:.1f}, {y0:.1f}, {x1:.1f}, {y1:.1f} instead."
        )


def write_films(path: Path, films: Iterable[SessionFilm]) -> None:
    """Write films.jsonl of the session in `path`, atomically."""
    lines = [json.dumps(asdict(film), ensure_ascii=False) + "\n" for film in films]
    write_atomic(path / "films.jsonl", "".join(lines))


def to_shape(
    film: SessionFilm,
    xyxy: Sequence[float],
    label: str,
    prelabelled: bool = False,
    marks: Iterable[str] = (),
) -> Shape:
    """A box in film pixels as labelme's rectangle in view pixels."""
    assert film.frame is not None
    x0, y0, x1, y1 = (round(float(v), 3) for v in film.frame.to_model_xyxy(xyxy)[0])
    flags = frozenset({PRELABELLED} if prelabelled else ()) | frozenset(marks)
    return Shape(label, ((x0, y0), (x1, y1)), "rectangle", flags)


def judge(film: SessionFilm, file: LabelFile) -> Answer:
    """The answer that a label file is for its film: its boxes in film pixels, its state."""
    shapes = [_to_film(film, shape, "accepted" in file.flags) for shape in file.shapes]
    boxes, ignored = tuple(s for s in shapes if not s.marks), []
    for shape in (s for s in shapes if s.marks):
        x0, y0, x1, y1 = clip_xyxy(shape.xyxy, film.size_hw)[0].tolist()
        if x0 < x1 and y0 < y1:  # any shape may say what not to count; its hull is kept
            hull = replace(shape, points=((x0, y0), (x1, y1)), shape_type="rectangle")
            ignored.append(hull)
    answer = Answer("todo", boxes, file.flags, _find_foreign(film, file), ignored=tuple(ignored))
    return answer if answer.fault else replace(answer, state=_find_state(film, answer))


def _to_film(film: SessionFilm, shape: Shape, accepted: bool) -> Shape:
    """A shape in view pixels in those of the film; `prelabelled` where no hand has moved it."""
    assert film.frame is not None
    untouched = False
    if shape.prelabelled and film.prelabel_xyxy and not accepted:
        drawn = film.frame.to_model_xyxy(film.prelabel_xyxy)[0]
        untouched = bool(np.abs(np.subtract(shape.xyxy, drawn)).max() <= TOUCHED_PX)
    moved = film.frame.to_original_xyxy([point * 2 for point in shape.points])
    points = tuple((float(x), float(y)) for x, y, *_ in moved)
    flags = shape.marks | ({PRELABELLED} if untouched else set())
    return replace(shape, points=points, flags=flags)


def _find_state(film: SessionFilm, answer: Answer) -> str:
    if answer.flags & set(SKIP_FLAGS):
        return "skipped"
    if "doubtful" in answer.flags or not answer.human:
        return "todo"
    if film.prelabel_xyxy is None:
        return "drawn"
    assert film.frame is not None
    sides = film.frame.to_model_xyxy([answer.human[0].xyxy, film.prelabel_xyxy])
    return "accepted" if abs(sides[0] - sides[1]).max() <= TOUCHED_PX else "corrected"


def _find_foreign(film: SessionFilm, file: LabelFile) -> str:
    """Why this label file is not the film's own; "" when it is."""
    named = Path(file.image_path).name
    if named != Path(film.view).name:
        return f"belongs to another film: it names {named or 'no picture'}"
    if (file.sha256 and file.sha256 != film.sha256) or (file.film and file.film != film.film):
        return f"belongs to another film: it was made for {file.film}"
    if film.frame and file.size_hw and file.size_hw != film.frame.canvas_hw:
        (h, w), (vh, vw) = file.size_hw, film.frame.canvas_hw
        return f"belongs to another film: its picture is {w} × {h} px, the view {vw} × {vh}"
    return ""
