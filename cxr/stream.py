"""Films read ahead of their use, in other processes, with memory bounded by the number in flight;
and films by workers of a Ray cluster, each done exactly once, where one machine is too slow.

A J2K film takes a second to decode, more than the network needs for its box, and its decoder
holds Python's lock: so decoding is what has to be shared among processes.

`--workers ray:4` starts four workers here; `ray:HOST:PORT` (a machine of the cluster) and
`ray://HOST:PORT` (from outside, by Ray's client) take all processors of a running cluster. Films,
weights and the folder of results must lie under the same paths for every worker. One process, the
command's own, writes the tables.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, TypeVar

import cv2

from cxr.film import MAX_FILE_BYTES, Film, FilmError, read_film
from cxr.rules import require
from cxr.workdir import log, sha256_file

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH_PROCESSES = 16  # films; below, starting the processes takes longer than they save


@dataclass(frozen=True)
class Unread:
    """A file that gave no film: reason code, sentence, and the file's SHA-256 ('' without one)."""

    reason: str
    sentence: str
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.sentence}"


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size` (at least 1), the last one shorter; one list is held at most."""
    iterator = iter(items)  # itertools.batched came with Python 3.12
    while batch := list(islice(iterator, max(1, size))):
        yield batch


def ahead(items: Iterable[Item], size: int) -> Iterator[Item]:
    """The items, made by a thread of their own while earlier ones are worked with; at most `size`
    of them wait. Closing this ends the thread and closes `items`."""
    made, maker, end = iter_of(items), ThreadPoolExecutor(1), object()
    waiting = deque(maker.submit(next, made, end) for _ in range(max(1, size)))
    try:
        while (found := waiting.popleft().result()) is not end:
            waiting.append(maker.submit(next, made, end))
            yield found  # type: ignore[misc]
    finally:
        for promise in waiting:
            promise.cancel()
        maker.submit(made.close)  # by the thread that began it
        maker.shutdown()


def written(items: Iterable[Item], write: Callable[[Item], None], most: int = 32) -> Iterator[Item]:
    """The items once they are written, by one thread in their order while the next ones are made;
    at most `most` wait for it. At the end, and when this is closed, all that were made are written.
    What `write` raises is raised here."""
    waiting: deque[tuple[Item, Future[None]]] = deque()
    with ThreadPoolExecutor(1) as writer:
        for item in items:
            waiting.append((item, writer.submit(write, item)))
            while waiting and (len(waiting) > most or waiting[0][1].done()):
                first, done = waiting.popleft()
                done.result()
                yield first
        for first, done in waiting:
            done.result()
            yield first


def iter_of(items: Iterable[Item]) -> Generator[Item, None, None]:
    """A generator over the items, which can be closed, and closes theirs with it."""
    yield from items


def read_or_say_why(path: str | Path, for_processing: bool = False) -> Film | Unread:
    """`read_film`, with every failure as a value: one bad file must not end a long run."""
    try:
        return read_film(path, for_processing)
    except FilmError as error:  # its hash, not the file's of now: it may be growing
        return Unread(error.reason, error.sentence, error.sha256)
    except MemoryError:
        sentence = "reading it needs more memory than there is."
    except Exception:  # without its message, which may hold a header's text, and so a name
        sentence = "the reader has a fault that this file brings out."
    return Unread("unexpected", sentence, hash_film(path))


def hash_film(path: str | Path) -> str:
    """SHA-256 of a file's bytes; "" where it cannot be read, or is larger than a film may be."""
    try:
        small = Path(path).is_file() and Path(path).stat().st_size <= MAX_FILE_BYTES
        return sha256_file(path) if small else ""
    except (OSError, ValueError):  # a name with a zero byte is a ValueError
        return ""


def default_jobs(films: int, asked: int = -1) -> int:
    """The processes asked for; with -1 those worth starting for so many films: 0 for a few, at most
    4 and one a core."""
    if asked >= 0:
        return asked
    return 0 if films < _WORTH_PROCESSES else min(4, len(os.sched_getaffinity(0)))


def read_ahead(
    paths: Iterable[str | Path],
    jobs: int = 0,
    ahead: int | None = None,
    for_processing: bool = False,
) -> Iterator[tuple[Path, Film | Unread]]:
    """Each path with its film, or why there is none, in the order given. `jobs` processes read at
    most `ahead` films (default: two a process) before they are asked for; with 0 jobs one thread
    does. A decoder that crashes loses only the film it crashed on."""
    require(jobs >= 0, "jobs of read_ahead must be 0 or more", jobs)
    ahead = max(1, 2 * max(1, jobs) if ahead is None else ahead)
    source = iter(paths)
    waiting: deque[tuple[Path, Future[Film | Unread]]] = deque()
    readers = _Readers(jobs, for_processing)
    try:
        while True:
            while len(waiting) < ahead and (path := next(source, None)) is not None:
                waiting.append((Path(path), readers.submit(path)))
            if not waiting:
                return
            current, future = waiting.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                # All films in flight are lost with the pool: which one did it shows one by one.
                lost = [current, *(p for p, _ in waiting)]
                waiting.clear()
                readers.restart()
                for again in lost:
                    yield again, readers.read_alone(again)
                continue
            yield current, result
    finally:
        readers.pool.shutdown(wait=True, cancel_futures=True)


class _Readers:
    """The pool, and a new one in its place when a decoder has taken it down."""

    def __init__(self, jobs: int, for_processing: bool) -> None:
        self.jobs, self.for_processing = jobs, for_processing
        self.pool = _pool(jobs)

    def restart(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = _pool(self.jobs)

    def submit(self, path: str | Path) -> Future[Film | Unread]:
        with _without_main():
            try:
                return self.pool.submit(read_or_say_why, str(path), self.for_processing)
            except BrokenProcessPool:  # seen before a film in flight was asked for
                self.restart()
                return self.pool.submit(read_or_say_why, str(path), self.for_processing)

    def read_alone(self, path: Path) -> Film | Unread:
        try:
            return self.submit(path).result()
        except BrokenProcessPool:
            self.restart()
            sentence = "the decoder crashed on this file, or it needs more memory than there is."
            return Unread("decoder_crashed", sentence, hash_film(path))


def _pool(jobs: int) -> Executor:
    if not jobs:
        return ThreadPoolExecutor(1)
    # Not fork: the parent runs torch's threads, and a fork of them can stand still for ever.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
    )


@contextmanager
def _without_main() -> Iterator[None]:
    """Spawned workers import the parent's __main__, and torch with it: seconds and 300 MB each for
    nothing. An empty module in its place spares them that."""
    real = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = real


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    cv2.setNumThreads(1)


def _end_with(parent: int) -> None:
    """End this process when its parent has: a killed one cannot tell it, and it would wait on."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


# --- workers of a Ray cluster ---

LOCAL = "local"
_TRIES = 3  # times that a film may take its worker down with it
_AHEAD = 2  # batches that a worker holds: it never waits for the next one
_PATIENCE = 90.0  # seconds that workers may end while they load, before the command does
_QUIET = 60.0  # seconds without a worker after which that is said

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
    """What the work makes of each item, in the order in which it comes. Each worker makes its own
    work once and is given `batch` items at a time. A batch whose worker is lost (killed, out of
    memory, its machine gone) is done by another one, item by item; for an item that takes three
    workers down `lost` gives the result. What work raises is raised here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray

    address = workers.removeprefix("ray:")
    cluster: dict[str, Any] = {"address": f"ray:{address}" if address[:2] == "//" else address}
    if address.isdigit():
        cluster = {"num_cpus": int(address), "include_dashboard": False}
    # workers find the packages where this process has them, and have one core each
    paths = [str(Path(__file__).resolve().parent.parent), *filter(None, sys.path)]
    here = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}}
    ray.init(**cluster, log_to_driver=False, logging_level=logging.ERROR, runtime_env=here)
    try:
        team = _Team(ray, make, int(ray.cluster_resources().get("CPU", 1)))
        yield from team.work(deque((group, 0) for group in batched(items, batch)), lost)
    finally:
        ray.shutdown()


class _Worker:
    """Becomes an actor: it has one processor, and stands where the command stands."""

    def __init__(self, make: Callable[[], Work[Any, Any]], folder: str) -> None:
        self._make, self._folder = make, folder

    def ready(self) -> bool:
        """Loads; not when it is made, where an error would look like a worker that is lost."""
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
