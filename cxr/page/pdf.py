"""A page as a PDF, as Chromium prints it, where there is one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cxr.workdir import log

_BROWSERS = ("chromium", "google-chrome", "chromium-browser", "google-chrome-stable")
_SECONDS = 180
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --no-pdf-header-footer"
)


def write_pdf(html: Path, pdf: Path, seconds: float = _SECONDS) -> bool:
    """The page as printed by Chromium, without the browser's header and footer, which would show
    the file's path. False, with a line in the log, where no Chromium is or it fails."""
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        log.warning(
            "No %s: Chromium or Chrome is not installed. The page prints from any browser.",
            Path(pdf).name,
        )
        return False
    pdf = Path(pdf).resolve()
    with tempfile.TemporaryDirectory(prefix="audit-pdf-") as folder:
        made = Path(folder) / "page.pdf"
        paths = (f"--user-data-dir={folder}/profile", f"--print-to-pdf={made}")
        command = [browser, *_FLAGS.split(), *paths, Path(html).resolve().as_uri()]
        why = _run_to_end(command, seconds)
        if why is None and (not made.exists() or made.stat().st_size == 0):
            why = "it wrote nothing"
        if why is not None:
            log.warning("No %s: %s failed, %s.", pdf.name, Path(browser).name, why)
            return False
        pdf.parent.mkdir(parents=True, exist_ok=True)
        beside = pdf.with_name(f".{pdf.name}.part")
        shutil.copyfile(made, beside)  # the temporary folder may lie on another disk
        beside.replace(pdf)
    return True


def _run_to_end(command: Sequence[str], seconds: float) -> str | None:
    """What went wrong, or None. The browser's children are ended with it."""
    process = subprocess.Popen(  # noqa: S603 - a browser found on PATH, flags and paths of ours
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        code = process.wait(seconds)
        return None if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
