"""Which films a finished training learnt from and which it was tested on, by runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Truths = dict[str, str]  # image of films.csv → class
Images = tuple[list[str], list[str]]  # training and tested films
SplitOf = tuple[tuple[str, ...], Truths, list[Images]]


def split_of_film_class(settings: dict[str, Any], folder: Path) -> SplitOf:
    """Of detect.film_class: the split is made again, from the same settings and seed."""
    from cxr.cli import from_plain
    from detect.data import select_parts
    from detect.film_class import FilmClassConfig
    from detect.film_class_answers import film_truth

    config = from_plain(FilmClassConfig, settings)
    classes = config.model.classes
    parts, _ = select_parts(config.data, config.seed, None, classes)
    truths: Truths = {}
    images: dict[str, list[str]] = {"train": [], config.answered_part: []}
    for part, found in images.items():
        for film in parts[part]:
            truth = film_truth(film, config.data.class_from, classes)
            if truth:
                truths[film.file_name] = truth
                found.append(film.file_name)
    return tuple(classes), truths, [(images["train"], images[config.answered_part])]
