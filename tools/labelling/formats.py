"""The label formats: COCO, labelme, Pascal VOC and YOLO.

COCO: one file for all films; see cxr.coco.

labelme: points are continuous film pixels, pixel i covering [i, i + 1). `imagePath` leads from the
label file to the film where the film lies in `films`, and is its bare name otherwise. The key
`lungfirst`, which labelme keeps, names the film for labels that were moved. A box that the detector
drew and nobody accepted carries the flag `prelabelled`.

VOC counts pixels from 1 and includes the last one, so that a box (x0, y0, x1, y1) is written as

    xmin = x0 + 1    ymin = y0 + 1    xmax = x1    ymax = y1

and the whole film is 1, 1, width, height. Its readers expect whole numbers: edges are rounded (by
at most 0.5 px), and keep their decimals only where a thin box would vanish. On reading, decimals
are taken as they are. `folder` holds the film's folder, `filename` its bare name.

YOLO: labels/<film>.txt with a line `class cx cy w h` for each box, classes.txt and data.yaml. The
four numbers are fractions of the film's width and height; a film without a box has an empty file.
Trainers look for the labels of images/a/film.png in labels/a/film.txt: a film's label file lies at
its relative path below labels/, where a leading folder images/ stands for itself. The label file
does not name its film, so two films that differ only in their suffix cannot both go out.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape

import yaml

from cxr.boxes import Xyxy
from cxr.coco import MARKS, CocoFilm, CocoSet, read_coco, write_coco
from cxr.workdir import read_text, write_atomic
from labelling.label_files import (
    Collector,
    Entry,
    FilmFinder,
    FilmLabels,
    LabelError,
    LabelFormat,
    Names,
    ReadRules,
    SizeHw,
    check_free,
    compose,
    stem_of,
    ticked,
    to_rectangle,
    to_shapes,
)
from labelling.labelme import PRELABELLED, LabelFile, Shape, read_label_file, write_label_file

LABELS, CLASSES, DATA = "labels", "classes.txt", "data.yaml"
HULL_SHAPES = ("polygon", "oriented_rectangle", "circle")
DATABASE = "lungfirst"  # says that VOC's `folder` is a path, not the name of a data set
_NO_XML_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no", "unspecified")


class Coco(LabelFormat):
    """`out`/coco.json, or `out` itself when it is named .json."""

    suffix = ".json"

    def write(
        self, coco: CocoSet, out: Path, films: Path | None = None, overwrite: bool = False
    ) -> list[Path]:
        path = out if out.suffix.lower() == ".json" else out / "coco.json"
        check_free([path], overwrite)
        write_coco(path, coco)
        return [path]

    def entries(self, base: Path, files: Sequence[Path], collector: Collector) -> Iterator[Entry]:
        """All files of a folder are one set; one with faults is unusable whole."""
        for where, file in collector.follow(base, files):
            if coco := collector.attempt(where, partial(read_coco, file)):
                collector.classes |= dict.fromkeys(map(str, coco.classes))
                collector.infos.append(coco.info)
                for film in coco.films:
                    yield (
                        f"{where}: image {film.file_name}",
                        partial(_take, film, coco, collector.finder),
                    )


def _take(film: CocoFilm, coco: CocoSet, finder: FilmFinder) -> FilmLabels:
    name = finder.find(film.file_name)
    size_hw = finder.check_size(name, film.size_hw)
    shapes = to_shapes(film, list(map(str, coco.classes)))
    return FilmLabels(name, size_hw, shapes, film.extra, film.notes)


class Labelme(LabelFormat):
    """One JSON a film. With `films` they open in labelme, also from another folder."""

    suffix = ".json"

    def save(self, path: Path, film: CocoFilm, classes: Names, films: Path | None) -> None:
        where = PurePosixPath(film.file_name).name
        if films is not None and (films / film.file_name).is_file():
            relative = os.path.relpath(films.resolve() / film.file_name, path.parent.resolve())
            where = Path(relative).as_posix()  # with / also on Windows
        flags = ticked(film.extra)
        shapes = tuple(to_shapes(film, classes))
        file = LabelFile(where, shapes, frozenset(flags), film.size_hw, film.file_name)
        write_label_file(path, file, flags)

    def load(self, file: Path, base: Path, finder: FilmFinder, rules: ReadRules) -> FilmLabels:
        """A rectangle may be drawn from any corner; another shape is a fault without `hull`."""
        said = read_label_file(file)
        film = _find_labelled(file, base, finder, said)
        size_hw = finder.check_size(film, said.size_hw)
        shapes = [_to_box(s, rules.hull or bool(s.marks)) for s in said.shapes]
        extra = {"flags": sorted(said.flags)} if said.flags else {}
        return FilmLabels(film, size_hw, shapes, extra)


def _find_labelled(file: Path, base: Path, finder: FilmFinder, labels: LabelFile) -> str:
    """The film that a labelme file means; raises LabelError when it lies outside the folder."""
    said = labels.image_path
    if labels.film and PurePosixPath(said).name != PurePosixPath(labels.film).name:
        raise LabelError(
            f"it was made for {labels.film} and names {said or 'no picture'}; the label files of a "
            "session are in the pixels of its views: export the session"
        )
    if not said:
        raise LabelError("it names no film: imagePath is missing")
    there = finder.inside(file.parent.resolve() / said)
    if there and (found := finder.look_up(there)):
        return found
    if labels.film:
        return finder.find(labels.film)
    parent = file.relative_to(base).parent.as_posix()
    beside = parent == "." or said.startswith("/")
    return finder.find(said if beside else os.path.normpath(f"{parent}/{said}"))


def _to_box(shape: Shape, hull: bool) -> Shape:
    """The shape as an upright rectangle of two corners."""
    points, kind = shape.points, shape.shape_type
    x0, y0, x1, y1 = shape.xyxy
    corners = {(x0, y0), (x1, y0), (x1, y1), (x0, y1)}  # as some programs write a rectangle
    upright = len(points) == 2 or (len(points) == 4 and set(points) == corners)
    if kind not in (*HULL_SHAPES, "rectangle"):
        raise LabelError(f"a {kind} is no box")
    if not ((kind == "rectangle" and upright) or hull):
        raise LabelError(f"a {kind} is no upright rectangle; --hull takes its hull")
    if kind == "circle":
        if len(points) != 2:
            raise LabelError(f"a circle must have two points. Got {len(points)}")
        (cx, cy), radius = points[0], math.dist(*points)
        x0, y0, x1, y1 = cx - radius, cy - radius, cx + radius, cy + radius
    return replace(shape, points=((x0, y0), (x1, y1)), shape_type="rectangle")


class Voc(LabelFormat):
    """One XML a film."""

    suffix = ".xml"

    def write(
        self, coco: CocoSet, out: Path, films: Path | None = None, overwrite: bool = False
    ) -> list[Path]:
        """As the base; raises ValueError for a film or label that XML cannot name."""
        for text in [*coco.classes, *(film.file_name for film in coco.films)]:
            if _NO_XML_TEXT.search(text):
                raise ValueError(f"{text!r} must be free of control characters for VOC; rename it.")
        return super().write(coco, out, films, overwrite)

    def save(self, path: Path, film: CocoFilm, classes: Names, films: Path | None) -> None:
        *folders, name = PurePosixPath(film.file_name).parts
        lines = []
        for shape in to_shapes(film, classes):
            edges = (f"{value:.3f}".rstrip("0").rstrip(".") for value in to_voc(shape.xyxy))
            box = "".join(map(_tag, _EDGES, edges))
            # prelabelled is no key of VOC's own, and its readers pass over it
            more = _tag(PRELABELLED, 1) * shape.prelabelled
            known = _tag("name", shape.label) + _tag("pose", "Unspecified") + _tag("truncated", 0)
            known += _tag("difficult", int(bool(shape.marks))) + more
            lines.append(f"<object>{known}<bndbox>{box}</bndbox></object>")
        height, width = film.size_hw
        size = _tag("width", width) + _tag("height", height) + _tag("depth", 1)
        head = _tag("folder", "/".join(folders)) + _tag("filename", name)
        head += f"<source>{_tag('database', DATABASE)}</source><size>{size}</size>"
        text = "\n".join([f"<annotation>{head}{_tag('segmented', 0)}", *lines, "</annotation>\n"])
        write_atomic(path, text)

    def load(self, file: Path, base: Path, finder: FilmFinder, rules: ReadRules) -> FilmLabels:
        root = parse_xml(file.read_bytes())
        if root.tag != "annotation":
            raise LabelError(f"not VOC: its root must be annotation. Got {root.tag!r}")
        film = finder.find(*_candidates(root, file.relative_to(base).parent.as_posix(), finder))
        size_hw = finder.check_size(film, _read_size(root))
        shapes = []
        for number, item in enumerate(root.findall("object"), start=1):
            flags = _read_marks(item, number)
            flags += [PRELABELLED] * (_text(item, PRELABELLED) == "1")
            shapes.append(to_rectangle(_text(item, "name"), _read_box(item, number), flags))
        return FilmLabels(film, size_hw, shapes, {})


def to_voc(box_xyxy: Sequence[float]) -> Xyxy:
    """xmin, ymin, xmax, ymax of a box xyxy; whole numbers unless the box would vanish."""
    x0, y0, x1, y1 = box_xyxy
    exact = x0 + 1, y0 + 1, x1, y1
    xmin, ymin, xmax, ymax = (float(round(v)) for v in exact)
    return (xmin, ymin, xmax, ymax) if xmin <= xmax and ymin <= ymax else exact


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root of an XML without a document type: entities, which can blow up or read other files,
    are declared there, and VOC has none. Raises LabelError for anything else."""
    builder = ElementTree.TreeBuilder()

    def refuse(*_: object) -> None:
        raise LabelError("it declares a document type (DOCTYPE), which labels have no use for")

    # expat itself: ElementTree's own parser would expand entities till the end, and only then raise
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        return builder.close()
    except LabelError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise LabelError(f"not XML, or cut off: {error}") from error


