"""labelme as a program of its own: found, set up for a session, watched while it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import yaml

from cxr.workdir import log, write_atomic
from labelling.session import FLAGS, PRELABELLED, Session, SessionFilm

POLL_SECONDS = 1.0
COLOURS = ([0, 220, 255], [255, 170, 0], [120, 255, 120])
HOW_TO_INSTALL = "labelme is missing: pip install -e .[annotate]"


def find_labelme() -> str:
    """The program beside this Python, or on the PATH; "" when there is none."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which("labelme", path=os.pathsep.join(places)) or ""


def has_screen() -> bool:
    """Whether a window can be opened: on Linux a display must be named."""
    linux = sys.platform.startswith("linux")
    return not linux or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def write_settings(session: Session) -> Path:
    """labelme's settings for this session: labels, flags, saving at each change."""
    settings = {
        "auto_save": True,
        "with_image_data": False,  # the view lies beside the label file
        "keep_prev": False,
        "display_label_popup": len(session.classes) > 1,
        "labels": list(session.classes),
        "validate_label": "exact",
        "sort_labels": False,
        "flags": list(FLAGS),
        "label_flags": {".*": [PRELABELLED]},
        "shape_color": "manual",  # labelme's own first colour is a dark red, lost on a dark film
        "label_colors": dict(zip(session.classes, cycle(COLOURS), strict=False)),
    }
    text = "# written by annotate.py start\n" + yaml.safe_dump(settings, sort_keys=False)
    return write_atomic(session.path / "labelme.yaml", text)


def run_labelme(session: Session, film: SessionFilm) -> int:
    """Open labelme at a film and wait till it is closed; returns its exit code.

    Each answer is noted in the history within a second of its being saved, so that a crash, of
    labelme or of the machine, costs at most the box that is being drawn.
    """
    settings, messages = write_settings(session), session.path / "labelme.log"
    ask = [find_labelme(), str(session.view_path(film)), "--config", str(settings)]
    seen = _read_stamps(session)
    with messages.open("ab") as output:
        process = subprocess.Popen(ask, stdout=output, stderr=output)  # noqa: S603 - our own list
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                _note_changed(session, seen)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
    session.note_changes()
    if process.returncode != 0:
        last = "\n".join(messages.read_text(errors="replace").strip().splitlines()[-3:])
        log.warning(
            "labelme ended with code %d. The last of %s:\n%s", process.returncode, messages, last
        )
    return process.returncode


def _note_changed(session: Session, seen: dict[int, tuple[int, int]]) -> None:
    """Note the films whose label files changed since the last look at them. A file in the middle of
    being written counts as not changed yet: it is looked at again."""
    stamps = _read_stamps(session)
    for film in session.films:
        stamp = stamps.get(film.number)
        if stamp is None or seen.get(film.number) == stamp:
            continue
        answer = session.answer(film)
        session.note(film, answer, "labelme")
        if not answer.fault:
            seen[film.number] = stamp


def _read_stamps(session: Session) -> dict[int, tuple[int, int]]:
    """When each label file was written, and its size, by the film's number."""
    stamps = {}
    for film in (f for f in session.films if f.view):
        with suppress(FileNotFoundError):
            stat = session.label_path(film).stat()
            stamps[film.number] = (stat.st_mtime_ns, stat.st_size)
    return stamps
