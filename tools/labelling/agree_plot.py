"""The plot of an agreement: the histogram of IoU, and a Bland–Altman panel for each edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cxr.plots import COLOURS, new_figure, write_figure
from detect.metrics import SIDES
from labelling.agree_match import BOTH, Comparison, Pair
from labelling.agree_stats import Agreement, Limits
from labelling.agree_tables import signed

SHAPES = ("o", "^", "s", "D", "v", "P")


def draw_agreement(comparison: Comparison, blocks: dict[str, Agreement], path: Path) -> None:
    """1200 × 800: the histogram of IoU, and one Bland–Altman panel for each edge."""
    both = [p for p in comparison.pairs if p.verdict == BOTH]
    whole = blocks["all"]
    readers = list(dict.fromkeys(p.reader for p in both))
    figure = new_figure(12, 8)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    panes: Any = figure.subfigures(1, 2, width_ratios=(2, 3))
    left, right = panes
    _draw_histogram(left.subplots(), both, readers, whole)
    _draw_edges(right, both, readers, whole)
    figure.suptitle(
        f"A: {_short(comparison.a.path)}    B: {_short(comparison.b.path)}    "
        f"{whole.pairs} pairs of boxes, {whole.patients} patients",
        fontsize=12,
    )
    write_figure(figure, path, dpi=100)


def _short(path: Path) -> str:
    """The path's last two parts; a $ would start a formula."""
    return _plain("/".join(path.parts[-2:]))


def _plain(text: str, most: int = 40) -> str:
    """At most `most` characters that the plot's font has."""
    text = "".join(c if c.isprintable() and ord(c) < 0x500 else "?" for c in text)
    text = text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"
    return text.replace("$", r"\$")


def _draw_histogram(
    axis: Axes, both: Sequence[Pair], readers: Sequence[str], whole: Agreement
) -> None:
    room = 0.1 + 0.035 * (len(readers) + 2)  # for the legend, above the bars
    lowest = min(p.iou for p in both)
    start = math.floor(min(lowest, 0.9) * 20) / 20
    bins = np.linspace(start, 1, round((1 - start) / (0.01 if start >= 0.5 else 0.02)) + 1)
    values = [[p.iou for p in both if p.reader == r] for r in readers]
    labels = [
        f"{_plain(r, 26)}: median {np.median(v):.3f} of {len(v)}"
        for r, v in zip(readers, values, strict=True)
    ]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(readers))]
    axis.hist(
        values,
        bins=list(bins),
        stacked=True,
        label=labels,
        color=colours,
        edgecolor="white",
        linewidth=0.6,
    )
    for value, style, name in (
        (whole.median_iou.value, "-", "median"),
        (whole.p5_iou.value, ":", "5th percentile"),
    ):
        axis.axvline(
            value,
            0,
            1 - 0.9 * room,
            color="black",
            linestyle=style,
            linewidth=1.8,
            label=f"{name} {value:.3f}",
        )
    axis.set(xlabel="IoU of A's and B's box", ylabel="pairs of boxes", xlim=(start, 1))
    axis.set_title(
        f"IoU ≥ 0.9: {whole.share_90.value:.0%}     IoU ≥ 0.95: {whole.share_95.value:.0%}",
        fontsize=11,
    )
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
    farthest = max(abs(v) for p in both for v in p.edges_pct)
    reach = 1.12 * max(
        farthest,
        *(abs(v) for e in whole.edges_pct for v in (e.low, e.high, 1.0) if not math.isnan(v)),
    )
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
    axis.text(
        0.5,
        0.02,
        words,
        transform=axis.transAxes,
        fontsize=10,
        ha="center",
        va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )
