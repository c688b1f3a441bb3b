"""tools/explore.py from the command line: leaks are warned of, pages are whole and safe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import explore
import numpy as np
import pytest
from explore_world import make_set, write_table

HOSTILE = "<script>alert(1)</script>\"'&\u202e"


def run(data: Path, out: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    code = explore.main([str(data), "--out", str(out), "--draws", "200", "--jobs", "0", *words])
    page = out / "report.html"
    if not page.exists():
        return code, {}, ""
    return code, json.loads((out / "explore.json").read_text()), page.read_text()


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("border")
    return run(make_set(folder / "data", "border"), folder / "out")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("inside")
    return run(make_set(folder / "data", "inside"), folder / "out")


def test_several_folders_are_one_set(phantom_folders: list[str], tmp_path: Path) -> None:
    assert explore.main([*phantom_folders, "--out", str(tmp_path), "--draws", "9"]) == 0
    found = json.loads((tmp_path / "explore.json").read_text())
    assert found["films"] == found["read"] == 48 and not found["without_box"]


def by_what(found: dict[str, Any]) -> dict[str, Any]:
    return {row["what"]: row for row in found["probe"]}


def test_a_label_that_leaks_at_the_border_is_warned_of(
    leaking: tuple[int, dict[str, Any], str],
) -> None:
    code, found, page = leaking
    assert code == 0
    rows = by_what(found)
    assert rows["outside the thorax box"]["low"] > 0.9
    assert rows["aspect ratio"]["auc"] == 0.5  # all films are square
    (verdict,) = found["verdicts"]
    assert verdict["level"] == "warning"
    assert "Warning: labels can be told without lungs (here: normal / pneumonia)" in page


def test_a_label_that_is_only_inside_the_thorax_is_not_warned_of(
    honest: tuple[int, dict[str, Any], str],
) -> None:
    code, found, page = honest
    assert code == 0
    rows = by_what(found)
    assert rows["thumbnail of the crop"]["low"] > 0.9  # it can be told, but by looking at a lung
    for what in ("outside the thorax box", "four numbers of the box"):
        assert rows[what]["low"] < 0.7
    (verdict,) = found["verdicts"]
    assert verdict["level"] == "clear"
    assert "Warning: labels" not in page
    assert "No label that could be checked can be told without lungs" in page


def test_the_page_needs_nothing_else(leaking: tuple[int, dict[str, Any], str]) -> None:
    page = leaking[2]
    assert "<script" not in page and " style=" not in page and not re.search(r"\son\w+=", page)
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-", page)
    links = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert "prefers-color-scheme:dark" in page and "@media print" in page


def test_the_json_says_what_was_shown_and_how_it_was_made(
    leaking: tuple[int, dict[str, Any], str],
) -> None:
    found = leaking[1]
    assert found["schema"] == "lungfirst.explore" and found["version"] == 1
    assert found["films"] == found["read"] == 80 and not found["unread"]
    assert {k: len(v) for k, v in found["shown"].items()} == {
        "here · normal": 20,
        "here · pneumonia": 20,
    }  # 80 films of 40 patients, one of each
    assert found["config"]["seed"] == 0
    assert found["sizes"]["here · normal"] == {
        "n": 40,
        "slope": None,
        "intercept": None,
        "ratio": 1.0,
    }


def test_hostile_names_are_escaped_and_bad_films_counted(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    film = (np.random.default_rng(0).random((70, 90)) * 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "0.png"), film)
    (tmp_path / "images" / "1.png").write_text("no film")
    write_table(
        tmp_path,
        [
            {
                "source": HOSTILE,
                "label": HOSTILE,
                "licence": HOSTILE,
                "sex": HOSTILE,
                "view": HOSTILE,
            },
            {"source": HOSTILE},
            {"image": f"images/{HOSTILE}.png"},
        ],
    )
    code, found, page = run(tmp_path, tmp_path / "out")
    assert code == 0
    assert "<script" not in page and "\u202e" not in page and "&lt;script&gt;" in page
    assert [u["reason"] for u in found["unread"]] == ["not_an_image", "not_found"]
    assert "2 films could not be read" in page
    assert found["without_box"] == {"no box": 1}
    assert "No two labels of one source" in page


def test_notes_of_films_and_unknown_labels_are_counted(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    film = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    for number in range(2):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), film if number else film[..., 0])
    write_table(tmp_path, [{"label": "No Finding"}, {"label": "borked"}])
    code, found, page = run(tmp_path, tmp_path / "out")
    assert code == 0 and found["notes"]["colour"] == 1
    assert "Colour was turned to grey." in page
    assert found["unknown_labels"] == {"borked": 1}
    assert "the probe is not asked: borked 1." in page


def test_nothing_readable_is_an_error_in_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_table(tmp_path, [{}, {}])
    assert run(tmp_path, tmp_path / "out")[0] == 1
    assert not (tmp_path / "out" / "report.html").exists()
    assert run(tmp_path / "nowhere", tmp_path / "out")[0] == 1


@pytest.mark.parametrize("words", [["--smallest", "5"], ["--seed", "-1"], ["--jobs", "-1"]])
def test_arguments_out_of_range_are_refused(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        explore.main([str(tmp_path), *words])
    assert stop.value.code == 2


def test_a_film_that_is_listed_twice_is_said(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    film = np.random.default_rng(0).integers(0, 255, (70, 90), np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "0.png"), film)
    write_table(tmp_path, [{"image": "images/0.png"}] * 3)
    assert "2 rows name a film that stands in the table already" in run(tmp_path, tmp_path / "o")[2]
