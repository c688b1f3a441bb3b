"""What films.csv says of each film, as the pictures and the probe group it; and one pass over the
films, in which each is read once and little of it is kept.

Kept of a film are its size and 8×8 thumbnails; of a class the running sums of its letterboxed
films and the small pictures of its grid. So memory hardly grows with the number of films.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from classify.evaluate import SHORTCUTS, film_shortcuts
from cxr.boxes import Frame, Xyxy, area_xyxy, as_xyxy, clip_xyxy, scale_xyxy, union_xyxy
from cxr.coco import read_counted
from cxr.data_folders import Data, DataFolders
from cxr.films_table import (
    FilmNames,
    FilmRow,
    label_word,
    read_films_table,
    table_rows,
    tell_unknown,
    why_unknown,
)
from cxr.manifest import read_manifest
from cxr.page import printable
from cxr.page.build import Table, picture_uri
from cxr.public_sets.records import sex_of, years_of
from cxr.stream import Unread, default_jobs, read_ahead
from cxr.workdir import console

NOT_STATED = "not stated"
BANDS = ("under 18", "18–39", "40–59", "60–79", "80 and over", NOT_STATED)
_CHILD = re.compile(r"p(a?)ed|child|infant|neonat|newborn", re.IGNORECASE)
SIDE, GRID, SPARE, TILE = 256, 24, 6, 128  # px, films, films, px
SMALLEST_SHOWN, MOST_SHOWN = 12, 24  # films of a class with pictures; such classes
FILM, OUTSIDE, NUMBERS, CROP = SHORTCUTS
ASPECT = "aspect ratio"
FEATURES = {FILM: 65, OUTSIDE: 65, NUMBERS: 5, ASPECT: 1, CROP: 64}  # shortcuts: numbers of a film
OTHER_SHAPE = "the film has another shape than its box says"


@dataclass(frozen=True, order=True)
class FilmClass:
    """Films of one source with one label; `kind` parts a label further (bacterial, viral)."""

    source: str
    label: str
    kind: str = ""

    @property
    def name(self) -> str:
        """As a person would call it: kermany · bacterial."""
        return f"{self.source} · {self.kind or self.label or 'no label'}"


@dataclass(frozen=True)
class Entry:
    """One film of the table; `age` is one of BANDS, `original_wh` its size before it was scaled,
    where stated; `is_known`: its label says what it is."""

    row: FilmRow
    kind: str
    age: str
    sex: str
    original_wh: tuple[int, int] | None
    is_known: bool = True

    @property
    def film_class(self) -> FilmClass:
        """The finest class that the film is shown with."""
        return FilmClass(self.row.source, self.row.label, self.kind)


def read_entries(data: Data, smallest: int = 30, known: Sequence[str] = ()) -> list[Entry]:
    """Films of the films.csv of one folder or several; a sublabel parts its label where at least
    two sublabels of one source have `smallest` films each; `known` are labels beside the usual
    ones. Raises ValueError or OSError for a table that cannot be used."""
    data = DataFolders(data)
    tables = [(own, _with_extras(path)) for path, own in data.tables().items()]
    listed, path = data.join(tables, lambda pair: pair[0].image), data.named("films.csv")
    rows = [_printable(row) for row, _ in listed]
    if not rows:
        raise ValueError(f"{path} must list at least one film. Got none.")
    tell_unknown(rows, path, known)
    kinds = _kinds(rows, smallest)
    return [
        Entry(
            row,
            kind,
            age_band(more.get("age", "")),
            sex_of(more.get("sex", "")) or NOT_STATED,
            _original(more),
            not why_unknown(row, known),
        )
        for row, (_, more), kind in zip(rows, listed, kinds, strict=True)
    ]


def _with_extras(path: Path) -> list[tuple[FilmRow, dict[str, str]]]:
    """The films of a table, each with all its cells."""
    return list(zip(read_films_table(path), (c for _, c in table_rows(path, ())), strict=True))


def unknown_labels(entries: Sequence[Entry]) -> dict[str, int]:
    """Labels that do not say what a film is, with their numbers of films."""
    unknown = Counter(e.row.label or "no label" for e in entries if not e.is_known)
    return dict(unknown.most_common())


def age_band(age: str) -> str:
    """One of BANDS for an age in words or DICOM's form (058Y, 008M), or a number of years."""
    if years := years_of(age):
        return BANDS[sum(int(years) >= edge for edge in (18, 40, 60, 80))]
    return BANDS[0] if _CHILD.search(age) else NOT_STATED


