"""Charts as inline SVG: no library, no script, no colour without a word.

Numbers and names are always written out, lines differ by dash and marker as well as by colour, and
colours and sizes of letters come from the page's style sheet, so that a chart follows the light or
dark scheme. Every text passes through `escape`. A chart is drawn twice, WIDTH and NARROW px wide,
and the style sheet shows the one that fits: scaled down to a telephone or half a printed page,
letters would be tiny.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup, escape

from cxr.page import in_unit

WIDTH, NARROW = 540, 330  # px: in two columns on a desk; on a telephone and in print
TICKS = 5
LETTER = 7.2  # px; about as wide as a letter of the charts' 13 px type is at most, on average
_STYLES = ("a", "b", "c")  # classes .s-a … of the style sheet: colour and dash
_ROW, _STACKED = 25, 38  # px a row: words beside the bar, or above it


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers between low and high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


class Axis:
    """Values to places between two x."""

    def __init__(self, low: float, high: float, x0: float, x1: float) -> None:
        self.low, self.high = low, high if high > low else low + 1
        self.x0, self.x1 = x0, x1

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.x0 + min(max(share, 0), 1) * (self.x1 - self.x0), 1)

    def ticks(
        self, ticks: Sequence[float], top: float, bottom: float, unit: str, signed: bool = False
    ) -> list[str]:
        """Fine lines from top to bottom and the figures below."""
        out = []
        for tick in ticks:
            x = self(tick)
            words = plain(100 * tick if unit == "share" else tick, signed)
            out.append(f'<path class="grid" d="M{x} {top}V{bottom + 4}"/>')
            sign = " %" if unit == "share" and not signed else ""  # a difference is in points
            out.append(text_at(x, bottom + 18, words + sign, "mid soft"))
        return out


def scale_of(values: Sequence[float], unit: str, signed: bool) -> tuple[float, float, list[float]]:
    """Lowest and highest value of an axis that shows all values with some room, and its ticks."""
    if not values:
        values = [0.0, 1.0]
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - room, high + room
    if unit == "share" and not signed:
        low, high = max(0.0, low), min(1.0, high)
        high = max(high, low + 1e-6)
    return low, high, nice_ticks(low, high, 4)


def style_of(number: int) -> str:
    """The style of the series of this number."""
    return _STYLES[number % len(_STYLES)]


def curve(points: Sequence[tuple[float, float]], style: str) -> list[str]:
    """A line through the points, each with its mark."""
    if not points:
        return []
    path = "L".join(f"{x} {y}" for x, y in points)
    return [f'<path class="line s-{style}" d="M{path}"/>', *(mark(x, y, style) for x, y in points)]


def mark(x: float, y: float, style: str) -> str:
    """A circle, a square or a triangle: series differ in print and for colour-blind readers too."""
    if style == "a":
        return f'<circle class="dot s-a" cx="{x}" cy="{y}" r="4"/>'
    if style == "b":
        corner = f'x="{x - 3.6:.1f}" y="{y - 3.6:.1f}"'
        return f'<rect class="dot s-b" {corner} width="7.2" height="7.2"/>'
    return f'<path class="dot s-c" d="M{x} {y - 5:.1f}l4.8 8.4h-9.6z"/>'


def _sign(number: int, x: float, y: float) -> str:
    """A stretch of a series' line with its mark."""
    style = style_of(number)
    return f'<path class="line s-{style}" d="M{x:.1f} {y}h26"/>' + mark(x + 13, y, style)


def legend(
    names: Sequence[str],
    width: float,
    top: float = 12,
    sign: Callable[[int, float, float], str] = _sign,
) -> tuple[list[str], float]:
    """Sign and name of each series, in as many rows as they need; and where they end."""
    out, x, y = [], 0.0, top
    for number, name in enumerate(names):
        wide = 34 + LETTER * len(name)
        if x and x + wide > width:
            x, y = 0.0, y + 18
        out += [sign(number, x, y - 4), text_at(x + 32, y, name, "", width - 40)]
        x += wide + 14
    return out, y


def plain(value: float, signed: bool = False) -> str:
    """A tick's figure with no more digits than it has."""
    text = f"{value:{'+' if signed and value else ''}.10g}"
    return text.replace("-", "−")


def text_at(x: float, y: float, words: str, kind: str = "", room: float = 0) -> str:
    """Text at x, y; words too long for `room` px lose their middle, the whole stands in a title."""
    shown, title = words, ""
    most = int(room / LETTER) if room else 0
    if most and len(words) > most:
        shown = f"{words[: most // 2]}…{words[len(words) - most // 2 + 1 :]}"
        title = f"<title>{escape(words)}</title>"
    return f'<text class="{kind}" x="{round(x, 1)}" y="{round(y, 1)}">{title}{escape(shown)}</text>'


