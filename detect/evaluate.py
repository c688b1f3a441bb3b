"""How good the thorax boxes are on films that were never trained on.

    python -m detect.evaluate --part test --out runs/evaluate
    python -m detect.evaluate --data FOLDER --annotations boxes.json --part all --out runs/own

Writes metrics.json, films.csv, table.md and worst.png, and prints the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from rich.progress import MofNCompleteColumn, Progress

from cxr.cli import parse_config, to_plain
from cxr.coco import CocoFilm
from cxr.film import Film
from cxr.films_table import read_films_table
from cxr.split import Split
from cxr.stream import Unread, default_jobs, read_ahead
from cxr.workdir import Workdir, console, log
from detect.data import read_annotations
from detect.evaluate_tables import (
    Evaluation,
    FilmResult,
    compare,
    draw_worst,
    print_tables,
    write_evaluation,
)
from detect.metrics import FilmScore, constant_box, scale_box, score_film
from detect.predict import Detections, ThoraxBox, ThoraxDetector

WHOLE_FILM = (0.0, 0.0, 1.0, 1.0)


class Detector(Protocol):
    """What is evaluated: a ThoraxDetector, another backend, or a stand-in."""

    def detect(self, films: Sequence[np.ndarray]) -> list[Detections]:
        """All boxes on each film (H, W) float32 in [0, 1]."""

    def decide(self, found: Detections, size_hw: tuple[int, int]) -> ThoraxBox:
        """The one box of a film, or why there is none."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure the thorax boxes: IoU, coverage, edges, misses, AP, beside trivial baselines.

    Args:
        weights: the detector's bundle; empty takes the one that comes with lungfirst.
        device: auto, cpu, or cuda.
        flips: average the boxes of a film and its mirror image; empty does as the bundle says.
        data: folder of the films, which are looked for by their base names where they do not lie
            as annotated; a films.csv there names lung masks.
        annotations: COCO file with the true boxes, in `data` or a path of its own.
        split: split of the patients, as `python -m cxr.split` saves it.
        part: part of the split to measure on, or all; the constant box comes from part train.
        sources: only films of these sources; empty takes all.
        class_from: take each film's true class from this key of its entry, such as label.
        double_score: a further box with at least this score makes a film a double.
        max_films: stop after so many films; 0 takes all.
        batch: films the detector sees at a time.
        jobs: processes that read films; -1 takes up to four, and none for a few films.
        seed: of the bootstrap.
        out: folder for the results.
    """

    weights: str = ""
    device: str = "auto"
    flips: bool | None = None
    data: str = "../shared/data"
    annotations: str = "thorax.json"
    split: str = "configs/split_seed0.json"
    part: str = "test"
    sources: list[str] = field(default_factory=list)
    class_from: str = ""
    double_score: float = 0.5
    max_films: int = 0
    batch: int = 8
    jobs: int = 0
    seed: int = 0
    out: str = "runs/evaluate"

    def __post_init__(self) -> None:
        for name, low, high in (
            ("batch", 1, 1024),
            ("jobs", -1, 256),
            ("max_films", 0, 10**9),
            ("double_score", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"--{name} must lie between {low} and {high}. Got {value}.")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it measured, 1 when no film could be read, 2 for wrong arguments."""
    config = parse_config(
        EvaluateConfig,
        argv,
        prog="python -m detect.evaluate",
        example="python -m detect.evaluate --part test --sources '[kermany]' --out runs/kermany",
    )
    try:
        detector = ThoraxDetector.load(config.weights or None, config.device, config.flips)
        films, constant = select_films(config, detector.config.classes)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 2
    workdir = Workdir(config.out)
    workdir.start(to_plain(config), config.seed, detector.weights)
    # Where the truth names no classes, a box is right whatever class the detector gives it.
    named = {label for film in films for label in film.labels} - {0} or config.class_from
    classes = len(detector.config.classes) if named else 1
    evaluation = evaluate(detector, films, constant, config, classes)
    write_evaluation(evaluation, workdir)
    draw_worst(evaluation, Path(config.data), workdir / "worst.png")
    print_tables(evaluation)
    console.print(f"metrics.json, films.csv, table.md, worst.png: {workdir.path}", highlight=False)
    return 0 if any(r.status != "unreadable" for r in evaluation.results) else 1


def select_films(
    config: EvaluateConfig, classes: Sequence[str] = ("thorax",)
) -> tuple[list[CocoFilm], np.ndarray]:
    """The films to measure on, and the constant box (4,) in fractions.

    Raises ValueError when nothing is left, or when a patient is not in the split.
    """
    films = read_annotations(config.data, config.annotations)
    if config.class_from:
        films = [_with_class(film, config.class_from, classes) for film in films]
    if config.part == "all":
        chosen, train = films, films  # a constant box fitted on its own test: a stronger baseline
    else:
        split = Split.load(config.split)
        patients = [f.patient_id for f in films]
        chosen = [films[i] for i in split.select(patients, config.part)]
        train = [films[i] for i in split.select(patients, "train")]
    if config.sources:
        chosen = [f for f in chosen if f.extra.get("source") in config.sources]
    chosen = chosen[: config.max_films or None]
    if not chosen:
        raise ValueError(
            f"--part and --sources must leave a film. Got none for part {config.part!r}"
            + (f" and sources {', '.join(config.sources)}." if config.sources else ".")
        )
    with_box = [f for f in train if len(f.boxes_xyxy)]
    return chosen, constant_box([f.boxes_xyxy for f in with_box], [f.size_hw for f in with_box])


