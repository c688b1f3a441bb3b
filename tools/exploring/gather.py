"""One pass over the films: each is read once, and little of it is kept.

Kept of a film are its size and 8×8 thumbnails; of a class the running sums of its letterboxed
films and the small pictures of its grid. So memory hardly grows with the number of films.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.progress import track

from classify.evaluate import SHORTCUTS, film_shortcuts
from cxr.boxes import Frame
from cxr.data_folders import DataFolders
from cxr.page.build import picture_uri
from cxr.stream import Unread, default_jobs, read_ahead
from cxr.workdir import console
from exploring.entries import Box, Entry, FilmClass, ordered_classes

SIDE, GRID, SPARE, TILE = 256, 24, 6, 128  # px, films, films, px
SMALLEST_SHOWN, MOST_SHOWN = 12, 24  # films of a class with pictures; such classes
FILM, OUTSIDE, NUMBERS, CROP = SHORTCUTS
ASPECT = "aspect ratio"
FEATURES = {FILM: 65, OUTSIDE: 65, NUMBERS: 5, ASPECT: 1, CROP: 64}  # shortcuts: numbers of a film
OTHER_SHAPE = "the film has another shape than its box says"


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
    """What one pass over N films left.

    Attributes:
        sizes_wh: (N, 2) width and height in px, the original's where stated; 0 for unread films.
        features: name of a shortcut → (N, F) float32, NaN where a film has none.
        moments: class → sums over its letterboxed films.
        grids: class → number of a film and its small picture as a data URI.
        unread: (image, reason code, sentence) of films that could not be read.
        box_faults: why a film has no box features → how many.
        noted: the notes of each film that was read, "code: Sentence.".
    """

    entries: Sequence[Entry]
    sizes_wh: np.ndarray
    features: dict[str, np.ndarray]
    moments: dict[FilmClass, Moments]
    grids: dict[FilmClass, list[tuple[int, str]]]
    unread: list[tuple[str, str, str]] = field(default_factory=list)
    box_faults: Counter[str] = field(default_factory=Counter)
    noted: list[tuple[str, ...]] = field(default_factory=list)

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
