"""A review's orders as one change for each film, each checked against what the reader saw.

Everything is checked before anything is written: one wrong number, and no film is touched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from labelling.review_orders import EDGES, Orders, Spans
from labelling.session import SKIP_FLAGS, Answer, Session, SessionFilm

_ACCEPTED, _DOUBTFUL = "accepted", "doubtful"
_SAME_PX = 0.01  # film px: boxes are written with more digits than this
_LISTED = 30  # refusals shown at most


@dataclass(frozen=True)
class Change:
    """What becomes of one film. `xyxy` in film px, None keeps the box; `flags`: all ticked ones."""

    film: SessionFilm
    did: tuple[str, ...]  # set, skipped, flagged, doubtful, accepted: for the count at the end
    flags: frozenset[str]
    xyxy: tuple[float, ...] | None = None
    label: str | None = None


@dataclass(frozen=True)
class Plan:
    """All changes of one call, and the films whose accept changed nothing."""

    changes: tuple[Change, ...]
    human_already: tuple[int, ...] = ()
    skipped_already: tuple[int, ...] = ()


def plan_changes(orders: Orders, session: Session, drawn: Mapping[int, Mapping[str, Any]]) -> Plan:
    """What to write for each film; `drawn` is what stands on the sheets, by number.

    Raises:
        ValueError: with a line for each number that cannot be done; then nothing may be written.
    """
    planner = _Planner(session, drawn)
    sets = planner.by_number("set", orders.set_)
    skips = planner.by_number("skip", orders.skip)
    flags = planner.by_number("flag", orders.flag)
    doubtful = set(planner.expand("doubtful", orders.doubtful))
    asked = set(planner.expand("accept", orders.accept))
    but = set(planner.expand("but", orders.but))
    planner.refuse(but - asked, "but takes out film {}, which accept does not name")
    accept = asked - but
    for one, other, both in (
        ("set", "skip", sets.keys() & skips.keys()),
        ("skip", "doubtful", skips.keys() & doubtful),
        ("skip", "accept", skips.keys() & accept),
        ("doubtful", "accept", doubtful & accept),
    ):
        hint = ": take it out with but" if other == "accept" else ""
        planner.refuse(both, f"film {{}} stands in {one} and in {other}{hint}")
    for number in sorted({*sets, *skips, *flags, *doubtful, *accept}):
        planner.plan_film(
            number,
            sets.get(number),
            skips.get(number),
            flags.get(number),
            number in doubtful,
            number in accept,
        )
    return planner.finish()


class _Planner:
    """Collects changes, and all refusals, so that a reader mends them in one go."""

    def __init__(self, session: Session, drawn: Mapping[int, Mapping[str, Any]]) -> None:
        self.session, self.drawn = session, drawn
        self.films = {film.number: film for film in session.films}
        self.faults: list[str] = []
        self.changes: list[Change] = []
        self.human_already: list[int] = []
        self.skipped_already: list[int] = []

    def expand(self, name: str, spans: Spans) -> list[int]:
        last = max(self.films, default=0)
        numbers = []
        for first, end in spans:
            known = [n for n in range(first, min(end, last) + 1) if n in self.films]
            if len(known) < end - first + 1:
                shown = f"{first}" if first == end else f"{first}-{end}"
                self.faults.append(f"{name} {shown}: the session's films are numbered 1 to {last}")
            numbers += known
        return numbers

    def by_number(self, name: str, pairs: tuple[tuple[Spans, Any], ...]) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for spans, value in pairs:
            numbers = self.expand(name, spans)
            self.refuse(found.keys() & set(numbers), f"{name} names film {{}} twice")
            found.update(dict.fromkeys(numbers, value))
        return found

    def refuse(self, numbers: Collection[int], sentence: str) -> None:
        self.faults += [sentence.format(n) for n in sorted(numbers)]

    def plan_film(
        self,
        number: int,
        edges: dict[str, float | str] | None,
        skip: str | None,
        flag: str | None,
        doubtful: bool,
        accept: bool,
    ) -> None:
        film = self.films[number]
        answer = self.session.answer(film)
        fault = _why_untouchable(self.session, film, answer)
        if fault:
            self.faults.append(f"{_name(film)} {fault}")
            return
        change = Change(film, (), answer.flags)
        try:
            if edges:
                change = self._set(change, answer, edges)
            if skip:
                change = _mark(change, "skipped", skip, {*SKIP_FLAGS, _ACCEPTED, _DOUBTFUL})
            if flag:
                change = _mark(change, "flagged", flag, ())
            if doubtful:
                change = _mark(change, "doubtful", _DOUBTFUL, {_ACCEPTED, *SKIP_FLAGS})
            if accept and not edges:  # a box that was just set is the human's own
                change = self._accept(change, answer)
        except ValueError as error:
            self.faults.append(f"{_name(film)} {error}")
            return
        if change.did:
            self.changes.append(change)

    def _set(self, change: Change, answer: Answer, edges: dict[str, float | str]) -> Change:
        film, label = change.film, edges.get("label")
        if label is not None and label not in self.session.classes:
            raise ValueError(
                f"must get a label of {', '.join(self.session.classes)}. Got {label!r} instead."
            )
        kept = [edge for edge in EDGES if edge not in edges]
        old: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
        if kept:
            old = _only_box(answer, f": give all four edges ({', '.join(kept)} missing)")
            if answer.box is None:  # a human's own box may be moved unseen, a detector's not
                self._check_seen(film, answer)
        elif label is None and not answer.boxes and len(self.session.classes) > 1:
            if film.label not in self.session.classes:
                raise ValueError("has no box whose label could be kept: add label=… to set")
            label = film.label
        height, width = film.size_hw
        sides = (width, height, width, height)
        xyxy = tuple(
            float(edges[edge]) * side if edge in edges else min(max(was, 0.0), side)
            for edge, side, was in zip(EDGES, sides, old, strict=True)
        )
        for low, high in ((0, 2), (1, 3)):
            if xyxy[low] >= xyxy[high]:
                raise ValueError(
                    f"would have its {EDGES[low]} edge at {xyxy[low] / sides[low]:.2f}, not before "
                    f"its {EDGES[high]} one at {xyxy[high] / sides[high]:.2f}"
                )
        flags = change.flags - {_ACCEPTED, _DOUBTFUL, *SKIP_FLAGS}
        name = None if label is None else str(label)
        return replace(change, did=("set",), xyxy=xyxy, label=name, flags=flags)

    def _accept(self, change: Change, answer: Answer) -> Change:
        if answer.box is not None:
            self.human_already.append(change.film.number)
            return change
        if answer.state == "skipped":
            self.skipped_already.append(change.film.number)
            return change
        _only_box(answer, ": set its edges, skip it, or leave it out with but")
        self._check_seen(change.film, answer)
        if _DOUBTFUL in answer.flags and not self.drawn[change.film.number]["doubtful"]:
            raise ValueError(
                "was marked doubtful since the sheet was drawn; leave it out with "
                "but, or run review again with --show doubtful"
            )
        return _mark(change, "accepted", _ACCEPTED, {_DOUBTFUL})

    def _check_seen(self, film: SessionFilm, answer: Answer) -> None:
        """Nothing counts unseen: the box must be the one on the drawn sheet."""
        seen = self.drawn.get(film.number)
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

    def finish(self) -> Plan:
        if self.faults:
            more = len(self.faults) - _LISTED
            lines = [*self.faults[:_LISTED], *([f"… and {more} more"] if more > 0 else [])]
            raise ValueError("\n".join([*lines, "Nothing was written."]))
        return Plan(tuple(self.changes), tuple(self.human_already), tuple(self.skipped_already))


def _name(film: SessionFilm) -> str:
    return f"film {film.number} ({film.film})"


def _why_untouchable(session: Session, film: SessionFilm, answer: Answer) -> str:
    if not film.view:
        return f"cannot be read and takes no answer: {film.reason}"
    if answer.fault:
        path = session.label_path(film)
        return f"has a label file that cannot be used ({answer.fault}); delete {path} or mend it"
    return ""


def _mark(change: Change, did: str, flag: str, without: Collection[str]) -> Change:
    flags = (change.flags - set(without)) | {flag}
    return replace(change, did=(*change.did, did), flags=flags)


def _only_box(answer: Answer, fix: str) -> tuple[float, ...]:
    """The film's one box in film px; raises ValueError where there is none, or not one."""
    if not answer.boxes:
        raise ValueError(f"has no box{fix}")
    if len(answer.boxes) > 1:
        raise ValueError(f"has {len(answer.boxes)} boxes; leave one of them, in labelme")
    box = answer.boxes[0]
    if box.shape_type != "rectangle" or box.crossed:
        what = "box without width or height" if box.crossed else box.shape_type
        raise ValueError(f"has a {what} and no rectangle; draw one in labelme")
    return box.xyxy
