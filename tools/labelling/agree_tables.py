"""The agreement of two readers as tables for the terminal, Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cxr.stats import in_words
from detect.metrics import SIDES
from labelling.agree_match import A_ONLY, B_ONLY, NEITHER, UNLIKE, Comparison, Pair
from labelling.agree_stats import Agreement, Limits

FIRST = 3  # films that a line names

Blocks = dict[str, Agreement]


def printable(text: str) -> str:
    """The text without line ends, control characters and what no encoding can write."""
    return "".join(c if c.isprintable() else "?" for c in text)


def iou_rows(blocks: Blocks) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of IoU."""
    head = [
        "films of",
        "boxes",
        "films",
        "patients",
        "mean IoU [95 %]",
        "median [95 %]",
        "5th percentile [95 %]",
        "IoU≥.9 [95 %]",
        "IoU≥.95 [95 %]",
    ]
    rows = [
        [
            printable(name),
            str(a.pairs),
            str(a.films),
            str(a.patients),
            *(in_words(v) for v in (a.mean_iou, a.median_iou, a.p5_iou, a.share_90, a.share_95)),
        ]
        for name, a in blocks.items()
    ]
    return head, rows


def edge_rows(blocks: Blocks) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of edge differences; no row for a block without two boxes."""
    head = [
        "films of",
        "edge",
        "bias px",
        "SD px",
        "95 % limits px",
        "bias %",
        "SD %",
        "95 % limits %",
    ]
    rows = []
    for name, a in blocks.items():
        for side, px, pct in zip(SIDES, a.edges_px, a.edges_pct, strict=True):
            if a.pairs:
                rows.append([printable(name), side, *_limits(px), *_limits(pct)])
    return head, rows


def _limits(v: Limits) -> list[str]:
    if math.isnan(v.sd):
        return [signed(v.bias), "–", "–"]
    return [signed(v.bias), f"{v.sd:.1f}", f"{signed(v.low)} to {signed(v.high)}"]


def signed(value: float) -> str:
    """A real minus sign; a rounded zero has none."""
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def remarks(comparison: Comparison, blocks: Blocks) -> list[str]:
    """What the tables do not say: films not compared, named, and the sets' own notes."""
    a = blocks["all"]
    lines = [printable(note) for note in comparison.notes]
    lonely = (("A", "B", comparison.only_a), ("B", "A", comparison.only_b))
    lines += [
        f"{_films(films)} only in {own}, without an answer in {other}: {_first(films)}"
        for own, other, films in lonely
        if films
    ]
    verdicts = {
        A_ONLY: (a.a_only, "have a box in A and none in B"),
        B_ONLY: (a.b_only, "have none in A and a box in B"),
        UNLIKE: (a.unlike, "have pictures of different shape in A and B and were not compared"),
        NEITHER: (a.neither, "have no box in either: A and B agree on these too"),
    }
    for verdict, (count, what) in verdicts.items():
        if count:
            names = list(dict.fromkeys(p.film for p in comparison.pairs if p.verdict == verdict))
            what = what.replace("have", "has", 1) if len(names) == 1 else what
            lines.append(f"{_films(names)} {what}: {_first(names)}")
    return lines


def _films(films: Sequence[str]) -> str:
    return "1 film" if len(films) == 1 else f"{len(films)} films"


def _first(films: Sequence[str]) -> str:
    more = f" and {len(films) - FIRST} more" if len(films) > FIRST else ""
    return ", ".join(printable(f) for f in films[:FIRST]) + more


def legend(comparison: Comparison) -> str:
    """How to read the tables."""
    return (
        "Edges are B − A: a positive difference lies further right or lower in B. px are those of "
        "A's films, % those of the width (left, right) or height (top, bottom) of A's box. 95 % "
        "intervals by bootstrap over patients; limits of agreement are mean ± 1.96 SD "
        f"(Bland and Altman 1986). Films matched by {comparison.names}."
    )


def to_markdown(comparison: Comparison, blocks: Blocks) -> str:
    """Both tables, how to read them, and the remarks."""
    lines = [
        "# Agreement of two readers",
        "",
        f"A: {_code(comparison.a.path)}  ",
        f"B: {_code(comparison.b.path)}",
    ]
    for head, rows in (iou_rows(blocks), edge_rows(blocks)):
        table = [head, ["---"] * len(head), *rows]
        lines += ["", *("| " + " | ".join(map(_cell, row)) + " |" for row in table)]
    lines += ["", legend(comparison)]
    lines += ["", *(f"- {_cell(line)}" for line in remarks(comparison, blocks))]
    return "\n".join(lines).rstrip() + "\n"


