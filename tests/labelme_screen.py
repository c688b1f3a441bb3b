"""A virtual screen with a window manager, on which the tests drive the real labelme."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

PROGRAMS = ("Xvfb", "xdotool", "openbox", "import")  # the last one is ImageMagick's
WIDTH, HEIGHT = 1400, 1000


def missing_programs() -> list[str]:
    """What is not installed of the programs that the tests need."""
    from labelling.labelme import find_labelme

    missing = [name for name in PROGRAMS if not shutil.which(name)]
    return missing if find_labelme() else [*missing, "labelme"]


class Screen:
    """Keys, clicks and pictures on one X display."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.env, self.folder = env, folder

    def xdotool(self, *words: object) -> str:
        ask = ["xdotool", *map(str, words)]
        return subprocess.run(ask, env=self.env, capture_output=True, text=True, timeout=30).stdout

    def wait_for_window(self, title: str, seconds: float = 60) -> str:
        """The id of a window with this text in its title."""
        return wait_until(
            lambda: self.xdotool("search", "--onlyvisible", "--name", title).split("\n")[0],
            f"no window named {title!r}",
            seconds,
        )

    def title(self, window: str) -> str:
        return self.xdotool("getwindowname", window).strip()

    def fill(self, window: str) -> None:
        """Make the window as large as the screen, and give it the keys."""
        self.xdotool("windowsize", "--sync", window, WIDTH, HEIGHT)
        self.xdotool("windowmove", window, 0, 0)
        self.xdotool("windowactivate", "--sync", window)
        time.sleep(1.0)

    def key(self, *keys: str) -> None:
        self.xdotool("key", "--delay", "80", *keys)
        time.sleep(0.4)

    def click(self, x: float, y: float) -> None:
        self.xdotool("mousemove", "--sync", round(x), round(y))
        time.sleep(0.2)
        self.xdotool("click", 1)
        time.sleep(0.4)

    def picture(self, name: str) -> np.ndarray:
        """The screen as (H, W, 3) BGR, kept as a PNG too."""
        path = self.folder / f"{name}.png"
        ask = ["import", "-window", "root", str(path)]
        subprocess.run(ask, env=self.env, check=True, timeout=30)
        return cv2.imread(str(path))


@contextmanager
def open_screen(folder: Path) -> Iterator[Screen]:
    """An Xvfb display with openbox; labelme keeps its settings in `folder`."""
    number = next(n for n in range(91, 200) if not Path(f"/tmp/.X{n}-lock").exists())
    env = {
        **os.environ,
        "DISPLAY": f":{number}",
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "QT_QPA_PLATFORM": "xcb",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    size = f"{WIDTH}x{HEIGHT}x24"
    server = subprocess.Popen(["Xvfb", f":{number}", "-screen", "0", size], **quiet)
    manager = None
    try:
        wait_until(lambda: Path(f"/tmp/.X11-unix/X{number}").exists(), "Xvfb did not start", 20)
        manager = subprocess.Popen(["openbox"], env=env, **quiet)
        time.sleep(0.5)
        yield Screen(env, folder)
    finally:
        for process in filter(None, (manager, server)):
            process.terminate()
            process.wait(timeout=10)


@contextmanager
def annotate_start(screen: Screen, root: Path, session: Path) -> Iterator[subprocess.Popen]:
    """`annotate.py start` on that screen, ended with the block at the latest."""
    ask = [sys.executable, str(root / "tools/annotate.py"), "start", "--session", str(session)]
    with (screen.folder / "start.log").open("ab") as log:
        process = subprocess.Popen(ask, env=screen.env, cwd=root, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            subprocess.run(["pkill", "-f", str(session / "labelme.yaml")], check=False)
            process.wait(timeout=20)


def wait_until(ask: Callable[[], object], complaint: str, seconds: float = 30) -> str:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := ask():
            return str(answer)
        time.sleep(0.2)
    raise AssertionError(f"{complaint} within {seconds:.0f} s")
