"""What films.csv says of each film, as the pictures and the probe group it."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr.boxes import area_xyxy, clip_xyxy, scale_xyxy, union_xyxy
from cxr.coco import read_counted
from cxr.films_table import FilmNames, FilmRow, open_table, read_films_table
from cxr.manifest import read_manifest
from cxr.page.words import printable

BANDS = ("under 18", "18–39", "40–59", "60–79", "80 and over", "not stated")
_AGE = re.compile(r"0*(\d{1,3})(?:\.\d+)?\s*([ymwd]?)(?:ears?|onths?|eeks?|ays?)?", re.IGNORECASE)
_CHILD = re.compile(r"p(a?)ed|child|infant|neonat|newborn", re.IGNORECASE)
UNKNOWN = ("", "unknown")


@dataclass(frozen=True, order=True)
class FilmClass:
    """Films of one source with one label; `kind` parts a label further (bacterial, viral)."""

    source: str
    label: str
    kind: str = ""

    @property
    def name(self) -> str:
        """As a person would call it: kermany · bacterial."""
        return f"{self.source} · {self.kind or self.label or 'no label'}"


@dataclass(frozen=True)
class Entry:
    """One film of the table. `original_wh` is its size before it was scaled, where stated."""

    row: FilmRow
    kind: str
    age: str
    sex: str
    original_wh: tuple[int, int] | None

    @property
    def film_class(self) -> FilmClass:
        """The finest class that the film is shown with."""
        return FilmClass(self.row.source, self.row.label, self.kind)


def read_entries(path: str | Path, smallest: int = 30) -> list[Entry]:
    """Films of a films.csv; a sublabel parts its label where at least two sublabels of one source
    have `smallest` films each. Raises ValueError or OSError for a table that cannot be used."""
    rows = [_printable(row) for row in read_films_table(path)]
    if not rows:
        raise ValueError(f"{path} must list at least one film. Got none.")
    with open_table(path) as file:
        extras = list(csv.DictReader(file))
    kinds = _kinds(rows, smallest)
    return [
        Entry(row, kind, extra.get("age") or "", sex_of(extra.get("sex") or ""), _original(extra))
        for row, extra, kind in zip(rows, extras, kinds, strict=True)
    ]


def age_band(age: str) -> str:
    """One of BANDS for an age in words or DICOM's form (058Y, 008M), or a number of years."""
    text = age.strip()
    found = _AGE.fullmatch(text)
    if found:
        years = int(found[1]) if found[2].lower() in ("", "y") else 0
        edges = (18, 40, 60, 80)
        return BANDS[sum(years >= edge for edge in edges)]
    return BANDS[0] if _CHILD.search(text) else BANDS[-1]


def sex_of(sex: str) -> str:
    """F, M or not stated."""
    first = sex.strip()[:1].upper()
    return first if first in ("F", "M") else "not stated"


def ordered_classes(entries: Sequence[Entry]) -> list[tuple[FilmClass, int]]:
    """Every class with its number of films: large sources first, and normal first in a source."""
    counts = Counter(e.film_class for e in entries)
    of_source = Counter(e.row.source for e in entries)

    def order(item: tuple[FilmClass, int]) -> tuple[Any, ...]:
        found, films = item
        return -of_source[found.source], found.source, found.label != "normal", -films, found

    return sorted(counts.items(), key=order)


def _printable(row: FilmRow) -> FilmRow:
    """The row with control and direction characters spelt out in what a page shows of it."""
    names = ("source", "label", "sublabel", "licence", "view")
    return replace(row, **{name: printable(getattr(row, name)) for name in names})


def _kinds(rows: Sequence[FilmRow], smallest: int) -> list[str]:
    """The part of a label that each film belongs to, "" where its label is not parted."""
    named = [_kind(row) for row in rows]
    counts = Counter((r.source, r.label, k) for r, k in zip(rows, named, strict=True) if k)
    large: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (source, label, kind), films in counts.items():
        if films >= smallest:
            large[source, label].add(kind)
    parted = {key: kinds for key, kinds in large.items() if len(kinds) > 1}
    return [
        kind if kind in parted.get((row.source, row.label), ()) else ""
        for row, kind in zip(rows, named, strict=True)
    ]


def _kind(row: FilmRow) -> str:
    """bacterial of bacterial/Klebsiella; nothing of a list of findings (A|B)."""
    if "|" in row.sublabel:
        return ""
    first = re.split(r"[/,;]", row.sublabel)[0].strip()
    return "" if first.casefold() == row.label.casefold() else first


