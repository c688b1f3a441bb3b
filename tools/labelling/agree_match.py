"""Which film of A is which of B, and how far apart the two boxes of it lie."""

from __future__ import annotations

import math
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from cxr.boxes import iou_xyxy
from labelling.agree_read import Mark, Reader, Side, Xyxy

NAN4: Xyxy = (math.nan,) * 4
BOTH, A_ONLY, B_ONLY = "box / box", "box / no box", "no box / box"
NEITHER, UNLIKE = "no box / no box", "other shape"
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")  # not the .3 of the UID 1.2.840.3


@dataclass(frozen=True)
class Pair:
    """One film, marked by a reader of A and by one of B.

    Attributes:
        film: its name in A.
        reader: of B, or of both where A has several.
        hands: the readers of A and of B.
        verdict: BOTH, A_ONLY, B_ONLY, NEITHER or UNLIKE (pictures of different shapes).
        a_xyxy, b_xyxy: both in pixels of A's picture; None where there is no box.
        size_hw: of A's picture, or None where nobody knows it.
        iou: NaN unless both have a box.
        edges_px, edges_pct: B − A for left, top, right, bottom; in % of the width (left, right)
            or height (top, bottom) of A's box.
    """

    film: str
    reader: str
    source: str
    patient: str
    verdict: str
    a: Mark
    b: Mark
    hands: tuple[str, str] = ("", "")
    a_xyxy: Xyxy | None = None
    b_xyxy: Xyxy | None = None
    size_hw: tuple[int, int] | None = None
    iou: float = math.nan
    edges_px: Xyxy = NAN4
    edges_pct: Xyxy = NAN4


@dataclass(frozen=True)
class Comparison:
    """A against B. `names` is how films were matched: path or stem."""

    a: Side
    b: Side
    names: str
    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]


def film_key(name: str, names: str) -> str:
    """What a film is matched by. A Mac writes accents in two characters, Windows paths with \\."""
    path = posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))
    return path if names == "path" else _SUFFIX.sub("", posixpath.basename(path))


def compare(a: Side, b: Side, names: str = "path") -> Comparison:
    """Pair every reader of A with every one of B; one CSV given twice: its readers in twos.

    Without a match by path, films are matched by stem, and a note says so.

    Raises:
        ValueError: nothing to compare, or a name that could be two films.
    """
    same = a.path.resolve() == b.path.resolve()
    twos = list(combinations(a.readers, 2) if same else product(a.readers, b.readers))
    if not twos:
        raise ValueError(
            f"A and B must differ, or be a CSV with two readers. Got '{a.path}' twice, with the "
            f"reader {a.readers[0].name}."
        )
    notes = [*a.notes, *(() if same else b.notes)]
    films_a, films_b = _names(a.readers), _names(b.readers)
    by_path, by_stem = (len(_keys(films_a, n) & _keys(films_b, n)) for n in ("path", "stem"))
    if names == "path" and not by_path and by_stem:
        names = "stem"
        notes.append(
            "No film of A has the path of one of B; matched by stem, the file's name "
            "without folder and suffix."
        )
    elif names == "path" and by_stem > by_path:
        notes.append(
            f"{by_stem - by_path} more films would match by their names alone: --names stem."
        )
    pairs = [p for ra, rb in twos for p in _pair_readers(ra, rb, names, a, b)]
    if not pairs:
        raise ValueError(
            f"A and B must have a film in common. '{a.path}' has {len(films_a)} films such as "
            f"{films_a[0]}, '{b.path}' has {len(films_b)} such as {films_b[0]}; none matches by "
            f"{names}."
        )
    done = {film_key(p.film, names) for p in pairs}
    only_a, only_b = (
        [f for f in films if film_key(f, names) not in done] for films in (films_a, films_b)
    )
    return Comparison(
        a, b, names, tuple(pairs), tuple(only_a), () if same else tuple(only_b), tuple(notes)
    )


def _names(readers: Iterable[Reader]) -> list[str]:
    return list(dict.fromkeys(m.film for r in readers for m in r.marks))


