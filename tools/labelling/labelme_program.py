"""labelme as a program of its own: found, set up for a session, watched while it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
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
    beside = str(Path(sys.executable).parent)
    places = os.pathsep.join([beside, os.environ.get("PATH", "")])
    return shutil.which("labelme", path=places) or ""


def has_screen() -> bool:
    """Whether a window can be opened: on Linux a display must be named."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


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

    Raises:
        FileNotFoundError: when labelme is not installed.
    """
    program = find_labelme()
    if not program:
        raise FileNotFoundError(HOW_TO_INSTALL)
    settings = write_settings(session)
    ask = [program, str(session.view_path(film)), "--config", str(settings)]
    watch = _Watch(session)
    with (session.path / "labelme.log").open("ab") as output:
        process = subprocess.Popen(ask, stdout=output, stderr=output)  # noqa: S603 - our own list
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                watch.note()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
        finally:
            watch.note()
    session.note_changes()
    if process.returncode != 0:
        messages = session.path / "labelme.log"
        last = messages.read_text(errors="replace").strip().splitlines()[-3:]
        log.warning(
            "labelme ended with code %d. The last of %s:\n%s",
            process.returncode,
            messages,
            "\n".join(last),
        )
    return int(process.returncode)


class _Watch:
    """Looks at the label files that changed since the last look."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.films = {session.label_path(f).name: f for f in session.films if f.view}
        self.seen = self._stamps()

    def note(self) -> None:
        """Note what changed in the history. A file in the middle of being written counts as not
        changed yet: it is looked at again."""
        for name, stamp in self._stamps().items():
            if self.seen.get(name) == stamp:
                continue
            film = self.films[name]
            answer = self.session.answer(film)
            self.session.note(film, answer, "labelme")
            if not answer.fault:
                self.seen[name] = stamp

    def _stamps(self) -> dict[str, tuple[int, int]]:
        stamps = {}
        with os.scandir(self.session.path / "views") as entries:
            for entry in entries:
                if entry.name in self.films:
                    stat = entry.stat()
                    stamps[entry.name] = (stat.st_mtime_ns, stat.st_size)
        return stamps