def ordered_classes(entries: Sequence[Entry]) -> list[tuple[FilmClass, int]]:
    """Every class with its number of films: large sources first, and normal first in a source."""
    counts = Counter(e.film_class for e in entries)
    of_source = Counter(e.row.source for e in entries)

    def order(item: tuple[FilmClass, int]) -> tuple[Any, ...]:
        found, films = item
        return -of_source[found.source], found.source, found.label != "normal", -films, found

    return sorted(counts.items(), key=order)


def _printable(row: FilmRow) -> FilmRow:
    """The row with control and direction characters spelt out in what a page shows of it."""
    names = ("source", "label", "sublabel", "licence", "view")
    return replace(row, **{name: printable(getattr(row, name)) for name in names})


def _kinds(rows: Sequence[FilmRow], smallest: int) -> list[str]:
    """The part of a label that each film belongs to, "" where its label is not parted."""
    named = [_kind(row) for row in rows]
    counts = Counter((r.source, r.label, k) for r, k in zip(rows, named, strict=True) if k)
    large: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (source, label, kind), films in counts.items():
        if films >= smallest:
            large[source, label].add(kind)
    parted = {key: kinds for key, kinds in large.items() if len(kinds) > 1}
    return [
        kind if kind in parted.get((row.source, row.label), ()) else ""
        for row, kind in zip(rows, named, strict=True)
    ]


def _kind(row: FilmRow) -> str:
    """bacterial of bacterial/Klebsiella; nothing of a list of findings (A|B)."""
    if "|" in row.sublabel:
        return ""
    first = re.split(r"[/,;]", row.sublabel)[0].strip()
    return "" if label_word(first) == row.label else label_word(first)


