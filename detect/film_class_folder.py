"""Film classes and boxes of any folder of films, by a bundle trained before."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from cxr.film import list_films
from cxr.stream import default_jobs
from cxr.workdir import Workdir, console, provenance, write_atomic, write_json
from detect.film_class_answers import NO_BOX, ClassedFilm, classify_films
from detect.film_class_pictures import draw_classed
from detect.predict import ThoraxDetector


class FolderSettings(Protocol):
    """The settings that are used here; `detect.film_class.FilmClassConfig` has them."""

    @property
    def out(self) -> str:
        """Folder for the results."""

    @property
    def films(self) -> str:
        """A film, or a folder that is searched through."""

    @property
    def batch(self) -> int:
        """Films the detector sees at a time."""


def answer_folder(detector: ThoraxDetector, settings: FolderSettings) -> int:
    """Write film_classes.csv (a row a film, also for one without a box or unreadable, with the
    reason), film_classes.json (where it comes from) and film_classes.png; returns how many films
    could be read.

    Raises FileNotFoundError or ValueError for a folder that is missing or holds no film.
    """
    found = list_films([settings.films])
    if not found.films:
        raise ValueError(
            f"--films must name a film, or a folder with films. Got {settings.films}, "
            "which holds none."
        )
    jobs = default_jobs(len(found.films))
    films = list(classify_films(detector, found.films, settings.batch, jobs))
    workdir, classes = Workdir(settings.out), detector.config.classes
    write_atomic(workdir / "film_classes.csv", to_table(films, classes))
    write_json(
        workdir / "film_classes.json",
        {
            "films": settings.films,
            "classes": list(classes),
            "passed_over": found.passed_over,
            "operating_point": detector.operating_point,
            "provenance": provenance(detector.weights),
        },
    )
    draw_classed(films, workdir / "film_classes.png")
    counts = Counter(f.answer or f.status for f in films)
    told = ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
    console.print(f"{len(films)} films: {told}; {workdir / 'film_classes.csv'}", highlight=False)
    return sum(f.status != "unreadable" for f in films)


def to_table(films: Sequence[ClassedFilm], classes: Sequence[str]) -> str:
    """CSV: film, status, reason, class, score of the box, its corners in the film's pixels, and a
    score for each class and for `no box`; an unreadable film's cells are empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [*classes, NO_BOX]
    corners = ["x0", "y0", "x1", "y1"]
    head = ["film", "status", "reason", "class", "box_score", *corners]
    writer.writerow([*head, *(f"score.{name}" for name in names)])
    for film in films:
        read = film.status != "unreadable"
        box = [f"{v:.2f}" for v in film.xyxy] if film.xyxy else [""] * 4
        scores = [f"{v:.6f}" for v in film.scores] if read else [""] * len(names)
        score = f"{film.box_score:.4f}" if read else ""
        writer.writerow([film.film, film.status, film.reason, film.answer, score, *box, *scores])
    return buffer.getvalue()
