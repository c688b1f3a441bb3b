"""Grey-value functions: hand-worked numbers, purity, and the range contract."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr import intensity


def film(height: int = 96, width: int = 72, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.random((height, width), dtype=np.float32), (0, 0), 6)
    return np.clip((smooth - smooth.min()) / np.ptp(smooth), 0, 1).astype(np.float32)


FUNCTIONS = {
    "percentile_clip": intensity.percentile_clip,
    "min_max": intensity.min_max,
    "pad_square": intensity.pad_square,
    "clahe": intensity.clahe,
    "equalize": intensity.equalize,
    "resize": lambda pixels: intensity.resize(pixels, (50, 60)),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_functions_are_pure_and_keep_the_range(name):
    pixels = film()
    before = pixels.copy()
    got = FUNCTIONS[name](pixels)
    assert np.array_equal(pixels, before)
    assert got.dtype == np.float32 and got.min() >= 0 and got.max() <= 1
    assert not np.shares_memory(got, pixels)


@pytest.mark.parametrize("name", [*FUNCTIONS, "to_uint8", "to_uint16"])
@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (np.full((4, 4), 2, np.float32), "2.0"),
        (np.full((4, 4), -0.1, np.float32), "-0.1"),
        (np.full((4, 4), np.nan, np.float32), "nan"),
        (np.zeros((4, 4)), "float64"),
        (np.zeros((4, 4), np.uint8), "uint8"),
        (np.zeros((4, 4, 3), np.float32), r"\(4, 4, 3\)"),
        (np.zeros((0, 4), np.float32), "empty"),
    ],
)
def test_pixels_outside_the_contract_are_refused(name, pixels, fault):
    function = FUNCTIONS.get(name) or getattr(intensity, name)
    with pytest.raises(ValueError, match=f"'pixels' parameter of {name}.*{fault}.*; "):
        function(pixels)


def test_percentile_clip_cuts_both_ends():
    """201 values 0, 0.005 … 1: the 0.5 and 99.5 percentiles are the second and last but one."""
    pixels = (np.arange(201, dtype=np.float32) / 200).reshape(3, 67)
    got = intensity.percentile_clip(pixels)
    assert got.min() == pytest.approx(0.005, abs=1e-6)
    assert got.max() == pytest.approx(0.995, abs=1e-6)
    assert (got.ravel()[1:-1] == pixels.ravel()[1:-1]).all()


def test_percentile_clip_refuses_crossed_percentiles():
    with pytest.raises(ValueError, match="'low' and 'high'"):
        intensity.percentile_clip(film(), 99, 1)


def test_min_max_stretches():
    got = intensity.min_max(np.array([[0.25, 0.5], [0.5, 0.75]], np.float32))
    assert got.tolist() == [[0, 0.5], [0.5, 1]]


@pytest.mark.parametrize("name", ["min_max", "equalize", "percentile_clip", "clahe"])
def test_a_constant_film_stays_finite(name):
    got = FUNCTIONS[name](np.full((64, 64), 0.4, np.float32))
    assert np.isfinite(got).all() and np.ptp(got) < 1e-6


@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (5, 2), (3, 3)])
def test_pad_square_centres_on_zeros(shape):
    got = intensity.pad_square(np.ones(shape, np.float32))
    side = max(shape)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    assert got.shape == (side, side)
    assert got.sum() == shape[0] * shape[1]
    assert (got[top : top + shape[0], left : left + shape[1]] == 1).all()


def test_resize_averages_areas_when_shrinking():
    board = np.indices((8, 12)).sum(0) % 2
    got = intensity.resize(board.astype(np.float32), (4, 6))
    assert got.shape == (4, 6)
    assert (got == 0.5).all()


def test_resize_refuses_an_empty_size():
    with pytest.raises(ValueError, match="'hw' parameter of resize"):
        intensity.resize(film(), (0, 5))


def test_equalize_gives_the_cumulative_share():
    """Four levels, one pixel each: cumulative 1, 2, 3, 4 → (c - 1) / 3."""
    got = intensity.equalize(np.array([[0.1, 0.2], [0.3, 0.9]], np.float32))
    assert np.allclose(got, [[0, 1 / 3], [2 / 3, 1]])


def test_clahe_agrees_with_opencv_where_that_has_256_bins():
    """OpenCV gives the last clipped counts to the darkest bins: some levels of difference."""
    pixels = film(512, 384)
    eight = cv2.createCLAHE(2.0, (8, 8)).apply(intensity.to_uint8(pixels)) / 255
    difference = np.abs(intensity.clahe(pixels) - eight)
    assert difference.mean() < 0.01
    assert np.abs(eight - pixels).mean() > 0.03


def test_clahe_acts_alike_on_a_film_of_8_and_of_16_bits():
    pixels = film(256, 256)
    coarse = (intensity.to_uint8(pixels) / np.float32(255)).astype(np.float32)
    assert np.abs(intensity.clahe(pixels) - intensity.clahe(coarse)).max() < 0.03


def test_clahe_keeps_more_than_256_levels():
    pixels = np.linspace(0.2, 0.8, 128 * 128, dtype=np.float32).reshape(128, 128)
    assert len(np.unique(intensity.clahe(pixels))) > 2000


def test_clahe_of_a_film_that_the_tiles_do_not_divide_has_no_seams():
    pixels = film(101, 67)
    got = intensity.clahe(pixels)
    assert got.shape == (101, 67)
    limit = 8 * max(np.abs(np.diff(pixels, axis=axis)).max() for axis in (0, 1))
    assert max(np.abs(np.diff(got, axis=axis)).max() for axis in (0, 1)) < limit


@pytest.mark.parametrize(("clip_limit", "tiles"), [(0, 8), (2, 0)])
def test_clahe_refuses_settings_that_mean_nothing(clip_limit, tiles):
    with pytest.raises(ValueError, match="'clip_limit' and 'tiles'"):
        intensity.clahe(film(), clip_limit, tiles)


def test_integers_are_rounded_over_the_whole_range():
    pixels = np.array([[0, 0.5, 1]], np.float32)
    assert intensity.to_uint8(pixels).tolist() == [[0, 128, 255]]
    assert intensity.to_uint16(pixels).tolist() == [[0, 32768, 65535]]


def test_16_bit_values_survive_a_round_trip():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    back = intensity.to_uint16((levels / 65535).astype(np.float32))
    assert np.array_equal(back, levels)
