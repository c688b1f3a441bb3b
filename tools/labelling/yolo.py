"""YOLO: labels/<film>.txt with a line `class cx cy w h` for each box, classes.txt and data.yaml.

The four numbers are fractions of the film's width and height; a film without a box has an empty
file. Trainers look for the labels of images/a/film.png in labels/a/film.txt: a film's label file
lies at its relative path below labels/, where a leading folder images/ stands for itself. The label
file does not name its film, so two films that differ only in their suffix cannot both go out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cxr.coco import CocoFilm, CocoSet
from cxr.workdir import write_atomic
from labelling.label_files import (
    FilmFinder,
    FilmLabels,
    LabelError,
    LabelFormat,
    ReadRules,
    SizeHw,
    Unusable,
    check_free,
    compose,
    list_label_files,
    read_files,
    stem_of,
)
from labelling.session import Xyxy

LABELS, CLASSES, DATA = "labels", "classes.txt", "data.yaml"
_HEAD = """\
# Films lie, or are linked, in images/ beside labels/. They are not shared among training and
# validation here: do so by patient before training. An empty path means this file's folder.
"""


class Yolo(LabelFormat):
    """One text file a film, and the classes' names beside them."""

    suffix = ".txt"

    def place(self, film: str, alike: bool) -> str:
        return f"{LABELS}/{label_key(film)}{self.suffix}"

    def write(
        self, coco: CocoSet, out: Path, films: Path | None = None, overwrite: bool = False
    ) -> list[Path]:
        """As the base, with classes.txt and data.yaml."""
        if any("\n" in name or name != name.strip() for name in coco.classes):
            raise ValueError(f"classes must be one line each. Got {list(coco.classes)} instead.")
        check_free([out / CLASSES, out / DATA], overwrite)
        paths = super().write(coco, out, films, overwrite)
        names = dict(enumerate(coco.classes))
        data = {"path": None, "train": "images", "val": "images", "names": names}
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        write_atomic(out / CLASSES, "".join(f"{name}\n" for name in coco.classes))
        write_atomic(out / DATA, _HEAD + text)
        return paths

    def save(
        self, path: Path, film: CocoFilm, classes: tuple[str, ...], films: Path | None
    ) -> None:
        height, width = film.size_hw
        lines = []
        for (x0, y0, x1, y1), label in zip(film.boxes_xyxy.tolist(), film.labels, strict=True):
            centre = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
            size = (x1 - x0) / width, (y1 - y0) / height
            lines.append(" ".join([str(label), *(f"{v:.8f}" for v in (*centre, *size))]) + "\n")
        write_atomic(path, "".join(lines))

    def read(
        self, path: Path, films: Path | None = None, rules: ReadRules | None = None
    ) -> tuple[CocoSet, list[Unusable]]:
        """Read one label file, a folder of them, or a data set's folder with labels/ in it.

        Films are found by relative path, else by stem; their sizes are read from them.

        Raises:
            ValueError: without films, without the classes' names.
        """
        rules = rules or ReadRules()
        if films is None and rules.known is None:
            raise ValueError(
                "films must be the films' folder: YOLO's fractions need their sizes. "
                "Got none instead."
            )
        stems = _Stems(FilmFinder(films, rules.known))
        base, files = list_label_files(path, self.suffix, LABELS)
        classes, own = _find_classes(base, rules)
        keys = {f: compose(f.relative_to(base).as_posix().removesuffix(f.suffix)) for f in files}
        if own == base / CLASSES or not stems.in_place(CLASSES.removesuffix(".txt")):
            keys.pop(base / CLASSES, None)
        # labels that lie as their film does go first: no stem may take its film from them
        files = sorted(keys, key=lambda file: not stems.in_place(keys[file]))
        files = [f for f in files if not f.name.startswith("README.") or stems.in_place(keys[f])]

        def load(file: Path) -> FilmLabels:
            film = stems.find(keys[file])
            return _read_film(file, film, stems.finder.check_size(film, None), classes, rules.hull)

        return read_files(files, base, rules, load, classes)


def label_key(film: str) -> str:
    """The film's path below labels/, without the suffix."""
    return compose(stem_of(film).removeprefix("images/"))


