"""labelme's label file: one JSON beside each view, read without trust and written whole.

The format as labelme 6 writes it; labelme itself is GPL and is never imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from cxr.workdir import write_atomic

FORMAT_VERSION = "6.3.1"  # of the format that is written here
PRELABELLED = "prelabelled"

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """One drawn shape; `points` (x, y) as drawn, `flags` the ticked ones.

    A label file has it in the pixels of its picture, an Answer in those of the film.
    """

    label: str
    points: tuple[Point, ...]
    shape_type: str = "rectangle"
    flags: frozenset[str] = frozenset()

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """The smallest box round all points; a rectangle may be drawn from any corner."""
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def crossed(self) -> bool:
        """Whether it has no width or height, or its edges cross, as those of a bow tie do."""
        x0, y0, x1, y1 = self.xyxy
        if x1 <= x0 or y1 <= y0:
            return True
        edges = list(zip(self.points, [*self.points[1:], self.points[0]], strict=True))
        return any(_cross(*one, *two) for one, two in combinations(edges, 2))

    @property
    def usable(self) -> bool:
        """Whether it can be a box."""
        return self.shape_type == "rectangle" and not self.crossed

    @property
    def prelabelled(self) -> bool:
        """Of an Answer: as the detector drew it, and not accepted."""
        return PRELABELLED in self.flags


@dataclass(frozen=True)
class LabelFile:
    """What a label file says. `film` and `sha256` are empty in a file that labelme made itself."""

    image_path: str
    shapes: tuple[Shape, ...]
    flags: frozenset[str]
    size_hw: tuple[int, int] | None
    film: str = ""
    sha256: str = ""


def read_label_file(path: str | Path) -> LabelFile:
    """Read one; raises ValueError that says what is wrong, OverflowError for a number beyond all
    floats, or FileNotFoundError."""
    try:
        data = json.loads(Path(path).read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON, or cut off: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
        raise ValueError("not a label file of labelme: it has no list of shapes")
    height, width = data.get("imageHeight"), data.get("imageWidth")
    known = all(isinstance(v, int) and v > 0 for v in (height, width))
    own = data.get("lungfirst")
    own = own if isinstance(own, dict) else {}
    return LabelFile(
        str(data.get("imagePath") or "").replace("\\", "/"),
        tuple(_read_shape(number, s) for number, s in enumerate(data["shapes"], start=1)),
        _ticked(data, "flags must be an object of true and false"),
        (int(height), int(width)) if known else None,  # type: ignore[arg-type]
        str(own.get("film", "")),
        str(own.get("sha256", "")),
    )


def write_label_file(path: str | Path, file: LabelFile, flags: Iterable[str]) -> Path:
    """Write one atomically; `flags` are those that labelme shows, ticked where `file` has them.

    labelme keeps the keys it does not know, so `film` stays with it.
    """
    assert file.size_hw is not None
    data = {
        "version": FORMAT_VERSION,
        "flags": {name: name in file.flags for name in flags},
        "shapes": [
            {
                "label": shape.label,
                "points": shape.points,
                "group_id": None,
                "description": "",
                "shape_type": shape.shape_type,
                "flags": dict.fromkeys(sorted(shape.flags), True),
                "mask": None,
            }
            for shape in file.shapes
        ],
        "imagePath": file.image_path,
        "imageData": None,
        "imageHeight": file.size_hw[0],
        "imageWidth": file.size_hw[1],
        "lungfirst": {"film": file.film, "sha256": file.sha256},
    }
    return write_atomic(path, json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False))


def _read_shape(number: int, data: Any) -> Shape:
    if not isinstance(data, dict):
        raise ValueError(f"shape {number} must be a JSON object. Got {data!r}")
    points = data.get("points")
    if not isinstance(points, list) or not points or not all(map(_is_point, points)):
        raise ValueError(f"points of shape {number} must be pairs of numbers. Got {points!r}")
    return Shape(
        str(data.get("label", "")),
        tuple((float(x), float(y)) for x, y in points),
        str(data.get("shape_type") or "polygon"),
        _ticked(data, f"flags of shape {number} must be an object"),
    )


def _ticked(data: dict[str, Any], rule: str) -> frozenset[str]:
    flags = data.get("flags") or {}
    if not isinstance(flags, dict):
        raise ValueError(f"{rule}. Got {flags!r}")
    return frozenset(str(name) for name, value in flags.items() if value is True)


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, list)
        and [type(v) in (int, float) for v in point] == [True, True]
        and all(map(math.isfinite, point))
    )


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the lines from `a` to `b` and from `c` to `d` cross; sharing a corner is no cross."""

    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
