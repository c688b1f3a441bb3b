"""Cells one after the other in this process, or side by side on the machines of a Ray cluster."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from cxr.cli import from_plain, load_named
from cxr.ledger import read_answers
from cxr.workdir import log, provenance, write_json
from reproducing.cells import FAILED, RESULT, Cell, ReproduceConfig, short_reason
from reproducing.runners import Runner, find_runner

ROOT = Path(__file__).resolve().parent.parent.parent


class Outcome(NamedTuple):
    """How a cell ended: `reason` is empty for success."""

    name: str
    seconds: float
    reason: str = ""


def run_cells(cells: Sequence[Cell], config: ReproduceConfig) -> Iterator[Outcome]:
    """Train the cells that are not finished; each outcome as it comes.

    Two cells of one key are one training. Raises ValueError when Ray is asked for and missing.
    """
    pending = {cell.key: cell for cell in cells if not cell.finished}
    tasks = [(cell, find_runner(cell.runner)) for cell in pending.values()]
    if config.engine == "ray":
        yield from _run_on_ray(tasks, config)
    else:
        yield from (run_cell(*task) for task in tasks)


def import_ray() -> Any:
    """The module; raises ValueError that says how to install it."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "engine must be local where Ray is not installed. Got ray: pip install 'lungfirst[ray]'"
        ) from error
    return ray


def _run_on_ray(tasks: Sequence[tuple[Cell, Runner]], config: ReproduceConfig) -> Iterator[Outcome]:
    """One remote task a cell. Only the outcome travels: what was trained lies in the cell's folder,
    which every machine of the cluster must see under the same path; the project's root and tools/
    must stand in its PYTHONPATH."""
    ray = import_ray()
    if not tasks:
        return
    ours = not ray.is_initialized()
    if ours:
        here = {"include_dashboard": False} if not config.address else {}
        paths = [str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # workers here inherit it
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine needs it
        try:
            ray.init(address=config.address or "local", log_to_driver=False, **here)
        except Exception as error:  # Ray raises several kinds, a bare Exception among them
            raise ValueError(f"Ray did not start: {short_reason(error)}") from error
    try:
        remote = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=1)(run_cell)
        waiting = {remote.remote(*task): (task[0], time.monotonic()) for task in tasks}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            cell, started = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:  # the worker died: its cell is not finished
                yield Outcome(cell.name, time.monotonic() - started, short_reason(error))
    finally:
        if ours:
            ray.shutdown()


def run_cell(cell: Cell, runner: Runner) -> Outcome:
    """Train a cell unless it is finished, and write result.json; an error becomes the reason.

    A lock keeps two runs that share a folder from training one cell at once. The runner comes with
    the cell, since another process would have to look it up.
    """
    folder, answered, reason = cell.folder, "", ""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if cell.finished:
            return Outcome(cell.name, 0.0)
        started = time.monotonic()
        try:
            answered = _train(cell, runner)
        except Exception as error:  # one cell's fault must not stop the others
            reason = short_reason(error)
            ours = isinstance(error, ValueError | OSError)  # its words say what a user can mend
            log.warning("%s: %s", cell.name, reason, exc_info=not ours)
            write_json(folder / FAILED, {"reason": reason, **provenance()})
        finally:
            gc.collect()
        seconds = time.monotonic() - started
        if not reason:
            record = {
                "schema": "lungfirst.cell",
                "version": 1,
                **{k: getattr(cell, k) for k in ("table", "row", "column", "runner", "key")},
                "answers": answered,
                "seconds": round(seconds, 1),
                "settings": cell.settings,
                **provenance(),
            }
            write_json(folder / RESULT, record)
            (folder / FAILED).unlink(missing_ok=True)
    return Outcome(cell.name, seconds, reason)


def _train(cell: Cell, runner: Runner) -> str:
    """The runner's training; returns where answers.csv lies in the cell's folder."""
    made = Path(load_named(runner.train)(from_plain(runner.config_class, cell.settings)))
    read_answers(made / "answers.csv")  # raises ValueError for a training that left none
    return made.resolve().relative_to(cell.folder.resolve()).as_posix()
