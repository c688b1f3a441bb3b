"""annotate.py review: films on sheets, to accept boxes at a glance and mend some by number.

The words of one call are read into orders by number, and these into one change for each film, each
checked against what the reader saw. Everything is checked before anything is written: one wrong
number, and no film is touched.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cxr.rules import in_words, require
from detect.metrics import SIDES
from labelling import SKIP_FLAGS, Answer, Session, SessionFilm, count_states, so_many
from labelling.overview import Film, draw_sheets, join_numbers, read_drawn

_PROG = "python tools/annotate.py"
_ACCEPTED, _DOUBTFUL = "accepted", "doubtful"
_SAME_PX = 0.01  # film px: boxes are written with more digits than this
_LISTED_SHEETS, _LISTED_REFUSALS = 20, 30  # at most

Spans = tuple[tuple[int, int], ...]  # first and last number of each run, both included
Seen = Mapping[str, Any] | None  # what a sheet shows of a film
Orders = dict[str, list[tuple[Spans, Any]]]  # action: its numbers, and what it says of them


@dataclass(frozen=True)
class ReviewConfig:
    """Lay films with their boxes and numbers on sheets, and answer for them by number. Without an
    action the sheets are drawn: a box in orange is the detector's, in blue a human's, and the
    rulers count tenths of the film; one in grey is marked not to count. Several actions may stand
    in one call; they are checked together, and one that cannot be done stops them all.

    Args:
        session: the session's folder.
        show: films to draw: todo (still without an answer, the doubtful ones left out), all, done,
            or doubtful.
        per_sheet: films on one sheet.
        columns: films side by side.
        tile: px of one film's longer side.
        grid: draw faint lines at each tenth of the film.
        out: folder of the sheets. Default: review in the session's folder.
        accept: numbers whose boxes are right, such as 1-24,30; they must stand on a drawn sheet.
        but: numbers to take out of accept, such as 3,7.
        doubtful: numbers to send back to labelme.
        skip: films that get no box and why, such as "12=not frontal; 15=unreadable".
        set: edges as fractions of the film's width or height, such as
            "7:left=0.10,bottom=0.93; 9:top=0.05"; edges not named stay. Also label=NAME.
        flag: notes that keep the box, such as "4=apices cut off".
    """

    session: tuple[str, ...] = ()
    show: Literal["todo", "all", "done", "doubtful"] = "todo"
    per_sheet: int = 24
    columns: int = 6
    tile: int = 320
    grid: bool = False
    out: str = ""
    accept: str = ""
    but: str = ""
    doubtful: str = ""
    skip: str = ""
    set: str = ""
    flag: str = ""

    def __post_init__(self) -> None:
        if len(self.session) != 1:
            got = ", ".join(self.session) or "none"
            raise ValueError(f"session must name one session folder. Got {got} instead.")
        for name, low, high in (("per_sheet", 1, 200), ("columns", 1, 20), ("tile", 120, 2000)):
            got = getattr(self, name)
            require(low <= got <= high, f"{name} must lie in {low} to {high}", got)
        _ = self.orders

    @property
    def orders(self) -> Orders:
        """The actions of this call; raises ValueError with the word that is wrong."""
        if self.but.strip() and not self.accept.strip():
            got = f"Got but {self.but!r} without an accept"
            raise ValueError(f"but takes films out of accept. {got}.")
        return {name: _parse_action(name, getattr(self, name)) for name in _ACTIONS}


def _parse_edges(words: str) -> dict[str, float | str]:
    edges: dict[str, float | str] = {}
    for word in words.split(","):
        name, _, value = (w.strip() for w in word.partition("="))
        known = name in (*SIDES, "label")
        require(known, "set must name left, top, right, bottom or label", word.strip())
        if name in edges:
            raise ValueError(f"set must name each edge once. Got {name} twice in {words!r}.")
        edges[name] = value
        if name != "label":
            rule = f"set must give {name} as a fraction of the film's width or height, 0 to 1"
            right = re.fullmatch(r"\d*\.?\d+|\d+\.", value) and float(value) <= 1
            require(bool(right), rule, value)
            edges[name] = float(value)
    return edges


# Actions with words: the sign between numbers and words, an example, and the words allowed, none
# where they are edges. The other flags are what skip, doubtful and accept set.
_WORDED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "set": (":", '"7:left=0.10,bottom=0.93; 9:top=0.05"', ()),
    "skip": ("=", '"12=not frontal; 15=unreadable"', SKIP_FLAGS),
    "flag": ("=", '"4=apices cut off"', ("apices cut off",)),
}
_ACTIONS = (*_WORDED, "doubtful", "accept", "but")
_APART = (("set", "skip"), ("skip", "doubtful"), ("skip", "accept"), ("doubtful", "accept"))


def _parse_action(name: str, text: str) -> list[tuple[Spans, Any]]:
    if name not in _WORDED:
        return [(parse_numbers(name, text), None)] if text.strip() else []
    sign, example, allowed = _WORDED[name]
    orders: list[tuple[Spans, Any]] = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        numbers, _, words = (p.strip() for p in part.partition(sign))
        require(bool(numbers and words), f"{name} must look like {example}", part)
        right = not allowed or words in allowed
        require(right, f"{name} must give one of: {', '.join(allowed)}", words)
        said = words if allowed else _parse_edges(words)
        orders.append((parse_numbers(name, numbers), said))
    return orders


def parse_numbers(name: str, text: str) -> Spans:
    """`1-24,30` as ((1, 24), (30, 30)); raises ValueError for what are no numbers."""
    spans = []
    for part in text.split(",") if text.strip() else ():
        span = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part)
        require(span is not None, f"{name} must be films' numbers such as 1-24,30", text)
        first, last = int(span[1]), int(span[2] or span[1])  # type: ignore[index]
        if first > last:
            rule = f"{name} must give the lower number first"
            raise ValueError(f"{rule}. Got {part.strip()} instead.")
        spans.append((first, last))
    return tuple(spans)


class Change(NamedTuple):
    """What becomes of one film. `xyxy` in film px, None keeps the box; `flags`: all ticked ones.
    `left` says why an accept changed nothing."""

    film: SessionFilm
    flags: frozenset[str]
    did: tuple[str, ...] = ()  # set, skipped, flagged, doubtful, accepted: for the count at the end
    xyxy: tuple[float, ...] | None = None
    label: str | None = None
    left: str = ""

    def ticked(self, did: str, flag: str, without: Collection[str] = ()) -> Change:
        """With one flag more, and some fewer."""
        return self._replace(did=(*self.did, did), flags=(self.flags - set(without)) | {flag})


def plan_changes(
    orders: Orders, session: Session, drawn: Mapping[int, Mapping[str, Any]]
) -> list[Change]:
    """What becomes of each film; `drawn` is what stands on the sheets, by number.
    Raises ValueError with a line for each number that cannot be done; then nothing may be written.
    """
    films = {film.number: film for film in session.films}
    faults: list[str] = []
    asked = {name: _by_number(name, pairs, films, faults) for name, pairs in orders.items()}
    for n in sorted(asked.pop("but")):
        if n not in asked["accept"]:
            faults.append(f"but takes out film {n}, which accept does not name")
        asked["accept"].pop(n, None)
    for one, other in _APART:
        hint = ": take it out with but" if other == "accept" else ""
        for number in sorted(asked[one].keys() & asked[other].keys()):
            faults.append(f"film {number} stands in {one} and in {other}{hint}")
    changes = []
    for number in sorted(set().union(*asked.values())):
        own = {name: words[number] for name, words in asked.items() if number in words}
        try:
            changes.append(_plan_film(session, films[number], own, drawn.get(number)))
        except ValueError as error:
            faults.append(f"film {number} ({films[number].film}) {error}")
    if faults:
        if (more := len(faults) - _LISTED_REFUSALS) > 0:
            faults[_LISTED_REFUSALS:] = [f"… and {more} more"]
        raise ValueError("\n".join([*faults, "Nothing was written."]))
    return changes


def _by_number(
    name: str, pairs: Iterable[tuple[Spans, Any]], films: Collection[int], faults: list[str]
) -> dict[int, Any]:
    """What the action says of each film; numbers that are none, or named twice, are faults."""
    last = max(films, default=0)
    found: dict[int, Any] = {}
    for spans, words in pairs:
        numbers: list[int] = []
        for first, end in spans:
            known = [n for n in range(first, min(end, last) + 1) if n in films]
            if len(known) < end - first + 1:
                shown = f"{first}" if first == end else f"{first}-{end}"
                faults.append(f"{name} {shown}: the session's films are numbered 1 to {last}")
            numbers += known
        faults += [f"{name} names film {n} twice" for n in sorted(found.keys() & set(numbers))]
        found.update(dict.fromkeys(numbers, words))
    return found


def _plan_film(session: Session, film: SessionFilm, own: dict[str, Any], seen: Seen) -> Change:
    """The film's change; raises ValueError with the reason why it cannot be done."""
    if not film.view:
        raise ValueError(f"cannot be read and takes no answer: {film.reason}")
    answer = session.answer(film)
    if answer.fault:
        fix = f"delete {session.label_path(film)} or mend it"
        raise ValueError(f"has a label file that cannot be used ({answer.fault}); {fix}")
    change = Change(film, answer.flags)
    if "set" in own:
        change = _set_edges(change, answer, own["set"], session.classes, seen)
    if "skip" in own:
        change = change.ticked("skipped", own["skip"], (*SKIP_FLAGS, _ACCEPTED, _DOUBTFUL))
    if "flag" in own:
        change = change.ticked("flagged", own["flag"])
    if "doubtful" in own:
        change = change.ticked("doubtful", _DOUBTFUL, (_ACCEPTED, *SKIP_FLAGS))
    if "accept" in own and "set" not in own:  # a box that was just set is the human's own
        change = _accept(change, answer, seen)
    return change


