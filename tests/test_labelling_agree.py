"""labelling.agree: the command, its files, its pictures, and the real readers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from labelling_marks import BOX, RAMP, coco, one_pair, side
from labelling_sessions import make_session

from cxr.cli import parse_config
from cxr.film import read_film
from labelling.agree import AgreeConfig, measure, run
from labelling.agreement_pictures import (
    COLOUR_A,
    COLOUR_B,
    FilmFiles,
    choose_worst,
    draw_pair,
    draw_worst,
)
from labelling.readers import Mark, Side, compare, read_sides


def run_agree(tmp_path: Path, *readers: str, **options: object) -> int:
    return run(AgreeConfig(readers, out=str(tmp_path / "out"), **options))


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the plot, which takes a second; test_the_files_and_the_table draws it."""
    monkeypatch.setattr("labelling.agreement_pictures.draw_agreement", lambda *_: None)


def test_the_files_and_the_table(tmp_path: Path, capsys) -> None:
    a = coco(tmp_path / "a.json", {"f.png": BOX, "g.png": BOX, "h.png": BOX})
    b = coco(tmp_path / "b.json", {"f.png": (20, 10, 100, 90), "g.png": BOX, "i.png": BOX})
    assert run_agree(tmp_path, a, b) == 0
    out = capsys.readouterr().out
    assert "IoU of 2 pairs of boxes on 2 films" in out
    assert "1 film only in A, without an answer in B: h.png" in out
    assert "worst.png is left out: its films were not found (name their folder: --films)" in out
    assert max(map(len, out.split("edges, B")[1].split("Edges are")[0].splitlines())) <= 80
    folder = tmp_path / "out"
    assert sorted(p.name for p in folder.iterdir()) == [
        "agreement.json",
        "agreement.md",
        "agreement.png",
        "films.csv",
    ]
    with (folder / "films.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["film"], r["iou"], r["right_px"], r["right_pct"]) for r in rows] == [
        ("f.png", "0.5000", "-80.00", "-50.00"),
        ("g.png", "1.0000", "0.00", "0.00"),
    ]
    found = json.loads((folder / "agreement.json").read_text())
    assert found["blocks"]["all"]["mean_iou"]["value"] == pytest.approx(0.75)
    assert (found["only_in_a"], found["only_in_b"]) == (["h.png"], ["i.png"])
    assert "| all | right | −40.0 | 56.6 |" in (folder / "agreement.md").read_text()
    assert cv2.imread(str(folder / "agreement.png")).shape == (800, 1200, 3)


def test_sessions_know_where_their_films_are(tmp_path: Path, capsys, no_plot: None) -> None:
    sessions = [
        make_session(tmp_path / name, [("f.png", RAMP / 255)], annotator=name) for name in "pq"
    ]
    for session in sessions:
        session.set_answer(session.films[0], xyxy=BOX)
    assert run_agree(tmp_path, *(str(s.path) for s in sessions)) == 0
    assert "worst.png: 1 film with the lowest IoU." in capsys.readouterr().out
    assert (tmp_path / "out/worst.png").exists()


