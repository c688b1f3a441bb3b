"""labelme: its label file, one JSON beside each view, read without trust and written whole; its
settings and its window.

The format as labelme 6 writes it; labelme itself is GPL and is never imported.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from cxr.coco import MARKS
from cxr.workdir import log, read_json, write_atomic

FORMAT_VERSION = "6.3.1"  # of the format that is written here
PRELABELLED = "prelabelled"
POLL_SECONDS = 1.0
SLACK_SECONDS = 3.0  # file systems keep coarse times, and a file may have been half written
COLOURS = ([0, 220, 255], [255, 170, 0], [120, 255, 120])
HINTS = """\
In labelme:  D next film, A the one before; every change is saved by itself.
  the box is right      tick «accepted» among the flags
  the box is wrong      drag its corners (Ctrl+J edits), or Delete it and draw one with Ctrl+R
  no box can be drawn   tick «unreadable» or «not frontal»
  a box does not count  tick its own flag «ignore» (Ctrl+E edits the label)
Close the window at any time; the same command goes on at the next film without an answer."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """One drawn shape; `points` (x, y) as drawn, `flags` the ticked ones, `group_id` labelme's own.

    A label file has it in the pixels of its picture, an Answer in those of the film.
    """

    label: str
    points: tuple[Point, ...]
    shape_type: str = "rectangle"
    flags: frozenset[str] = frozenset()
    group_id: int | None = None

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

    @property
    def marks(self) -> frozenset[str]:
        """The ticked flags that say not to count it; see cxr.coco.MARKS."""
        return self.flags & set(MARKS)


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
        data = read_json(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"not JSON, or cut off: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
        raise ValueError("not a label file of labelme: it has no list of shapes")
    own = data.get("lungfirst")
    own = own if isinstance(own, dict) else {}
    return LabelFile(
        _text(data, "imagePath").replace("\\", "/").strip(),
        tuple(_read_shape(number, s) for number, s in enumerate(data["shapes"], start=1)),
        _ticked(data, "flags must be an object of true and false"),
        _read_size(data),
        _text(own, "film"),
        _text(own, "sha256"),
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
                "group_id": shape.group_id,
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


def _read_size(data: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width); None where the file does not say it."""
    height, width = data.get("imageHeight"), data.get("imageWidth")
    if (height, width) == (None, None):
        return None
    if not (_is_number(height) and _is_number(width) and min(height, width) >= 1):
        rule = "imageHeight and imageWidth must be whole numbers of 1 px or more"
        raise ValueError(f"{rule}. Got {height!r} and {width!r}")
    return int(height), int(width)


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)


def _read_shape(number: int, data: Any) -> Shape:
    if not isinstance(data, dict):
        raise ValueError(f"shape {number} must be a JSON object. Got {data!r}")
    points = data.get("points")
    pairs = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not (pairs and points and all(_is_number(v) for point in points for v in point)):
        raise ValueError(
            f"points of shape {number} must be pairs of numbers, none too large. Got {points!r}"
        )
    group = data.get("group_id")
    return Shape(
        _text(data, "label").strip(),
        tuple((float(x), float(y)) for x, y in points),
        _text(data, "shape_type") or "polygon",
        _ticked(data, f"flags of shape {number} must be an object"),
        group if type(group) is int else None,
    )


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    return "" if value is None else str(value)


def _ticked(data: dict[str, Any], rule: str) -> frozenset[str]:
    """The flags that are true; a mark counts however it is spelt."""
    flags = data.get("flags") or {}
    if not isinstance(flags, dict):
        raise ValueError(f"{rule}. Got {flags!r}")
    names = [str(name).strip() for name, value in flags.items() if value in (True, 1)]
    return frozenset(name.lower() if name.lower() in MARKS else name for name in names)


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the lines from `a` to `b` and from `c` to `d` cross; sharing a corner is no cross."""

    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def find_labelme() -> str:
    """The program beside this Python, or on the PATH; "" when there is none."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which("labelme", path=os.pathsep.join(places)) or ""


def why_not_opened() -> str:
    """Why labelme cannot be opened; "" where it can."""
    if not find_labelme():
        return "labelme is missing: pip install -e .[annotate]"
    screen = any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    screen = screen or not sys.platform.startswith("linux")  # there, a display must be named
    return "" if screen else "there is no screen to open labelme on"


def write_settings(folder: Path, classes: Sequence[str], flags: Sequence[str]) -> Path:
    """labelme's settings for a session in its folder: labels, flags, saving at each change."""
    settings = {
        "auto_save": True,
        "with_image_data": False,  # the view lies beside the label file
        "keep_prev": False,
        "display_label_popup": len(classes) > 1,
        "labels": list(classes),
        "validate_label": "exact",
        "sort_labels": False,
        "flags": list(flags),
        "label_flags": {".*": [PRELABELLED, "ignore"]},
        "shape_color": "manual",  # labelme's own first colour is a dark red, lost on a dark film
        "label_colors": dict(zip(classes, cycle(COLOURS), strict=False)),
    }
    text = "# written by annotate.py start\n" + yaml.safe_dump(settings, sort_keys=False)
    return write_atomic(folder / "labelme.yaml", text)


def run_labelme(view: Path, settings: Path, note_changes: Callable[[float], object]) -> int:
    """Open labelme at a view and wait till it is closed; returns its exit code.

    `note_changes` is asked each second to note what was saved since a time (s), so that a crash, of
    labelme or of the machine, costs at most the box that is being drawn.
    """
    messages, ask = settings.with_suffix(".log"), [find_labelme(), str(view), "--config"]
    seen = time.time()
    with messages.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own list
            [*ask, str(settings)], stdout=output, stderr=output
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                before, seen = seen, time.time()
                note_changes(before - SLACK_SECONDS)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
    note_changes(0.0)
    if process.returncode != 0:
        last = "\n".join(messages.read_text(errors="replace").strip().splitlines()[-3:])
        said = "labelme ended with code %d. The last of %s:\n%s"
        log.warning(said, process.returncode, messages, last)
    return process.returncode
