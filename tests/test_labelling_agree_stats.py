"""labelling.agree: numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelling_marks import BOX, coco, one_pair, side, table

from labelling.agree import limits, measure, measure_blocks, tables_json
from labelling.readers import Mark, compare, read_sides


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
