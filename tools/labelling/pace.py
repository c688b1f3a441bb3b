"""How fast a session goes: working time from the history, films an hour, and words for times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from labelling.session import DONE_STATES

PAUSE_S = 300.0  # a longer gap between two answers is a break, not work
BURST_S = 1.0  # answers this close were given at one stroke, as on a sheet of `review`
_ENOUGH = 3  # films; below, a rate would be a guess
_ENOUGH_S = 60.0  # working time; in less, two sheets accepted in a row are "50,000 films an hour"


@dataclass(frozen=True)
class Pace:
    """`finished` films in all, `working_s` without breaks, and the rate, None while too few."""

    finished: int = 0
    working_s: float = 0.0
    films_per_hour: float | None = None

    def seconds_for(self, films: int) -> float | None:
        """How long so many films will take; None where the rate is not known."""
        return films / self.films_per_hour * 3600 if self.films_per_hour else None


def working_seconds(times: Iterable[float], pause_s: float = PAUSE_S) -> float:
    """Sum of the gaps between neighbouring times (s, in any order); gaps over `pause_s` are 0."""
    gaps = [after - before for before, after in pairwise(sorted(times))]
    return sum(gap for gap in gaps if gap <= pause_s)


def measure_pace(history: Iterable[Mapping[str, Any]]) -> Pace:
    """The pace from `Session.history()`. Imported answers took no work here and do not count.

    The films that open a stretch of work are left out of the rate: the time that they took lies
    before the first answer and is not known. On sheets of 24 they would double the rate.
    """
    events = sorted(_read_events(history))
    first_done: dict[int, float] = {}
    for seconds, number, state in events:
        if state in DONE_STATES:
            first_done.setdefault(number, seconds)
    times = [seconds for seconds, _, _ in events]
    working_s = working_seconds(times)
    openings = _find_openings(times)
    timed = sum(seconds not in openings for seconds in first_done.values())
    known = len(first_done) >= _ENOUGH and timed > 0 and working_s >= _ENOUGH_S
    rate = timed / working_s * 3600 if known else None
    return Pace(len(first_done), working_s, rate)


def _read_events(history: Iterable[Mapping[str, Any]]) -> list[tuple[float, int, str]]:
    events = []
    for entry in history:
        number = entry.get("number")
        if entry.get("via") == "import" or not isinstance(number, int):
            continue
        try:
            time = datetime.fromisoformat(str(entry.get("time")))
        except ValueError:
            continue  # a line that somebody edited; one line is no reason to give no status
        aware = time if time.tzinfo else time.replace(tzinfo=UTC)
        events.append((aware.timestamp(), number, str(entry.get("state"))))
    return events


def _find_openings(times: Sequence[float]) -> set[float]:
    """The times of the bursts that open a stretch of work: after a break, or the very first."""
    openings: set[float] = set()
    before: float | None = None
    for seconds in times:
        gap = PAUSE_S + 1 if before is None else seconds - before
        if gap > PAUSE_S or (gap <= BURST_S and before in openings):
            openings.add(seconds)
        before = seconds
    return openings


def say_duration(seconds: float) -> str:
    """A time as a person would say it: about 4 min, about 1 h 20 min."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes > 30:
        minutes = 5 * round(minutes / 5)  # no finer than the estimate is good for
    hours, rest = divmod(minutes, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{rest} min"] * (rest > 0)
    return "about " + " ".join(parts)
