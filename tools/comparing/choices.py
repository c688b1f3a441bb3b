"""Readers' files and the key of a page, checked: which method each reader took for each film."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparing.page import KEY_SCHEMA, VERSION, Trial

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
    """One reader's choices: trial → FIRST, SECOND or NEITHER, and the trials answered "left"."""

    reader: str
    chosen: dict[int, int]
    left: frozenset[int] = frozenset()


def read_key(path: str | Path) -> Key:
    """A page's key; raises OSError, or ValueError naming what is wrong."""
    data = _json(path)
    if data.get("schema") != KEY_SCHEMA or data.get("version") != VERSION:
        raise ValueError(
            f"{path} must be the key of a page ({KEY_SCHEMA}, version {VERSION}). "
            f"Got {data.get('schema')}, {data.get('version')} instead."
        )
    try:
        first, second = (str(m["name"]) for m in data["methods"])
        trials = [
            Trial(int(t["trial"]), str(t["film"]), int(t["left"]), int(t["repeats"]))
            for t in data["trials"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must list two methods, and trials with trial, film, left and "
            f"repeats. {error!r}"
        ) from error
    numbers = {t.number for t in trials}
    if len(numbers) < len(trials) or any(
        t.left not in (FIRST, SECOND) or (t.repeats and t.repeats not in numbers) for t in trials
    ):
        raise ValueError(
            f"{path} must number each trial once, with left 0 or 1, and repeats the "
            "number of another trial, or 0."
        )
    return Key(str(data["page"]), (first, second), {t.number: t for t in trials})


def read_choices(path: str | Path, key: Key) -> Reading:
    """A reader's .json or .csv file; raises OSError, or ValueError for another page's file, an
    unknown trial or word, or a trial that stands there twice."""
    path = Path(path)
    page, reader, rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    if page != key.page:
        raise ValueError(
            f"{path} must be of the page {key.page}. It is of {page or 'none'}: give "
            "the key of that page."
        )
    if not reader:
        raise ValueError(f"{path} must name its reader. It names none.")
    chosen: dict[int, int] = {}
    left = set()
    for number, word in rows:
        if number not in key.trials or word not in WORDS or number in chosen:
            raise ValueError(
                f"{path}: each choice must be of one trial of the page, once, and "
                f"one of {', '.join(WORDS)}. Got {word!r} for trial "
                f"{number}."
            )
        side = key.trials[number].left
        chosen[number] = NEITHER if word == "neither" else side if word == "left" else 1 - side
        if word == "left":
            left.add(number)
    return Reading(reader, chosen, frozenset(left))


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


def _json(path: str | Path) -> Mapping[str, Any]:
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON in UTF-8. {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must be a JSON object. Got a {type(data).__name__} instead.")
    return data


def _json_rows(path: Path) -> tuple[str, str, list[tuple[int, str]]]:
    data = _json(path)
    if data.get("schema") != CHOICES_SCHEMA or data.get("version") != VERSION:
        got = f"{data.get('schema')}, {data.get('version')}"
        raise ValueError(
            f"{path} must be choices saved by a page ({CHOICES_SCHEMA}, version "
            f"{VERSION}). Got {got} instead."
        )
    try:
        rows = [(int(c["trial"]), str(c["choice"])) for c in data["choices"]]
        return str(data["page"]), str(data["reader"]).strip(), rows
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must have page, reader, and choices with trial and choice. {error!r}"
        ) from error


def _csv_rows(path: Path) -> tuple[str, str, list[tuple[int, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # a spreadsheet may have put a mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8. {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(
            f"{path} must have the columns {', '.join(COLUMNS)}. "
            f"Got {', '.join(reader.fieldnames or ()) or 'none'}."
        )
    rows, who = [], set()
    for row in reader:
        try:
            rows.append((int(row["trial"]), row["choice"]))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} line {reader.line_num} must have a trial's number. Got {row['trial']!r}."
            ) from error
        who.add((row["page"], (row["reader"] or "").strip()))
    if len(who) != 1:
        raise ValueError(f"{path} must be of one page and one reader. Got {len(who)} of them.")
    page, name = who.pop()
    return page, name, rows
