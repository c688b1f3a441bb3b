"""annotate.py agree: how well two readers agree on the boxes of the same films, in tables and
pictures. The agreement of two humans is the ceiling that a detector can be measured by."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cxr import draw
from cxr.cli import to_plain
from cxr.film import FilmError, list_films, read_film
from cxr.films_table import FilmStems
from cxr.ledger import csv_line
from cxr.page import printable
from cxr.rules import require, require_between, require_not_negative, require_one_of
from cxr.stats import in_words
from cxr.workdir import console, provenance, to_json, write_atomic, write_json
from detect.metrics import NAN4, SIDES
from labelling import so_many
from labelling.readers import (
    A_ONLY,
    B_ONLY,
    BOTH,
    CORNERS,
    NEITHER,
    UNLIKE,
    Agreement,
    Blocks,
    Comparison,
    Limits,
    Pair,
    compare,
    measure_blocks,
    read_sides,
)

FILES = ("agreement.md", "agreement.json", "films.csv")
SHAPES = ("o", "^", "s", "D", "v", "P")  # beside the six colours: told apart without them as well
COLOUR_A, COLOUR_B = draw.BLUE, draw.ORANGE
TILE, COLUMNS = 400, 4  # of the sheet
_GROUND = (24, 24, 24)
FIRST = 3  # films that a line names
Names = Sequence[str]
Drawn = tuple[int, list[Pair]]  # how many films, and those that were not found
_IOU_HEAD = ("films of", "boxes", "pat.", "mean", "median", "5th %", "≥ .9", "≥ .95")
_EDGE_HEAD = ("films of", "edge", "bias px", "SD px", "limits px", "bias %", "SD %", "limits %")


@dataclass(frozen=True)
class AgreeConfig:
    """Compare two readers' boxes of the same films: IoU, edges with limits of agreement, a plot,
    and the worst films drawn.

    Args:
        readers: A and B: each a session's folder, a COCO file (.json) or a table (.csv) with the
            columns image, x, y, w, h (or x0, y0, x1, y1) and, where there are several, reader.
        films: folder of the films, to draw the worst; sessions know where their own are.
        out: folder for the results.
        reader: compare only this reader of a CSV that has several.
        names: match films by path, or by stem, the file's name without folder and suffix; path
            falls back to stem when no film matches.
        worst: how many of the films with the lowest IoU to draw; 0 draws none.
        seed: of the bootstrap.
    """

    readers: tuple[str, ...] = ()
    films: str = ""
    out: str = "runs/agree"
    reader: str = ""
    names: str = "path"
    worst: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        two = "A and B must be two: each a session's folder, a COCO file or a CSV"
        require(len(self.readers) == 2, two, len(self.readers))
        require_one_of(self, names=("path", "stem"))
        require_between(self, worst=(0, 120))
        require_not_negative(self, "seed")


def run(config: AgreeConfig) -> int:
    """The command; 0 when boxes were compared, 1 when they could not be read or matched."""
    out = Console()
    try:
        if config.films and not Path(config.films).is_dir():
            raise FileNotFoundError(f"--films must be a folder. Got '{config.films}' instead.")
        comparison = compare(*read_sides(config.readers, config.reader), config.names)
        blocks = measure_blocks(comparison.pairs, config.seed)
        folder = Path(config.out)
        about = {"config": to_plain(config), **provenance()}
        write_json(folder / "agreement.json", {**tables_json(comparison, blocks), **about})
        write_atomic(folder / "agreement.md", to_markdown(comparison, blocks))
        write_atomic(folder / "films.csv", films_csv(comparison.pairs))
        said = _draw_pictures(comparison, blocks, config)
    except (OSError, ValueError) as error:
        _say(console, f"agree: {error}")
        return 1
    print_tables(comparison, blocks, out)
    _say(out, f"\n{config.out}: {', '.join(FILES)}, {said}")
    return 0


def _draw_pictures(comparison: Comparison, blocks: Blocks, config: AgreeConfig) -> str:
    """Draw the plot, and the worst films where they are found; returns what was done, in words."""
    plot, worst = (Path(config.out) / name for name in ("agreement.png", "worst.png"))
    for path in (plot, worst):
        path.unlink(missing_ok=True)  # an older one would show other films
    if not blocks["all"].pairs:
        return "agreement.png and worst.png are left out: no film has a box in both A and B."
    draw_agreement(comparison, blocks["all"], plot)
    if not config.worst:
        return plot.name
    drawn, lost = draw_worst(comparison, config.films, worst, config.worst)
    if not drawn:
        where = f"none is under '{config.films}'" if config.films else "name their folder: --films"
        return f"{plot.name}\n{worst.name} is left out: its films were not found ({where})."
    more = f"; {len(lost)} not found, the first {lost[0].film}" if lost else ""
    return f"{plot.name}\n{worst.name}: {so_many(drawn, 'film')} with the lowest IoU{more}."


def _tables(blocks: Blocks) -> list[tuple[str, Names, list[list[str]]]]:
    """Title, head and rows of both tables; no edges for a block without two boxes."""
    iou_rows, edge_rows, whole = [], [], blocks["all"]
    for name, a in blocks.items():
        ious = (a.mean_iou, a.median_iou, a.p5_iou, a.share_90, a.share_95)
        iou_rows.append([to_line(name), str(a.pairs), str(a.patients), *map(in_words, ious)])
        edges = zip(SIDES, a.edges_px, a.edges_pct, strict=True)
        if a.pairs:
            edge_rows += [[to_line(name), s, *_limits(px), *_limits(pct)] for s, px, pct in edges]
    return [
        (f"IoU of {whole.pairs} pairs of boxes on {whole.films} films", _IOU_HEAD, iou_rows),
        ("edges, B − A, with 95 % limits of agreement", _EDGE_HEAD, edge_rows),
    ]


def _limits(v: Limits) -> list[str]:
    if math.isnan(v.sd):
        return [signed(v.bias), "–", "–"]
    return [signed(v.bias), f"{v.sd:.1f}", f"{signed(v.low)} to {signed(v.high)}"]


def signed(value: float) -> str:
    """A real minus sign; a rounded zero has none."""
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


to_line = partial(printable, instead="?")  # no line ends, nor what no encoding can write


def _remarks(comparison: Comparison) -> list[str]:
    """What the tables do not say: films not compared, named, and the sets' own notes."""
    said: dict[str, Names] = {
        "only in A, without an answer in B": comparison.only_a,
        "only in B, without an answer in A": comparison.only_b,
    }
    for verdict, what in {
        A_ONLY: "have a box in A and none in B",
        B_ONLY: "have none in A and a box in B",
        UNLIKE: "have pictures of different shape in A and B and were not compared",
        NEITHER: "have no box in either: A and B agree on these too",
    }.items():
        films = _films_of(comparison, verdict)
        said[what.replace("have", "has", 1) if len(films) == 1 else what] = films
    lines = list(map(to_line, comparison.notes))
    for what, films in said.items():
        more = f" and {len(films) - FIRST} more" if len(films) > FIRST else ""
        named = ", ".join(map(to_line, films[:FIRST]))
        lines += [f"{so_many(len(films), 'film')} {what}: {named}{more}"] * bool(films)
    return lines


