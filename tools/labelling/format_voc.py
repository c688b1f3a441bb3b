"""Pascal VOC: one XML a film, at the film's relative path with the suffix .xml.

VOC counts pixels from 1 and includes the last one, so that a box (x0, y0, x1, y1) of continuous
film pixels, pixel i covering [i, i + 1), is written as

    xmin = x0 + 1    ymin = y0 + 1    xmax = x1    ymax = y1

and the whole film is 1, 1, width, height. Its readers expect whole numbers: edges are rounded (by
at most 0.5 px), and keep their decimals only where a thin box would vanish. On reading, decimals
are taken as they are. `folder` holds the film's folder, `filename` its bare name.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from xml.parsers import expat

from cxr.coco import CocoFilm, CocoSet
from cxr.workdir import write_atomic
from labelling.film_finder import FilmFinder, LabelError
from labelling.label_sets import (
    FilmLabels,
    ReadRules,
    Unusable,
    check_bytes,
    file_places,
    list_label_files,
    plan_files,
    read_files,
)
from labelling.session import PRELABELLED

DATABASE = "lungfirst"  # says that `folder` is a path, not the name of a data set
_NO_XML_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def write(
    coco: CocoSet, out: Path, films: Path | None = None, overwrite: bool = False
) -> list[Path]:
    """Write one XML a film; films of one folder that differ only in their suffix keep it.

    Raises:
        ValueError: for a film or label that XML cannot name, or that leads out of `out`.
        FileExistsError: when a file is there and may not be replaced.
    """
    for text in [*coco.classes, *(film.file_name for film in coco.films)]:
        if _NO_XML_TEXT.search(text):
            raise ValueError(f"{text!r} must be free of control characters for VOC; rename it.")
    paths = plan_files(coco.films, out, file_places(coco.films, ".xml"), overwrite)
    for path, film in zip(paths, coco.films, strict=True):
        root = _to_element(film, coco.classes)
        ElementTree.indent(root)
        write_atomic(path, ElementTree.tostring(root, encoding="unicode") + "\n")
    return paths


def read(
    path: Path, films: Path | None = None, rules: ReadRules | None = None
) -> tuple[CocoSet, list[Unusable]]:
    """Read one XML or a folder of them; `films` is where the films lie, if they are to be found."""
    rules = rules or ReadRules()
    finder = FilmFinder(films, rules.known)
    base, files = list_label_files(path, ".xml")
    return read_files(files, base, rules, lambda file: _read_film(file, base, finder))


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root of an XML without a document type: entities, which can blow up or read other files,
    are declared there, and VOC has none.

    Raises:
        LabelError: for anything else.
    """
    builder = ElementTree.TreeBuilder()

    def refuse(*_: object) -> None:
        raise LabelError("it declares a document type (DOCTYPE), which labels have no use for")

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


def _to_element(film: CocoFilm, classes: tuple[str, ...]) -> ElementTree.Element:
    place = PurePosixPath(film.file_name)
    root = ElementTree.Element("annotation")
    _add(root, "folder", "" if str(place.parent) == "." else str(place.parent))
    _add(root, "filename", place.name)
    _add(_add(root, "source"), "database", DATABASE)
    size = _add(root, "size")
    height, width = film.size_hw
    for tag, pixels in (("width", width), ("height", height), ("depth", 1)):
        _add(size, tag, str(pixels))
    _add(root, "segmented", "0")
    for box, label in zip(film.boxes_xyxy, film.labels, strict=True):
        item = _add(root, "object")
        for tag, text in (
            ("name", classes[label]),
            ("pose", "Unspecified"),
            ("truncated", "0"),
            ("difficult", "0"),
        ):
            _add(item, tag, text)
        if film.extra.get(PRELABELLED):  # no key of VOC's own, and its readers pass over it
            _add(item, PRELABELLED, "1")
        bndbox = _add(item, "bndbox")
        for tag, value in zip(_EDGES, to_voc(box), strict=True):
            _add(bndbox, tag, f"{value:.3f}".rstrip("0").rstrip("."))
    return root


def to_voc(box_xyxy: object) -> tuple[float, float, float, float]:
    """xmin, ymin, xmax, ymax of a box (4,) xyxy; whole numbers unless the box would vanish."""
    x0, y0, x1, y1 = (float(v) for v in box_xyxy)  # type: ignore[attr-defined]
    exact = x0 + 1, y0 + 1, x1, y1
    xmin, ymin, xmax, ymax = (float(round(v)) for v in exact)
    return (xmin, ymin, xmax, ymax) if xmin <= xmax and ymin <= ymax else exact


def _add(parent: ElementTree.Element, tag: str, text: str = "") -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag)
    child.text = text or None
    return child


def _read_film(file: Path, base: Path, finder: FilmFinder) -> FilmLabels:
    check_bytes(file)
    root = parse_xml(file.read_bytes())
    if root.tag != "annotation":
        raise LabelError(f"not VOC: its root must be annotation. Got {root.tag!r}")
    film = finder.find(*_candidates(root, file.relative_to(base).parent.as_posix(), finder))
    size_hw = finder.check_size(film, _read_size(root))
    labels, boxes, untouched = [], [], False
    for number, item in enumerate(root.findall("object"), start=1):
        labels.append(_text(item, "name"))
        boxes.append(_read_box(item, number))
        untouched = untouched or _text(item, PRELABELLED) == "1"
    extra = {PRELABELLED: True} if untouched else {}
    return FilmLabels(film, size_hw, tuple(labels), boxes, extra)


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
    return [str(PurePosixPath(*_below(beside))), str(beside), name]


def _below(path: PurePosixPath) -> tuple[str, ...]:
    """The parts below Annotations/, the folder that VOC keeps its XMLs in."""
    return path.parts[1:] if path.parts[:1] == ("Annotations",) else path.parts


def _read_size(root: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width); None where it is missing or 0, as some programs write it."""
    try:
        size_hw = int(float(_text(root, "size/height"))), int(float(_text(root, "size/width")))
    except (ValueError, OverflowError):
        return None
    return size_hw if min(size_hw) > 0 else None


def _read_box(item: ElementTree.Element, number: int) -> tuple[float, float, float, float]:
    """xyxy in film pixels."""
    texts = [_text(item, f"bndbox/{tag}") for tag in _EDGES]
    try:
        xmin, ymin, xmax, ymax = (float(text) for text in texts)
    except ValueError as error:
        raise LabelError(
            f"bndbox of object {number} must hold the numbers {', '.join(_EDGES)}. Got {texts}"
        ) from error
    return xmin - 1, ymin - 1, xmax, ymax


def _text(element: ElementTree.Element, path: str) -> str:
    """The text at a path; indentation round it is taken off, spaces of a name are not."""
    text = element.findtext(path) or ""
    return text.strip() if set(text) & set("\r\n\t") else text
