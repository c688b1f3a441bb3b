"""From a detector's boxes to the class of the film, and how often that class is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from cxr.answers import Answer
from cxr.boxes import iou_xyxy
from cxr.coco import CocoFilm
from cxr.film import Film
from cxr.stream import batched, read_ahead
from cxr.workdir import console, log
from detect.dataset import thorax_truth_xyxy
from detect.predict import Detections, ThoraxDetector

NO_BOX = "no box"  # the answer for a film without a box; never a truth

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ClassedFilm:
    """What the detector says of one film.

    Attributes:
        film: the film's path.
        status: the detector's own decision (see `ThoraxDetector.decide`): ok, fallback (a box
            that it is not sure of) or no_thorax; or unreadable.
        reason: why the status is not ok.
        answer: a class of the detector, `no box`, or empty for an unreadable film.
        scores: a score for each class and for `no box`, summing to 1; empty where unreadable.
        xyxy: the best box, in film pixels.
        box_score: the best box's own score.
        size_hw: of the film.
    """

    film: str
    status: str
    reason: str = ""
    answer: str = ""
    scores: tuple[float, ...] = ()
    xyxy: Box | None = None
    box_score: float = 0.0
    size_hw: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class AnsweredFilm:
    """A film of the annotations with its true class, and what was said of it.

    Attributes:
        entry: in the annotations.
        truth: the film's class.
        said: the detector's word on it.
        true_score: the score of the true class.
        truth_xyxy: the hand-drawn thorax in the film's pixels; None where no hand drew one, or
            where the film has another shape than its annotation.
        iou: of the best box with it, 0 without a box; None without `truth_xyxy`.
    """

    entry: CocoFilm
    truth: str
    said: ClassedFilm
    true_score: float
    truth_xyxy: Box | None
    iou: float | None

    @property
    def right(self) -> bool:
        """Whether the answer is the truth."""
        return self.said.answer == self.truth

    def to_answer(self) -> Answer:
        """The film's row of answers.csv."""
        source = str(self.entry.extra.get("source") or "")
        patient = self.entry.patient_id
        return Answer(self.entry.file_name, patient, source, self.truth, self.said.scores)

    def to_row(self) -> dict[str, Any]:
        """The film's row of boxes.json; boxes in the film's pixels."""
        said = self.said
        return {
            "film": self.entry.file_name,
            "patient": self.entry.patient_id,
            "source": str(self.entry.extra.get("source") or ""),
            "size_hw": list(said.size_hw),
            "truth": self.truth,
            "class": said.answer,
            "status": said.status,
            "reason": said.reason,
            "box_xyxy": _rounded(said.xyxy),
            "score": said.box_score,
            "truth_xyxy": _rounded(self.truth_xyxy),
            "iou": None if self.iou is None else round(self.iou, 4),
        }


def _rounded(xyxy: Box | None) -> list[float] | None:
    return None if xyxy is None else [round(v, 2) for v in xyxy]


def compare_film(
    entry: CocoFilm, truth: str, said: ClassedFilm, classes: Sequence[str]
) -> AnsweredFilm:
    """Put what was said of a readable film beside its truth, one of `classes`."""
    drawn, iou = None, None
    try:
        drawn = thorax_truth_xyxy(entry.resized(said.size_hw))
    except ValueError as error:
        log.warning("%s: its box is not compared. %s", entry.file_name, error)
    if drawn is not None:
        iou = float(iou_xyxy(said.xyxy, drawn)[0, 0]) if said.xyxy else 0.0
    score = said.scores[list(classes).index(truth)]
    return AnsweredFilm(entry, truth, said, score, _as_box(drawn), iou)


def _as_box(xyxy: np.ndarray | None) -> Box | None:
    if xyxy is None:
        return None
    x0, y0, x1, y1 = (float(v) for v in xyxy)
    return x0, y0, x1, y1