def _films_of(comparison: Comparison, verdict: str) -> Names:
    return list(dict.fromkeys(p.film for p in comparison.pairs if p.verdict == verdict))


def _legend(comparison: Comparison) -> str:
    return (
        "Edges are B − A: a positive difference lies further right or lower in B. px are those of "
        "A's films, % those of the width (left, right) or height (top, bottom) of A's box. IoU: "
        "its mean, median, 5th percentile and share of at least .9 and .95, with 95 % intervals by "
        "bootstrap over patients; 95 % limits of agreement are mean ± 1.96 SD (Bland and Altman "
        f"1986). Films matched by {comparison.names}."
    )


def to_markdown(comparison: Comparison, blocks: Blocks) -> str:
    """Both tables, how to read them, and the remarks."""
    places = [f"`{to_line(str(s.path)).replace('`', '?')}`" for s in (comparison.a, comparison.b)]
    lines = ["# Agreement of two readers", "", f"A: {places[0]}  ", f"B: {places[1]}"]
    for _, head, rows in _tables(blocks):
        table = [head, ["---"] * len(head), *rows]
        lines += ["", *("| " + " | ".join(map(_cell, row)) + " |" for row in table)]
    lines += ["", _legend(comparison)]
    lines += ["", *(f"- {_cell(line)}" for line in _remarks(comparison))]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    """Text in which Markdown finds no bars, stars, code, HTML or emphasis of its own."""
    return re.sub(r"([|*<`\\]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def tables_json(comparison: Comparison, blocks: Blocks) -> dict[str, Any]:
    """Everything the tables say, unrounded, and all names; NaN is null, as JSON has none."""
    sides = {
        word: {"path": str(side.path), "readers": {r: len(m) for r, m in side.readers.items()}}
        for word, side in (("a", comparison.a), ("b", comparison.b))
    }
    return {
        **sides,
        "matched_by": comparison.names,
        "edges": SIDES,
        "blocks": to_json(blocks),
        "only_in_a": comparison.only_a,
        "only_in_b": comparison.only_b,
        **{word: _films_of(comparison, word) for word in (A_ONLY, B_ONLY, NEITHER, UNLIKE)},
        "notes": comparison.notes,
    }


def films_csv(pairs: Sequence[Pair]) -> str:
    """A row a film and reader; empty cells where there is nothing to measure. Boxes in A's px."""
    edges = (f"{s}_{unit}" for unit in ("px", "pct") for s in SIDES)
    corners = (f"{w}_{c}" for w in "ab" for c in CORNERS)
    head = ["film", "reader", "source", "patient", "verdict", "iou", *edges, *corners]
    rows = [head]
    for p in pairs:
        numbers = *p.edges_px, *p.edges_pct, *(p.a_xyxy or NAN4), *(p.b_xyxy or NAN4)
        texts = map(to_line, (p.film, p.reader, p.source, p.patient))
        cells = ["" if math.isnan(v) else f"{v:.2f}" for v in numbers]
        iou = "" if math.isnan(p.iou) else f"{p.iou:.4f}"
        rows.append([*texts, p.verdict, iou, *cells])
    return "".join(map(csv_line, rows))


def print_tables(comparison: Comparison, blocks: Blocks, console: Console) -> None:
    """Both tables, narrow enough for a terminal of 80 columns, and the remarks."""
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        readers = ", ".join(f"{r} ({len(marks)} films)" for r, marks in side.readers.items())
        _say(console, f"{letter}: {side.path}: {readers}")
    for table in _tables(blocks):
        _print_table(console, *table)
    console.print()
    _say(console, _legend(comparison), soft_wrap=False)
    for line in _remarks(comparison):
        _say(console, f"- {line}")


def _print_table(console: Console, title: str, head: Names, rows: Sequence[Names]) -> None:
    """Narrow: an interval stands below its value, and shares have no leading zero."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column(head[0], overflow="fold")
    for name in head[1:]:
        table.add_column(name, justify="right", no_wrap=True, overflow="fold")
    for name, *cells in rows:
        stacked = (c.replace(" [", "\n").strip("]").replace(", ", "–") for c in cells)
        narrow = (re.sub(r"\b0\.(?=\d{3})", ".", c) for c in stacked)
        block = name.split(" ", 1)[-1]  # without its word; Text, as a name may hold [brackets]
        table.add_row(*map(Text, (block, *narrow)))
    console.print("", table)


def _say(where: Console, text: str, soft_wrap: bool = True) -> None:
    """Lines of text as they are: [brackets] are no markup here."""
    lines = "\n".join(map(to_line, text.split("\n")))
    where.print(lines, markup=False, highlight=False, soft_wrap=soft_wrap)


def draw_agreement(comparison: Comparison, whole: Agreement, path: Path) -> None:
    """1200 × 800: the histogram of IoU, and one Bland–Altman panel for each edge."""
    both = [p for p in comparison.pairs if p.verdict == BOTH]
    readers = list(dict.fromkeys(p.reader for p in both))
    figure = draw.new_figure(12, 8)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    panes: Any = figure.subfigures(1, 2, width_ratios=(2, 3))
    _draw_histogram(panes[0].subplots(), both, readers, whole)
    _draw_edges(panes[1], both, readers, whole)
    places = [_plain("/".join(side.path.parts[-2:])) for side in (comparison.a, comparison.b)]
    count = f"{whole.pairs} pairs of boxes, {whole.patients} patients"
    figure.suptitle(f"A: {places[0]}    B: {places[1]}    {count}", fontsize=12)
    draw.write_figure(figure, path, dpi=100)


def _plain(text: str, most: int = 40) -> str:
    """At most `most` characters that the plot's font has; a $ would start a formula."""
    text = "".join(c if c.isprintable() and ord(c) < 0x500 else "?" for c in text)
    text = text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"
    return text.replace("$", r"\$")


def _draw_histogram(axis: Any, both: Sequence[Pair], readers: Names, whole: Agreement) -> None:
    from matplotlib.ticker import MaxNLocator

    room = 0.1 + 0.035 * (len(readers) + 2)  # for the legend, above the bars
    start = math.floor(min(0.9, *(p.iou for p in both)) * 20) / 20
    bins = np.linspace(start, 1, round((1 - start) / (0.01 if start >= 0.5 else 0.02)) + 1)
    values = [[p.iou for p in both if p.reader == r] for r in readers]
    labels = [
        f"{_plain(r, 26)}: median {np.median(v):.3f} of {len(v)}"
        for r, v in zip(readers, values, strict=True)
    ]
    colours = [draw.COLOURS[i % len(draw.COLOURS)] for i in range(len(readers))]
    axis.hist(values, bins=list(bins), stacked=True, label=labels, color=colours, ec="white")
    marks = (("median", whole.median_iou, "-"), ("5th percentile", whole.p5_iou, ":"))
    for name, found, style in marks:
        label, top = f"{name} {found.value:.3f}", 1 - 0.9 * room
        axis.axvline(found.value, 0, top, label=label, color="black", ls=style, lw=1.8)
    axis.set(xlabel="IoU of A's and B's box", ylabel="pairs of boxes", xlim=(start, 1))
    shares = f"IoU ≥ 0.9: {whole.share_90.value:.0%}     IoU ≥ 0.95: {whole.share_95.value:.0%}"
    axis.set_title(shares, fontsize=11)
    axis.set_ylim(0, axis.get_ylim()[1] / max(1 - room, 0.3))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="upper left", framealpha=1, edgecolor="none", fontsize=9).set_in_layout(False)


