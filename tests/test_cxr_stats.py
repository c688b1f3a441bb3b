"""cxr/stats.py: numbers worked out by hand, and films without and with an effect."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cxr.stats import (
    Figure,
    Interval,
    auc,
    bootstrap_mean,
    bootstrap_p,
    bootstrap_quantiles,
    bootstrap_weights,
    classification_report,
    exact_interval,
    f1,
    figure,
    holm,
    in_words,
    lower_bound,
    macro_auc,
    mean_figure,
    ratio,
    share_figure,
    sign_p,
    softmax,
    swap_p,
    weighted_auc,
    weighted_mean,
    with_draws,
)


def test_auc_counts_pairs_in_the_right_order() -> None:
    # pairs (positive, negative): .4>.1 .4<.5 .8>.1 .8>.5 -> 3 of 4
    assert auc([0.1, 0.4, 0.5, 0.8], [0, 1, 0, 1]) == pytest.approx(0.75)


def test_equal_scores_count_half() -> None:
    assert auc([0.5, 0.5, 0.5], [1, 0, 0]) == pytest.approx(0.5)


def test_weights_act_as_repeated_films() -> None:
    scores, positive = [0.2, 0.6, 0.4, 0.6], [0, 1, 1, 0]
    repeated = auc([0.2, 0.6, 0.6, 0.4, 0.6, 0.6, 0.6], [0, 1, 1, 1, 0, 0, 0])
    weighted = weighted_auc(scores, positive, np.array([[1.0, 2.0, 1.0, 3.0]]))
    assert weighted[0] == pytest.approx(repeated)


def test_auc_without_one_side_is_undefined() -> None:
    assert np.isnan(auc([0.1, 0.2], [1, 1]))


def test_auc_refuses_nan_scores() -> None:
    with pytest.raises(ValueError, match="finite"):
        auc([0.1, np.nan], [0, 1])


def test_macro_auc_leaves_out_a_class_without_films() -> None:
    probabilities = [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.6, 0.3, 0.1]]
    assert macro_auc(probabilities, [0, 1, 1]) == pytest.approx(1.0)


def test_softmax_of_large_logits_stays_finite() -> None:
    assert softmax([[1000.0, 0.0, 1000.0]])[0] == pytest.approx([0.5, 0.0, 0.5])
    assert softmax(np.log([[[5.0, 4.0, 1.0]]]))[0, 0] == pytest.approx([0.5, 0.4, 0.1])


def test_ratio_of_no_film_is_undefined() -> None:
    assert np.isnan(ratio([True], [False])[0])


def test_films_of_one_patient_are_drawn_together() -> None:
    weights = bootstrap_weights(["a", "b", "a", "c"], draws=200, seed=3)
    assert weights.shape == (200, 4)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    patients = weights[:, [0, 1, 3]].sum(1)
    assert np.array_equal(patients, np.full(200, 3.0))  # as many patients as there are


def test_report_in_numbers_worked_by_hand() -> None:
    # truth 0 0 1 1 2, answers 0 1 1 1 0
    logits = np.array([[3, 1, 0], [1, 2, 0], [0, 2, 1], [0, 3, 1], [2, 0, 1]], float)
    report = classification_report(
        logits, [0, 0, 1, 1, 2], list("abcde"), ("normal", "flu", "others"), draws=50
    )
    assert report.confusion == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert report.accuracy.value == pytest.approx(3 / 5)
    assert report.balanced_accuracy.value == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert report.sensitivity["normal"].value == pytest.approx(1 / 2)
    assert report.specificity["normal"].value == pytest.approx(2 / 3)
    assert report.specificity["flu"].value == pytest.approx(2 / 3)
    assert report.sensitivity["others"].value == 0.0
    assert report.class_accuracy["normal"].value == pytest.approx(3 / 5)
    assert report.class_accuracy["flu"].value == pytest.approx(4 / 5)
    assert (report.sensitivity["flu"].n, report.specificity["flu"].n) == (2, 3)
    assert (report.films, report.patients) == (5, 5)


def test_intervals_hold_their_value_and_come_again_with_the_seed() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    logits = rng.normal(size=(60, 3)) + 1.5 * np.eye(3)[labels]
    patients = [f"p{i // 2}" for i in range(60)]
    first = classification_report(logits, labels, patients, ("a", "b", "c"), draws=300, seed=1)
    again = classification_report(logits, labels, patients, ("a", "b", "c"), draws=300, seed=1)
    assert first == again
    auc_figure = first.macro_auc
    assert auc_figure.low < auc_figure.value < auc_figure.high


def test_a_class_without_films_has_no_figures() -> None:
    report = classification_report(
        [[1.0, 0, 0], [0, 1, 0]], [0, 1], ["a", "b"], ("normal", "flu", "others"), draws=20
    )
    assert report.sensitivity["others"].value is None
    assert report.auc["others"].value is None
    assert report.balanced_accuracy.value == pytest.approx(1.0)


def test_f1_is_the_harmonic_mean_of_precision_and_sensitivity() -> None:
    # said 3, of them 2 right; truly there 4: precision 2/3, sensitivity 2/4, F1 = 4/7
    said = [True, True, True, False, False, False]
    truth = [True, True, False, True, True, False]
    assert f1(said, truth)[0] == pytest.approx(4 / 7)


def test_f1_of_a_class_never_answered_is_0_and_of_a_class_without_films_undefined() -> None:
    assert f1([False, False], [True, False])[0] == 0.0
    assert np.isnan(f1([True, False], [False, False])[0])


def test_f1_counts_weights_as_repeated_films() -> None:
    said, truth = [True, False, True], [True, True, False]
    # each once: 2 / (2 + 1 + 1); the first twice: 4 / (4 + 1 + 1); a draw without the class
    weights = [[1, 1, 1], [2, 1, 1], [0, 0, 2]]
    values = f1(said, truth, np.array(weights))
    assert values[:2] == pytest.approx([1 / 2, 2 / 3])
    assert np.isnan(values[2])


def test_the_report_has_f1_of_each_class_and_their_mean() -> None:
    # answers normal, flu, flu against normal, normal, flu: F1 2/3 and 2/3; others has no film
    logits = [[2.0, 1, 0], [1.0, 2, 0], [0.0, 2, 1]]
    report = classification_report(
        logits, [0, 0, 1], ["a", "b", "c"], ("normal", "flu", "others"), draws=50
    )
    assert report.f1["normal"].value == pytest.approx(2 / 3)
    assert report.f1["flu"].value == pytest.approx(2 / 3)
    assert report.f1["others"].value is None
    assert report.macro_f1.value == pytest.approx(2 / 3)
    assert (report.f1["normal"].n, report.macro_f1.n) == (2, 3)


def test_no_interval_when_most_draws_have_no_value() -> None:
    sparse = figure(0.5, np.array([0.5, np.nan, np.nan]), n=1)
    assert (sparse.value, sparse.low, sparse.high) == (0.5, None, None)


@pytest.mark.parametrize(
    ("logits", "labels", "patients"),
    [([[1.0, 0.0]], [0], ["a"]), ([[1.0, 0, 0]], [0], ["a", "b"]), (np.zeros((0, 3)), [], [])],
)
def test_wrong_shapes_are_refused(logits: object, labels: list[int], patients: list[str]) -> None:
    with pytest.raises(ValueError, match="must"):
        classification_report(logits, labels, patients, ("a", "b", "c"))


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


def test_draws_begin_with_the_films_themselves() -> None:
    weights = with_draws(["a", "b", "a"], 50, 0)
    assert weights.shape == (51, 3) and (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()


def test_bootstrap_is_by_patient() -> None:
    # 50 films of one patient at 0, 50 of another at 1: by film the interval is narrow, by patient
    # a draw of two holds (0, 0) or (1, 1) half of the time
    values = np.repeat([0.0, 1.0], 50)
    by_patient = bootstrap_mean(values, ["a"] * 50 + ["b"] * 50)
    by_film = bootstrap_mean(values, [str(i) for i in range(100)])
    assert (by_patient.value, by_patient.low, by_patient.high) == (0.5, 0, 1)
    assert by_film.low == pytest.approx(0.40, abs=0.02)  # 0.5 − 1.96 · 0.05
    assert by_film.high == pytest.approx(0.60, abs=0.02)


def test_bootstrap_weighs_patients_by_their_films() -> None:
    interval = bootstrap_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert (interval.value, interval.low, interval.high) == (0.75, 0, 1)


def test_bootstrap_is_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(1).random(30)
    patients = [str(i) for i in range(30)]
    assert bootstrap_mean(values, patients, seed=3) == bootstrap_mean(values, patients, seed=3)
    assert bootstrap_mean(values, patients, seed=3) != bootstrap_mean(values, patients, seed=4)


def test_bootstrap_leaves_out_nan_and_gives_no_interval_for_one_patient() -> None:
    interval = bootstrap_mean([0.25, math.nan, 0.75], ["a", "b", "a"])
    assert interval.value == 0.5
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert math.isnan(bootstrap_mean([math.nan], ["a"]).value)


def test_bootstrap_refuses_patients_of_another_length() -> None:
    with pytest.raises(ValueError, match="one length"):
        bootstrap_mean([1.0], ["a", "b"])


def test_quantiles_are_numpys_of_the_drawn_values() -> None:
    values, patients = [0.9, 0.5, 0.7, 0.8], ["p", "q", "q", "r"]
    found = bootstrap_quantiles(values, patients, [0.5, 0.05], draws=50, seed=3)
    times = np.random.default_rng(3).multinomial(3, [1 / 3] * 3, size=50)
    drawn = [np.quantile(np.repeat(values, row[[0, 1, 1, 2]]), [0.5, 0.05]) for row in times]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert [v.low for v in found] == pytest.approx(list(low))
    assert [v.high for v in found] == pytest.approx(list(high))
    assert found[0].value == pytest.approx(0.75)


def test_a_quantiles_interval_draws_patients_not_films() -> None:
    # two patients are drawn twice: 0 and 0, 0 and 1, 1 and 1; the median is 0, 0.5 or 1
    (median,) = bootstrap_quantiles([0, 1], ["p", "q"], [0.5])
    assert (median.value, median.low, median.high) == (0.5, 0, 1)
    (median,) = bootstrap_quantiles([0, 1, 1], ["p", "p", "p"], [0.5])
    assert median.value == 1
    assert np.isnan(median.low)


def test_no_miss_in_n_has_the_bound_alpha_to_the_one_over_n() -> None:
    assert lower_bound(10, 10, 0.95) == pytest.approx(0.05 ** (1 / 10))
    assert exact_interval(10, 10, 0.95) == pytest.approx((0.025 ** (1 / 10), 1.0))


def test_exact_interval_of_5_in_10() -> None:
    low, high = exact_interval(5, 10)  # the textbook's 0.187 to 0.813
    assert (low, high) == pytest.approx((0.1871, 0.8129), abs=1e-4)


def test_exact_interval_without_films_is_everything() -> None:
    assert exact_interval(0, 0) == (0.0, 1.0)


def test_a_share_counts_films_and_draws_patients() -> None:
    share = share_figure([True, True, False, False], ["a", "a", "b", "c"], draws=200)
    assert share.value == 0.5 and share.n == 4
    assert share.low == 0.0 and share.high == 1.0  # all of a, or none


def test_a_share_of_all_has_the_exact_interval_of_its_patients() -> None:
    # 3 of 3 patients: 0.025 to the power of 1 / 3
    share = share_figure([True] * 5, ["a", "a", "b", "c", "c"])
    assert (share.value, share.high) == (1.0, 1.0)
    assert share.low == pytest.approx(0.025 ** (1 / 3))
    assert share_figure([], []) == Figure(None, None, None, 0)


@pytest.mark.parametrize(
    ("sides", "p"),
    [((0, 0), None), ((1, 0), 1.0), ((5, 0), 2 / 32), ((2, 8), 112 / 1024), ((4, 4), 1.0)],
)
def test_sign_p_by_hand(sides: tuple[int, int], p: float | None) -> None:
    assert sign_p(*sides) == pytest.approx(p)


def test_a_figure_in_words() -> None:
    assert in_words(Figure(0.5, 0.25, 0.75, 8)) == "0.500 [0.250, 0.750]"
    assert in_words(Figure(0.5, None, None, 8), signed=True) == "+0.500"
    assert in_words(Figure(None, None, None, 0), missing="not defined") == "not defined"
    assert in_words(Interval(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
    assert [in_words(Interval(v)) for v in (0.5, math.nan)] == ["0.500", "–"]
