"""What readers preferred: shares with exact intervals, agreement, and how steady a reader is.

A share is of the choices that took a side ("neither" is counted beside it), with the exact
interval of Clopper and Pearson (1934) and the exact two-sided test against ½. Films that came
twice count once, by their first answer. Films read by several readers are no independent evidence,
so readers are not added up: the line "most readers" counts each film once, by the method that more
readers took. Agreement of two readers is over left, right and neither as methods: the share of
films answered alike, and Cohen's κ (1960), which takes off what chance gives.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from comparing.maps import show
from comparing.page import KEY_SCHEMA, VERSION, Trial
from cxr.cli import to_plain
from cxr.page import p_value
from cxr.rules import require, require_at_least
from cxr.stats import Figure, exact_share, figure_of, in_words, sign_p, weighted_mean, with_draws
from cxr.workdir import provenance, read_json, read_text, write_json

MOST = "most readers"


@dataclass(frozen=True)
class ReadConfig:
    """Read the choices that readers saved on a page.

    Args:
        choices: files that the page saved (.json or .csv), one a reader.
        key: the page's .key.json.
        out: file for the figures (.json); empty only prints them.
        draws: bootstrap draws of films for the interval of κ.
        seed: of the draws.
    """

    choices: tuple[str, ...] = ()
    key: str = ""
    out: str = ""
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        rule = "--key must be the .key.json that was written beside the page"
        require(bool(self.key), rule, self.key)
        require_at_least(self, draws=1)


@dataclass(frozen=True)
class Preference:
    """Of `films` answered, how many for the first method, the second, and neither. `share` is the
    first's among those with a side, with its exact 95 % interval; `p` of the test against ½."""

    reader: str
    films: int
    first: int
    second: int
    neither: int
    share: Figure
    p: float | None


@dataclass(frozen=True)
class Steadiness:
    """Films that came twice with sides swapped and were answered alike, and the share of sides
    taken that were the left one (½ without a habit)."""

    reader: str
    repeated: int
    alike: int
    left: Figure


@dataclass(frozen=True)
class Agreed:
    """Two readers over the films that both answered; `kappa` is None where chance explains all."""

    readers: tuple[str, str]
    films: int
    alike: Figure
    kappa: Figure


def run(config: ReadConfig) -> int:
    """Print the tables, and write them where asked to; raises ValueError or OSError."""
    key = read_key(config.key)
    readings = read_all(config.choices, key)
    preferred = preferences(key, readings)
    steady = [steadiness(key, r) for r in readings]
    agreed = [agreement(key, a, b, config.draws, config.seed) for a, b in combinations(readings, 2)]
    share = f"{key.names[0]} of those [95 %]"
    rows: list[tuple[Any, ...]] = [
        (p.reader, p.films, p.first, p.second, p.neither, in_words(p.share), p_value(p.p))
        for p in preferred
    ]
    show(("reader", "films", *key.names, "neither", share, "p"), rows)
    rows = [(s.reader, s.repeated, s.alike, in_words(s.left)) for s in steady]
    show(("reader", "came twice", "answered alike", "left of sides taken [95 %]"), rows)
    rows = [(" – ".join(a.readers), a.films, *map(in_words, (a.alike, a.kappa))) for a in agreed]
    if rows:
        show(("readers", "films", "answered alike [95 %]", "Cohen’s κ [95 %]"), rows)
    if config.out:
        record = {
            "schema": "lungfirst.preferences",
            "version": 1,
            **provenance(),
            "page": key.page,
            "methods": list(key.names),
            "preferences": to_plain(preferred),
            "steadiness": to_plain(steady),
            "agreement": to_plain(agreed),
        }
        write_json(config.out, record)
    return 0


def first_answers(key: Key, reading: Reading) -> dict[str, int]:
    """Film → FIRST, SECOND or NEITHER, without the repeats."""
    return {
        key.trials[n].film: choice
        for n, choice in sorted(reading.chosen.items())
        if not key.trials[n].repeats
    }