def _set_edges(
    change: Change, answer: Answer, edges: dict[str, Any], classes: Collection[str], seen: Seen
) -> Change:
    film, label = change.film, edges.get("label")
    if label is not None and label not in classes:
        raise ValueError(f"must get a label of {', '.join(classes)}. Got {label!r} instead.")
    kept = [edge for edge in SIDES if edge not in edges]
    old: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    if kept:
        old = _only_box(answer, f": give all four edges ({', '.join(kept)} missing)")
        if answer.box is None:  # a human's own box may be moved unseen, a detector's not
            _check_seen(answer, seen)
    elif label is None and not answer.boxes and len(classes) > 1:
        if film.label not in classes:
            raise ValueError("has no box whose label could be kept: add label=… to set")
        label = film.label
    height, width = film.size_hw
    sides = (width, height, width, height)
    xyxy = tuple(
        edges[edge] * side if edge in edges else min(max(was, 0.0), side)
        for edge, side, was in zip(SIDES, sides, old, strict=True)
    )
    for low, high in ((0, 2), (1, 3)):
        if xyxy[low] >= xyxy[high]:
            raise ValueError(
                f"would have its {SIDES[low]} edge at {xyxy[low] / sides[low]:.2f}, not before "
                f"its {SIDES[high]} one at {xyxy[high] / sides[high]:.2f}"
            )
    flags = change.flags - {_ACCEPTED, _DOUBTFUL, *SKIP_FLAGS}
    return change._replace(did=("set",), xyxy=xyxy, label=label, flags=flags)


