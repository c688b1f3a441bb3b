"""classify/augment.py: geometry shared by picture and mask, room for the box jitter."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from classify.augment import AugmentConfig, build_augment, cache_side, centre, dilate

STILL = AugmentConfig(
    shift=0, scale=0, rotate=0, gamma=0, sharpen=0, blur=0, noise=0, flip=0, brightness=0
)


def test_only_crops_get_room_for_the_box_jitter() -> None:
    config = AugmentConfig(box_jitter=0.1)
    assert cache_side(200, config, crops=True) == 240
    assert cache_side(200, config, crops=False) == 200


def test_without_strength_the_middle_comes_back_unchanged() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 80), dtype=np.uint8)
    image, mask = build_augment(STILL, 64, crops=False)(picture, picture)
    assert np.array_equal(image, centre(picture, 64))
    assert np.array_equal(mask, centre(picture, 64))


def test_mask_moves_with_the_picture() -> None:
    picture = np.zeros((96, 96), np.uint8)
    cv2.rectangle(picture, (30, 40), (60, 58), 255, -1)
    moves = AugmentConfig(
        shift=0.1, scale=0.2, rotate=30, flip=0.5, gamma=0, sharpen=0, blur=0, noise=0
    )
    augment = build_augment(moves, 96, crops=False, seed=5)
    for _ in range(5):
        image, mask = augment(picture, picture)
        assert set(np.unique(mask)) <= {0, 255}
        assert (np.abs(image.astype(int) - mask) > 128).mean() < 0.01  # edges only


def test_grey_steps_leave_the_mask_alone() -> None:
    picture = np.full((64, 64), 120, np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20] = 255
    grey = AugmentConfig(shift=0, scale=0, rotate=0, gamma=0.4, sharpen=1, blur=1, noise=1)
    image, kept = build_augment(grey, 64, crops=False)(picture, mask)
    assert np.array_equal(kept, mask)
    assert not np.array_equal(image, picture)


def test_the_same_seed_gives_the_same_pictures() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    one, two = (build_augment(AugmentConfig(), 64, crops=False, seed=9) for _ in range(2))
    assert np.array_equal(one(picture, picture)[0], two(picture, picture)[0])


def test_dilation_grows_a_point_to_the_kernel() -> None:
    point = np.zeros((9, 9), np.uint8)
    point[4, 4] = 255
    assert dilate(point, 3).sum() // 255 == 5  # a cross: the ellipse of 3 px
    assert np.array_equal(dilate(point, 0), point)


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"shift": 0.6}, {"box_jitter": -0.1}])
def test_strengths_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentConfig(**wrong)