def _draw_edges(figure: Any, both: Sequence[Pair], readers: Names, whole: Agreement) -> None:
    """Four panels with one scale: difference against the mean place of the edge."""
    differences = np.array([p.edges_pct for p in both])
    lines = [v for e in whole.edges_pct for v in (e.low, e.high)]
    reach = 1.12 * np.nanmax(np.abs([*differences.ravel(), *lines, 1.0]))
    sized = all(p.size_hw for p in both)
    places = np.array([np.add(p.a_xyxy, p.b_xyxy) / 2 for p in both])  # type: ignore[arg-type]
    if sized:
        places *= [[100 / v for v in (p.size_hw or (1, 1))[::-1] * 2] for p in both]
    owner = np.array([readers.index(p.reader) for p in both])
    for i, axis in enumerate(figure.subplots(2, 2, sharey=True).flat):
        for number in range(len(readers)):
            own = owner == number
            look: Any = {"s": 20, "linewidths": 0, "alpha": 0.5}
            look |= {"color": draw.COLOURS[number % 6], "marker": SHAPES[number % 6]}
            axis.scatter(places[own, i], differences[own, i], **look)
        _draw_limits(axis, whole.edges_pct[i])
        axis.set_title(f"{SIDES[i]} edge", fontsize=11, loc="left", fontweight="bold")
        axis.set_ylabel(f"B − A, % of A's box {('width', 'height')[i % 2]}", fontsize=10)
        place = f"mean place of the edge, {'% of the film' if sized else 'px'}"
        axis.set(xlabel=place, ylim=(-reach, reach))
        axis.margins(x=0.06)
        axis.grid(alpha=0.25)


