"""annotate.py agree: how well two readers agree on the boxes of the same films.

    python tools/annotate.py agree SESSION_A SESSION_B
    python tools/annotate.py agree boxes.json second_reader.csv --films FOLDER

The agreement of two humans is the ceiling that a detector can be measured by. Limits of agreement
after Bland and Altman (Lancet 1986): mean difference ± 1.96 standard deviations; about 95 % of
differences lie between them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cxr.cli import to_plain
from cxr.ledger import csv_line
from cxr.page.words import printable
from cxr.rules import require
from cxr.stats import Interval, bootstrap_mean, bootstrap_quantiles, in_words
from cxr.workdir import console, provenance, to_json, write_atomic, write_json
from detect.metrics import SIDES
from labelling.readers import (
    A_ONLY,
    B_ONLY,
    BOTH,
    CORNERS,
    NAN4,
    NEITHER,
    UNLIKE,
    Comparison,
    Pair,
    compare,
    read_sides,
)

FILES = ("agreement.md", "agreement.json", "films.csv")
FIRST = 3  # films that a line names
Z95 = 1.96  # as the paper has it
_IOU_HEAD = (
    *("films of", "boxes", "films", "patients", "mean IoU [95 %]", "median [95 %]"),
    *("5th percentile [95 %]", "IoU≥.9 [95 %]", "IoU≥.95 [95 %]"),
)
_EDGE_HEAD = (
    *("films of", "edge", "bias px", "SD px", "95 % limits px"),
    *("bias %", "SD %", "95 % limits %"),
)


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
        if len(self.readers) != 2:
            raise ValueError(
                "A and B must be two: each a session's folder, a COCO file or a CSV. "
                f"Got {len(self.readers)} instead."
            )
        require(self.names in ("path", "stem"), "--names must be path or stem", self.names)
        require(0 <= self.worst <= 120, "--worst must lie between 0 and 120", self.worst)
        require(self.seed >= 0, "--seed must be 0 or more", self.seed)


@dataclass(frozen=True)
class Limits:
    """Mean difference B − A, its standard deviation, and the 95 % limits of agreement."""

    bias: float
    sd: float  # NaN for fewer than two pairs, and so are the limits
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """All pairs of a block. IoU and edges are over pairs with two boxes.

    Attributes:
        pairs: pairs with two boxes; films and patients are counted among these.
        share_90, share_95: of pairs with an IoU of at least 0.9 and 0.95.
        edges_px, edges_pct: left, top, right, bottom.
        a_only, b_only: pairs where the other says "no box"; neither: where both do.
        unlike: pairs whose two pictures differ in shape and were not compared.
    """

    pairs: int
    films: int
    patients: int
    mean_iou: Interval
    median_iou: Interval
    p5_iou: Interval
    share_90: Interval
    share_95: Interval
    edges_px: tuple[Limits, ...]
    edges_pct: tuple[Limits, ...]
    a_only: int
    b_only: int
    neither: int
    unlike: int


Blocks = dict[str, Agreement]


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
    from labelling import agreement_pictures as pictures

    plot, sheet = (Path(config.out) / name for name in ("agreement.png", "worst.png"))
    for path in (plot, sheet):
        path.unlink(missing_ok=True)  # an older one would show other films
    if not blocks["all"].pairs:
        return "agreement.png and worst.png are left out: no film has a box in both A and B."
    pictures.draw_agreement(comparison, blocks["all"], plot)
    if not config.worst:
        return "agreement.png"
    drawn, lost = pictures.draw_worst(comparison, config.films, sheet, config.worst)
    if not drawn:
        where = f"none is under '{config.films}'" if config.films else "name their folder: --films"
        return f"agreement.png\nworst.png is left out: its films were not found ({where})."
    said = f"agreement.png\nworst.png: {drawn} film{'s' * (drawn > 1)} with the lowest IoU"
    return said + (f"; {len(lost)} not found, the first {lost[0].film}." if lost else ".")


# Measures


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
    return Agreement(
        pairs=len(both),
        films=len({p.film for p in both}),
        patients=len(set(patients)),
        mean_iou=mean(iou),
        median_iou=median,
        p5_iou=p5,
        # 1e-9: boxes that meet at exactly 0.9 must not fail by rounding
        share_90=mean((iou >= 0.9 - 1e-9).astype(float)),
        share_95=mean((iou >= 0.95 - 1e-9).astype(float)),
        edges_px=edges("edges_px"),
        edges_pct=edges("edges_pct"),
        a_only=verdicts[A_ONLY],
        b_only=verdicts[B_ONLY],
        neither=verdicts[NEITHER],
        unlike=verdicts[UNLIKE],
    )


def measure_blocks(pairs: Sequence[Pair], seed: int = 0) -> Blocks:
    """All pairs; then each reader and each source where there are several of them."""
    blocks = {"all": measure(pairs, seed)}
    for word in ("reader", "source"):
        names = list(dict.fromkeys(getattr(p, word) for p in pairs if getattr(p, word)))
        for name in names if len(names) > 1 else ():
            own = [p for p in pairs if getattr(p, word) == name]
            blocks[f"{word} {name}"] = measure(own, seed)
    return blocks


# Tables


def to_line(text: str) -> str:
    """The text without line ends, control characters and what no encoding can write."""
    return printable(text, "?")


def _iou_rows(blocks: Blocks) -> list[list[str]]:
    rows = []
    for name, a in blocks.items():
        figures = (a.mean_iou, a.median_iou, a.p5_iou, a.share_90, a.share_95)
        counts = (str(a.pairs), str(a.films), str(a.patients))
        rows.append([to_line(name), *counts, *map(in_words, figures)])
    return rows


def _edge_rows(blocks: Blocks) -> list[list[str]]:
    """No row for a block without two boxes."""
    return [
        [to_line(name), side, *_limits(px), *_limits(pct)]
        for name, a in blocks.items()
        for side, px, pct in zip(SIDES, a.edges_px, a.edges_pct, strict=True)
        if a.pairs
    ]


def _limits(v: Limits) -> list[str]:
    if math.isnan(v.sd):
        return [signed(v.bias), "–", "–"]
    return [signed(v.bias), f"{v.sd:.1f}", f"{signed(v.low)} to {signed(v.high)}"]


def signed(value: float) -> str:
    """A real minus sign; a rounded zero has none."""
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def _remarks(comparison: Comparison) -> list[str]:
    """What the tables do not say: films not compared, named, and the sets' own notes."""
    lines = [to_line(note) for note in comparison.notes]
    lines += [
        f"{_films(films)} only in {own}, without an answer in {other}: {_first(films)}"
        for own, other, films in (("A", "B", comparison.only_a), ("B", "A", comparison.only_b))
        if films
    ]
    for verdict, what in {
        A_ONLY: "have a box in A and none in B",
        B_ONLY: "have none in A and a box in B",
        UNLIKE: "have pictures of different shape in A and B and were not compared",
        NEITHER: "have no box in either: A and B agree on these too",
    }.items():
        if films := _films_of(comparison, verdict):
            what = what.replace("have", "has", 1) if len(films) == 1 else what
            lines.append(f"{_films(films)} {what}: {_first(films)}")
    return lines


