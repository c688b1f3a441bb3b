"""labelling.agree: numbers worked out by hand, the command, its files, and the real readers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import pytest
from labelling_marks import BOX, RAMP, coco, one_pair, side, table
from labelling_sessions import make_session

from cxr.cli import parse_config
from cxr.film import read_film
from labelling.agree import AgreeConfig, FilmFiles, run, tables_json
from labelling.readers import Mark, compare, limits, measure, measure_blocks, read_sides


def run_agree(tmp_path: Path, *readers: str, **options: object) -> int:
    return run(AgreeConfig(readers, out=str(tmp_path / "out"), **options))


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the plot, which takes a second; test_the_files_and_the_table draws it."""
    monkeypatch.setattr("labelling.agree.draw_agreement", lambda *_: None)


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
        parse_config(AgreeConfig, words, "agree A B", ("readers",))
    assert end.value.code == 2


def test_limits_of_three_films_by_hand() -> None:
    # mean of 1, 2, 6 is 3; squares of −2, −1, 3 sum to 14; SD = √(14 / 2) = 2.64575
    found = limits([1, 2, 6])
    assert (found.bias, found.sd) == pytest.approx((3, 2.645751))
    assert (found.low, found.high) == pytest.approx((3 - 5.185673, 3 + 5.185673), abs=1e-5)


def test_limits_per_edge_are_of_the_side_that_the_edge_closes() -> None:
    marks = [
        (Mark(f"f{d}", (0, 0, 100, 50)), Mark(f"f{d}", (d, d, 100, 50 + d))) for d in (1, 2, 6)
    ]
    found = measure(
        compare(side("a", *(a for a, _ in marks)), side("b", *(b for _, b in marks))).pairs
    )
    assert [e.bias for e in found.edges_px] == pytest.approx([3, 3, 0, 3])
    assert [e.bias for e in found.edges_pct] == pytest.approx([3, 6, 0, 6])
    assert found.edges_pct[1].high == pytest.approx(6 + 2 * 5.185673, abs=1e-5)


def test_one_pair_has_a_bias_and_no_limits() -> None:
    found = compare(side("a", Mark("f", BOX)), side("b", Mark("f", BOX)))
    edges = tables_json(found, measure_blocks(found.pairs))["blocks"]["all"]["edges_px"]
    assert edges[0] == {"bias": 0.0, "sd": None, "low": None, "high": None}


def test_shares_count_an_iou_of_exactly_the_level() -> None:
    full = Mark("f", (0, 0, 100, 100))
    marks = [Mark(n, (0, 0, 100, h)) for n, h in (("a", 90), ("b", 95), ("c", 50), ("d", 89.9))]
    found = measure(
        compare(side("a", *(Mark(m.film, full.xyxy) for m in marks)), side("b", *marks)).pairs
    )
    assert (found.share_90.value, found.share_95.value) == (0.5, 0.25)
    assert found.median_iou.value == pytest.approx((0.9 + 0.899) / 2)
    assert found.mean_iou.value == pytest.approx((0.9 + 0.95 + 0.5 + 0.899) / 4)


def test_an_iou_of_the_level_counts_when_rounding_makes_it_less() -> None:
    a, b = Mark("f", (2.3, 2.3, 9.3, 9.3)), Mark("f", (2.3, 2.3, 9.3, 8.6))  # 6.3 / 7
    pair = one_pair(a, b)
    assert pair.iou < 0.9
    assert measure([pair]).share_90.value == 1


def test_the_fifth_percentile_lies_between_the_two_lowest() -> None:
    # of 5 films, 0.05 × 4 = 0.2 of the way from the lowest to the next
    marks = [Mark(str(h), (0, 0, 100, h)) for h in (50, 60, 80, 90, 100)]
    full = [Mark(m.film, (0, 0, 100, 100)) for m in marks]
    found = measure(compare(side("a", *full), side("b", *marks)).pairs)
    assert found.p5_iou.value == pytest.approx(0.5 + 0.2 * 0.1)


def test_patients_are_those_of_the_set_that_knows_them(tmp_path: Path) -> None:
    a = coco(
        tmp_path / "a.json",
        {"1.png": BOX, "2.png": BOX, "3.png": BOX},
        patient_id={"1.png": "p", "2.png": "p"},
    )
    b = table(
        tmp_path / "b.csv", "image,x,y,w,h\n" + "".join(f"{n}.png,20,10,160,80\n" for n in "123")
    )
    for first, second in ((a, b), (b, a)):
        found = measure(compare(*read_sides((first, second))).pairs)
        assert (found.films, found.patients) == (3, 2)  # p, and 3.png by its own name


def test_the_same_seed_gives_the_same_intervals(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(9)]
    a = coco(tmp_path / "a.json", dict.fromkeys(names, BOX))
    b = coco(tmp_path / "b.json", {n: (20, 10, 180 - i, 90) for i, n in enumerate(names)})
    pairs = compare(*read_sides((a, b))).pairs
    assert measure(pairs, seed=1) == measure(pairs, seed=1) != measure(pairs, seed=2)


def test_human_readers_agree_at_095(shared_data: Path) -> None:
    sides = read_sides([str(shared_data / n) for n in ("thorax.json", "second_reader.csv")])
    pairs = compare(*sides).pairs
    own = measure([p for p in pairs if p.reader == "imageannotation_ai"])
    assert round(own.median_iou.value, 2) == 0.95
    assert own.median_iou.low < own.median_iou.value < own.median_iou.high
    assert FilmFiles(str(shared_data)).find(pairs[0]) == shared_data / pairs[0].film
    assert read_film(shared_data / pairs[0].film).pixels.shape == pairs[0].size_hw