def class_scores(scores: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(classes,) the best score of each class, normalised to the sum 1; zeros without a box.

    Args:
        scores: (N,) of the boxes, above 0.
        labels: (N,) class of each box, from 0.
        classes: how many the detector knows.
    """
    best = np.zeros(classes)
    np.maximum.at(best, labels, scores)
    return best / best.sum() if best.sum() > 0 else best


def classify_film(
    detector: ThoraxDetector, found: Detections, film: Film, min_score: float | None = None
) -> ClassedFilm:
    """The class of the best box is the film's; without a box the answer is `no box`, score 1.

    A best box below `min_score` is none. With None the rule is `ThoraxDetector.decide`'s, which
    also refuses what looks like no thorax: right for a folder in which anything may lie.
    """
    size_hw = (film.pixels.shape[0], film.pixels.shape[1])
    decision = detector.decide(found, size_hw)
    classes = detector.config.classes
    low = min_score is not None and (not len(found.scores) or found.scores[0] < min_score)
    if low or (min_score is None and decision.status == "no_thorax"):
        scores = (*(0.0 for _ in classes), 1.0)
        return ClassedFilm(
            film.path,
            decision.status,
            decision.reason,
            NO_BOX,
            scores,
            None,
            decision.score,
            size_hw,
        )
    shares = class_scores(found.scores, found.labels, len(classes))
    return ClassedFilm(
        film.path,
        decision.status,
        decision.reason,
        classes[int(found.labels[0])],
        (*(float(v) for v in shares), 0.0),
        _as_box(found.boxes_xyxy[0]),
        decision.score,
        size_hw,
    )


def classify_films(
    detector: ThoraxDetector,
    paths: Sequence[str | Path],
    batch: int = 8,
    jobs: int = 0,
    min_score: float | None = None,
) -> Iterator[ClassedFilm]:
    """`classify_film` for each film, in order; pixels are held a batch at a time."""
    stream = read_ahead(paths, jobs)
    bar = track(
        batched(stream, batch),
        "answering",
        -(-len(paths) // max(1, batch)),
        console=console,
        transient=True,
    )
    for items in bar:
        films = [film for _, film in items if isinstance(film, Film)]
        found = iter(detector.detect([film.pixels for film in films]))
        for path, film in items:
            if isinstance(film, Film):
                yield classify_film(detector, next(found), film, min_score)
            else:
                log.warning("%s left out: %s", path, film)
                yield ClassedFilm(str(path), "unreadable", str(film))


def film_truth(film: CocoFilm, class_from: str, classes: Sequence[str]) -> str:
    """The film's true class: its `class_from`, or the one class of its boxes; empty for none."""
    if class_from:
        value = str(film.extra.get(class_from, ""))
        return value if value in classes else ""
    return classes[film.labels[0]] if len(set(film.labels)) == 1 else ""


def confusion(truths: Sequence[str], answers: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(K, K + 1) films of each true class (rows) by answer (columns, the last is `no box`)."""
    counts = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    columns = [*classes, NO_BOX]
    for truth, answer in zip(truths, answers, strict=True):
        counts[list(classes).index(truth), columns.index(answer)] += 1
    return counts


def measure(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy and F1 = 2 TP / (2 TP + FP + FN) from a confusion matrix (K, K + 1).

    A film without a box is wrong, and missed by its class. A class that no film has and no answer
    names has no F1 (None) and no part in the mean.
    """
    k = len(classes)
    hits = np.diag(counts[:, :k])
    films = int(counts.sum())
    f1: dict[str, float | None] = {}
    for name, hit, has, said in zip(
        classes, hits, counts.sum(axis=1), counts[:, :k].sum(axis=0), strict=True
    ):
        f1[name] = float(2 * hit / (has + said)) if has + said else None
    known = [v for v in f1.values() if v is not None]
    return {
        "films": films,
        "right": int(hits.sum()),
        "no_box": int(counts[:, k].sum()),
        "accuracy": float(hits.sum() / films) if films else None,
        "f1": f1,
        "f1_macro": float(np.mean(known)) if known else None,
        "confusion": {
            "truth": list(classes),
            "answer": [*classes, NO_BOX],
            "films": counts.tolist(),
        },
    }


def measure_boxes(films: Sequence[AnsweredFilm]) -> dict[str, Any]:
    """Mean IoU with the hand-drawn boxes, a film without a box counting 0, and its spread."""
    ious = np.array([f.iou for f in films if f.iou is not None])
    if not len(ious):
        return {"films": 0, "mean_iou": None, "share_iou_09": None}
    return {
        "films": len(ious),
        "mean_iou": float(ious.mean()),
        "share_iou_09": float((ious >= 0.9).mean()),
    }
