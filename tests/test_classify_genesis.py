"""classify/augment.py: what each of the four distortions changes, and what it must leave."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from classify.augment import TRANSFORMS, GenesisConfig, bezier_curve, distort, draw_kinds
from classify.tasks.restore import genesis_sheet

CONFIG = GenesisConfig()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ramp(height: int = 60, width: int = 80) -> np.ndarray:
    """Every pixel another grey, so that each can be followed."""
    return np.linspace(0.001, 0.999, height * width, dtype=np.float32).reshape(height, width)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_distortion_is_a_pure_function_of_film_and_seed(kind: str) -> None:
    film = ramp()
    before = film.copy()
    first, again = (distort(film, (kind,), CONFIG, rng(7)) for _ in range(2))
    other = distort(film, (kind,), CONFIG, rng(8))
    assert np.array_equal(film, before)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == film.shape and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    assert not np.array_equal(first, film)


def test_a_film_that_cannot_be_written_is_distorted_too() -> None:
    film = ramp()
    film.flags.writeable = False
    for kind in TRANSFORMS:
        distort(film, (kind,), CONFIG, rng())


def test_control_points_on_the_diagonal_leave_every_grey() -> None:
    x, y = bezier_curve(np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3]]))
    assert y == pytest.approx(x)


def test_the_curve_goes_through_its_middle_as_worked_out_by_hand() -> None:
    """At t = 1/2 the weights are 1, 3, 3, 1 eighths: x = (0 + 0 + 3 · 0.4 + 1) / 8 = 0.275,
    y = (0 + 3 · 0.6 + 3 · 1 + 1) / 8 = 0.725."""
    x, y = bezier_curve(np.array([[0.0, 0.6], [0.4, 1.0]]))
    assert np.interp(0.275, x, y) == pytest.approx(0.725, abs=1e-3)


@pytest.mark.parametrize("reverse", [False, True])
def test_every_curve_is_monotone_between_black_and_white(reverse: bool) -> None:
    for seed in range(50):
        x, y = bezier_curve(rng(seed).random((2, 2)).round(), reverse)  # corners are the worst case
        steps = np.diff(y)
        assert (np.diff(x) >= 0).all() and (x[0], x[-1]) == (0, 1)
        assert (steps <= 1e-12).all() if reverse else (steps >= -1e-12).all()
        assert (y[0], y[-1]) == ((1, 0) if reverse else (0, 1))


@pytest.mark.parametrize("reverse", [0.0, 1.0])
def test_the_intensity_curve_keeps_or_turns_the_order_of_greys(reverse: float) -> None:
    film = ramp()
    seen = distort(film, ("intensity",), replace(CONFIG, reverse=reverse), rng(3))
    steps = np.diff(seen.ravel())
    assert (steps <= 0).all() if reverse else (steps >= 0).all()


def test_shuffling_moves_pixels_but_makes_none() -> None:
    film = ramp()
    seen = distort(film, ("shuffle",), CONFIG, rng())
    assert np.array_equal(np.sort(seen, None), np.sort(film, None))


def test_one_window_moves_no_pixel_farther_than_its_side() -> None:
    """A tenth of 60 rows and 80 columns: at most 5 rows and 7 columns away."""
    film = ramp()
    for seed in range(20):
        seen = distort(film, ("shuffle",), replace(CONFIG, shuffle_windows=1), rng(seed))
        now = np.argsort(np.argsort(seen, None))  # where each pixel came from
        rows, columns = np.divmod(now, 80)
        at = np.arange(film.size)
        assert np.abs(rows - at // 80).max() <= 5 and np.abs(columns - at % 80).max() <= 7


def test_in_painting_covers_a_part_with_one_grey() -> None:
    film = ramp()
    for seed in range(30):
        seen = distort(film, ("inpaint",), CONFIG, rng(seed))
        painted = seen != film
        assert len(np.unique(seen[painted])) == 1
        # the smallest window is a sixth by a sixth: 10 × 14 px
        assert 10 * 14 - 1 <= painted.sum() <= 0.25 * film.size


def test_out_painting_covers_the_rest_and_at_most_a_quarter() -> None:
    film = ramp()
    for seed in range(30):
        seen = distort(film, ("outpaint",), CONFIG, rng(seed))
        painted = seen != film
        assert len(np.unique(seen[painted])) <= 1
        assert painted.mean() <= 0.25


def test_out_painting_keeps_three_quarters_even_of_tiny_windows() -> None:
    tiny = replace(CONFIG, windows=1, outpaint_sides=(0.1, 0.1))
    assert (distort(ramp(), ("outpaint",), tiny, rng()) == ramp()).mean() >= 0.75


def test_what_is_painted_may_be_noise() -> None:
    seen = distort(ramp(), ("inpaint",), replace(CONFIG, fill="noise"), rng())
    painted = seen != ramp()
    assert len(np.unique(seen[painted])) > 0.9 * painted.sum()


def test_distortions_are_drawn_with_their_probabilities() -> None:
    drawn = [draw_kinds(CONFIG, rng(seed)) for seed in range(4000)]
    shares = {k: np.mean([k in kinds for kinds in drawn]) for k in TRANSFORMS}
    assert shares == pytest.approx(
        {"intensity": 0.9, "shuffle": 0.5, "inpaint": 0.9 * 0.2, "outpaint": 0.9 * 0.8}, abs=0.02
    )
    assert max(map(len, drawn)) == 3
    assert not any({"inpaint", "outpaint"} <= set(kinds) for kinds in drawn)


def test_without_a_distortion_the_film_stays() -> None:
    off = GenesisConfig(intensity=0, shuffle=0, paint=0)
    assert draw_kinds(off, rng()) == ()
    assert np.array_equal(distort(ramp(), (), off, rng()), ramp())


def test_the_sheet_has_a_row_a_film_and_a_column_a_distortion() -> None:
    one = genesis_sheet([ramp()], CONFIG, tile=64)
    two = genesis_sheet([ramp(), ramp()], CONFIG, tile=64)
    assert one.shape[1] == two.shape[1] > 5 * 64 and two.shape[0] > 1.8 * one.shape[0]
    assert one.dtype == np.uint8 and cv2.imencode(".png", one)[0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"intensity": 1.5}, "intensity must lie in"),
        ({"most_painted": -0.1}, "most_painted"),
        ({"inpaint_sides": (0.5, 0.2)}, "the shorter first"),
        ({"outpaint_sides": (0.5, 1.2)}, "outpaint_sides"),
        ({"shuffle_side": 0.0}, "shuffle_side"),
        ({"windows": 0}, "windows"),
        ({"fill": "grey"}, "fill must be one of constant, noise"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GenesisConfig(**wrong)


def test_pixels_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="distort"):
        distort(ramp() * 255, ("shuffle",), CONFIG, rng())
