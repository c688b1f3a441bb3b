"""How well boxes meet the truth: IoU, coverage, edges, misses, doubles, COCO AP, baselines; and
figures as text: cells, CSV, tables in markdown and in the terminal.

A miss counts as IoU 0 and coverage 0: a mean over found films only would reward a detector that
gives up on the hard ones. AP50 alone says little here, because one constant box reaches 0.98 of
films at IoU 0.5.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cxr.boxes import (
    area_xyxy,
    as_boxes,
    intersection_xyxy,
    iou_xyxy,
    union_xyxy,
    xyxy_to_xywh,
)
from cxr.coco import CocoFilm
from cxr.stats import Interval, bootstrap_mean
from cxr.workdir import console
from detect.predict import Detections, ThoraxBox

NAN4 = (math.nan,) * 4
SIDES = ("left", "top", "right", "bottom")
BASELINES = ("constant box", "whole film")
METHODS = {  # whose boxes are measured, the one that is meant first: by the finder's `box`
    "both": ("both", "detector", "lung field", *BASELINES),
    "detector": ("detector", *BASELINES),
}
BY_CLASS = ("both", "detector")  # the others know no class


@dataclass(frozen=True)
class FilmScore:
    """One film. NaN where there is nothing to measure: no truth, no mask, no spacing, no box."""

    has_truth: bool
    has_box: bool
    doubled: bool = False
    iou: float = math.nan
    coverage: float = math.nan  # share of the truth box inside the predicted box
    lung_coverage: float = math.nan  # share of the lung mask's area inside it
    edges_px: tuple[float, ...] = NAN4  # left, top, right, bottom: predicted − truth
    edges_mm: tuple[float, ...] = NAN4

    @property
    def missed(self) -> bool:
        """There is a thorax, and no box."""
        return self.has_truth and not self.has_box


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's AP over IoU 0.50 to 0.95, at 0.50 and at 0.75; the first for each class as well."""

    ap: float
    ap50: float
    ap75: float
    ap_of_class: tuple[float, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Many films. Shares and means are over films with a thorax, misses counted as 0."""

    films: int
    patients: int
    mean_iou: Interval
    median_iou: float
    share_iou_90: Interval
    share_iou_75: Interval
    coverage: Interval
    share_covered: Interval  # films with coverage ≥ 0.99
    lung_coverage: Interval
    share_lungs_covered: Interval  # films with lung coverage ≥ 0.99
    edge_px: Interval  # mean absolute edge error over found films
    edge_mm: Interval
    bias_px: tuple[float, ...]  # mean signed error: left, top, right, bottom
    misses: int
    doubles: int
    negatives: int  # films without a thorax
    false_boxes: int  # of these, films that got a box


def mask_coverage(box_xyxy: Any, mask: np.ndarray) -> float:
    """Share of a mask's area (H, W, above 0 is lung) inside the box; cut pixels count in part."""
    inside = np.asarray(mask) > 0
    total = np.count_nonzero(inside)
    if not total:
        return math.nan
    x0, y0, x1, y1 = as_boxes(box_xyxy)[0]
    along_y, along_x = (  # the share of each pixel [i, i + 1) that lies in the box
        np.clip(np.minimum(high, np.arange(n) + 1) - np.maximum(low, np.arange(n)), 0.0, 1.0)
        for low, high, n in ((y0, y1, inside.shape[0]), (x0, x1, inside.shape[1]))
    )
    return float(along_y @ inside @ along_x) / total


def score_film(
    predicted_xyxy: Any | None,
    truth_xyxy: Any,
    mask: np.ndarray | None = None,
    spacing_mm: tuple[float, float] | None = None,
    doubled: bool = False,
) -> FilmScore:
    """Compare one predicted box (None: a miss) with the union of a film's true boxes (N, 4). All in
    the film's pixels; `spacing_mm` is (row, column). N = 0 is a film without a thorax: it has no
    IoU, and any box on it is a false one."""
    truth = as_boxes(truth_xyxy)
    found = predicted_xyxy is not None
    if not len(truth):
        return FilmScore(False, found, doubled)
    if not found:
        lungs = 0.0 if mask is not None and np.any(mask) else math.nan
        return FilmScore(True, False, doubled, iou=0.0, coverage=0.0, lung_coverage=lungs)
    want, got = union_xyxy(truth), as_boxes(predicted_xyxy)[0]
    edges = got - want
    mm = [spacing_mm[1], spacing_mm[0]] * 2 if spacing_mm else [math.nan] * 4
    return FilmScore(
        True,
        True,
        doubled,
        iou=float(iou_xyxy(got, want)[0, 0]),
        coverage=float(intersection_xyxy(got, want)[0, 0] / area_xyxy(want)[0]),
        lung_coverage=mask_coverage(got, mask) if mask is not None else math.nan,
        edges_px=tuple(float(v) for v in edges),
        edges_mm=tuple(float(v) for v in edges * mm),
    )


def summarise(
    scores: Sequence[FilmScore], patients: Sequence[str], seed: int = 0, draws: int = 2000
) -> Summary:
    """One Summary of N films and their patients; NaN where no film can say anything."""
    if len(scores) != len(patients):
        raise ValueError(
            f"scores and patients must be of one length. Got {len(scores)} and "
            f"{len(patients)} instead."
        )
    pairs = [(s, p) for s, p in zip(scores, patients, strict=True) if s.has_truth]
    kept, owners = [s for s, _ in pairs], [p for _, p in pairs]
    negatives = [s for s in scores if not s.has_truth]

    def mean(values: np.ndarray) -> Interval:
        return bootstrap_mean(values, owners, draws, seed)

    def share(values: np.ndarray, least: float) -> Interval:
        # 1e-9: a box that meets the truth at exactly 0.9 must not fail by rounding
        return mean(np.where(np.isnan(values), np.nan, values >= least - 1e-9))

    iou, coverage, lungs, px, mm = (
        np.array([getattr(s, name) for s in kept], dtype=np.float64)
        for name in ("iou", "coverage", "lung_coverage", "edges_px", "edges_mm")
    )
    px, mm = px.reshape(-1, 4), mm.reshape(-1, 4)
    found = px[~np.isnan(px[:, 0])]
    return Summary(
        films=len(kept),
        patients=len(set(owners)),
        mean_iou=mean(iou),
        median_iou=float(np.median(iou)) if kept else math.nan,
        share_iou_90=share(iou, 0.9),
        share_iou_75=share(iou, 0.75),
        coverage=mean(coverage),
        share_covered=share(coverage, 0.99),
        lung_coverage=mean(lungs),
        share_lungs_covered=share(lungs, 0.99),
        edge_px=mean(np.abs(px).mean(axis=1)),
        edge_mm=mean(np.abs(mm).mean(axis=1)),
        bias_px=tuple(float(v) for v in found.mean(axis=0)) if len(found) else NAN4,
        misses=sum(s.missed for s in kept),
        doubles=sum(s.doubled for s in scores),
        negatives=len(negatives),
        false_boxes=sum(s.has_box for s in negatives),
    )


def average_precision(
    truths: Sequence[tuple[Any, Any]], predictions: Sequence[tuple[Any, Any, Any]], classes: int = 1
) -> AveragePrecision:
    """COCO AP by pycocotools; one (boxes, labels) and one (boxes, scores, labels) a film. Boxes
    xyxy (N, 4), labels from 0 below `classes`; a film without boxes counts by its false ones. NaN
    when no film has a true box."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    notes, results = _notes(truths), _notes(predictions)
    if not notes:
        return AveragePrecision(math.nan, math.nan, math.nan)
    if not results:  # pycocotools fails on an empty list
        return AveragePrecision(0.0, 0.0, 0.0, (0.0,) * classes)
    sets = []
    numbers = {"images": len(truths), "categories": classes}
    known = {key: [{"id": i} for i in range(1, n + 1)] for key, n in numbers.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (notes, results):
            sets.append(COCO())
            sets[-1].dataset = {**known, "annotations": annotations}
            sets[-1].createIndex()
        judge = COCOeval(*sets, iouType="bbox")
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class)
    by_class = tuple(_mean_known(precision[:, :, k]) for k in range(classes))
    ap, ap50, ap75 = (_mean_known(p) for p in (precision, precision[0], precision[5]))
    return AveragePrecision(ap, ap50, ap75, by_class)


def _mean_known(precision: np.ndarray) -> float:
    known = precision[precision > -1]  # −1: a class without a true box
    return float(known.mean()) if known.size else math.nan


def _notes(films: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """COCO annotations of films of (boxes, labels) or (boxes, scores, labels); ids count from 1,
    because pycocotools takes 0 for 'none'."""
    notes: list[dict[str, Any]] = []
    for film, (boxes, *scores, labels) in enumerate(films, 1):
        for number, (box, label) in enumerate(zip(xyxy_to_xywh(boxes), labels, strict=True)):
            note: dict[str, Any] = {
                "id": len(notes) + 1,
                "image_id": film,
                "category_id": int(label) + 1,
            }
            note |= {"bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": 0}
            if scores:
                note["score"] = float(scores[0][number])
            notes.append(note)
    return notes


def constant_box(boxes_xyxy: Sequence[Any], sizes_hw: Sequence[tuple[int, int]]) -> np.ndarray:
    """(4,) median box of *training* films as fractions of width and height; the first baseline."""
    fractions = [
        union_xyxy(boxes) / [w, h, w, h]
        for boxes, (h, w) in zip(boxes_xyxy, sizes_hw, strict=True)
        if len(as_boxes(boxes))
    ]
    if not fractions:
        raise ValueError("boxes_xyxy of constant_box must hold a film with a box. Got none.")
    return np.median(fractions, axis=0)


def scale_box(fractions_xyxy: Any, size_hw: tuple[int, int]) -> np.ndarray:
    """(4,) fractions of a film to pixels; (0, 0, 1, 1) is the whole film, the second baseline."""
    height, width = size_hw
    return as_boxes(fractions_xyxy)[0] * [width, height, width, height]


class Promised(NamedTuple):
    """(N,) the IoUs that films' boxes promise, the IoUs that they have, and the films' patients."""

    quality: np.ndarray
    iou: np.ndarray
    patients: np.ndarray


@dataclass(frozen=True)
class Reliability:
    """Of N films: the mean |quality − IoU|, Spearman's rho of both (NaN where one is all the same),
    and the mean IoU of the fifth of the films with the lowest quality, and of the rest."""

    films: int
    error: Interval
    spearman: float
    lowest_fifth: Interval
    rest: Interval


def measure_quality(promised: Promised, seed: int = 0) -> Reliability:
    """Compare promised with measured IoUs; intervals by patient."""
    from scipy.stats import rankdata

    said, iou, owners = promised
    ranks = [rankdata(said), rankdata(iou)]
    flat = any(np.ptp(r) == 0 for r in ranks)
    order = np.argsort(said, kind="stable")
    fifth = math.ceil(len(said) / 5)
    low, rest = (
        bootstrap_mean(iou[part], list(owners[part]), seed=seed)
        for part in (order[:fifth], order[fifth:])
    )
    error = bootstrap_mean(np.abs(said - iou), list(owners), seed=seed)
    rho = math.nan if flat else float(np.corrcoef(*ranks)[0, 1])
    return Reliability(len(said), error, rho, low, rest)


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
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    seen = [r.seen.get(method, nothing) for r in results]
    found = [(s.boxes_xyxy, s.scores, s.labels * (classes > 1)) for s in seen]
    precision = average_precision(truths, found, classes)
    named = [r for r in results if r.film.labels]
    if classes < 2 or not named:
        return Line(summary, precision)
    right = [
        r.scores[method].has_box and r.seen[method].labels[0] == r.film.labels[0] for r in named
    ]
    return Line(summary, precision, float(np.mean(right)))


# --- as text


def by_source(results: Sequence[Any]) -> dict[str, list[Any]]:
    """All results, and those of each `source` where there are several."""
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