def _keys(films: Iterable[str], names: str) -> set[str]:
    return {film_key(f, names) for f in films}


def _pair_readers(a: Reader, b: Reader, names: str, side_a: Side, side_b: Side) -> list[Pair]:
    own, other = _index(a.marks, names), _index(b.marks, names)
    reader = b.name if len(side_a.readers) == 1 else f"{a.name} / {b.name}"
    pairs = []
    for key in own:
        if key not in other:
            continue
        for marks, side in ((own[key], side_a), (other[key], side_b)):
            if len(marks) > 1:
                raise ValueError(
                    f"'{side.path}' has two films that match by {names} as {key}: {marks[0].film} "
                    f"and {marks[1].film}. Rename one of them, or make the paths in A and B alike."
                )
        pairs.append(_pair(own[key][0], other[key][0], reader, (a.name, b.name)))
    return pairs


def _index(marks: Sequence[Mark], names: str) -> dict[str, list[Mark]]:
    index: dict[str, list[Mark]] = {}
    for mark in marks:
        index.setdefault(film_key(mark.film, names), []).append(mark)
    return index


def _pair(a: Mark, b: Mark, reader: str, hands: tuple[str, str]) -> Pair:
    size_a, size_b = a.size_hw or b.size_hw, b.size_hw or a.size_hw
    verdict = {
        (True, True): BOTH,
        (True, False): A_ONLY,
        (False, True): B_ONLY,
        (False, False): NEITHER,
    }[a.xyxy is not None, b.xyxy is not None]
    patient = a.patient_id or b.patient_id or a.film
    pair = Pair(a.film, reader, a.source or b.source, patient, verdict, a, b, hands)
    if size_a and size_b and not _alike(size_a, size_b):
        return replace(pair, verdict=UNLIKE)
    if (a.size_hw is None) != (b.size_hw is None):  # else there is nothing to check it by
        _check_inside(a if a.size_hw is None else b, size_a)
    other = b.xyxy
    if other is not None and size_a and size_b:
        scale = np.array([size_a[1] / size_b[1], size_a[0] / size_b[0]] * 2)
        x0, y0, x1, y1 = (float(v) for v in np.array(other) * scale)
        other = x0, y0, x1, y1
    pair = replace(pair, a_xyxy=a.xyxy, b_xyxy=other, size_hw=size_a)
    if a.xyxy is None or other is None:
        return pair
    edges = np.array(other) - np.array(a.xyxy)
    sides = np.array([a.xyxy[2] - a.xyxy[0], a.xyxy[3] - a.xyxy[1]] * 2)
    iou = float(iou_xyxy(a.xyxy, other)[0, 0])
    return replace(pair, iou=iou, edges_px=_four(edges), edges_pct=_four(100 * edges / sides))


def _four(values: np.ndarray) -> Xyxy:
    x0, y0, x1, y1 = (float(v) for v in values)
    return x0, y0, x1, y1


def _alike(size_a: tuple[int, int], size_b: tuple[int, int]) -> bool:
    """Whether one size is the other, made larger or smaller and rounded to whole pixels."""
    (ha, wa), (hb, wb) = size_a, size_b
    # Half a pixel of rounding on either shorter side, and 2 % for careless resizing.
    slack = max(0.02, 1 / min(size_a), 1 / min(size_b))
    return abs(wa * hb / (ha * wb) - 1) <= slack


def _check_inside(mark: Mark, size_hw: tuple[int, int] | None) -> None:
    """A box without a size that leaves the other's film was drawn on another size of it."""
    if mark.xyxy is None or size_hw is None:
        return
    height, width = size_hw
    x0, y0, x1, y1 = mark.xyxy
    slack_x, slack_y = max(2.0, 0.01 * width), max(2.0, 0.01 * height)
    if x0 < -slack_x or y0 < -slack_y or x1 > width + slack_x or y1 > height + slack_y:
        raise ValueError(
            f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} of the CSV reaches out of film {mark.film} of "
            f"{width} × {height} px. If it was drawn on the film in another size, add the columns "
            "width and height with that size."
        )
