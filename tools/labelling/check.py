"""annotate.py check: one line for each fault of a session or a COCO file, with what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.text import Text

from cxr.workdir import console as progress_console
from labelling.box_rules import Fault
from labelling.check_file import find_file_faults, read_content
from labelling.check_session import find_session_faults
from labelling.session import Session, count_states, is_session

__all__ = ["CheckConfig", "Fault", "find_file_faults", "find_session_faults", "run"]

_WORTH_A_BAR = 20  # films; fewer are through before a bar is read


@dataclass(frozen=True)
class CheckConfig:
    """Check the boxes of labelling sessions or COCO files: one line for each fault with the film
    and what to do. The exit code is 1 when there are faults.

    Args:
        session: session folders, or COCO files such as annotations/thorax.json.
        hashes: look whether a session's films are there and unchanged; of a COCO file with films,
            whether those whose hash it knows are unchanged.
        complete: films that are still to do (in a COCO file: without a box) are faults as well.
        films: folder of a COCO file's films, to see that they are there and of the same size.
        classes: right labels in a COCO file, with commas between; empty takes those it names.
    """

    session: tuple[str, ...] = ()
    hashes: bool = True
    complete: bool = False
    films: str = ""
    classes: str = ""

    def __post_init__(self) -> None:
        if not self.session:
            raise ValueError(
                "session must name a session's folder or a COCO file. Got none instead."
            )
        only_files = [f"--{name}" for name in ("films", "classes") if getattr(self, name)]
        if only_files and all(map(is_session, self.session)):
            raise ValueError(
                f"{' and '.join(only_files)} must stand beside a COCO file. A session "
                "knows its films and classes itself."
            )


def run(config: CheckConfig) -> int:
    """Print the faults of each; 1 when there are any or one could not be opened."""
    console = Console(highlight=False, soft_wrap=True)
    code = 0
    for path in config.session:
        try:
            faults, summary = _check(path, config)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            code = 1
            continue
        for fault in faults:
            line = Text(str(fault))
            line.stylize("bold", 0, len(fault.film))
            console.print(line)
        number = f"{len(faults)} fault{'s' * (len(faults) != 1)}" if faults else "no faults"
        where = f"{path}: " if len(config.session) > 1 else ""
        console.print(Text(f"{where}{number} in {summary}", style="bold"))
        code = max(code, int(bool(faults)))
    return code


def _check(path: str, config: CheckConfig) -> tuple[list[Fault], str]:
    """The faults of one session or file, and the end of its summary line."""
    if is_session(path):
        session = Session.open(path)
        faults = find_session_faults(session, config.hashes, config.complete, _follow)
        return faults, say_session(session)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"session must be a folder that `annotate.py start` made, or a COCO file. Got '{path}' "
            "instead, which is neither."
        )
    classes = [name.strip() for name in config.classes.split(",") if name.strip()]
    faults = find_file_faults(
        path, config.films or None, classes, config.complete, config.hashes, _follow
    )
    return faults, say_file(path)


def say_session(session: Session) -> str:
    """Films and boxes of a session, and the films that have none, in words."""
    answers = session.answers()
    counts = count_states(answer for _, answer in answers)
    boxes = sum(answer.box is not None for _, answer in answers)
    doubtful = f" ({counts.doubtful} of them doubtful)" if counts.doubtful else ""
    rest = [
        f"{counts.todo} still to do{doubtful}" * bool(counts.todo),
        f"{counts.skipped} skipped" * bool(counts.skipped),
        f"{counts.unreadable} that cannot be opened" * bool(counts.unreadable),
    ]
    return _say(counts.films, boxes, rest)


def say_file(path: str) -> str:
    """Films and boxes of a COCO file, and the films without one, in words."""
    content = read_content(path)
    without = content.without_box
    return _say(len(content.images), content.boxes, [f"{without} without a box" * bool(without)])


def _say(films: int, boxes: int, rest: list[str]) -> str:
    said = f"{films} film{'s' * (films != 1)}, {boxes} box{'es' * (boxes != 1)}"
    return "; ".join([said, *([", ".join(filter(None, rest))] if any(rest) else [])])


def _follow(items: Iterable[Any], total: int) -> Iterable[Any]:
    if total < _WORTH_A_BAR:
        return items
    return track(items, "looking at the films", total, console=progress_console, transient=True)
