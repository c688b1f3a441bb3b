"""Which films a finished training learnt from and which it was tested on, by runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Films = Sequence[tuple[str, str]]  # (image, patient)


@dataclass(frozen=True)
class SplitOf:
    """The split behind a cell.

    Attributes:
        classes: names of the truths.
        truths: image of films.csv → class.
        folds: the images learnt from and those tested, of each fold; one pair without folds.
        parts: part → films and patients, of the first fold.
    """

    classes: tuple[str, ...]
    truths: dict[str, str]
    folds: list[tuple[list[str], list[str]]]
    parts: dict[str, dict[str, int]]


def count_parts(films: Mapping[str, Films]) -> dict[str, dict[str, int]]:
    """Part → number of its films and patients."""
    return {
        part: {"films": len(some), "patients": len({patient for _, patient in some})}
        for part, some in films.items()
    }


def split_of_single(settings: dict[str, Any]) -> SplitOf:
    """Of classify.single and what is built on it: the split is made again, from the same settings
    and seed."""
    from classify.singles.config import SingleConfig
    from classify.singles.films import load_films
    from classify.singles.parts import share_films
    from cxr.cli import from_plain

    own = SingleConfig.__dataclass_fields__
    config = from_plain(SingleConfig, {k: v for k, v in settings.items() if k in own})
    films = load_films(config)
    rows = [case.row for case in films.cases]
    every = share_films(rows, films.labels, config.protocol)
    truths = {row.image: config.classes[k] for row, k in zip(rows, films.labels, strict=True)}
    folds = [
        ([rows[i].image for i in s.parts["train"]], [rows[i].image for i in s.parts["test"]])
        for s in every
    ]
    first = {
        part: [(rows[i].image, rows[i].patient_id) for i in indices]
        for part, indices in every[0].parts.items()
    }
    return SplitOf(tuple(config.classes), truths, folds, count_parts(first))


def split_of_film_class(settings: dict[str, Any]) -> SplitOf:
    """Of detect.film_class: the split is made again, from the same settings and seed."""
    from cxr.cli import from_plain
    from detect.data import select_films
    from detect.film_class import FilmClassConfig
    from detect.film_class_answers import film_truth

    config = from_plain(FilmClassConfig, settings)
    classes = config.model.classes
    parts = select_films(config.data, config.seed, classes, trained=False).films
    truths: dict[str, str] = {}
    films: dict[str, list[tuple[str, str]]] = {part: [] for part in parts if parts[part]}
    for part, found in films.items():
        for film in parts[part]:
            truth = film_truth(film, config.data.class_from, classes)
            if truth:
                truths[film.file_name] = truth
                found.append((film.file_name, film.patient_id))
    learnt = [image for image, _ in films["train"]]
    tested = [image for image, _ in films[config.answered_part]]
    return SplitOf(tuple(classes), truths, [(learnt, tested)], count_parts(films))


def split_of_scxnn(settings: dict[str, Any]) -> SplitOf:
    """Of an SCXNN ensemble: the parts of its split file."""
    from reproducing.scxnn import split_of

    return split_of(settings)
