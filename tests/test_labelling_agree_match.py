"""labelling.readers: which film is which, IoU and edges, boxes against no box."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelling_marks import BOX, coco, one_pair, side, table

from labelling.agree import measure_blocks, tables_json, to_markdown
from labelling.readers import (
    A_ONLY,
    B_ONLY,
    BOTH,
    NEITHER,
    UNLIKE,
    Mark,
    compare,
    film_key,
    read_sides,
)


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
