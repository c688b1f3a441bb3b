"""cxr.draw: pictures with boxes, contours and saliency, and sheets of them."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

from cxr.draw import (
    GREEN,
    RED,
    draw_box,
    draw_contour,
    encode_jpeg,
    encode_png,
    fit,
    overlay_saliency,
    sheet,
    shorten,
    to_ascii,
    to_data_uri,
    to_rgb,
)


def test_to_rgb_rounds_and_cuts_to_the_range() -> None:
    rgb = to_rgb(np.array([[0.0, 0.5, 1.0, 2.0, -1.0, np.nan]], np.float32))
    assert rgb.shape == (1, 6, 3) and rgb.dtype == np.uint8
    assert rgb[0, :, 0].tolist() == [0, 128, 255, 255, 0, 0]


def test_to_rgb_refuses_a_colour_picture() -> None:
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        to_rgb(np.zeros((4, 4, 3), np.float32))


def test_draw_box_colours_the_outline_and_leaves_the_argument() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    out = draw_box(image, (10, 5, 50, 35), GREEN)
    assert not image.any()
    assert tuple(out[5, 30]) == GREEN and tuple(out[20, 10]) == GREEN
    assert tuple(out[34, 30]) == GREEN and tuple(out[20, 49]) == GREEN
    assert not out[20, 30].any()


def test_draw_box_beyond_the_film_draws_nothing_inside() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    assert not draw_box(image, (-1e12, -1e12, 1e12, 1e12))[3:-3, 3:-3].any()


def test_draw_box_refuses_a_box_of_nan() -> None:
    with pytest.raises(ValueError, match="finite"):
        draw_box(np.zeros((8, 8, 3), np.uint8), (0, 0, np.nan, 4))


def test_label_is_drawn_inside_the_box() -> None:
    image = np.zeros((200, 200, 3), np.uint8)
    plain, labelled = (draw_box(image, (20, 20, 180, 180), GREEN, t) for t in ("", "thorax"))
    changed = np.argwhere((plain != labelled).any(axis=2))
    assert len(changed) and changed.min() >= 20 and changed.max() < 180


def test_draw_contour_marks_the_border_of_the_mask_only() -> None:
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 255
    out = draw_contour(np.zeros((60, 60, 3), np.uint8), mask, RED)
    assert tuple(out[20, 30]) == RED
    assert not out[30, 30].any() and not out[5, 5].any()


def test_draw_contour_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match="mask must be of the image's size"):
        draw_contour(np.zeros((60, 60, 3), np.uint8), np.zeros((60, 50)))


def test_saliency_leaves_the_film_where_it_is_zero() -> None:
    image = np.full((10, 10, 3), 100, np.uint8)
    saliency = np.zeros((10, 10))
    saliency[4, 4] = 3.0
    out = overlay_saliency(image, saliency, opacity=1.0)
    assert (np.delete(out.reshape(-1, 3), 44, axis=0) == 100).all()
    peak = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_INFERNO)[0, 0, ::-1]
    assert out[4, 4].tolist() == peak.tolist()


def test_saliency_of_zeros_is_the_film() -> None:
    image = np.full((6, 6, 3), 90, np.uint8)
    assert np.array_equal(overlay_saliency(image, np.zeros((6, 6))), image)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_saliency_refuses_what_is_no_saliency(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and at least 0"):
        overlay_saliency(np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [1, bad]]))


def test_fit_keeps_the_aspect_ratio() -> None:
    assert fit(np.zeros((200, 100, 3), np.uint8), 50).shape == (50, 25, 3)
    assert fit(np.zeros((1, 1000, 3), np.uint8), 100).shape == (1, 100, 3)


def test_fit_keeps_the_range() -> None:
    """OpenCV's area mean rounds 1.0 up to 1.0000001, which later steps refuse."""
    white = np.ones((366, 403), np.float32)
    assert cv2.resize(white, (320, 290), interpolation=cv2.INTER_AREA).max() > 1
    assert fit(white, 320).max() == 1


def test_sheet_holds_every_picture_in_reading_order() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    images = [np.full((32, 32, 3), c, np.uint8) for c in colours]
    out = sheet(images, ["a", "b", "c"], columns=2, tile=32)
    places = [np.argwhere((out == c).all(axis=2)).min(axis=0) for c in colours]
    assert places[0][0] == places[1][0] and places[0][1] < places[1][1]
    assert places[2][0] > places[0][0] and places[2][1] == places[0][1]


def test_sheet_survives_any_caption() -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    captions = ["Thorax é ß 胸部 \U0001f9b4\x00", "x" * 500, "", "two\nlines", "<b>&amp;"]
    out = sheet([image] * 5, captions, columns=3, tile=64, title="≥ 0.9 × 2")
    assert out.dtype == np.uint8 and out.shape[1] < 3 * 64 + 32


def test_sheet_without_pictures_is_a_picture() -> None:
    assert sheet([], []).any()


def test_sheet_refuses_captions_that_do_not_fit_the_pictures() -> None:
    with pytest.raises(ValueError, match="one for each image"):
        sheet([np.zeros((4, 4, 3), np.uint8)], ["a", "b"])


def test_shorten_keeps_both_ends() -> None:
    short = shorten("person1689_bacteria_4474_and_more.jpg", 120, 12)
    assert short.startswith("per") and short.endswith(".jpg") and "..." in short


def test_to_ascii_drops_accents_and_marks_the_unknown() -> None:
    assert to_ascii("é≥胸×") == "e>=?x"


def test_png_keeps_sixteen_bits_and_colour_order() -> None:
    grey = np.array([[0, 258, 65535]], np.uint16)
    back = cv2.imdecode(np.frombuffer(encode_png(grey), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(back, grey)
    rgb = np.array([[[255, 1, 2]]], np.uint8)
    bgr = cv2.imdecode(np.frombuffer(encode_png(rgb), np.uint8), cv2.IMREAD_COLOR)
    assert bgr[0, 0].tolist() == [2, 1, 255]


@pytest.mark.parametrize(("encode", "kind"), [(encode_png, "png"), (encode_jpeg, "jpeg")])
def test_data_uri_names_the_kind_and_holds_the_bytes(encode, kind) -> None:
    raw = encode(np.zeros((4, 4, 3), np.uint8))
    head, body = to_data_uri(raw).split(",")
    assert head == f"data:image/{kind};base64"
    assert base64.b64decode(body) == raw
