"""One cell's training, in this process or another: its folder says whether it is finished."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from cxr.answers import read_answers
from cxr.cli import from_plain
from cxr.page.words import printable
from cxr.workdir import log, provenance, write_json
from reproducing.cells import Cell
from reproducing.runners import Runner, find_runner

RESULT, FAILED = "result.json", "failed.json"
_LONGEST = 300  # characters of a reason


@dataclass(frozen=True)
class Task:
    """What a worker needs to know of one cell."""

    cell: Cell
    runner: Runner

    @classmethod
    def of(cls, cell: Cell) -> Task:
        """With the runner itself, which another process would have to look up."""
        return cls(cell, find_runner(cell.runner))


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `reason` is empty for success; `trained` is False for one found done."""

    key: str
    name: str
    seconds: float
    reason: str = ""
    trained: bool = True


def run_task(task: Task) -> Outcome:
    """Train a cell unless it is finished, and write result.json; an error becomes the reason.

    A lock keeps two runs that share a folder from training one cell at once.
    """
    cell, folder = task.cell, task.cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if cell.finished:
            return Outcome(cell.key, cell.name, 0.0, trained=False)
        started = time.monotonic()
        try:
            answered = train(task)
        except Exception as error:  # one cell's fault must not stop the others
            log.warning("%s: %s", cell.name, printable(str(error)), exc_info=True)
            reason = short_reason(error)
            write_json(folder / FAILED, {"reason": reason, **provenance()})
            return Outcome(cell.key, cell.name, time.monotonic() - started, reason)
        finally:
            gc.collect()
        seconds = time.monotonic() - started
        record = {
            "schema": "lungfirst.cell",
            "version": 1,
            "table": cell.table,
            "row": cell.row,
            "column": cell.column,
            "runner": cell.runner,
            "key": cell.key,
            "answers": answered,
            "seconds": round(seconds, 1),
            "settings": cell.settings,
            **provenance(),
        }
        write_json(folder / RESULT, record)
        with contextlib.suppress(FileNotFoundError):
            (folder / FAILED).unlink()
    return Outcome(cell.key, cell.name, seconds)


def train(task: Task) -> str:
    """The runner's training; returns where answers.csv lies in the cell's folder."""
    config_class, training = task.runner.load()
    made = Path(training(from_plain(config_class, task.cell.settings)))
    read_answers(made / "answers.csv")  # raises ValueError for a training that left none
    return made.resolve().relative_to(task.cell.folder.resolve()).as_posix()


def read_result(cell: Cell) -> dict[str, Any]:
    """result.json of a finished cell."""
    record: dict[str, Any] = json.loads((cell.folder / RESULT).read_text(encoding="utf-8"))
    return record


def answers_folder(cell: Cell) -> Path:
    """Where a finished cell's answers.csv lies."""
    return cell.folder / str(read_result(cell)["answers"])


def failure(cell: Cell) -> str:
    """Why the cell's last training failed; empty when it did not."""
    path = cell.folder / FAILED
    if cell.finished or not path.is_file():
        return ""
    return str(json.loads(path.read_text(encoding="utf-8"))["reason"])


def short_reason(error: Exception) -> str:
    """An error as one line for a table."""
    text = " ".join(printable(str(error)).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
