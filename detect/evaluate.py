"""How good the thorax boxes are on films that were never trained on.

    python -m detect.evaluate --part test --out runs/evaluate
    python -m detect.evaluate --data FOLDER --annotations boxes.json --part all --out runs/own

Writes metrics.json, films.csv, table.md and worst.png, and prints the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr.cli import as_command, parse_config, to_plain
from cxr.coco import CocoFilm
from cxr.data_folders import Data, DataFolders
from cxr.film import Film
from cxr.rules import refusing, require_between
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import Workdir, console, counting, log
from detect.data import MeasureConfig, choose_part, read_annotations, read_mask, with_class
from detect.metrics import FilmScore, constant_box, scale_box, score_film
from detect.predict import Detections, ThoraxDetector
from detect.tables import (
    METHODS,
    Evaluation,
    FilmResult,
    compare,
    draw_worst,
    print_tables,
    write_evaluation,
)

WHOLE_FILM = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class EvaluateConfig(MeasureConfig):
    """Measure the thorax boxes: IoU, coverage, edges, misses, AP, beside trivial baselines.

    Args:
        flips: average the boxes of a film and its mirror image; empty does as the bundle says.
        class_from: take each film's true class from this key of its entry, such as label.
        double_score: a further box with at least this score makes a film a double.
        batch: films the detector sees at a time.
        jobs: processes that read films; -1 takes up to four, and none for a few films.
    """

    flips: bool | None = None
    class_from: str = ""
    double_score: float = 0.5
    batch: int = 8
    jobs: int = 0

    def __post_init__(self) -> None:
        require_between(
            self, batch=(1, 1024), jobs=(-1, 256), max_films=(0, 10**9), double_score=(0, 1)
        )


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it measured, 1 when no film could be read, 2 for wrong arguments."""
    config = parse_config(
        EvaluateConfig,
        argv,
        prog="python -m detect.evaluate",
        example="python -m detect.evaluate --part test --sources '[kermany]' --out runs/kermany",
    )
    with refusing():
        detector = ThoraxDetector.load(config.weights or None, config.device, config.flips)
        films, constant = select_films(config, detector.config.classes)
    workdir = Workdir(config.out)
    workdir.start(to_plain(config), config.seed, detector.weights)
    # Where the truth names no classes, a box is right whatever class the detector gives it.
    named = {label for film in films for label in film.labels} - {0} or config.class_from
    classes = len(detector.config.classes) if named else 1
    evaluation = evaluate(detector, films, constant, config, classes)
    write_evaluation(evaluation, workdir)
    draw_worst(evaluation, DataFolders(config.data), workdir / "worst.png")
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
        films = [with_class(film, config.class_from, classes) for film in films]
    chosen, train = choose_part(films, config)
    with_box = [f for f in train if len(f.boxes_xyxy)]
    return chosen, constant_box([f.boxes_xyxy for f in with_box], [f.size_hw for f in with_box])


def evaluate(
    detector: ThoraxDetector,
    films: Sequence[CocoFilm],
    constant: Any,
    config: EvaluateConfig,
    classes: int = 1,
) -> Evaluation:
    """Run the detector over the films and compare it with both baselines, pooled and by source."""
    results = list(measure_films(detector, films, constant, config))
    return Evaluation(results, compare(results, classes, config.seed), config.part)


def measure_films(
    detector: ThoraxDetector, films: Sequence[CocoFilm], constant: Any, config: EvaluateConfig
) -> Iterator[FilmResult]:
    """A FilmResult a film, in order, with a progress bar; pixels are held a batch at a time."""
    data = DataFolders(config.data)
    masks, paths = find_masks(data), [data / f.file_name for f in films]
    stream = zip(films, read_ahead(paths, default_jobs(len(films), config.jobs)), strict=True)
    for group in batched(counting(stream, "boxing", len(films)), config.batch):
        batch = [_fit(truth, film) for truth, (_, film) in group]
        found = iter(detector.detect([f.pixels for _, f in batch if isinstance(f, Film)]))
        for truth, film in batch:
            if isinstance(film, Unread):
                yield _unread_result(truth, film)
            else:
                mask = lungs_of(masks.get(truth.file_name), film)
                yield measure_film(
                    truth, film, next(found), detector, constant, mask, config.double_score
                )


def measure_film(
    truth: CocoFilm,
    film: Film,
    found: Detections,
    detector: ThoraxDetector,
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

    baselines = {
        "constant box": scale_box(constant, truth.size_hw),
        "whole film": scale_box(WHOLE_FILM, truth.size_hw),
    }
    own = score(box.xyxy if box.status == "ok" else None, doubled)
    scores = {"detector": own, **{name: score(xyxy) for name, xyxy in baselines.items()}}
    return FilmResult(truth, box.status, box.reason, box, found, scores, baselines, film.stored_hw)


def _unread_result(truth: CocoFilm, why: Unread) -> FilmResult:
    missed = score_film(None, truth.boxes_xyxy)
    scores = dict.fromkeys(METHODS, missed)
    return FilmResult(truth, "unreadable", str(why), None, None, scores, {})


def _fit(truth: CocoFilm, film: Film | Unread) -> tuple[CocoFilm, Film | Unread]:
    """The truth in the film's own pixels, also where the film is a scaled copy; the film is Unread
    where it is none."""
    if isinstance(film, Unread):
        return truth, film
    h, w = film.pixels.shape
    try:
        return truth.resized((h, w), film.stored_hw), film
    except ValueError:
        height, width = truth.size_hw
        sentence = f"the film has {w} x {h} px, its annotation {width} x {height}."
        return truth, Unread("size_differs", sentence)


def find_masks(data: Data) -> dict[str, Path]:
    """Film → file of its lung mask, from films.csv; empty where there is no such table."""
    data = DataFolders(data)
    return {row.image: data / row.mask for row in data.rows(unlisted=True) if row.mask}


def lungs_of(path: Path | None, film: Film) -> np.ndarray | None:
    """A film's lung mask (H, W), or None where there is none that fits."""
    try:
        return None if path is None else read_mask(path, film)
    except ValueError as error:
        log.warning("lung coverage is left out: %s", error)
        return None


if __name__ == "__main__":
    sys.exit(main())
