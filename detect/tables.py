"""Figures of films as text (cells, CSV, tables in markdown and in the terminal, JSON), and the
results of detect.evaluate in them, with a sheet of the worst films."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cxr.boxes import iou_xyxy, stretch_xyxy, union_xyxy
from cxr.coco import CocoFilm
from cxr.data_folders import DataFolders
from cxr.draw import (
    BLUE,
    COLOURS,
    GREEN,
    ORANGE,
    RED,
    WHITE,
    draw_box,
    new_figure,
    to_rgb,
    write_figure,
    write_sheet,
)
from cxr.stats import bootstrap_mean, in_words
from cxr.stream import Unread, read_ahead
from cxr.workdir import Workdir, console, log, to_json, write_atomic, write_json
from detect.metrics import (
    SIDES,
    AveragePrecision,
    FilmScore,
    Promised,
    Summary,
    average_precision,
    measure_quality,
    summarise,
)
from detect.predict import Detections, ThoraxBox


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


_BASELINES = ("constant box", "whole film")
METHODS = {  # whose boxes are measured, the one that is meant first: by the finder's `box`
    "both": ("both", "detector", "lung field", *_BASELINES),
    "detector": ("detector", *_BASELINES),
}
BY_CLASS = ("both", "detector")  # the others know no class
# What the terminal shows, and under which name: intervals stand below their values there.
_SHORT = {
    "mean IoU [95 %]": "IoU",
    "median": "med.",
    "IoU≥.9 [95 %]": "IoU≥.9",
    "IoU≥.75": "≥.75",
    "coverage": "cov.",
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "edge": "edge",
    "misses": "miss",
    "doubles": "dbl",
}


@dataclass(frozen=True)
class FilmResult:
    """One film: its truth, what was decided, and of each method all boxes that it sees and the
    score of the one that it takes, all in the film's square pixels; films.csv has the box in the
    stored ones. The first method of `scores` is the decision's."""

    film: CocoFilm
    status: str  # ok, fallback, no_thorax, unreadable
    reason: str
    box: ThoraxBox | None
    seen: dict[str, Detections]  # none where the film cannot be read
    scores: dict[str, FilmScore]
    stored_hw: tuple[int, int] | None = None  # where the film's pixels are not square

    @property
    def source(self) -> str:
        """Where the film comes from; films.csv's sources."""
        return self.film.source or "unknown"

    @property
    def score(self) -> FilmScore:
        """Of the box that was decided on."""
        return next(iter(self.scores.values()))


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
    seed: int = 0


def compare(results: Sequence[FilmResult], classes: int, seed: int) -> dict[str, dict[str, Line]]:
    """Each method on all films, and on each source where there are several."""
    return {
        name: {method: _line(group, method, classes, seed) for method in group[0].scores}
        for name, group in by_source(results).items()
    }


def _line(results: Sequence[FilmResult], method: str, classes: int, seed: int) -> Line:
    patients = [r.film.patient_id for r in results]
    summary = summarise([r.scores[method] for r in results], patients, seed)
    if method not in BY_CLASS and classes > 1:
        return Line(summary, AveragePrecision(math.nan, math.nan, math.nan))
    truths = [(r.film.boxes_xyxy, r.film.labels) for r in results]
    found = [_predicted(r, method, classes) for r in results]
    precision = average_precision(truths, found, classes)
    named = [r for r in results if r.film.labels]
    if classes < 2 or not named:
        return Line(summary, precision)
    right = [
        r.scores[method].has_box and r.seen[method].labels[0] == r.film.labels[0] for r in named
    ]
    return Line(summary, precision, float(np.mean(right)))


def _predicted(result: FilmResult, method: str, classes: int) -> tuple[Any, Any, Any]:
    seen = result.seen.get(method)
    if seen is None:
        return np.zeros((0, 4)), [], []
    return seen.boxes_xyxy, seen.scores, seen.labels if classes > 1 else np.zeros_like(seen.labels)


def write_evaluation(evaluation: Evaluation, workdir: Workdir) -> None:
    """metrics.json, films.csv, table.md and, where quality is known, quality.png into the run's
    folder."""
    promised = _promised(evaluation.results)
    if promised:
        draw_quality(promised, workdir / "quality.png", evaluation.seed)
    elif "both" in evaluation.results[0].scores:
        log.warning("no quality.png: the detector's bundle has no rule that knows a quality")
    figures = {
        "part": evaluation.part,
        "statuses": dict(Counter(r.status for r in evaluation.results)),
        "blocks": to_json(evaluation.blocks),
        "quality": to_json(measure_quality(promised, evaluation.seed)) if promised else None,
        **{title.lower(): names for title, names in _lists(evaluation).items()},
        "edges": SIDES,
    }
    write_json(workdir / "metrics.json", figures)
    write_atomic(workdir / "films.csv", films_csv(evaluation.results))
    write_atomic(workdir / "table.md", table_markdown(evaluation))


