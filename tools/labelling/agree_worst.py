"""A sheet of the films that two readers agree on least, with both boxes drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cxr.draw import BLUE, ORANGE, draw_box, draw_text, encode_png, fit, sheet, shorten, to_rgb
from cxr.film import FilmError, list_films, read_film
from cxr.workdir import write_atomic
from labelling.agree_match import BOTH, Comparison, Pair, film_key
from labelling.agree_tables import printable

COLOUR_A, COLOUR_B = BLUE, ORANGE
TILE, COLUMNS = 400, 4
_GROUND = (24, 24, 24)


def draw_worst(
    comparison: Comparison, folder: str, path: Path, number: int
) -> tuple[int, list[Pair]]:
    """A sheet of the films with the lowest IoU, A's box and B's box on each.

    Returns:
        How many films were drawn, and the worst ones whose films were not found. Nothing is
        written when that is all of them.
    """
    both = [p for p in comparison.pairs if p.verdict == BOTH]
    worst = choose_worst(both, number)
    index = FilmIndex(folder)
    found = [(p, where) for p in worst if (where := index.find(p)) is not None]
    lost = [p for p in worst if index.find(p) is None]
    if not found:
        return 0, lost
    several = len({p.reader for p in both}) > 1
    tiles, captions = [], []
    for pair, where in found:
        tiles.append(draw_pair(pair, where))
        reader = f"  {pair.reader}" if several else ""
        captions.append(f"IoU {pair.iou:.3f}{reader}\n{printable(Path(pair.film).name)}")
    body = sheet(tiles, captions, columns=COLUMNS, tile=TILE)
    title = f"the lowest IoU of {len({p.film for p in both})} films"
    head = _draw_head(body.shape[1], title, _side_names(comparison, both))
    write_atomic(path, encode_png(np.vstack([head, body])))
    return len(found), lost


def choose_worst(pairs: Sequence[Pair], number: int) -> list[Pair]:
    """The pairs with the lowest IoU, lowest first; of a film with several readers the worst."""
    by_film: dict[str, Pair] = {}
    for pair in sorted(pairs, key=lambda p: p.iou):
        by_film.setdefault(pair.film, pair)
    return list(by_film.values())[:number]


def draw_pair(pair: Pair, film_path: Path) -> np.ndarray:
    """One film, RGB with a long side of TILE, with both boxes; black where it cannot be read."""
    try:
        pixels = read_film(film_path).pixels
        fault = ""
    except FilmError as error:
        pixels = np.zeros(pair.size_hw or (TILE, TILE), np.float32)
        fault = f"unreadable: {error.reason}"
    height, width = pair.size_hw or pixels.shape
    # Drawn on the small picture: lines of one width on every film, thin enough for two near ones.
    picture = fit(to_rgb(pixels), TILE)
    scale = np.array([picture.shape[1] / width, picture.shape[0] / height] * 2)
    for box, colour in ((pair.a_xyxy, COLOUR_A), (pair.b_xyxy, COLOUR_B)):
        assert box is not None
        picture = draw_box(picture, np.array(box) * scale, colour)
    return draw_text(picture, fault, (8, 8)) if fault else picture


def _side_names(comparison: Comparison, pairs: Sequence[Pair]) -> list[str]:
    """A and B by their paths, and by their readers where each has one with a name."""
    names = []
    for i, side in enumerate((comparison.a, comparison.b)):
        hands = {pair.hands[i] for pair in pairs}
        named = hands - {side.path.stem}  # a set that names no reader is called by its file
        names.append(", ".join([str(side.path), *named]) if len(hands) == 1 else str(side.path))
    return names


def _draw_head(width: int, title: str, names: Sequence[str]) -> np.ndarray:
    """The sheet's first lines: the title, and whose box has which colour."""
    size = 20
    head = np.full((size * (2 + 3 * len(names) // 2), width, 3), _GROUND, np.uint8)
    head = draw_text(head, shorten(title, width - 16, size), (8, 8), size=size)
    for row, (letter, name, colour) in enumerate(
        zip("AB", names, (COLOUR_A, COLOUR_B), strict=True)
    ):
        y = 8 + round(1.4 * size * (row + 1))
        head[y + size // 2 : y + size // 2 + 4, 8:48] = colour
        words = shorten(f"{letter}: {name}", width - 72, size)
        head = draw_text(head, words, (56, y), colour, size)
    return head


class FilmIndex:
    """Finds films: where their session knows them, or under a folder by path, then by name."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._by_stem: dict[str, list[Path]] | None = None

    def find(self, pair: Pair) -> Path | None:
        """The film's file, or None."""
        places = [m.path for m in (pair.a, pair.b) if m.path is not None]
        if self.folder:
            names = [m.film.replace("\\", "/") for m in (pair.a, pair.b)]
            places += [Path(self.folder) / n for n in names]
        for place in places:
            if place.is_file():
                return place
        return self._find_by_stem(pair.film) if self.folder else None

    def _find_by_stem(self, film: str) -> Path | None:
        """The only film of that name in the folder; searched through once."""
        if self._by_stem is None:
            self._by_stem = {}
            for path in list_films([self.folder]).films:
                self._by_stem.setdefault(film_key(str(path), "stem"), []).append(path)
        known = self._by_stem.get(film_key(film, "stem"), [])
        return known[0] if len(known) == 1 else None
