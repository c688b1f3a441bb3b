"""labelling.agree: the worst films, found and drawn with both boxes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from labelling_marks import BOX, RAMP, one_pair, side

from labelling.agree import (
    COLOUR_A,
    COLOUR_B,
    FilmFiles,
    choose_worst,
    draw_pair,
    draw_worst,
)
from labelling.readers import Mark, Side, compare


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
