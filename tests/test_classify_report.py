"""The page: complete, escaped, one file, streamed, resumable; and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from classify.predictions import Item
from classify.run import ReportBook, write_report
from cxr.draw import to_data_uri
from cxr.page import printable
from cxr.page.build import csp_hash, make_picture, make_saliency_picture

HOSTILE = '/in/<script>document.title="owned"</script>"><img src=x onerror=alert(1)>\u202egpj.mcd'
TARGETS = ("bacterial", "viral")
SUMMARY = dict(
    title="runs/test",
    made="2026-01-01 12:00",
    guarantee="not proven: 299 abnormal films needed.",
    guard="This ensemble has no guard.",
    proven=False,
    threshold_id="abc@0.1",
    cropped=True,
    targets=TARGETS,
    cautions=("Learnt on children <b>only</b>.",),
    passed_over=(("hidden", 3),),
    complete=True,
)


def card(film: str, decision: str = "read", score: float | None = 0.5, **more: object) -> Item:
    pixels = np.linspace(0, 1, 80 * 60, dtype=np.float32).reshape(80, 60)
    shown = Item(
        film,
        "ok",
        logits=np.log([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]),
        abnormal_score=score,
        decision=decision,
        facts=("80 × 60 px",),
        pictures={
            "picture": make_picture(pixels, (10, 20, 50, 60), (5, 10, 55, 70)),
            "crop": make_picture(pixels),
            "saliency": make_saliency_picture(pixels),
        },
        saliency_of="bacterial",
    )
    return replace(shown, **more)  # type: ignore[arg-type]


REFUSED = Item("/in/leg.dcm", "no_thorax", "no thorax found <at all>", decision="not_read_by_model")


def page_of(tmp_path: Path, *cards: Item) -> str:
    with ReportBook(tmp_path / "report.jsonl", TARGETS) as book:
        for one in cards:
            book.add(one)
        return write_report(tmp_path / "report.html", SUMMARY, book).read_text()


def test_the_headline_counts_every_decision(tmp_path: Path) -> None:
    page = page_of(tmp_path, card("a"), card("b"), card("c", "definitely_normal", 0.01), REFUSED)
    assert "4 films: 2 to be read, 1 cleared as definitely normal, 1 not judged." in page


def test_names_reasons_and_cautions_are_escaped(tmp_path: Path) -> None:
    page = page_of(tmp_path, card(HOSTILE), REFUSED)
    assert "<img src=x" not in page and "<script>document" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "\u202e" not in page and "\\u202egpj.mcd" in page
    assert "no thorax found &lt;at all&gt;" in page and "&lt;b&gt;only" in page


def test_the_page_names_no_other_resource(tmp_path: Path) -> None:
    page = page_of(tmp_path, card("a"))
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith(("#", "data:image/")) for link in links)
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_policy_allows_just_the_inline_style_and_script(tmp_path: Path) -> None:
    page = page_of(tmp_path, card("a"))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)  # type: ignore[union-attr]
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S).group(1)  # type: ignore[union-attr]
        assert f"{tag}-src &#39;{csp_hash(text)}&#39;".replace("&#39;", "'") in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert " style=" not in page and " onclick=" not in page


def test_a_film_that_is_never_cleared_says_why_and_its_figures_are_grey(tmp_path: Path) -> None:
    page = page_of(tmp_path, card("a"), card("b", doubt="it lay <turned>", far=0.834))
    assert "<strong>Never cleared:</strong> it lay &lt;turned&gt;." in page
    assert "in grey, is not to be relied on" in page and "0.83, where 1 is allowed" in page
    assert page.count('<ul class="members doubted"') == 1 == page.count('<td class="doubted">')
    assert page.count('<ul class="members"') == 1


def test_cards_of_older_runs_without_a_doubt_are_shown(tmp_path: Path) -> None:
    page = page_of(tmp_path, card("a"))
    path = tmp_path / "report.jsonl"
    old = json.loads(path.read_text())
    for name in ("doubt", "ensemble", "far"):
        del old[name]
    path.write_text(json.dumps(old) + "\n")
    assert page_of(tmp_path) == page


def test_films_to_be_read_come_first_by_tier_and_score(tmp_path: Path) -> None:
    page_of(
        tmp_path,
        card("low", score=0.2),
        card("clear", "definitely_normal", 0.01),
        REFUSED,
        card("high", score=0.9),
        card("critical", score=0.3, tier="critical"),
    )
    book = ReportBook(tmp_path / "report.jsonl", TARGETS)
    order = [c["film"] for c in book.cards()]
    assert order == ["critical", "high", "low", "/in/leg.dcm", "clear"]


def test_a_killed_run_keeps_its_films_and_drops_the_torn_line(tmp_path: Path) -> None:
    page_of(tmp_path, card("a"), card("b"))
    path = tmp_path / "report.jsonl"
    path.write_bytes(path.read_bytes() + b'{"film":"c","stat')
    with ReportBook(path, TARGETS) as book:
        assert len(book) == 2
        book.add(card("c"))
        assert [c["film"] for c in book.cards()] == ["a", "b", "c"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_cards_of_many_films_have_pages_of_their_own_and_pictures_stay_files(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a run" / "report.html"
    path.parent.mkdir()
    with ReportBook(path.with_name("report.jsonl"), TARGETS) as book:
        for n in range(5):
            book.add(card(f"film{n}", score=0.9 - n / 10))
        write_report(path, SUMMARY, book, inline=4, on_a_page=2)
    places = [path, *(path.parent / f"report/{n}.html" for n in (2, 3))]
    assert sorted(path.parent.rglob("*.html")) == sorted(places)
    shown = []
    for place in places:
        page = place.read_text()
        shown.append(re.findall(r'<article class="card" id="(film-\d)"', page))
        assert "data:image" not in page and "img-src data: 'self' file:;" in page
        for link in re.findall(r'href="([^"]*)"', page):
            file, _, anchor = link.partition("#")
            other = (place.parent / unquote(file)).resolve() if file else place
            assert other.is_file(), link
            assert not anchor or anchor.startswith("crop-") or f'id="{anchor}"' in other.read_text()
    assert shown == [["film-1", "film-2"], ["film-3", "film-4"], ["film-5"]]
    first = path.read_text()
    assert first.count("<tr data-card=") == 5 and 'href="report/3.html#film-5"' in first
    assert "guarantee" not in places[1].read_text().split("<main>")[1]


def test_a_page_of_fewer_films_leaves_no_pages_of_more(tmp_path: Path) -> None:
    page_of(tmp_path, card("a"), card("b"), card("c"))
    with ReportBook(tmp_path / "report.jsonl", TARGETS) as book:
        write_report(tmp_path / "report.html", SUMMARY, book, inline=1, on_a_page=1)
        assert (tmp_path / "report/3.html").exists()
        write_report(tmp_path / "report.html", SUMMARY, book)
    assert not (tmp_path / "report").exists()
    assert "data:image" in (tmp_path / "report.html").read_text()


def test_a_film_done_again_replaces_its_card(tmp_path: Path) -> None:
    with ReportBook(tmp_path / "report.jsonl", TARGETS) as book:
        book.add(card("a"))
        book.add(card("a", "definitely_normal", 0.01))
        assert len(book) == 1 and book.counts["read"] == 0
        assert [c["decision"] for c in book.cards()] == ["definitely_normal"]


def test_pictures_are_files_beside_the_cards_and_data_uris_in_the_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, card("a"), REFUSED)
    assert page.count("data:image/jpeg;base64,") == 2 and page.count("data:image/png;base64,") == 1
    text = (tmp_path / "report.jsonl").read_text()
    assert "data:" not in text and len(text) < 2000
    assert len(list((tmp_path / "pictures").iterdir())) == 3
    first = json.loads(text.splitlines()[0])
    assert first["picture"]["thorax"] == [10, 20, 50, 60]
    jpeg = (tmp_path / first["picture"]["uri"]).read_bytes()
    assert to_data_uri(jpeg) == card("a").pictures["picture"].uri


def test_cards_of_older_runs_hold_their_pictures_themselves(tmp_path: Path) -> None:
    page = page_of(tmp_path, card("a"))
    path = tmp_path / "report.jsonl"
    old = json.loads(path.read_text())
    for kind in ("picture", "crop", "saliency"):
        old[kind]["uri"] = card("a").pictures[kind].uri
    path.write_text(json.dumps(old) + "\n")
    shutil.rmtree(tmp_path / "pictures")
    assert page_of(tmp_path) == page


def test_a_picture_that_is_gone_is_left_out(tmp_path: Path) -> None:
    page_of(tmp_path, card("a"))
    shutil.rmtree(tmp_path / "pictures")
    assert "There is no picture to show" in page_of(tmp_path)


def test_a_page_without_films_can_be_made(tmp_path: Path) -> None:
    assert "0 films: 0 to be read" in page_of(tmp_path)


def test_a_page_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    page_of(tmp_path, card("a"))
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.jsonl").open("ab").write(
        b'{"film":"b","decision":"read","tier":"","abnormal_score":null}\n'
    )
    with (
        ReportBook(tmp_path / "report.jsonl", TARGETS) as book,
        pytest.raises(Exception, match="no attrib"),
    ):
        write_report(tmp_path / "report.html", SUMMARY, book)
    assert (tmp_path / "report.html").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {
        "report.html",
        "report.jsonl",
        "pictures",
        ".in_use",
    }


def test_boxes_are_scaled_with_their_thumbnail() -> None:
    picture = make_picture(np.zeros((1000, 500), np.float32), (100, 200, 400, 900), side=200)
    assert (picture.width, picture.height) == (100, 200)
    assert picture.thorax == (20, 40, 80, 180) and picture.cut is None


def test_a_small_film_is_not_enlarged() -> None:
    picture = make_picture(np.zeros((80, 60), np.float32))
    assert (picture.width, picture.height) == (60, 80)


def decode(uri: str) -> np.ndarray:
    raw = base64.b64decode(uri.split(",", 1)[1])
    return cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)


def test_a_saliency_picture_is_seen_through_where_nothing_is_salient() -> None:
    plane = np.zeros((40, 20), np.float32)
    plane[30:, 15:] = 3.0
    alpha = decode(make_saliency_picture(plane).uri)[..., 3]
    assert alpha[0, 0] == 0 and alpha[35, 17] == round(0.7 * 255)
    assert decode(make_saliency_picture(np.zeros((9, 9), np.float32)).uri)[..., 3].max() == 0


def test_a_thousand_real_films_stay_below_60_mb(shared_data: Path, tmp_path: Path) -> None:
    from cxr.film import read_film

    sizes = []
    for path in sorted((shared_data / "images/nih").glob("*"))[:8]:
        pixels = read_film(path).pixels
        sizes.append(len(make_picture(pixels).uri + make_picture(pixels[40:-40]).uri))
    assert np.mean(sizes) * 1000 < 50e6


def test_printable_spells_out_what_deceives_and_keeps_the_rest() -> None:
    assert printable("Röntgen 胸 1.png") == "Röntgen 胸 1.png"
    assert printable("a\nb\u202ec\udcff") == "a\\nb\\u202ec\\udcff"


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def browse(page: Path, folder: Path) -> str:
    """The page's document after its script has run, as Chromium prints it."""
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        f"--user-data-dir={folder}",
        "--virtual-time-budget=2000",
        "--dump-dom",
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_runs_our_script_and_nobody_elses(tmp_path: Path) -> None:
    page_of(tmp_path, card(HOSTILE), *(card(f"/in/{n}.dcm") for n in range(30)), REFUSED)
    page = tmp_path / "report.html"
    foreign = page.read_text().replace("</main>", "<script>document.title='owned'</script></main>")
    page.write_text(foreign)  # not allowed by the policy's hashes
    shown = browse(page, tmp_path / "profile")
    assert "<title>32 films: 31 to read, 0 definitely normal</title>" in shown
    assert re.search(r'<div class="tools">', shown), "our own script did not run"
    assert shown.count('<th><button type="button">') + shown.count('<button type="button">') >= 6
