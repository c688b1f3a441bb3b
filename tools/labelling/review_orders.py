"""The words of a review's command line, read into orders: which films, and what becomes of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from labelling.session import SKIP_FLAGS

EDGES = ("left", "top", "right", "bottom")
_OWN_FLAGS = ("apices cut off",)  # the other flags are what skip, doubtful and accept set
_EXAMPLES = {
    "set": '"7:left=0.10,bottom=0.93; 9:top=0.05"',
    "skip": '"12=not frontal; 15=unreadable"',
    "flag": '"4=apices cut off"',
}

Spans = tuple[tuple[int, int], ...]  # first and last number of each run, both included


@dataclass(frozen=True)
class Orders:
    """The words of one call. `set_`: edges as fractions of the film, or label, by name."""

    set_: tuple[tuple[Spans, dict[str, float | str]], ...] = ()
    skip: tuple[tuple[Spans, str], ...] = ()
    flag: tuple[tuple[Spans, str], ...] = ()
    doubtful: Spans = ()
    accept: Spans = ()
    but: Spans = ()

    def __bool__(self) -> bool:
        return any((self.set_, self.skip, self.flag, self.doubtful, self.accept))


def parse_orders(
    set_: str = "",
    skip: str = "",
    flag: str = "",
    doubtful: str = "",
    accept: str = "",
    but: str = "",
) -> Orders:
    """Read the words of the command line; raises ValueError with the word that is wrong."""
    if but.strip() and not accept.strip():
        raise ValueError(f"but takes films out of accept. Got but {but!r} without an accept.")
    return Orders(
        tuple((spans, _parse_edges(words)) for spans, words in _parse_pairs("set", set_, ":")),
        tuple(_parse_flags("skip", skip, SKIP_FLAGS)),
        tuple(_parse_flags("flag", flag, _OWN_FLAGS)),
        parse_numbers("doubtful", doubtful),
        parse_numbers("accept", accept),
        parse_numbers("but", but),
    )


def parse_numbers(name: str, text: str) -> Spans:
    """`1-24,30` as ((1, 24), (30, 30)); raises ValueError for what are no numbers."""
    spans = []
    for part in text.split(",") if text.strip() else ():
        first, dash, last = (word.strip() for word in part.partition("-"))
        # isdecimal alone lets digits of other scripts pass
        if not (first.isascii() and first.isdecimal()) or (dash and not last.isdecimal()):
            raise ValueError(
                f"{name} must be films' numbers such as 1-24,30. Got {text!r} instead."
            )
        span = (int(first), int(last or first))
        if span[0] > span[1]:
            raise ValueError(
                f"{name} must give the lower number first. Got {part.strip()} instead."
            )
        spans.append(span)
    return tuple(spans)


def _parse_pairs(name: str, text: str, sign: str) -> list[tuple[Spans, str]]:
    pairs = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        numbers, found, words = part.partition(sign)
        if not found or not numbers.strip() or not words.strip():
            raise ValueError(f"{name} must look like {_EXAMPLES[name]}. Got {part!r} instead.")
        pairs.append((parse_numbers(name, numbers), words.strip()))
    return pairs


def _parse_flags(name: str, text: str, allowed: Collection[str]) -> list[tuple[Spans, str]]:
    pairs = _parse_pairs(name, text, "=")
    for _, word in pairs:
        if word not in allowed:
            raise ValueError(
                f"{name} must give one of: {', '.join(allowed)}. Got {word!r} instead."
            )
    return pairs


def _parse_edges(words: str) -> dict[str, float | str]:
    edges: dict[str, float | str] = {}
    for word in words.split(","):
        name, _, value = (w.strip() for w in word.partition("="))
        if name not in (*EDGES, "label"):
            raise ValueError(
                f"set must name left, top, right, bottom or label. Got {word.strip()!r} instead."
            )
        if name in edges:
            raise ValueError(f"set must name each edge once. Got {name} twice in {words!r}.")
        edges[name] = value if name == "label" else _parse_fraction(name, value)
    return edges


def _parse_fraction(name: str, value: str) -> float:
    try:
        fraction = float(value)
    except ValueError:
        fraction = float("nan")
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"set must give {name} as a fraction of the film's width or height, 0 to "
            f"1. Got {value!r} instead."
        )
    return fraction
