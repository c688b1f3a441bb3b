"""answers.csv: what a trained system answered for each film that it was tested on.

One row a film: film, patient, source, truth, and a score for each class. It is the one table that
every system leaves, so that all of them are measured by the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr.ledger import csv_line, read_csv
from cxr.workdir import write_atomic

_BEFORE = ("film", "patient", "source", "truth")
_SCORE = "score."


@dataclass(frozen=True)
class Answer:
    """One tested film: its true class, and a score for each class (not negative, sum 1)."""

    film: str
    patient: str
    source: str
    truth: str
    scores: tuple[float, ...]


def write_answers(path: str | Path, classes: Sequence[str], answers: Sequence[Answer]) -> None:
    """All answers at once, atomically; raises ValueError for what `read_answers` would refuse."""
    classes = tuple(classes)
    _check_classes(classes)
    films: set[str] = set()
    lines = [csv_line(columns_of(classes))]
    for answer in answers:
        _check(answer, classes, films)
        scores = [repr(float(score)) for score in answer.scores]
        lines.append(csv_line([answer.film, answer.patient, answer.source, answer.truth, *scores]))
    write_atomic(path, "".join(lines))


def read_answers(path: str | Path) -> tuple[tuple[str, ...], list[Answer]]:
    """Classes and answers of an answers.csv; raises ValueError naming the line that is wrong."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} must be an answers.csv. It does not exist: train the system "
            "first, or give its folder's answers.csv."
        )
    classes: tuple[str, ...] = ()
    films: set[str] = set()

    def reader_of(header: tuple[str, ...]) -> Callable[[list[str]], Answer]:
        nonlocal classes
        classes = tuple(c.removeprefix(_SCORE) for c in header if c.startswith(_SCORE))
        if not classes or header != columns_of(classes):
            wanted = ", ".join((*_BEFORE, f"{_SCORE}CLASS"))
            raise ValueError(
                f"{path} must have the columns {wanted} (one a class). "
                f"Got {', '.join(header) or 'none'} instead."
            )
        try:
            _check_classes(classes)
        except ValueError as error:
            raise ValueError(f"{path} line 1: {error}") from error
        return read

    def read(cells: list[str]) -> Answer:
        answer = _answer(cells, len(_BEFORE) + len(classes))
        _check(answer, classes, films)
        return answer

    answers = read_csv(path, reader_of)
    return classes, answers


def columns_of(classes: Sequence[str]) -> tuple[str, ...]:
    """The columns of an answers.csv for these classes."""
    return (*_BEFORE, *(f"{_SCORE}{name}" for name in classes))


def _answer(cells: Sequence[str], width: int) -> Answer:
    if len(cells) != width:
        raise ValueError(f"a row must have {width} cells. Got {len(cells)} instead.")
    film, patient, source, truth, *scores = cells
    return Answer(film, patient, source, truth, tuple(float(score) for score in scores))


def _check_classes(classes: tuple[str, ...]) -> None:
    if len(classes) < 2 or len(set(classes)) != len(classes) or "" in classes:
        raise ValueError(
            "classes must name at least two answers, each once. "
            f"Got {', '.join(classes) or 'none'} instead."
        )


def _check(answer: Answer, classes: tuple[str, ...], films: set[str]) -> None:
    if not answer.film or answer.film in films:
        raise ValueError(f"film must be named, and stand there once. Got {answer.film!r}.")
    films.add(answer.film)
    if answer.truth not in classes:
        raise ValueError(
            f"truth of {answer.film} must be one of {', '.join(classes)}. "
            f"Got {answer.truth!r} instead."
        )
    good = all(math.isfinite(score) and score >= 0 for score in answer.scores)
    # half-precision networks are a little off
    near_one = abs(sum(answer.scores) - 1) < 1e-3
    if len(answer.scores) != len(classes) or not good or not near_one:
        raise ValueError(
            f"scores of {answer.film} must be {len(classes)} numbers, none negative, "
            f"with the sum 1. Got {list(answer.scores)} instead."
        )
