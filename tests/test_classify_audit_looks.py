"""The audit page as it looks in headless Chromium: schemes, widths, print, a thousand films."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from audit_browser import NEEDS_CHROMIUM, Browser, opened, started
from audit_films import film, phantom, summary

from classify.audit.page import write_audit_page
from cxr.page.pdf import write_pdf
from cxr.page.pictures import picture_uri

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("audit")) as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser) -> Iterator[Browser]:
    with opened(chromium) as browser:
        yield browser


def test_both_schemes_are_shown(page: Browser) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = {}
    for name in ("light", "dark"):
        page.scheme(name)
        light[name] = sum(map(int, re.findall(r"\d+", page.js(ground))))
        assert page.js("return matchMedia('(prefers-color-scheme: dark)').matches") is (
            name == "dark"
        )
    page.scheme("light")
    assert light["light"] > 700 and light["dark"] < 100


@pytest.fixture
def resized(page: Browser) -> Iterator[Callable[[int], Browser]]:
    def to(width: int) -> Browser:
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        return page

    yield to
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(resized: Callable[[int], Browser], width: int) -> None:
    page = resized(width)
    assert page.js("return document.documentElement.scrollWidth") <= width
    page.js("document.querySelector('#cards a').click()")
    page.wait("dialog.open")
    assert page.js("return dialog.scrollWidth <= dialog.clientWidth"), "an open film"


@pytest.mark.parametrize("width", [360, 1280])
def test_letters_in_charts_can_be_read(resized: Callable[[int], Browser], width: int) -> None:
    scales = resized(width).js("""
        document.querySelectorAll("details").forEach(d => d.open = true);
        return [...document.querySelectorAll(".chart")].map(c => c.getBoundingClientRect().width /
          c.viewBox.baseVal.width).filter(scale => scale > 0)""")
    charts = resized(width).js("return document.querySelectorAll('.plot').length")
    assert len(scales) == charts, "one of each chart's two drawings is shown"
    assert min(scales) * 12 >= 10  # px


def test_everything_that_takes_the_focus_has_a_name(page: Browser) -> None:
    nameless = page.js("""
        const named = e => e.textContent.trim() || e.labels?.[0]?.textContent.trim() ||
          e.getAttribute("aria-label") || e.getAttribute("aria-labelledby");
        return [...document.querySelectorAll("a, button, input, select, [tabindex]")]
          .filter(e => !named(e)).map(e => e.outerHTML.slice(0, 80))""")
    assert nameless == []
    assert (
        page.js("return document.querySelectorAll('svg[role=img]:not([aria-label])').length") == 0
    )


def test_without_a_script_the_worst_films_are_there(page: Browser) -> None:
    page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.open()
        find = page.driver.find_elements
        shown = [e for e in find("css selector", "#worst .card") if e.is_displayed()]
        assert len(shown) == 24 and not find("id", "tools")[0].is_displayed()
        assert all(e.get_attribute("id").startswith("film-") for e in shown)
    finally:
        page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        page.open()


def test_print_shows_the_worst_films_and_no_controls(page: Browser) -> None:
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        look = "return getComputedStyle(document.querySelector(arguments[0])).display"
        assert page.js(look, "#worst") == "block"
        assert [page.js(look, s) for s in ("#films", "nav", "details")] == ["none"] * 3
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_page_prints_as_pdf_without_its_path(chromium: Browser, tmp_path: Path) -> None:
    pdf = tmp_path / "made" / "report.pdf"
    assert write_pdf(chromium.page, pdf) is True
    raw = pdf.read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", raw))
    assert raw.startswith(b"%PDF") and pages >= 4
    assert str(chromium.page.parent).encode() not in raw
    assert [p.name for p in pdf.parent.iterdir()] == ["report.pdf"]


@pytest.fixture(scope="module")
def thousand(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 films whose pictures are as hard to compress as real ones."""
    rng = np.random.default_rng(0)
    noisy = [
        picture_uri(np.clip(phantom(n % 6)[0] + rng.normal(0, 0.03, (480, 400)), 0, 1))
        for n in range(40)
    ]
    made = (film(n, picture=noisy[n % 40], crop=noisy[(n + 1) % 40]) for n in range(1000))
    path = tmp_path_factory.mktemp("thousand") / "report.html"
    return write_audit_page(path, summary(), made)


def test_a_thousand_films_stay_below_60_mb_and_open_soon(
    chromium: Browser, thousand: Path, record_property: Callable[[str, object], None]
) -> None:
    megabytes = thousand.stat().st_size / 1e6
    chromium.driver.get(thousand.as_uri())
    chromium.wait("document.querySelectorAll('#cards .card').length === 24", 20)
    seconds = int(chromium.js("return document.documentElement.dataset.ready")) / 1000
    record_property("megabytes", megabytes)
    record_property("seconds to a gallery that can be used", seconds)
    sys.stdout.write(f"1,000 films: {megabytes:.1f} MB, usable after {seconds:.2f} s\n")
    assert chromium.status() == "1,000 films, page 1 of 42"
    assert 20 < megabytes < 60 and seconds < 20
    assert chromium.js("return parsed.size") == 24, "only what is shown may be parsed"
