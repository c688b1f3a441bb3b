"""The results of detect.evaluate as tables, files and a sheet of the worst films."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cxr.coco import CocoFilm
from cxr.draw import GREEN, ORANGE, RED, draw_box, encode_png, sheet, to_rgb
from cxr.stats import in_words
from cxr.stream import Unread, read_ahead
from cxr.workdir import Workdir, console, write_atomic, write_json
from detect.metrics import (
    SIDES,
    AveragePrecision,
    FilmScore,
    Summary,
    average_precision,
    summarise,
)
from detect.predict import Detections, ThoraxBox

METHODS = ("detector", "constant box", "whole film")


@dataclass(frozen=True)
class FilmResult:
    """One film: its truth, what the detector said, and the score of each method."""

    film: CocoFilm
    status: str  # ok, fallback, no_thorax, unreadable
    reason: str
    box: ThoraxBox | None
    found: Detections | None
    scores: dict[str, FilmScore]
    baselines: dict[str, np.ndarray]  # method → (4,) xyxy

    @property
    def source(self) -> str:
        """Where the film comes from; films.csv's sources."""
        return str(self.film.extra.get("source") or "unknown")


@dataclass(frozen=True)
class Line:
    """One line of the table: a method on the films of a block."""

    summary: Summary
    precision: AveragePrecision
    class_accuracy: float = math.nan  # share of films with the right class, of several


@dataclass(frozen=True)
class Evaluation:
    """All films, and block (all, or a source) → method → Line."""

    results: list[FilmResult]
    blocks: dict[str, dict[str, Line]]
    part: str


def compare(results: Sequence[FilmResult], classes: int, seed: int) -> dict[str, dict[str, Line]]:
    """Each method on all films, and on each source where there are several."""
    sources = sorted({r.source for r in results})
    groups = {"all": list(results)}
    if len(sources) > 1:
        groups |= {s: [r for r in results if r.source == s] for s in sources}
    return {
        name: {method: _line(group, method, classes, seed) for method in METHODS}
        for name, group in groups.items()
    }


def _line(results: Sequence[FilmResult], method: str, classes: int, seed: int) -> Line:
    patients = [r.film.patient_id for r in results]
    summary = summarise([r.scores[method] for r in results], patients, seed)
    if method != "detector" and classes > 1:  # a constant box knows no class
        return Line(summary, AveragePrecision(math.nan, math.nan, math.nan))
    truths = [(r.film.boxes_xyxy, r.film.labels) for r in results]
    found = [_predicted(r, method, classes) for r in results]
    precision = average_precision(truths, found, classes)
    named = [r for r in results if r.film.labels]
    if classes < 2 or not named:
        return Line(summary, precision)
    right = [
        r.box is not None and r.status == "ok" and r.box.label == r.film.labels[0] for r in named
    ]
    return Line(summary, precision, float(np.mean(right)))


def _predicted(result: FilmResult, method: str, classes: int) -> tuple[Any, Any, Any]:
    if method in result.baselines:
        return result.baselines[method][None], [1.0], [0]
    if method == "detector" and result.found is not None:
        found = result.found
        labels = found.labels if classes > 1 else np.zeros_like(found.labels)
        return found.boxes_xyxy, found.scores, labels
    return np.zeros((0, 4)), [], []


def write_evaluation(evaluation: Evaluation, workdir: Workdir) -> None:
    """metrics.json, films.csv and table.md into the run's folder."""
    write_json(
        workdir / "metrics.json",
        {
            "part": evaluation.part,
            "statuses": dict(Counter(r.status for r in evaluation.results)),
            "blocks": _to_json(evaluation.blocks),
            "misses": names_of_misses(evaluation),
            "doubles": names_of_doubles(evaluation),
            "edges": SIDES,
        },
    )
    write_atomic(workdir / "films.csv", films_csv(evaluation.results))
    write_atomic(workdir / "table.md", table_markdown(evaluation))


def names_of_misses(evaluation: Evaluation) -> list[str]:
    """Films with a thorax and no box of status ok, each with its reason."""
    return [
        f"{r.film.file_name}: {r.status}, {r.reason}"
        for r in evaluation.results
        if r.scores["detector"].missed
    ]


def names_of_doubles(evaluation: Evaluation) -> list[str]:
    """Films with more confident boxes than they have."""
    return [r.film.file_name for r in evaluation.results if r.scores["detector"].doubled]


def _to_json(value: Any) -> Any:
    """Dataclasses as dicts, NaN as null: JSON has no NaN."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): _to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def films_csv(results: Sequence[FilmResult]) -> str:
    """A row a film; empty cells where there is nothing to measure."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    edges = [f"edge_{side}_{unit}" for unit in ("px", "mm") for side in SIDES]
    writer.writerow(
        [
            "film",
            "source",
            "patient",
            "label",
            "status",
            "reason",
            "score",
            "second_score",
            "iou",
            "coverage",
            "lung_coverage",
            *edges,
            "x0",
            "y0",
            "x1",
            "y1",
        ]
    )
    for r in results:
        score = r.scores["detector"]
        values = [score.iou, score.coverage, score.lung_coverage, *score.edges_px, *score.edges_mm]
        seen = r.found.scores if r.found is not None else np.zeros(0)
        place = r.box.xyxy if r.box is not None and r.box.xyxy is not None else [""] * 4
        writer.writerow(
            [
                r.film.file_name,
                r.source,
                r.film.patient_id,
                r.film.extra.get("label", ""),
                r.status,
                r.reason,
                *(f"{seen[i]:.4f}" if len(seen) > i else "" for i in (0, 1)),
                *("" if math.isnan(v) else f"{v:.4f}" for v in values),
                *(f"{v:.1f}" if v != "" else "" for v in place),
            ]
        )
    return out.getvalue()