def _code(text: Any) -> str:
    return f"`{printable(str(text)).replace('`', '?')}`"


def _cell(text: str) -> str:
    """Text in which Markdown finds no bars, stars, code, HTML or emphasis of its own."""
    return re.sub(r"([|*<`\\]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def to_json(comparison: Comparison, blocks: Blocks) -> dict[str, Any]:
    """Everything the tables say, unrounded, and all names; NaN is null, as JSON has none."""
    sides = {
        word: {"path": str(side.path), "readers": {r.name: len(r.marks) for r in side.readers}}
        for word, side in (("a", comparison.a), ("b", comparison.b))
    }
    by_verdict = {
        word: list(dict.fromkeys(p.film for p in comparison.pairs if p.verdict == word))
        for word in (A_ONLY, B_ONLY, NEITHER, UNLIKE)
    }
    whole = {
        **sides,
        "matched_by": comparison.names,
        "edges": SIDES,
        "blocks": {name: asdict(a) for name, a in blocks.items()},
        "only_in_a": comparison.only_a,
        "only_in_b": comparison.only_b,
        **by_verdict,
        "notes": comparison.notes,
    }
    return {k: _no_nan(v) for k, v in whole.items()}


def _no_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _no_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def to_csv(pairs: Sequence[Pair]) -> str:
    """A row a film and reader; empty cells where there is nothing to measure. Boxes in A's px."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "film",
            "reader",
            "source",
            "patient",
            "verdict",
            "iou",
            *(f"{s}_px" for s in SIDES),
            *(f"{s}_pct" for s in SIDES),
            *(f"{w}_{c}" for w in "ab" for c in ("x0", "y0", "x1", "y1")),
        ]
    )
    for p in pairs:
        boxes = [*(p.a_xyxy or [math.nan] * 4), *(p.b_xyxy or [math.nan] * 4)]
        writer.writerow(
            [
                *map(printable, (p.film, p.reader, p.source, p.patient)),
                p.verdict,
                _number(p.iou, 4),
                *(_number(v, 2) for v in (*p.edges_px, *p.edges_pct, *boxes)),
            ]
        )
    return out.getvalue()


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def print_tables(comparison: Comparison, blocks: Blocks, console: Console) -> None:
    """Both tables, narrow enough for a terminal of 80 columns, and the remarks."""
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        readers = ", ".join(f"{r.name} ({len(r.marks)} films)" for r in side.readers)
        _say(console, f"{letter}: {side.path}: {readers}")
    whole = blocks["all"]
    _, rows = iou_rows(blocks)
    # the interval below its value, no leading zeros, and a block's name without its word
    cells = [
        [
            _bare(name),
            boxes,
            patients,
            *(
                re.sub(r"\b0\.", ".", v.replace(" [", "\n").strip("]").replace(", ", "–"))
                for v in rest
            ),
        ]
        for name, boxes, _, patients, *rest in rows
    ]
    title = f"IoU of {whole.pairs} pairs of boxes on {whole.films} films"
    head = ["", "boxes", "pat.", "mean", "median", "5th %", "≥ .9", "≥ .95"]
    _print_table(console, title, head, cells)
    _, rows = edge_rows(blocks)
    cells = []
    for name, edge, *rest in rows:
        cells += [[_bare(name), *[""] * 6]] if edge == SIDES[0] else []
        cells.append([f"  {edge}", *rest])
    head = ["", "bias px", "SD px", "limits px", "bias %", "SD %", "limits %"]
    _print_table(console, "edges, B − A, with 95 % limits of agreement", head, cells)
    console.print()
    _say(console, legend(comparison), soft_wrap=False)
    for line in remarks(comparison, blocks):
        _say(console, f"- {line}")


def _bare(block: str) -> str:
    return block.removeprefix("reader ").removeprefix("source ")


def _print_table(
    console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for number, name in enumerate(head):
        words = number == 0
        table.add_column(
            name,
            justify="left" if words else "right",
            no_wrap=not words,
            overflow="fold",
            min_width=18 if words else None,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a name may hold [brackets]
    console.print("", table)


def _say(console: Console, text: str, soft_wrap: bool = True) -> None:
    """One line of text as it is: [brackets] are no markup here."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=soft_wrap)
