"""detect.metrics: numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detect.metrics import (
    average_precision,
    constant_box,
    mask_coverage,
    scale_box,
    score_film,
    summarise,
)

TRUTH = [[10, 20, 30, 60]]  # 20 × 40 = 800 px²


def test_iou_and_coverage_of_a_shifted_box() -> None:
    score = score_film((20, 20, 40, 60), TRUTH)  # half of the truth: overlap 400, union 1200
    assert score.iou == pytest.approx(1 / 3)
    assert score.coverage == pytest.approx(0.5)


def test_edges_are_signed_and_in_mm_by_row_and_column_spacing() -> None:
    score = score_film((8, 23, 31, 60), TRUTH, spacing_mm=(0.5, 0.2))
    assert score.edges_px == pytest.approx((-2, 3, 1, 0))
    assert score.edges_mm == pytest.approx((-0.4, 1.5, 0.2, 0))


def test_edges_in_mm_are_unknown_without_spacing() -> None:
    assert all(math.isnan(v) for v in score_film((8, 23, 31, 60), TRUTH).edges_mm)


def test_miss_has_iou_and_coverage_zero_and_no_edges() -> None:
    mask = np.ones((80, 60), np.uint8)
    score = score_film(None, TRUTH, mask)
    assert score.missed
    assert (score.iou, score.coverage, score.lung_coverage) == (0, 0, 0)
    assert all(math.isnan(v) for v in score.edges_px)


def test_truth_of_two_lungs_is_their_union() -> None:
    score = score_film((10, 20, 30, 60), [[10, 20, 18, 55], [22, 25, 30, 60]])
    assert score.iou == pytest.approx(1.0)


def test_film_without_a_thorax_has_no_iou() -> None:
    right, wrong = score_film(None, np.zeros((0, 4))), score_film((0, 0, 5, 5), [])
    assert math.isnan(right.iou) and not right.missed and not right.has_box
    assert math.isnan(wrong.iou) and wrong.has_box


def test_mask_coverage_counts_cut_pixels_in_part() -> None:
    mask = np.zeros((4, 10), np.uint8)
    mask[1:3, 2:6] = 255  # 8 px
    assert mask_coverage((0, 0, 10, 4), mask) == 1
    assert mask_coverage((2.5, 1, 6, 3), mask) == pytest.approx(7 / 8)
    assert mask_coverage((2, 1.5, 4, 9), mask) == pytest.approx(3 / 8)
    assert mask_coverage((7, 0, 10, 4), mask) == 0


def test_mask_coverage_of_an_empty_mask_is_unknown() -> None:
    assert math.isnan(mask_coverage((0, 0, 4, 4), np.zeros((4, 4))))


def test_summary_counts_misses_as_zero() -> None:
    scores = [
        score_film((10, 20, 30, 60), TRUTH),  # 1
        score_film((20, 20, 40, 60), TRUTH),  # 1/3
        score_film((10, 20, 30, 56), TRUTH),  # 36/40 = 0.9
        score_film(None, TRUTH),
    ]
    got = summarise(scores, ["a", "b", "c", "d"])
    assert (got.films, got.patients, got.misses) == (4, 4, 1)
    assert got.mean_iou.value == pytest.approx((1 + 1 / 3 + 0.9 + 0) / 4)
    assert got.median_iou == pytest.approx((1 / 3 + 0.9) / 2)
    assert got.share_iou_90.value == pytest.approx(0.5)  # 0.9 itself counts
    assert got.share_iou_75.value == pytest.approx(0.5)
    assert got.coverage.value == pytest.approx((1 + 0.5 + 0.9 + 0) / 4)
    assert got.share_covered.value == pytest.approx(0.25)
    # of the found films: 0, (10 + 10) / 4 and 4 / 4
    assert got.edge_px.value == pytest.approx((0 + 5 + 1) / 3)
    assert got.bias_px == pytest.approx((10 / 3, 0, 10 / 3, -4 / 3))
    assert math.isnan(got.edge_mm.value) and math.isnan(got.lung_coverage.value)


def test_summary_keeps_films_without_a_thorax_apart() -> None:
    scores = [
        score_film((10, 20, 30, 60), TRUTH),
        score_film((0, 0, 9, 9), []),
        score_film(None, []),
    ]
    got = summarise(scores, ["a", "b", "c"])
    assert (got.films, got.negatives, got.false_boxes, got.misses) == (1, 2, 1, 0)
    assert got.mean_iou.value == 1


def test_summary_of_no_film_is_unknown() -> None:
    got = summarise([], [])
    assert got.films == 0 and math.isnan(got.mean_iou.value) and math.isnan(got.median_iou)


def test_doubles_are_counted() -> None:
    scores = [score_film((10, 20, 30, 60), TRUTH, doubled=d) for d in (True, False, True)]
    assert summarise(scores, list("abc")).doubles == 2


def test_ap_of_perfect_boxes_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    truths = [(TRUTH, [0]), ([[0, 0, 50, 50]], [0])]
    got = average_precision(truths, [(b, [0.9], [0]) for b, _ in truths])
    assert (got.ap, got.ap50, got.ap75) == (1, 1, 1)
    assert capsys.readouterr().out == ""


def test_ap_by_hand_for_one_box_of_known_iou() -> None:
    # IoU 0.8 passes the thresholds 0.50, 0.55 … 0.80: seven of ten
    got = average_precision([([[0, 0, 10, 10]], [0])], [([[0, 0, 10, 8]], [0.9], [0])])
    assert (got.ap50, got.ap75) == pytest.approx((1, 1))
    assert got.ap == pytest.approx(0.7)


def test_ap_falls_with_a_confident_false_box_on_an_empty_film() -> None:
    truths = [(TRUTH, [0]), (np.zeros((0, 4)), [])]
    good = (TRUTH, [0.8], [0])
    sure, unsure = ((TRUTH, [s], [0]) for s in (0.9, 0.1))
    assert average_precision(truths, [good, sure]).ap50 == pytest.approx(0.5)
    assert average_precision(truths, [good, unsure]).ap50 == pytest.approx(1.0)


def test_ap_counts_a_miss_as_lost_recall() -> None:
    truths = [(TRUTH, [0]), (TRUTH, [0])]
    nothing = (np.zeros((0, 4)), [], [])
    got = average_precision(truths, [(TRUTH, [0.9], [0]), nothing])
    assert got.ap50 == pytest.approx(51 / 101)  # recall 0, 0.01 … 0.50 of COCO's 101 points


def test_ap_without_any_box_is_zero_and_without_truth_unknown() -> None:
    nothing = (np.zeros((0, 4)), [], [])
    assert average_precision([(TRUTH, [0])], [nothing]).ap == 0
    assert math.isnan(average_precision([([], [])], [(TRUTH, [0.9], [0])]).ap)


def test_ap_of_several_classes_is_their_mean() -> None:
    truths = [(TRUTH, [0]), (TRUTH, [1])]
    got = average_precision(truths, [(TRUTH, [0.9], [0]), (TRUTH, [0.9], [0])], classes=2)
    # class 0: one hit, then a false box of equal score on the other film; class 1: never found
    assert got.ap_of_class[1] == 0
    assert got.ap == pytest.approx(got.ap_of_class[0] / 2)


def test_constant_box_is_the_median_of_fractions() -> None:
    boxes = [[[10, 20, 90, 180]], [[0, 0, 50, 50]], [[20, 10, 180, 90]], np.zeros((0, 4))]
    sizes = [(200, 100), (100, 100), (100, 200), (10, 10)]
    # fractions: (.1, .1, .9, .9), (0, 0, .5, .5), (.1, .1, .9, .9)
    assert constant_box(boxes, sizes) == pytest.approx([0.1, 0.1, 0.9, 0.9])


def test_constant_box_refuses_films_without_boxes() -> None:
    with pytest.raises(ValueError, match="must hold a film with a box"):
        constant_box([np.zeros((0, 4))], [(10, 10)])


def test_scale_box_takes_width_for_x() -> None:
    assert scale_box((0.1, 0.2, 0.5, 1), (100, 200)) == pytest.approx([20, 20, 100, 100])
