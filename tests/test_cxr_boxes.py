"""cxr.boxes: box arithmetic by hand, and the Frame there and back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cxr.boxes import (
    Frame,
    area_xyxy,
    as_boxes,
    clip_xyxy,
    expand_xyxy,
    flip_x_xyxy,
    intersection_xyxy,
    iou_xyxy,
    mask_box_xyxy,
    scale_xyxy,
    square_xyxy,
    turn_xyxy,
    union_xyxy,
    xywh_to_xyxy,
    xyxy_to_xywh,
)


def test_no_box_has_shape_0_4_everywhere() -> None:
    none = as_boxes([])
    assert none.shape == (0, 4)
    for function in (xywh_to_xyxy, xyxy_to_xywh):
        assert function([]).shape == (0, 4)
    assert area_xyxy([]).shape == (0,)
    assert iou_xyxy([], [[0, 0, 1, 1]]).shape == (0, 1)
    assert clip_xyxy([], (5, 5)).shape == (0, 4) and flip_x_xyxy([], 5).shape == (0, 4)


def test_xywh_and_back() -> None:
    assert xywh_to_xyxy([[1, 2, 30, 40]]).tolist() == [[1, 2, 31, 42]]
    assert xyxy_to_xywh([[1, 2, 31, 42]]).tolist() == [[1, 2, 30, 40]]


def test_iou_by_hand() -> None:
    a, b = [[0, 0, 10, 10]], [[5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30], [10, 0, 20, 10]]
    assert intersection_xyxy(a, b).tolist() == [[50, 100, 0, 0]]
    assert iou_xyxy(a, b)[0] == pytest.approx([50 / 150, 1, 0, 0])


def test_crossed_and_empty_boxes_have_no_area_and_no_nan() -> None:
    assert area_xyxy([[5, 5, 1, 9], [2, 2, 2, 8]]).tolist() == [0, 0]
    assert iou_xyxy([[2, 2, 2, 2]], [[2, 2, 2, 2]]).tolist() == [[0]]


def test_clip_takes_height_and_width_the_right_way_round() -> None:
    assert clip_xyxy([[-5, -5, 500, 500]], (100, 50)).tolist() == [[0, 0, 50, 100]]


def test_union_of_two_lungs() -> None:
    assert union_xyxy([[5, 10, 20, 50], [30, 8, 45, 40]]).tolist() == [5, 8, 45, 50]
    with pytest.raises(ValueError, match="at least one box"):
        union_xyxy([])


def test_expand_grows_each_side_by_its_own_length() -> None:
    assert expand_xyxy([10, 20, 30, 120], 0.1).tolist() == [8, 10, 32, 130]


def test_square_keeps_the_centre() -> None:
    assert square_xyxy([10, 0, 30, 60]).tolist() == [-10, 0, 50, 60]


def test_flip_twice_is_the_box() -> None:
    assert flip_x_xyxy([[10, 0, 30, 60]], 100).tolist() == [[70, 0, 90, 60]]
    assert flip_x_xyxy(flip_x_xyxy([[10, 0, 30, 60]], 100), 100).tolist() == [[10, 0, 30, 60]]


def test_scaling_takes_each_side_by_its_own_factor() -> None:
    # 400 × 200 px to 1003 × 500 px: 2.5075 along x, 2.5 along y
    box = scale_xyxy([100, 50, 300, 150], (200, 400), (500, 1003))
    np.testing.assert_allclose(box, [[250.75, 125, 752.25, 375]])
    with pytest.raises(ValueError, match="aspect ratio within 1 %"):
        scale_xyxy([0, 0, 1, 1], (200, 400), (400, 200))


def test_functions_leave_their_argument() -> None:
    boxes = np.array([[10.0, 20, 30, 40]])
    for change in (
        lambda b: clip_xyxy(b, (25, 25)),
        lambda b: expand_xyxy(b, 0.5),
        lambda b: flip_x_xyxy(b, 50),
        xyxy_to_xywh,
        square_xyxy,
    ):
        change(boxes)
    assert boxes.tolist() == [[10, 20, 30, 40]]


# Frame --------------------------------------------------------------------------------------------

FRAMES = {
    "letterbox of a wide film": Frame.letterbox((90, 200), 64),
    "letterbox of a tall film, centred": Frame.letterbox((200, 90), 64, centre=True),
    "box": Frame.of_box((20.4, 30.6, 120, 70), 96),
    "box beyond the film": Frame.of_box((-30, -10, 230, 120), 96),
    "cut": Frame.cut((20.4, 30.6, 120, 70)),
    "cut beyond the film": Frame.cut((-5, -6, 205, 95)),
    "box of a film that lay on its side, its pixels not square": replace(
        Frame.of_box((10, 20, 80, 190), 96), stored_xy=(2.0, 0.5), turned=90, film_hw=(90, 200)
    ),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_boxes_go_there_and_back(frame: Frame) -> None:
    boxes = [[31.5, 40.25, 77, 66], [0, 0, 200, 90]]
    assert frame.to_original_xyxy(frame.to_model_xyxy(boxes)) == pytest.approx(np.array(boxes))


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_apply_fills_the_canvas_and_json_keeps_the_frame(frame: Frame) -> None:
    pixels = np.random.default_rng(0).random((90, 200), np.float32)
    assert frame.apply(pixels).shape == frame.canvas_hw
    assert Frame.from_dict(json.loads(json.dumps(frame.to_dict()))) == frame


def test_what_is_drawn_on_the_film_is_where_the_box_goes() -> None:
    film = np.zeros((90, 200), np.float32)
    film[30:60, 100:160] = 1  # box (100, 30, 160, 60)
    for frame in (
        Frame.letterbox((90, 200), 100),
        Frame.of_box((60, 10, 200, 90), 70),
        Frame.cut((90, 20, 170, 70)),
    ):
        ys, xs = np.nonzero(frame.apply(film) > 0.5)
        got = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert got == pytest.approx(frame.to_model_xyxy([[100, 30, 160, 60]])[0], abs=1)


def test_letterbox_pads_right_and_below_and_centred_on_both_sides() -> None:
    ones = np.ones((50, 100), np.float32)
    plain = Frame.letterbox((50, 100), 40).apply(ones)
    centred = Frame.letterbox((50, 100), 40, centre=True).apply(ones)
    assert plain[:20].all() and not plain[20:].any()
    assert centred[10:30].all() and not centred[:10].any() and not centred[30:].any()


def test_cut_is_the_films_own_pixels() -> None:
    pixels = np.random.default_rng(0).random((90, 200), np.float32)
    assert np.array_equal(Frame.cut((20, 30, 120, 70)).apply(pixels), pixels[30:70, 20:120])


def test_cut_beyond_the_edge_is_zero_there() -> None:
    out = Frame.cut((-2, -3, 4, 3)).apply(np.ones((10, 10), np.float32))
    assert out.shape == (6, 6)
    assert out[3:, 2:].all() and out.sum() == 12


@pytest.mark.parametrize(
    "xyxy", [(-20, 0, -5, 10), (300, 0, 320, 10), (0, -30, 10, -5), (0, 95, 9, 99)]
)
def test_cut_beside_the_film_is_all_zero(xyxy: tuple[int, ...]) -> None:
    frame = Frame.cut(xyxy)
    out = frame.apply(np.ones((90, 200), np.float32))
    assert out.shape == frame.canvas_hw and not out.any()
    assert not frame.restore(np.ones(frame.canvas_hw, np.float32), (90, 200)).any()


def test_restore_lays_a_map_back_on_the_film() -> None:
    pixels = np.random.default_rng(0).random((90, 200), np.float32)
    frame = Frame.cut((-5, 30, 120, 100))
    back = frame.restore(frame.apply(pixels), (90, 200))
    assert np.array_equal(back[30:, :120], pixels[30:, :120])
    assert not back[:30].any() and not back[:, 120:].any()


def test_restored_peak_is_where_it_was() -> None:
    film = np.zeros((90, 200), np.float32)
    film[40:48, 120:128] = 1
    frame = Frame.of_box((80, 10, 180, 90), 50)
    y, x = np.unravel_index(np.argmax(frame.restore(frame.apply(film), (90, 200))), (90, 200))
    assert abs(y - 44) <= 4 and abs(x - 124) <= 4


def test_masks_keep_their_values() -> None:
    mask = (np.random.default_rng(0).random((90, 200)) > 0.5).astype(np.uint8) * 255
    assert set(np.unique(Frame.letterbox((90, 200), 64).apply(mask, nearest=True))) == {0, 255}


def test_tiniest_box_still_has_a_pixel() -> None:
    assert Frame.cut((5.1, 5.1, 5.2, 5.2)).apply(np.ones((9, 9), np.float32)).shape == (1, 1)
    assert Frame.of_box((0, 0, 1, 5000), 64).content_hw == (64, 1)


def test_mask_box_by_hand() -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 1:7] = 255
    assert mask_box_xyxy(mask).tolist() == [1, 2, 7, 4]  # type: ignore[union-attr]
    assert mask_box_xyxy(np.zeros((3, 3))) is None


# a film that lay on its side or upside down ------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_box_turns_as_its_film_does_and_back(degrees: int) -> None:
    mask = np.zeros((60, 100), np.uint8)
    mask[10:25, 30:90] = 1
    turned = np.rot90(mask, degrees // 90)
    box = turn_xyxy([30, 10, 90, 25], mask.shape, degrees)
    assert box[0].tolist() == mask_box_xyxy(turned).tolist()  # type: ignore[union-attr]
    assert turn_xyxy(box, turned.shape, 360 - degrees).tolist() == [[30, 10, 90, 25]]


# (5, 10, 45, 50) of the upright film on the film of 100 × 60 px as it lay
LAY = {90: (50, 5, 90, 45), 180: (55, 10, 95, 50), 270: (10, 15, 50, 55)}


@pytest.fixture(params=LAY)
def lay(request: pytest.FixtureRequest) -> Frame:
    return replace(Frame.cut((5, 10, 45, 50)), turned=request.param, film_hw=(60, 100))


def test_a_turned_film_is_cut_upright(lay: Frame) -> None:
    film = np.random.default_rng(0).random((60, 100), np.float32)
    assert np.array_equal(lay.apply(film), np.rot90(film, lay.turned // 90)[10:50, 5:45])


def test_a_map_is_laid_back_on_the_film_as_it_lay(lay: Frame) -> None:
    film = np.random.default_rng(0).random((60, 100), np.float32)
    wanted = np.zeros_like(film)
    x0, y0, x1, y1 = LAY[lay.turned]
    wanted[y0:y1, x0:x1] = film[y0:y1, x0:x1]
    assert np.array_equal(lay.restore(lay.apply(film), (60, 100)), wanted)


def test_boxes_of_a_turned_film_are_in_original_pixels(lay: Frame) -> None:
    assert lay.film_xyxy == lay.original_xyxy == LAY[lay.turned]
    oblong = replace(lay, stored_xy=(2.0, 0.5))
    stored = tuple(np.array(LAY[lay.turned]) * (2, 0.5, 2, 0.5))
    assert oblong.film_xyxy == LAY[lay.turned] and oblong.original_xyxy == stored
    assert oblong.to_model_xyxy(stored).tolist() == [[0, 0, 40, 40]]
    assert oblong.to_original_xyxy([0, 0, 40, 40])[0].tolist() == list(stored)


@pytest.mark.parametrize("wrong", [{"turned": 45}, {"film_hw": None}, {"film_hw": [60]}])
def test_a_frame_is_turned_by_quarters_and_knows_its_film(lay: Frame, wrong: dict) -> None:
    with pytest.raises(ValueError, match="turned by quarters, with film_hw"):
        Frame.from_dict({**lay.to_dict(), **wrong})
