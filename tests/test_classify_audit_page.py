"""The audit page as a file: escaped, self-contained, streamed, whole or not at all."""

from __future__ import annotations

import base64
import json
import logging
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_films import film, films, summary
from markupsafe import escape

from classify.audit.page import film_anchor, film_record, write_audit_page
from cxr.page.build import csp_hash, picture_uri, write_pdf

HOSTILE = '</script><script>document.title="owned"</script><!--<img src=x onerror=alert(1)>"\'&'


def page_of(tmp_path: Path, *films: dict[str, Any], **parts: Any) -> str:
    return write_audit_page(tmp_path / "report.html", parts, films).read_text()


def data_of(page: str) -> dict[str, Any]:
    """The JSON blocks of a page by their id."""
    blocks = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', page, re.S)
    return {name: json.loads(text) for name, text in blocks}


def order_of(page: str) -> list[str]:
    return [entry["film"] for entry in data_of(page)["index"]]


def test_every_text_of_a_film_is_escaped(tmp_path: Path) -> None:
    member = {"name": HOSTILE, "flags": [HOSTILE], "lift": 1.0, "map": ""}
    words = ("film", "source", "label", "patient", "decision", "status", "reason", "lung_by")
    page = page_of(
        tmp_path,
        film(
            0, **dict.fromkeys(words, HOSTILE), flags=[HOSTILE], reasons=[HOSTILE], members=[member]
        ),
    )
    assert "<img src=x" not in page and "<!--" not in page and "<script>document.title" not in page
    assert order_of(page) == [HOSTILE] and page.count(str(escape(HOSTILE))) > 15


def test_every_text_of_the_summary_is_escaped(tmp_path: Path) -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: hostile(v) for k, v in value.items()} | {HOSTILE: HOSTILE}
        if isinstance(value, list):
            return [hostile(v) for v in value]
        return HOSTILE if isinstance(value, str) else value

    parts = summary()
    for figures in ("metrics", "distributions", "compare"):  # figures are read by these names
        parts[figures] = [
            {
                k: HOSTILE if isinstance(v, str) and k not in ("name", "metric") else v
                for k, v in row.items()
            }
            for row in parts[figures][:1]
        ]
    for name in (
        "title",
        "made",
        "method",
        "question",
        "answer",
        "cautions",
        "settings",
        "thresholds",
        "members",
    ):
        parts[name] = hostile(parts[name])
    for rows in parts["controls"].values():
        rows[:] = [
            {k: HOSTILE if isinstance(v, str) else v for k, v in r.items()} for r in rows[:1]
        ]
    page = page_of(tmp_path, film(0), **parts)
    assert "<img src=x" not in page and "<!--" not in page and "<script>document.title" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 15


def test_characters_that_deceive_or_break_are_spelt_out(tmp_path: Path) -> None:
    name = "a\u202egnp.exe\u2028\x00\udcff.png"
    page = page_of(tmp_path, film(0, film=name))
    assert not set("\u202e\u2028\x00") & set(page)
    assert order_of(page) == ["a\\u202egnp.exe\\u2028\\x00\\udcff.png"]


