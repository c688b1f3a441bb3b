"""COCO detection JSON, one file for all films; see cxr.coco.

Boxes are x, y, width, height in film pixels, pixel i covering [i, i + 1).
"""

from __future__ import annotations

from pathlib import Path

from cxr.coco import CocoSet, read_coco, write_coco
from labelling.film_finder import FilmFinder, LabelError
from labelling.label_sets import (
    Collector,
    FilmLabels,
    ReadRules,
    Unusable,
    check_bytes,
    check_free,
    list_label_files,
)

FILE_NAME = "coco.json"


def write(
    coco: CocoSet, out: Path, films: Path | None = None, overwrite: bool = False
) -> list[Path]:
    """Write `out`/coco.json, or `out` itself when it is named .json.

    Raises:
        FileExistsError: when it is there and may not be replaced.
        ValueError: for a set with faults.
    """
    path = out if out.suffix.lower() == ".json" else out / FILE_NAME
    check_free([path], overwrite)
    write_coco(path, coco)
    return [path]


def read(
    path: Path, films: Path | None = None, rules: ReadRules | None = None
) -> tuple[CocoSet, list[Unusable]]:
    """Read one COCO file, or all of a folder as one set.

    Returns:
        The films that can be used, and what cannot: a file with faults whole, otherwise single
        films of it.
    """
    rules = rules or ReadRules()
    finder = FilmFinder(films, rules.known)
    base, files = list_label_files(path, ".json")
    collector, classes, infos = Collector(rules), dict[str, None](), []
    for file in files:
        where = file.relative_to(base).as_posix()
        try:
            check_bytes(file)
            coco = read_coco(file)
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            collector.refuse(where, str(error).replace("\n", "; "))
            continue
        names = [str(name) for name in coco.classes]
        classes |= dict.fromkeys(names)
        infos.append(coco.info)
        for film in coco.films:
            try:
                name = finder.find(film.file_name)
                size_hw = finder.check_size(name, film.size_hw)
                labels = tuple(names[i] for i in film.labels)
                boxes = film.boxes_xyxy.tolist()
                collector.add(where, FilmLabels(name, size_hw, labels, boxes, film.extra))
            except LabelError as error:
                collector.refuse(f"{where}: image {film.file_name}", error)
    return collector.finish(tuple(classes), infos[0] if len(infos) == 1 else None)
