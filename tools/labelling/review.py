"""annotate.py review: films on sheets, to accept boxes at a glance and mend some by number."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.progress import track

from cxr.workdir import console
from labelling.review_orders import Orders, parse_orders
from labelling.review_plan import Plan, plan_changes
from labelling.review_sheet import Film, Sheet, SheetLook, draw_sheets, join_numbers, read_drawn
from labelling.session import Session

_PROG = "python tools/annotate.py"
_LISTED = 20  # sheets named one by one


@dataclass(frozen=True)
class ReviewConfig:
    """Lay films with their boxes and numbers on sheets, and answer for them by number. Without an
    action the sheets are drawn: a box in orange is the detector's, in blue a human's, and the
    rulers count tenths of the film. Several actions may stand in one call; they are checked
    together, and one that cannot be done stops them all.

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
            raise ValueError(
                "session must name one session folder. Got "
                f"{', '.join(self.session) or 'none'} instead."
            )
        for name, low, high in (("per_sheet", 1, 200), ("columns", 1, 20), ("tile", 120, 2000)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name} must lie in {low} to {high}. Got {getattr(self, name)} instead."
                )
        _ = self.orders

    @property
    def orders(self) -> Orders:
        """The actions of this call; raises ValueError for words that are none."""
        return parse_orders(self.set, self.skip, self.flag, self.doubtful, self.accept, self.but)


def run(config: ReviewConfig) -> int:
    """Draw the sheets, or do what is asked; 0 when that went well."""
    try:
        session = Session.open(config.session[0])
        folder = Path(config.out) if config.out else session.path / "review"
        if config.orders:
            with session.locked():
                plan = plan_changes(config.orders, session, read_drawn(folder, session))
                apply_plan(session, plan)
            _say_plan(plan)
            _say_next(session, config)
        else:
            _draw(session, folder, config)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def apply_plan(session: Session, plan: Plan) -> None:
    """Write each change; to be called with the session locked."""
    for change in plan.changes:
        session.set_answer(
            change.film, xyxy=change.xyxy, label=change.label, flags=change.flags, via="review"
        )


def choose_films(answers: Iterable[Film], show: str) -> list[Film]:
    """The films that a sheet of this kind shows, in the order of asking."""
    wanted = {
        "todo": lambda a: a.state == "todo" and "doubtful" not in a.flags,
        "doubtful": lambda a: a.state == "todo" and "doubtful" in a.flags,
        "done": lambda a: a.done,
        "all": lambda a: True,
    }[show]
    return [(film, answer) for film, answer in answers if wanted(answer)]


def _draw(session: Session, folder: Path, config: ReviewConfig) -> None:
    films = choose_films(session.answers(), config.show)
    look = SheetLook(config.per_sheet, config.columns, config.tile, config.grid)
    sheets = draw_sheets(session, films, folder, look, _follow)
    if not sheets:
        print(f"No films to show ({config.show}).")
        _say_next(session, config)
        return
    _say_sheets(sheets)
    print("Look at it, then say which boxes are right, and mend the others; with your numbers:")
    numbers = sheets[0].numbers
    first, odd = join_numbers(numbers), numbers[len(numbers) // 2]
    call = _call(config)
    print(f"  {call} --accept {first} --but {odd} --set '{odd}:bottom=0.93'")
    print(f"  {call} --doubtful {odd}      for a closer look in labelme")


def _follow(sheets: Sequence[Any], total: int) -> Iterable[Any]:
    return track(sheets, "drawing sheets", total, console=console, transient=True)


def _say_sheets(sheets: Sequence[Sheet]) -> None:
    films = sum(len(sheet.numbers) for sheet in sheets)
    print(f"{films} film{'s' * (films != 1)} on {len(sheets)} sheet{'s' * (len(sheets) != 1)}:")
    for sheet in sheets[:_LISTED]:
        print(f"  {sheet.path}  films {join_numbers(sheet.numbers)}")
    if len(sheets) > _LISTED:
        print(f"  … and {len(sheets) - _LISTED} more, to {sheets[-1].path}")


def _say_plan(plan: Plan) -> None:
    done = Counter(did for change in plan.changes for did in change.did)
    print(", ".join(f"{count} {name}" for name, count in done.items()) or "Nothing to change.")
    if plan.human_already:
        print(f"left as they were, with a human's box already: {join_numbers(plan.human_already)}")
    if plan.skipped_already:
        print(f"left as they were, skipped already: {join_numbers(plan.skipped_already)}")


def _say_next(session: Session, config: ReviewConfig) -> None:
    answers = session.answers()
    todo, doubtful = (len(choose_films(answers, show)) for show in ("todo", "doubtful"))
    asked = sum(answer.state != "unreadable" for _, answer in answers)
    waiting = f", and {doubtful} doubtful" if doubtful else ""
    print(f"{asked - todo - doubtful} of {asked} films done, {todo} to do{waiting}.")
    where = shlex.quote(config.session[0])
    if todo:
        print(f"Next:  {_call(config)}")
    elif doubtful:
        print(f"Next:  {_PROG} start --session {where}")
    else:
        print(f"Next:  {_PROG} check {where}")


def _call(config: ReviewConfig) -> str:
    out = f" --out {shlex.quote(config.out)}" if config.out else ""
    return f"{_PROG} review {shlex.quote(config.session[0])}{out}"
