"""What a map that looks at nothing scores, by hand and against maps drawn at full size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from classify.audit.metrics import baseline_lifts, film_seed, random_maps


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
