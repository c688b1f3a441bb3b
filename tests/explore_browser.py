"""The page of tools/explore.py in a headless Chromium, as its tests open it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audit_browser import CHROMIUM, DRIVER, FLAGS, WATCH, Browser, webdriver


@contextmanager
def started_on(page: Path, profile: Path) -> Iterator[Browser]:
    """A browser that will show `page`."""
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        yield Browser(driver, page)
    finally:
        driver.quit()


def resize(browser: Browser, width: int) -> None:
    """The window's inside so many px wide."""
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )


def media(browser: Browser, name: str = "", scheme: str = "light") -> None:
    """The page as it is shown on `screen`, or printed."""
    browser.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": name, "features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