def svg(parts: Sequence[str], width: float, height: float, about: str) -> Markup:
    """The parts as one picture whose words for a screen reader are `about`."""
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    kind = "chart" if width > NARROW else "chart narrow"
    return Markup(  # noqa: S704 - numbers of ours, and words that went through escape
        f'<svg class="{kind}" {size} role="img" aria-label="{escape(about)}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Row:
    """One line of a forest chart: a value with its interval and, where known, its chance level."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    chance: float | None = None
    group: str = ""


def both(draw: Callable[..., Markup], width: int = WIDTH) -> Markup:
    """The chart that `draw(width=…)` gives in both widths, of which the style sheet shows one."""
    return draw(width=width) + draw(width=NARROW)


def forest(
    rows: Sequence[Row],
    about: str,
    unit: str,
    line: tuple[float, str] | None = None,
    signed: bool = False,
    labels: int = 150,
    texts: int = 165,
    width: int = WIDTH,
    span: Sequence[float] = (),
) -> Markup:
    """Values with their intervals, a row each, on one scale; `line` is a value all are held
    against. Rows of one group stand under its name. A narrow chart has its words above the bars.
    The scale takes the values of `span` in too, so that charts side by side can share one."""
    known = [v for r in rows for v in (r.value, r.low, r.high, r.chance) if v is not None]
    known += span
    low, high, ticks = scale_of([*known, *([line[0]] if line else [])], unit, signed)
    stacked = width <= NARROW
    each, middle = (_STACKED, 28.5) if stacked else (_ROW, 12.5)
    top = 24 if line else 8
    groups = sum(r.group != b for r, b in zip(rows, ["", *(r.group for r in rows)], strict=False))
    bottom = top + len(rows) * each + groups * _ROW
    ends = (14, width - 14) if stacked else (labels + 8, width - texts - 12)
    scale = Axis(low, high, *ends)
    out = [*scale.ticks(ticks, bottom if stacked else top, bottom, unit, signed)]
    if line:
        x, half = scale(line[0]), LETTER * len(line[1]) / 2
        out.append(f'<path class="ref" d="M{x} {top - 4}V{top if stacked else bottom}"/>')
        # near an end the words would leave the chart
        out.append(text_at(min(max(x, half), width - half), top - 9, line[1], "mid soft"))
    y, group = top, ""
    for row in rows:
        if row.group != group:
            group = row.group
            out.append(text_at(0, y + 17, group, "strong"))
            y += _ROW
        room = max(60, width - LETTER * len(row.text) - 12) if stacked else labels
        out.append(text_at(12 if row.group else 0, y + 17, row.label, "", room))
        if stacked:  # a line from top to bottom would cross the words
            band = f"{y + 22}V{y + each - 3}"
            out += [f'<path class="grid" d="M{scale(tick)} {band}"/>' for tick in ticks]
            out += [f'<path class="ref" d="M{scale(line[0])} {band}"/>'] if line else []
        if row.chance is not None:
            diamond = f"M{scale(row.chance)} {y + middle - 6}l6 6l-6 6l-6-6z"
            out.append(f'<path class="chance" d="{diamond}"/>')
        if row.low is not None and row.high is not None:
            bar = f"M{scale(row.low)} {y + middle}H{scale(row.high)}"
            out.append(f'<path class="bar s-a" d="{bar}"/>')
        if row.value is not None:
            dot = f'cx="{scale(row.value)}" cy="{y + middle}" r="4.5"'
            out.append(f'<circle class="dot s-a" {dot}/>')
        out.append(text_at(width, y + 17, row.text, "end num"))
        y += each
    return svg(out, width, bottom + 24, about)


def histogram(
    edges: Sequence[float],
    counts: Mapping[str, Sequence[float]],
    lines: Sequence[tuple[float, str]],
    about: str,
    unit: str,
    width: int = WIDTH,
) -> Markup:
    """How many films fall into each bin; the first group as bars, others as outlines; `lines` are
    values to compare with, named on the chart."""
    for name, heights in counts.items():
        if len(heights) != len(edges) - 1:
            raise ValueError(
                f"counts of {name!r} must be one for each bin. Got {len(heights)} for "
                f"{len(edges) - 1} bins instead."
            )
    shown = sorted((v, label) for v, label in lines if v is not None)
    top, height = 26 + 17 * len(shown), 130
    bottom = top + height
    low = min([edges[0], *(v for v, _ in shown)])
    high = max([edges[-1], *(v for v, _ in shown)])
    scale = Axis(low, high, 44, width - 22)
    most = max([1.0, *(float(c) for heights in counts.values() for c in heights)])
    out = [text_at(0, top - 10, "films", "soft")]
    for tick in nice_ticks(0, most, 3):
        y = round(bottom - height * tick / most, 1)
        out.append(f'<path class="grid" d="M44 {y}H{width - 22}"/>')
        out.append(text_at(38, y + 4, f"{tick:g}", "end soft"))
    for number, heights in enumerate(counts.values()):
        tops = [round(bottom - height * float(c) / most, 1) for c in heights]
        if number == 0:
            out += _bars(edges, tops, bottom, scale)
        else:
            steps = "".join(f"V{y}H{scale(x1)}" for x1, y in zip(edges[1:], tops, strict=True))
            path = f"M{scale(edges[0])} {bottom}{steps}V{bottom}"
            out.append(f'<path class="line s-{style_of(number)}" d="{path}"/>')
    for number, (value, label) in enumerate(shown):
        x, y = scale(value), 12 + 17 * number
        words = f"{label}: {in_unit(value, unit)}"
        # the lowest line's words go to its left, where no other line crosses them
        wide = 0.95 * LETTER * len(words) + 8
        side = "end" if (number == 0 and x > wide) or x > width - wide else ""
        out.append(f'<path class="ref {"dash" if number % 2 else ""}" d="M{x} {y - 8}V{bottom}"/>')
        out.append(text_at(x - 6 if side else x + 6, y + 2, words, side))
    out += scale.ticks(nice_ticks(low, high, TICKS), bottom, bottom, unit)
    return svg(out, width, bottom + 24, about)


def _bars(edges: Sequence[float], tops: Sequence[float], bottom: float, scale: Axis) -> list[str]:
    out = []
    for x0, x1, y in zip(edges, edges[1:], tops, strict=False):
        if y < bottom:
            left, right = scale(x0) + 0.7, scale(x1) - 0.7
            bar = f"M{left:.1f} {bottom}V{y}H{right:.1f}V{bottom}Z"
            out.append(f'<path class="fill s-a" d="{bar}"/>')
    return out


def cascade(
    stages: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    about: str,
    floor: tuple[str, Sequence[float | None]] | None = None,
    width: int = WIDTH,
) -> Markup:
    """Stages from top to bottom, a line of values in about [0, 1] for each series: names of layers
    are too long for a horizontal axis. `floor` is a name and a value for each series that the
    lines are held against: its marks stand in a last row, with a fine line up from each."""
    labels = 190 if width > NARROW else 118
    out, y = legend(list(series), width)
    top = y + 14
    end = top + len(stages) * _ROW
    bottom = end + (_ROW + 6 if floor else 0)
    every = (*series.values(), floor[1] if floor else ())
    known = [v for values in every for v in values if v is not None]
    scale = Axis(min([0.0, *known]), max([1.0, *known]), labels + 10, width - 16)
    ticks = nice_ticks(scale.low, scale.high, TICKS if width > NARROW else 3)
    out += scale.ticks(ticks, top, bottom, "score")
    for row, stage in enumerate(stages):
        out.append(text_at(0, top + row * _ROW + 17, stage, "", labels))
    if floor:
        out.append(text_at(0, end + 23, floor[0], "strong", labels))
        for number, value in enumerate(floor[1]):
            if value is not None:
                x, style = scale(value), style_of(number)
                out.append(f'<path class="floor s-{style}" d="M{x} {top}V{end + 18.5}"/>')
                out.append(mark(x, end + 18.5, style))
    for number, values in enumerate(series.values()):
        ys = (top + row * _ROW + 12.5 for row in range(len(values)))
        points = [(scale(v), y) for v, y in zip(values, ys, strict=True) if v is not None]
        out += curve(points, style_of(number))
    return svg(out, width, bottom + 24, about)


def curves(
    xs: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    x_name: str,
    y_name: str,
    about: str,
    width: int = WIDTH,
) -> Markup:
    """One line for each series over xs in per cent; a legend of marker and dash names them."""
    out, y = legend(list(series), width)
    out.append(text_at(0, y + 24, y_name, "soft"))
    top, height, left = y + 36, 150, 56
    bottom = top + height
    known = [v for values in series.values() for v in values if v is not None]
    low, high, ticks = scale_of(known, "score", False)
    across = Axis(min(xs), max(xs), left, width - 16)
    for tick in ticks:
        y = round(bottom - height * (tick - low) / (high - low), 1)
        out.append(f'<path class="grid" d="M{left} {y}H{width - 16}"/>')
        out.append(text_at(left - 8, y + 4, plain(tick), "end soft"))
    for number, values in enumerate(series.values()):
        points = [
            (across(x), round(bottom - height * (v - low) / (high - low), 1))
            for x, v in zip(xs, values, strict=True)
            if v is not None
        ]
        out += curve(points, style_of(number))
    before = -100.0
    for x in xs:
        if across(x) - before >= 22:  # else the figures would touch
            before = across(x)
            out.append(text_at(before, bottom + 16, f"{x:g}", "mid soft"))
    out.append(text_at(width - 16, bottom + 34, x_name, "end soft"))
    return svg(out, width, bottom + 40, about)


def forest_of(
    rows: Sequence[Row], name: str, unit: str, line: tuple[float, str] | None = None, **how: Any
) -> Markup:
    """`forest` in both widths, with its rows in words for a screen reader."""
    return both(partial(forest, rows, say(name, rows), unit, line, **how))


def say(name: str, rows: Iterable[Row]) -> str:
    """A chart in words, for a screen reader."""
    lines = (f"{r.group + ', ' if r.group else ''}{r.label}: {r.text}" for r in rows)
    return f"{name}. " + "; ".join(lines)
