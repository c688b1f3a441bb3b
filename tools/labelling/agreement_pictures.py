"""An agreement in pictures: the plot, and the films that two readers agree on least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr.draw import BLUE, ORANGE, draw_box, draw_text, encode_png, fit, sheet, shorten, to_rgb
from cxr.film import FilmError, list_films, read_film
from cxr.films_table import FilmStems
from cxr.plots import COLOURS, new_figure, write_figure
from cxr.workdir import write_atomic
from detect.metrics import SIDES
from labelling.agree import Agreement, Limits, signed, to_line
from labelling.readers import BOTH, Comparison, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHAPES = ("o", "^", "s", "D", "v", "P")  # beside the colours: told apart without them as well
COLOUR_A, COLOUR_B = BLUE, ORANGE
TILE, COLUMNS = 400, 4
_GROUND = (24, 24, 24)


def draw_agreement(comparison: Comparison, whole: Agreement, path: Path) -> None:
    """1200 × 800: the histogram of IoU, and one Bland–Altman panel for each edge."""
    both = [p for p in comparison.pairs if p.verdict == BOTH]
    readers = list(dict.fromkeys(p.reader for p in both))
    figure = new_figure(12, 8)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    panes: Any = figure.subfigures(1, 2, width_ratios=(2, 3))
    left, right = panes
    _draw_histogram(left.subplots(), both, readers, whole)
    _draw_edges(right, both, readers, whole)
    places = [_plain("/".join(side.path.parts[-2:])) for side in (comparison.a, comparison.b)]
    count = f"{whole.pairs} pairs of boxes, {whole.patients} patients"
    figure.suptitle(f"A: {places[0]}    B: {places[1]}    {count}", fontsize=12)
    write_figure(figure, path, dpi=100)


def _plain(text: str, most: int = 40) -> str:
    """At most `most` characters that the plot's font has; a $ would start a formula."""
    text = "".join(c if c.isprintable() and ord(c) < 0x500 else "?" for c in text)
    text = text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"
    return text.replace("$", r"\$")


def _draw_histogram(
    axis: Axes, both: Sequence[Pair], readers: Sequence[str], whole: Agreement
) -> None:
    from matplotlib.ticker import MaxNLocator

    room = 0.1 + 0.035 * (len(readers) + 2)  # for the legend, above the bars
    start = math.floor(min(0.9, *(p.iou for p in both)) * 20) / 20
    bins = np.linspace(start, 1, round((1 - start) / (0.01 if start >= 0.5 else 0.02)) + 1)
    values = [[p.iou for p in both if p.reader == r] for r in readers]
    labels = [
        f"{_plain(r, 26)}: median {np.median(v):.3f} of {len(v)}"
        for r, v in zip(readers, values, strict=True)
    ]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(readers))]
    look: Any = {"label": labels, "color": colours, "edgecolor": "white", "linewidth": 0.6}
    axis.hist(values, bins=list(bins), stacked=True, **look)
    for value, style, name in (
        (whole.median_iou.value, "-", "median"),
        (whole.p5_iou.value, ":", "5th percentile"),
    ):
        look = {"color": "black", "linestyle": style, "linewidth": 1.8}
        axis.axvline(value, 0, 1 - 0.9 * room, label=f"{name} {value:.3f}", **look)
    axis.set(xlabel="IoU of A's and B's box", ylabel="pairs of boxes", xlim=(start, 1))
    shares = f"IoU ≥ 0.9: {whole.share_90.value:.0%}     IoU ≥ 0.95: {whole.share_95.value:.0%}"
    axis.set_title(shares, fontsize=11)
    axis.set_ylim(0, axis.get_ylim()[1] / max(1 - room, 0.3))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.legend(loc="upper left", framealpha=1, edgecolor="none", fontsize=9).set_in_layout(False)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_edges(
    figure: Any, both: Sequence[Pair], readers: Sequence[str], whole: Agreement
) -> None:
    """Four panels with one scale: difference against the mean place of the edge."""
    axes = figure.subplots(2, 2, sharey=True)
    differences = np.array([p.edges_pct for p in both])
    lines = [v for e in whole.edges_pct for v in (e.low, e.high)]
    reach = 1.12 * np.nanmax(np.abs([*differences.ravel(), *lines, 1.0]))
    sized = all(p.size_hw for p in both)
    for i, axis in enumerate(axes.flat):
        for number, reader in enumerate(readers):
            own = [p for p in both if p.reader == reader]
            axis.scatter(
                [_place(p, i, sized) for p in own],
                [p.edges_pct[i] for p in own],
                s=20,
                alpha=0.65 if len(both) < 400 else 0.35,
                linewidths=0,
                label=_plain(reader),
                color=COLOURS[number % len(COLOURS)],
                marker=SHAPES[number % len(SHAPES)],
            )
        _draw_limits(axis, whole.edges_pct[i])
        box_side = "width" if i % 2 == 0 else "height"
        axis.set_title(f"{SIDES[i]} edge", fontsize=11, loc="left", fontweight="bold")
        axis.set_ylabel(f"B − A, % of A's box {box_side}", fontsize=10)
        axis.set_xlabel(f"mean place of the edge, {'% of the film' if sized else 'px'}")
        axis.set_ylim(-reach, reach)
        axis.margins(x=0.06)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)


