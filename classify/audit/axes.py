"""Axes, marks, legends and texts that the audit page's charts are put together from.

Colours and sizes of letters come from the page's style sheet; every text passes through `escape`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, NARROW = 540, 330  # px: in two columns on a desk; on a telephone and in print
TICKS = 5
LETTER = 7.2  # px; about as wide as a letter of the charts' 13 px type is at most, on average
_STYLES = ("a", "b", "c")  # classes .s-a … of the style sheet: colour and dash


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
        return (
            f'<rect class="dot s-b" x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'
        )
    return f'<path class="dot s-c" d="M{x} {y - 5:.1f}l4.8 8.4h-9.6z"/>'


def diamond(x: float, y: float) -> str:
    """The sign of a chance level."""
    return f'<path class="chance" d="M{x} {y - 6}l6 6l-6 6l-6-6z"/>'


def legend(names: Sequence[str], width: float, top: float = 12) -> tuple[list[str], float]:
    """Line, mark and name of each series, in as many rows as they need; and where they end."""
    out, x, y = [], 0.0, top
    for number, name in enumerate(names):
        style, wide = style_of(number), 34 + LETTER * len(name)
        if x and x + wide > width:
            x, y = 0.0, y + 18
        out.append(f'<path class="line s-{style}" d="M{x:.1f} {y - 4}h26"/>')
        out += [mark(x + 13, y - 4, style), text_at(x + 32, y, name)]
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
