"""What the label formats share: which files to read, what is checked of each film, where to write.

A format module has `write(coco, out, films, overwrite)` and `read(path, films, rules)`. All boxes
between them are xyxy in film pixels, as cxr.coco has them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import track

from cxr.boxes import as_boxes
from cxr.coco import CocoFilm, CocoSet, find_faults, to_coco
from cxr.film import FILM_SUFFIXES
from cxr.workdir import console
from labelling.film_finder import LabelError
from labelling.session import is_session

MAX_LABEL_BYTES = 256 << 20  # labelme may keep the whole picture in its file


@dataclass(frozen=True)
class Unusable:
    """A label file, or one film of it, that cannot be used, and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class ReadRules:
    """How label files are judged.

    Attributes:
        classes: the labels allowed; empty allows all that the files use.
        hull: take the smallest box round a shape that is no rectangle.
        known: film name → (height, width) where the films are known beforehand, as a session's
            are; a label of another film is then no fault.
    """

    classes: tuple[str, ...] = ()
    hull: bool = False
    known: Mapping[str, tuple[int, int]] | None = None


@dataclass(frozen=True)
class FilmLabels:
    """What a label file says of one film; boxes (N, 4) xyxy in film pixels."""

    film: str
    size_hw: tuple[int, int]
    labels: tuple[str, ...]
    boxes_xyxy: Sequence[Sequence[float]]
    extra: dict[str, Any] = field(default_factory=dict)


class Collector:
    """Gathers films into one set and refuses those with a fault, each whole: a film that lost one
    of its boxes would teach that there is nothing."""

    def __init__(self, rules: ReadRules) -> None:
        self.rules = rules
        self.unusable: list[Unusable] = []
        self._films: dict[str, FilmLabels] = {}
        self._where: dict[str, str] = {}

    def add(self, where: str, labels: FilmLabels) -> None:
        """Take a film's labels; raises LabelError for those that cannot be used."""
        if labels.film in self._films:
            raise LabelError(f"{labels.film} has labels in {self._where[labels.film]} already")
        if not all(labels.labels):
            raise LabelError("a box of it has no label")
        foreign = sorted(set(labels.labels) - set(self.rules.classes))
        if self.rules.classes and foreign:
            raise LabelError(f"label {foreign[0]!r} is not of {', '.join(self.rules.classes)}")
        try:
            faults = find_faults(to_coco(_single(labels)))
        except OverflowError as error:
            raise LabelError(f"a number of it is beyond all films: {error}") from error
        if faults:
            raise LabelError(faults[0])
        self._films[labels.film], self._where[labels.film] = labels, where

    def refuse(self, where: str, reason: object) -> None:
        """Note a label file that cannot be used."""
        self.unusable.append(Unusable(where, str(reason)))

    def finish(
        self, classes: Sequence[str] = (), info: dict[str, Any] | None = None
    ) -> tuple[CocoSet, list[Unusable]]:
        """The set and what is not in it; `classes` are those that the source declares."""
        used = {label for film in self._films.values() for label in film.labels}
        order = self.rules.classes or tuple(classes) or tuple(sorted(used))
        films = [_to_film(labels, order) for labels in self._films.values()]
        return CocoSet(films, order, info or {}), self.unusable


def _to_film(labels: FilmLabels, classes: Sequence[str]) -> CocoFilm:
    index = tuple(classes.index(label) for label in labels.labels)
    return CocoFilm(labels.film, labels.size_hw, as_boxes(labels.boxes_xyxy), index, labels.extra)


def _single(labels: FilmLabels) -> CocoSet:
    classes = tuple(dict.fromkeys(labels.labels))
    return CocoSet([_to_film(labels, classes)], classes)


def read_files(
    files: Iterable[Path],
    base: Path,
    rules: ReadRules,
    read_one: Callable[[Path], FilmLabels],
    classes: Sequence[str] = (),
) -> tuple[CocoSet, list[Unusable]]:
    """Read one label file after the other; what cannot be used is noted, and the rest goes on."""
    collector = Collector(rules)
    for file in track(list(files), "reading labels", console=console, transient=True):
        where = file.relative_to(base).as_posix()
        try:
            collector.add(where, read_one(file))
        except LabelError as error:
            collector.refuse(where, error)
        except OSError as error:
            collector.refuse(where, f"it cannot be read: {error.strerror or error}")
    return collector.finish(classes)