def table_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text; a column in mm only where spacing is known."""
    lines = [(b, m, line) for b, block in evaluation.blocks.items() for m, line in block.items()]
    in_mm = any(not math.isnan(line.summary.edge_mm.value) for _, _, line in lines)
    several = any(not math.isnan(line.class_accuracy) for _, _, line in lines)
    negatives = any(line.summary.negatives for _, _, line in lines)
    head = [
        "films of",
        "box",
        "films",
        "patients",
        "mean IoU [95 %]",
        "median",
        "IoU≥.9 [95 %]",
        "IoU≥.75",
        "coverage",
        "cov≥.99",
        "lungs",
        "AP",
        "AP50",
        "AP75",
        "edge px",
        *(["edge mm"] if in_mm else []),
        "misses",
        "doubles",
        *(["class"] if several else []),
        *(["false boxes"] if negatives else []),
    ]
    rows = []
    for block, method, line in lines:
        s, p = line.summary, line.precision
        rows.append(
            [
                block,
                method,
                str(s.films),
                str(s.patients),
                in_words(s.mean_iou),
                _number(s.median_iou),
                in_words(s.share_iou_90),
                _number(s.share_iou_75.value),
                _number(s.coverage.value),
                _number(s.share_covered.value),
                _number(s.lung_coverage.value),
                *(_number(v) for v in (p.ap, p.ap50, p.ap75)),
                _number(s.edge_px.value, 1),
                *([_number(s.edge_mm.value, 1)] if in_mm else []),
                str(s.misses),
                str(s.doubles),
                *([_number(line.class_accuracy)] if several else []),
                *([f"{s.false_boxes} of {s.negatives}"] if negatives else []),
            ]
        )
    return head, rows


def _short_cells(line: Line) -> list[str]:
    """Intervals below their values, no leading zeros, so that twelve columns fit a terminal."""
    s, p = line.summary, line.precision
    parts = [
        in_words(s.mean_iou),
        _number(s.median_iou),
        in_words(s.share_iou_90),
    ]
    parts += [_number(v) for v in (s.share_iou_75.value, s.coverage.value, p.ap, p.ap50, p.ap75)]
    short = [v.replace(" [", "\n").replace("]", "").replace(", ", "–") for v in parts]
    short = [re.sub(r"\b0\.", ".", v) for v in short]
    edge = [f"{_number(s.edge_px.value, 1)}px"]
    edge += [] if math.isnan(s.edge_mm.value) else [f"{s.edge_mm.value:.1f}mm"]
    return [*short, "\n".join(edge), str(s.misses), str(s.doubles)]


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def table_markdown(evaluation: Evaluation) -> str:
    """The table, then misses and doubles by name."""
    head, rows = table_rows(evaluation)
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    lines += [
        "",
        "Misses count as IoU 0 and coverage 0; intervals by bootstrap over patients. A "
        "fallback to the whole film is a miss here.",
    ]
    for title, names in (
        ("Misses", names_of_misses(evaluation)),
        ("Doubles", names_of_doubles(evaluation)),
    ):
        lines += ["", f"{title}: {len(names)}", *(f"- `{name}`" for name in names)]
    return "\n".join(lines) + "\n"


def print_tables(evaluation: Evaluation) -> None:
    """A table a block, narrow enough for a terminal, and the lists; table.md holds all columns."""
    head = (
        "box",
        "IoU",
        "med.",
        "IoU≥.9",
        "≥.75",
        "cov.",
        "AP",
        "AP50",
        "AP75",
        "edge",
        "miss",
        "dbl",
    )
    for block, lines in evaluation.blocks.items():
        own = lines["detector"].summary
        title = f"{block}: {own.films} films of {own.patients} patients, part {evaluation.part}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
        for name in head:
            table.add_column(name, justify="left" if name == "box" else "right", no_wrap=True)
        for method, line in lines.items():
            table.add_row(method.split()[0], *_short_cells(line))
        console.print(table)
    for title, names in (
        ("misses", names_of_misses(evaluation)),
        ("doubles", names_of_doubles(evaluation)),
    ):
        console.print(f"{title}: {len(names)}", highlight=False)
        for name in names:
            console.print(f"  {name}", markup=False, highlight=False)


def draw_worst(evaluation: Evaluation, data: Path, path: Path, number: int = 24) -> None:
    """A sheet of the films with the lowest IoU: truth green, box orange, a box not used red."""
    known = [r for r in evaluation.results if r.scores["detector"].has_truth]
    worst = sorted(known, key=lambda r: r.scores["detector"].iou)[:number]
    pictures, captions = [], []
    films = read_ahead([data / r.film.file_name for r in worst])
    for result, (_, film) in zip(worst, films, strict=True):
        plane = (
            np.zeros(result.film.size_hw, np.float32) if isinstance(film, Unread) else film.pixels
        )
        picture = to_rgb(plane)
        for box in result.film.boxes_xyxy:
            picture = draw_box(picture, box, GREEN)
        if result.status == "ok" and result.box is not None:
            picture = draw_box(picture, result.box.xyxy, ORANGE)
        elif result.found is not None and len(result.found.boxes_xyxy):
            picture = draw_box(picture, result.found.boxes_xyxy[0], RED)
        pictures.append(picture)
        iou = result.scores["detector"].iou
        captions.append(f"IoU {iou:.3f}  {result.status}\n{Path(result.film.file_name).name}")
    title = (
        f"the {len(worst)} worst of {len(known)} films, part {evaluation.part}: truth green, "
        "box orange, unused box red"
    )
    write_atomic(path, encode_png(sheet(pictures, captions, columns=6, tile=320, title=title)))
