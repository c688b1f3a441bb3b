"""Two sets of boxes: read from a session, a COCO file or a CSV, matched by film, and measured.

A reader is one hand with one box a film. Boxes are xyxy in pixels of a picture of `size_hw`, which
a CSV seldom knows.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from cxr.boxes import Xyxy, as_xyxy, iou_xyxy
from cxr.coco import marks_in, read_counted
from cxr.films_table import film_stem
from cxr.rules import require
from cxr.stats import Interval, bootstrap_mean, bootstrap_quantiles
from cxr.workdir import read_text
from detect.metrics import NAN4
from labelling import Session

FILM_COLUMNS = ("image", "film", "file_name")
CORNERS = ("x0", "y0", "x1", "y1")
XYWH = ("x", "y", "w", "h")
Z95 = 1.96  # as Bland and Altman have it
BOTH, A_ONLY, B_ONLY = "box / box", "box / no box", "no box / box"
NEITHER, UNLIKE = "no box / no box", "other shape"
_COLUMNS = "image, x, y, w, h (or x0, y0, x1, y1) and, where there are several, reader"


@dataclass(frozen=True)
class Mark:
    """What one reader says of one film, by the name that the set has for it."""

    film: str
    xyxy: Xyxy | None  # in pixels of a picture of `size_hw`; None says that the film has no box
    size_hw: tuple[int, int] | None = None  # where the set says it
    patient_id: str = ""
    source: str = ""
    path: Path | None = None  # the film's file where the set knows it (sessions do)


@dataclass(frozen=True)
class Side:
    """A or B: where it was read from, the marks of each reader, and what must be known about it."""

    path: Path
    readers: dict[str, Sequence[Mark]]
    notes: tuple[str, ...] = ()

    @property
    def films(self) -> list[str]:
        """Each film that any reader marked, once."""
        return list(dict.fromkeys(m.film for marks in self.readers.values() for m in marks))


@dataclass(frozen=True)
class Pair:
    """One film, marked by a reader of A and by one of B."""

    a: Mark
    b: Mark
    reader: str  # of B, or of both where A has several
    hands: tuple[str, str]  # the readers of A and of B
    verdict: str  # BOTH, A_ONLY, B_ONLY, NEITHER or UNLIKE (pictures of different shapes)
    a_xyxy: Xyxy | None = None  # both boxes in pixels of A's picture
    b_xyxy: Xyxy | None = None
    size_hw: tuple[int, int] | None = None  # of A's picture, where anybody knows it

    @property
    def film(self) -> str:
        """Its name in A."""
        return self.a.film

    @property
    def source(self) -> str:
        return self.a.source or self.b.source

    @property
    def patient(self) -> str:
        return self.a.patient_id or self.b.patient_id or self.film

    @cached_property
    def iou(self) -> float:
        """NaN unless both have a box."""
        if self.verdict != BOTH:
            return math.nan
        return float(iou_xyxy(self.a_xyxy, self.b_xyxy)[0, 0])

    @property
    def edges_px(self) -> Xyxy:
        """B − A for left, top, right, bottom."""
        return as_xyxy(np.subtract(self.b_xyxy or NAN4, self.a_xyxy or NAN4))

    @property
    def edges_pct(self) -> Xyxy:
        """The same in % of the width (left, right) or height (top, bottom) of A's box."""
        x0, y0, x1, y1 = self.a_xyxy or NAN4
        return as_xyxy(100 * np.array(self.edges_px) / ([x1 - x0, y1 - y0] * 2))


@dataclass(frozen=True)
class Comparison:
    """A against B. `names` is how films were matched: path or stem."""

    a: Side
    b: Side
    names: str
    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]


# Reading


def read_sides(paths: Sequence[str], reader: str = "") -> tuple[Side, Side]:
    """A and B; `reader` keeps that hand only wherever a CSV has it.
    Raises FileNotFoundError, ValueError with a sentence that names file, film and fix."""
    sides = [read_side(path) for path in paths]
    if not reader:
        return sides[0], sides[1]
    known = {name for s in sides if s.path.suffix.lower() == ".csv" for name in s.readers}
    rule = f"--reader must be a reader of a CSV ({', '.join(sorted(known)) or 'none is given'})"
    require(reader in known, rule, reader)
    kept = [{reader: s.readers[reader]} if reader in s.readers else s.readers for s in sides]
    a, b = (replace(s, readers=own) for s, own in zip(sides, kept, strict=True))
    return a, b


