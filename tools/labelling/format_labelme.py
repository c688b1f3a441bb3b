"""labelme: one JSON a film, at the film's relative path with the suffix .json.

Points are continuous film pixels, pixel i covering [i, i + 1), as in cxr.coco. `imagePath` leads
from the label file to the film where the film lies in `films`, and is its bare name otherwise. The
key `lungfirst`, which labelme keeps, names the film for labels that were moved. A box that the
detector drew and nobody accepted carries the flag `prelabelled`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

from cxr.coco import CocoFilm, CocoSet
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
    ticked,
)
from labelling.labelme_file import PRELABELLED, LabelFile, Shape, read_label_file, write_label_file

HULL_SHAPES = ("polygon", "oriented_rectangle", "circle")


def write(
    coco: CocoSet, out: Path, films: Path | None = None, overwrite: bool = False
) -> list[Path]:
    """Write one JSON a film; with `films` they open in labelme, also from another folder.

    Raises:
        ValueError: for a film that leads out of `out`.
        FileExistsError: when a file is there and may not be replaced.
    """
    paths = plan_files(coco.films, out, file_places(coco.films, ".json"), overwrite)
    for path, film in zip(paths, coco.films, strict=True):
        flags = ticked(film.extra)
        shapes = tuple(_to_shapes(film, coco.classes))
        where = _image_path(path, film.file_name, films)
        file = LabelFile(where, shapes, frozenset(flags), film.size_hw, film.file_name)
        write_label_file(path, file, flags)
    return paths


def read(
    path: Path, films: Path | None = None, rules: ReadRules | None = None
) -> tuple[CocoSet, list[Unusable]]:
    """Read one JSON or a folder of them; `films` is where the films lie, if they are to be found.

    A rectangle may be drawn from any corner. Another shape is a fault, or its hull is taken where
    the rules say so.
    """
    rules = rules or ReadRules()
    finder = FilmFinder(films, rules.known)
    base, files = list_label_files(path, ".json")
    return read_files(files, base, rules, lambda file: _read_film(file, base, finder, rules.hull))


def _to_shapes(film: CocoFilm, classes: tuple[str, ...]) -> list[Shape]:
    flags = frozenset({PRELABELLED} if film.extra.get(PRELABELLED) else ())
    shapes = []
    for box, label in zip(film.boxes_xyxy, film.labels, strict=True):
        x0, y0, x1, y1 = (round(float(v), 3) for v in box)
        shapes.append(Shape(classes[label], ((x0, y0), (x1, y1)), "rectangle", flags))
    return shapes


def _image_path(label_file: Path, film: str, films: Path | None) -> str:
    """The film's path relative to its label file, with / also on Windows."""
    if films is None or not (films / film).is_file():
        return PurePosixPath(film).name
    relative = os.path.relpath(films.resolve() / film, label_file.parent.resolve())
    return Path(relative).as_posix()


def _read_film(file: Path, base: Path, finder: FilmFinder, hull: bool) -> FilmLabels:
    check_bytes(file)
    try:
        labels = read_label_file(file)
    except (ValueError, OverflowError, RecursionError) as error:
        raise LabelError(str(error)) from error
    film = _find_film(file, base, finder, labels)
    size_hw = finder.check_size(film, labels.size_hw)
    boxes = [_to_box(shape, hull) for shape in labels.shapes]
    untouched = any(PRELABELLED in shape.flags for shape in labels.shapes)
    extra: dict[str, object] = {PRELABELLED: True} if untouched else {}
    if labels.flags:
        extra["flags"] = sorted(labels.flags)
    return FilmLabels(film, size_hw, tuple(s.label for s in labels.shapes), boxes, extra)


def _find_film(file: Path, base: Path, finder: FilmFinder, labels: LabelFile) -> str:
    """The film that the label file means; raises LabelError when it lies outside the folder."""
    said = labels.image_path
    if labels.film and PurePosixPath(said).name != PurePosixPath(labels.film).name:
        raise LabelError(
            f"it was made for {labels.film} and names {said or 'no picture'}; the label files of a "
            "session are in the pixels of its views: export the session"
        )
    if not said:
        raise LabelError("it names no film: imagePath is missing")
    there = finder.inside(file.parent.resolve() / said)
    found = finder.look_up(there) if there else None
    if found:
        return found
    if labels.film:
        return finder.find(labels.film)
    parent = file.relative_to(base).parent.as_posix()
    if parent == "." or said.startswith("/"):
        return finder.find(said)
    return finder.find(os.path.normpath(f"{parent}/{said}"))


def _to_box(shape: Shape, hull: bool) -> tuple[float, float, float, float]:
    """The shape as xyxy in film pixels."""
    if shape.shape_type == "rectangle" and (len(shape.points) == 2 or _is_upright(shape)):
        return shape.xyxy
    if shape.shape_type not in HULL_SHAPES and shape.shape_type != "rectangle":
        raise LabelError(f"a {shape.shape_type} is no box")
    if not hull:
        raise LabelError(f"a {shape.shape_type} is no upright rectangle; --hull takes its hull")
    if shape.shape_type == "circle":
        return _round_hull(shape)
    return shape.xyxy


def _is_upright(shape: Shape) -> bool:
    """Whether the points are the four corners of their hull, as some programs write a rectangle."""
    x0, y0, x1, y1 = shape.xyxy
    return len(shape.points) == 4 and set(shape.points) == {(x0, y0), (x1, y0), (x1, y1), (x0, y1)}


def _round_hull(shape: Shape) -> tuple[float, float, float, float]:
    """labelme's circle is its centre and a point on its rim."""
    if len(shape.points) != 2:
        raise LabelError(f"a circle must have two points. Got {len(shape.points)}")
    (cx, cy), (x, y) = shape.points
    radius = math.hypot(x - cx, y - cy)
    return cx - radius, cy - radius, cx + radius, cy + radius