def preferences(key: Key, readings: Sequence[Reading]) -> list[Preference]:
    """One a reader, and with several readers one over films, by what most of them took."""
    answers = [first_answers(key, r) for r in readings]
    found = [count(r.reader, a.values()) for r, a in zip(readings, answers, strict=True)]
    if len(readings) > 1:
        found.append(count(MOST, majority(answers).values()))
    return found


def majority(answers: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Film → the method that more readers took than the other; NEITHER where as many did."""
    out = {}
    for film in dict.fromkeys(f for a in answers for f in a):
        votes = Counter(a[film] for a in answers if film in a)
        gap = votes[FIRST] - votes[SECOND]
        out[film] = NEITHER if gap == 0 else FIRST if gap > 0 else SECOND
    return out


def count(reader: str, answers: Iterable[int]) -> Preference:
    """Counts with the exact interval and test."""
    found = Counter(answers)
    first, second = found[FIRST], found[SECOND]
    share, p = exact_share(first, first + second), sign_p(first, second)
    return Preference(reader, sum(found.values()), first, second, found[NEITHER], share, p)


def steadiness(key: Key, reading: Reading) -> Steadiness:
    """How a reader answered what came twice, and which side they took."""
    chosen = reading.chosen
    again = {n: key.trials[n].repeats for n in chosen if key.trials[n].repeats}
    both = [(n, earlier) for n, earlier in again.items() if earlier in chosen]
    alike = sum(chosen[n] == chosen[earlier] for n, earlier in both)
    sides = sum(choice != NEITHER for choice in chosen.values())
    left = sum(choice == key.trials[n].left for n, choice in chosen.items())
    return Steadiness(reading.reader, len(both), alike, exact_share(left, sides))


def agreement(key: Key, a: Reading, b: Reading, draws: int = 1000, seed: int = 0) -> Agreed:
    """Two readers over the films that both answered."""
    one, two = first_answers(key, a), first_answers(key, b)
    films = [f for f in one if f in two]
    readers, kappa = (a.reader, b.reader), Figure(None, None, None, 0)
    alike = sum(one[f] == two[f] for f in films)
    if films:
        pairs = np.array([[one[f], two[f]] for f in films])
        kappa = figure_of(kappas(pairs, with_draws(films, draws, seed)), len(films))
    return Agreed(readers, len(films), exact_share(alike, len(films)), kappa)


def kappas(pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) Cohen's κ of answers (N, 2) under each row of weights (B, N); NaN where chance alone
    makes the readers agree on all films."""
    alike = weighted_mean(pairs[:, 0] == pairs[:, 1], weights)
    shares = [
        [weighted_mean(pairs[:, r] == k, weights) for r in (0, 1)] for k in (FIRST, SECOND, NEITHER)
    ]
    room = 1 - np.sum([one * two for one, two in shares], axis=0)
    enough = room > 1e-12
    return 1 - np.divide(1 - alike, room, out=np.full(len(weights), np.nan), where=enough)


CHOICES_SCHEMA = "lungfirst.choices"
WORDS = ("left", "right", "neither")
COLUMNS = ("page", "reader", "trial", "choice", "seconds")
FIRST, SECOND, NEITHER = 0, 1, 2


@dataclass(frozen=True)
class Key:
    """What a page asked: its id, the names of its two methods, and its trials by number."""

    page: str
    names: tuple[str, str]
    trials: dict[int, Trial]


@dataclass(frozen=True)
class Reading:
    """One reader's choices: trial → FIRST, SECOND or NEITHER."""

    reader: str
    chosen: dict[int, int]


def read_key(path: str | Path) -> Key:
    """A page's key; raises OSError, or ValueError naming what is wrong."""
    data = _json(path, "the key of a page", KEY_SCHEMA)
    try:
        first, second = (str(m["name"]) for m in data["methods"])
        trials = [
            Trial(int(t["trial"]), str(t["film"]), int(t["left"]), int(t["repeats"]))
            for t in data["trials"]
        ]
        numbers, page = {t.number for t in trials}, str(data["page"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must have a page, two methods with a name, and trials with trial, film, left "
            "and repeats. One of them is missing, or no number: take the file beside the page."
        ) from error
    if len(numbers) < len(trials) or any(
        t.left not in (FIRST, SECOND) or (t.repeats and t.repeats not in numbers) for t in trials
    ):
        raise ValueError(
            f"{path} must number each trial once, with left 0 or 1, and repeats the "
            "number of another trial, or 0."
        )
    return Key(page, (first, second), {t.number: t for t in trials})


def read_choices(path: str | Path, key: Key) -> Reading:
    """A reader's .json or .csv file; raises OSError, or ValueError for another page's file, an
    unknown trial or word, or a trial that stands there twice."""
    path, is_csv = Path(path), str(path).casefold().endswith(".csv")
    of, rows = _csv_rows(path) if is_csv else _json_rows(path)
    if len(of) != 1:
        raise ValueError(f"{path} must be of one page and one reader. Got {len(of)} of them.")
    page, reader = of.pop()
    if page != key.page:
        raise ValueError(
            f"{path} must be of the page {key.page}. It is of {page or 'none'}: give "
            "the key of that page."
        )
    if not reader:
        raise ValueError(f"{path} must name its reader. It names none.")
    chosen: dict[int, int] = {}
    for number, word in rows:
        if number not in key.trials or word not in WORDS or number in chosen:
            raise ValueError(
                f"{path}: each choice must be of one trial of the page, once, and "
                f"one of {', '.join(WORDS)}. Got {word!r} for trial "
                f"{number}."
            )
        side = key.trials[number].left
        chosen[number] = NEITHER if word == "neither" else side if word == "left" else 1 - side
    return Reading(reader, chosen)


def read_all(paths: Sequence[str], key: Key) -> list[Reading]:
    """All readers' files; raises ValueError for none, or for a reader with two files."""
    if not paths:
        raise ValueError(
            "CHOICES must be one file or more. Got none: readers save them on the page."
        )
    found = [read_choices(path, key) for path in paths]
    names = [r.reader for r in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(
            f"CHOICES must hold one file a reader. {twice[0]!r} has "
            f"{names.count(twice[0])}: give the last one alone."
        )
    return found


def _json(path: str | Path, what: str, schema: str) -> Mapping[str, Any]:
    """A file of this schema; raises OSError, or ValueError for any other."""
    try:
        data = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} must be JSON in UTF-8. {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must be a JSON object. Got a {type(data).__name__} instead.")
    if data.get("schema") != schema or data.get("version") != VERSION:
        raise ValueError(
            f"{path} must be {what} ({schema}, version {VERSION}). "
            f"Got {data.get('schema')}, {data.get('version')} instead."
        )
    return data


Rows = tuple[set[tuple[str, str]], list[tuple[int, str]]]  # (page, reader); trials with a word


def _json_rows(path: Path) -> Rows:
    data = _json(path, "choices saved by a page", CHOICES_SCHEMA)
    try:
        rows = [(int(c["trial"]), str(c["choice"])) for c in data["choices"]]
        return {(str(data["page"]), str(data["reader"]).strip())}, rows
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must have page, reader, and choices with trial and choice. One of them is "
            "missing, or a trial is no number."
        ) from error


def _csv_rows(path: Path) -> Rows:
    try:
        reader = csv.DictReader(io.StringIO(read_text(path)))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8. {error}") from error
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    if tuple(reader.fieldnames) != COLUMNS:
        raise ValueError(
            f"{path} must have the columns {', '.join(COLUMNS)}. "
            f"Got {', '.join(reader.fieldnames) or 'none'}."
        )
    rows, of = [], set()
    for row in reader:
        page, who, trial, word = ((row[name] or "").strip() for name in COLUMNS[:4])
        if not trial.isdecimal():
            raise ValueError(
                f"{path} line {reader.line_num} must have a trial's number. Got {trial!r}."
            )
        rows.append((int(trial), word))
        of.add((page, who))
    return of, rows
