"""annotate.py export and import: boxes to and from COCO, Pascal VOC, labelme and YOLO."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

from cxr.coco import CocoSet, write_coco
from labelling import format_coco, format_labelme, format_voc, format_yolo
from labelling.export_source import Outgoing, read_outgoing
from labelling.label_sets import ReadRules, Unusable
from labelling.session import PRELABELLED, Session
from labelling.session_fill import FillReport, fill_session, name_films

FORMATS: dict[str, ModuleType] = {
    "coco": format_coco,
    "voc": format_voc,
    "labelme": format_labelme,
    "yolo": format_yolo,
}
FormatName = Literal["coco", "voc", "labelme", "yolo"]


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
        if len(self.source) != 1:
            raise ValueError(
                f"source must be one session's folder or COCO file. Got {len(self.source)} instead."
            )
        _check_format(self.format)
        if not self.out:
            raise ValueError(
                "out must be the folder for the label files, such as --out labels/. Got none."
            )


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
        if len(self.path) != 1:
            raise ValueError(f"path must be one label file or folder. Got {len(self.path)}.")
        _check_format(self.format)
        if bool(self.into) == bool(self.session):
            raise ValueError("into or session must say where the boxes go, and only one of them.")
        if self.into and Path(self.into).suffix.lower() != ".json":
            raise ValueError(f"into must be a file named .json. Got '{self.into}' instead.")
        if self.session and not self.annotator:
            raise ValueError(
                "annotator must say who drew the boxes that go into the session. Got nobody."
            )
        if self.format == "yolo" and not (self.films or self.session):
            raise ValueError(
                "films must be the folder of the films: YOLO's fractions need their "
                "sizes. Got none."
            )


def run_export(config: ExportConfig) -> int:
    """Write the label files and tell what stayed behind; 1 for faults or trouble with files."""
    films = Path(config.films) if config.films else None
    try:
        if Path(config.out).is_file() and config.format != "coco":
            raise ValueError(f"out must be a folder. Got the file '{config.out}' instead.")
        outgoing = read_outgoing(Path(config.source[0]), films, _names(config.classes), config.all)
        _report_left(outgoing)
        if not outgoing.coco.films:
            raise ValueError(
                f"source must have a film that can go out. '{config.source[0]}' has none."
            )
        paths = FORMATS[config.format].write(
            outgoing.coco, Path(config.out), outgoing.films, config.overwrite
        )
    except (OSError, ValueError) as error:
        _say(str(error), sys.stderr)
        return 1
    unmarked = sum(PRELABELLED in film.extra for film in outgoing.coco.films)
    if unmarked and config.format == "yolo":
        _say(f"pre-labels that no human touched are among them, and YOLO cannot say so: {unmarked}")
    files = "file" if len(paths) == 1 else "files"
    _say(f"{_count(outgoing.coco)} → {len(paths)} {config.format} {files} in {config.out}")
    return int(bool(outgoing.faults))


def run_import(config: ImportConfig) -> int:
    """Read the label files, write what can be used and name the rest; 1 when there is any."""
    try:
        return _fill(config) if config.session else _write(config)
    except (OSError, ValueError) as error:
        _say(str(error), sys.stderr)
        return 1


def _write(config: ImportConfig) -> int:
    into = Path(config.into)
    if into.exists() and not config.overwrite:
        raise FileExistsError(
            f"into must be a new file. '{into}' is there; take another name or pass --overwrite."
        )
    films = Path(config.films) if config.films else None
    rules = ReadRules(_names(config.classes), config.hull)
    coco, unusable = FORMATS[config.format].read(Path(config.path[0]), films, rules)
    _report_unusable(unusable)
    if not coco.films:
        raise ValueError(
            f"path must hold labels of a film. Nothing in '{config.path[0]}' can be "
            f"used; '{into}' was not written."
        )
    if config.annotator:
        coco = replace(
            coco,
            films=[
                f
                if f.extra.get(PRELABELLED)
                else replace(f, extra={"annotator": config.annotator, **f.extra})
                for f in coco.films
            ],
        )
    write_coco(into, coco)
    _say(f"{_count(coco)} → {into}")
    return int(bool(unusable))


def _fill(config: ImportConfig) -> int:
    session = Session.open(config.session)
    if config.annotator != session.annotator:
        raise ValueError(
            f"annotator must be {session.annotator}, whose session '{config.session}' is. Got "
            f"{config.annotator} instead; boxes of another hand go into a session of their own."
        )
    classes = _names(config.classes) or session.classes
    if set(classes) - set(session.classes):
        raise ValueError(
            f"classes must be of {', '.join(session.classes)}, the session's. Got "
            f"{', '.join(classes)} instead."
        )
    films = Path(config.films) if config.films else session.root
    named = name_films(session, films) if config.films else {f.film: f for f in session.films}
    known = {name: film.size_hw for name, film in named.items()}
    rules = ReadRules(classes, config.hull, known)
    folder = films if films.is_dir() or config.films else None  # the session knows their sizes
    with session.locked():
        session.restore_lost()  # a film whose label file was deleted may have a human's box
        coco, unusable = FORMATS[config.format].read(Path(config.path[0]), folder, rules)
        report = fill_session(session, coco, named)
    unusable += [Unusable(name, reason) for name, reason in report.faults]
    _report_unusable(unusable)
    _report_fill(report)
    return int(bool(unusable))


def _check_format(name: str) -> None:
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}. Got '{name}' instead.")


def _names(classes: Sequence[str] | str) -> tuple[str, ...]:
    parts = classes.split(",") if isinstance(classes, str) else classes
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _count(coco: CocoSet) -> str:
    boxes = sum(len(film.boxes_xyxy) for film in coco.films)
    empty = sum(not len(film.boxes_xyxy) for film in coco.films)
    return f"{len(coco.films)} films with {boxes} boxes ({empty} without one)"


def _report_left(outgoing: Outgoing) -> None:
    for fault in outgoing.faults:
        _say(f"left out  {fault}")
    left = ", ".join(f"{count} {state}" for state, count in sorted(outgoing.left.items()))
    if left:
        _say(f"{sum(outgoing.left.values())} films without a box that counts stay behind: {left}")


def _report_unusable(unusable: Iterable[Unusable]) -> None:
    for one in unusable:
        _say(f"unusable  {one}")


def _report_fill(report: FillReport) -> None:
    for word, names, why in (
        ("kept", report.kept, "a human has answered"),
        ("not set", report.untouched, "a detector's box that no human touched"),
        ("not set", report.boxless, "labels without a box; say in labelme why there is none"),
        ("unknown", report.unknown, "not a film of this session"),
    ):
        for name in names:
            _say(f"{word:8}  {name}: {why}")
    _say(
        f"{len(report.filled)} boxes set, {len(report.skipped)} films skipped by their flags, "
        f"{len(report.kept)} kept, {len(report.untouched) + len(report.boxless)} not set, "
        f"{len(report.unknown)} unknown, {len(report.faults)} refused"
    )


def _say(text: str, file: object = None) -> None:
    """Print a line; names of films are others' text and may hold control characters."""
    lines = text.splitlines() if file else [text]
    for line in lines:
        safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        print(safe, file=file or sys.stdout)  # type: ignore[arg-type]
