"""Figures of films as text: cells, CSV, tables in markdown and in the terminal, JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cxr.workdir import console


class _Sourced(Protocol):
    @property
    def source(self) -> str: ...


Result = TypeVar("Result", bound=_Sourced)


def by_source(results: Sequence[Result]) -> dict[str, list[Result]]:
    """All results, and those of each source where there are several."""
    blocks, sources = {"all": list(results)}, sorted({r.source for r in results})
    if len(sources) > 1:
        blocks |= {s: [r for r in results if r.source == s] for s in sources}
    return blocks


def number(value: float, digits: int = 3, missing: str = "–") -> str:
    """A cell; `missing` for NaN."""
    return missing if math.isnan(value) else f"{value:.{digits}f}"


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows, the head among them, as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def to_markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def print_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], left: int, no_wrap: bool = False, **how: Any
) -> None:
    """A narrow table in the terminal, its first `left` columns flush left."""
    table = Table(box=SIMPLE_HEAD, padding=0, **how)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=no_wrap)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def to_json(value: Any) -> Any:
    """Dataclasses as dicts, NaN as null: JSON has no NaN."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
