"""What the service's processes have in common: their log, and an end with their parent."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any

from cxr.rules import RefusedError
from cxr.workdir import claim, console
from hospital.settings import Site

log = logging.getLogger("lungfirst.hospital")  # a run's own log leaves this one's file open
_PARENT = os.getppid()


def begin_role(site: Site, name: str) -> None:
    """Log to logs/NAME.log; nothing that a library says of a header, and no error's own words,
    which may quote one, gets there."""
    os.umask(0o077)
    site.folders.make()
    warnings.simplefilter("ignore")
    console.quiet = True
    handler = RotatingFileHandler(site.folders.logs / f"{name}.log", "a", 4 << 20, 3, "utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    sys.excepthook = _told
    threading.excepthook = lambda args: _told(args.exc_type, args.exc_value, args.exc_traceback)


def _told(kind: type[BaseException], error: Any, trace: TracebackType | None) -> None:
    own = isinstance(error, RefusedError)  # our own words name no patient
    log.error("%s", error if own else where(error) if error is not None else kind.__name__)


def where(error: BaseException) -> str:
    """An error's kind and place, without its words."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f" at {Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{error.__class__.__name__}{place}"


def hold(folder: Path, ended: threading.Event) -> Any:
    """The claim of a folder, waited for while an earlier process, whose parent is gone, ends what
    it has in hand; None where this one is to end itself."""
    while not ended.is_set() and with_parent():
        with suppress(RefusedError):
            return claim(folder)
        ended.wait(0.5)
    return None


def with_parent() -> bool:
    """Does the process that started this one still live?"""
    return os.getppid() == _PARENT
