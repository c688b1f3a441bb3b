"""From a detector's boxes to the class of the film: how often it is right, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr import draw
from cxr.boxes import Xyxy, as_xyxy, iou_xyxy, stretch_xyxy, union_xyxy
from cxr.coco import CocoFilm
from cxr.data_folders import DataFolders
from cxr.film import Film, read_film
from cxr.ledger import Answer
from cxr.stream import batched, read_ahead
from cxr.workdir import counting, log
from detect.metrics import to_csv
from detect.predict import Detections, ThoraxDetector

NO_BOX = "no box"  # the answer for a film without a box; never a truth
_SHOWN = 24  # films on a sheet
_SIDE = 512  # px that a film is drawn at: the lines are thinner there than at the sheet's size


@dataclass(frozen=True)
class ClassedFilm:
    """What the detector says of one film: its path; the detector's own decision (see
    `ThoraxDetector.decide`: ok, fallback, which is a box that it is not sure of, or no_thorax; or
    unreadable) and why it is not ok; a class of the detector or `no box`, and a score for each of
    these, summing to 1; the best box in the film's pixels as stored, its own score, and the film's
    size there. Empty for an unreadable film."""

    film: str
    status: str
    reason: str = ""
    answer: str = ""
    scores: tuple[float, ...] = ()
    xyxy: Xyxy | None = None
    box_score: float = 0.0
    size_hw: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class AnsweredFilm:
    """A film of the annotations with its true class, and what was said of it: the score of the true
    class; the hand-drawn thorax in the film's pixels, None where no hand drew one, or where the
    film has another shape than its annotation; and the IoU of the best box with it, 0 without a
    box."""

    entry: CocoFilm
    truth: str
    said: ClassedFilm
    true_score: float
    truth_xyxy: Xyxy | None
    iou: float | None

    @property
    def right(self) -> bool:
        """Whether the answer is the truth."""
        return self.said.answer == self.truth

    def to_answer(self) -> Answer:
        """The film's row of answers.csv."""
        entry = self.entry
        return Answer(entry.file_name, entry.patient_id, entry.source, self.truth, self.said.scores)

    def to_row(self) -> dict[str, Any]:
        """The film's row of boxes.json; boxes in the film's pixels."""
        said = self.said
        return {
            "film": self.entry.file_name,
            "patient": self.entry.patient_id,
            "source": self.entry.source,
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


def _rounded(xyxy: Xyxy | None) -> list[float] | None:
    return None if xyxy is None else [round(v, 2) for v in xyxy]


def compare_film(
    entry: CocoFilm, truth: str, said: ClassedFilm, classes: Sequence[str]
) -> AnsweredFilm:
    """Put what was said of a readable film beside its truth, one of `classes`."""
    score = said.scores[list(classes).index(truth)]
    try:
        boxes = entry.resized(said.size_hw).boxes_xyxy
    except ValueError as error:
        log.warning("%s: its box is not compared. %s", entry.file_name, error)
        boxes = np.zeros((0, 4))
    if not len(boxes):
        return AnsweredFilm(entry, truth, said, score, None, None)
    drawn = union_xyxy(boxes)
    iou = float(iou_xyxy(said.xyxy, drawn)[0, 0]) if said.xyxy else 0.0
    return AnsweredFilm(entry, truth, said, score, as_xyxy(drawn), iou)


def class_scores(scores: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(classes,) the best score of each class, normalised to the sum 1; zeros without a box. Of N
    boxes: scores above 0, and classes from 0."""
    best = np.zeros(classes)
    np.maximum.at(best, labels, scores)
    return best / best.sum() if best.sum() > 0 else best


def classify_film(
    detector: ThoraxDetector, found: Detections, film: Film, min_score: float | None = None
) -> ClassedFilm:
    """The class of the best box is the film's; without a box the answer is `no box`, score 1. A
    best box below `min_score` is none. With None the rule is `ThoraxDetector.decide`'s, which also
    refuses what looks like no thorax: right for a folder in which anything may lie."""
    size_hw = (film.pixels.shape[0], film.pixels.shape[1])
    decision = detector.decide(found, size_hw)
    size_hw = film.stored_hw or size_hw
    classes = detector.config.classes
    none = decision.status == "no_thorax"
    if min_score is not None:
        none = not len(found.scores) or found.scores[0] < min_score
    answer, box, shares = NO_BOX, None, [0.0] * len(classes) + [1.0]
    if not none:
        answer, box = classes[int(found.labels[0])], as_xyxy(film.to_stored(found.boxes_xyxy[0]))
        shares = [*class_scores(found.scores, found.labels, len(classes)).tolist(), 0.0]
    why, score = decision.reason, decision.score
    return ClassedFilm(film.path, decision.status, why, answer, tuple(shares), box, score, size_hw)


def classify_films(
    detector: ThoraxDetector,
    paths: Sequence[str | Path],
    batch: int = 8,
    jobs: int = 0,
    min_score: float | None = None,
    for_processing: bool = False,
) -> Iterator[ClassedFilm]:
    """`classify_film` for each film, in order; pixels are held a batch at a time."""
    stream = read_ahead(paths, jobs, for_processing=for_processing)
    for items in batched(counting(stream, "answering", len(paths)), batch):
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
    columns = [*classes, NO_BOX]
    counts = np.zeros((len(classes), len(columns)), dtype=np.int64)
    for truth, answer in zip(truths, answers, strict=True):
        counts[columns.index(truth), columns.index(answer)] += 1
    return counts


def measure(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy and F1 = 2 TP / (2 TP + FP + FN) from a confusion matrix (K, K + 1). A film without
    a box is wrong, and missed by its class. A class that no film has and no answer names has no F1
    (None) and no part in the mean."""
    films, hits, said = int(counts.sum()), counts.diagonal(), counts[:, :-1].sum(0)
    ends = zip(classes, hits, counts.sum(1) + said, strict=True)
    f1 = {name: float(2 * hit / either) if either else None for name, hit, either in ends}
    known = [v for v in f1.values() if v is not None]
    return {
        "films": films,
        "right": int(hits.sum()),
        "no_box": int(counts[:, -1].sum()),
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
    mean, share = (float(ious.mean()), float((ious >= 0.9).mean())) if len(ious) else (None, None)
    return {"films": len(ious), "mean_iou": mean, "share_iou_09": share}


def to_table(films: Sequence[ClassedFilm], classes: Sequence[str]) -> str:
    """CSV: film, status, reason, class, score of the box, its corners in the film's pixels, and a
    score for each class and for `no box`; an unreadable film's cells are empty."""
    names = [*classes, NO_BOX]
    head = ["film", "status", "reason", "class", "box_score", "x0", "y0", "x1", "y1"]
    rows: list[list[Any]] = [[*head, *(f"score.{name}" for name in names)]]
    for film in films:
        read = film.status != "unreadable"
        box = [f"{v:.2f}" for v in film.xyxy] if film.xyxy else [""] * 4
        scores = [f"{v:.6f}" for v in film.scores] if read else [""] * len(names)
        score = f"{film.box_score:.4f}" if read else ""
        rows.append([film.film, film.status, film.reason, film.answer, score, *box, *scores])
    return to_csv(rows)


def choose_shown(films: Sequence[AnsweredFilm], number: int = _SHOWN) -> list[AnsweredFilm]:
    """Wrong films first, the worst of them at the head, then right ones from the worst to the best.
    Worst is where the true class scores least. Wrong ones take two thirds of the places at most,
    and right ones are taken at even steps, so that the sheet shows both kinds."""
    order = sorted(films, key=lambda f: (f.true_score, f.entry.file_name))
    right = [f for f in order if f.right]
    wrong = [f for f in order if not f.right][: max(number - len(right), 2 * number // 3)]
    steps = np.linspace(0, len(right) - 1, min(len(right), number - len(wrong)))
    return [*wrong, *(right[round(i)] for i in steps)]


def draw_answers(films: Sequence[AnsweredFilm], folder: DataFolders, path: Path) -> None:
    """A sheet of tested films as PNG: the true box white, the detector's green where the class is
    right and orange where it is wrong."""
    shown = choose_shown(films)
    tiles, captions = [], []
    for film in shown:
        said, colour = film.said, draw.GREEN if film.right else draw.ORANGE
        boxes = [(film.truth_xyxy, draw.WHITE), (said.xyxy, colour)]
        tiles.append(_tile(folder / film.entry.file_name, boxes, said.size_hw))
        iou = "" if film.iou is None else f", IoU {film.iou:.2f}"
        captions.append(
            f"{'right' if film.right else 'WRONG'}: true {film.truth}\n"
            f"said {_said(said)}{iou}\n{Path(film.entry.file_name).name}"
        )
    right = sum(f.right for f in films)
    title = (
        f"{right} of {len(films)} tested films right; {len(shown)} shown, wrong ones first, "
        "worst first. White: true box. Green: right class. Orange: wrong class."
    )
    draw.write_sheet(path, tiles, captions, 256, title)


def draw_classed(films: Sequence[ClassedFilm], path: Path) -> None:
    """A sheet of films without a truth as PNG, the least sure first; unreadable ones left out."""
    read = [f for f in films if f.status != "unreadable"]
    shown = sorted(read, key=lambda f: (max(f.scores[:-1]), f.film))[:_SHOWN]
    tiles = [_tile(Path(f.film), [(f.xyxy, draw.BLUE)], f.size_hw) for f in shown]
    captions = [f"{_said(f)}\n{Path(f.film).name}" for f in shown]
    title = f"{len(shown)} of {len(read)} films that were read, the least sure first"
    draw.write_sheet(path, tiles, captions, 256, title)


def _said(film: ClassedFilm) -> str:
    if film.answer == NO_BOX:
        return f"{NO_BOX} (best {film.box_score:.2f})"
    unsure = "" if film.status == "ok" else " unsure"
    return f"{film.answer} {max(film.scores):.2f}{unsure}"


def _tile(
    path: Path, boxes: Sequence[tuple[Xyxy | None, draw.Colour]], size_hw: tuple[int, int]
) -> np.ndarray:
    """The film fitted into `_SIDE` px with boxes that are given in pixels of its `size_hw`."""
    small = draw.fit(read_film(path, for_processing=True).pixels, _SIDE)
    picture = draw.to_rgb(small)
    for xyxy, colour in boxes:
        if xyxy is not None:
            picture = draw.draw_box(picture, stretch_xyxy(xyxy, size_hw, small.shape), colour)
    return picture
