"""What films.csv says of each film, as the pictures and the probe group it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr.boxes import area_xyxy, as_xyxy, clip_xyxy, scale_xyxy, union_xyxy
from cxr.coco import read_counted
from cxr.data_folders import Data, DataFolders
from cxr.films_table import (
    FilmNames,
    FilmRow,
    label_word,
    read_films_table,
    table_rows,
    tell_unknown,
    why_unknown,
)
from cxr.manifest import read_manifest
from cxr.page.build import Table
from cxr.page.words import printable
from cxr.public_sets.records import sex_of, years_of

NOT_STATED = "not stated"
BANDS = ("under 18", "18–39", "40–59", "60–79", "80 and over", NOT_STATED)
_CHILD = re.compile(r"p(a?)ed|child|infant|neonat|newborn", re.IGNORECASE)


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
    """One film of the table; `age` is one of BANDS, `original_wh` its size before it was scaled,
    where stated; `is_known`: its label says what it is."""

    row: FilmRow
    kind: str
    age: str
    sex: str
    original_wh: tuple[int, int] | None
    is_known: bool = True

    @property
    def film_class(self) -> FilmClass:
        """The finest class that the film is shown with."""
        return FilmClass(self.row.source, self.row.label, self.kind)


def read_entries(data: Data, smallest: int = 30, known: Sequence[str] = ()) -> list[Entry]:
    """Films of the films.csv of one folder or several; a sublabel parts its label where at least
    two sublabels of one source have `smallest` films each; `known` are labels beside the usual
    ones. Raises ValueError or OSError for a table that cannot be used."""
    data = DataFolders(data)
    tables = [(own, _with_extras(path)) for path, own in data.tables().items()]
    listed, path = data.join(tables, lambda pair: pair[0].image), data.named("films.csv")
    rows = [_printable(row) for row, _ in listed]
    if not rows:
        raise ValueError(f"{path} must list at least one film. Got none.")
    tell_unknown(rows, path, known)
    kinds = _kinds(rows, smallest)
    return [
        Entry(
            row,
            kind,
            age_band(more.get("age") or ""),
            _sex(more),
            _original(more),
            not why_unknown(row, known),
        )
        for row, (_, more), kind in zip(rows, listed, kinds, strict=True)
    ]


def _with_extras(path: Path) -> list[tuple[FilmRow, dict[str, str]]]:
    """The films of a table, each with all its cells."""
    return list(zip(read_films_table(path), (c for _, c in table_rows(path, ())), strict=True))


def unknown_labels(entries: Sequence[Entry]) -> dict[str, int]:
    """Labels that do not say what a film is, with their numbers of films."""
    unknown = Counter(e.row.label or "no label" for e in entries if not e.is_known)
    return dict(unknown.most_common())


def age_band(age: str) -> str:
    """One of BANDS for an age in words or DICOM's form (058Y, 008M), or a number of years."""
    if years := years_of(age):
        return BANDS[sum(int(years) >= edge for edge in (18, 40, 60, 80))]
    return BANDS[0] if _CHILD.search(age) else NOT_STATED


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
    return "" if label_word(first) == row.label else label_word(first)


def _sex(more: dict[str, str]) -> str:
    return sex_of(more.get("sex") or "") or NOT_STATED


def _original(more: dict[str, str]) -> tuple[int, int] | None:
    """Width and height in px; None where the table does not say."""
    try:
        width, height = (int(float(more.get(f"orig_{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def count_groups(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row for each source, label and age band that has films."""
    rows = []
    for (source, label), every in _by_label(entries).items():
        for band in BANDS:
            if own := [e for e in every if e.age == band]:
                known = {"source": source, "label": label, "age": band, "films": len(own)}
                patients = len({e.row.patient_id for e in own})
                rows.append({**known, "patients": patients, **_terms(own)})
    return rows


def age_table(entries: Sequence[Entry]) -> Table:
    """Rows of source and label against age bands; a cell is films and, in brackets, patients."""
    bands = [band for band in BANDS if any(e.age == band for e in entries)]

    def row(source: str, label: str, own: Sequence[Entry]) -> tuple[str, ...]:
        cells = (_cell([e for e in own if e.age == band]) for band in bands)
        return source, label, _cell(own), *cells

    rows = [row(s, label or "no label", own) for (s, label), own in _by_label(entries).items()]
    head = ("Source", "Label", "All ages", *bands)
    return Table(head, [*rows, row("all", "", entries)], 2)


def terms_table(entries: Sequence[Entry]) -> Table:
    """Rows of source and label with sexes, views and licences, each with its number of films."""
    rows = [
        (source, label or "no label", *(_words(_terms(own)[what]) for what in _TERMS))
        for (source, label), own in _by_label(entries).items()
    ]
    return Table(("Source", "Label", "Sex", "View", "Licence as stated"), rows, 5)


def _by_label(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.row.source, entry.row.label].append(entry)
    return dict(sorted(groups.items(), key=lambda i: (i[0][0], i[0][1] != "normal", i[0][1])))


_TERMS = ("sexes", "views", "licences")


def _terms(own: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Licences, views and sexes with their numbers of films, the most frequent first."""
    stated = {
        "licences": Counter(e.row.licence or NOT_STATED for e in own),
        "views": Counter(e.row.view or NOT_STATED for e in own),
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


def coco_boxes(paths: Iterable[Path], images: Sequence[str]) -> dict[str, Box]:
    """Image of the table → the union of its boxes; raises ValueError for a file with faults."""
    return _matched(
        {
            f.file_name: Box(as_xyxy(union_xyxy(f.boxes_xyxy)), f.size_hw)
            for path in paths
            for f in read_counted(path)
            if len(f.boxes_xyxy)
        },
        images,
    )


def crop_boxes(folder: str | Path, images: Sequence[str]) -> dict[str, Box]:
    """Image of the table → its box in the manifest of detect.crop. Raises ValueError."""
    boxes = {
        row.film: Box(as_xyxy(np.asarray(row.thorax_xyxy)), row.size_hw)
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