def _accept(change: Change, answer: Answer, seen: Seen) -> Change:
    if answer.box is not None:
        return change._replace(left="with a human's box already")
    if answer.state == "skipped":
        return change._replace(left="skipped already")
    _only_box(answer, ": set its edges, skip it, or leave it out with but")
    seen = _check_seen(answer, seen)
    if _DOUBTFUL in answer.flags and not seen["doubtful"]:
        fix = "leave it out with but, or run review again with --show doubtful"
        raise ValueError(f"was marked doubtful since the sheet was drawn; {fix}")
    return change.ticked("accepted", _ACCEPTED, (_DOUBTFUL,))


def _check_seen(answer: Answer, seen: Seen) -> Mapping[str, Any]:
    """Nothing counts unseen: the box must be the one on the drawn sheet."""
    if seen is None:
        raise ValueError("stands on no drawn sheet; run review again")
    boxes = seen["boxes"]
    same = len(boxes) == len(answer.boxes) and all(
        was["label"] == now.label
        and max(abs(a - b) for a, b in zip(was["xyxy"], now.xyxy, strict=True)) <= _SAME_PX
        for was, now in zip(boxes, answer.boxes, strict=True)
    )
    if not same:
        raise ValueError("has changed since the sheet was drawn; run review again")
    return seen