def _drop_folder(key: str, folder: str) -> str:
    """The key without its last folder of that name: train/labels/a is the film train/images/a."""
    parts = key.split("/")
    at = max((i for i, part in enumerate(parts[:-1]) if part == folder), default=None)
    return key if at is None else "/".join(parts[:at] + parts[at + 1 :])


class _Stems:
    """The films by the last part of their label file's path."""

    def __init__(self, finder: FilmFinder) -> None:
        self.finder = finder
        self._films: dict[str, list[str]] = defaultdict(list)
        for film in sorted(finder.names):
            self._films[label_key(film).rpartition("/")[2]].append(film)

    def find(self, key: str) -> str:
        """Raises LabelError when no film fits, or several do."""
        same = self._films.get(key.rpartition("/")[2], [])
        ends = [f for f in same if f"/{label_key(f)}".endswith(f"/{key}")]
        films = self.in_place(key) or ends or same
        if not films:
            raise LabelError("no film of this name lies in the films' folder")
        if len(films) > 1:
            raise LabelError(f"its film may be {films[0]} or {films[1]}")
        return films[0]

    def in_place(self, key: str) -> list[str]:
        """The films whose label file lies at this path."""
        dropped = _drop_folder(key, LABELS)
        for wanted, folder in ((key, ""), (dropped, ""), (dropped, "images")):
            same = self._films.get(key.rpartition("/")[2], [])
            if films := [f for f in same if _drop_folder(label_key(f), folder) == wanted]:
                return films
        return []


def _find_classes(base: Path, rules: ReadRules) -> tuple[tuple[str, ...], Path | None]:
    """The classes' names in the order of their numbers, and the file they stand in."""
    for folder in (base, base.parent):
        data, listed = folder / DATA, folder / CLASSES
        if data.is_file():
            return _read_names(data), data
        if listed.is_file() and not (folder == base and (base.parent / CLASSES).is_file()):
            names = listed.read_text(encoding="utf-8-sig").splitlines()
            return tuple(n.strip() for n in names if n.strip()), listed
    if rules.classes:
        return rules.classes, None
    raise ValueError(
        f"classes must be named in {DATA} or {CLASSES} beside the labels, or by --classes. Got "
        f"none of them in '{base}' instead."
    )


def _read_names(path: Path) -> tuple[str, ...]:
    """`names` of a data.yaml: a list, or a table from number to name."""
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' must be YAML. {error}") from error
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"names of '{path}' must be a list, or numbered from 0.")
    if not all(isinstance(name, str | int | float) for name in names):
        raise ValueError(f"names of '{path}' must be texts.")
    return tuple(str(name) for name in names)


def _read_film(
    file: Path, film: str, size_hw: SizeHw, classes: Sequence[str], hull: bool
) -> FilmLabels:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise LabelError(f"not text: {error}") from error
    labels, boxes = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            label, box = _read_line(f"line {number}", line.split(), size_hw, hull)
            if not 0 <= label < len(classes):
                raise LabelError(f"line {number}: class {label} is none of 0 to {len(classes) - 1}")
            labels.append(classes[label])
            boxes.append(box)
    return FilmLabels(film, size_hw, tuple(labels), boxes, {})


def _read_line(where: str, words: list[str], size_hw: SizeHw, hull: bool) -> tuple[int, Xyxy]:
    """The class and the box, xyxy in film pixels."""
    polygon = len(words) >= 7 and len(words) % 2 == 1
    if len(words) != 5 and not polygon:
        raise LabelError(f"{where} must be class cx cy w h. Got {len(words)} words")
    try:
        label, numbers = int(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise LabelError(f"{where} must be numbers, the class a whole one") from error
    if not all(map(math.isfinite, numbers)):
        raise LabelError(f"{where} must be finite numbers")
    if max(map(abs, numbers)) > 2:  # the box itself is checked in pixels
        raise LabelError(f"{where} must be fractions of the film's size, not pixels")
    if polygon and not hull:
        raise LabelError(f"{where} is a polygon, no box; --hull takes its hull")
    height, width = size_hw
    if polygon:
        xs, ys = numbers[0::2], numbers[1::2]
        return label, (min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height)
    cx, cy, w, h = numbers
    x0, y0, x1, y1 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    return label, (x0 * width, y0 * height, x1 * width, y1 * height)
