"""The box as viewers of others show it: dwv draws it, OHIF's parser takes it for a rectangle.

Neither viewer is part of lungfirst (dwv is GPL). Their folder is named by LUNGFIRST_VIEWERS:

    npm install --prefix VIEWERS dwv@0.36 @cornerstonejs/adapters@5 @babel/runtime dcmjs
    LUNGFIRST_VIEWERS=VIEWERS/node_modules pytest tests/test_hospital_viewers.py
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from hospital_world import WHEN, World, world  # noqa: F401 - a fixture

pytest.importorskip("highdicom", reason="the extra pacs is not installed")

from hospital.results import results_of

VIEWERS = Path(os.environ.get("LUNGFIRST_VIEWERS") or "none")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SIDE = 800  # of the page's viewer


def needs(package: str) -> Any:
    why = f"{package} is not installed (LUNGFIRST_VIEWERS names its node_modules)"
    return pytest.mark.skipif(not (VIEWERS / package).is_dir(), reason=why)


def report_of(world: World, stem: str, form: str = "comprehensive") -> Any:
    made = dict(results_of(world.run, None, ("sr",), form, WHEN))
    return made[world.rows[stem].film][0]


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
@needs("@cornerstonejs/adapters")
@pytest.mark.parametrize("form", ["comprehensive", "comprehensive3d"])
def test_ohifs_parser_takes_the_box_for_a_rectangle(
    world: World, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(root)
    path = tmp_path / "sr.dcm"
    report_of(world, "turned", form).save_as(path, enforce_file_format=True)
    script = root / "tests" / "viewers" / "cornerstone.mjs"
    command = ["node", str(script), str(VIEWERS.resolve()), str(path)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (line,) = [s for s in told.stdout.splitlines() if s.startswith("FOUND ")] or [told.stderr]
    ((box,),) = json.loads(line.removeprefix("FOUND ")).values()
    x0, y0, x1, y1 = np.array(world.boxed["turned"].thorax_xyxy) - 0.5  # to pixels' centres
    expected = [[x0, y0, 0], [x1, y0, 0], [x0, y1, 0], [x1, y1, 0]]
    assert np.allclose(box, expected, atol=1e-3)


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def address(
    world: World, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Where dwv, a film and its report are served from."""
    monkeypatch.chdir(root)
    film = pydicom.dcmread(world.film("korean"))  # without PixelSpacing: dwv refuses 0\\0
    film.save_as(tmp_path / "film.dcm")
    report_of(world, "korean").save_as(tmp_path / "report.dcm", enforce_file_format=True)
    shutil.copy(root / "tests" / "viewers" / "dwv.html", tmp_path)
    (tmp_path / "modules").symlink_to(VIEWERS.resolve())
    handler = functools.partial(_Files, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dwv.html"
    server.shutdown()


@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium is not installed")
@needs("dwv")
def test_dwv_draws_the_box_where_it_is(world: World, address: str, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", f"--window-size={SIDE + 40},{SIDE + 140}"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=DRIVER)
    browser = webdriver.Chrome(options=options, service=service)
    try:
        browser.get(address)
        end = time.monotonic() + 60
        while browser.execute_script("return window.loaded") != 2 and time.monotonic() < end:
            time.sleep(0.2)
        assert browser.execute_script("return [window.loaded, window.wrong]") == [2, []]
        time.sleep(1)  # it is drawn after that
        browser.find_element("id", "layerGroup0").screenshot(str(tmp_path / "shown.png"))
    finally:
        browser.quit()
    shown = cv2.imread(str(tmp_path / "shown.png")).astype(int)
    yellow = (shown[..., 1:].min(axis=2) - shown[..., 0]) > 60
    rows, columns = np.flatnonzero(yellow.any(1)), np.flatnonzero(yellow.any(0))
    film = pydicom.dcmread(world.film("korean"), stop_before_pixels=True)
    scale = SIDE / max(film.Rows, film.Columns)
    shift = np.array([SIDE - scale * film.Columns, SIDE - scale * film.Rows] * 2) / 2
    expected = np.array(world.boxed["korean"].thorax_xyxy) * scale + shift
    drawn = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.allclose(drawn, expected, atol=4), (drawn, expected)
