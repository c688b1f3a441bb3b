"""Width against height of the films as inline SVG, with the fitted slope of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from cxr.page.charts import LETTER, NARROW, WIDTH, Axis, nice_ticks, svg, text_at

MOST_DOTS = 400  # of a class; the fit takes all films
_STYLES = "abcdef"  # classes .k-a … of the style sheet: colour, and dash of the fitted line
# a dot, a square, a dash, a stroke: told apart in print and by colour-blind readers too
_MARKS = ("h0", "h0", "m-2 0h4", "m0 -2v4", "m-2 -2l4 4", "m-2 2l4 -4")


@dataclass(frozen=True)
class Fit:
    """Least squares of height on width: height = intercept + slope × width, in px; None where all
    films are equally wide. `ratio` is the median of height / width."""

    n: int
    slope: float | None
    intercept: float | None
    ratio: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    @property
    def words(self) -> str:
        """For a table and the legend."""
        if self.slope is None:
            return "all of one width"
        return f"{round(self.slope, 3) + 0:.3f}".replace("-", "−")  # + 0: no minus before a zero


def fit_slope(sizes_wh: np.ndarray) -> Fit:
    """The fit of (N, 2) widths and heights."""
    wide, high = sizes_wh[:, 0].astype(np.float64), sizes_wh[:, 1].astype(np.float64)
    if not len(wide):
        return Fit(0, None, None, None)
    ratio = float(np.median(high / wide))
    spread = float(((wide - wide.mean()) ** 2).sum())
    if spread == 0:
        return Fit(len(wide), None, None, ratio)
    slope = float(((wide - wide.mean()) * (high - high.mean())).sum()) / spread
    return Fit(len(wide), slope, float(high.mean() - slope * wide.mean()), ratio)


def size_scatter(
    series: Mapping[str, np.ndarray], about: str, seed: int = 0, width: int = WIDTH
) -> Markup:
    """A chart of name → (N, 2) sizes; at most MOST_DOTS films of a class are drawn, by seed."""
    shown = {name: sizes for name, sizes in series.items() if len(sizes)}
    every = np.concatenate(list(shown.values())) if shown else np.ones((1, 2))
    fits = {name: fit_slope(sizes) for name, sizes in shown.items()}
    out, y = _legend([_label(name, fit) for name, fit in fits.items()], width)
    out.append(text_at(0, y + 24, "height, px", "soft"))
    top, left = y + 36, 62
    bottom = top + (230 if width > NARROW else 190)
    across = Axis(*_range(every[:, 0]), left, width - 14)
    up = Axis(*_range(every[:, 1]), bottom, top)
    for tick in nice_ticks(up.low, up.high, 4):
        out.append(f'<path class="grid" d="M{left} {up(tick)}H{width - 14}"/>')
        out.append(text_at(left - 8, up(tick) + 4, f"{tick:g}", "end soft"))
    out += across.ticks(
        nice_ticks(across.low, across.high, 4 if width > NARROW else 3), top, bottom, "px"
    )
    rng = np.random.default_rng(seed)
    for number, sizes in enumerate(shown.values()):
        some = sizes if len(sizes) <= MOST_DOTS else rng.choice(sizes, MOST_DOTS, replace=False)
        spots = "".join(f"M{across(w)} {up(h)}{_MARKS[number % 6]}" for w, h in some.tolist())
        out.append(f'<path class="spots k-{_STYLES[number % 6]}" d="{spots}"/>')
    for number, (name, sizes) in enumerate(shown.items()):
        out += _line(fits[name], sizes[:, 0], across, up, _STYLES[number % 6])
    out.append(text_at(width - 14, bottom + 34, "width, px", "end soft"))
    return svg(out, width, bottom + 40, about)


def _label(name: str, fit: Fit) -> str:
    return f"{name}: {fit.words if fit.slope is None else f'slope {fit.words}'}"


def _line(fit: Fit, wide: np.ndarray, across: Axis, up: Axis, style: str) -> list[str]:
    """The fitted line over the widths of its class, cut off where it would leave the chart."""
    if fit.slope is None or fit.intercept is None:
        return []
    ends = []
    for w in (float(wide.min()), float(wide.max())):
        h = min(max(fit.intercept + fit.slope * w, up.low), up.high)
        at = (h - fit.intercept) / fit.slope if fit.slope else w
        ends.append(f"{across(at)} {up(h)}")
    path = "L".join(ends)
    return [f'<path class="under" d="M{path}"/>', f'<path class="fit k-{style}" d="M{path}"/>']


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) or max(1.0, math.ceil(0.1 * high))
    return max(0.0, low - room), high + room


def _legend(names: Sequence[str], width: float, top: float = 12) -> tuple[list[str], float]:
    """Line, mark and name of each class, in as many rows as they need; and where they end."""
    out, x, y = [], 0.0, top
    for number, name in enumerate(names):
        style, wide = _STYLES[number % 6], 34 + LETTER * len(name)
        if x and x + wide > width:
            x, y = 0.0, y + 18
        out.append(f'<path class="fit k-{style}" d="M{x:.1f} {y - 4}h26"/>')
        dot = f"M{x + 13:.1f} {y - 4}{_MARKS[number % 6]}"
        out += [
            f'<path class="spots k-{style}" d="{dot}"/>',
            text_at(x + 32, y, name, "", width - 40),
        ]
        x += wide + 14
    return out, y
