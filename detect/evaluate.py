"""How good the thorax boxes are on films that were never trained on.

    python -m detect.evaluate --part test --out runs/evaluate
    python -m detect.evaluate --data FOLDER --annotations boxes.json --part all --out runs/own

Writes metrics.json, films.csv, table.md, worst.png and, where the detector's bundle has a rule
that knows it, quality.png; and prints the table.
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
from cxr.rules import refusing, require_between, require_one_of
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import Workdir, console, counting, log
from detect.data import MeasureConfig, choose_part, read_annotations, read_mask, with_class
from detect.finder import Look, ThoraxFinder
from detect.metrics import constant_box, scale_box, score_film
from detect.predict import Detections, ThoraxBox
from detect.tables import (
    BY_CLASS,
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
        box: both measures the box that detect.crop takes, beside the detector's and the lung
            field's; detector measures the detector's alone.
        field: the lung field's bundle; empty takes the one that comes with lungfirst.
        flips: average the boxes of a film and its mirror image; empty does as the bundle says.
        class_from: take each film's true class from this key of its entry, such as label.
        double_score: a further box with at least this score makes a film a double.
        batch: films the detector sees at a time.
        jobs: processes that read films; -1 takes up to four, and none for a few films.
    """

    box: str = "both"
    field: str = ""
    flips: bool | None = None
    class_from: str = ""
    double_score: float = 0.5
    batch: int = 8
    jobs: int = 0

    def __post_init__(self) -> None:
        require_between(
            self, batch=(1, 1024), jobs=(-1, 256), max_films=(0, 10**9), double_score=(0, 1)
        )
        require_one_of(self, box=tuple(METHODS))


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it measured, 1 when no film could be read, 2 for wrong arguments."""
    example = "python -m detect.evaluate --part test --sources '[kermany]' --out runs/kermany"
    config = parse_config(EvaluateConfig, argv, example)
    with refusing():
        bundles = config.weights or None, config.field or None
        finder = ThoraxFinder.load(*bundles, config.device, config.box)
        detector = finder.detector
        if config.flips is not None:
            detector.flips = config.flips
        films, constant = select_films(config, detector.config.classes)
    workdir = Workdir(config.out)
    workdir.start(to_plain(config), config.seed, finder.weights)
    # Where the truth names no classes, a box is right whatever class the detector gives it.
    named = {label for film in films for label in film.labels} - {0} or config.class_from
    classes = len(detector.config.classes) if named else 1
    evaluation = evaluate(finder, films, constant, config, classes)
    write_evaluation(evaluation, workdir)
    draw_worst(evaluation, DataFolders(config.data), workdir / "worst.png")
    print_tables(evaluation)
    console.print(
        f"metrics.json, films.csv, table.md and pictures: {workdir.path}", highlight=False
    )
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
    finder: ThoraxFinder,
    films: Sequence[CocoFilm],
    constant: Any,
    config: EvaluateConfig,
    classes: int = 1,
) -> Evaluation:
    """Run the finder over the films and compare its box with each network's own and with both
    baselines, pooled and by source."""
    results = list(measure_films(finder, films, constant, config))
    return Evaluation(results, compare(results, classes, config.seed), config.part, config.seed)


def measure_films(
    finder: ThoraxFinder, films: Sequence[CocoFilm], constant: Any, config: EvaluateConfig
) -> Iterator[FilmResult]:
    """A FilmResult a film, in order, with a progress bar; pixels are held a batch at a time."""
    data = DataFolders(config.data)
    masks, paths = find_masks(data), [data / f.file_name for f in films]
    stream = zip(films, read_ahead(paths, default_jobs(len(films), config.jobs)), strict=True)
    for group in batched(counting(stream, "boxing", len(films)), config.batch):
        batch = [fit_to_film(truth, film) for truth, (_, film) in group]
        pixels = [f.pixels for _, f in batch if isinstance(f, Film)]
        looks = finder.look(pixels)
        decided = zip(looks, finder.conclude(looks, pixels), strict=True)
        for truth, film in batch:
            if isinstance(film, Unread):
                missed = dict.fromkeys(METHODS[finder.box], score_film(None, truth.boxes_xyxy))
                yield FilmResult(truth, "unreadable", str(film), None, {}, missed)
            else:
                mask = lungs_of(masks.get(truth.file_name), film)
                yield measure_film(
                    truth, film, *next(decided), finder, constant, mask, config.double_score
                )


def measure_film(
    truth: CocoFilm,
    film: Film,
    look: Look,
    box: ThoraxBox,
    finder: ThoraxFinder,
    constant: Any,
    mask: np.ndarray | None,
    double_score: float,
) -> FilmResult:
    """One film's box as it was decided, each network's own, and both baselines', against the truth.

    `fallback` counts as a miss: the whole film is a way on, not a box.
    """
    found, field, size_hw = look.found, look.field, truth.size_hw
    own = finder.detector.decide(found, size_hw)
    sure = np.count_nonzero(found.scores >= double_score)
    doubled = bool(sure > max(1, len(truth.boxes_xyxy)))  # two lungs boxed apart are no double
    known = {
        "both": (_used(box), _one(box.seen_xyxy, box.score, box.label)),
        "detector": (_used(own), found),
        "lung field": (field.xyxy, _one(field.xyxy, 1 - field.soft)) if field else (None, _one()),
    }
    for name, part in (("constant box", constant), ("whole film", WHOLE_FILM)):
        fixed = scale_box(part, size_hw)
        known[name] = fixed, _one(fixed)
    scores = {
        name: score_film(
            known[name][0], truth.boxes_xyxy, mask, film.spacing_mm, doubled and name in BY_CLASS
        )
        for name in METHODS[finder.box]
    }
    seen = {name: known[name][1] for name in scores}
    return FilmResult(truth, box.status, box.reason, box, seen, scores, film.stored_hw)


def _used(box: ThoraxBox) -> Any:
    """The box, where it is one."""
    return box.xyxy if box.status == "ok" else None


def _one(xyxy: Any = None, score: float = 1.0, label: int = 0) -> Detections:
    """One box as a network would say it; none for None."""
    boxes = np.zeros((0, 4)) if xyxy is None else np.asarray(xyxy, float)[None]
    n = len(boxes)
    return Detections(boxes, np.full(n, score), np.full(n, label))


def fit_to_film(truth: CocoFilm, film: Film | Unread) -> tuple[CocoFilm, Film | Unread]:
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