def _films_of(comparison: Comparison, verdict: str) -> list[str]:
    return list(dict.fromkeys(p.film for p in comparison.pairs if p.verdict == verdict))


def _films(films: Sequence[str]) -> str:
    return "1 film" if len(films) == 1 else f"{len(films)} films"


def _first(films: Sequence[str]) -> str:
    more = f" and {len(films) - FIRST} more" if len(films) > FIRST else ""
    return ", ".join(to_line(f) for f in films[:FIRST]) + more


def _legend(comparison: Comparison) -> str:
    return (
        "Edges are B − A: a positive difference lies further right or lower in B. px are those of "
        "A's films, % those of the width (left, right) or height (top, bottom) of A's box. 95 % "
        "intervals by bootstrap over patients; limits of agreement are mean ± 1.96 SD "
        f"(Bland and Altman 1986). Films matched by {comparison.names}."
    )


def to_markdown(comparison: Comparison, blocks: Blocks) -> str:
    """Both tables, how to read them, and the remarks."""
    places = [f"`{to_line(str(s.path)).replace('`', '?')}`" for s in (comparison.a, comparison.b)]
    lines = ["# Agreement of two readers", "", f"A: {places[0]}  ", f"B: {places[1]}"]
    for head, rows in ((_IOU_HEAD, _iou_rows(blocks)), (_EDGE_HEAD, _edge_rows(blocks))):
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
    rows = [
        [
            *map(to_line, (p.film, p.reader, p.source, p.patient)),
            *(p.verdict, _number(p.iou, 4)),
            *(_number(v, 2) for v in (*p.edges_px, *p.edges_pct)),
            *(_number(v, 2) for v in (*(p.a_xyxy or NAN4), *(p.b_xyxy or NAN4))),
        ]
        for p in pairs
    ]
    return "".join(map(csv_line, [head, *rows]))


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def print_tables(comparison: Comparison, blocks: Blocks, console: Console) -> None:
    """Both tables, narrow enough for a terminal of 80 columns, and the remarks."""
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        readers = ", ".join(f"{r} ({len(marks)} films)" for r, marks in side.readers.items())
        _say(console, f"{letter}: {side.path}: {readers}")
    whole = blocks["all"]
    # the interval below its value, no leading zeros, and a block's name without its word
    cells = [
        [_bare(name), boxes, patients, *map(_stack, figures)]
        for name, boxes, _, patients, *figures in _iou_rows(blocks)
    ]
    title = f"IoU of {whole.pairs} pairs of boxes on {whole.films} films"
    head = ["", "boxes", "pat.", "mean", "median", "5th %", "≥ .9", "≥ .95"]
    _print_table(console, title, head, cells)
    cells = []
    for name, edge, *rest in _edge_rows(blocks):
        cells += [[_bare(name), *[""] * 6]] if edge == SIDES[0] else []
        cells.append([f"  {edge}", *rest])
    head = ["", "bias px", "SD px", "limits px", "bias %", "SD %", "limits %"]
    _print_table(console, "edges, B − A, with 95 % limits of agreement", head, cells)
    console.print()
    _say(console, _legend(comparison), soft_wrap=False)
    for line in _remarks(comparison):
        _say(console, f"- {line}")


def _bare(block: str) -> str:
    return block.removeprefix("reader ").removeprefix("source ")


def _stack(figure: str) -> str:
    return re.sub(r"\b0\.", ".", figure.replace(" [", "\n").strip("]").replace(", ", "–"))


def _print_table(
    console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column(head[0], overflow="fold", min_width=18)
    for name in head[1:]:
        table.add_column(name, justify="right", no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a name may hold [brackets]
    console.print("", table)


def _say(where: Console, text: str, soft_wrap: bool = True) -> None:
    """Lines of text as they are: [brackets] are no markup here."""
    lines = "\n".join(map(to_line, text.split("\n")))
    where.print(lines, markup=False, highlight=False, soft_wrap=soft_wrap)