def _original(extra: dict[str, str]) -> tuple[int, int] | None:
    """Width and height in px; None where the table does not say."""
    try:
        width, height = (int(float(extra.get(f"orig_{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def count_groups(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row for each source, label and age band that has films."""
    rows = []
    for (source, label), every in _by_label(entries).items():
        for band in BANDS:
            own = [e for e in every if age_band(e.age) == band]
            known = {"source": source, "label": label, "age": band, "films": len(own)}
            patients = len({e.row.patient_id for e in own})
            rows += [{**known, "patients": patients, **_terms(own)}] if own else []
    return rows


def age_table(entries: Sequence[Entry]) -> dict[str, Any]:
    """Rows of source and label against age bands; a cell is films and, in brackets, patients."""
    every = {age_band(e.age) for e in entries}
    bands = [b for b in BANDS if b in every]
    rows: list[list[str]] = []
    for (source, label), own in _by_label(entries).items():
        cells = [_cell([e for e in own if age_band(e.age) == band]) for band in bands]
        rows.append([source, label or "no label", _cell(own), *cells])
    totals = [_cell([e for e in entries if age_band(e.age) == band]) for band in bands]
    rows.append(["all", "", _cell(entries), *totals])
    return {"head": ["Source", "Label", "All ages", *bands], "words": 2, "rows": rows}


def terms_table(entries: Sequence[Entry]) -> dict[str, Any]:
    """Rows of source and label with sexes, views and licences, each with its number of films."""
    rows = []
    for (source, label), own in _by_label(entries).items():
        terms = _terms(own)
        shown = (_words(terms[what]) for what in ("sexes", "views", "licences"))
        rows.append([source, label or "no label", *shown])
    head = ["Source", "Label", "Sex", "View", "Licence as stated"]
    return {"head": head, "words": 5, "rows": rows}


def _by_label(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.row.source, entry.row.label].append(entry)
    return dict(sorted(groups.items(), key=lambda i: (i[0][0], i[0][1] != "normal", i[0][1])))


def _terms(own: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Licences, views and sexes with their numbers of films, the most frequent first."""
    stated = {
        "licences": Counter(e.row.licence or "not stated" for e in own),
        "views": Counter(e.row.view or "not stated" for e in own),
        "sexes": Counter(e.sex for e in own),
    }
    return {what: dict(found.most_common()) for what, found in stated.items()}


def _words(counts: dict[str, int]) -> str:
    shown = [f"{name} {n:,}" for name, n in list(counts.items())[:6]]
    return ", ".join(shown) + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


def _cell(own: Sequence[Entry]) -> str:
    return f"{len(own):,} ({len({e.row.patient_id for e in own}):,})" if own else "–"


@dataclass(frozen=True)
class Box:
    """A box (4,) xyxy on a film of `size_hw`."""

    xyxy: tuple[float, float, float, float]
    size_hw: tuple[int, int]

    def on(self, size_hw: tuple[int, int]) -> np.ndarray | None:
        """The box (4,) on the film's copy of that size; None where the copy has another shape, or
        the box no area on it."""
        try:
            box = clip_xyxy(scale_xyxy(self.xyxy, self.size_hw, size_hw), size_hw)
        except ValueError:
            return None
        return box[0] if np.isfinite(box).all() and area_xyxy(box)[0] >= 1 else None


def coco_boxes(path: str | Path, images: Sequence[str]) -> dict[str, Box]:
    """Image of the table → the union of its boxes; raises ValueError for a file with faults."""
    return _matched(
        {
            f.file_name: Box(_four(union_xyxy(f.boxes_xyxy)), f.size_hw)
            for f in read_counted(path)
            if len(f.boxes_xyxy)
        },
        images,
    )


def crop_boxes(folder: str | Path, images: Sequence[str]) -> dict[str, Box]:
    """Image of the table → its box in the manifest of detect.crop. Raises ValueError."""
    boxes = {
        row.film: Box(_four(np.asarray(row.thorax_xyxy)), row.size_hw)
        if row.thorax_xyxy is not None and row.size_hw is not None
        else None
        for row in read_manifest(folder)[1]
    }
    return _matched(boxes, images)


def _matched(boxes: Mapping[str, Box | None], images: Sequence[str]) -> dict[str, Box]:
    """Image → its box, by the end of its path; films that cannot be told apart get none."""
    names = FilmNames(boxes, images)
    found = {image: boxes.get(names.find(image) or "") for image in images}
    return {image: box for image, box in found.items() if box is not None}


def _four(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return x0, y0, x1, y1