def _draw_limits(axis: Any, edge: Limits) -> None:
    axis.axhline(0, color="grey", linewidth=0.8)
    lines, words = [(edge.bias, "-")], f"bias {signed(edge.bias)} %"
    if not math.isnan(edge.sd):
        lines += [(edge.low, "--"), (edge.high, "--")]
        words += f", limits {signed(edge.low)} to {signed(edge.high)} %"
    for value, style in lines:
        axis.axhline(value, color="black", linestyle=style, linewidth=1.3)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    where: Any = {"transform": axis.transAxes, "ha": "center", "va": "bottom"}
    axis.text(0.5, 0.02, words, fontsize=10, bbox=box, **where)


def draw_worst(comparison: Comparison, folder: str, path: Path, number: int) -> Drawn:
    """A sheet of the films with the lowest IoU, A's box and B's box on each; nothing is written
    when none of the films is found."""
    both = [p for p in comparison.pairs if p.verdict == BOTH]
    finder = FilmFiles(folder)
    several = len({p.reader for p in both}) > 1
    found = [(pair, finder.find(pair)) for pair in choose_worst(both, number)]
    lost = [pair for pair, place in found if place is None]
    tiles = [draw_pair(pair, place) for pair, place in found if place]
    if tiles:
        captions = [
            f"IoU {pair.iou:.3f}{f'  {pair.reader}' * several}\n{to_line(Path(pair.film).name)}"
            for pair, place in found
            if place
        ]
        body = draw.sheet(tiles, captions, columns=COLUMNS, tile=TILE)
        title = f"the lowest IoU of {len({p.film for p in both})} films"
        head = _draw_head(body.shape[1], title, _side_names(comparison, both))
        write_atomic(path, draw.encode_png(np.vstack([head, body])))
    return len(tiles), lost


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
    picture = draw.fit(draw.to_rgb(pixels), TILE)
    scale = [picture.shape[1] / width, picture.shape[0] / height] * 2
    for box, colour in ((pair.a_xyxy, COLOUR_A), (pair.b_xyxy, COLOUR_B)):
        assert box is not None
        picture = draw.draw_box(picture, np.multiply(box, scale), colour)
    return draw.draw_text(picture, fault, (8, 8)) if fault else picture


