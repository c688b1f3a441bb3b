"""The audit page in headless Chromium: filters, sliders, keys, anchors, hostile names; schemes,
widths, print, a thousand films."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_browser import IMAGE, NEEDS_CHROMIUM, REFUSED, SCRIPT, Browser, opened, started
from audit_films import MEMBERS, film, films, phantom, summary

from classify.audit.page import film_anchor, write_audit_page
from cxr.page.build import picture_uri, write_pdf

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("audit")) as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser) -> Iterator[Browser]:
    with opened(chromium) as browser:
        yield browser


def worst_first(films: list[dict[str, Any]]) -> list[str]:
    """The order the gallery should have, worked out anew."""

    def rank(one: dict[str, Any]) -> tuple[int, float]:
        lifts = [m["lift"] for m in one["members"] if m["lift"] is not None]
        return -len(one["flags"]), min(lifts)

    return [f["film"].rsplit("/", 1)[-1] for f in sorted(films, key=rank)]


def test_the_gallery_shows_24_films_worst_first(page: Browser) -> None:
    page.search("films/")  # the 59 that are no special cases
    assert page.names() == worst_first(list(films(59)))[:24]
    assert page.status() == "59 of 63 films, page 1 of 3"


def test_a_flag_a_label_and_a_source_can_be_chosen_together(page: Browser) -> None:
    page.choose("by-flags", "just border")
    wanted = {f["film"].rsplit("/", 1)[-1] for f in films(59) if "border" in f["flags"]}
    assert set(page.names()) == wanted and len(wanted) > 4
    page.choose("by-source", "just nih")
    page.choose("by-label", "just bacterial")
    place = ("nih", "bacterial")
    both = {
        f["film"].rsplit("/", 1)[-1]
        for f in films(59)
        if "border" in f["flags"] and (f["source"], f["label"]) == place
    }
    assert set(page.names()) == both and both
    page.js("document.getElementById('clear').click()")
    assert page.status() == "63 films, page 1 of 3"


def test_films_without_a_flag_can_be_chosen(page: Browser) -> None:
    page.choose("by-flags", "no flag")
    none = sum(not f["flags"] for f in films(59)) + 4
    assert page.status().startswith(f"{none} of 63 films")


def test_search_finds_every_word_in_names_patients_and_reasons(page: Browser) -> None:
    page.search("FILM0041")
    assert page.names() == ["film0041.png"]
    page.search("leg thorax")
    assert page.names() == ["leg.dcm"]
    page.search("nowhere to be found")
    assert page.names() == [] and page.status() == "0 of 63 films, page 1 of 1"
    assert page.js("return !document.getElementById('nothing').hidden")


def test_films_can_be_sorted_by_lift_by_share_and_by_name(page: Browser) -> None:
    page.search("films/")
    page.choose("sort", "name")
    assert page.names()[:2] == ["film0000.png", "film0001.png"]
    page.choose("sort", "border")
    most = max(films(59), key=lambda f: max(m["border"] for m in f["members"]))
    assert most["film"].endswith(page.names()[0])
    page.search("")
    page.choose("sort", "lift")
    for _ in range(2):
        page.js("document.querySelector('[data-go=\"1\"]').click()")
    assert page.names()[-1] == "leg.dcm"  # nothing was measured on it


def test_the_slider_changes_the_opacity_of_every_map(page: Browser) -> None:
    opacity = "getComputedStyle(document.querySelectorAll('#cards .map')[3]).opacity"
    assert page.js(f"return {opacity}") == "0.7"
    page.js("document.getElementById('opacity').focus()")
    page.press("\ue012", "\ue012")  # left arrow twice
    assert page.js(f"return {opacity}") == "0.6"
    assert page.js("return document.getElementById('opacity-now').textContent") == "60 %"


def test_a_films_own_slider_leaves_the_others_alone(page: Browser) -> None:
    page.js("document.querySelector('#cards a').click()")
    page.wait("dialog.open")
    page.js(
        "const s = document.getElementById('own-opacity'); s.value = 20;"
        "s.dispatchEvent(new Event('input'))"
    )
    look = "return getComputedStyle(document.querySelector(arguments[0])).opacity"
    assert page.js(look, "#film-pictures .map") == "0.2"
    assert page.js(look, "#cards .map") == "0.7"


def test_box_and_outline_can_be_switched_off_everywhere(page: Browser) -> None:
    hidden = "return getComputedStyle(document.querySelector('#cards .' + arguments[0])).display"
    for name in ("box", "field", "seen"):
        assert page.js(hidden, name) == "inline"
        page.js("document.querySelector(`[data-show=${arguments[0]}]`).click()", name)
        assert page.js(hidden, name) == "none"
        boxes = "return [...document.querySelectorAll(`[data-show=${arguments[0]}]`)]"
        assert page.js(boxes + ".map(b => b.checked)", name) == [False, False]


def test_a_map_is_coloured_where_it_is_bright_and_clear_where_it_is_not(page: Browser) -> None:
    assert page.js("return document.querySelector('#cards .map').getAttribute('filter')")
    # cards off screen are laid out when they come near, which would move the page between pictures
    page.js("for (const c of cards.children) c.style.contentVisibility = 'visible'")
    place = page.js("""const m = document.querySelector('#cards .map');
        m.scrollIntoView({block: 'center'}); const r = m.getBoundingClientRect();
        return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height, scale: 1}""")
    pictures = []
    for value in (0, 100):
        page.js(
            "const s = document.getElementById('opacity'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            value,
        )
        pictures.append(page.shot(place))
    without, with_map = (p.astype(float) for p in pictures)
    changed = abs(with_map - without).max(axis=2)
    assert changed.max() > 100, "the map is not seen"
    assert (changed < 12).mean() > 0.2, "the map hides the film where nothing is salient"
    y, x = divmod(changed.argmax(), changed.shape[1])
    blue, green, red = with_map[y, x]
    assert red > blue and green > blue, "inferno's bright end is yellow"


def test_arrows_go_from_card_to_card_and_on_to_the_next_page(page: Browser) -> None:
    order = page.js("return films.map(f => f.id)")
    page.js("document.querySelector('#cards a').focus()")
    page.press("\ue014")  # right
    assert page.here() == order[1]
    across = page.js("return getComputedStyle(cards).gridTemplateColumns.split(' ').length")
    page.press("\ue015")  # down
    assert across > 1 and page.here() == order[1 + across]
    page.press("\ue010", "\ue014")  # to the end, then right
    assert page.here() == order[24] and "page 2 of 3" in page.status()
    page.press("\ue012")  # left: back on the page before
    assert page.here() == order[23] and "page 1 of 3" in page.status()


def test_pages_turn_with_buttons_and_arrows_and_stop_at_the_ends(page: Browser) -> None:
    page.js("document.querySelector('[data-go=\"1\"]').focus()")
    page.press("\ue014", "\ue014", "\ue014")
    assert "page 3 of 3" in page.status() and len(page.names()) == 63 - 48
    assert page.js("return document.querySelector('[data-go=\"1\"]').disabled")


def test_slash_goes_to_the_search_and_stays_out_of_it(page: Browser) -> None:
    page.js("document.querySelector('#cards a').focus()")
    page.press("/")
    assert page.js("return document.activeElement.id") == "find"
    page.press("a", "/")
    assert page.js("return find.value") == "a/"


def test_enter_opens_a_film_arrows_go_on_and_escape_closes(page: Browser) -> None:
    names = page.names()
    page.js("document.querySelector('#cards a').focus()")
    page.press("\ue007")
    page.wait("dialog.open")
    assert page.shown() == names[0]
    page.press("\ue014")
    assert page.shown() == names[1]
    page.press("\ue00c")
    page.wait("!dialog.open")
    assert page.here() == page.js("return films[1].id")
    assert page.js("return location.hash") == ""


def test_another_members_map_can_be_chosen(page: Browser) -> None:
    maps = "return document.querySelector(arguments[0] + ' .map').getAttribute('href')"
    of = """return [...cardOf(films[0].id).querySelectorAll(".figures tr")].find(
        row => row.querySelector("input")?.value === arguments[0]).dataset.map"""
    page.choose("member", MEMBERS[1])
    assert page.js(maps, "#cards") == page.js(of, MEMBERS[1])
    page.js("document.querySelector('#cards a').click()")
    page.wait("dialog.open")
    assert page.js(maps, "#film-pictures") == page.js(of, MEMBERS[1])
    page.js("document.querySelector(`#film-members [value=${arguments[0]}]`).click()", MEMBERS[0])
    assert page.js(maps, "#film-pictures") == page.js(of, MEMBERS[0])


def test_an_anchor_opens_its_film_on_another_page_and_when_it_is_filtered_out(
    page: Browser,
) -> None:
    page.open("#" + film_anchor(REFUSED))  # the last of all
    page.wait("dialog.open")
    assert page.shown() == "leg.dcm" and "page 3 of 3" in page.status()
    page.press("\ue00c")
    page.search("film0041")
    page.js("location.hash = arguments[0]", film_anchor(IMAGE))
    page.wait("dialog.open")
    assert page.shown().startswith("<img src=x") and page.names() == ["film0041.png"]


def test_hostile_names_are_words_and_nothing_else(page: Browser) -> None:
    for name in (IMAGE, SCRIPT):
        page.js("location.hash = arguments[0]", film_anchor(name))
        page.wait("dialog.open")
        assert name in page.js("return document.getElementById('detail').textContent")
        page.press("\ue00c")
        page.wait("!dialog.open")
    page.choose("by-source", "just <b>nih</b>")
    assert page.names() == [IMAGE.rsplit("/", 1)[-1]]
    assert page.js("return document.title").endswith("inside the lungs?")
    assert page.js("return document.querySelectorAll('img, b:not(dialog b)').length") == 0


def test_a_foreign_script_does_not_run(chromium: Browser, tmp_path: Path) -> None:
    text = chromium.page.read_text().replace(
        "</main>", "<script>document.title = 'owned'</script><img src=x onerror=alert(3)></main>"
    )
    (tmp_path / "foreign.html").write_text(text)
    chromium.driver.get((tmp_path / "foreign.html").as_uri())
    assert "owned" not in chromium.js("return document.title")
    faults = chromium.js("return window.faults")
    assert faults and all(fault.startswith("policy: ") for fault in faults)


# --- how it looks


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
    pictures = chromium.js("return document.querySelectorAll('#cards .view').length")
    assert pictures == 48, "only what is shown may be drawn"
