"""Rank correlation and SSIM against numbers worked out by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from classify.audit.likeness import likeness, rank_correlation


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
