"""The page on which readers choose, in headless Chromium and by keys alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_browser import NEEDS_CHROMIUM, Browser, opened, started
from compare_world import HOSTILE, write_two

from comparing.page import PageConfig, read_choices, read_key, run_page

pytestmark = NEEDS_CHROMIUM
LEFT, UP, RIGHT, DOWN, TAB, ENTER = "\ue012", "\ue013", "\ue014", "\ue015", "\ue004", "\ue007"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("ask")
    maps = write_two(folder, [HOSTILE, "in/a.png", "in/b.png"])
    question = "Which one? <img src=x onerror=alert(1)>"
    config = PageConfig(tuple(maps), str(folder / "ask.html"), repeats=1, question=question)
    assert run_page(config) == 0
    with started(folder, folder / "ask.html") as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser) -> Iterator[Browser]:
    chromium.open()
    chromium.js("localStorage.clear()")
    with opened(chromium) as browser:
        yield browser


def place(page: Browser) -> str:
    return page.js("return document.getElementById('place').textContent")


def pressed(page: Browser) -> list[str]:
    return page.js(
        "return [...document.querySelectorAll('[aria-pressed=true]')].map(b => b.dataset.choice)"
    )


def catch_files(page: Browser) -> None:
    """Keep what would be saved as a file, and its name."""
    page.js("""window.files = [];
        URL.createObjectURL = blob => { blob.text().then(t => files.push(t)); return "data:,"; };
        HTMLAnchorElement.prototype.click = function () { window.named = this.download; };""")


def test_arrows_choose_and_go_on_and_back(page: Browser) -> None:
    assert place(page) == "Question 1 of 4, 0 chosen"
    page.press(LEFT)
    assert place(page) == "Question 2 of 4, 1 chosen" and pressed(page) == []
    page.press(UP)
    assert place(page) == "Question 1 of 4, 1 chosen" and pressed(page) == ["left"]
    page.press(DOWN, UP)
    assert pressed(page) == ["neither"]


def test_the_pictures_are_those_of_the_question(page: Browser) -> None:
    sources = "return ['left', 'film', 'right'].map(i => document.getElementById(i).src)"
    before = page.js(sources)
    assert len(set(before)) == 3 and all(s.startswith("data:image/jpeg") for s in before)
    page.press(RIGHT)
    assert not set(before) & set(page.js(sources))
    assert page.js("return [...document.images].every(i => i.complete && i.naturalWidth > 40)")
    xs = page.js(
        "return ['left', 'film', 'right'].map(i => "
        "document.getElementById(i).getBoundingClientRect().x)"
    )
    assert xs == sorted(xs)


def test_choices_outlive_the_page(page: Browser) -> None:
    page.press(LEFT, RIGHT)
    page.open()
    assert place(page) == "Question 3 of 4, 2 chosen"
    page.press(UP)
    assert pressed(page) == ["right"]


def test_a_whole_reading_by_keys_is_what_read_reads(page: Browser, tmp_path: Path) -> None:
    catch_files(page)
    for done, key in enumerate((LEFT, RIGHT, DOWN, "1"), 1):
        page.press(key)  # a busy browser may take a letter before the arrow that came first
        page.wait(f"document.getElementById('place').textContent.match(/{done}( of 4)? chosen/)")
    page.wait("!document.getElementById('done').hidden")
    assert "chosen for all" in page.js("return document.getElementById('count').textContent")
    page.press(TAB)  # from the message that all is done to the name
    assert page.js("return document.activeElement.id") == "reader"
    page.press("m", "k", "0", LEFT)  # keys in the name choose nothing
    assert place(page) == "4 of 4 chosen"
    for kind in ("json", "csv"):
        page.press(TAB)
        assert page.js("return document.activeElement.id") == kind
        page.press(ENTER)
    page.wait("files.length === 2")
    key = read_key(page.page.with_suffix(".key.json"))
    found = []
    for kind, text in zip(("json", "csv"), page.js("return files"), strict=True):
        path = tmp_path / f"mk.{kind}"
        path.write_text(text)
        found.append(read_choices(path, key))
    assert found[0] == found[1] and found[0].reader == "mk0"
    left = {n for n, choice in found[0].chosen.items() if choice == key.trials[n].left}
    assert left == {1, 4} and len(found[0].chosen) == 4
    assert page.js("return named") == f"choices_{key.page}_mk0.csv"


def test_nothing_is_saved_without_a_name(page: Browser) -> None:
    catch_files(page)
    page.press(LEFT)
    page.js("document.getElementById('json').click()")
    assert page.js("return document.activeElement.id") == "reader" and page.js("return files") == []
    assert "name" in page.js("return document.getElementById('saved').textContent")


def test_a_name_with_commas_and_quotes_stays_one_cell(page: Browser, tmp_path: Path) -> None:
    catch_files(page)
    page.press(DOWN)
    page.js("reader.value = arguments[0]", 'A, "B"')
    page.js("document.getElementById('csv').click()")
    page.wait("files.length === 1")
    (tmp_path / "ab.csv").write_text(page.js("return files[0]"))
    key = read_key(page.page.with_suffix(".key.json"))
    assert read_choices(tmp_path / "ab.csv", key).reader == 'A, "B"'


def test_starting_again_asks_first(page: Browser) -> None:
    page.press(LEFT)
    page.js("document.getElementById('clear').click()")
    assert place(page) == "Question 2 of 4, 1 chosen"
    page.js("document.getElementById('clear').click()")
    assert place(page) == "Question 1 of 4, 0 chosen"


def test_broken_memory_is_no_trouble(page: Browser) -> None:
    kept = json.dumps({"reader": 7, "choices": {"1": "<b>", "2": "left", "99": "left"}})
    page.js("localStorage.setItem('lungfirst.choices.' + data.page, arguments[0])", kept)
    page.open()
    assert place(page) == "Question 1 of 4, 1 chosen"


def test_hostile_texts_are_words_and_nothing_else(page: Browser) -> None:
    assert page.js("return document.title") == "Which one? <img src=x onerror=alert(1)>"
    assert page.js("return document.querySelectorAll('img').length") == 3


def test_the_page_fits_a_narrow_screen(page: Browser) -> None:
    size = {"width": 400, "height": 860, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.js("return document.documentElement.scrollWidth") == 400
        tall = "return document.querySelector('[data-choice=left]').getBoundingClientRect()"
        assert page.js(tall + ".height") >= 44 and page.js(tall + ".bottom") <= 860
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
