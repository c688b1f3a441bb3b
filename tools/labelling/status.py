"""annotate.py status: how far a session is, how fast it goes, how the pre-labels were changed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cxr.boxes import as_boxes, iou_xyxy
from cxr.cli import to_plain
from cxr.workdir import write_json
from labelling.pace import Pace, measure_pace, say_duration
from labelling.session import Answer, Counts, Session, SessionFilm, count_states

SIDES = ("left", "top", "right", "bottom")
_BARS = 30  # characters of the longest bar
# Lower ends of the bins of IoU; boxes that nobody moved have a bin of their own.
_EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_NAMES = (
    "below 0.5",
    *(f"{low:g} to {high:g}" for low, high in zip(_EDGES[1:], (*_EDGES[2:], 1), strict=True)),
)
UNCHANGED = "unchanged"


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


@dataclass(frozen=True)
class BoxChange:
    """Final boxes against their pre-labels, the unchanged ones included.

    Attributes:
        boxes: how many are compared.
        histogram: (bin of IoU, boxes), the least alike first.
        shift_percent: by side, mean shift in % of the final box' width or height; + is outwards.
        distance_percent: by side, mean absolute shift.
    """

    boxes: int
    mean_iou: float
    median_iou: float
    histogram: tuple[tuple[str, int], ...]
    shift_percent: dict[str, float]
    distance_percent: dict[str, float]


@dataclass(frozen=True)
class SessionStatus:
    """What `status` shows of one session. `seconds_left` is None while the pace is not known,
    `change` while no box has a pre-label to compare with."""

    session: str
    session_id: str
    annotator: str
    counts: Counts
    by_label: dict[str, Counts] = field(default_factory=dict)
    unusable_label_files: int = 0
    pace: Pace = field(default_factory=Pace)
    seconds_left: float | None = None
    change: BoxChange | None = None


def run(config: StatusConfig) -> int:
    """Show each session; 1 when one could not be opened, the others are shown all the same."""
    console = Console(highlight=False)
    statuses = []
    for path in config.session:
        try:
            statuses.append(summarise(Session.open(path)))
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            continue
        show(statuses[-1], console)
    if config.json and statuses:
        try:
            write_json(config.json, {"sessions": [_to_json(status) for status in statuses]})
        except OSError as error:
            print(f"--json must name a file that can be written. {error}", file=sys.stderr)
            return 1
    return 0 if len(statuses) == len(config.session) else 1


def summarise(session: Session) -> SessionStatus:
    """Count and compare what the label files say now; writes nothing."""
    answers = session.answers()
    labels = sorted({film.label for film in session.films})
    counts = count_states(answer for _, answer in answers)
    pace = measure_pace(session.history())
    return SessionStatus(
        str(session.path),
        session.session_id,
        session.annotator,
        counts,
        {label: count_states(a for f, a in answers if f.label == label) for label in labels}
        if len(labels) > 1
        else {},
        sum(bool(a.fault) and a.state != "unreadable" for _, a in answers),
        pace,
        pace.seconds_for(counts.todo),
        compare_boxes(answers),
    )


def compare_boxes(answers: Iterable[tuple[SessionFilm, Answer]]) -> BoxChange | None:
    """Each final box against its film's pre-label; None when there is no such pair."""
    pairs = [
        (film.prelabel_xyxy, answer.box.xyxy, answer.state == "accepted")
        for film, answer in answers
        if film.prelabel_xyxy and answer.box
    ]
    if not pairs:
        return None
    ious = [float(iou_xyxy(before, after)[0, 0]) for before, after, _ in pairs]
    bins = [
        UNCHANGED if same else name_bin(iou) for iou, (_, _, same) in zip(ious, pairs, strict=True)
    ]
    shifts = np.concatenate([shift_percent(before, after) for before, after, _ in pairs])
    return BoxChange(
        len(pairs),
        fmean(ious),
        median(ious),
        tuple((name, bins.count(name)) for name in (*_NAMES, UNCHANGED)),
        dict(zip(SIDES, map(float, shifts.mean(0)), strict=True)),
        dict(zip(SIDES, map(float, np.abs(shifts).mean(0)), strict=True)),
    )


def name_bin(iou: float) -> str:
    """The bin of the histogram that an IoU in [0, 1] of a moved box falls into."""
    return _NAMES[sum(iou >= edge for edge in _EDGES[1:])]


