"""annotate.py status: how far a session is, how fast it goes, how the pre-labels were changed."""

from __future__ import annotations

import math
import shlex
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cxr.boxes import as_boxes, iou_xyxy
from cxr.workdir import write_json
from detect.metrics import SIDES
from labelling.session import DONE_STATES, Answer, Session, SessionFilm, count_states, so_many

PAUSE_S = 300.0  # a longer gap between two answers is a break, not work
BURST_S = 1.0  # answers this close were given at one stroke, as on a sheet of `review`
_ENOUGH = 3  # films; below, a rate would be a guess
_ENOUGH_S = 60.0  # working time; in less, two sheets accepted in a row are "50,000 films an hour"
_BARS = 30  # characters of the longest bar
_ENDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # of the bins of IoU, the upper ones
_BINS = ("below 0.5", *(f"{low:g} to {high:g}" for low, high in pairwise((*_ENDS, 1))))
UNCHANGED = "unchanged"  # boxes that nobody moved have a bin of their own
_STATES = {  # state: how a row of it begins, and what it means
    "done": ("done", ""),
    "accepted": ("  accepted", "the pre-drawn box stands as it was"),
    "corrected": ("  corrected", "the pre-drawn box was moved"),
    "drawn": ("  drawn", "there was no pre-drawn box"),
    "skipped": ("  skipped", "ticked as unreadable or not frontal"),
    "todo": ("to do", ""),
    "doubtful": ("  doubtful", "ticked as doubtful, to be looked at again"),
    "unreadable": ("unreadable", "the file cannot be opened, or is there twice"),
}


@dataclass(frozen=True)
class StatusConfig:
    """Show how far labelling sessions are: films done and to do, films an hour, time to the end,
    and how much the pre-drawn boxes were changed.

    Args:
        session: one or more session folders, as `annotate.py start` made them.
        json: also write the figures to this JSON file.
    """

    session: tuple[str, ...] = ()
    json: str = ""

    def __post_init__(self) -> None:
        if not self.session:
            raise ValueError("session must name at least one session folder. Got none instead.")


class Pace(NamedTuple):
    """`finished` films in all, `working_s` without breaks, and the rate, None while too few."""

    finished: int
    working_s: float
    films_per_hour: float | None


def run(config: StatusConfig) -> int:
    """Show each session; 1 when one could not be opened, the others are shown all the same."""
    console = Console(highlight=False)
    statuses, code = [], 0
    for path in config.session:
        try:
            statuses.append(summarise(Session.open(path)))
            show(statuses[-1], console)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            code = 1
    if config.json and statuses:
        try:
            write_json(config.json, {"sessions": statuses})
        except OSError as error:
            print(f"--json must name a file that can be written. {error}", file=sys.stderr)
            code = 1
    return code


def summarise(session: Session) -> dict[str, Any]:
    """Count and compare what the label files say now; writes nothing.

    As `--json` has it. `seconds_left` is None while the pace is not known, `change` while no box
    has a pre-label to compare with.
    """
    answers = session.answers()
    labels = sorted({film.label for film in session.films})
    by_label = {label: count_states(a for f, a in answers if f.label == label) for label in labels}
    counts = count_states(answer for _, answer in answers)
    pace = measure_pace(session.history())
    rate = pace.films_per_hour
    return {
        "session": str(session.path),
        "session_id": session.session_id,
        "annotator": session.annotator,
        "counts": counts,
        "by_label": by_label if len(labels) > 1 else {},
        "unusable_label_files": sum(bool(a.fault) and a.state != "unreadable" for _, a in answers),
        "pace": pace._asdict(),
        "seconds_left": counts["todo"] / rate * 3600 if rate else None,
        "change": compare_boxes(answers),
    }


def measure_pace(history: Iterable[Mapping[str, Any]]) -> Pace:
    """The pace from `Session.history()`. Imported answers took no work here and do not count.

    The films that open a stretch of work are left out of the rate: the time that they took lies
    before the first answer and is not known. On sheets of 24 they would double the rate.
    """
    first_done: dict[int, float] = {}
    openings: set[float] = set()  # times of the bursts after a break, or of the very first
    working_s, before = 0.0, -math.inf
    for seconds, number, state in sorted(_read_events(history)):
        gap = seconds - before
        working_s += gap if gap <= PAUSE_S else 0
        if gap > PAUSE_S or (gap <= BURST_S and before in openings):
            openings.add(seconds)
        if state in DONE_STATES:
            first_done.setdefault(number, seconds)
        before = seconds
    timed = sum(seconds not in openings for seconds in first_done.values())
    known = len(first_done) >= _ENOUGH and timed > 0 and working_s >= _ENOUGH_S
    return Pace(len(first_done), working_s, timed / working_s * 3600 if known else None)


def _read_events(history: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, int, str]]:
    """Time (s), film and state of each answer given here."""
    for entry in history:
        number = entry.get("number")
        # a line that somebody edited; one line is no reason to give no status
        with suppress(ValueError):
            time = datetime.fromisoformat(str(entry.get("time")))
            aware = time if time.tzinfo else time.replace(tzinfo=UTC)
            if entry.get("via") != "import" and isinstance(number, int):
                yield aware.timestamp(), number, str(entry.get("state"))


