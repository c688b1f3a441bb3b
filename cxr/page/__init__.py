"""One kit for every HTML page: charts, pictures, parts, and the page that holds them; and here how
pages say figures, names and decisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

DECISIONS = {
    "read": ("●", "read"),
    "definitely_normal": ("○", "definitely normal"),
    "not_read_by_model": ("–", "not judged"),
}
_DIGITS = {"ratio": 2, "sd": 2}


def printable(text: str, instead: str | None = None) -> str:
    """Text with control, direction and undecodable characters spelt out, or replaced by `instead`:
    they can deceive a reader or break a file."""
    if text.isprintable():
        return text
    spelt = (c.encode("unicode_escape").decode() if instead is None else instead for c in text)
    return "".join(c if c.isprintable() else s for c, s in zip(text, spelt, strict=True))


def name_of(film: str) -> str:
    """A film's file name without its folders."""
    return film.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or film


def in_unit(value: float | None, unit: str, signed: bool = False) -> str:
    """A figure as it is read: "46 %", "1.24 ×", "0.912"; "–" where it is undefined."""
    if value is None:
        return "–"
    if unit == "share":
        digits = 0 if abs(value) >= 0.0995 else 1 if abs(value) >= 0.00995 or value == 0 else 2
        return f"{100 * value:{'+' if signed else ''}.{digits}f} %".replace("-", "−")
    digits = _DIGITS.get(unit, 3)
    text = f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")
    return f"{text} ×" if unit == "ratio" else text


def interval(
    value: float | None, low: float | None, high: float | None, unit: str, signed: bool = False
) -> str:
    """A figure with its interval: "1.24 × [1.20, 1.28]"."""
    if value is None:
        return "undefined"
    if low is None or high is None:
        return in_unit(value, unit, signed)
    small = max(abs(low), abs(high)) < 0.02
    factor, digits = (100, 1 + small) if unit == "share" else (1, _DIGITS.get(unit, 3))
    ends = (f"{factor * v:{'+' if signed else ''}.{digits}f}" for v in (low, high))
    middle = f"{factor * value:{'+' if signed else ''}.{digits}f}"
    sign = {"share": " %", "ratio": " ×"}.get(unit, "")
    return f"{middle}{sign} [{', '.join(ends)}]".replace("-", "−")


def p_value(p: float | None) -> str:
    """A test's p as printed: never 0, because no test shows that."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def whole(value: Any) -> str:
    """A count as it is read."""
    return "–" if value is None else f"{round(value):,}"


def listed(names: Iterable[str]) -> str:
    """Names as they stand in a sentence: "a, b and c"."""
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