def shift_percent(before_xyxy: Any, after_xyxy: Any) -> np.ndarray:
    """(N, 4) how far left, top, right and bottom edge moved outwards, in % of the later box."""
    before, after = as_boxes(before_xyxy), as_boxes(after_xyxy)
    size = np.tile(after[:, 2:] - after[:, :2], 2)
    return (after - before) * [-1, -1, 1, 1] / size * 100


def show(status: SessionStatus, console: Console) -> None:
    """Print one session."""
    films = status.counts.films
    title = f"{status.session}: {films} film{'s' * (films != 1)}, annotator {status.annotator}"
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    console.print(_draw_counts(status.counts))
    if status.by_label:
        console.print()
        console.print(_draw_labels(status.by_label))
    for line in _say_pace(status):
        console.print(Text(line), soft_wrap=True)
    if status.change:
        for part in _draw_change(status.change):
            console.print(part)


def _draw_counts(counts: Counts) -> Table:
    table = Table("films", "", "", "", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, count, meaning in (
        ("done", counts.done, ""),
        ("  accepted", counts.accepted, "the pre-drawn box stands as it was"),
        ("  corrected", counts.corrected, "the pre-drawn box was moved"),
        ("  drawn", counts.drawn, "there was no pre-drawn box"),
        ("  skipped", counts.skipped, "ticked as unreadable or not frontal"),
        ("to do", counts.todo, ""),
        ("  doubtful", counts.doubtful, "ticked as doubtful, to be looked at again"),
        ("unreadable", counts.unreadable, "the file cannot be opened, or is there twice"),
    ):
        top = not name.startswith(" ")
        share = f"{100 * count / counts.films:.0f} %" if top and count else ""
        table.add_row(name, str(count), share, meaning, style="bold" if top else "")
    return table


def _draw_labels(by_label: dict[str, Counts]) -> Table:
    """A row a label; states that no film is in are left out, so that it fits a terminal."""
    states = ("done", "accepted", "corrected", "drawn", "skipped", "todo", "doubtful", "unreadable")
    heads = [s for s in states if any(getattr(c, s) for c in by_label.values())]
    table = Table("by label", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column("to do" if head == "todo" else head, justify="right")
    for label, counts in by_label.items():
        table.add_row(Text(label or "no label"), *(str(getattr(counts, h)) for h in heads))
    return table


def _say_pace(status: SessionStatus) -> list[str]:
    pace, lines = status.pace, [""]
    if pace.films_per_hour is None:
        lines.append("Films an hour: too few films to tell.")
    else:
        lines.append(
            f"Films an hour: {pace.films_per_hour:.0f} ({say_duration(pace.working_s)} "
            "of work; breaks of more than 5 min left out)."
        )
    if not status.counts.todo:
        lines.append("To the end: nothing left to do.")
    elif status.seconds_left is not None:
        lines.append(f"To the end: {say_duration(status.seconds_left)}.")
    if status.unusable_label_files:
        lines.append(
            f"{status.unusable_label_files} of those to do have a label file that cannot "
            "be used. To see which: "
            f"python tools/annotate.py check {shlex.quote(status.session)}"
        )
    return lines


def _draw_change(change: BoxChange) -> Sequence[Any]:
    bars = Table("IoU", "boxes", "", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    bars.columns[1].justify = "right"
    top = max(count for _, count in change.histogram)
    for name, count in change.histogram:
        # One box among hundreds must still be seen.
        length = max(1, round(_BARS * count / top)) if count else 0
        bars.add_row(name, str(count), Text("█" * length, style="green"))
    edges = Table(
        "edge",
        "mean shift",
        "mean distance",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    edges.columns[1].justify = edges.columns[2].justify = "right"
    for side in SIDES:
        edges.add_row(
            side,
            f"{round(change.shift_percent[side], 1) + 0.0:+.1f} %",
            f"{change.distance_percent[side]:.1f} %",
        )
    return (
        Text(
            f"\nFinal boxes against the pre-drawn ones: {change.boxes}\n"
            "IoU is 1 for the same box and 0 for boxes that do not touch.\n"
        ),
        bars,
        Text(
            f"\nMean IoU {change.mean_iou:.3f}, median {change.median_iou:.3f}.\n"
            "Edges moved by, in % of the box' width or height; + is outwards:\n"
        ),
        edges,
    )


def _to_json(status: SessionStatus) -> dict[str, Any]:
    counts = {**to_plain(status.counts), "done": status.counts.done, "films": status.counts.films}
    change = to_plain(status.change)
    if change:
        change["histogram"] = dict(status.change.histogram) if status.change else {}
    return {**to_plain(status), "counts": counts, "change": change}
