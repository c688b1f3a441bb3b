"""labelme's label file: one JSON beside each view, read without trust and written whole.

The format as labelme 6 writes it; labelme itself is GPL and is never imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.workdir import write_atomic

FORMAT_VERSION = "6.3.1"  # of the format that is written here


@dataclass(frozen=True)
class Shape:
    """One drawn shape; `points` (x, y) in view pixels, as drawn."""

    label: str
    points: tuple[tuple[float, float], ...]
    shape_type: str
    flags: frozenset[str]  # ticked ones

    @property
    def hull_xyxy(self) -> tuple[float, float, float, float]:
        """The smallest box round all points; a rectangle may be drawn from any corner."""
        xs, ys = [p[0] for p in self.points], [p[1] for p in self.points]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def crossed(self) -> bool:
        """Whether it has no width or height, or its edges cross, as those of a bow tie do."""
        x0, y0, x1, y1 = self.hull_xyxy
        if x1 <= x0 or y1 <= y0:
            return True
        return len(self.points) > 3 and _edges_cross(self.points)


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
    """Read one; raises ValueError that says what is wrong, or FileNotFoundError."""
    try:
        data = json.loads(Path(path).read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON, or cut off: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
        raise ValueError("not a label file of labelme: it has no list of shapes")
    flags = data.get("flags") or {}
    if not isinstance(flags, dict):
        raise ValueError(f"flags must be an object of true and false. Got {flags!r}")
    height, width = data.get("imageHeight"), data.get("imageWidth")
    known = all(isinstance(v, int) and v > 0 for v in (height, width))
    own = data.get("lungfirst")
    own = own if isinstance(own, dict) else {}
    return LabelFile(
        str(data.get("imagePath") or "").replace("\\", "/"),
        tuple(_read_shape(number, s) for number, s in enumerate(data["shapes"], start=1)),
        _ticked(flags),
        (int(height), int(width)) if known else None,  # type: ignore[arg-type]
        str(own.get("film", "")),
        str(own.get("sha256", "")),
    )


def write_label_file(
    path: str | Path,
    image_path: str,
    size_hw: tuple[int, int],
    shapes: Iterable[Shape],
    flags: dict[str, bool],
    film: str,
    sha256: str,
) -> Path:
    """Write one atomically. labelme keeps the keys it does not know, so `film` stays with it."""
    data = {
        "version": FORMAT_VERSION,
        "flags": flags,
        "shapes": [_to_json(shape) for shape in shapes],
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size_hw[0],
        "imageWidth": size_hw[1],
        "lungfirst": {"film": film, "sha256": sha256},
    }
    return write_atomic(path, json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False))


def _to_json(shape: Shape) -> dict[str, Any]:
    return {
        "label": shape.label,
        "points": [[x, y] for x, y in shape.points],
        "group_id": None,
        "description": "",
        "shape_type": shape.shape_type,
        "flags": dict.fromkeys(sorted(shape.flags), True),
        "mask": None,
    }


def _read_shape(number: int, data: Any) -> Shape:
    if not isinstance(data, dict):
        raise ValueError(f"shape {number} must be a JSON object. Got {data!r}")
    points = data.get("points")
    if not isinstance(points, list) or not points or not all(map(_is_point, points)):
        raise ValueError(f"points of shape {number} must be pairs of numbers. Got {points!r}")
    flags = data.get("flags") or {}
    if not isinstance(flags, dict):
        raise ValueError(f"flags of shape {number} must be an object. Got {flags!r}")
    return Shape(
        str(data.get("label", "")),
        tuple((float(x), float(y)) for x, y in points),
        str(data.get("shape_type") or "polygon"),
        _ticked(flags),
    )


def _ticked(flags: dict[Any, Any]) -> frozenset[str]:
    return frozenset(str(name) for name, value in flags.items() if value is True)


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in point)
        and all(math.isfinite(v) for v in point)
    )


def _edges_cross(points: Sequence[tuple[float, float]]) -> bool:
    """Whether any two edges of the closed outline that share no corner cross each other."""
    edges = list(zip(points, [*points[1:], points[0]], strict=True))
    return any(
        _cross(*edges[i], *edges[j])
        for i in range(len(edges))
        for j in range(i + 2, len(edges))
        if not (i == 0 and j == len(edges) - 1)
    )


def _cross(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]
) -> bool:
    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
