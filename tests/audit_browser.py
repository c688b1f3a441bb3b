"""A headless Chromium for the pages' tests, and the audit that it shows."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from audit_films import film, films, summary

from classify.audit.page import write_audit_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NEEDS_CHROMIUM = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(DRIVER is None, reason="chromedriver is not installed"),
]

IMAGE = "in/<img src=x onerror=alert(1)>\"'&.png"
SCRIPT = "in/</script><script>document.title='owned';alert(2)</script>.png"
REFUSED = "in/leg.dcm"
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
]
WATCH = """window.faults = [];
addEventListener("error", e => faults.push(String(e.message)));
addEventListener("securitypolicyviolation", e => faults.push("policy: " + e.violatedDirective));
for (const name of ["alert", "confirm", "prompt"]) window[name] = () => faults.push(name);"""


class Browser:
    """One Chromium, looked at through the page's own script."""

    def __init__(self, driver: Any, page: Path) -> None:
        self.driver, self.page = driver, page

    def open(self, anchor: str = "") -> None:
        self.driver.get("about:blank")  # or only the anchor would change
        self.driver.get(self.page.as_uri() + anchor)

    def js(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def wait(self, script: str, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while not self.js("return " + script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def choose(self, name: str, value: str) -> None:
        self.js(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('change'))",
            name,
            value,
        )

    def search(self, words: str) -> None:
        self.js("find.value = arguments[0]; find.dispatchEvent(new Event('input'))", words)

    def press(self, *keys: str) -> None:
        """Keys for what has the focus, even a button that the key before has disabled."""
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def names(self) -> list[str]:
        return self.js("return [...document.querySelectorAll('#cards h3')].map(h => h.textContent)")

    def status(self) -> str:
        return self.js("return document.getElementById('status').textContent")

    def here(self) -> str:
        """The film whose card has the focus."""
        return self.js("return document.activeElement.closest('.card')?.id ?? ''")

    def shown(self) -> str:
        """The film that is open, large."""
        return self.js("return dialog.open ? document.getElementById('film-name').textContent : ''")

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def shot(self, clip: dict[str, float] | None = None) -> np.ndarray:
        """The page, or a part of it, as pixels (H, W, 3) BGR."""
        ask: dict[str, Any] = {"format": "png", "captureBeyondViewport": clip is not None}
        ask |= {"clip": clip} if clip else {}
        answer = self.driver.execute_cdp_cmd("Page.captureScreenshot", ask)
        raw = np.frombuffer(base64.b64decode(answer["data"]), np.uint8)
        return cv2.imdecode(raw, cv2.IMREAD_COLOR)


@contextmanager
def started(folder: Path, page: Path | None = None) -> Iterator[Browser]:
    """A browser with a page, by default the audit of 63 films, made in `folder`."""
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        yield Browser(driver, page or audit(folder / "report.html"))
    finally:
        driver.quit()


@contextmanager
def opened(browser: Browser) -> Iterator[Browser]:
    """The page freshly opened; afterwards nobody may have complained."""
    browser.driver.get_log("browser")
    browser.open()
    yield browser
    assert browser.js("return window.faults") == []
    assert browser.driver.get_log("browser") == []


def audit(path: Path) -> Path:
    """63 films on three pages: hostile names, a whole film without a crop, a refused one."""
    more = [
        film(101, film=IMAGE, source="<b>nih</b>", reasons=[SCRIPT]),
        film(102, film=SCRIPT),
        film(
            103,
            film=REFUSED,
            members=[],
            flags=[],
            status="no_thorax",
            label="other",
            decision="not_read_by_model",
            reason="no thorax found",
            crop=None,
            box=None,
            field=[],
        ),
        film(104, film="in/whole.png", crop=None, seen=[0, 0, 1, 1]),
    ]
    return write_audit_page(path, summary(), [*films(59), *more])
