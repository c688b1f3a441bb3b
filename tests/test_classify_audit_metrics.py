"""Each metric of a map against a number worked out by hand."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from classify.audit.metrics import (
    METRICS,
    Metrics,
    Regions,
    baseline_lifts,
    film_seed,
    measure,
    random_maps,
)

# 10 units of energy on a film of 4 × 6 px
MAP = np.array(
    [[0, 0, 0, 0, 0, 0], [0, 4, 2, 0, 0, 1], [0, 2, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]],
    dtype=np.float32,
)


def mask(*boxes_xyxy: tuple[int, int, int, int], size_hw: tuple[int, int] = (4, 6)) -> np.ndarray:
    """(H, W) bool, True in the boxes."""
    out = np.zeros(size_hw, bool)
    for x0, y0, x1, y1 in boxes_xyxy:
        out[y0:y1, x0:x1] = True
    return out


LUNG = mask((1, 1, 3, 3), (4, 1, 5, 3))  # 6 of 24 px: all but the unit at the right edge


def regions(lung: np.ndarray = LUNG, **parts: Any) -> Regions:
    return Regions(lung, **parts)


def of(saliency: np.ndarray = MAP, lung: np.ndarray = LUNG, **parts: Any) -> Metrics:
    return measure(saliency, regions(lung, **parts), draws=4)


def test_share_and_lift_of_the_lungs() -> None:
    found = of()
    assert found["inside_share"] == pytest.approx(0.9)
    assert found["area_share"] == pytest.approx(6 / 24)
    assert found["lift"] == pytest.approx(0.9 / 0.25)


def test_energy_in_any_unit_is_the_same() -> None:
    assert of(MAP * 1e-6)["lift"] == pytest.approx(3.6)
    assert of(MAP.astype(np.float64) * 1e6)["lift"] == pytest.approx(3.6)
    assert of(MAP.astype(np.uint8))["lift"] == pytest.approx(3.6)


def test_a_large_map_is_summed_in_double_precision() -> None:
    # in float32 a running sum of 4 million ones and a half stands still at 2^24
    even = np.full((2500, 1700), 4.5, np.float32)
    lung = mask((0, 0, 1700, 500), size_hw=even.shape)
    found = measure(even, regions(lung), draws=1)
    assert found["inside_share"] == pytest.approx(0.2, abs=1e-12)


def test_an_even_map_has_lift_1() -> None:
    found = of(np.full((4, 6), 0.3, np.float32))
    assert found["inside_share"] == pytest.approx(0.25)
    assert found["lift"] == pytest.approx(1.0)


def test_cropping_alone_raises_the_share_but_not_the_lift() -> None:
    # the same even attention, on the film and on a crop of 4 × 3 px that holds all of the lungs
    film = of(np.ones((4, 6), np.float32))
    seen = (1, 1, 5, 3)
    crop = of(mask(seen).astype(np.float32), seen_xyxy=seen)
    assert film["inside_share"] == pytest.approx(6 / 24)
    assert crop["inside_share"] == pytest.approx(6 / 8)
    assert film["lift"] == crop["lift"] == pytest.approx(1.0)


def test_area_is_that_of_what_was_seen() -> None:
    found = of(
        MAP * mask((0, 0, 3, 4)), seen_xyxy=(0, 0, 3, 4)
    )  # the left half: 8 units, 4 lung px
    assert found["inside_share"] == pytest.approx(1.0)
    assert found["area_share"] == pytest.approx(4 / 12)
    assert found["lift"] == pytest.approx(3.0)


def test_a_crop_may_reach_beyond_the_film() -> None:
    # of the box only columns 0 to 2 and rows 0 to 2 are film: 9 px, 4 of them lung
    found = of(MAP * mask((0, 0, 3, 3)), seen_xyxy=(-2.0, -1.0, 3.0, 3.0))
    assert found["area_share"] == pytest.approx(4 / 9)
    assert found["inside_share"] == pytest.approx(1.0)


def test_a_box_is_rounded_to_whole_pixels() -> None:
    found = of(MAP * mask((0, 0, 3, 4)), seen_xyxy=(-0.4, 0.2, 2.6, 4.4))
    assert found["area_share"] == pytest.approx(4 / 12)


def test_border_is_the_outermost_twentieth_of_the_shorter_side() -> None:
    even = np.zeros((40, 100), np.float32)
    even[:2] = 1.0  # band of 2 px: 200 px at the top
    even[20, 50:] = 2.0  # 48 px in the middle, and 2 px in the band
    found = of(even, mask((30, 10, 60, 30), size_hw=(40, 100)))
    assert found["border_share"] == pytest.approx((200 + 4) / 300)
    assert found["border_area_share"] == pytest.approx(1 - 36 * 96 / 4000)


def test_border_is_at_least_one_pixel() -> None:
    found = of()
    assert found["border_share"] == pytest.approx(0.1)
    assert found["border_area_share"] == pytest.approx(16 / 24)


def test_border_is_that_of_the_crop() -> None:
    # columns 1 to 5: the energy at the crop's left edge (4 + 2) and right edge (1)
    found = of(seen_xyxy=(1, 0, 6, 4))
    assert found["border_share"] == pytest.approx(0.7)
    assert found["border_area_share"] == pytest.approx(1 - 6 / 20)


def test_share_outside_the_thorax_box() -> None:
    assert of(box_xyxy=(1, 1, 4, 3))["outside_box_share"] == pytest.approx(0.2)
    assert of(box_xyxy=(-9, -9, 99, 99))["outside_box_share"] == 0.0
    assert of(box_xyxy=(0, 3, 6, 4))["outside_box_share"] == 1.0
    assert of()["outside_box_share"] is None


def test_a_box_that_the_crop_does_not_show_holds_no_energy() -> None:
    found = of(MAP * mask((0, 0, 3, 4)), seen_xyxy=(0, 0, 3, 4), box_xyxy=(4, 1, 6, 3))
    assert found["outside_box_share"] == 1.0


def test_share_on_text() -> None:
    found = of(text=mask((5, 0, 6, 2)))
    assert found["text_share"] == pytest.approx(0.1)
    assert found["text_area_share"] == pytest.approx(2 / 24)


@pytest.mark.parametrize("text", [None, mask(), mask((5, 0, 6, 2))])
def test_where_no_text_is_seen_it_has_no_share(text: np.ndarray | None) -> None:
    found = of(MAP * mask((0, 0, 3, 4)), seen_xyxy=(0, 0, 3, 4), text=text)
    assert found["text_share"] is None and found["text_area_share"] is None


def test_energy_and_pointing_inside_a_finding() -> None:
    found = of(finding_boxes_xyxy=[(2, 1, 4, 3)])
    assert found["finding_share"] == pytest.approx(0.2)
    assert found["finding_area_share"] == pytest.approx(4 / 24)
    assert found["finding_lift"] == pytest.approx(1.2)
    assert found["finding_hit"] is False


def test_findings_that_overlap_count_once() -> None:
    found = of(finding_boxes_xyxy=[(1, 1, 3, 3), (2, 1, 4, 3)])  # 6 px, 4 + 2 + 2 units
    assert found["finding_share"] == pytest.approx(0.8)
    assert found["finding_lift"] == pytest.approx(0.8 / 0.25)
    assert found["finding_hit"] is True


def test_a_finding_is_measured_where_it_was_seen() -> None:
    found = of(MAP * mask((0, 0, 2, 4)), seen_xyxy=(0, 0, 2, 4), finding_boxes_xyxy=[(1, 1, 4, 3)])
    assert found["finding_area_share"] == pytest.approx(2 / 8)
    assert found["finding_share"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("seen", "finding"), [((0, 0, 2, 4), (3, 1, 5, 3)), ((3, 2, 6, 4), (0, 0, 1, 1))]
)
def test_a_finding_outside_the_crop_has_a_reason(
    seen: tuple[int, int, int, int], finding: tuple[int, int, int, int]
) -> None:
    found = of(MAP * mask(seen), seen_xyxy=seen, finding_boxes_xyxy=[finding])
    assert all(found[name] is None for name in METRICS if name.startswith("finding"))
    assert found["reason"] == "the finding lies outside what the member saw"
    assert found["lift"] is not None


def test_without_findings_there_are_no_metrics_of_them() -> None:
    found = of(finding_boxes_xyxy=np.zeros((0, 4)))
    assert all(found[name] is None for name in METRICS if name.startswith("finding"))
    assert found["reason"] == ""


# --- pointing game: on a film with a long side of 512 px the tolerance is 15 px


def points(peak: tuple[int, int], lung: np.ndarray, **parts: Any) -> bool:
    saliency = np.zeros(lung.shape, np.float32)
    saliency[peak] = 1.0
    return bool(of(saliency, lung, **parts)["pointing_hit"])


def test_a_maximum_inside_is_a_hit() -> None:
    assert of()["pointing_hit"] is True
    assert of(lung=mask((4, 1, 5, 3)))["pointing_hit"] is False


@pytest.mark.parametrize(("column", "hit"), [(115, True), (116, False)])
def test_the_tolerance_is_15_px(column: int, hit: bool) -> None:
    lung = mask((column, 0, 300, 20), size_hw=(20, 512))
    assert points((10, 100), lung) is hit


@pytest.mark.parametrize(("row", "hit"), [(9, True), (10, False)])
def test_the_tolerance_is_a_circle(row: int, hit: bool) -> None:
    lung = mask((112, row, 300, 20), size_hw=(20, 512))  # 12 px beside it: 9² + 12² = 15²
    assert points((0, 100), lung) is hit


@pytest.mark.parametrize(("column", "hit"), [(130, True), (131, False)])
def test_the_tolerance_grows_with_the_film(column: int, hit: bool) -> None:
    lung = mask((column, 0, 300, 20), size_hw=(20, 1024))
    assert points((10, 100), lung) is hit


@pytest.mark.parametrize(("column", "hit"), [(115, True), (116, False)])
def test_the_tolerance_is_the_films_for_a_crop_too(column: int, hit: bool) -> None:
    lung = mask((column, 0, 140, 20), size_hw=(20, 512))
    assert points((10, 100), lung, seen_xyxy=(60, 0, 150, 20)) is hit


def test_lung_that_was_not_seen_is_no_hit() -> None:
    lung = mask((20, 0, 40, 20), (103, 0, 120, 20), size_hw=(20, 512))
    assert not points((10, 100), lung, seen_xyxy=(0, 0, 102, 20))


def test_a_flat_maximum_points_at_its_middle() -> None:
    saliency = np.zeros((4, 6), np.float32)
    saliency[1:3, 1:4] = 1.0  # the pixel nearest to its middle lies in column 2
    assert of(saliency, mask((2, 0, 3, 4)))["pointing_hit"] is True
    assert of(saliency, mask((1, 0, 2, 4)))["pointing_hit"] is False


def test_a_finding_has_the_same_tolerance() -> None:
    saliency = np.zeros((20, 512), np.float32)
    saliency[10, 100] = 1.0
    lung = mask((0, 0, 50, 20), size_hw=(20, 512))
    near = of(saliency, lung, finding_boxes_xyxy=[(115, 0, 130, 20)])
    far = of(saliency, lung, finding_boxes_xyxy=[(116, 0, 130, 20)])
    assert near["finding_hit"] is True and far["finding_hit"] is False


# --- baselines


def test_the_blob_lies_in_the_middle_of_what_was_seen() -> None:
    # weights exp(-9/8), exp(-1/8) and the same back along each side of 4 px: the two middle
    # columns hold 0.731 of the blob on half of the area
    lung = mask((3, 0, 5, 4), size_hw=(4, 6))
    seen = (2, 0, 6, 4)
    found = of(mask(seen).astype(np.float32), lung, seen_xyxy=seen)
    share = np.exp(-1 / 8) / (np.exp(-1 / 8) + np.exp(-9 / 8))
    assert found["gaussian_lift"] == pytest.approx(share / 0.5, rel=1e-5)


def test_random_maps_go_by_the_film_and_the_seed() -> None:
    one = [
        measure(MAP, regions(), name, draws=8, seed=seed)["random_lift"]
        for name, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))
    ]
    assert one[0] == one[1] and len(set(one)) == 3


# --- where nothing can be measured


def test_an_empty_map_has_no_metrics() -> None:
    found = of(np.zeros((4, 6), np.float32), box_xyxy=(1, 1, 3, 3), text=mask((0, 0, 1, 1)))
    assert found["empty"] is True and found["reason"] == "the map is 0 everywhere"
    assert all(found[name] is None for name in METRICS)


def test_no_lung_in_view_leaves_the_other_metrics() -> None:
    found = of(MAP * mask((5, 0, 6, 4)), seen_xyxy=(5, 0, 6, 4))
    assert found["reason"] == "no lung field in what the member saw"
    missing = ("inside_share", "lift", "gaussian_lift", "random_lift", "random_sd", "pointing_hit")
    assert all(found[name] is None for name in missing)
    assert found["area_share"] == 0.0 and found["border_share"] == 1.0
    assert found["empty"] is False


def test_every_metric_has_its_key() -> None:
    assert set(of()) == {*METRICS, "empty", "reason"}


# --- errors


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W\) = \(4, 6\).*Got \(6, 4\)"):
        of(MAP.T)


def test_negative_energy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 0\. Got -4"):
        of(-MAP)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_energy_that_is_not_finite_is_refused(value: float) -> None:
    wrong = MAP.copy()
    wrong[3, 0] = value
    with pytest.raises(ValueError, match=r"finite.*1 of 24 pixels"):
        of(wrong)


def test_energy_outside_what_was_seen_is_refused() -> None:
    with pytest.raises(ValueError, match="Got 20 % of its energy"):
        of(seen_xyxy=(0, 0, 4, 4))


@pytest.mark.parametrize(("stray", "is_rounding"), [(0.007, True), (0.009, False)])
def test_a_thousandth_outside_is_rounding(stray: float, is_rounding: bool) -> None:
    saliency = MAP * mask((0, 0, 4, 4))
    saliency[0, 5] = stray  # beside 8 units
    if is_rounding:
        assert of(saliency, seen_xyxy=(0, 0, 4, 4))["inside_share"] == pytest.approx(1.0)
        return
    with pytest.raises(ValueError, match=r"Got 0\.112 % of its energy"):
        of(saliency, seen_xyxy=(0, 0, 4, 4))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"seen_xyxy": (3, 0, 3, 4)}, "seen_xyxy must be x0, y0, x1, y1 with a pixel"),
        ({"seen_xyxy": (-9, 0, -1, 4)}, "with a pixel of the film of 6 × 4 px"),
        ({"seen_xyxy": ()}, "seen_xyxy must be x0, y0, x1, y1"),
        ({"box_xyxy": (0, 0, np.nan, 4)}, "box_xyxy must be .* finite"),
        (
            {"finding_boxes_xyxy": [(0, 0, 2, 2), (8, 8, 9, 9)]},
            "finding_boxes_xyxy must be .* with a pixel",
        ),
    ],
)
def test_regions_that_do_not_fit_the_film_are_refused(parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(np.where(mask((0, 0, 1, 1)), MAP * 0, MAP), **parts)


def test_the_map_is_not_changed() -> None:
    saliency = MAP.copy()
    of(saliency, seen_xyxy=(0, 0, 6, 4), finding_boxes_xyxy=[(1, 1, 3, 3)])
    assert np.array_equal(saliency, MAP)


# --- what a map that looks at nothing scores


def two_lungs(height: int = 150, width: int = 130) -> np.ndarray:
    """Two ellipses as on a film, off its middle."""
    lungs = np.zeros((height, width), np.uint8)
    for x in (0.28, 0.68):
        centre = (round(x * width), round(0.45 * height))
        cv2.ellipse(lungs, centre, (round(0.14 * width), round(0.3 * height)), 0, 0, 360, 1, -1)
    return lungs > 0


def drawn_at_full_size(
    lung: np.ndarray, film: str, cam_hw: tuple[int, int], draws: int, seed: int
) -> np.ndarray:
    """Lifts of the maps that have any energy, the long way round."""
    lifts = []
    for plane in random_maps(draws, cam_hw, film_seed(film, seed)):
        size = (lung.shape[1], lung.shape[0])
        full = cv2.resize(plane.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        if full.any():
            lifts.append(full[lung].sum(dtype=float) / full.sum(dtype=float) / lung.mean())
    return np.array(lifts)


# --- the blob in the middle


def test_gaussian_lift_by_hand() -> None:
    # σ is one pixel of 4: weights exp(-1.125), exp(-0.125), exp(-0.125), exp(-1.125) a side
    lung = np.zeros((4, 4), bool)
    lung[1:3, 1] = True
    outer, inner = np.exp(-1.125), np.exp(-0.125)
    both, one = inner / (inner + outer), inner / (inner + outer) / 2
    found = baseline_lifts(lung, draws=4)["gaussian_lift"]
    assert found == pytest.approx(both * one / (2 / 16), rel=1e-6)


def test_the_blob_is_as_wide_as_the_picture() -> None:
    # rows and columns have a σ of their own: the middle half of a side holds the same share
    tall, wide = np.zeros((400, 20), bool), np.zeros((20, 400), bool)
    tall[100:300], wide[:, 100:300] = True, True
    lifts = [baseline_lifts(lung, draws=4)["gaussian_lift"] for lung in (tall, wide)]
    # ±1 σ of a Gaussian that is cut at ±2 σ
    assert lifts == pytest.approx([0.6827 / 0.9545 / 0.5] * 2, abs=1e-3)


def test_a_field_everywhere_has_lift_1() -> None:
    found = baseline_lifts(np.ones((30, 20), bool), draws=16)
    assert found["gaussian_lift"] == pytest.approx(1.0)
    assert found["random_lift"] == pytest.approx(1.0)
    assert found["random_sd"] == pytest.approx(0.0, abs=1e-6)


# --- random maps


def test_random_maps_are_the_same_everywhere_on_average() -> None:
    # noise of deviation 1, blurred by weights w along each side: deviation Σ w²; the mean of
    # what is left of it above 0 is the deviation / √(2π)
    w = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    deviation = float((w**2).sum() / w.sum() ** 2)
    mean = random_maps(20_000, (6, 5), 0).mean(0)
    np.testing.assert_allclose(mean, deviation / np.sqrt(2 * np.pi), rtol=0.04)


def test_random_maps_are_not_negative() -> None:
    maps = random_maps(50, (7, 9), 3)
    assert maps.shape == (50, 7, 9) and maps.min() == 0.0


def test_fine_noise_has_lift_1() -> None:
    found = baseline_lifts(two_lungs(), "film", (60, 52), draws=1024)
    assert found["random_lift"] == pytest.approx(1.0, abs=0.02)


def test_coarse_noise_has_lift_near_1_and_spreads() -> None:
    found = baseline_lifts(two_lungs(), "film", (7, 7), draws=4096)
    assert 0.88 < found["random_lift"] < 1.0  # below 1: see the module
    assert 0.15 < found["random_sd"] < 0.5


def test_a_half_of_the_picture_has_lift_1() -> None:
    lung = np.zeros((40, 60), bool)
    lung[:, :30] = True
    found = baseline_lifts(lung, "film", draws=4096)
    assert found["random_lift"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("size_hw", "cam_hw"),
    [((150, 130), (7, 7)), ((97, 211), (14, 10)), ((40, 30), (2, 3)), ((5, 6), (7, 7))],
)
def test_the_short_cut_is_the_maps_drawn_at_full_size(
    size_hw: tuple[int, int], cam_hw: tuple[int, int]
) -> None:
    lung = two_lungs(*size_hw)
    found = baseline_lifts(lung, "film", cam_hw, draws=32, seed=5)
    lifts = drawn_at_full_size(lung, "film", cam_hw, 32, 5)
    assert found["random_lift"] == pytest.approx(lifts.mean(), rel=1e-4)
    assert found["random_sd"] == pytest.approx(lifts.std(), rel=1e-3)


def test_the_same_seed_gives_the_same_numbers() -> None:
    lung = two_lungs()
    assert baseline_lifts(lung, "a.png", seed=3) == baseline_lifts(lung, "a.png", seed=3)


def test_another_film_or_seed_gives_others() -> None:
    lung = two_lungs()
    found = {
        baseline_lifts(lung, film, seed=seed)["random_lift"]
        for film, seed in (("a.png", 3), ("b.png", 3), ("a.png", 4))
    }
    assert len(found) == 3


def test_draws_without_energy_have_no_lift() -> None:
    film = next(str(n) for n in range(99) if not random_maps(1, (2, 2), film_seed(str(n), 0)).any())
    found = baseline_lifts(two_lungs(), film, (2, 2), draws=1)
    assert found["random_lift"] is None and found["random_sd"] is None
    assert found["gaussian_lift"] is not None
