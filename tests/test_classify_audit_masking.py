"""What is hidden, how far round the lungs, on films and on crops; and the table of what members
answer then, against AUCs and shares worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from classify.audit.controls import HIDDEN, Asked, ask_all, control_table, draw_donors, grow, hide
from classify.audit.rows import Row
from cxr.boxes import Frame
from cxr.stats import softmax


@pytest.fixture
def film() -> tuple[np.ndarray, np.ndarray]:
    """A film of 0.5 (40 × 100) with a lung of 0.25 in rows 10–30, columns 20–60."""
    pixels = np.full((40, 100), 0.5, np.float32)
    lung = np.zeros((40, 100), bool)
    lung[10:30, 20:60] = True
    pixels[lung] = 0.25
    return pixels, lung


def test_growing_reaches_the_margin_of_the_longer_side() -> None:
    mask = np.zeros((50, 100), bool)
    mask[20, 30] = True
    grown = grow(mask, 0.02)  # 2 px
    # all within 2 px of one pixel: 5 + 2 × 3 + 2 × 1
    assert grown.sum() == 13 and grown[20, 28] and grown[18, 30] and not grown[18, 29]


def test_no_margin_grows_nothing(film: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(grow(film[1], 0.0), film[1])


def test_outside_only_hides_the_lungs_and_the_margin(film: tuple[np.ndarray, np.ndarray]) -> None:
    hidden = hide(*film, "outside_only", margin=0.02)
    assert (hidden[10:30, 18:62] == 0).all() and (hidden[8, 20:60] == 0).all()
    assert (hidden[:7] == 0.5).all() and (hidden[:, 62:] == 0.5).all()
    assert hidden.dtype == np.float32


def test_lungs_only_hides_the_rest_without_a_margin(film: tuple[np.ndarray, np.ndarray]) -> None:
    hidden = hide(*film, "lungs_only")
    assert (hidden[film[1]] == 0.25).all() and (hidden[~film[1]] == 0).all()


def test_the_rim_belongs_to_neither(film: tuple[np.ndarray, np.ndarray]) -> None:
    outside, lungs = (hide(*film, c) for c in ("outside_only", "lungs_only"))
    rim = grow(film[1]) & ~film[1]
    assert rim.any() and not ((outside > 0) & (lungs > 0)).any()
    assert (outside[rim] == 0).all() and (lungs[rim] == 0).all()


def test_shape_only_keeps_nothing_but_the_outline(film: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lung = film
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 0.1, pixels.shape), 0, 1)
    left = hide(pixels, lung, "shape_only")
    np.testing.assert_array_equal(left, hide(noisy.astype(np.float32), lung, "shape_only"))
    np.testing.assert_array_equal(left == 0, grow(lung))


def test_the_film_itself_stays_as_it_was(film: tuple[np.ndarray, np.ndarray]) -> None:
    before = film[0].copy(), film[1].copy()
    for control in HIDDEN:
        hide(*film, control)
    np.testing.assert_array_equal(film[0], before[0])
    np.testing.assert_array_equal(film[1], before[1])


@pytest.mark.parametrize("control", HIDDEN)
def test_a_crop_is_hidden_where_its_film_is(
    film: tuple[np.ndarray, np.ndarray], control: str
) -> None:
    frame = Frame.cut((24, 4, 70, 36))
    crop = frame.apply(film[0])
    expected = frame.apply(hide(*film, control))
    np.testing.assert_array_equal(hide(crop, film[1], control, frame=frame), expected)


def test_lung_just_beyond_a_crop_hides_its_edge(film: tuple[np.ndarray, np.ndarray]) -> None:
    frame = Frame.cut((61, 0, 100, 40))  # begins 1 px right of the lung; the margin is 2 px
    hidden = hide(frame.apply(film[0]), film[1], "outside_only", frame=frame)
    assert (hidden[10:30, 0] == 0).all() and (hidden[:, 1:] == 0.5).all()


def test_beyond_the_film_a_crop_stays_black(film: tuple[np.ndarray, np.ndarray]) -> None:
    frame = Frame.cut((-10, 0, 50, 40))
    hidden = hide(frame.apply(film[0]), film[1], "outside_only", frame=frame)
    assert (hidden[:, :10] == 0).all() and (hidden[:5, 10:] == 0.5).all()


# --- the table

NORMAL, TARGET, OTHERS = 0, 1, 2
LABELS = np.array([[TARGET], [TARGET], [NORMAL], [OTHERS]])
PATIENTS = ["a", "b", "c", "d"]


def logits_of(target_logits: list[float]) -> np.ndarray:
    """(N, 1, 3) logits with 0 for NORMAL and a low one for OTHERS."""
    return np.array([[[0.0, v, -9.0]] for v in target_logits])


def table(
    logits: dict[str, np.ndarray],
    labels: np.ndarray = LABELS,
    patients: Sequence[str] = PATIENTS,
    questions: Sequence[Asked] = (),
    screener: Any = None,
    **more: Any,
) -> list[Row]:
    return control_table(logits, ask_all(labels, ["viral"], questions, screener), patients, **more)


def row_of(rows: list[Row], control: str, **wanted: str) -> Row:
    found = [
        r for r in rows if r["control"] == control and all(r[k] == v for k, v in wanted.items())
    ]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def logits() -> dict[str, np.ndarray]:
    return {
        "as is": logits_of([2.0, 1.0, -1.0, -2.0]),  # all pairs right; target, target, normal × 2
        "outside only": logits_of([2.0, -1.5, -1.0, -2.0]),  # one pair of four wrong, one change
    }


def test_auc_is_of_target_against_the_rest(logits: dict[str, np.ndarray]) -> None:
    rows = table(logits, draws=50)
    assert row_of(rows, "as is")["auc"] == 1.0
    row = row_of(rows, "outside only")
    assert row["auc"] == 0.75 and row["difference"] == -0.25 and row["n"] == 4


def test_changed_is_the_share_with_another_largest_logit(logits: dict[str, np.ndarray]) -> None:
    rows = table(logits, draws=50)
    assert row_of(rows, "as is")["changed"] == 0.0
    assert row_of(rows, "outside only")["changed"] == 0.25


def test_unknown_truths_are_left_out_of_the_auc_only(logits: dict[str, np.ndarray]) -> None:
    labels = LABELS.copy()
    labels[2] = -1  # the film that the hidden lungs put above a target
    row = row_of(table(logits, labels, draws=50), "outside only")
    assert row["auc"] == 1.0 and row["n"] == 3
    assert row["changed"] == 0.25 and row["changed_n"] == 4


def test_a_source_of_one_class_has_no_auc(logits: dict[str, np.ndarray]) -> None:
    rows = table(logits, sources=["k", "k", "n", "n"], draws=9)
    assert [r["source"] for r in rows] == ["k", "k", "n", "n", "all", "all"]
    assert row_of(rows, "as is", source="k")["auc"] is None
    assert row_of(rows, "outside only", source="k")["changed"] == 0.5
    assert row_of(rows, "outside only", source="all")["auc"] == 0.75


def test_one_source_is_not_pooled(logits: dict[str, np.ndarray]) -> None:
    rows = table(logits, sources=["k"] * 4, draws=9)
    assert {r["source"] for r in rows} == {"k"}


def test_intervals_draw_patients_and_are_paired() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 30), 2)[:, None]
    names = [f"p{i // 2}" for i in range(60)]
    base = np.repeat(rng.normal(0, 1, 30), 2) + labels[:, 0]
    noisy = {"as is": logits_of(list(base)), "outside only": logits_of(list(base - 0.7))}
    row = row_of(table(noisy, labels, names, draws=200), "outside only")
    assert row["low"] is not None and row["high"] is not None and row["auc"] is not None
    assert row["low"] < row["auc"] < row["high"]
    # a constant taken off changes no order: paired, the difference is 0 in every draw
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (0.0, 0.0, 0.0)


def test_a_question_goes_to_the_whole_ensemble(logits: dict[str, np.ndarray]) -> None:
    abnormal = Asked(
        "normal / abnormal",
        np.array([1, 1, 0, np.nan]),
        lambda given: (1 - softmax(given)[..., 0].mean(1), None),
    )
    rows = table(logits, draws=9, questions=[abnormal])
    row = row_of(rows, "outside only", member="normal / abnormal")
    assert row["auc"] == 0.5 and row["n"] == 3 and row["changed"] is None


class ClearsBelow:
    """A screener that clears films whose TARGET logit is below 0."""

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, list[str], str]:
        scores = logits[:, 0, 1]
        return scores, ["read" if s > 0 else "definitely_normal" for s in scores], "at 0"


def test_the_screener_has_a_row_of_abnormal_against_normal(logits: dict[str, np.ndarray]) -> None:
    rows = table(logits, draws=9, screener=ClearsBelow())
    # normal is the third film (-1): as is two of three abnormal ones lie above it, then one
    assert row_of(rows, "as is", member="screener")["auc"] == pytest.approx(2 / 3)
    row = row_of(rows, "outside only", member="screener")
    assert row["auc"] == pytest.approx(1 / 3) and row["changed"] == 0.25


def test_each_film_gets_the_surroundings_of_another_patient() -> None:
    patients = ["a", "a", "b", "c", "c", "c"]
    for seed in range(20):
        donors = draw_donors(patients, np.random.default_rng(seed))
        assert all(patients[d] != p for d, p in zip(donors, patients, strict=True))
    assert draw_donors(["a", "a"], np.random.default_rng(0)) == [0, 1]  # nobody else is there
