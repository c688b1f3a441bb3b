"""Timers that take turns: medians over the same films on the same machine, and how far they spread.

Single times mean little on a machine that others share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Timer(NamedTuple):
    """What is timed in round n, and how many films that does."""

    name: str
    call: Callable[[int], Any]
    films: int = 1


Group = list[dict[str, Any]]


def time_in_turns(timers: Sequence[Timer], rounds: int, ratios: bool = True) -> Group:
    """Rows of name, median milliseconds a film with its quartiles and ratio to the first, of rounds
    0 … n − 1, A B C A B C …, after one warm-up each."""
    for timer in timers:
        timer.call(0)
    taken: list[list[float]] = [[] for _ in timers]
    for number in range(rounds):
        for timer, seconds in zip(timers, taken, strict=True):
            start = time.perf_counter()
            timer.call(number)
            seconds.append((time.perf_counter() - start) / timer.films)
    quartiles = [np.percentile(seconds, (50, 25, 75)) * 1e3 for seconds in taken]
    first = quartiles[0][0]
    return [
        {
            "what": timer.name,
            "ms": round(float(middle), 2),
            "quartiles": [round(float(low), 2), round(float(high), 2)],
            "ratio": round(float(middle / first), 3) if ratios else None,
        }
        for timer, (middle, low, high) in zip(timers, quartiles, strict=True)
    ]