def _tag(name: str, content: Any) -> str:
    return f"<{name}>{escape(str(content))}</{name}>"


def _candidates(root: ElementTree.Element, parent: str, finder: FilmFinder) -> list[str]:
    """Where the film may lie; `parent` is the XML's own folder. In files of other programs `folder`
    is but the name of a data set, or a path on another machine: it is only tried."""
    name, folder = _text(root, "filename"), _text(root, "folder").replace("\\", "/")
    if not name:
        raise LabelError("it names no film: filename is empty")
    if _text(root, "source/database") == DATABASE:
        return [f"{folder}/{name}" if folder else name]
    if f"{folder}/{name}" in finder.names:
        return [f"{folder}/{name}"]
    beside = PurePosixPath(parent, name)
    # VOC keeps its XMLs in Annotations/
    below = beside.parts[beside.parts[:1] == ("Annotations",) :]
    return [str(PurePosixPath(*below)), str(beside), name]


def _read_size(root: ElementTree.Element) -> SizeHw | None:
    """(height, width); None where it is missing or 0, as some programs write it."""
    try:
        size_hw = int(float(_text(root, "size/height"))), int(float(_text(root, "size/width")))
    except (ValueError, OverflowError):
        return None
    return size_hw if min(size_hw) > 0 else None


def _read_box(item: ElementTree.Element, number: int) -> Xyxy:
    """xyxy in film pixels."""
    texts = [_text(item, f"bndbox/{tag}") for tag in _EDGES]
    try:
        xmin, ymin, xmax, ymax = map(float, texts)
    except ValueError as error:
        rule = f"bndbox of object {number} must hold the numbers {', '.join(_EDGES)}"
        raise LabelError(f"{rule}. Got {texts}") from error
    return xmin - 1, ymin - 1, xmax, ymax


