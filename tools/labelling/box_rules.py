"""What a thorax box must be like, whichever file it stands in: the rules that `check` goes by."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cxr.boxes import area_xyxy, clip_xyxy

OUTSIDE_PX = 0.5  # film pixels; less is rounding on the way from the view to the film
MIN_SHARE, MAX_SHARE = 0.20, 0.99  # of the film's area
_LONGEST = 240  # characters of a fault: some hold a whole list of points

# Wraps a long walk over (items, how many) in a progress bar.
Follow = Callable[[Iterable[Any], int], Iterable[Any]]


def no_bar(items: Iterable[Any], total: int) -> Iterable[Any]:
    """The walk without a progress bar."""
    return items


@dataclass(frozen=True)
class Fault:
    """One fault: number and name of the film (or a file), what is wrong, and what to do."""

    film: str
    what: str
    fix: str

    def __str__(self) -> str:
        what = self.what if len(self.what) <= _LONGEST else self.what[: _LONGEST - 1] + "…"
        # One line whatever the file names and the JSON hold.
        return "".join(c if c.isprintable() else "?" for c in f"{self.film}: {what}. {self.fix}")


def name_film(number: int, name: str) -> str:
    """A film as every line begins: 0007 images/a.png."""
    return f"{number:04d} {name}"


def find_box_faults(
    xyxy: Sequence[float], size_hw: tuple[int, int], name: str = "the box"
) -> list[tuple[str, str]]:
    """What is wrong with where a box lies, and what to do: (what, fix), both without the film.

    Args:
        xyxy: in film pixels.
        size_hw: of the film.
        name: of the box, such as "box 2 of 3".
    """
    if is_crossed(xyxy):
        what = f"{name} has no width or height, or its edges are crossed"
        return [(what, "Delete it and draw it again")]
    found = []
    sides = find_outside(xyxy, size_hw)
    if sides:
        what = f"{name} reaches out of the film by {' and '.join(sides)}"
        found.append((what, "Move its edge onto the film"))
    share = float(area_xyxy(clip_xyxy(xyxy, size_hw))[0]) / max(1, size_hw[0] * size_hw[1])
    if share < MIN_SHARE:
        percent = math.floor(1000 * share) / 10  # rounded down: 19.96 is not "20 %"
        what = (
            f"{name} covers {percent:.1f} % of the film, a thorax at least {MIN_SHARE * 100:.0f} %"
        )
        found.append((what, "Draw it round both lungs"))
    elif share > MAX_SHARE:
        what = f"{name} covers the whole film, a thorax at most {MAX_SHARE * 100:.0f} %"
        found.append((what, "Draw it tight round both lungs"))
    return found


def is_crossed(xyxy: Sequence[float]) -> bool:
    """Whether a box has no width or no height, or its edges on the wrong sides."""
    x0, y0, x1, y1 = xyxy
    return not (x0 < x1 and y0 < y1)


def find_outside(xyxy: Sequence[float], size_hw: tuple[int, int]) -> list[str]:
    """Where a box (film pixels) reaches out of its film: 3.0 px at the top …"""
    height, width = size_hw
    over = {"left": -xyxy[0], "top": -xyxy[1], "right": xyxy[2] - width, "bottom": xyxy[3] - height}
    return [f"{px:.1f} px at the {side}" for side, px in over.items() if px > OUTSIDE_PX]


def find_wrong_label(label: str, classes: Collection[str], name: str = "the box") -> str:
    """Why the label is none of the classes; "" when it is one."""
    if label in classes:
        return ""
    said = f"is labelled '{label}'" if label else "has no label"
    return f"{name} {said}, not {' or '.join(classes)}"


def count_boxes(boxes: int) -> str:
    """two boxes, 3 boxes …"""
    return "two boxes" if boxes == 2 else f"{boxes} boxes"
