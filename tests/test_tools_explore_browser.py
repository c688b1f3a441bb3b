"""The page of tools/explore.py in headless Chromium: narrow, dark, printed, with hostile names."""

from __future__ import annotations

import csv
from collections.abc import Iterator

import explore
import pytest
from audit_browser import NEEDS_CHROMIUM, Browser, opened
from explore_browser import media, resize, started_on
from explore_world import make_set

pytestmark = NEEDS_CHROMIUM

SCRIPT = "<img src=x onerror=alert(1)>\"'&</style><script>alert(2)</script>"
WIDE = "long_" * 30

# what sticks out of the page: its own tables may be scrolled, nothing else may
OUTSIDE = """return [...document.querySelectorAll("body *")].filter(e =>
    !e.closest(".wide") && !e.closest("svg") && e.getBoundingClientRect().right > innerWidth + 1
).map(e => e.tagName + "." + e.className)"""
CONTRAST = """function lum(c) { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => { x /= 255;
    return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4 });
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2] }
function ground(e) { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c } return "rgb(255,255,255)" }
return Math.min(...[...document.querySelectorAll("p, li, h1, h2, h3, td, th, a")].map(e => {
    const a = lum(getComputedStyle(e).color), b = lum(ground(e));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) }))"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("explored")
    data = make_set(folder / "data", "border")
    table = data / "films.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {"source": SCRIPT, "licence": WIDE, "sex": SCRIPT, "age": SCRIPT}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(
            [
                *rows,
                {**rows[0], "image": f"images/{SCRIPT}.png"},
                {**rows[0], "image": f"images/{WIDE}.png"},
            ]
        )
    words = [str(data), "--out", str(folder / "out"), "--draws", "50", "--jobs", "0"]
    assert explore.main(words) == 0
    with started_on(folder / "out" / "report.html", folder / "profile") as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser) -> Iterator[Browser]:
    resize(chromium, 1280)
    media(chromium)
    with opened(chromium) as browser:
        yield browser


@pytest.mark.parametrize("width", [1280, 400, 320])
def test_nothing_sticks_out_of_the_page(page: Browser, width: int) -> None:
    resize(page, width)
    assert page.js(OUTSIDE) == []
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")


def test_names_from_the_table_are_text_and_nothing_else(page: Browser) -> None:
    assert page.js("return document.querySelectorAll('script, [onerror]').length") == 0
    assert SCRIPT in page.js("return document.querySelector('.verdicts h3').textContent")
    assert SCRIPT in page.js("return document.querySelector('#unread').textContent")


def test_every_picture_is_there(page: Browser) -> None:
    page.js("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    page.wait("[...document.images].every(i => i.complete)")
    assert page.js("return [...document.images].every(i => i.naturalWidth > 0)")
    assert page.js("return document.images.length") > 40  # 20 films of each class, and the means
    assert page.js("return [...document.images].every(i => i.alt)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_dark(page: Browser, scheme: str) -> None:
    media(page, scheme=scheme)
    assert page.js(CONTRAST) >= 4.5
    ground = page.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(ground) < 80) == (scheme == "dark")


def test_the_menu_leads_to_every_part(page: Browser) -> None:
    links = page.js("return [...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert links == ["#probe", "#counts", "#sizes", "#means", "#films", "#unread"]
    assert all(page.js("return !!document.querySelector(arguments[0])", link) for link in links)


def test_a_printed_page_is_whole(page: Browser) -> None:
    media(page, "print")
    resize(page, 700)  # A4 less its margins
    assert page.js(OUTSIDE) == []
    cut = """return [...document.querySelectorAll('.wide')].filter(
        e => e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute('aria-label'))"""
    assert page.js(cut) == []
    printed = page.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 10_000