def _with_class(film: CocoFilm, key: str, classes: Sequence[str]) -> CocoFilm:
    value = film.extra.get(key)
    if film.labels and value not in classes:
        raise ValueError(
            f"{film.file_name}: its {key} must be a class of the detector "
            f"({', '.join(classes)}). Got {value!r} instead."
        )
    return replace(
        film, labels=(classes.index(str(value)),) * len(film.labels) if film.labels else ()
    )


def evaluate(
    detector: Detector,
    films: Sequence[CocoFilm],
    constant: Any,
    config: EvaluateConfig,
    classes: int = 1,
) -> Evaluation:
    """Run the detector over the films and compare it with both baselines, pooled and by source."""
    results = list(measure_films(detector, films, constant, config))
    return Evaluation(results, compare(results, classes, config.seed), config.part)


def measure_films(
    detector: Detector, films: Sequence[CocoFilm], constant: Any, config: EvaluateConfig
) -> Iterator[FilmResult]:
    """A FilmResult a film, in order, with a progress bar; pixels are held a batch at a time."""
    masks = find_masks(Path(config.data))
    jobs = default_jobs(len(films)) if config.jobs < 0 else config.jobs
    stream = read_ahead([Path(config.data) / f.file_name for f in films], jobs)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar:
        task = bar.add_task("boxing", total=len(films))
        for start in range(0, len(films), config.batch):
            batch = [_fit(t, next(stream)[1]) for t in films[start : start + config.batch]]
            found = iter(detector.detect([f.pixels for _, f in batch if isinstance(f, Film)]))
            for truth, film in batch:
                if isinstance(film, Unread):
                    yield _unread_result(truth, film)
                else:
                    mask = read_mask(masks.get(truth.file_name), truth)
                    yield measure_film(
                        truth, film, next(found), detector, constant, mask, config.double_score
                    )
                bar.advance(task)


def measure_film(
    truth: CocoFilm,
    film: Film,
    found: Detections,
    detector: Detector,
    constant: Any,
    mask: np.ndarray | None,
    double_score: float,
) -> FilmResult:
    """One film's box, and both baselines', against the truth.

    `fallback` counts as a miss: the whole film is a way on, not a box.
    """
    box = detector.decide(found, truth.size_hw)
    sure = np.count_nonzero(found.scores >= double_score)
    doubled = bool(sure > max(1, len(truth.boxes_xyxy)))  # two lungs boxed apart are no double

    def score(xyxy: Any, doubled: bool = False) -> FilmScore:
        return score_film(xyxy, truth.boxes_xyxy, mask, film.spacing_mm, doubled)

    return FilmResult(
        truth,
        box.status,
        box.reason,
        box,
        found,
        {
            "detector": score(box.xyxy if box.status == "ok" else None, doubled),
            "constant box": score(scale_box(constant, truth.size_hw)),
            "whole film": score(scale_box(WHOLE_FILM, truth.size_hw)),
        },
        {
            "constant box": scale_box(constant, truth.size_hw),
            "whole film": scale_box(WHOLE_FILM, truth.size_hw),
        },
    )


def _unread_result(truth: CocoFilm, why: Unread) -> FilmResult:
    missed = score_film(None, truth.boxes_xyxy)
    scores = dict.fromkeys(("detector", "constant box", "whole film"), missed)
    return FilmResult(truth, "unreadable", str(why), None, None, scores, {})


def _fit(truth: CocoFilm, film: Film | Unread) -> tuple[CocoFilm, Film | Unread]:
    """The truth in the film's own pixels, also where the film is a scaled copy; the film is Unread
    where it is none."""
    if isinstance(film, Unread):
        return truth, film
    h, w = film.pixels.shape
    try:
        return truth.resized((h, w)), film
    except ValueError:
        height, width = truth.size_hw
        sentence = f"the film has {w} x {h} px, its annotation {width} x {height}."
        return truth, Unread("size_differs", sentence)


def find_masks(data: Path) -> dict[str, Path]:
    """Film → file of its lung mask, from films.csv; empty where there is no such table."""
    table = data / "films.csv"
    if not table.exists():
        return {}
    return {row.image: data / row.mask for row in read_films_table(table) if row.mask}


def read_mask(path: Path | None, truth: CocoFilm) -> np.ndarray | None:
    """A lung mask (H, W) of the film's size, or None."""
    if path is None:
        return None
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None or mask.shape != truth.size_hw:
        log.warning("%s is no mask of %s; its lung coverage is left out", path, truth.file_name)
        return None
    return np.asarray(mask)


if __name__ == "__main__":
    sys.exit(main())
