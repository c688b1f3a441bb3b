"""The results of `detect.lungfield evaluate` as tables and files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cxr.stats import Interval, bootstrap_mean, in_words
from cxr.workdir import Workdir, console, write_atomic, write_json
from detect.lungfield.data import VIEWS

if TYPE_CHECKING:
    from detect.lungfield.evaluate import FieldResult

METHODS = ("network", "constant field")
EDGES = ("left", "top", "right", "bottom")
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class FieldLine:
    """One method on the films of a block in one view; intervals by patient."""

    films: int
    patients: int
    dice: Interval
    median_dice: float
    low_dice: float  # 5th percentile
    share_95: Interval  # films with Dice ≥ 0.95
    iou: Interval
    coverage: Interval
    precision: Interval
    box_iou: Interval
    misses: int


@dataclass(frozen=True)
class FieldTables:
    """Block (all, or a source) → view → method → line; block → box → percentiles of disagreement;
    edge → films whose field is cut there by the network, by the human mask, and by both."""

    part: str
    lines: dict[str, dict[str, dict[str, FieldLine]]]
    disagreement: dict[str, dict[str, dict[str, float]]]
    edges: dict[str, dict[str, int]]


def tabulate(results: Sequence[FieldResult], part: str, seed: int) -> FieldTables:
    """All figures of these results."""
    sources = sorted({r.row.source for r in results})
    blocks = {"all": list(results)}
    if len(sources) > 1:
        blocks |= {s: [r for r in results if r.row.source == s] for s in sources}
    lines = {
        name: {
            view: {m: _line([r for r in group if r.view == view], m, seed) for m in METHODS}
            for view in VIEWS
            if any(r.view == view for r in group)
        }
        for name, group in blocks.items()
    }
    films = {name: [r for r in group if r.view == "film"] for name, group in blocks.items()}
    apart = {
        name: {
            "human box": percentiles([r.human for r in group]),
            "detector's box": percentiles([r.detector for r in group]),
        }
        for name, group in films.items()
    }
    return FieldTables(part, lines, apart, count_edges(films["all"]))


def _line(results: Sequence[FieldResult], method: str, seed: int) -> FieldLine:
    network = method == "network"
    patients = [r.row.patient_id for r in results]
    scores = [r.found if network else r.constant for r in results]

    def mean(values: Sequence[float]) -> Interval:
        return bootstrap_mean(values, patients, seed=seed)

    dice = np.array([s.dice for s in scores])
    return FieldLine(
        len(results),
        len(set(patients)),
        mean(dice.tolist()),
        float(np.median(dice)),
        float(np.percentile(dice, 5)),
        mean((dice >= 0.95).astype(float).tolist()),
        mean([s.iou for s in scores]),
        mean([s.coverage for s in scores]),
        mean([s.precision for s in scores]),
        mean([r.box_iou if network else math.nan for r in results]),
        sum(r.missed for r in results) if network else 0,
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Percentiles of the known values, and how many there are; empty without one."""
    known = np.array([v for v in values if not math.isnan(v)])
    if not len(known):
        return {}
    found = {f"p{p}": float(np.percentile(known, p)) for p in PERCENTILES}
    return {"films": float(len(known)), **found, "max": float(known.max())}


def count_edges(results: Sequence[FieldResult]) -> dict[str, dict[str, int]]:
    """For each edge of the film: fields cut there as found, as drawn by a person, and as both."""
    return {
        edge: {
            "found": sum(edge in r.edges for r in results),
            "human": sum(edge in r.true_edges for r in results),
            "both": sum(edge in r.edges and edge in r.true_edges for r in results),
        }
        for edge in EDGES
    }


def write_tables(
    results: Sequence[FieldResult], part: str, workdir: Workdir, seed: int
) -> FieldTables:
    """metrics.json, films.csv and table.md in the run's folder."""
    tables = tabulate(results, part, seed)
    write_json(workdir / "metrics.json", to_json(tables))
    write_atomic(workdir / "films.csv", films_csv(results))
    write_atomic(workdir / "table.md", table_markdown(tables))
    return tables


