"""The table of controls against AUCs and shares worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from classify.audit.controls import Asked, ControlRow, control_markdown, control_table
from cxr.stats import softmax

NORMAL, TARGET, OTHERS = 0, 1, 2
LABELS = np.array([[TARGET], [TARGET], [NORMAL], [OTHERS]])
PATIENTS = ["a", "b", "c", "d"]


def logits_of(target_logits: list[float]) -> np.ndarray:
    """(N, 1, 3) logits with 0 for NORMAL and a low one for OTHERS."""
    return np.array([[[0.0, v, -9.0]] for v in target_logits])


def row_of(rows: list[ControlRow], control: str, **wanted: str) -> ControlRow:
    found = [
        r
        for r in rows
        if r.control == control and all(getattr(r, k) == v for k, v in wanted.items())
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
    rows = control_table(logits, LABELS, PATIENTS, ["viral"], draws=50)
    assert row_of(rows, "as is").auc.value == 1.0
    row = row_of(rows, "outside only")
    assert row.auc.value == 0.75 and row.difference.value == -0.25 and row.auc.n == 4


def test_changed_is_the_share_with_another_largest_logit(logits: dict[str, np.ndarray]) -> None:
    rows = control_table(logits, LABELS, PATIENTS, ["viral"], draws=50)
    assert row_of(rows, "as is").changed.value == 0.0
    assert row_of(rows, "outside only").changed.value == 0.25


def test_unknown_truths_are_left_out_of_the_auc_only(logits: dict[str, np.ndarray]) -> None:
    labels = LABELS.copy()
    labels[2] = -1  # the film that the hidden lungs put above a target
    row = row_of(control_table(logits, labels, PATIENTS, ["viral"], draws=50), "outside only")
    assert row.auc.value == 1.0 and row.auc.n == 3
    assert row.changed.value == 0.25 and row.changed.n == 4


def test_a_source_of_one_class_has_no_auc(logits: dict[str, np.ndarray]) -> None:
    rows = control_table(logits, LABELS, PATIENTS, ["viral"], sources=["k", "k", "n", "n"], draws=9)
    assert [r.source for r in rows] == ["k", "k", "n", "n", "all", "all"]
    assert row_of(rows, "as is", source="k").auc.value is None
    assert row_of(rows, "outside only", source="k").changed.value == 0.5
    assert row_of(rows, "outside only", source="all").auc.value == 0.75


def test_one_source_is_not_pooled(logits: dict[str, np.ndarray]) -> None:
    rows = control_table(logits, LABELS, PATIENTS, ["viral"], sources=["k"] * 4, draws=9)
    assert {r.source for r in rows} == {"k"}


def test_intervals_draw_patients_and_are_paired() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 30), 2)[:, None]
    names = [f"p{i // 2}" for i in range(60)]
    base = np.repeat(rng.normal(0, 1, 30), 2) + labels[:, 0]
    noisy = {"as is": logits_of(list(base)), "outside only": logits_of(list(base - 0.7))}
    row = row_of(control_table(noisy, labels, names, ["viral"], draws=200), "outside only")
    assert row.auc.low is not None and row.auc.high is not None and row.auc.value is not None
    assert row.auc.low < row.auc.value < row.auc.high
    # a constant taken off changes no order: paired, the difference is 0 in every draw
    assert (row.difference.value, row.difference.low, row.difference.high) == (0.0, 0.0, 0.0)


def test_a_question_goes_to_the_whole_ensemble(logits: dict[str, np.ndarray]) -> None:
    abnormal = Asked(
        "normal / abnormal",
        np.array([1, 1, 0, np.nan]),
        lambda given: 1 - softmax(given)[..., 0].mean(1),
    )
    rows = control_table(logits, LABELS, PATIENTS, ["viral"], draws=9, questions=[abnormal])
    row = row_of(rows, "outside only", member="normal / abnormal")
    assert row.auc.value == 0.5 and row.auc.n == 3 and row.changed.value is None


class ClearsBelow:
    """A screener that clears films whose TARGET logit is below 0."""

    def decide(self, logits: np.ndarray) -> tuple[np.ndarray, list[str], str]:
        scores = logits[:, 0, 1]
        return scores, ["read" if s > 0 else "definitely_normal" for s in scores], "at 0"


def test_the_screener_has_a_row_of_abnormal_against_normal(logits: dict[str, np.ndarray]) -> None:
    rows = control_table(logits, LABELS, PATIENTS, ["viral"], draws=9, screener=ClearsBelow())
    # normal is the third film (-1): as is two of three abnormal ones lie above it, then one
    assert row_of(rows, "as is", member="screener").auc.value == pytest.approx(2 / 3)
    row = row_of(rows, "outside only", member="screener")
    assert row.auc.value == pytest.approx(1 / 3) and row.changed.value == 0.25


def test_rows_become_plain_values_and_markdown(logits: dict[str, np.ndarray]) -> None:
    rows = control_table(logits, LABELS, PATIENTS, ["viral"], draws=50)
    plain = row_of(rows, "outside only").to_dict()
    assert plain["auc"] == 0.75 and plain["changed"] == 0.25 and plain["n"] == 4
    assert {"control", "member", "source", "low", "high"} <= set(plain)
    text = control_markdown(rows).splitlines()
    assert len(text) == 4 and text[3].startswith("| all | viral | outside only | 0.750 [")
    assert text[0].count("|") == text[3].count("|")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"logits_by_control": {"lungs only": logits_of([0.0] * 4)}}, "must hold 'as is'"),
        ({"labels": LABELS[:, 0]}, "labels must be"),
        ({"labels": LABELS + 1}, "or -1 .unknown."),
        ({"patients": ["a"]}, "patients must hold one value"),
        ({"sources": ["a"]}, "sources must hold one value"),
        ({"logits_by_control": {"as is": logits_of([0.0] * 3)}}, "logits of 'as is' must be"),
    ],
)
def test_errors_name_the_argument(wrong: dict[str, object], message: str) -> None:
    given = {
        "logits_by_control": {"as is": logits_of([0.0] * 4)},
        "labels": LABELS,
        "patients": PATIENTS,
        "targets": ["viral"],
    } | wrong
    with pytest.raises(ValueError, match=message):
        control_table(**given)  # type: ignore[arg-type]
