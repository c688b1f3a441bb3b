"""The public sets by name: which there are, which a folder is, and reading one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np
from PIL import Image
from rich.progress import track

from cxr.public_sets import folders, tables
from cxr.public_sets.records import (
    FindingBox,
    Item,
    LayoutError,
    LeftOut,
    LoadedSet,
    Problem,
    PublicFilm,
    Uncertain,
    describe,
    levels,
)
from cxr.workdir import console

SETS = {
    loader.name: loader for loader in (folders.LOADERS[0], *tables.LOADERS, *folders.LOADERS[1:])
}


def load_set(
    name: str, path: str | Path, uncertain: Uncertain = "ignore", progress: bool = True
) -> LoadedSet:
    """Read the public set `name` in the folder `path` (or up to two folders below it).

    Args:
        name: a key of SETS.
        path: the folder; `image` of the rows is relative to it.
        uncertain: what an uncertain label of CheXpert and MIMIC-CXR-JPG is taken for; see
            `cxr.public_sets.words.label_of_values`.
        progress: show a bar while sizes are read.

    Raises:
        ValueError: for an unknown name or policy.
        LayoutError: when the folder is not laid out as the set is; a ValueError too.
    """
    if name not in SETS:
        raise ValueError(f"source must be one of {', '.join(SETS)}. Got '{name}'.")
    if uncertain not in get_args(Uncertain):
        known = ", ".join(get_args(Uncertain))
        raise ValueError(f"uncertain must be one of {known}. Got '{uncertain}'.")
    path = Path(path)
    root = find_root(name, path)
    return gather(SETS[name].read(root, uncertain), path, root, name, progress)


def find_root(name: str, path: Path) -> Path:
    """The top of the set in `path` or up to two folders below; raises LayoutError without one."""
    for level in levels(path) if path.is_dir() else ():
        roots = [folder for folder in level if SETS[name].is_root(folder)]
        if len(roots) == 1:
            return roots[0]
        if roots:
            places = ", ".join(str(root) for root in roots)
            raise LayoutError(
                f"'{path}' must hold {name} once. Got {len(roots)}: {places}. Name "
                "the folder of one of them."
            )
    other = _looks_like(path)
    hint = f" It looks like {other}: use --source {other}." if other else ""
    raise LayoutError(
        f"'{path}' must be a folder of {name}: {SETS[name].layout}. Found: {describe(path)}.{hint}"
    )


def _looks_like(path: Path) -> str:
    """The first set at the shallowest level that has any; "" for none."""
    folders = (f for level in (levels(path) if path.is_dir() else ()) for f in level)
    found = (name for f in folders for name, loader in SETS.items() if loader.is_root(f))
    return next(found, "")


_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # values of the orientation tag that swap width and height


def gather(
    items: Iterable[Item], path: Path, root: Path, source: str, progress: bool = True
) -> LoadedSet:
    """Rows with sizes for all films of `items` that are there; nothing is decoded.

    Names in `items` are relative to `root`, names in the result to `path` above it. A film that is
    missing, unreadable or listed twice becomes a problem instead of a row.
    """
    found = list(items)
    films = [item for item in found if isinstance(item, PublicFilm)]
    problems = [item for item in found if isinstance(item, Problem)]
    left_out = Counter(item.reason for item in found if isinstance(item, LeftOut))
    prefix = root.relative_to(path)
    rows: dict[str, PublicFilm] = {}
    bar = track(films, f"{source}: reading sizes", console=console, disable=not progress)
    for film in bar:
        row = _measure(film, root, (prefix / film.image).as_posix(), rows)
        if isinstance(row, Problem):
            problems.append(row)
        else:
            rows[film.image] = row
    boxes = [item for item in found if isinstance(item, FindingBox)]
    kept = [_check_box(box, rows.get(box.image), problems) for box in boxes]
    return LoadedSet(
        list(rows.values()),
        problems,
        [box for box in kept if box],
        dict(sorted(left_out.items())),
        source,
    )


def _measure(
    film: PublicFilm, root: Path, name: str, rows: dict[str, PublicFilm]
) -> PublicFilm | Problem:
    if film.image in rows:
        text = "The film is listed twice; the first line counts."
        if (film.label, film.patient_id) != (rows[film.image].label, rows[film.image].patient_id):
            text = "The film is listed twice and differently; the first line counts."
        return Problem("duplicate", name, text)
    place = PurePosixPath(film.image)
    if place.is_absolute() or ".." in place.parts:
        return Problem("odd_name", name, "The name leads out of the set's folder; left out.")
    try:
        name.encode()
    except UnicodeEncodeError:
        return Problem("odd_name", name, "The name is no UTF-8 text; left out. Rename the file.")
    try:
        width, height = read_size(root / film.image)
    except (FileNotFoundError, NotADirectoryError):
        return Problem("missing_file", name, "The film is listed but not there; left out.")
    except Exception:  # Pillow raises all kinds on broken headers
        return Problem("unreadable", name, "The file's header is no picture's; left out.")
    return film.sized(name, width, height)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture from its header, upright as `cxr.film.read_film` shows it."""
    with Image.open(path) as image:
        width, height = image.size
        # a PNG's tag may stand behind the pixels, and asking for it would decode them
        turned = image.format == "JPEG" and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    return (height, width) if turned else (width, height)


def _check_box(
    box: FindingBox, film: PublicFilm | None, problems: list[Problem]
) -> FindingBox | None:
    """The box in pixels of the file, clipped to it; None, and a problem, when nothing is left."""
    if film is None:
        text = f"A box of {box.finding} has no film; left out."
        problems.append(Problem("box_without_film", box.image, text))
        return None
    scale = film.width / box.of_width if box.of_width else 1.0
    asked = np.array([box.x, box.y, box.x + box.w, box.y + box.h]) * scale
    x0, y0, x1, y1 = clipped = np.clip(asked, 0, [film.width, film.height] * 2)
    if not (x1 > x0 and y1 > y0):
        text = f"The box of {box.finding} has no area on the film; left out."
        problems.append(Problem("bad_box", film.image, text))
        return None
    if np.abs(clipped - asked).max() > 1:
        text = f"The box of {box.finding} leaves the film and was cut at its edge."
        problems.append(Problem("bad_box", film.image, text))
    x, y, w, h = (round(float(v), 1) for v in (x0, y0, x1 - x0, y1 - y0))
    return replace(box, image=film.image, x=x, y=y, w=w, h=h, of_width=film.width)