def _side_names(comparison: Comparison, pairs: Sequence[Pair]) -> list[str]:
    """A and B by their paths, and by their readers where each has one with a name."""
    names = []
    for i, side in enumerate((comparison.a, comparison.b)):
        hands = {pair.hands[i] for pair in pairs}
        # a set that names no reader is called by its file
        named = hands - {side.path.stem} if len(hands) == 1 else ()
        names.append(", ".join([str(side.path), *named]))
    return names


def _draw_head(width: int, title: str, names: Sequence[str]) -> np.ndarray:
    """The sheet's first lines: the title, and whose box has which colour."""
    size = 20
    head = np.full((size * (2 + 3 * len(names) // 2), width, 3), _GROUND, np.uint8)
    head = draw.draw_text(head, draw.shorten(title, width - 16, size), (8, 8), size=size)
    sides = zip("AB", names, (COLOUR_A, COLOUR_B), strict=True)
    for row, (letter, name, colour) in enumerate(sides, start=1):
        y = 8 + round(1.4 * size * row)
        head[y + size // 2 : y + size // 2 + 4, 8:48] = colour
        words = draw.shorten(f"{letter}: {name}", width - 72, size)
        head = draw.draw_text(head, words, (56, y), colour, size)
    return head


class FilmFiles:
    """Finds films where their session knows them, or under a folder by path, then by stem."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @cached_property
    def _stems(self) -> FilmStems:
        return FilmStems(list_films([self.folder]).films)

    def find(self, pair: Pair) -> Path | None:
        """The film's file, or None."""
        marks = (pair.a, pair.b)
        places = [m.path for m in marks if m.path is not None]
        if self.folder:
            places += [Path(self.folder) / m.film.replace("\\", "/") for m in marks]
        there = next((place for place in places if place.is_file()), None)
        return there or (self._stems.find(pair.film) if self.folder else None)