def _promised(results: Sequence[FilmResult]) -> Promised | None:
    """Of each box with a quality, used or not, on a film with a thorax; None where none has one."""
    known = [
        (box.quality, iou_xyxy(box.seen_xyxy, union_xyxy(film.boxes_xyxy)).item(), film.patient_id)
        for film, box, score in ((r.film, r.box, r.score) for r in results)
        if score.has_truth and box is not None and box.quality is not None
    ]
    return Promised(*map(np.array, zip(*known, strict=True))) if known else None


def _lists(evaluation: Evaluation) -> dict[str, list[str]]:
    """Films with a thorax and no box of status ok, each with its reason; and films with more
    confident boxes than they have."""
    own = [(r, r.score) for r in evaluation.results]
    return {
        "Misses": [f"{r.film.file_name}: {r.status}, {r.reason}" for r, s in own if s.missed],
        "Doubles": [r.film.file_name for r, s in own if s.doubled],
    }


def films_csv(results: Sequence[FilmResult]) -> str:
    """A row a film; empty cells where there is nothing to measure."""
    edges = [f"edge_{side}_{unit}" for unit in ("px", "mm") for side in SIDES]
    head = "film source patient label status reason score second_score iou coverage lung_coverage"
    others = [*results[0].scores][1:]
    more = ["apart", "quality", *(f"iou_{name.replace(' ', '_')}" for name in others)]
    rows: list[list[Any]] = [[*head.split(), *edges, "x0", "y0", "x1", "y1", *more]]
    for r in results:
        score, film = r.score, r.film
        values = [score.iou, score.coverage, score.lung_coverage, *score.edges_px, *score.edges_mm]
        seen = [f"{v:.4f}" for v in r.seen["detector"].scores[:2]] if r.seen else []
        doubt = [None, None] if r.box is None else [r.box.apart, r.box.quality]
        place = None if r.box is None else r.box.xyxy
        if place is not None and r.stored_hw:
            place = stretch_xyxy(place, film.size_hw, r.stored_hw)[0]
        rows.append(
            [film.file_name, r.source, film.patient_id, film.label, r.status, r.reason]
            + [*seen, "", ""][:2]
            + [number(v, 4, "") for v in values]
            + ([""] * 4 if place is None else [f"{v:.1f}" for v in place])
            + ["" if v is None else f"{v:.4f}" for v in doubt]
            + [number(r.scores[name].iou, 4, "") for name in others]
        )
    return to_csv(rows)


def _cells(line: Line) -> dict[str, str]:
    """The columns of the table for one line."""
    s, p = line.summary, line.precision
    return {
        "films": str(s.films),
        "patients": str(s.patients),
        "mean IoU [95 %]": in_words(s.mean_iou),
        "median": number(s.median_iou),
        "IoU≥.9 [95 %]": in_words(s.share_iou_90),
        "IoU≥.75": number(s.share_iou_75.value),
        "coverage": number(s.coverage.value),
        "cov≥.99": number(s.share_covered.value),
        "lungs": number(s.lung_coverage.value),
        "AP": number(p.ap),
        "AP50": number(p.ap50),
        "AP75": number(p.ap75),
        "edge px": number(s.edge_px.value, 1),
        "edge mm": number(s.edge_mm.value, 1),
        "misses": str(s.misses),
        "doubles": str(s.doubles),
        "class": number(line.class_accuracy),
        "false boxes": f"{s.false_boxes} of {s.negatives}",
    }


