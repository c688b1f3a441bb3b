"""cxr/stats.py: numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cxr.stats import (
    auc,
    bootstrap_weights,
    classification_report,
    f1,
    figure,
    macro_auc,
    ratio,
    softmax,
    weighted_auc,
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