def test_the_page_names_no_other_resource(tmp_path: Path) -> None:
    page = page_of(tmp_path, *films(3), **summary())
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith(("#", "data:image/")) for link in links)
    assert not re.search(r"url\((?!#)|@import", page)
    assert set(re.findall(r"https?://[^\s\"]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_the_policy_allows_just_the_inline_style_and_scripts(tmp_path: Path) -> None:
    page = page_of(tmp_path, *films(2))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)  # type: ignore[union-attr]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert f"style-src '{csp_hash(style)}'" in policy and len(scripts) == 2
    assert all(csp_hash(text) in policy for text in scripts)
    assert not re.search(r"\s(style|on\w+)=", re.sub(r"<script.*?</script>", "", page, flags=re.S))


def test_films_with_most_flags_come_first_then_those_with_least_lift(tmp_path: Path) -> None:
    def one(name: str, lift: float | None, *flags: str) -> dict[str, Any]:
        members = [{"name": "m", "lift": lift, "flags": flags, "map": ""}]
        return film(0, film=name, flags=[], members=members)

    page = page_of(
        tmp_path,
        one("fine", 1.4),
        one("low", 0.9),
        one("flag", 1.2, "text"),
        one("none", None),
        one("two", 1.3, "text", "border"),
        film(0, film="refused", members=[], flags=[]),
        one("flag, low", 0.5, "looks outside"),
    )
    assert order_of(page) == ["two", "flag, low", "flag", "low", "fine", "none", "refused"]


def test_the_worst_member_is_the_one_shown_first(tmp_path: Path) -> None:
    members = [{"name": n, "lift": v, "map": "", "flags": []} for n, v in (("a", 1.2), ("b", 0.4))]
    assert film_record(film(0, film="x", members=members))["worst"] == 1
    page = page_of(tmp_path, film(0, film="x", members=members))
    assert re.findall(r'<tr class="worst">.*?value="(.*?)"', page) == ["b"]


def test_outlines_are_in_thousandths_of_the_longer_side(tmp_path: Path) -> None:
    parts = {"box": [0.5, 0.25, 1.0, 0.75], "field": [[[0, 0], [1, 0], [1, 0.5]]]}
    one = film(0, film="x", size=[400, 200], **parts)
    page, shown = page_of(tmp_path, one), film_record(one)
    assert '<rect class="box" x="250.0" y="250.0" width="250.0" height="500.0">' in page
    assert shown["view"] == (500, 1000) and shown["box"] == [250, 250, 250, 500]
    assert shown["field"] == "M0 0L500 0L500 500Z"


def test_a_radiologists_boxes_are_drawn_and_named_where_there_are_any(tmp_path: Path) -> None:
    page = page_of(tmp_path, film(1, film="x", size=[100, 100], findings=[[0, 0, 0.5, 0.25]]))
    assert '<rect class="finding" x="0.0" y="0.0" width="500.0" height="250.0">' in page
    assert 'data-show="finding"' in page
    assert 'data-show="finding"' not in page_of(tmp_path, film(1, findings=[]))


def test_no_picture_and_no_map_stands_in_the_page_twice(tmp_path: Path) -> None:
    def uri(*key: object) -> str:
        return f"data:image/png;base64,{base64.b64encode(repr(key).encode()).decode()}"

    def one(n: int) -> dict[str, Any]:
        members = [{"name": m, "lift": 1.0, "map": uri(n, m)} for m in "abc"]
        name = f"{n:02d}.png"
        return film(n, film=name, picture=uri(n), crop=uri(n, 0), members=members)

    page = page_of(tmp_path, *map(one, range(30)), **summary())
    found = re.findall(r"data:image/[^\"]*", page)
    assert len(found) == len(set(found)) == 30 * 5


def test_undefined_figures_become_null(tmp_path: Path) -> None:
    member = {"name": "m", "lift": float("nan"), "inside": np.float32(0.5), "text": "", "map": ""}
    (one,) = film_record(film(0, film="x", members=[member]))["members"]
    assert one["lift"] is None and one["inside"] == 0.5 and one["text"] is None


def test_a_page_without_films_and_figures_can_be_made(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "Did the model look inside the lungs?" in page and data_of(page)["index"] == []


def test_a_film_needs_nothing_but_its_name(tmp_path: Path) -> None:
    assert order_of(page_of(tmp_path, {"film": "alone.png"})) == ["alone.png"]


def test_the_notes_of_a_film_stand_on_its_card(tmp_path: Path) -> None:
    page = page_of(tmp_path, film(0, notes=["Colour was turned to grey.", "It is lossy."]))
    assert "<dt>Notes</dt><dd>Colour was turned to grey. It is lossy.</dd>" in page


def test_a_film_that_comes_twice_has_two_anchors(tmp_path: Path) -> None:
    ids = [e["id"] for e in data_of(page_of(tmp_path, film(1), film(1)))["index"]]
    assert len(set(ids)) == 2 and ids[0] == film_anchor(film(1)["film"])


def test_the_worst_films_are_in_the_page_without_a_script(tmp_path: Path) -> None:
    page = page_of(tmp_path, *films(60))
    static = re.sub(r"<(script|template).*?</\1>", "", page, flags=re.S)
    assert static.count('<li class="card"') == 24 and page.count('<li class="card"') == 60
    assert f'id="{film_anchor(film(25)["film"])}"' in static


@pytest.mark.parametrize(
    "uri", ["x.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,A"']
)
def test_a_picture_that_is_no_png_or_jpeg_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ValueError, match=r"film 'bad.png'.*picture_uri"):
        page_of(tmp_path, film(0, film="bad.png", picture=uri))


def test_a_page_that_fails_leaves_the_old_one_and_no_rubbish(tmp_path: Path) -> None:
    before = page_of(tmp_path, film(0))
    with pytest.raises(ValueError, match="fractions of the film"):
        page_of(tmp_path, film(1), film(2, box=[0, 0, 1]))
    assert (tmp_path / "report.html").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_films_are_not_held_in_memory(tmp_path: Path) -> None:
    uri = "data:image/png;base64,"
    heavy = (film(n, picture=uri + base64.b64encode(bytes(45_000)).decode()) for n in range(150))
    write_audit_page(tmp_path / "warm.html", summary(), films(2))
    tracemalloc.start()
    path = write_audit_page(tmp_path / "report.html", summary(), heavy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 8e6 and peak < 5e6


def test_a_thousand_real_films_stay_below_60_mb(shared_data: Path) -> None:
    from cxr.film import read_film

    sizes = []
    for path in sorted((shared_data / "images/nih").glob("*"))[::90]:
        pixels = read_film(path).pixels
        sizes.append(len(picture_uri(pixels)) + len(picture_uri(pixels[40:-40])))
    assert len(sizes) > 3 and np.mean(sizes) * 1000 < 45e6


def test_text_is_read_in_both_schemes(root: Path) -> None:
    """WCAG: 4.5 for text, 3 for lines of charts; the colours are read from the style sheet."""
    style = (root / "cxr/page/page.css").read_text()
    schemes = [
        dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", line))
        for line in style.splitlines()
        if "--paper:#" in line
    ]
    assert len(schemes) == 3  # light, dark, print
    for colours in schemes:
        pairs = [
            (ink, ground, 4.5)
            for ink in ("ink", "soft", "read", "clear", "none")
            for ground in ("paper", "card")
        ]
        pairs += [(c, c + "-soft", 4.5) for c in ("read", "clear", "none")]
        pairs += [("ink", "read-soft", 4.5)]
        pairs += [(c, "card", 3) for c in ("s1", "s2", "s3", "edge")]
        pairs += [] if colours is schemes[2] else [("focus", "card", 3), ("focus", "paper", 3)]
        for ink, ground, least in pairs:
            assert contrast(colours[ink], colours[ground]) >= least, (ink, ground, colours)


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_known_of_black_on_white() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)


def test_without_a_browser_there_is_no_pdf_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    logging.getLogger("lungfirst").propagate = True
    assert write_pdf(tmp_path / "report.html", tmp_path / "report.pdf") is False
    assert "No report.pdf" in caplog.text and not (tmp_path / "report.pdf").exists()


def test_a_browser_that_fails_leaves_no_pdf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = tmp_path / "chromium"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    logging.getLogger("lungfirst").propagate = True
    assert write_pdf(tmp_path / "report.html", tmp_path / "report.pdf") is False
    assert "exit code 3" in caplog.text and not (tmp_path / "report.pdf").exists()


def test_a_browser_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "chromium"
    fake.write_text("#!/bin/sh\nsleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert write_pdf(tmp_path / "report.html", tmp_path / "report.pdf", seconds=0.3) is False
