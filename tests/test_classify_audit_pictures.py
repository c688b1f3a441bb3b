"""Outlines and small pictures: corners worked out by hand, sizes, and what is refused."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

from cxr.page.build import MAP_SIDE, SIDE, inferno, map_uri, picture_uri, to_polygons


def decode(uri: str) -> np.ndarray:
    raw = base64.b64decode(uri.split(",", 1)[1])
    return cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)


def test_a_rectangle_keeps_its_four_corners() -> None:
    mask = np.zeros((100, 200), bool)
    mask[10:30, 20:60] = True  # its outermost pixels' middles: x 20.5 … 59.5, y 10.5 … 29.5
    (polygon,) = to_polygons(mask)
    assert sorted(map(tuple, polygon)) == [
        (0.1025, 0.105),
        (0.1025, 0.295),
        (0.2975, 0.105),
        (0.2975, 0.295),
    ]


def test_two_lungs_give_two_outlines_of_few_points_the_larger_first() -> None:
    mask = np.zeros((400, 360), np.uint8)
    cv2.ellipse(mask, (100, 200), (50, 120), 0, 0, 360, 1, -1)
    cv2.ellipse(mask, (260, 200), (60, 130), 0, 0, 360, 1, -1)
    polygons = to_polygons(mask.astype(bool))
    assert len(polygons) == 2 and all(8 <= len(p) <= 60 for p in polygons)
    assert np.mean([x for x, _ in polygons[0]]) > 0.5
    filled = np.zeros_like(mask)
    for polygon in polygons:
        cv2.fillPoly(filled, [np.int32(np.array(polygon) * (360, 400))], 1)
    assert (filled & mask).sum() / (filled | mask).sum() > 0.97


def test_specks_and_an_empty_mask_have_no_outline() -> None:
    mask = np.zeros((100, 100), bool)
    assert to_polygons(mask) == []
    mask[5:8, 5:8] = True
    assert to_polygons(mask) == []


def test_a_mask_that_is_not_of_bool_is_refused() -> None:
    with pytest.raises(ValueError, match="compare with"):
        to_polygons(np.zeros((9, 9), np.float32))


def test_a_map_is_small_grey_and_its_maximum_is_255() -> None:
    plane = np.zeros((300, 150), np.float32)
    plane[100:200, 50:100] = 0.002
    picture = decode(map_uri(plane))
    assert picture.shape == (MAP_SIDE, MAP_SIDE // 2) and picture.dtype == np.uint8
    assert picture.max() == 255 and picture[0, 0] == 0


def test_an_empty_map_stays_black() -> None:
    assert decode(map_uri(np.zeros((7, 7), np.float32))).max() == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1])
def test_a_map_with_values_that_are_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="finite and at least 0"):
        map_uri(np.full((4, 4), wrong, np.float32))


def test_a_picture_is_fitted_and_a_small_one_not_enlarged() -> None:
    assert decode(picture_uri(np.full((1000, 500), 0.5, np.float32))).shape == (SIDE, SIDE // 2)
    small = decode(picture_uri(np.full((40, 30), 0.5, np.float32)))
    assert small.shape == (40, 30) and abs(int(small[20, 15]) - 128) <= 1


def test_inferno_rises_from_black_to_light() -> None:
    colours = inferno(9)
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours]
    assert light == sorted(light) and light[0] < 3 and light[-1] > 240
