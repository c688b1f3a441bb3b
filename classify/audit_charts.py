"""The audit page's charts as inline SVG: no library, no script, no colour without a word.

Numbers and names are always written out, lines differ by dash and marker as well as by colour, and
colours come from the page's style sheet, so that a chart follows the light or dark scheme. Every
text passes through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from classify.audit_words import in_unit

WIDTH = 540
_ROW, _TICKS = 25, 5
_STYLES = ("a", "b", "c")  # classes .s-a … of the style sheet: colour and dash


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


def forest(
    rows: Sequence[Row], about: str, unit: str, line: tuple[float, str] | None = None,
    signed: bool = False, width: int = WIDTH, labels: int = 150, texts: int = 165,
) -> Markup:  # fmt: skip
    """Values with their intervals, a row each, on one scale; `line` is a value all are held
    against. Rows of one group stand under its name."""
    known = [v for r in rows for v in (r.value, r.low, r.high, r.chance) if v is not None]
    low, high, ticks = _scale([*known, *([line[0]] if line else [])], unit, signed)
    top = 24 if line else 8
    groups = len({r.group for r in rows if r.group})
    bottom = top + (len(rows) + groups) * _ROW
    scale = _Axis(low, high, labels + 8, width - texts - 12)
    out = [*scale.ticks(ticks, top, bottom, unit, signed)]
    if line:
        x = scale(line[0])
        out.append(f'<path class="ref" d="M{x} {top - 4}V{bottom}"/>')
        out.append(_text(x, top - 9, line[1], "mid soft"))
    y, group = top, ""
    for row in rows:
        if row.group and row.group != group:
            group = row.group
            out.append(_text(0, y + 17, group, "strong"))
            y += _ROW
        out.append(_text(12 if row.group else 0, y + 17, row.label, "", labels))
        if row.chance is not None:
            out.append(_diamond(scale(row.chance), y + 12.5))
        if row.low is not None and row.high is not None:
            out.append(
                f'<path class="bar s-a" d="M{scale(row.low)} {y + 12.5}H{scale(row.high)}"/>'
            )
        if row.value is not None:
            out.append(f'<circle class="dot s-a" cx="{scale(row.value)}" cy="{y + 12.5}" r="4.5"/>')
        out.append(_text(width, y + 17, row.text, "end num"))
        y += _ROW
    return _svg(out, width, bottom + 24, about)


def histogram(
    edges: Sequence[float], counts: Mapping[str, Sequence[float]],
    lines: Sequence[tuple[float, str]], about: str, unit: str, width: int = WIDTH,
) -> Markup:  # fmt: skip
    """How many films fall into each bin; the first group as bars, others as outlines; `lines` are
    values to compare with, named on the chart."""
    for name, heights in counts.items():
        if len(heights) != len(edges) - 1:
            raise ValueError(f"counts of {name!r} must be one for each bin. Got {len(heights)} for "
                             f"{len(edges) - 1} bins instead.")  # fmt: skip
    shown = [(v, label) for v, label in lines if v is not None]
    top, height = 12 + 17 * len(shown), 130
    bottom = top + height
    low = min([edges[0], *(v for v, _ in shown)])
    high = max([edges[-1], *(v for v, _ in shown)])
    scale = _Axis(low, high, 44, width - 22)
    most = max([1.0, *(float(c) for heights in counts.values() for c in heights)])
    step = nice_ticks(0, most, 3)
    out = []
    for tick in step:
        y = round(bottom - height * tick / most, 1)
        out.append(f'<path class="grid" d="M44 {y}H{width - 22}"/>')
        out.append(_text(38, y + 4, f"{tick:g}", "end soft"))
    for number, heights in enumerate(counts.values()):
        tops = [round(bottom - height * float(c) / most, 1) for c in heights]
        if number == 0:
            for x0, x1, y in zip(edges, edges[1:], tops, strict=False):
                if y < bottom:
                    ends = scale(x0) + 0.7, scale(x1) - 0.7
                    bar = f"M{ends[0]:.1f} {bottom}V{y}H{ends[1]:.1f}V{bottom}Z"
                    out.append(f'<path class="fill s-a" d="{bar}"/>')
        else:
            steps = "".join(f"V{y}H{scale(x1)}" for x1, y in zip(edges[1:], tops, strict=True))
            style = _STYLES[number % 3]
            out.append(
                f'<path class="line s-{style}" d="M{scale(edges[0])} {bottom}{steps}V{bottom}"/>'
            )
    for number, (value, label) in enumerate(sorted(shown, key=lambda v: v[0])):
        x, y = scale(value), 12 + 17 * number
        words = f"{label}: {in_unit(value, unit)}"
        # the lowest line's words go to its left, where no other line crosses them
        side = "end" if (number == 0 and x > 8 * len(words)) or x > width - 8 * len(words) else ""
        out.append(f'<path class="ref {"dash" if number % 2 else ""}" d="M{x} {y - 8}V{bottom}"/>')
        out.append(_text(x - 6 if side else x + 6, y + 2, words, side))
    out += scale.ticks(nice_ticks(low, high, _TICKS), bottom, bottom, unit)
    return _svg(out, width, bottom + 24, about)


def cascade(
    stages: Sequence[str], series: Mapping[str, Sequence[float | None]], about: str,
    width: int = WIDTH, labels: int = 190,
) -> Markup:  # fmt: skip
    """Stages from top to bottom, a line of values in about [0, 1] for each series: names of layers
    are too long for a horizontal axis."""
    top = 26
    bottom = top + len(stages) * _ROW
    known = [v for values in series.values() for v in values if v is not None]
    scale = _Axis(min([0.0, *known]), max([1.0, *known]), labels + 10, width - 16)
    ticks = nice_ticks(scale.low, scale.high, _TICKS)
    out = [*scale.ticks(ticks, top, bottom, "score")]
    for row, stage in enumerate(stages):
        out.append(_text(0, top + row * _ROW + 17, stage, "", labels))
    for number, values in enumerate(series.values()):
        style = _STYLES[number % 3]
        points = [(scale(v), top + row * _ROW + 12.5) for row, v in enumerate(values)
                  if v is not None]  # fmt: skip
        out += _curve(points, style)
    out += _legend(list(series), labels + 10, 12)
    return _svg(out, width, bottom + 24, about)


def curves(
    xs: Sequence[float], series: Mapping[str, Sequence[float | None]], x_name: str, y_name: str,
    about: str, width: int = WIDTH,
) -> Markup:  # fmt: skip
    """One line for each series over xs in per cent; a legend of marker and dash names them."""
    top, height, left = 40, 150, 56
    bottom = top + height
    known = [v for values in series.values() for v in values if v is not None]
    low, high, ticks = _scale(known, "score", False)
    across = _Axis(min(xs), max(xs), left, width - 16)
    out = []
    for tick in ticks:
        y = round(bottom - height * (tick - low) / (high - low), 1)
        out.append(f'<path class="grid" d="M{left} {y}H{width - 16}"/>')
        out.append(_text(left - 8, y + 4, _plain(tick), "end soft"))
    for number, values in enumerate(series.values()):
        points = [(across(x), round(bottom - height * (v - low) / (high - low), 1))
                  for x, v in zip(xs, values, strict=True) if v is not None]  # fmt: skip
        out += _curve(points, _STYLES[number % 3])
    for x in xs:
        out.append(_text(across(x), bottom + 16, f"{x:g}", "mid soft"))
    out.append(_text(width - 16, bottom + 34, x_name, "end soft"))
    out.append(_text(0, 28, y_name, "soft"))
    out += _legend(list(series), 0, 12)
    return _svg(out, width, bottom + 40, about)


def nice_ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """About `count` round numbers between low and high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