def read_side(path: str | Path) -> Side:
    """A session's folder, a COCO JSON or a CSV, told apart by what they are."""
    path = Path(path)
    if path.is_dir():
        return _read_session(path)
    kinds = "a session's folder, a COCO file named .json or a table named .csv"
    if not path.exists():
        raise FileNotFoundError(f"A and B must be {kinds}. Got '{path}', which does not exist.")
    readers = {".csv": _read_csv, ".json": _read_coco}
    require(path.suffix.lower() in readers, f"A and B must be {kinds}", str(path))
    return readers[path.suffix.lower()](path)


def _read_session(path: Path) -> Side:
    session = Session.open(path)
    marks, faulty, notes, shown = [], [], [], 0
    for film, answer in session.answers():
        if answer.fault and answer.state != "unreadable":
            faulty.append(film.film)
        if answer.done:
            boxes = [b.xyxy for b in answer.human] if answer.box else []
            fix = "Delete the wrong one (`python tools/annotate.py check` lists them)."
            box, where = _only_box(path, film.film, boxes, fix), session.film_path(film)
            marks.append(Mark(film.film, box, film.size_hw, film.patient_id, film.source, where))
            shown += answer.state == "accepted" and film.prelabel_xyxy is not None
    if not marks:
        fix = "go on with `python tools/annotate.py start`"
        raise ValueError(f"'{path}' has no film done yet; {fix}.")
    if faulty:
        notes.append(
            f"{len(faulty)} label files of '{path}' cannot be used, the first of film "
            f"{faulty[0]}: see `python tools/annotate.py check`."
        )
    if shown:
        notes.append(
            f"{shown} of the {len(marks)} answers of '{path}' are the detector's box, "
            "accepted as drawn: two readers shown the same box agree more."
        )
    return Side(path, {session.annotator or path.name: marks}, tuple(notes))


def _only_box(path: Path, film: str, boxes: Sequence[Iterable[float]], fix: str) -> Xyxy | None:
    if len(boxes) > 1:
        what = f"'{path}' has {len(boxes)} boxes on film {film}"
        raise ValueError(f"{what}; agree compares one box a film. {fix}")
    return as_xyxy(boxes[0]) if len(boxes) else None


def _read_coco(path: Path) -> Side:
    marks = []
    for film in read_counted(path):
        name = film.file_name
        box = _only_box(path, name, film.boxes_xyxy.tolist(), "Delete the wrong one.")
        patient, source = (str(film.extra.get(k) or "") for k in ("patient_id", "source"))
        marks.append(Mark(name, box, film.size_hw, patient, source))
    return Side(path, {path.stem: marks})