def _read_marks(item: ElementTree.Element, number: int) -> list[str]:
    said = {mark: _text(item, mark).strip().lower() for mark in MARKS}
    for mark, text in said.items():
        if text not in _YES and text not in _NO:
            raise LabelError(f"{mark} of object {number} must be 0 or 1. Got {text!r}")
    return [mark for mark, text in said.items() if text in _YES]


def _text(element: ElementTree.Element, path: str) -> str:
    """The text at a path; indentation round it is taken off, spaces of a name are not."""
    text = element.findtext(path) or ""
    return text.strip() if set(text) & set("\r\n\t") else text


_HEAD = """\
# Films lie, or are linked, in images/ beside labels/. They are not shared among training and
# validation here: do so by patient before training. An empty path means this file's folder.
"""


class Yolo(LabelFormat):
    """One text file a film, and the classes' names beside them."""

    suffix, marker = ".txt", LABELS

    def place(self, film: str, alike: bool) -> str:
        return f"{LABELS}/{label_key(film)}{self.suffix}"

    def write(
        self, coco: CocoSet, out: Path, films: Path | None = None, overwrite: bool = False
    ) -> list[Path]:
        """As the base, with classes.txt and data.yaml. Boxes marked not to count stay behind, and
        so do films of such boxes alone: an empty file would say that there is nothing."""
        if any("\n" in name or name != name.strip() for name in coco.classes):
            raise ValueError(f"classes must be one line each. Got {list(coco.classes)} instead.")
        check_free([out / CLASSES, out / DATA], overwrite)
        kept = [f.counted for f in coco.films if not len(f.labels) or not f.ignored.all()]
        paths = super().write(replace(coco, films=kept), out, films, overwrite)
        names = dict(enumerate(coco.classes))
        data = {"path": None, "train": "images", "val": "images", "names": names}
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        write_atomic(out / CLASSES, "".join(f"{name}\n" for name in coco.classes))
        write_atomic(out / DATA, _HEAD + text)
        return paths

    def save(self, path: Path, film: CocoFilm, classes: Names, films: Path | None) -> None:
        height, width = film.size_hw
        lines = []
        for (x0, y0, x1, y1), label in zip(film.boxes_xyxy.tolist(), film.labels, strict=True):
            centre = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
            size = (x1 - x0) / width, (y1 - y0) / height
            lines.append(" ".join([str(label), *(f"{v:.8f}" for v in (*centre, *size))]) + "\n")
        write_atomic(path, "".join(lines))

    def entries(self, base: Path, files: Sequence[Path], collector: Collector) -> Iterator[Entry]:
        """Films are found by relative path, else by stem; raises ValueError without classes."""
        finder = collector.finder
        if finder.folder is None and finder.known is None:
            rule = "films must be the films' folder: YOLO's fractions need their sizes"
            raise ValueError(f"{rule}. Got none instead.")
        classes, own = _find_classes(base, collector.rules)
        collector.classes |= dict.fromkeys(classes)
        keys = {f: compose(f.relative_to(base).as_posix().removesuffix(f.suffix)) for f in files}
        placed = {file: bool(_in_place(key, finder)) for file, key in keys.items()}
        for file in files:
            listed = file == base / CLASSES and (own == file or not placed[file])
            if listed or (file.name.startswith("README.") and not placed[file]):
                del keys[file]
        # labels that lie as their film does go first: no stem may take its film from them
        for where, file in collector.follow(base, sorted(keys, key=lambda f: not placed[f])):
            load = partial(_read_film, file, keys[file], finder, classes, collector.rules.hull)
            yield where, load


