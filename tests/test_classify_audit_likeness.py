"""Rank correlation and SSIM against numbers worked out by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from classify.audit.likeness import likeness, rank_correlation, ssim


def test_rank_correlation_by_hand() -> None:
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 × 4 / (4 × 15) = 0.6
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([20.0, 10, 40, 30])) == (
        pytest.approx(0.6)
    )


def test_equal_values_share_their_rank() -> None:
    # ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, variances 1.5 and 2
    found = rank_correlation(np.array([0.0, 0, 5]), np.array([1.0, 2, 3]))
    assert found == pytest.approx(1.5 / np.sqrt(1.5 * 2))


def test_ranks_see_order_alone() -> None:
    plane = np.random.default_rng(0).random((7, 7))
    assert rank_correlation(plane, plane**5) == pytest.approx(1.0)
    assert rank_correlation(plane, -plane) == pytest.approx(-1.0)
    assert np.isnan(rank_correlation(plane, np.ones((7, 7))))


def test_ssim_of_even_pictures_is_that_of_their_brightness() -> None:
    a, b = np.full((16, 20), 0.25), np.full((16, 20), 0.75)
    # no variance: (2 a b + C1) / (a² + b² + C1)
    assert ssim(a, b) == pytest.approx((0.375 + 1e-4) / (0.625 + 1e-4))
    assert ssim(a, a) == pytest.approx(1.0)


def test_ssim_of_one_window_by_hand() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((11, 11)), rng.random((11, 11))
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
    both = (window * (a - mean_a) * (b - mean_b)).sum()
    expected = ((2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)) / (
        (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    )
    assert ssim(a, b) == pytest.approx(expected, rel=1e-6)


def test_ssim_wants_room_for_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11 × 11"):
        ssim(np.zeros((10, 20)), np.zeros((10, 20)))


def test_a_map_is_like_itself_in_any_unit() -> None:
    maps = np.random.default_rng(0).random((2, 7, 7)).astype(np.float32)
    for found in likeness(maps, -1e-6 * maps):
        assert found.rank_correlation == pytest.approx(1.0)
        assert found.ssim == pytest.approx(1.0, abs=1e-4)


def test_a_blob_elsewhere_is_not_like_it() -> None:
    here, there = np.zeros((7, 7), np.float32), np.zeros((7, 7), np.float32)
    here[1, 1], there[5, 5] = 1, 1
    here, there = (cv2.GaussianBlur(p, (3, 3), 0.8) for p in (here, there))
    (found,) = likeness(here[None], there[None])
    assert found.rank_correlation < 0 and found.ssim < 0.9


def test_an_even_map_has_no_likeness() -> None:
    maps = np.random.default_rng(0).random((1, 7, 7))
    (found,) = likeness(maps, np.zeros((1, 7, 7)))
    assert np.isnan(found.rank_correlation) and np.isnan(found.ssim)


def test_maps_must_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="must both be"):
        likeness(np.zeros((1, 7, 7)), np.zeros((2, 7, 7)))