def list_label_files(path: Path, suffix: str, marker: str = "") -> tuple[Path, list[Path]]:
    """The folder that label files are relative to, and the files.

    `path` is one file or a folder searched through; `marker` is the name of the folder that labels
    conventionally lie in ("labels", "Annotations"), found above or below `path`.

    Raises:
        FileNotFoundError, ValueError: for a path without such files.
    """
    if path.is_file():
        above = [p for p in path.resolve().parents if p.name == marker]
        return (above[0] if above else path.resolve().parent), [path.resolve()]
    if not path.is_dir():
        raise FileNotFoundError(
            f"path must be a label file or a folder of label files. Got '{path}', which does not "
            "exist."
        )
    if is_session(path) or is_session(path.parent):
        raise ValueError(
            f"path must be label files of films. Got '{path}', a labelling session, whose boxes "
            "are in the pixels of its views: export the session first."
        )
    base = path / marker if marker and (path / marker).is_dir() else path
    files = [
        p
        for p in base.rglob("*")
        if p.suffix.lower() == suffix
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(base).parts)
    ]
    if not files:
        raise ValueError(f"path must hold label files named *{suffix}. Got '{path}' with none.")
    return base, sorted(files)


def check_bytes(file: Path) -> None:
    """Raises LabelError for a file that is too large to be labels."""
    if file.stat().st_size > MAX_LABEL_BYTES:
        raise LabelError(f"larger than {MAX_LABEL_BYTES >> 20} MiB, too large for labels")


def ticked(extra: Mapping[str, Any]) -> list[str]:
    """The flags of a film's `extra`, which may come from any COCO file."""
    flags = extra.get("flags")
    return [f for f in flags if isinstance(f, str)] if isinstance(flags, list) else []


def stem_of(film: str) -> str:
    """The film's name without the suffix of a film; "IM.0001" and "1.2.840" keep all of theirs."""
    path = PurePosixPath(film)
    return str(path.with_suffix("")) if path.suffix.lower() in FILM_SUFFIXES else film


def file_places(films: Sequence[CocoFilm], suffix: str) -> Callable[[str], str]:
    """Film name → label file: the film's path with another suffix. Films of one folder that differ
    only in their suffix, as a.png and a.dcm, keep it: a.png.xml, a.dcm.xml."""
    uses = Counter(stem_of(film.file_name) for film in films)

    def place(name: str) -> str:
        stem = stem_of(name)
        return f"{stem if uses[stem] == 1 else name}{suffix}"

    return place


def plan_files(
    films: Sequence[CocoFilm], out: Path, place: Callable[[str], str], overwrite: bool
) -> list[Path]:
    """Where the label file of each film goes; nothing is written yet.

    Raises:
        ValueError: for a film outside of its folder, for two films that share a label file.
        FileExistsError: when a file would be replaced without `overwrite`.
    """
    owners: dict[str, str] = {}
    for film in films:
        check_name(film.file_name)
        other = owners.setdefault(place(film.file_name), film.file_name)
        if other != film.file_name:
            raise ValueError(
                f"'{other}' and '{film.file_name}' would share the label file "
                f"{place(film.file_name)}; rename one of the films."
            )
    paths = [out / place(film.file_name) for film in films]
    check_free(paths, overwrite)
    return paths


def check_name(film: str) -> None:
    """Raises ValueError for a film that cannot be named by a path below the films' folder."""
    parts = film.replace("\\", "/").split("/")
    if PurePosixPath(film).is_absolute() or ".." in parts or "\0" in film:
        raise ValueError(
            f"'{film}' must be a path below the films' folder for its labels to go out; pass "
            "--films with a folder that holds all films."
        )
    try:
        os.fsencode(film).decode("utf-8")
    except ValueError as error:
        raise ValueError(f"{film!r} must be a name in UTF-8; rename the film.") from error


def check_free(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises FileExistsError when one of the files is there and may not be replaced."""
    there = [] if overwrite else [p for p in paths if p.exists()]
    if there:
        raise FileExistsError(
            f"out must be a folder without label files of these films. '{there[0]}' is there "
            f"({len(there)} in all); take another folder or pass --overwrite."
        )