def label_key(film: str) -> str:
    """The film's path below labels/, without the suffix."""
    return compose(stem_of(film).removeprefix("images/"))


def _plain(key: str) -> str:
    """The key without its folders of these names: train/labels/a is the film train/images/a."""
    *folders, name = key.split("/")
    return "/".join([*(f for f in folders if f not in (LABELS, "images")), name])


def _in_place(key: str, finder: FilmFinder) -> list[str]:
    """The films whose label file lies at this path."""
    keys = {film: label_key(film) for film in finder.of_stem(key)}
    same = [film for film, own in keys.items() if own == key]
    return same or [film for film, own in keys.items() if _plain(own) == _plain(key)]


def _find_by_key(key: str, finder: FilmFinder) -> str:
    """Raises LabelError when no film fits, or several do."""
    same = finder.of_stem(key)
    ends = [f for f in same if f"/{label_key(f)}".endswith(f"/{key}")]
    films = _in_place(key, finder) or ends or same
    if len(films) == 1:
        return films[0]
    both = f"its film may be {' or '.join(films[:2])}"
    raise LabelError(both if films else "no film of this name lies in the films' folder")


def _find_classes(base: Path, rules: ReadRules) -> tuple[tuple[str, ...], Path | None]:
    """The classes' names in the order of their numbers, and the file they stand in."""
    for folder in (base, base.parent):
        data, listed = folder / DATA, folder / CLASSES
        if data.is_file():
            return _read_names(data), data
        if listed.is_file() and not (folder == base and (base.parent / CLASSES).is_file()):
            names = _read_lines(listed)
            return tuple(n.strip() for n in names if n.strip()), listed
    if rules.classes:
        return rules.classes, None
    rule = f"classes must be named in {DATA} or {CLASSES} beside the labels, or by --classes"
    raise ValueError(f"{rule}. Got none of them in '{base}' instead.")


def _read_names(path: Path) -> tuple[str, ...]:
    """`names` of a data.yaml: a list, or a table from number to name."""
    try:
        data = yaml.safe_load(read_text(path))
    except Exception as error:  # PyYAML's own constructors raise all kinds
        raise ValueError(f"'{path}' must be YAML. {error}") from error
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"names of '{path}' must be a list, or numbered from 0.")
    if not all(isinstance(name, str | int | float) for name in names):
        raise ValueError(f"names of '{path}' must be texts.")
    return tuple(str(name) for name in names)


def _read_lines(path: Path) -> list[str]:
    try:
        return read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise LabelError(f"'{path.name}' must be text in UTF-8. {error}") from error


def _read_film(file: Path, key: str, finder: FilmFinder, classes: Names, hull: bool) -> FilmLabels:
    film = _find_by_key(key, finder)
    size_hw = finder.check_size(film, None)
    shapes = []
    for number, line in enumerate(_read_lines(file), start=1):
        if line.strip():
            label, xyxy = _read_line(f"line {number}", line.split(), size_hw, hull)
            if not 0 <= label < len(classes):
                raise LabelError(f"line {number}: class {label} is none of 0 to {len(classes) - 1}")
            shapes.append(to_rectangle(classes[label], xyxy))
    return FilmLabels(film, size_hw, shapes, {})


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


FORMATS = {"coco": Coco(), "voc": Voc(), "labelme": Labelme(), "yolo": Yolo()}
