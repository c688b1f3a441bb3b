"""A page that asks readers which of two explanations shows better where the disease is, and what
they preferred.

The page is one HTML file that needs no other file and no network: pictures are data URIs, style and
script are named by hash in a Content-Security-Policy. It does not say which method is which: that
stands in the key, a JSON file beside it, which `read` needs and readers should not open. Films, and
the side of each method, are drawn by seed; some films come twice with their sides swapped, to see
whether a reader chooses alike.

A share is of the choices that took a side ("neither" is counted beside it), with the exact
interval of Clopper and Pearson (1934) and the exact two-sided test against ½. Films that came
twice count once, by their first answer. Films read by several readers are no independent evidence,
so readers are not added up: the line "most readers" counts each film once, by the method that more
readers took. Agreement of two readers is over left, right and neither as methods: the share of
films answered alike, and Cohen's κ (1960), which takes off what chance gives.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from comparing import MapSet, common_films, load_all, show
from cxr.cli import to_plain
from cxr.draw import encode_jpeg, overlay_saliency, to_data_uri, to_rgb
from cxr.page import p_value, printable
from cxr.page.build import page_text, to_json
from cxr.rules import require, require_at_least
from cxr.stats import Figure, exact_share, figure_of, in_words, sign_p, weighted_mean, with_draws
from cxr.workdir import console, provenance, read_json, read_text, write_atomic, write_json

QUALITY = 82
QUESTION = "Which picture shows better where the disease is?"
KEY_SCHEMA, CHOICES_SCHEMA, VERSION = "lungfirst.comparison", "lungfirst.choices", 1
WORDS = ("left", "right", "neither")
COLUMNS = ("page", "reader", "trial", "choice", "seconds")
FIRST, SECOND, NEITHER = 0, 1, 2
MOST = "most readers"


@dataclass(frozen=True)
class PageConfig:
    """Make a page on which readers choose between the explanations of two methods.

    Args:
        maps: two files of maps.
        out: the page (.html); its key is written beside it, as .key.json.
        films: films that are asked about, drawn by seed; 0 takes all that both explain.
        repeats: films that come a second time with their sides swapped.
        question: what is asked.
        seed: of films, order and sides.
    """

    maps: tuple[str, ...] = ()
    out: str = "runs/compare.html"
    films: int = 24
    repeats: int = 4
    question: str = QUESTION
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.maps) == 2, "MAPS must be two files", self.maps)
        require_at_least(self, films=0, repeats=0, seed=0)
        require(self.out.endswith(".html"), "--out must end in .html", self.out)

    @property
    def key_path(self) -> Path:
        """Where the key is written."""
        return Path(self.out).with_suffix(".key.json")


class Trial(NamedTuple):
    """One question about a film."""

    number: int  # from 1, the order of asking
    film: str
    left: int  # which method stands there: the first (0) or the second (1)
    repeats: int = 0  # number of the trial that asked about the same film before, 0 for none


def run_page(config: PageConfig) -> int:
    """Write the page and its key; raises ValueError or OSError."""
    sets = load_all(config.maps)
    trials = draw_trials(common_films(sets), config.films, config.repeats, config.seed)
    page_id = identity(sets, trials, config.question)
    write_json(config.key_path, key_of(sets, trials, page_id, config.question))
    write_atomic(config.out, page_html(sets, trials, page_id, config.question))
    said = f"{len(trials)} questions: open {config.out} in a browser. The key, not for readers:"
    console.print(f"{said} {config.key_path}", highlight=False, markup=False)
    return 0


def draw_trials(films: list[str], wanted: int, repeats: int, seed: int) -> list[Trial]:
    """Films in random order, each method left in half of them; repeats come after all others."""
    rng = np.random.default_rng(seed)
    count = min(wanted or len(films), len(films))
    chosen = [films[i] for i in rng.permutation(len(films))[:count]]
    sides = rng.permutation([i % 2 for i in range(count)])
    numbered = enumerate(zip(chosen, sides, strict=True), 1)
    first = [Trial(n, film, int(side)) for n, (film, side) in numbered]
    again = enumerate((first[i] for i in rng.permutation(count)[:repeats]), count + 1)
    return [*first, *(Trial(n, t.film, 1 - t.left, t.number) for n, t in again)]


def identity(sets: list[MapSet], trials: list[Trial], question: str) -> str:
    """Id of a page: the same for the same maps, questions and sides."""
    said = [[s.sha256 for s in sets], [[t.film, t.left, t.repeats] for t in trials], question]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def key_of(sets: list[MapSet], trials: list[Trial], page_id: str, question: str) -> dict[str, Any]:
    """What the page does not say: which method stood where."""
    methods = [{k: getattr(s, k) for k in ("name", "method", "target", "sha256")} for s in sets]
    rows = []
    for t in trials:
        film = sets[0].films[t.film]
        who = {"film": t.film, "patient": film.patient, "label": film.label}
        rows.append({"trial": t.number, **who, "left": t.left, "repeats": t.repeats})
    head = {"schema": KEY_SCHEMA, "version": VERSION, **provenance(), "page": page_id}
    return {**head, "question": question, "methods": methods, "trials": rows}


def page_html(sets: list[MapSet], trials: list[Trial], page_id: str, question: str) -> str:
    """The whole page; every text is escaped, control characters are spelt out."""
    shown = []
    for t in trials:
        film = sets[0].films[t.film]
        sides = (sets[k].films[t.film].plane for k in (t.left, 1 - t.left))
        left, right = (overlay_uri(film.picture, plane) for plane in sides)
        pictures = {"film": _uri(film.picture), "left": left, "right": right}
        shown.append({"trial": t.number, **pictures, "label": printable(film.label)})
    data = to_json({"page": page_id, "trials": shown})
    about = {"question": question, "page": page_id, "trials": len(shown), "data": data}
    return page_text(Path(__file__).with_name("page.html"), **about)


def overlay_uri(picture: np.ndarray, plane: np.ndarray) -> str:
    """A map over the film (H, W), in inferno colours."""
    plane = cv2.resize(plane, picture.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return _uri(overlay_saliency(to_rgb(picture), np.maximum(plane, 0)))


def _uri(image: np.ndarray) -> str:
    return to_data_uri(encode_jpeg(image, QUALITY))


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


def run_read(config: ReadConfig) -> int:
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
    sound = all(t.left in (FIRST, SECOND) and t.repeats in {0, *numbers} for t in trials)
    if len(numbers) < len(trials) or not sound:
        rule = f"{path} must number each trial once, with left 0 or 1"
        raise ValueError(f"{rule}, and repeats the number of another trial, or 0.")
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
        own = f"It is of {page or 'none'}: give the key of that page"
        raise ValueError(f"{path} must be of the page {key.page}. {own}.")
    if not reader:
        raise ValueError(f"{path} must name its reader. It names none.")
    chosen: dict[int, int] = {}
    for number, word in rows:
        if number not in key.trials or word not in WORDS or number in chosen:
            rule = f"{path}: each choice must be of one trial of the page, once, and one of"
            got = f"Got {word!r} for trial {number}"
            raise ValueError(f"{rule} {', '.join(WORDS)}. {got}.")
        side = key.trials[number].left
        chosen[number] = NEITHER if word == "neither" else side if word == "left" else 1 - side
    return Reading(reader, chosen)


def read_all(paths: Sequence[str], key: Key) -> list[Reading]:
    """All readers' files; raises ValueError for none, or for a reader with two files."""
    if not paths:
        got = "Got none: readers save them on the page"
        raise ValueError(f"CHOICES must be one file or more. {got}.")
    found = [read_choices(path, key) for path in paths]
    files = Counter(r.reader for r in found)
    if twice := sorted(reader for reader, times in files.items() if times > 1):
        has = f"{twice[0]!r} has {files[twice[0]]}: give the last one alone"
        raise ValueError(f"CHOICES must hold one file a reader. {has}.")
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
        got = ", ".join(reader.fieldnames) or "none"
        raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}. Got {got}.")
    rows, of = [], set()
    for row in reader:
        page, who, trial, word = ((row[name] or "").strip() for name in COLUMNS[:4])
        if not trial.isdecimal():
            where = f"{path} line {reader.line_num}"
            raise ValueError(f"{where} must have a trial's number. Got {trial!r}.")
        rows.append((int(trial), word))
        of.add((page, who))
    return of, rows
