"""An overview of a session. annotate.py status: how far it is, how fast it goes, how the pre-labels
were changed; and the sheets of `review`: films with their boxes, numbers and rulers, and the record
of what stood on them."""

from __future__ import annotations

import math
import re
import shlex
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from cxr import draw
from cxr.boxes import as_boxes, iou_xyxy
from cxr.workdir import console, read_json, write_atomic, write_json
from detect.metrics import SIDES
from labelling import DONE_STATES, Answer, Session, SessionFilm, count_states, so_many

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

# of the sheets
RECORD = "sheets.json"
_HEAD = {"schema": "lungfirst.review", "version": 1}
_TICK_INK: draw.Colour = (190, 190, 190)
_GROUND: draw.Colour = (24, 24, 24)
_TENTHS = [n / 10 for n in range(1, 10)]

Film = tuple[SessionFilm, Answer]


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
    """Count and compare what the label files say now, as `--json` has it. `seconds_left` is None
    while the pace is not known, `change` while no box has a pre-label to compare with."""
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


def draw_sheets(
    session: Session,
    films: Sequence[Film],
    folder: Path,
    per_sheet: int = 24,
    columns: int = 6,
    tile: int = 320,
    grid: bool = False,
) -> dict[Path, list[int]]:
    """Draw the films into `folder`, sheet after sheet, and record what is drawn; returns the
    numbers on each sheet. `tile`: px of one film's longer side. The sheets of an earlier call go
    away first: an old sheet must not pass for a new one."""
    parts = [films[i : i + per_sheet] for i in range(0, len(films), per_sheet)]
    names = [f"sheet_{number:03d}.png" for number in range(1, len(parts) + 1)]
    record = {**_HEAD, "session_id": session.session_id, "sheets": names, "drawn": {}}
    remove_sheets(folder)
    # The names stand in the record before the first sheet: what a stopped call drew is ours too.
    write_json(folder / RECORD, record)
    drawn: dict[int, Any] = {}
    sheets = {}
    pairs = list(zip(names, parts, strict=True))
    for name, part in track(pairs, "drawing sheets", console=console, transient=True):
        tiles = []
        for film, answer in part:
            picture, seen = draw_tile(session, film, answer, tile, grid)
            tiles.append(picture)
            if seen:
                boxes = [{"label": b.label, "xyxy": list(b.xyxy)} for b in answer.boxes]  # film px
                doubtful = "doubtful" in answer.flags
                drawn[film.number] = {"sheet": name, "boxes": boxes, "doubtful": doubtful}
        numbers = [film.number for film, _ in part]
        title = f"{session.path.resolve().name}   {name}   films {join_numbers(numbers)}"
        captions = [write_caption(film, answer) for film, answer in part]
        image = draw.sheet(tiles, captions, columns, tile, title)
        sheets[write_atomic(folder / name, draw.encode_png(image))] = numbers
    write_json(folder / RECORD, {**record, "drawn": drawn})
    return sheets


def remove_sheets(folder: Path) -> None:
    """Delete the sheets that an earlier call drew there, and their record."""
    names = _read_record(folder).get("sheets", [])
    (folder / RECORD).unlink(missing_ok=True)
    for name in names:  # a record that somebody edited must not delete other files
        if isinstance(name, str) and re.fullmatch(r"sheet_\d{3,}\.png", name):
            (folder / name).unlink(missing_ok=True)


def read_drawn(folder: Path, session: Session) -> dict[int, dict[str, Any]]:
    """What stands on the sheets in `folder`, by film's number; empty when none were drawn for
    this session."""
    record = _read_record(folder)
    if record.get("session_id") != session.session_id:
        return {}
    try:
        return {
            int(number): {
                "boxes": [{**b, "xyxy": [*map(float, b["xyxy"])]} for b in seen["boxes"]],
                "doubtful": bool(seen["doubtful"]),
            }
            for number, seen in record["drawn"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):  # edited by hand: nothing was seen
        return {}


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / RECORD)
    except (FileNotFoundError, ValueError):
        return {}
    ours = isinstance(record, dict) and all(record.get(k) == v for k, v in _HEAD.items())
    return record if ours else {}


