"""Exact bounds against published or hand-worked numbers, and the choice of the threshold."""

from __future__ import annotations

import numpy as np
import pytest

from classify.screening.guarantee import (
    choose_operating_point,
    films_needed,
    misses_allowed,
    percent,
)
from cxr.stats import exact_interval, lower_bound


def test_99_percent_at_95_needs_299_films() -> None:
    assert films_needed(0.99, 0.95) == 299
    assert lower_bound(299, 299, 0.95) >= 0.99 > lower_bound(298, 298, 0.95)


def test_misses_allowed_grows_with_the_films() -> None:
    # P(at most 1 miss of 473 | 1 %) = 0.99^473 + 473 * 0.01 * 0.99^472 = 0.0498 < 0.05
    assert [misses_allowed(n, 0.99, 0.95) for n in (298, 299, 472, 473)] == [-1, 0, 0, 1]


def test_impossible_counts_and_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="11 of 10"):
        exact_interval(11, 10)
    with pytest.raises(ValueError, match="sensitivity must lie between 0 and 1"):
        films_needed(1.0, 0.95)


def test_the_threshold_is_the_lowest_abnormal_score_when_no_miss_is_allowed() -> None:
    abnormal = np.linspace(0.3, 0.9, 299)
    normal = np.array([0.1, 0.2, 0.299, 0.3, 0.5])
    scores = np.concatenate([abnormal, normal])
    truth = np.arange(304) < 299
    point = choose_operating_point(scores, truth, [f"p{i}" for i in range(304)], 0.99, 0.95)
    assert point.proven and point.threshold == 0.3
    assert point.missed_patients == 0
    assert point.share_cleared == pytest.approx(3 / 304)  # 0.3 itself is not below the threshold


def test_an_allowed_miss_moves_the_threshold_to_the_second_lowest_patient() -> None:
    scores = np.linspace(0.1, 0.9, 473)
    point = choose_operating_point(scores, np.ones(473, bool), [str(i) for i in range(473)])
    assert point.threshold == scores[1]
    assert point.missed_patients == 1 and point.proven


def test_films_of_one_patient_are_one_proof() -> None:
    scores, truth = np.full(400, 0.8), np.ones(400, bool)
    point = choose_operating_point(scores, truth, [f"p{i // 4}" for i in range(400)])
    assert (point.abnormal_patients, point.proven) == (100, False)


def test_a_patients_lowest_abnormal_film_counts_and_their_normal_film_does_not() -> None:
    scores = np.array([0.9, 0.4, 0.1, 0.6])
    truth = np.array([True, True, False, True])
    point = choose_operating_point(scores, truth, ["a", "a", "a", "b"], 0.5, 0.6)
    # two patients at 0.4 and 0.6; 0.5 of two proves nothing more than no miss at all: 0.4^(1/2)
    assert point.threshold == 0.4


def test_too_few_films_say_so_and_say_what_is_proven() -> None:
    scores = np.linspace(0.2, 0.9, 63)
    point = choose_operating_point(scores, np.ones(63, bool), [str(i) for i in range(63)])
    assert not point.proven and point.threshold == 0.2
    assert point.proven_sensitivity == pytest.approx(0.05 ** (1 / 63))
    text = point.sentence()
    assert text.startswith("not proven: 299 abnormal films needed, 63 given")
    assert "at least 95.3 %" in text


def test_the_proof_holds_in_19_of_20_draws() -> None:
    # abnormal scores uniform on [0, 1]: the true miss rate of a threshold t is t itself
    rng = np.random.default_rng(0)
    patients = [str(i) for i in range(473)]
    wrong = [
        choose_operating_point(rng.random(473), np.ones(473, bool), patients).threshold > 0.01
        for _ in range(2000)
    ]
    assert 0.035 < np.mean(wrong) < 0.062  # 0.0498 expected, its standard error is 0.005


def test_no_abnormal_film_proves_nothing() -> None:
    with pytest.raises(ValueError, match="must hold an abnormal film"):
        choose_operating_point(np.array([0.1]), np.array([False]), ["a"])


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        choose_operating_point(np.array([np.nan]), np.array([True]), ["a"])


def test_percent_is_rounded_down() -> None:
    shown = [percent(v) for v in (0.99, 0.98999, 1.0, 0.953)]
    assert shown == ["99 %", "98.9 %", "100 %", "95.3 %"]
