"""What films.csv says of each film, as the pictures and the probe group it."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cxr.films_table import FilmRow, open_table, read_films_table
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
    return sorted(
        counts.items(),
        key=lambda item: (
            -of_source[item[0].source],
            item[0].source,
            item[0].label != "normal",
            -item[1],
            item[0],
        ),
    )


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