def to_json(value: Any) -> Any:
    """Dataclasses as dicts and NaN as null: JSON has no NaN."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: to_json(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: to_json(v) for key, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def films_csv(results: Sequence[FieldResult]) -> str:
    """A row a film and view; empty cells where there is nothing to measure."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "film",
            "view",
            "source",
            "patient",
            "label",
            "dice",
            "iou",
            "coverage",
            "precision",
            "constant_dice",
            "box_iou",
            "disagreement_human",
            "disagreement_detector",
            "cut_edges",
            "human_cut_edges",
        ]
    )
    for r in results:
        numbers = [
            r.found.dice,
            r.found.iou,
            r.found.coverage,
            r.found.precision,
            r.constant.dice,
            r.box_iou,
            r.human,
            r.detector,
        ]
        writer.writerow(
            [
                r.row.image,
                r.view,
                r.row.source,
                r.row.patient_id,
                r.row.label,
                *("" if math.isnan(v) else f"{v:.4f}" for v in numbers),
                " ".join(r.edges),
                " ".join(r.true_edges),
            ]
        )
    return out.getvalue()


def table_rows(tables: FieldTables) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the main table, as text."""
    head = [
        "films of",
        "seen",
        "field",
        "films",
        "patients",
        "Dice [95 %]",
        "median",
        "p5",
        "Dice≥.95 [95 %]",
        "IoU [95 %]",
        "coverage [95 %]",
        "precision [95 %]",
        "box IoU [95 %]",
        "misses",
    ]
    rows = [
        [
            block,
            view,
            method,
            str(s.films),
            str(s.patients),
            in_words(s.dice),
            _number(s.median_dice),
            _number(s.low_dice),
            in_words(s.share_95),
            in_words(s.iou),
            in_words(s.coverage),
            in_words(s.precision),
            in_words(s.box_iou),
            str(s.misses),
        ]
        for block, views in tables.lines.items()
        for view, methods in views.items()
        for method, s in methods.items()
    ]
    return head, rows


def table_markdown(tables: FieldTables) -> str:
    """The main table, then disagreement and cut edges."""
    head, rows = table_rows(tables)
    line: Callable[[Sequence[str]], str] = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    lines = [line(row) for row in [head, ["---"] * len(head), *rows]]
    lines += ["", f"Part {tables.part}; means with intervals by bootstrap over patients.", ""]
    names = ["films", *(f"p{p}" for p in PERCENTILES), "max"]
    lines += [line(["films of", "disagreement with", *names]), line(["---"] * (2 + len(names)))]
    for block, boxes in tables.disagreement.items():
        for box, found in boxes.items():
            if found:
                values = [f"{found[n]:.0f}" if n == "films" else _number(found[n]) for n in names]
                lines.append(line([block, box, *values]))
    lines += ["", line(["edge", "cut as found", "as drawn", "both"]), line(["---"] * 4)]
    lines += [
        line([edge, *(str(n[k]) for k in ("found", "human", "both"))])
        for edge, n in tables.edges.items()
    ]
    return "\n".join(lines) + "\n"


def print_tables(tables: FieldTables) -> None:
    """The main table, narrow enough for a terminal; table.md holds all of it."""
    table = Table(title=f"lung fields, part {tables.part}", box=SIMPLE_HEAD, padding=0)
    head, rows = table_rows(tables)
    wanted = {"films of", "seen", "field", "films", "Dice", "IoU", "coverage", "box IoU"}
    chosen = [i for i, name in enumerate(head) if name.split(" [")[0] in wanted]
    for index in chosen:
        table.add_column(head[index], justify="left" if index < 3 else "right")
    for row in rows:
        table.add_row(*(row[i].replace(" [", "\n[") for i in chosen))
    console.print(table)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