def _place(pair: Pair, edge: int, sized: bool) -> float:
    assert pair.a_xyxy and pair.b_xyxy
    mean = (pair.a_xyxy[edge] + pair.b_xyxy[edge]) / 2
    if not sized or pair.size_hw is None:
        return mean
    return 100 * mean / pair.size_hw[1 - edge % 2]  # left and right by the width


def _draw_limits(axis: Axes, edge: Limits) -> None:
    axis.axhline(0, color="grey", linewidth=0.8)
    for value, style in ((edge.bias, "-"), (edge.low, "--"), (edge.high, "--")):
        if not math.isnan(value):
            axis.axhline(value, color="black", linestyle=style, linewidth=1.3)
    words = f"bias {signed(edge.bias)} %"
    if not math.isnan(edge.sd):
        words += f", limits {signed(edge.low)} to {signed(edge.high)} %"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    where: Any = {"transform": axis.transAxes, "ha": "center", "va": "bottom"}
    axis.text(0.5, 0.02, words, fontsize=10, bbox=box, **where)


# The worst films


def draw_worst(
    comparison: Comparison, folder: str, path: Path, number: int
) -> tuple[int, list[Pair]]:
    """A sheet of the films with the lowest IoU, A's box and B's box on each.

    Returns:
        How many films were drawn, and the worst ones whose films were not found. Nothing is
        written when that is all of them.
    """
    both = [p for p in comparison.pairs if p.verdict == BOTH]
    finder = FilmFiles(folder)
    places = [(pair, finder.find(pair)) for pair in choose_worst(both, number)]
    found = [(pair, place) for pair, place in places if place is not None]
    lost = [pair for pair, place in places if place is None]
    if not found:
        return 0, lost
    several = len({p.reader for p in both}) > 1
    captions = [
        f"IoU {pair.iou:.3f}{f'  {pair.reader}' * several}\n{to_line(Path(pair.film).name)}"
        for pair, _ in found
    ]
    tiles = [draw_pair(pair, place) for pair, place in found]
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
        pixels, fault = read_film(film_path).pixels, ""
    except FilmError as error:
        pixels = np.zeros(pair.size_hw or (TILE, TILE), np.float32)
        fault = f"unreadable: {error.reason}"
    height, width = pair.size_hw or pixels.shape
    # Drawn on the small picture: lines of one width on every film, thin enough for two near ones.
    picture = fit(to_rgb(pixels), TILE)
    scale = [picture.shape[1] / width, picture.shape[0] / height] * 2
    for box, colour in ((pair.a_xyxy, COLOUR_A), (pair.b_xyxy, COLOUR_B)):
        assert box is not None
        picture = draw_box(picture, np.multiply(box, scale), colour)
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
        zip("AB", names, (COLOUR_A, COLOUR_B), strict=True), start=1
    ):
        y = 8 + round(1.4 * size * row)
        head[y + size // 2 : y + size // 2 + 4, 8:48] = colour
        words = shorten(f"{letter}: {name}", width - 72, size)
        head = draw_text(head, words, (56, y), colour, size)
    return head


class FilmFiles:
    """Finds films: where their session knows them, or under a folder by path, then by stem."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @cached_property
    def _stems(self) -> FilmStems:
        return FilmStems(list_films([self.folder]).films)

    def find(self, pair: Pair) -> Path | None:
        """The film's file, or None."""
        places = [m.path for m in (pair.a, pair.b) if m.path is not None]
        if self.folder:
            names = [m.film.replace("\\", "/") for m in (pair.a, pair.b)]
            places += [Path(self.folder) / n for n in names]
        there = next((place for place in places if place.is_file()), None)
        return there or (self._stems.find(pair.film) if self.folder else None)