def _original(more: dict[str, str]) -> tuple[int, int] | None:
    """Width and height in px; None where the table does not say."""
    try:
        width, height = (int(float(more.get(f"orig_{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def count_groups(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row for each source, label and age band that has films."""
    rows = []
    for (source, label), every in _by_label(entries).items():
        for band in BANDS:
            if own := [e for e in every if e.age == band]:
                known = {"source": source, "label": label, "age": band, "films": len(own)}
                patients = len({e.row.patient_id for e in own})
                rows.append({**known, "patients": patients, **_terms(own)})
    return rows


def age_table(entries: Sequence[Entry]) -> Table:
    """Rows of source and label against age bands; a cell is films and, in brackets, patients."""
    bands = [band for band in BANDS if any(e.age == band for e in entries)]

    def row(source: str, label: str, own: Sequence[Entry]) -> tuple[str, ...]:
        cells = (_cell([e for e in own if e.age == band]) for band in bands)
        return source, label, _cell(own), *cells

    rows = [row(s, label or "no label", own) for (s, label), own in _by_label(entries).items()]
    head = ("Source", "Label", "All ages", *bands)
    return Table(head, [*rows, row("all", "", entries)], 2)


def terms_table(entries: Sequence[Entry]) -> Table:
    """Rows of source and label with sexes, views and licences, each with its number of films."""
    rows = [
        (source, label or "no label", *(_words(_terms(own)[what]) for what in _TERMS))
        for (source, label), own in _by_label(entries).items()
    ]
    return Table(("Source", "Label", "Sex", "View", "Licence as stated"), rows, 5)


def _by_label(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.row.source, entry.row.label].append(entry)
    return dict(sorted(groups.items(), key=lambda i: (i[0][0], i[0][1] != "normal", i[0][1])))


_TERMS = ("sexes", "views", "licences")


def _terms(own: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Licences, views and sexes with their numbers of films, the most frequent first."""
    stated = {
        "licences": Counter(e.row.licence or NOT_STATED for e in own),
        "views": Counter(e.row.view or NOT_STATED for e in own),
        "sexes": Counter(e.sex for e in own),
    }
    return {what: dict(found.most_common()) for what, found in stated.items()}


def _words(counts: dict[str, int]) -> str:
    shown = [f"{name} {n:,}" for name, n in list(counts.items())[:6]]
    return ", ".join(shown) + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


def _cell(own: Sequence[Entry]) -> str:
    return f"{len(own):,} ({len({e.row.patient_id for e in own}):,})" if own else "–"


@dataclass(frozen=True)
class Box:
    """A box (4,) xyxy on a film of `size_hw`."""

    xyxy: Xyxy
    size_hw: tuple[int, int]

    def on(self, size_hw: tuple[int, int]) -> np.ndarray | None:
        """The box (4,) on the film's copy of that size; None where the copy has another shape, or
        the box no area on it."""
        try:
            box = clip_xyxy(scale_xyxy(self.xyxy, self.size_hw, size_hw), size_hw)
        except ValueError:
            return None
        return box[0] if np.isfinite(box).all() and area_xyxy(box)[0] >= 1 else None


def coco_boxes(paths: Iterable[Path], images: Sequence[str]) -> dict[str, Box]:
    """Image of the table → the union of its boxes; raises ValueError for a file with faults."""
    films = (f for path in paths for f in read_counted(path) if len(f.boxes_xyxy))
    boxes = {f.file_name: Box(as_xyxy(union_xyxy(f.boxes_xyxy)), f.size_hw) for f in films}
    return _matched(boxes, images)


def crop_boxes(folder: str | Path, images: Sequence[str]) -> dict[str, Box]:
    """Image of the table → its box in the manifest of detect.crop. Raises ValueError."""
    boxes = {
        row.film: Box(as_xyxy(np.asarray(row.thorax_xyxy)), row.size_hw)
        if row.thorax_xyxy is not None and row.size_hw is not None
        else None
        for row in read_manifest(folder)[1]
    }
    return _matched(boxes, images)


def _matched(boxes: Mapping[str, Box | None], images: Sequence[str]) -> dict[str, Box]:
    """Image → its box, by the end of its path; films that cannot be told apart get none."""
    names = FilmNames(boxes, images)
    found = {image: boxes.get(names.find(image) or "") for image in images}
    return {image: box for image, box in found.items() if box is not None}


@dataclass
class Moments:
    """Mean and variance of pictures of one size, from their running sums."""

    n: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros((SIDE, SIDE)))
    squares: np.ndarray = field(default_factory=lambda: np.zeros((SIDE, SIDE)))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @classmethod
    def of(cls, picture: np.ndarray) -> Moments:
        """Of one picture (H, W)."""
        wide = picture.astype(np.float64)
        return cls(1, wide, wide * wide)

    @property
    def mean(self) -> np.ndarray:
        """(H, W) mean; zeros without pictures."""
        return self.total / max(1, self.n)

    @property
    def variance(self) -> np.ndarray:
        """(H, W) variance over the pictures, divided by their number."""
        return np.maximum(self.squares / max(1, self.n) - self.mean**2, 0)


@dataclass
class Gathered:
    """What one pass over N films left."""

    entries: Sequence[Entry]
    sizes_wh: np.ndarray  # (N, 2) px, the original's where stated; 0 for unread films
    features: dict[str, np.ndarray]  # of each shortcut (N, F) float32, NaN where a film has none
    moments: dict[FilmClass, Moments]  # over the letterboxed films of a class
    grids: dict[FilmClass, list[tuple[int, str]]]  # number of a film, its small picture's data URI
    # image, reason code and sentence of films that could not be read
    unread: list[tuple[str, str, str]] = field(default_factory=list)
    box_faults: Counter[str] = field(default_factory=Counter)  # why films have no box features
    noted: list[tuple[str, ...]] = field(default_factory=list)  # the notes of each film read

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool: was the film read?"""
        return self.sizes_wh[:, 0] > 0


def gather(
    entries: Sequence[Entry],
    data: DataFolders,
    boxes: Mapping[str, Box],
    seed: int = 0,
    jobs: int | None = None,
) -> Gathered:
    """Read every film once, in order; a film that cannot be read is counted with its reason."""
    classes, n = ordered_classes(entries), len(entries)
    shown = [c for c, films in classes if films >= SMALLEST_SHOWN] or [c for c, _ in classes]
    shown = shown[:MOST_SHOWN]
    out = Gathered(
        entries,
        np.zeros((n, 2), np.int64),
        {name: np.full((n, width), np.nan, np.float32) for name, width in FEATURES.items()},
        {c: Moments() for c in shown},
        {c: [] for c in shown},
    )
    for_grid = choose_for_grid(entries, shown, seed)
    workers = default_jobs(n) if jobs is None else jobs
    films = read_ahead((data / e.row.image for e in entries), workers)
    steps = track(films, "reading films", n, console=console, transient=True)
    for number, (entry, (_, film)) in enumerate(zip(entries, steps, strict=True)):
        if isinstance(film, Unread):
            out.unread.append((entry.row.image, film.reason, film.sentence))
        else:
            out.noted.append(film.notes)
            _take(out, number, film.pixels, boxes.get(entry.row.image), number in for_grid)
    for film_class, pictures in out.grids.items():
        order = [i for i, c in for_grid.items() if c == film_class]
        out.grids[film_class] = sorted(pictures, key=lambda p: order.index(p[0]))[:GRID]
    return out


def choose_for_grid(
    entries: Sequence[Entry], classes: Sequence[FilmClass], seed: int, films: int = GRID + SPARE
) -> dict[int, FilmClass]:
    """Film numbers, in the order they are wanted: patients of each class drawn by seed, and one
    film of each. A few more than are shown, for those that cannot be read."""
    by_patient: dict[FilmClass, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, entry in enumerate(entries):
        by_patient[entry.film_class][entry.row.patient_id].append(number)
    chosen = {}
    for film_class in classes:
        # of its own seed: another class in the table changes nothing here
        rng = np.random.default_rng([seed, zlib.crc32(repr(film_class).encode())])
        patients = sorted(by_patient[film_class])
        for at in rng.permutation(len(patients))[:films]:
            own = by_patient[film_class][patients[at]]
            chosen[own[int(rng.integers(len(own)))]] = film_class
    return chosen


def film_features(pixels: np.ndarray, box_xyxy: np.ndarray | None) -> dict[str, np.ndarray]:
    """The FEATURES of a film (H, W), in their order; without a box only what needs none."""
    height, width = pixels.shape
    box = (0.0, 0.0, float(width), float(height)) if box_xyxy is None else box_xyxy.tolist()
    found = dict(zip(SHORTCUTS, film_shortcuts(pixels, box), strict=True))
    found[ASPECT] = np.array([height / width])
    return {name: found[name] for name in ((FILM, ASPECT) if box_xyxy is None else FEATURES)}


def letterboxed(pixels: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) the film with its aspect ratio kept, in the middle of black."""
    height, width = pixels.shape
    return Frame.letterbox((height, width), SIDE, centre=True).apply(pixels)


def _take(out: Gathered, number: int, pixels: np.ndarray, box: Box | None, for_grid: bool) -> None:
    entry = out.entries[number]
    height, width = pixels.shape
    out.sizes_wh[number] = entry.original_wh or (width, height)
    place = box.on((height, width)) if box else None
    if place is None:
        out.box_faults[OTHER_SHAPE if box else "no box"] += 1
    for name, values in film_features(pixels, place).items():
        out.features[name][number] = values
    if entry.film_class in out.moments:
        out.moments[entry.film_class] += Moments.of(letterboxed(pixels))
    if for_grid:
        out.grids[entry.film_class].append((number, picture_uri(pixels, TILE)))