def draw_tile(
    session: Session, film: SessionFilm, answer: Answer, tile: int = 320, grid: bool = False
) -> tuple[np.ndarray, bool]:
    """One film's view with its boxes, number and rulers, uint8 RGB of at most `tile` px; and
    whether the film is to be seen on it."""
    margin = max(12, tile // 15)
    view = _read_view(session, film)
    if view is None or film.frame is None:
        blank = np.full((tile // 2, tile - margin, 3), _GROUND, np.uint8)
        words = "cannot be read" if not film.view else "no view: run start again"
        blank = draw.draw_text(blank, words, (margin, tile // 6), draw.RED, margin)
        return draw.draw_text(blank, str(film.number), (4, 2), size=tile // 11), False
    picture = draw.fit(view, tile - margin)
    height, width = picture.shape[:2]
    scale = np.array([width / view.shape[1], height / view.shape[0]])
    film_h, film_w = film.size_hw
    # Where tenths of the film fall on the tile: views may be cut or padded, rulers count the film.
    marks = [film.frame.to_model_xyxy([film_w * t, film_h * t] * 2)[0][:2] * scale for t in _TENTHS]
    if grid:
        lines = picture.copy()
        for x, y in marks:
            cv2.line(lines, (round(x), 0), (round(x), height), (255, 255, 255), 1)
            cv2.line(lines, (0, round(y)), (width, round(y)), (255, 255, 255), 1)
        picture = cv2.addWeighted(picture, 0.75, lines, 0.25, 0)
    for box in (*answer.ignored, *answer.boxes):
        xyxy = film.frame.to_model_xyxy(box.xyxy)[0] * np.tile(scale, 2)
        colour = draw.ORANGE if box.prelabelled else _TICK_INK if box.marks else draw.BLUE
        for grown in (0, 1):  # outwards: what lies inside the box is what it is judged by
            picture = draw.draw_box(picture, xyxy + np.array([-1, -1, 1, 1]) * grown, colour)
    picture = draw.draw_text(picture, str(film.number), (4, 1), size=tile // 11)
    framed = np.full((height + margin, width + margin, 3), _GROUND, np.uint8)
    framed[margin:, margin:] = picture
    size, tick = max(9, round(margin * 0.58)), max(3, margin // 5)
    for (x, y), tenth in zip(marks, _TENTHS, strict=True):  # rulers on the upper and left edge
        at_x, at_y = margin + round(x), margin + round(y)
        cv2.line(framed, (at_x, margin - tick), (at_x, margin - 1), _TICK_INK, 1)
        cv2.line(framed, (margin - tick, at_y), (margin - 1, at_y), _TICK_INK, 1)
        words = f".{tenth * 10:.0f}"
        framed = draw.draw_text(framed, words, (at_x - size // 2, 1), _TICK_INK, size)
        framed = draw.draw_text(framed, words, (1, at_y - size // 2 - 1), _TICK_INK, size)
    return framed, True


def _read_view(session: Session, film: SessionFilm) -> np.ndarray | None:
    """The view as RGB; None where there is none, or none that can be read."""
    try:  # not cv2.imread, which knows no names of Windows beyond its code page
        raw = np.frombuffer(session.view_path(film).read_bytes() if film.view else b"", np.uint8)
    except FileNotFoundError:
        return None
    grey = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE) if raw.size else None
    return None if grey is None else draw.to_rgb(grey)


def write_caption(film: SessionFilm, answer: Answer) -> str:
    """Three lines: where the edges lie, how sure the detector is or what the human said, which
    film it is."""
    where = f"{len(answer.boxes)} boxes" if answer.boxes else "no box"
    if len(answer.boxes) == 1:
        height, width = film.size_hw
        shares = np.divide(answer.boxes[0].xyxy, (width, height, width, height))
        named = zip("LTRB", shares, strict=True)
        where = "  ".join(f"{edge} {share:.2f}".replace("0.", ".") for edge, share in named)
    words = [] if answer.state == "todo" else [answer.state]
    if answer.fault:
        words = [answer.fault]
    elif answer.state == "todo" and any(b.prelabelled for b in answer.boxes):
        words = [f"score {film.prelabel_score:.2f}  uncertain {film.uncertainty:.2f}"]
    labels = {b.label for b in answer.boxes} - {"thorax"}
    words += [f"{len(answer.ignored)} not to count"] * bool(answer.ignored)
    said = ", ".join([*words, *sorted(labels), *sorted(answer.flags - {"accepted"})])
    return "\n".join([where, said, "  ".join(filter(None, [film.label, Path(film.film).name]))])


def join_numbers(numbers: Iterable[int]) -> str:
    """1, 2, 3, 7 as "1-3,7", the way the command line takes them."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