def _read_csv(path: Path) -> Side:
    marks: dict[str, list[Mark]] = defaultdict(list)
    lines: dict[tuple[str, str], int] = {}
    try:
        text = read_text(path)
        sign = max(",;\t", key=text.partition("\n")[0].count)
        table = csv.DictReader(io.StringIO(text), restval="", delimiter=sign, skipinitialspace=True)
        head = table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
        film_column = next((c for c in FILM_COLUMNS if c in head), "")
        kind = next((k for k in (CORNERS, XYWH) if set(k) <= set(head)), ())
        if not film_column or not kind:
            rule = f"'{path}' must have the columns {_COLUMNS}"
            raise ValueError(f"{rule}. Got {', '.join(head) or 'none'}.")
        rows = [(table.line_num, row) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' must be a CSV in UTF-8. {error}") from error
    for number, row in rows:
        where = f"'{path}' line {number}"
        cells = {key: value.strip() for key, value in row.items() if key is not None}
        if marks_in(cells):  # not to be counted
            continue
        film, name = cells[film_column], cells.get("reader") or path.stem
        if not film:
            raise ValueError(f"{where}: {film_column} must name a film. Got nothing.")
        first = lines.setdefault((name, film), number)
        if first != number:
            raise ValueError(
                f"'{path}' has two boxes by {name} on film {film} (lines {first} and {number}); "
                "agree compares one box a film. Delete the wrong row, or name the readers in a "
                "column reader."
            )
        marks[name].append(_read_row(f"{where} ({film})", film, cells, kind))
    if not marks:
        raise ValueError(f"'{path}' must have a row for each film. Got none.")
    return Side(path, dict(marks))


def _read_row(where: str, film: str, cells: dict[str, str], kind: Sequence[str]) -> Mark:
    box, size_hw = None, None
    texts = [cells[c] for c in kind]
    if any(texts):  # all empty: a film without a box
        x, y, *ends = _numbers(texts)
        x1, y1 = ends if kind == CORNERS else (x + ends[0], y + ends[1])
        box = x, y, x1, y1
        rule = f"{', '.join(kind)} must be four numbers, or all empty for a film without a box"
        if not all(map(math.isfinite, box)):
            raise ValueError(f"{where}: {rule}. Got {', '.join(map(repr, texts))}.")
        if x1 <= x or y1 <= y:
            rule = "the box must have a width and a height above 0"
            raise ValueError(f"{where}: {rule}. Got {', '.join(texts)}.")
    sides = [cells.get("height", ""), cells.get("width", "")]
    if any(sides):
        height, width = _numbers(sides)
        if not (1 <= height < math.inf and 1 <= width < math.inf):
            rule = "width and height must be the film's size in whole pixels"
            raise ValueError(f"{where}: {rule}. Got '{sides[1]}' and '{sides[0]}'.")
        size_hw = int(height), int(width)
    patient = cells.get("patient_id") or cells.get("patient", "")
    return Mark(film, box, size_hw, patient, cells.get("source", ""))


def _numbers(texts: Sequence[str]) -> list[float]:
    """NaN for each of them where one is no number."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return [math.nan] * len(texts)


# Matching


def film_key(name: str, names: str) -> str:
    """What a film is matched by. A Mac writes accents in two characters, Windows paths with \\."""
    if names == "stem":
        return film_stem(name)
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def compare(a: Side, b: Side, names: str = "path") -> Comparison:
    """Pair every reader of A with every one of B; one CSV given twice: its readers in twos. Without
    a match by path, films are matched by stem, and a note says so.
    Raises ValueError where there is nothing to compare, or a name that could be two films."""
    same = a.path.resolve() == b.path.resolve()
    twos = list(combinations(a.readers, 2) if same else product(a.readers, b.readers))
    if not twos:
        rule = "A and B must differ, or be a CSV with two readers"
        raise ValueError(f"{rule}. Got '{a.path}' twice, with the reader {next(iter(a.readers))}.")
    notes = [*a.notes, *(() if same else b.notes)]
    by_path, by_stem = (
        len({film_key(f, n) for f in a.films} & {film_key(f, n) for f in b.films})
        for n in ("path", "stem")
    )
    if names == "path" and not by_path and by_stem:
        names, what = "stem", "No film of A has the path of one of B; matched by stem"
        notes.append(f"{what}, the file's name without folder and suffix.")
    elif names == "path" and by_stem > by_path:
        more = f"{by_stem - by_path} more films would match by their names alone"
        notes.append(f"{more}: --names stem.")
    pairs = [pair for hands in twos for pair in _pair_readers(hands, names, a, b)]
    if not pairs:
        raise ValueError(
            f"A and B must have a film in common. '{a.path}' has {len(a.films)} films such as "
            f"{a.films[0]}, '{b.path}' has {len(b.films)} such as {b.films[0]}; none matches by "
            f"{names}."
        )
    done = {film_key(p.film, names) for p in pairs}
    only_a, only_b = (
        tuple(f for f in side.films if film_key(f, names) not in done) for side in (a, b)
    )
    return Comparison(a, b, names, tuple(pairs), only_a, () if same else only_b, tuple(notes))


def _pair_readers(hands: tuple[str, str], names: str, a: Side, b: Side) -> Iterator[Pair]:
    reader = hands[1] if len(a.readers) == 1 else " / ".join(hands)
    own, other = defaultdict[str, list[Mark]](list), defaultdict[str, list[Mark]](list)
    for index, side, hand in zip((own, other), (a, b), hands, strict=True):
        for mark in side.readers[hand]:
            index[film_key(mark.film, names)].append(mark)
    for key in [key for key in own if key in other]:
        for marks, side in ((own[key], a), (other[key], b)):
            if len(marks) > 1:
                raise ValueError(
                    f"'{side.path}' has two films that match by {names} as {key}: {marks[0].film} "
                    f"and {marks[1].film}. Rename one of them, or make the paths in A and B alike."
                )
        yield _pair(own[key][0], other[key][0], reader, hands)


def _pair(a: Mark, b: Mark, reader: str, hands: tuple[str, str]) -> Pair:
    size_a, size_b = a.size_hw or b.size_hw, b.size_hw or a.size_hw
    if size_a and size_b:
        (ha, wa), (hb, wb) = size_a, size_b
        # half a pixel of rounding on either shorter side, and 2 % for careless resizing
        slack = max(0.02, 1 / min(size_a), 1 / min(size_b))
        if abs(wa * hb / (ha * wb) - 1) > slack:
            return Pair(a, b, reader, hands, UNLIKE)
    if size_a and (a.size_hw is None) != (b.size_hw is None):  # else nothing to check it by
        _check_inside(a if a.size_hw is None else b, size_a)
    other = b.xyxy
    if other is not None and size_a and size_b:
        scale = [size_a[1] / size_b[1], size_a[0] / size_b[0]] * 2
        other = as_xyxy(np.multiply(other, scale))
    verdicts = ((NEITHER, B_ONLY), (A_ONLY, BOTH))
    verdict = verdicts[a.xyxy is not None][other is not None]
    return Pair(a, b, reader, hands, verdict, a.xyxy, other, size_a)


def _check_inside(mark: Mark, size_hw: tuple[int, int]) -> None:
    """A box without a size that leaves the other's film was drawn on another size of it."""
    height, width = size_hw
    x0, y0, x1, y1 = mark.xyxy or (0, 0, 0, 0)
    slack_x, slack_y = max(2.0, 0.01 * width), max(2.0, 0.01 * height)
    if x0 < -slack_x or y0 < -slack_y or x1 > width + slack_x or y1 > height + slack_y:
        raise ValueError(
            f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} of the CSV reaches out of film {mark.film} of "
            f"{width} × {height} px. If it was drawn on the film in another size, add the columns "
            "width and height with that size."
        )


