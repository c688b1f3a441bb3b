"""A run's folder: resolved configuration, seed, provenance, log; and atomic writing for all."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import IO, Any, TypeVar
from weakref import WeakValueDictionary

from rich.console import Console
from rich.control import Control
from rich.logging import RichHandler
from rich.progress import MofNCompleteColumn, Progress

from cxr.rules import RefusedError

log = logging.getLogger("lungfirst")
Item = TypeVar("Item")


class _Console(Console):
    """The terminal. What is printed there, but for bars, stands in the run's log too."""

    copies = True

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        if self.copies and not any(isinstance(o, Control) for o in objects):
            text = io.StringIO()
            Console(file=text, width=120, color_system=None).print(*objects, **options)
            for handler in run_logs() if text.getvalue().strip() else ():
                with suppress(OSError):
                    print(text.getvalue(), end="", file=handler.stream, flush=True)


class _Terminal(RichHandler):
    """Messages to the terminal; the log's own file has them already."""

    def emit(self, record: logging.LogRecord) -> None:
        console.copies = False
        try:
            super().emit(record)
        finally:
            console.copies = True


console = _Console(stderr=True)
TEXT = "utf-8-sig"  # the encoding of what others may have written; for csv.reader, newline=""

_LIBRARIES = (
    "torch torchvision lightning timm segmentation-models-pytorch albumentations numpy pydicom "
    "scikit-learn"
)


def counting(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The items, with a bar in the terminal of how many are done."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total, description=what)


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write piece by piece, moved to `path` whole at the end of the with block; after an
    error the old file stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        os.replace(name, path)  # noqa: PTH105 - Path.replace is the same call, this says why
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)
        raise


_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}")  # of `replacing`, whose process was killed


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write the whole file or leave the old one: a temporary file beside it, then a rename."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)
    return Path(path)


def write_json(path: str | Path, data: Any) -> Path:
    """`data` as indented JSON, atomically; NaN is refused because JSON has none."""
    return write_atomic(path, json.dumps(data, indent=2, allow_nan=False, default=str) + "\n")


def read_text(path: str | Path, errors: str = "strict") -> str:
    """A text file of any origin: UTF-8 with or without the mark that Windows programs put in front
    of it, and every line's end as `\\n`. Raises UnicodeDecodeError (a ValueError), or OSError."""
    return Path(path).read_text(encoding=TEXT, errors=errors)


def read_json(path: str | Path) -> Any:
    """What a JSON file of any origin holds; raises ValueError, or OSError where it cannot be read.
    A whole number beyond all floats is infinite, which every rule refuses by name."""
    try:
        return json.loads(read_text(path), parse_int=lambda t: int(t) if len(t) < 300 else float(t))
    except RecursionError as error:
        raise ValueError(str(error)) from error


def to_json(value: Any) -> Any:
    """Dataclasses as dicts and NaN as null, at any depth: JSON has neither."""
    return as_plain(value, lambda v: None if isinstance(v, float) and math.isnan(v) else v)


def as_plain(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Dataclasses as dicts and tuples as lists, at any depth, and what they hold as `leaf` has
    it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: as_plain(getattr(value, f.name), leaf) for f in fields}
    if isinstance(value, dict):
        return {str(key): as_plain(v, leaf) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(v, leaf) for v in value]
    return leaf(value)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes as hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_commit() -> str:
    """The commit of the code that runs, '-dirty' appended when it was changed, '' outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that shape a result."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES.split():
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def provenance(weights: dict[str, str] | None = None) -> dict[str, Any]:
    """When, with which code, libraries and weights (name → SHA-256) something was made."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": git_commit(),
        "versions": library_versions(),
        "weights": weights or {},
    }


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy as np  # late, both: reading a film must not pay for torch
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def set_up_logging(level: int = logging.INFO) -> None:
    """A command begins: its messages go to the terminal through rich, and are kept for the log of
    the run that it will start."""
    if not any(isinstance(h, RichHandler) for h in log.handlers):
        log.addHandler(_Terminal(console=console, show_path=False, show_time=False))
    _close_log()
    log.addHandler(MemoryHandler(1000, flushLevel=logging.CRITICAL + 1))
    log.setLevel(level)
    log.propagate = False


def run_logs() -> list[logging.FileHandler]:
    """The log of the run that was started last, if any."""
    return [h for h in log.handlers if isinstance(h, logging.FileHandler)]


def _close_log() -> list[logging.LogRecord]:
    """End the log that is being written; returns what was said before a run was started."""
    earlier: list[logging.LogRecord] = []
    for handler in list(log.handlers):
        if isinstance(handler, MemoryHandler | logging.FileHandler):
            earlier += handler.buffer if isinstance(handler, MemoryHandler) else []
            log.removeHandler(handler)
            with suppress(OSError):  # what a full disk has not taken
                handler.close()
    return earlier


class _Claim:
    """A folder that no other process writes to, for as long as this object is held; what a killed
    one left half written is cleared away."""

    def __init__(self, folder: Path) -> None:
        handle = os.open(folder / ".in_use", os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, handle)  # that frees the lock too, as any end does
        try:
            # not flock: forked children, as a training has, would hold it when this one is killed
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = os.read(handle, 300).decode(errors="replace") or "another process"
            raise RefusedError(
                "--out must be a folder that no other run is writing to. "
                f"{folder} is held by {owner}: wait for its end, or give another folder."
            ) from error
        except OSError:
            log.warning("%s is not guarded: its file system knows no locks", folder)
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        for left in folder.glob(".*"):
            if _LEFTOVER.fullmatch(left.name):
                left.unlink(missing_ok=True)


_CLAIMS: WeakValueDictionary[Path, _Claim] = WeakValueDictionary()


def claim(folder: str | Path) -> Any:
    """Make a folder and keep other processes out of it while the result is held, which this process
    may ask for again and again. The processes of one DDP training share a folder. Raises
    RefusedError, with the other's process and machine, or where it cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        found = _CLAIMS.get(place)
        if found is None and os.environ.get("LOCAL_RANK", "0") == "0":
            found = _CLAIMS[place] = _Claim(folder)
    except OSError as error:
        raise RefusedError(
            f"--out must be a folder that can be written. Got {folder}: {error.strerror}."
        ) from error
    return found


class _LogFile(logging.FileHandler):
    """run.log; a disk that is full must not add a traceback to each message."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """What cannot be written is told on the terminal alone."""


class Workdir:
    """One run's folder, claimed while this object lives. `start` writes run.json with the resolved
    configuration and provenance."""

    def __init__(self, path: str | Path) -> None:
        self.path, self._claim = Path(path), claim(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def start(
        self,
        config: dict[str, Any],
        seed: int | None = None,
        weights: dict[str, str] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Save what is needed to do the run again, and `more`; returns what was written."""
        record = {"config": config, "seed": seed, **provenance(weights), **more}
        write_json(self / "run.json", record)
        if seed is not None:
            seed_everything(seed)
        handler = _LogFile(self / "run.log", encoding="utf-8", errors="replace")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for earlier in _close_log():
            handler.handle(earlier)
        log.addHandler(handler)
        if log.level == logging.NOTSET:  # no command began it
            log.setLevel(logging.INFO)
        begun = (log.name, logging.INFO, "", 0, "begun: %s", (record["command"],), None)
        handler.handle(logging.LogRecord(*begun))
        return record

    def update(self, **fields: Any) -> None:
        """Add fields to run.json."""
        path = self / "run.json"
        record = read_json(path) if path.exists() else {}
        write_json(path, {**record, **fields})