class _Axis:
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
            words = _plain(100 * tick if unit == "share" else tick, signed)
            out.append(f'<path class="grid" d="M{x} {top}V{bottom + 4}"/>')
            sign = " %" if unit == "share" and not signed else ""  # a difference is in points
            out.append(_text(x, bottom + 18, words + sign, "mid soft"))
        return out


def _scale(values: Sequence[float], unit: str, signed: bool) -> tuple[float, float, list[float]]:
    if not values:
        values = [0.0, 1.0]
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - room, high + room
    if unit == "share" and not signed:
        low, high = max(0.0, low), min(1.0, high)
        high = max(high, low + 1e-6)
    return low, high, nice_ticks(low, high, 4)


def _curve(points: Sequence[tuple[float, float]], style: str) -> list[str]:
    if not points:
        return []
    path = "L".join(f"{x} {y}" for x, y in points)
    return [f'<path class="line s-{style}" d="M{path}"/>', *(_mark(x, y, style) for x, y in points)]


def _mark(x: float, y: float, style: str) -> str:
    """A circle, a square or a triangle: series differ in print and for colour-blind readers too."""
    if style == "a":
        return f'<circle class="dot s-a" cx="{x}" cy="{y}" r="4"/>'
    if style == "b":
        return (
            f'<rect class="dot s-b" x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'
        )
    return f'<path class="dot s-c" d="M{x} {y - 5:.1f}l4.8 8.4h-9.6z"/>'


def _diamond(x: float, y: float) -> str:
    return f'<path class="chance" d="M{x} {y - 6}l6 6l-6 6l-6-6z"/>'


def _legend(names: Sequence[str], x: float, y: float) -> list[str]:
    out = []
    for number, name in enumerate(names):
        style = _STYLES[number % 3]
        out.append(f'<path class="line s-{style}" d="M{x} {y - 4}h26"/>')
        out += [_mark(x + 13, y - 4, style), _text(x + 32, y, name)]
        x += 50 + 7 * len(name)
    return out


def _plain(value: float, signed: bool = False) -> str:
    text = f"{value:{'+' if signed and value else ''}.10g}"
    return text.replace("-", "−")


def _text(x: float, y: float, words: str, kind: str = "", room: float = 0) -> str:
    """Text at x, y; words too long for `room` px lose their middle, the whole stands in a title."""
    shown, title = words, ""
    most = int(room / 7) if room else 0
    if most and len(words) > most:
        shown = f"{words[: most // 2]}…{words[len(words) - most // 2 + 1 :]}"
        title = f"<title>{escape(words)}</title>"
    return f'<text class="{kind}" x="{round(x, 1)}" y="{round(y, 1)}">{title}{escape(shown)}</text>'


def _svg(parts: Sequence[str], width: float, height: float, about: str) -> Markup:
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    return Markup(  # noqa: S704 - numbers of ours, and words that went through escape
        f'<svg class="chart" {size} role="img" aria-label="{escape(about)}">{"".join(parts)}</svg>'
    )