# Measures


@dataclass(frozen=True)
class Limits:
    """Mean difference B − A, its standard deviation, and the 95 % limits of agreement."""

    bias: float
    sd: float  # NaN for fewer than two pairs, and so are the limits
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """All pairs of a block. IoU and edges are over pairs with two boxes."""

    pairs: int  # with two boxes; films and patients are counted among these
    films: int
    patients: int
    mean_iou: Interval
    median_iou: Interval
    p5_iou: Interval
    share_90: Interval  # of pairs with an IoU of at least 0.9
    share_95: Interval
    edges_px: tuple[Limits, ...]  # left, top, right, bottom
    edges_pct: tuple[Limits, ...]
    a_only: int  # pairs where the other says "no box"
    b_only: int
    neither: int  # pairs where both say so
    unlike: int  # pairs whose two pictures differ in shape and were not compared


Blocks = dict[str, Agreement]


def limits(differences: Any) -> Limits:
    """Bias and limits of agreement of (N,) differences; the SD has N − 1 below."""
    x = np.asarray(differences, dtype=np.float64)
    bias = float(x.mean()) if len(x) else math.nan
    sd = float(x.std(ddof=1)) if len(x) > 1 else math.nan
    return Limits(bias, sd, bias - Z95 * sd, bias + Z95 * sd)


def measure(pairs: Sequence[Pair], seed: int = 0) -> Agreement:
    """One Agreement of these pairs; NaN where there is nothing to measure."""
    both = [p for p in pairs if p.verdict == BOTH]
    iou = np.array([p.iou for p in both], dtype=np.float64)
    patients = [p.patient for p in both]

    def mean(values: np.ndarray) -> Interval:
        return bootstrap_mean(values, patients, seed=seed)

    def edges(name: str) -> tuple[Limits, ...]:
        values = np.array([getattr(p, name) for p in both], dtype=np.float64).reshape(-1, 4)
        return tuple(map(limits, values.T))

    verdicts = Counter(p.verdict for p in pairs)
    median, p5 = bootstrap_quantiles(iou, patients, (0.5, 0.05), seed=seed)
    # 1e-9: boxes that meet at exactly 0.9 must not fail by rounding
    share_90, share_95 = (mean((iou >= least - 1e-9).astype(float)) for least in (0.9, 0.95))
    counts = (len(both), len({p.film for p in both}), len(set(patients)))
    found = (mean(iou), median, p5, share_90, share_95)
    left = (verdicts[verdict] for verdict in (A_ONLY, B_ONLY, NEITHER, UNLIKE))
    return Agreement(*counts, *found, edges("edges_px"), edges("edges_pct"), *left)


def measure_blocks(pairs: Sequence[Pair], seed: int = 0) -> Blocks:
    """All pairs; then each reader and each source where there are several of them."""
    blocks = {"all": measure(pairs, seed)}
    for word in ("reader", "source"):
        names = list(dict.fromkeys(getattr(p, word) for p in pairs if getattr(p, word)))
        for name in names if len(names) > 1 else ():
            own = [p for p in pairs if getattr(p, word) == name]
            blocks[f"{word} {name}"] = measure(own, seed)
    return blocks