def table_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text; without the columns in which nothing is known: mm
    without spacing, the class where there is one, false boxes where each film has a thorax."""
    lines = [
        {"films of": block, "box": method, **_cells(line)}
        for block, methods in evaluation.blocks.items()
        for method, line in methods.items()
    ]
    unknown = {"edge mm": "–", "class": "–", "false boxes": "0 of 0"}
    head = [k for k in lines[0] if any(cells[k] != unknown.get(k) for cells in lines)]
    return head, [[cells[name] for name in head] for cells in lines]


def _short_cells(line: Line) -> list[str]:
    """No leading zeros, so that twelve columns fit a terminal."""
    cells = _cells(line)
    mm = "" if cells["edge mm"] == "–" else f"\n{cells['edge mm']}mm"
    short = {
        name: re.sub(r"\b0\.", ".", text.replace(" [", "\n").replace("]", "").replace(", ", "–"))
        for name, text in cells.items()
    }
    return [({**short, "edge": f"{cells['edge px']}px{mm}"})[name] for name in _SHORT]


def table_markdown(evaluation: Evaluation) -> str:
    """The table, then misses and doubles by name."""
    lines = to_markdown(*table_rows(evaluation))
    lines += [
        "",
        "Misses count as IoU 0 and coverage 0; intervals by bootstrap over patients. A "
        "fallback to the whole film is a miss here.",
    ]
    for title, names in _lists(evaluation).items():
        lines += ["", f"{title}: {len(names)}", *(f"- `{name}`" for name in names)]
    return "\n".join(lines) + "\n"


def print_tables(evaluation: Evaluation) -> None:
    """A table a block, narrow enough for a terminal, and the lists; table.md holds all columns."""
    for block, lines in evaluation.blocks.items():
        own = next(iter(lines.values())).summary
        title = f"{block}: {own.films} films of {own.patients} patients, part {evaluation.part}"
        rows = [[method.split()[0], *_short_cells(line)] for method, line in lines.items()]
        head = ["box", *_SHORT.values()]
        print_table(head, rows, 1, no_wrap=True, title=title, title_justify="left")
    for title, names in _lists(evaluation).items():
        console.print(f"{title.lower()}: {len(names)}", highlight=False)
        for name in names:
            console.print(f"  {name}", markup=False, highlight=False)


def draw_worst(evaluation: Evaluation, data: DataFolders, path: Path, number: int = 24) -> None:
    """A sheet of the films with the lowest IoU: truth white, box orange, a box not used red; thin
    and beneath it the detector's blue and the lung field's green where the box is of both."""
    known = [r for r in evaluation.results if r.score.has_truth]
    worst = sorted(known, key=lambda r: r.score.iou)[:number]
    pictures, captions = [], []
    films = read_ahead([data / r.film.file_name for r in worst])
    for result, (_, film) in zip(worst, films, strict=True):
        plane = (
            np.zeros(result.film.size_hw, np.float32) if isinstance(film, Unread) else film.pixels
        )
        picture = to_rgb(plane)
        for box in result.film.boxes_xyxy:
            picture = draw_box(picture, box, WHITE)
        main, *others = [m for m in result.seen if m not in _BASELINES] or [""]
        for method, colour in zip(others, (BLUE, GREEN), strict=False):
            for box in result.seen[method].boxes_xyxy[:1]:
                picture = draw_box(picture, box, colour, thin=True)
        if result.status == "ok" and result.box is not None:
            picture = draw_box(picture, result.box.xyxy, ORANGE)
        elif result.seen and len(result.seen[main].boxes_xyxy):
            picture = draw_box(picture, result.seen[main].boxes_xyxy[0], RED)
        pictures.append(picture)
        name = Path(result.film.file_name).name
        captions.append(f"IoU {result.score.iou:.3f}  {result.status}\n{name}")
    title = (
        f"the {len(worst)} worst of {len(known)} films, part {evaluation.part}: truth white, "
        "box orange, unused box red; detector's thin blue, lung field's thin green"
    )
    write_sheet(path, pictures, captions, 320, title)


def draw_quality(promised: Promised, path: Path, seed: int = 0) -> Path:
    """Films in bins of equal number by quality: the bin's mean quality against its mean IoU with
    the 95 % interval by patient; how many films have which quality below."""
    said, iou, owners = promised
    groups = np.array_split(np.argsort(said, kind="stable"), min(10, max(1, len(said) // 20)))
    x = [said[g].mean() for g in groups]
    found = [bootstrap_mean(iou[g], list(owners[g]), seed=seed) for g in groups]
    figure = new_figure(5, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    lows = [said.min(), *(f.value for f in found), *(f.low for f in found)]
    ends = float(np.nanmin(lows)) - 0.02, 1.0
    above.plot(ends, ends, color="grey", linestyle=":", label="as promised")
    shown = np.maximum(iou, ends[0])
    above.plot(said, shown, ".", color="silver", clip_on=False, label="a film (lower: on the edge)")
    spread = np.transpose([(f.value - f.low, f.high - f.value) for f in found])
    values = [f.value for f in found]
    above.errorbar(x, values, spread, fmt="o-", color=COLOURS[0], capsize=3, label="bin [95 %]")
    above.set(ylabel="IoU with a person's box", title=f"{len(said)} films", xlim=ends, ylim=ends)
    below.hist(said, bins=np.linspace(*ends, 30), color=COLOURS[0])
    below.set(xlabel="quality: the IoU that is promised", ylabel="films")
    above.grid(alpha=0.3)
    above.legend(frameon=False, loc="upper left")
    return write_figure(figure, path)
