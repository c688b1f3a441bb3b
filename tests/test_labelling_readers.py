"""labelling.readers: CSV, COCO and sessions as readers, which film is which, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelling_marks import BOX, FILM, coco, one_pair, side, table
from labelling_sessions import make_session

from cxr.coco import CocoFilm, CocoSet, write_coco
from labelling.agree import tables_json, to_markdown
from labelling.readers import (
    A_ONLY,
    B_ONLY,
    BOTH,
    NEITHER,
    UNLIKE,
    Mark,
    compare,
    film_key,
    measure_blocks,
    read_side,
    read_sides,
)


def test_each_reader_of_a_csv_is_paired_separately(tmp_path: Path) -> None:
    a = coco(tmp_path / "a.json", {"f.png": BOX, "g.png": BOX}, source={"f.png": "s", "g.png": "t"})
    rows = ("f.png,ann,20,10,160,80", "f.png,bob,20,10,80,80", "g.png,bob,20,10,160,40")
    b = table(tmp_path / "b.csv", "\n".join(["image,reader,x,y,w,h", *rows]))
    blocks = measure_blocks(compare(*read_sides((a, b))).pairs)
    assert {n: (x.pairs, x.films) for n, x in blocks.items()} == {
        "all": (3, 2),
        "reader ann": (1, 1),
        "reader bob": (2, 2),
        "source s": (2, 1),
        "source t": (1, 1),
    }
    assert blocks["reader bob"].mean_iou.value == pytest.approx(0.5)
    kept = compare(*read_sides((a, b), "ann"))
    assert [p.reader for p in kept.pairs] == ["ann"]
    assert kept.only_a == ("g.png",)
    with pytest.raises(
        ValueError, match=r"--reader must be a reader of a CSV \(ann, bob\). Got 'eve'"
    ):
        read_sides((a, b), "eve")


def test_a_csv_given_twice_compares_its_readers(tmp_path: Path) -> None:
    rows = "image,reader,x,y,w,h\nf.png,ann,0,0,100,80\nf.png,bob,0,0,50,80\ng.png,bob,0,0,9,9\n"
    path = table(tmp_path / "b.csv", rows)
    found = compare(*read_sides((path, path)))
    assert [(p.reader, p.iou) for p in found.pairs] == [("ann / bob", 0.5)]
    assert (found.only_a, found.only_b) == (("g.png",), ())


def test_one_reader_is_not_compared_with_itself(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", {"f.png": BOX})
    with pytest.raises(ValueError, match=r"A and B must differ, or be a CSV with two readers"):
        compare(*read_sides((path, path)))


def test_csv_without_reader_with_corners_a_mark_and_no_box(tmp_path: Path) -> None:
    path = tmp_path / "carol.csv"
    path.write_text("film,x0,y0,x1,y1\na,1,2,3,4.5\nb,,,,\n", encoding="utf-8-sig")
    readers = read_side(path).readers
    assert list(readers) == ["carol"]
    assert [m.xyxy for m in readers["carol"]] == [(1, 2, 3, 4.5), None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,x,y\nf,1,2\n", r"must have the columns image, x, y, w, h .*Got image, x, y"),
        ("image,x,y,w,h\n", "must have a row for each film. Got none"),
        ("image,x,y,w,h\nf,1,2,3,4\nf,1,2,3,4\n", r"two boxes by b on film f \(lines 2 and 3\)"),
        ("image,x,y,w,h\nf,1,2,x,4\n", r"line 2 \(f\): x, y, w, h must be four numbers"),
        ("image,x,y,w,h\nf,1,2,3\n", "must be four numbers"),
        ("image,x,y,w,h\nf,1,nan,3,4\n", "must be four numbers"),
        ("image,x,y,w,h\nf,1,2,0,4\n", "must have a width and a height above 0"),
        ("image,x,y,w,h\n,1,2,3,4\n", "line 2: image must name a film"),
        ("image,x,y,w,h,width,height\nf,1,2,3,4,0,9\n", "width and height must be the film's size"),
    ],
)
def test_faults_of_a_csv_name_line_and_rule(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_side(table(tmp_path / "b.csv", text))


def test_a_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes("image,x,y,w,h\nM\u00fcller,1,2,3,4\n".encode("latin-1"))
    with pytest.raises(ValueError, match="must be a CSV in UTF-8"):
        read_side(tmp_path / "b.csv")


def test_two_boxes_on_a_film_of_a_coco_file_are_refused(tmp_path: Path) -> None:
    film = CocoFilm("f.png", (100, 200), np.array([BOX, BOX]), (0, 0))
    write_coco(tmp_path / "a.json", CocoSet([film], ("thorax",)))
    with pytest.raises(
        ValueError, match=r"has 2 boxes on film f.png; agree compares one box a film"
    ):
        read_side(tmp_path / "a.json")


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Got '.*none.json', which does not exist"):
        read_side(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"named .json or a table named .csv"):
        read_side(table(tmp_path / "boxes.txt", ""))
    with pytest.raises(FileNotFoundError, match=r"session\.json"):
        read_side(tmp_path)


def test_two_sessions(tmp_path: Path) -> None:
    films = [(f"{n}.png", FILM) for n in ("one", "two", "three", "four")]
    a = make_session(tmp_path / "s1", films, annotator="ann", patients={"one.png": "p"})
    b = make_session(tmp_path / "s2", films, {"one.png": (20, 10, 100, 90)}, annotator="bob")
    for number, film in enumerate(a.films[:3]):
        a.set_answer(film, xyxy=(BOX[0] + number, *BOX[1:]))
    b.set_answer(b.films[0], flags=("accepted",))
    b.set_answer(b.films[1], xyxy=BOX)
    b.set_answer(b.films[2], flags=("not frontal",))  # looked at, and no box
    found = compare(*read_sides((str(a.path), str(b.path))))
    assert [(p.film, p.verdict) for p in found.pairs] == [
        ("one.png", BOTH),
        ("two.png", BOTH),
        ("three.png", A_ONLY),
    ]
    assert found.pairs[0].iou == pytest.approx(0.5, abs=1e-3)
    assert found.pairs[0].patient == "p"
    assert found.pairs[1].edges_px == pytest.approx((-1, 0, 0, 0), abs=0.01)
    assert "1 of the 3 answers of" in found.notes[0]
    assert "accepted as drawn" in found.notes[0]


def test_a_session_meets_a_coco_file_of_smaller_films(tmp_path: Path) -> None:
    session = make_session(tmp_path / "s", [("deep/f.png", FILM)])
    session.set_answer(session.films[0], xyxy=BOX)
    other = coco(tmp_path / "b.json", {"images/f.jpg": (10, 5, 90, 45)}, (50, 100))
    pair = compare(*read_sides((str(session.path), other))).pairs[0]
    assert pair.iou == pytest.approx(1, abs=1e-3)


def test_a_session_without_answers_is_refused(tmp_path: Path) -> None:
    session = make_session(tmp_path / "s", [("f.png", FILM)], {"f.png": BOX})
    with pytest.raises(ValueError, match="has no film done yet; go on with"):
        read_side(session.path)


def test_two_human_boxes_in_a_session_are_refused(tmp_path: Path) -> None:
    session = make_session(tmp_path / "s", [("f.png", FILM)])
    session.set_answer(session.films[0], xyxy=BOX)
    path = session.label_path(session.films[0])
    data = json.loads(path.read_text())
    data["shapes"] *= 2
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"has 2 boxes on film f.png.*annotate.py check"):
        read_side(session.path)


def test_iou_and_edges_of_two_given_boxes() -> None:
    pair = one_pair(Mark("f", (0, 0, 100, 200)), Mark("f", (10, 20, 100, 200)))
    assert pair.iou == pytest.approx(90 * 180 / (100 * 200))
    assert pair.edges_px == (10, 20, 0, 0)
    assert pair.edges_pct == pytest.approx((10, 10, 0, 0))  # 10 of 100 wide, 20 of 200 high


def test_films_of_different_size_meet_as_fractions() -> None:
    a = Mark("f", (100, 50, 900, 450), (500, 1000))
    pair = one_pair(a, Mark("f", (22, 10, 180, 90), (100, 200)))
    assert pair.b_xyxy == (110, 50, 900, 450)
    assert pair.iou == pytest.approx(790 / 800)
    assert pair.edges_px == (10, 0, 0, 0)  # of A's picture
    assert pair.edges_pct == pytest.approx((1.25, 0, 0, 0))


def test_a_downsized_film_may_be_rounded_to_whole_pixels() -> None:
    a = Mark("f", (0, 0, 1422, 1152), (1152, 1422))
    assert one_pair(a, Mark("f", (0, 0, 512, 414), (414, 512))).iou == pytest.approx(1)


def test_pictures_of_different_shape_are_named_and_not_compared() -> None:
    a = side("a", Mark("f", BOX, (100, 200)), Mark("g", BOX, (100, 200)))
    found = compare(a, side("b", Mark("f", BOX, (200, 200)), Mark("g", BOX, (100, 200))))
    assert [p.verdict for p in found.pairs] == [UNLIKE, BOTH]
    text = to_markdown(found, measure_blocks(found.pairs))
    assert "1 film has pictures of different shape in A and B and were not compared: f" in text


def test_a_csv_takes_the_size_of_the_other() -> None:
    pair = one_pair(Mark("f", BOX), Mark("f", BOX, (100, 200)))
    assert (pair.size_hw, pair.iou) == ((100, 200), 1.0)


@pytest.mark.parametrize("turned", [False, True])
def test_a_csv_of_another_size_is_refused(turned: bool) -> None:
    marks = [Mark("f.png", (200, 100, 1800, 900)), Mark("f.png", BOX, (100, 200))]
    with pytest.raises(
        ValueError, match=r"reaches out of film f.png of 200 × 100 px.*add the columns"
    ):
        one_pair(*(marks[::-1] if turned else marks))


def test_a_csv_with_a_size_is_compared_as_fractions(tmp_path: Path) -> None:
    a = coco(tmp_path / "a.json", {"f.png": BOX})
    b = table(
        tmp_path / "b.csv", "image,x0,y0,x1,y1,width,height\nf.png,200,100,1800,900,2000,1000\n"
    )
    assert compare(*read_sides((a, b))).pairs[0].iou == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/b/film.jpeg", "film"),
        ("C:\\films\\film.dcm", "film"),
        ("1.2.840.113", "1.2.840.113"),
        ("1.2.840.113.dcm", "1.2.840.113"),
        ("Mu\u0308ller.png", "M\u00fcller"),
    ],
)
def test_the_stem_of_a_film(name: str, key: str) -> None:
    assert film_key(name, "stem") == key


def test_paths_are_compared_as_places() -> None:
    assert film_key("./a//b.png", "path") == film_key("a\\b.png", "path") == "a/b.png"


def test_path_falls_back_to_stem_and_says_so() -> None:
    found = compare(side("a", Mark("train/f.jpeg", BOX)), side("b", Mark("images/f.png", BOX)))
    assert (found.names, len(found.pairs)) == ("stem", 1)
    assert found.notes[0].startswith("No film of A has the path of one of B; matched by stem")


def test_more_matches_by_stem_are_hinted_at() -> None:
    a = side("a", Mark("f.png", BOX), Mark("x/g.png", BOX))
    found = compare(a, side("b", Mark("f.png", BOX), Mark("y/g.png", BOX)))
    assert (found.only_a, found.only_b) == (("x/g.png",), ("y/g.png",))
    assert found.notes == ("1 more films would match by their names alone: --names stem.",)


def test_nothing_in_common_is_refused_with_examples() -> None:
    with pytest.raises(ValueError, match=r"a film in common.*such as f.png.*such as g.png"):
        compare(side("a", Mark("f.png", BOX)), side("b", Mark("g.png", BOX)))


def test_a_stem_of_two_films_is_refused_only_where_it_is_needed() -> None:
    a = side("a", Mark("x/f.png", BOX), Mark("y/f.png", BOX), Mark("y/g.png", BOX))
    assert len(compare(a, side("b", Mark("g.jpg", BOX)), "stem").pairs) == 1
    with pytest.raises(ValueError, match=r"two films that match by stem as f: x/f\.png and y/f"):
        compare(a, side("b", Mark("f.jpg", BOX)), "stem")


def test_box_against_no_box_is_counted_and_named() -> None:
    boxes = {"both": (BOX, BOX), "a": (BOX, None), "b": (None, BOX), "none": (None, None)}
    found = compare(
        side("a", *(Mark(f, b) for f, (b, _) in boxes.items())),
        side("b", *(Mark(f, b) for f, (_, b) in boxes.items())),
    )
    assert [p.verdict for p in found.pairs] == [BOTH, A_ONLY, B_ONLY, NEITHER]
    blocks = measure_blocks(found.pairs)
    whole = blocks["all"]
    assert (whole.pairs, whole.a_only, whole.b_only, whole.neither) == (1, 1, 1, 1)
    assert tables_json(found, blocks)[A_ONLY] == ["a"]
    assert "1 film has a box in A and none in B: a" in to_markdown(found, blocks)
