"""annotate.py export and import: boxes to and from COCO, Pascal VOC, labelme and YOLO."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cxr.boxes import clip_xyxy
from cxr.coco import CocoFilm, CocoSet, read_coco, write_coco
from cxr.page import printable
from cxr.rules import require, require_one_of
from labelling import SKIP_FLAGS, Session, SessionFilm, is_session, so_many, split_names
from labelling.formats import FORMATS
from labelling.label_files import FilmLabels, ReadRules, Unusable, name_below, ticked, to_shapes
from labelling.labelme import PRELABELLED

FormatName = Literal["coco", "voc", "labelme", "yolo"]
CARRIED_FLAGS = ("apices cut off",)  # those that say something of the box and ask for nothing
# What became of imported labels in a session: how the line of a film begins, and why it was so.
_OUTCOMES = {
    "kept": ("kept", "a human has answered"),
    "untouched": ("not set", "a detector's box that no human touched"),
    "boxless": ("not set", "labels without a box; say in labelme why there is none"),
    "unknown": ("unknown", "not a film of this session"),
}


@dataclass(frozen=True)
class ExportConfig:
    """Write the boxes of a session or a COCO file as COCO, Pascal VOC, labelme or YOLO. Of a
    session only films go out whose box a human drew, moved or accepted.

    Args:
        source: a session's folder or a COCO file.
        format: coco, voc, labelme or yolo.
        out: folder for the label files; they mirror the films' paths.
        films: folder that the films' names shall be relative to. labelme finds the films there.
            Default: the session's own.
        all: pre-labels that no human touched too, marked `prelabelled` (YOLO has no mark).
        classes: labels that may go out, in their order, with commas between. Default: the source's.
        overwrite: replace label files that are there.
    """

    source: tuple[str, ...] = ()
    format: FormatName = "coco"
    out: str = ""
    films: str = ""
    all: bool = False
    classes: list[str] | str = field(default_factory=list)
    overwrite: bool = False

    def __post_init__(self) -> None:
        count = len(self.source)
        require(count == 1, "source must be one session's folder or COCO file", count)
        require_one_of(self, format=FORMATS)
        rule = "out must be the folder for the label files, such as --out labels/"
        require(bool(self.out), rule, "")


@dataclass(frozen=True)
class ImportConfig:
    """Read COCO, Pascal VOC, labelme or YOLO labels into a COCO file or into a session. Each label
    file that cannot be used is named with its reason, and the rest is taken; the exit code is then
    1. In a session no human's box is ever replaced.

    Args:
        path: a label file or a folder of them.
        format: coco, voc, labelme or yolo.
        films: folder of the films: labels must mean films in it, of the size that they say. YOLO
            needs it. Default: with a session, the session's own.
        into: COCO file to write, such as boxes.json.
        session: session to fill where no human has answered yet.
        annotator: who drew the boxes; must be the session's annotator.
        classes: labels that may come in, with commas between. Default: the session's, else all.
        hull: take the hull of polygons, circles and turned rectangles.
        overwrite: replace the file `into` when it is there.
    """

    path: tuple[str, ...] = ()
    format: FormatName = "coco"
    films: str = ""
    into: str = ""
    session: str = ""
    annotator: str = ""
    classes: list[str] | str = field(default_factory=list)
    hull: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        count, json = len(self.path), not self.into or Path(self.into).suffix.lower() == ".json"
        require(count == 1, "path must be one label file or folder", count)
        require_one_of(self, format=FORMATS)
        if bool(self.into) == bool(self.session):
            raise ValueError("into or session must say where the boxes go, and only one of them.")
        require(json, "into must be a file named .json", self.into)
        who = "annotator must say who drew the boxes that go into the session"
        require(bool(self.annotator) or not self.session, who, "")
        rule = "films must be the folder of the films: YOLO's fractions need their sizes"
        require(self.format != "yolo" or bool(self.films or self.session), rule, "")


# Export


def run_export(config: ExportConfig) -> int:
    """Write the label files and tell what stayed behind; 1 for faults or trouble with files."""
    out, kind = Path(config.out), config.format
    try:
        if out.is_file() and kind != "coco":
            raise ValueError(f"out must be a folder. Got the file '{out}' instead.")
        outgoing = read_outgoing(config)
        for fault in outgoing.faults:
            _say(f"left out  {fault}")
        left = ", ".join(f"{count} {state}" for state, count in sorted(outgoing.left.items()))
        if left:
            count = outgoing.left.total()
            _say(f"{count} films without a box that counts stay behind: {left}")
        if not (films := outgoing.coco.films):
            rule = "source must have a film that can go out"
            raise ValueError(f"{rule}. '{config.source[0]}' has none.")
        paths = FORMATS[kind].write(outgoing.coco, out, outgoing.films, config.overwrite)
    except (OSError, ValueError) as error:
        return _fail(error)
    if kind == "yolo":
        if count := sum(PRELABELLED in film.extra for film in films):
            what = "pre-labels that no human touched are among them, and YOLO cannot say so"
            _say(f"{what}: {count}")
        if count := sum(int(film.ignored.sum()) for film in films):
            _say(f"boxes marked not to count stay behind, for YOLO cannot mark them: {count}")
    files = so_many(len(paths), f"{kind} file")
    _say(f"{_count(outgoing.coco)} → {files} in {config.out}")
    return int(bool(outgoing.faults))


@dataclass
class Outgoing:
    """Films that go out, `extra["prelabelled"]` where no human touched the box, and the rest."""

    films: Path | None  # the folder that file names are relative to, None where unknown
    coco: CocoSet
    faults: list[Unusable] = field(default_factory=list)  # films that should go out and cannot
    left: Counter[str] = field(default_factory=Counter)  # that stayed behind, by their state


def read_outgoing(config: ExportConfig) -> Outgoing:
    """Read the session or COCO file; raises FileNotFoundError or ValueError where it cannot."""
    source, films = Path(config.source[0]), Path(config.films) if config.films else None
    if films is not None and not films.is_dir():
        raise FileNotFoundError(f"films must be a folder. Got '{films}' instead.")
    if is_session(source):
        session = Session.open(source)
        classes = split_names(config.classes) or session.classes
        return _read_session(session, films, classes, config.all)
    if not source.is_file():
        rule = "source must be a session's folder or a COCO file"
        raise FileNotFoundError(f"{rule}. Got '{source}' instead.")
    coco = read_coco(source)
    classes = split_names(config.classes) or coco.classes
    out = Outgoing(films, CocoSet([], classes, coco.info))
    for film in coco.films:
        labels = [coco.classes[i] for i in film.labels]
        if foreign := sorted(set(labels) - set(classes)):
            out.faults.append(Unusable(film.file_name, _say_foreign(foreign[0], classes)))
        else:
            index = tuple(classes.index(label) for label in labels)
            name = film.file_name.replace("\\", "/")  # a path of Windows
            out.coco.films.append(replace(film, file_name=name, labels=index))
    return out


def _read_session(
    session: Session, films: Path | None, classes: tuple[str, ...], untouched: bool
) -> Outgoing:
    info = {"description": f"Boxes drawn by {session.annotator}", "session": session.session_id}
    out = Outgoing(films or session.root, CocoSet([], classes, info))
    for film, answer in session.answers():
        box = answer.box
        if untouched and answer.state == "todo":  # the detector's box, which waits for a human
            box = next((b for b in answer.boxes if b.usable and b.prelabelled), None)
        name = name_below(session.film_path(film), films) if films else film.film
        foreign = {s.label for s in (box, *answer.ignored) if s} - set(classes) if box else set()
        if answer.fault and answer.state != "unreadable":
            reason = f"its label file {answer.fault}"
        elif answer.box and len(answer.human) > 1:
            fix = "delete the wrong one (`annotate.py check` lists such)"
            reason = f"{len(answer.human)} boxes were drawn; {fix}"
        elif foreign:
            reason = _say_foreign(min(foreign), classes)
        elif box and name is None:
            reason = f"its film lies outside {films}; pass --films with a folder that holds all"
        elif box is None or name is None:
            out.left["doubtful" if "doubtful" in answer.flags else answer.state] += 1
            continue
        else:
            facts = ("patient_id", "label", "sublabel", "source")
            extra: dict[str, Any] = {k: getattr(film, k) for k in facts if getattr(film, k)}
            extra |= {} if box.prelabelled else {"annotator": session.annotator}
            if flags := sorted(answer.flags - {"accepted"}):
                extra["flags"] = flags
            labels = FilmLabels(name, film.size_hw, (box, *answer.ignored), extra)
            out.coco.films.append(labels.to_film(classes))
            continue
        out.faults.append(Unusable(film.film, reason))
    return out


def _say_foreign(label: str, classes: Sequence[str]) -> str:
    return f"label {label!r} is not of {', '.join(classes) or 'no class'}"


# Import


def run_import(config: ImportConfig) -> int:
    """Read the label files, write what can be used and name the rest; 1 when there is any."""
    try:
        return int(bool(_fill(config) if config.session else _write(config)))
    except (OSError, ValueError) as error:
        return _fail(error)


def _write(config: ImportConfig) -> list[Unusable]:
    into = Path(config.into)
    if into.exists() and not config.overwrite:
        fix = "take another name or pass --overwrite"
        raise FileExistsError(f"into must be a new file. '{into}' is there; {fix}.")
    films = Path(config.films) if config.films else None
    rules = ReadRules(split_names(config.classes), config.hull)
    coco, unusable = FORMATS[config.format].read(Path(config.path[0]), films, rules)
    _report_unusable(unusable)
    if not coco.films:
        what = f"Nothing in '{config.path[0]}' can be used; '{into}' was not written."
        raise ValueError(f"path must hold labels of a film. {what}")
    who = {"annotator": config.annotator} if config.annotator else {}
    for at, film in enumerate(coco.films):
        if not film.extra.get(PRELABELLED):
            coco.films[at] = replace(film, extra=who | film.extra)
    write_coco(into, coco)
    _say(f"{_count(coco)} → {into}")
    return unusable


def _fill(config: ImportConfig) -> list[Unusable]:
    session = Session.open(config.session)
    if config.annotator != session.annotator:
        raise ValueError(
            f"annotator must be {session.annotator}, whose session '{config.session}' is. Got "
            f"{config.annotator} instead; boxes of another hand go into a session of their own."
        )
    classes = split_names(config.classes) or session.classes
    if set(classes) - set(session.classes):
        rule = f"classes must be of {', '.join(session.classes)}, the session's"
        raise ValueError(f"{rule}. Got {', '.join(classes)} instead.")
    films = Path(config.films) if config.films else session.root
    named = {  # a film outside of the folder keeps its own name
        (name_below(session.film_path(f), films) if config.films else None) or f.film: f
        for f in session.films
    }
    known = {name: film.size_hw for name, film in named.items()}
    rules = ReadRules(classes, config.hull, known)
    folder = films if films.is_dir() or config.films else None  # the session knows their sizes
    with session.locked():
        session.restore_lost()  # a film whose label file was deleted may have a human's box
        coco, unusable = FORMATS[config.format].read(Path(config.path[0]), folder, rules)
        outcomes, faults = fill_session(session, coco, named)
    _report_unusable([*unusable, *faults])
    for outcome, (word, why) in _OUTCOMES.items():
        for name in outcomes[outcome]:
            _say(f"{word:8}  {name}: {why}")
    count = {outcome: len(outcomes[outcome]) for outcome in (*_OUTCOMES, "filled", "skipped")}
    _say(
        f"{count['filled']} boxes set, {count['skipped']} films skipped by their flags, "
        f"{count['kept']} kept, {count['untouched'] + count['boxless']} not set, "
        f"{count['unknown']} unknown, {len(faults)} refused"
    )
    return [*unusable, *faults]


def fill_session(
    session: Session, coco: CocoSet, named: Mapping[str, SessionFilm]
) -> tuple[Mapping[str, list[str]], list[Unusable]]:
    """Set the answers of a locked session, only where no human has answered yet. Returns films by
    what became of their labels: filled (a box was set), skipped (flags say why there is none) or a
    word of _OUTCOMES; and those whose box the session could not take."""
    outcomes, faults = defaultdict[str, list[str]](list), []
    for film in coco.films:
        name = film.file_name
        try:
            outcomes[_fill_one(session, named.get(name), film, coco.classes)].append(name)
        except ValueError as error:
            faults.append(Unusable(name, str(error)))
    return outcomes, faults


def _fill_one(
    session: Session, target: SessionFilm | None, film: CocoFilm, classes: Sequence[str]
) -> str:
    if target is None:
        return "unknown"
    if not session.answer(target).untouched:
        return "kept"
    if film.extra.get(PRELABELLED):
        return "untouched"
    flags = ticked(film.extra)
    inside = replace(film, boxes_xyxy=clip_xyxy(film.boxes_xyxy, target.size_hw))
    shapes = to_shapes(inside, classes)
    counted, ignored = ([s for s in shapes if bool(s.marks) == m] for m in (False, True))
    if len(counted) > 1:
        raise ValueError(f"a session takes one box a film. Got {len(counted)}")
    if counted:
        box, carried = counted[0], [f for f in flags if f in CARRIED_FLAGS]
        said: Any = {"flags": carried, "via": "import", "ignored": ignored}
        session.set_answer(target, xyxy=box.xyxy, label=box.label, **said)
        return "filled"
    skips = [f for f in flags if f in SKIP_FLAGS]
    if not skips:
        return "boxless"
    session.set_answer(target, flags=skips, via="import")
    return "skipped"


def _count(coco: CocoSet) -> str:
    boxes = [len(film.counted.labels) for film in coco.films]
    marked = sum(len(film.labels) for film in coco.films) - sum(boxes)
    more = f", and {marked} marked not to count" if marked else ""
    films = so_many(len(boxes), "film")
    return f"{films} with {so_many(sum(boxes), 'box')} ({boxes.count(0)} without one){more}"


def _report_unusable(unusable: Sequence[Unusable]) -> None:
    for one in unusable:
        _say(f"unusable  {one}")


def _fail(error: Exception) -> int:
    for line in str(error).splitlines():
        _say(line, sys.stderr)
    return 1


def _say(text: str, file: Any = None) -> None:
    """Print a line; names of films are others' text and may hold control characters."""
    print(printable(text), file=file or sys.stdout)
