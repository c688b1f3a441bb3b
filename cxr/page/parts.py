"""What a page's sections are made of: charts with their words, and the same as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from markupsafe import Markup

Values = Mapping[str, Any]
Cells = tuple[str, ...]
ALL = "all sources"


@dataclass(frozen=True)
class Table:
    """The same figures as text: for a screen reader, and for whoever wants the digits.

    `words` columns from the left hold words, the others figures. Of a `grouped` table the first
    column names groups, which stand above their rows.
    """

    head: Cells
    rows: list[Cells]
    words: int = 1
    grouped: bool = False

    @property
    def groups(self) -> list[tuple[str, list[Cells]]]:
        """Rows that follow each other under the same first cell, without it."""
        found = groupby(self.rows, key=lambda row: row[0])
        return [(name, [row[1:] for row in rows]) for name, rows in found]


@dataclass(frozen=True)
class Chart:
    """A chart with its name, its sentence and its table, if the section does not hold that."""

    title: str
    means: str
    svg: Markup
    table: Table | None = None


@dataclass(frozen=True)
class Fold:
    """Charts that stand closed under a title, as they matter less."""

    title: str
    charts: list[Chart]
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page; `table` stands below its charts, open, then `notes` and the `fold`."""

    id: str
    title: str
    intro: Cells
    charts: list[Chart] = field(default_factory=list)
    table: Table | None = None
    notes: Cells = ()
    fold: Fold | None = None


def figure_of(
    row: Values, value: str = "value", low: str = "low", high: str = "high"
) -> tuple[float | None, float | None, float | None]:
    """Value and interval out of a row."""
    return row.get(value), row.get(low), row.get(high)


def by_key(rows: Sequence[Values], key: str) -> list[tuple[str, list[Values]]]:
    """Rows by what they hold under a key, in the order in which that comes first."""
    groups: dict[str, list[Values]] = {}
    for row in rows:
        groups.setdefault(str(row.get(key) or ""), []).append(row)
    return list(groups.items())


def by_source(rows: Sequence[Values]) -> list[Values]:
    """All sources together first, then one after the other in the order they come in."""
    order = list(dict.fromkeys([ALL, *map(source_of, rows)]))
    return sorted(rows, key=lambda row: order.index(source_of(row)))


def source_of(row: Values) -> str:
    """The row's source; `all` and none at all mean all of them."""
    source = str(row.get("source") or "all")
    return ALL if source == "all" else source