def _only_box(answer: Answer, fix: str) -> tuple[float, ...]:
    """The film's one box in film px; raises ValueError where there is none, or not one."""
    if not answer.boxes:
        raise ValueError(f"has no box{fix}")
    if len(answer.boxes) > 1:
        raise ValueError(f"has {len(answer.boxes)} boxes; leave one of them, in labelme")
    box = answer.boxes[0]
    if not box.usable:
        what = "box without width or height" if box.crossed else box.shape_type
        raise ValueError(f"has a {what} and no rectangle; draw one in labelme")
    return box.xyxy


def run(config: ReviewConfig) -> int:
    """Draw the sheets, or do what is asked; 0 when that went well."""
    try:
        session = Session.open(config.session[0])
        folder = Path(config.out) if config.out else session.path / "review"
        if not any(config.orders.values()):
            _draw(session, folder, config)
            return 0
        with session.locked():
            changes = plan_changes(config.orders, session, read_drawn(folder, session))
            for film, flags, did, xyxy, label, _ in changes:
                if did:
                    session.set_answer(film, xyxy=xyxy, label=label, flags=flags)
        _say_changes(changes)
        _say_next(session, config)
    except (OSError, ValueError) as error:
        print(in_words(error), file=sys.stderr)
        return 1
    return 0


def choose_films(answers: Iterable[Film], show: str) -> list[Film]:
    """The films that a sheet of this kind shows, in the order of asking."""
    wanted = {
        "todo": lambda a: a.state == "todo" and _DOUBTFUL not in a.flags,
        "doubtful": lambda a: a.state == "todo" and _DOUBTFUL in a.flags,
        "done": lambda a: a.done,
        "all": lambda a: True,
    }[show]
    return [(film, answer) for film, answer in answers if wanted(answer)]


def _draw(session: Session, folder: Path, config: ReviewConfig) -> None:
    films = choose_films(session.answers(), config.show)
    sheets = draw_sheets(
        session, films, folder, config.per_sheet, config.columns, config.tile, config.grid
    )
    if not sheets:
        print(f"No films to show ({config.show}).")
        _say_next(session, config)
        return
    print(f"{so_many(len(films), 'film')} on {so_many(len(sheets), 'sheet')}:")
    for path, numbers in list(sheets.items())[:_LISTED_SHEETS]:
        print(f"  {path}  films {join_numbers(numbers)}")
    if len(sheets) > _LISTED_SHEETS:
        print(f"  … and {len(sheets) - _LISTED_SHEETS} more, to {list(sheets)[-1]}")
    print("Look at it, then say which boxes are right, and mend the others; with your numbers:")
    numbers = next(iter(sheets.values()))
    first, odd = join_numbers(numbers), numbers[len(numbers) // 2]
    call = _call(config)
    print(f"  {call} --accept {first} --but {odd} --set '{odd}:bottom=0.93'")
    print(f"  {call} --doubtful {odd}      for a closer look in labelme")


def _say_changes(changes: Iterable[Change]) -> None:
    done = Counter(did for change in changes for did in change.did)
    print(", ".join(f"{count} {name}" for name, count in done.items()) or "Nothing to change.")
    for left in ("with a human's box already", "skipped already"):
        if numbers := [change.film.number for change in changes if change.left == left]:
            print(f"left as they were, {left}: {join_numbers(numbers)}")


def _say_next(session: Session, config: ReviewConfig) -> None:
    counts = count_states(answer for _, answer in session.answers())
    doubtful, asked = counts["doubtful"], counts["films"] - counts["unreadable"]
    todo, waiting = counts["todo"] - doubtful, f", and {doubtful} doubtful" if doubtful else ""
    print(f"{counts['done']} of {asked} films done, {todo} to do{waiting}.")
    where = shlex.quote(config.session[0])
    then = f"start --session {where}" if doubtful else f"check {where}"
    print(f"Next:  {_call(config) if todo else f'{_PROG} {then}'}")


def _call(config: ReviewConfig) -> str:
    out = f" --out {shlex.quote(config.out)}" if config.out else ""
    return f"{_PROG} review {shlex.quote(config.session[0])}{out}"
