"""Cells one after the other in this process, or side by side on the machines of a Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproducing.cells import Cell
from reproducing.work import Outcome, Task, run_task, short_reason

ENGINES = ("local", "ray")
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Engine:
    """Where cells are trained.

    Args:
        name: local or ray.
        cpus: CPUs that Ray keeps for one cell.
        gpus: GPUs (fractions count) that Ray keeps for one cell.
        address: of a running cluster; empty starts Ray on this machine.
    """

    name: str = "local"
    cpus: float = 1.0
    gpus: float = 0.0
    address: str = ""

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}. Got {self.name!r}.")
        if self.cpus <= 0 or self.gpus < 0:
            raise ValueError(
                "cpus must be above 0 and gpus not negative. "
                f"Got {self.cpus} and {self.gpus} instead."
            )


def run_cells(cells: Sequence[Cell], engine: Engine) -> Iterator[Outcome]:
    """Train the cells that are not finished; each outcome as it comes.

    Two cells of one key are one training. Raises ValueError when Ray is asked for and missing.
    """
    tasks = {cell.key: Task.of(cell) for cell in cells if not cell.finished}
    if engine.name == "ray":
        yield from _run_on_ray(list(tasks.values()), engine)
    else:
        yield from map(run_task, tasks.values())


def import_ray() -> Any:
    """The module; raises ValueError that says how to install it."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "engine must be local where Ray is not installed. Got ray: pip install 'lungfirst[ray]'"
        ) from error
    return ray


def _run_on_ray(tasks: Sequence[Task], engine: Engine) -> Iterator[Outcome]:
    """One remote task a cell. Only the outcome travels: what was trained lies in the cell's folder,
    which every machine of the cluster must see under the same path; the project's root and tools/
    must stand in its PYTHONPATH."""
    ray = import_ray()
    if not tasks:
        return
    ours = not ray.is_initialized()
    if ours:
        here = {"include_dashboard": False} if not engine.address else {}
        paths = [str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # workers here inherit it
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine needs it
        try:
            ray.init(address=engine.address or "local", log_to_driver=False, **here)
        except Exception as error:  # Ray raises several kinds, a bare Exception among them
            raise ValueError(f"Ray did not start: {short_reason(error)}") from error
    try:
        remote = ray.remote(num_cpus=engine.cpus, num_gpus=engine.gpus, max_retries=1)(run_task)
        waiting = {remote.remote(task): (task, time.monotonic()) for task in tasks}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            task, started = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:  # the worker died: its cell is not finished
                seconds = time.monotonic() - started
                yield Outcome(task.cell.key, task.cell.name, seconds, short_reason(error))
    finally:
        if ours:
            ray.shutdown()
