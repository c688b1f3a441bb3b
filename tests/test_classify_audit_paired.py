"""Paired tests against numbers worked out by hand, on films without and with an effect."""

from __future__ import annotations

import numpy as np
import pytest

from classify.audit.paired import bootstrap_p, holm, mean_figure, swap_p, weighted_mean, with_draws


def test_three_patients_that_all_gain_give_a_quarter() -> None:
    # 8 patterns of signs; only + + + and - - - reach a sum of 6
    assert swap_p([1.0, 2.0, 3.0], ["a", "b", "c"]) == pytest.approx(2 / 8)


def test_sums_that_tie_count() -> None:
    # sums 1, 1, -2: total 0, which every pattern reaches
    assert swap_p([1.0, 1.0, -2.0], ["a", "b", "c"]) == 1.0
    # 1, 1, 2 with the sign of the last turned gives 0; 2 of 8 patterns reach 4
    assert swap_p([1.0, 1.0, 2.0], ["a", "b", "c"]) == pytest.approx(2 / 8)


def test_films_of_a_patient_are_swapped_together() -> None:
    # two patients: 4 patterns, 2 reach the sum; four films alone would give 2 / 16
    assert swap_p([1.0] * 4, ["a", "a", "b", "b"]) == pytest.approx(2 / 4)


def test_drawn_patterns_come_close_to_all_of_them() -> None:
    rng = np.random.default_rng(0)
    values, names = rng.normal(0.4, 1, 10), [f"p{i}" for i in range(10)]
    exact = swap_p(values, names, draws=1024)
    assert swap_p(values, names, draws=1000, seed=1) == pytest.approx(exact, abs=0.05)


def test_drawn_p_is_never_zero() -> None:
    names = [f"p{i}" for i in range(40)]
    assert swap_p(np.ones(40), names, draws=99) == pytest.approx(1 / 100)


def test_p_is_uniform_where_there_is_no_effect() -> None:
    rng = np.random.default_rng(3)
    names = [f"p{i // 2}" for i in range(40)]
    shared = np.repeat(rng.normal(0, 1, (300, 20)), 2, axis=1)  # films of a patient go together
    ps = np.array([swap_p(s + rng.normal(0, 0.5, 40), names, 200, i) for i, s in enumerate(shared)])
    assert 0.02 < (ps < 0.05).mean() < 0.09
    np.testing.assert_allclose(np.quantile(ps, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.08)


def test_no_films_have_no_p() -> None:
    assert np.isnan(swap_p([], []))
    assert np.isnan(bootstrap_p([]))


def test_differences_must_be_finite() -> None:
    with pytest.raises(ValueError, match="leave those films out"):
        swap_p([1.0, np.nan], ["a", "b"])


def test_bootstrap_p_is_twice_the_smaller_tail() -> None:
    # 19 draws, 3 at or below 0: 2 × (1 + 3) / (1 + 19)
    assert bootstrap_p([-1.0, -1.0, 0.0] + [1.0] * 16) == pytest.approx(0.4)
    assert bootstrap_p([0.0] * 19) == 1.0
    assert bootstrap_p([np.nan, *[1.0] * 19]) == pytest.approx(2 / 20)


def test_bootstrap_p_is_undefined_where_most_draws_are() -> None:
    assert np.isnan(bootstrap_p([np.nan, np.nan, 1.0]))


def test_holm_as_worked_out_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.5 × 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.5
    assert holm([0.03, 0.01, None, 0.5, 0.02]) == pytest.approx([0.06, 0.04, None, 0.5, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_weighted_mean_by_hand() -> None:
    weights = np.array([[1.0, 1, 1], [2, 0, 1], [0, 0, 0]])
    np.testing.assert_allclose(weighted_mean([3.0, 6, 9], weights), [6, 5, np.nan])


def test_mean_figure_leaves_undefined_values_out() -> None:
    found = mean_figure([1.0, np.nan, 3.0], ["a", "b", "c"], draws=200)
    assert found.value == 2.0 and found.n == 2
    assert found.low is not None and found.high is not None
    assert 1.0 <= found.low < 2.0 < found.high <= 3.0
    assert mean_figure([np.nan], ["a"]).value is None


def test_films_of_a_patient_are_drawn_together() -> None:
    weights = with_draws(["a", "b", "a"], 50, 0)
    assert weights.shape == (51, 3) and (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