def compare_boxes(answers: Iterable[tuple[SessionFilm, Answer]]) -> dict[str, Any] | None:
    """Final boxes against their pre-labels, the unchanged ones included; None without such a pair.

    `histogram`: boxes by bin of IoU, the least alike first. `shift_percent`: by side, mean shift in
    % of the final box' width or height, + is outwards; `distance_percent`: mean absolute shift.
    """
    pairs = [
        (film.prelabel_xyxy, answer.box.xyxy, answer.state == "accepted")
        for film, answer in answers
        if film.prelabel_xyxy and answer.box
    ]
    if not pairs:
        return None
    ious = [float(iou_xyxy(before, after)[0, 0]) for before, after, _ in pairs]
    moved = [not same for *_, same in pairs]
    bins = Counter(name_bin(v) if m else UNCHANGED for v, m in zip(ious, moved, strict=True))
    shifts = np.concatenate([shift_percent(before, after) for before, after, _ in pairs])
    return {
        "boxes": len(pairs),
        "mean_iou": fmean(ious),
        "median_iou": median(ious),
        "histogram": {name: bins[name] for name in (*_BINS, UNCHANGED)},
        "shift_percent": dict(zip(SIDES, shifts.mean(0).tolist(), strict=True)),
        "distance_percent": dict(zip(SIDES, np.abs(shifts).mean(0).tolist(), strict=True)),
    }


def name_bin(iou: float) -> str:
    """The bin of the histogram that an IoU in [0, 1] of a moved box falls into."""
    return _BINS[bisect_right(_ENDS, iou)]


def shift_percent(before_xyxy: Any, after_xyxy: Any) -> np.ndarray:
    """(N, 4) how far left, top, right and bottom edge moved outwards, in % of the later box."""
    before, after = as_boxes(before_xyxy), as_boxes(after_xyxy)
    size = np.tile(after[:, 2:] - after[:, :2], 2)
    return (after - before) * [-1, -1, 1, 1] / size * 100


def show(status: dict[str, Any], console: Console) -> None:
    """Print one session."""
    films = status["counts"]["films"]
    title = f"\n{status['session']}: {so_many(films, 'film')}, annotator {status['annotator']}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    table = _table("films", "", "")
    table.add_column()
    for name, (words, meaning) in _STATES.items():
        count, top = status["counts"][name], not words.startswith(" ")
        share = f"{100 * count / films:.0f} %" if top and count else ""
        table.add_row(words, str(count), share, meaning, style="bold" if top else "")
    console.print(table)
    if by_label := status["by_label"]:  # without states that no film is in: it must fit a terminal
        states = [s for s in _STATES if any(counts[s] for counts in by_label.values())]
        table = _table("by label", *(_STATES[s][0].strip() for s in states))
        for label, counts in by_label.items():
            table.add_row(Text(label or "no label"), *(str(counts[s]) for s in states))
        console.print("", table, sep="\n")
    for line in _say_pace(status):
        console.print(Text(line), soft_wrap=True)
    if status["change"]:
        _show_change(status["change"], console)


def _table(first: str, *others: str) -> Table:
    """An empty table, its first column to the left and the others to the right."""
    table = Table(first, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for head in others:
        table.add_column(head, justify="right")
    return table


def _say_pace(status: dict[str, Any]) -> Iterator[str]:
    yield ""
    rate, worked = status["pace"]["films_per_hour"], say_duration(status["pace"]["working_s"])
    if rate is None:
        yield "Films an hour: too few films to tell."
    else:
        yield f"Films an hour: {rate:.0f} ({worked} of work; breaks of more than 5 min left out)."
    if not status["counts"]["todo"]:
        yield "To the end: nothing left to do."
    elif rate is not None:
        yield f"To the end: {say_duration(status['seconds_left'])}."
    if unusable := status["unusable_label_files"]:
        yield (
            f"{unusable} of those to do have a label file that cannot be used. To see which: "
            f"python tools/annotate.py check {shlex.quote(status['session'])}"
        )


def say_duration(seconds: float) -> str:
    """A time as a person would say it: about 4 min, about 1 h 20 min."""
    minutes = round(seconds / 60)
    if minutes > 30:
        minutes = 5 * round(minutes / 5)  # no finer than the estimate is good for
    parts = zip(divmod(minutes, 60), ("h", "min"), strict=True)
    said = " ".join(f"{number} {unit}" for number, unit in parts if number)
    return f"about {said}" if said else "less than a minute"


def _show_change(change: dict[str, Any], console: Console) -> None:
    bars = _table("IoU", "boxes")
    bars.add_column()
    top = max(change["histogram"].values())
    for name, count in change["histogram"].items():
        # One box among hundreds must still be seen.
        length = max(1, round(_BARS * count / top)) if count else 0
        bars.add_row(name, str(count), Text("█" * length, style="green"))
    edges = _table("edge", "mean shift", "mean distance")
    for side in SIDES:
        shift = round(change["shift_percent"][side], 1) + 0.0  # no minus before a zero
        edges.add_row(side, f"{shift:+.1f} %", f"{change['distance_percent'][side]:.1f} %")
    console.print(
        f"\nFinal boxes against the pre-drawn ones: {change['boxes']}\n"
        "IoU is 1 for the same box and 0 for boxes that do not touch.\n",
        bars,
        f"\nMean IoU {change['mean_iou']:.3f}, median {change['median_iou']:.3f}.\n"
        "Edges moved by, in % of the box' width or height; + is outwards:\n",
        edges,
        sep="\n",
    )