def test_odd_file_names_do_no_harm(tmp_path: Path, capsys) -> None:
    odd = ["[bold]a[/x] |b|.png", "M\u00fcller\u4e2d $x$ #1.png", "a\nb`c`*d*.png", "q'\"<i>;,.png"]
    folder = tmp_path / "films [1]"
    folder.mkdir()
    for name in odd:
        assert cv2.imwrite(str(tmp_path / "x.png"), RAMP)
        (folder / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x.png").rename(folder / name)
    a = coco(tmp_path / "a$.json", dict.fromkeys(odd, BOX))
    b = coco(tmp_path / "b.json", {**dict.fromkeys(odd, BOX), odd[0]: None, "\udcff.png": BOX})
    assert run_agree(tmp_path, a, b, films=str(folder)) == 0
    out = capsys.readouterr().out
    assert "worst.png: 3 films with the lowest IoU." in out
    assert "[bold]a[/x] |b|.png" in out
    assert r"[bold]a[/x] \|b\|.png" in (tmp_path / "out/agreement.md").read_text()


def test_an_older_sheet_does_not_stay(tmp_path: Path, capsys, no_plot: None) -> None:
    a, b = coco(tmp_path / "a.json", {"f.png": BOX}), coco(tmp_path / "b.json", {"f.png": BOX})
    cv2.imwrite(str(tmp_path / "f.png"), RAMP)
    assert run_agree(tmp_path, a, b, films=str(tmp_path)) == 0
    assert (tmp_path / "out/worst.png").exists()
    (tmp_path / "empty").mkdir()
    assert run_agree(tmp_path, a, b, films=str(tmp_path / "empty")) == 0
    assert not (tmp_path / "out/worst.png").exists()
    assert "its films were not found (none is under" in capsys.readouterr().out


def test_without_a_box_in_both_there_is_no_plot(tmp_path: Path, capsys) -> None:
    a, b = coco(tmp_path / "a.json", {"f.png": BOX}), coco(tmp_path / "b.json", {"f.png": None})
    assert run_agree(tmp_path, a, b) == 0
    out = capsys.readouterr().out
    assert "1 film has a box in A and none in B: f.png" in out
    assert "left out: no film has a box in both" in out


def test_trouble_with_files_ends_with_1_and_a_sentence(tmp_path: Path, capsys) -> None:
    a = coco(tmp_path / "a.json", {"f.png": BOX})
    assert run_agree(tmp_path, a, "none.csv") == 1
    assert "Got 'none.csv', which does not exist" in capsys.readouterr().err
    b = coco(tmp_path / "b.json", {"f.png": BOX})
    assert run_agree(tmp_path, a, b, films="nowhere") == 1
    assert "--films must be a folder. Got 'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["a"],
        ["a", "b", "c"],
        ["a", "b", "--names", "sound"],
        ["a", "b", "--worst", "-1"],
        ["a", "b", "--seed", "-1"],
    ],
)
def test_wrong_arguments_end_with_2(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        parse_config(AgreeConfig, words, "agree", "agree A B", ("readers",))
    assert end.value.code == 2


def test_the_worst_are_films_with_the_lowest_iou_first() -> None:
    full = [Mark(name, (0, 0, 100, 100)) for name in "fgh"]
    ann = [Mark(n, (0, 0, 100, h)) for n, h in (("f", 90), ("g", 60), ("h", 80))]
    bob = [Mark("f", (0, 0, 100, 70))]
    two = Side(Path("b"), {"ann": ann, "bob": bob})
    worst = choose_worst(compare(side("a", *full), two).pairs, 2)
    assert [(p.film, p.reader) for p in worst] == [("g", "ann"), ("f", "bob")]


def test_the_sheet_names_a_and_b_in_their_colours(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "f.png"), RAMP)
    found = compare(side("a", Mark("f.png", BOX)), side("b", Mark("f.png", BOX)))
    assert draw_worst(found, str(tmp_path), tmp_path / "worst.png", 12) == (1, [])
    column = cv2.imread(str(tmp_path / "worst.png"))[:80, 20, ::-1]  # the swatches left of both
    seen = [tuple(int(v) for v in c) for c in column]
    assert 0 < seen.index(COLOUR_A) < seen.index(COLOUR_B)


def test_both_boxes_are_drawn_where_they_lie(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "f.png"), np.zeros((100, 200), np.uint8))
    a = Mark("f", (200, 100, 1800, 900), (1000, 2000))  # ten times the picture
    pair = one_pair(a, Mark("f", (400, 200, 1600, 800), (1000, 2000)))
    picture = draw_pair(pair, tmp_path / "f.png")  # 400 × 200: a fifth of A's pixels
    assert picture.shape == (200, 400, 3)
    assert tuple(picture[100, 40]) == COLOUR_A
    assert tuple(picture[100, 80]) == COLOUR_B
    assert tuple(picture[40, 200]) == COLOUR_B
    assert not picture[100, 200].any()


def test_a_film_that_cannot_be_read_is_black_with_its_boxes(tmp_path: Path) -> None:
    (tmp_path / "f.png").write_bytes(b"no picture")
    pair = one_pair(Mark("f", BOX, (100, 200)), Mark("f", BOX))
    assert tuple(draw_pair(pair, tmp_path / "f.png")[100, 360 - 1]) == COLOUR_B


def test_films_are_found_by_path_then_by_name(tmp_path: Path) -> None:
    for name in ("x/f.png", "y/f.png", "y/g.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    index = FilmFiles(str(tmp_path))
    assert index.find(one_pair(Mark("y/f.png", BOX), Mark("y/f.png", BOX))) == tmp_path / "y/f.png"
    assert index.find(one_pair(Mark("z/g.png", BOX), Mark("z/g.png", BOX))) == tmp_path / "y/g.dcm"
    assert index.find(one_pair(Mark("z/f.png", BOX), Mark("z/f.png", BOX))) is None  # which one?
    assert FilmFiles("").find(one_pair(Mark("f", BOX), Mark("f", BOX))) is None


def test_human_readers_agree_at_095(shared_data: Path) -> None:
    sides = read_sides([str(shared_data / n) for n in ("thorax.json", "second_reader.csv")])
    pairs = compare(*sides).pairs
    own = measure([p for p in pairs if p.reader == "imageannotation_ai"])
    assert round(own.median_iou.value, 2) == 0.95
    assert own.median_iou.low < own.median_iou.value < own.median_iou.high
    assert FilmFiles(str(shared_data)).find(pairs[0]) == shared_data / pairs[0].film
    assert read_film(shared_data / pairs[0].film).pixels.shape == pairs[0].size_hw
