"""Detect-and-classify: the detector's classes are the film's classes.

    python -m detect.film_class --config configs/detect/two_class.yaml
    python -m detect.film_class --films FOLDER --weights runs/two_class/thorax.safetensors

A quick look on any machine:  python -m detect.film_class --config configs/detect/two_class.yaml
--epochs 1 --model.side 128 --data.per_label '{normal: 30, pneumonia: 30}' --out runs/quick

The two-stage report's second method: Faster R-CNN with the classes normal and pneumonia on 200 +
200 boxed films, split 0.8 / 0.2; the best box's class is the film's class. The report tests on all
films that nobody boxed (`--data.parts '{train: 0.8, val: 0.2}' --data.rest test`, here those that
`per_label` leaves over). By default a third part of the boxed films is split off (by patient, 0.7 /
0.1 / 0.2): the epoch is chosen on `val`, and the answers are given for `test`, on which nothing was
chosen. With parts train and val alone the films of `val` are answered, and metrics.json says so
(`chosen_on_answered`).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxr.cli import as_command, parse_config, to_plain
from cxr.coco import CocoFilm
from cxr.data_folders import DataFolders
from cxr.draw import draw_confusion
from cxr.film import FilmList, list_films
from cxr.ledger import write_answers
from cxr.rules import RefusedError, refusing
from cxr.stream import default_jobs
from cxr.training.recipe import check_recipe, free, keep_to_recipe
from cxr.workdir import (
    Workdir,
    console,
    log,
    provenance,
    sha256_file,
    write_atomic,
    write_json,
)
from detect.data import DataConfig, select_films
from detect.film_class_answers import (
    NO_BOX,
    AnsweredFilm,
    classify_films,
    compare_film,
    confusion,
    draw_answers,
    draw_classed,
    film_truth,
    measure,
    measure_boxes,
    to_table,
)
from detect.predict import ThoraxDetector
from detect.settings import DetectorConfig, TrainConfig
from detect.train import train

BUNDLE = "thorax.safetensors"
PARTS = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class FilmClassConfig(TrainConfig):
    """Train the detector with the film's classes, and answer for films it has not seen.

    The run's folder holds what detect.train leaves (thorax.safetensors, history.json, curves.png …)
    and answers.csv, boxes.json, metrics.json, confusion.png and predictions.png. A killed run goes
    on where its last epoch ended; a finished one is not done again.

    Args:
        weights: a bundle trained before, to answer with in place of a training.
        films: answer for this film or folder of films, with `weights` or the bundle in `out`:
            film_classes.csv and film_classes.png. Nothing is trained, and the bundle's own rule
            refuses what looks like no chest.
        min_score: a tested film's best box below this score is none. The tested films are chests,
            so the bundle's `reject_score`, which is to keep hips out, is not asked: a detector
            that has met no film without a thorax sets it too high (it refused 7 of 40 chests).
        for_processing: take `films` that are FOR PROCESSING (raw detector data) too.
        keep_checkpoints: keep the checkpoints of a finished training, as large as the bundle many
            times over.
    """

    out: str = free("runs/two_class")
    epochs: int = 30
    data: DataConfig = field(
        default_factory=lambda: DataConfig(parts=dict(PARTS), class_from="label")
    )
    model: DetectorConfig = field(
        default_factory=lambda: DetectorConfig(classes=["normal", "pneumonia"], side=256)
    )
    negatives: float = 0.0
    weights: str = ""
    films: str = free("")
    min_score: float = 0.05
    for_processing: bool = free(False)
    keep_checkpoints: bool = free(False)

    def __post_init__(self) -> None:
        classes = self.model.classes
        if len(set(classes)) < 2 or len(set(classes)) != len(classes) or NO_BOX in classes:
            raise ValueError(
                "model.classes must name two classes or more, each once, none "
                f"{NO_BOX!r}. Got {', '.join(classes)}."
            )
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"--min_score must lie in [0, 1]. Got {self.min_score}.")
        if self.model.box_rule != "best":
            raise ValueError(
                "model.box_rule must be best: the best box's class is the film's. "
                f"Got {self.model.box_rule!r}."
            )

    @property
    def answered_part(self) -> str:
        """The part whose films are answered: test, or val where `data.parts` has no test."""
        named = {**self.data.parts, self.data.rest: 1.0}
        return "test" if self.data.split or named.get("test") else "val"


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """0 when films were answered, 1 when none could be read, 2 for wrong arguments."""
    example = (
        "python -m detect.film_class --config configs/detect/two_class.yaml --out runs/two_class"
    )
    config = parse_config(FilmClassConfig, argv, example)
    if config.films:
        with refusing():
            weights = config.weights or str(Path(config.out) / BUNDLE)
            detector = ThoraxDetector.load(weights, _device(config), flips=False)
            found = list_films([config.films])
        return 0 if answer_folder(detector, found, config) else 1
    out = train_film_class(config)
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    console.print(
        f"{figures['right']} of {figures['films']} films of part {figures['part']} right, "
        f"mean IoU {figures['boxes']['mean_iou'] or 0:.3f}; all figures: {out / 'metrics.json'}",
        highlight=False,
    )
    return 0


def answer_folder(detector: ThoraxDetector, found: FilmList, config: FilmClassConfig) -> int:
    """Answer for a film or a folder of films: film_classes.csv (a row a film, also for one without
    a box or unreadable, with the reason), film_classes.json (where it comes from) and
    film_classes.png; returns how many films could be read. RefusedError where none was found."""
    if not found.films:
        raise RefusedError(
            "--films must name a film, or a folder with films. Got "
            f"{config.films}, which holds none."
        )
    how = (config.batch, default_jobs(len(found.films)), None, config.for_processing)
    films = list(classify_films(detector, found.films, *how))
    workdir, classes = Workdir(config.out), detector.config.classes
    write_atomic(workdir / "film_classes.csv", to_table(films, classes))
    about = {
        "films": config.films,
        "classes": list(classes),
        "passed_over": found.passed_over,
        "operating_point": detector.operating_point,
        "provenance": provenance(detector.weights),
    }
    write_json(workdir / "film_classes.json", about)
    draw_classed(films, workdir / "film_classes.png")
    counts = Counter(f.answer or f.status for f in films)
    told = ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
    console.print(f"{len(films)} films: {told}; {workdir / 'film_classes.csv'}", highlight=False)
    return sum(f.status != "unreadable" for f in films)


def train_film_class(config: FilmClassConfig) -> Path:
    """Train, answer, measure, draw; returns `config.out`. A finished folder is taken as it is.
    Raises RefusedError for wrong settings, data or `config.weights`, and for a folder that another
    run holds, or was begun with other settings."""
    out = Path(config.out)
    workdir = Workdir(out)  # held to the end, the training's own included
    if config.restart:
        for name in ("done.json", BUNDLE):
            (out / name).unlink(missing_ok=True)
    with refusing():
        check_recipe(out, config, config.restart)
    if (out / "done.json").exists():
        log.info("%s is finished; --restart begins it anew", out)
        return out
    films = select_answered(config)
    if config.weights:
        with refusing():
            detector = ThoraxDetector.load(config.weights, _device(config), flips=False)
        if detector.config.classes != config.model.classes:
            raise RefusedError(
                "--weights must know the classes of model.classes "
                f"({', '.join(config.model.classes)}). Got "
                f"{', '.join(detector.config.classes)}."
            )
        keep_to_recipe(out, config, config.restart)
        workdir.start(to_plain(config), config.seed, detector.weights)
    else:
        if not (out / BUNDLE).exists():
            train(config, film_classes=True)
        detector = ThoraxDetector.load(out / BUNDLE, _device(config), flips=False)
    write_results(config, detector, films)
    if not config.keep_checkpoints:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    write_json(out / "done.json", {"answers_sha256": sha256_file(out / "answers.csv")})
    return out


def select_answered(config: FilmClassConfig) -> list[tuple[CocoFilm, str]]:
    """The films to answer with their true classes; RefusedError where the split leaves none, or
    leaves a class out of a training."""
    classes, key = config.model.classes, config.data.class_from
    with refusing():
        parts = select_films(config.data, config.seed, classes, trained=False).films
    known = {
        part: [(f, truth) for f in films if (truth := film_truth(f, key, classes))]
        for part, films in parts.items()
    }
    of_class = Counter(truth for _, truth in known["train"])
    missing = [name for name in classes if not of_class[name]]
    if missing and not config.weights:
        raise RefusedError(
            "part train must hold films of each class. Got none of "
            f"{', '.join(missing)}: see data.sources, and take data.per_label "
            "rather than data.max_films for a small run."
        )
    answered = known.get(config.answered_part, [])
    if not answered:
        raise RefusedError(
            f"part {config.answered_part} must hold a film to answer. Got none: "
            "give it a larger share in data.parts, or more films."
        )
    return answered


def write_results(
    config: FilmClassConfig, detector: ThoraxDetector, films: Sequence[tuple[CocoFilm, str]]
) -> None:
    """Answer the films; answers.csv, boxes.json, metrics.json and both pictures. Raises
    RefusedError when no film can be read."""
    out, root, classes = Path(config.out), DataFolders(config.data.data), config.model.classes
    paths = [root / entry.file_name for entry, _ in films]
    said = classify_films(detector, paths, config.batch, config.workers, config.min_score)
    answered = [
        compare_film(entry, truth, word, classes)
        for (entry, truth), word in zip(films, said, strict=True)
        if word.status != "unreadable"
    ]
    if not answered:
        raise RefusedError(f"data must hold a film to answer. Got {len(films)}, none readable.")
    counts = confusion([f.truth for f in answered], [f.said.answer for f in answered], classes)
    names, about = [*classes, NO_BOX], {"schema": "lungfirst.film_class", "version": 1}
    write_answers(out / "answers.csv", names, [f.to_answer() for f in answered])
    rows = [film.to_row() for film in answered]
    write_json(out / "boxes.json", {**about, "classes": list(classes), "films": rows})
    write_json(out / "metrics.json", _to_metrics(config, detector, answered, counts, len(films)))
    draw_confusion(counts, classes, names, out / "confusion.png", f"{len(answered)} films")
    draw_answers(answered, root, out / "predictions.png")


def _to_metrics(
    config: FilmClassConfig,
    detector: ThoraxDetector,
    answered: Sequence[AnsweredFilm],
    counts: np.ndarray,
    listed: int,
) -> dict[str, Any]:
    return {
        "part": config.answered_part,
        "chosen_on_answered": config.answered_part == "val",
        **measure(counts, config.model.classes),
        "patients": len({f.entry.patient_id for f in answered}),
        "unreadable": listed - len(answered),
        "boxes": measure_boxes(answered),
        "backbone": detector.config.backbone,
        "operating_point": detector.operating_point,
        "trained_on": detector.meta.get("trained_on", {}),
        "validation": detector.meta.get("metrics", {}),
        "min_score": config.min_score,
        "provenance": provenance(detector.weights),
    }


def _device(config: FilmClassConfig) -> str:
    return "cpu" if config.accelerator == "cpu" else "auto"


if __name__ == "__main__":
    sys.exit(main())
