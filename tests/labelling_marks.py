"""Two readers' boxes for the tests of labelling.agree and its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cxr.coco import CocoFilm, CocoSet, write_coco
from labelling.readers import Mark, Pair, Side, compare

FILM = np.full((100, 200), 0.5, np.float32)
RAMP = np.repeat(np.arange(200, dtype=np.uint8)[None], 100, axis=0)  # not blank: a film
BOX = (20.0, 10.0, 180.0, 90.0)


def coco(path: Path, films: dict, size_hw: tuple[int, int] = (100, 200), **extra: dict) -> str:
    """A COCO file; films: name → box xyxy or None; extra: name of a key → film → value."""
    rows = []
    for name, box in films.items():
        boxes = np.array([box], dtype=float) if box else np.zeros((0, 4))
        own = {key: values[name] for key, values in extra.items() if name in values}
        rows.append(CocoFilm(name, size_hw, boxes, (0,) * len(boxes), own))
    write_coco(path, CocoSet(rows, ("thorax",)))
    return str(path)


def table(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def side(name: str, *marks: Mark) -> Side:
    return Side(Path(name), {name: marks})


def one_pair(a: Mark, b: Mark, names: str = "path") -> Pair:
    return compare(side("a", a), side("b", b), names).pairs[0]
