"""Films by workers of a Ray cluster, each done exactly once, where one machine is too slow.

`--workers ray:4` starts four workers here; `ray:HOST:PORT` (a machine of the cluster) and
`ray://HOST:PORT` (from outside, by Ray's client) take all processors of a running cluster. Films,
weights and the folder of results must lie under the same paths for every worker. One process, the
command's own, writes the tables.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cxr.rules import require
from cxr.stream import batched
from cxr.workdir import log

LOCAL = "local"
_TRIES = 3  # times that a film may take its worker down with it
_AHEAD = 2  # batches that a worker holds: it never waits for the next one
_PATIENCE = 90.0  # seconds that workers may end while they load, before the command does
_QUIET = 60.0  # seconds without a worker after which that is said

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Iterable[Item]], Iterable[Result]]


def check_workers(workers: str) -> None:
    """Raises ValueError for a word that is none, ImportError where Ray is not installed."""
    kind, _, rest = workers.partition(":")
    count = int(rest) if rest.isdigit() else None
    known = workers == LOCAL or (kind == "ray" and (bool(count) if count is not None else rest))
    rule = "workers must be local, ray:N, ray:HOST:PORT or ray://HOST:PORT"
    require(bool(known), rule, workers)
    if workers != LOCAL:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ImportError("--workers needs Ray: pip install -e '.[ray]'") from error


def spread(
    workers: str,
    make: Callable[[], Work[Item, Result]],
    items: Iterable[Item],
    batch: int,
    lost: Callable[[Item, str], Result],
) -> Iterator[Result]:
    """What the work makes of each item, in the order in which it comes.

    Each worker makes its own work once and is given `batch` items at a time. A batch whose worker
    is lost (killed, out of memory, its machine gone) is done by another one, item by item; for an
    item that takes three workers down `lost` gives the result. What work raises is raised here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray

    address = workers.removeprefix("ray:")
    cluster: dict[str, Any] = {"address": f"ray:{address}" if address[:2] == "//" else address}
    if address.isdigit():
        cluster = {"num_cpus": int(address), "include_dashboard": False}
    ray.init(**cluster, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_here())
    try:
        team = _Team(ray, make, int(ray.cluster_resources().get("CPU", 1)))
        yield from team.work(deque((group, 0) for group in batched(items, batch)), lost)
    finally:
        ray.shutdown()


def _here() -> dict[str, Any]:
    """Workers find the packages where this process has them, and have one core each."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, sys.path)])
    return {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}}


class _Worker:
    """Becomes an actor: it has one processor, and stands where the command stands."""

    def __init__(self, make: Callable[[], Work[Any, Any]], folder: str) -> None:
        self._make, self._folder = make, folder

    def ready(self) -> bool:
        """Loads; not when it is made, where an error would look like a worker that is lost."""
        import cv2

        os.chdir(self._folder)
        cv2.setNumThreads(1)
        self._work = self._make()
        return True

    def run(self, items: list[Any]) -> list[Any]:
        """All results of a batch."""
        return list(self._work(items))


@dataclass(eq=False)
class _Seat:
    """A worker, and what was promised by it and is not there yet, oldest first."""

    actor: Any
    hand: list[Any] = field(default_factory=list)


class _Team:
    """Workers, and what each has in hand."""

    def __init__(self, ray: Any, make: Callable[[], Work[Any, Any]], many: int) -> None:
        self._ray, self._make = ray, make
        self._kind = ray.remote(num_cpus=1)(_Worker)
        self._coming: dict[Any, _Seat] = {}  # those that load, by the promise to be ready
        self._ready: list[_Seat] = []
        self._tasks: dict[Any, tuple[_Seat, list[Any], int]] = {}  # items and tries, by promise
        self._failing: float | None = None  # since when no worker has come
        for _ in range(many):
            self._hire()

    def _hire(self) -> None:
        actor = self._kind.remote(self._make, str(Path.cwd()))
        self._coming[actor.ready.remote()] = _Seat(actor)

    def work(
        self, waiting: deque[tuple[list[Any], int]], lost: Callable[[Any, str], Any]
    ) -> Iterator[Any]:
        """Results until nothing waits and nobody works."""
        while waiting or self._tasks:
            for seat in self._ready:
                while waiting and len(seat.hand) < self._room(seat, waiting[0]):
                    items, tries = waiting.popleft()
                    promise = seat.actor.run.remote(items)
                    seat.hand.append(promise)
                    self._tasks[promise] = (seat, items, tries)
            promised = [*self._tasks, *self._coming]
            kept, _ = self._ray.wait(promised, num_returns=1, timeout=_QUIET)
            if not kept and not self._ready:
                log.warning("no worker has come for %d s: is the cluster alive?", _QUIET)
            for promise in kept:
                if promise in self._coming:
                    self._seat(promise)
                else:
                    yield from self._take(promise, waiting, lost)

    def _room(self, seat: _Seat, following: tuple[list[Any], int]) -> int:
        """What may have taken a worker down is done alone, so that no other is blamed for it."""
        tries = following[1] + sum(self._tasks[promise][2] for promise in seat.hand)
        return 1 if tries else _AHEAD

    def _seat(self, promise: Any) -> None:
        seat = self._coming.pop(promise)
        if self._kept(promise) is not None:
            self._ready.append(seat)
            self._failing = None
            return
        now = time.monotonic()
        self._failing = self._failing or now
        if now - self._failing > _PATIENCE:
            raise RuntimeError(
                "workers ended one after the other while they loaded. See the cluster's logs: "
                "memory, or a folder that is not there on its machines?"
            )
        time.sleep(1.0)  # a cluster does not know at once what it lost
        self._hire()

    def _take(self, promise: Any, waiting: deque[Any], lost: Callable[[Any, str], Any]) -> Any:
        """What a kept promise brings; a lost worker's work is laid out again, its place filled."""
        seat, items, tries = self._tasks.pop(promise)
        found = self._kept(promise)
        if found is None and seat in self._ready:
            log.warning("a worker is lost: what it had in hand is done by another")
            self._ready.remove(seat)
            self._hire()
        if found is None:
            tries += 1
            for item in reversed(items):  # which film did it, if one did, shows one by one
                if len(items) == 1 and tries >= _TRIES:
                    yield lost(item, "its worker crashed, three times")
                else:
                    waiting.appendleft(([item], tries))
            return
        seat.hand.remove(promise)
        yield from found

    def _kept(self, promise: Any) -> Any:
        """What was promised, None where the worker is lost; raises what its work raised."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(promise)
        except errors.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except (errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError):
            return None
