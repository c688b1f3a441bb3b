"""The shortcut probe: figures worked out by hand, folds by patient, words for what was found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from explore_world import entries_of

from cxr.stats import Figure
from cxr.workdir import set_up_logging
from exploring import ASPECT, CROP, FEATURES, FILM, NUMBERS, OUTSIDE, probe, read_entries
from exploring.probe import (
    Answer,
    auc_text,
    auc_within,
    cross_validated_auc,
    headline,
    questions,
    verdicts,
)


def test_pairs_are_counted_inside_their_fold() -> None:
    # fold 0: 3 beats 1 and 2 (2 of 2 pairs); fold 1: 0 against 5 and 0 (a loss and a tie)
    scores = np.array([1.0, 2.0, 3.0, 5.0, 0.0, 0.0])
    positive = np.array([False, False, True, False, False, True])
    fold = np.array([0, 0, 0, 1, 1, 1])
    assert auc_within(scores, positive, fold, np.ones((1, 6))) == pytest.approx([2.5 / 4])
    # a draw without the first film, with the second fold's positive one twice: (1 + 2 × 0.5) / 5
    weights = np.array([[0.0, 1, 1, 1, 1, 2]])
    assert auc_within(scores, positive, fold, weights) == pytest.approx([2 / 5])


def test_films_of_no_fold_do_not_count_and_one_side_has_no_value() -> None:
    scores, positive = np.array([1.0, 2.0, np.nan]), np.array([False, True, True])
    fold = np.array([0, 0, -1])
    assert auc_within(scores, positive, fold, np.ones((1, 3)))[0] == 1
    assert np.isnan(auc_within(scores, positive, np.full(3, -1), np.ones((1, 3)))[0])


def test_a_constant_feature_is_chance_exactly() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.3
    found = cross_validated_auc(np.ones((60, 1)), positive, [f"p{i}" for i in range(60)], 50)
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 60)


def test_a_feature_that_is_the_label_is_told_and_its_sign_does_not_matter() -> None:
    positive = np.arange(60) % 2 == 0
    patients = [f"p{i // 2}" for i in range(60)]
    for sign in (1, -1):
        found = cross_validated_auc(sign * positive[:, None].astype(float), positive, patients, 50)
        assert (found.value, found.low, found.high) == (1, 1, 1)


def test_a_patient_known_by_name_teaches_nothing() -> None:
    """A feature that only says which patient it is: pooled folds of films would tell all labels."""
    rng = np.random.default_rng(1)
    patients = [f"p{i // 4}" for i in range(160)]
    features = np.eye(40)[np.arange(160) // 4]
    positive = (rng.random(40) < 0.5)[np.arange(160) // 4]
    found = cross_validated_auc(features, positive, patients, 50)
    assert found.value == pytest.approx(0.5, abs=0.1)


def test_draws_in_blocks_keep_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_WEIGHTS", 21)
    seen = []

    def auc(weights: np.ndarray) -> np.ndarray:
        seen.append(weights.shape)
        return weights.sum(1)

    values = probe._bootstrap(auc, ["a", "a", "b"], 16, 0)
    assert seen == [(7, 3), (7, 3), (2, 3)] and len(values) == 16
    assert len(set(values.tolist())) > 1  # a draw of a twice holds four films, of b twice two


def test_questions_are_inside_a_source_and_between_sources(tmp_path: Path) -> None:
    rows = [
        *({"source": "a", "label": "normal"} for _ in range(30)),
        *({"source": "a", "label": "pneumonia", "sublabel": "viral"} for _ in range(31)),
        *({"source": "a", "label": "pneumonia", "sublabel": "bacterial/x"} for _ in range(30)),
        *({"source": "a", "label": "unknown"} for _ in range(40)),
        *({"source": "b", "label": "normal"} for _ in range(29)),
        *({"source": "b", "label": "covid"} for _ in range(30)),
    ]
    entries = entries_of(tmp_path, rows)
    seen = np.ones(len(rows), bool)
    found = {
        q.name: (q.about, int((~q.positive).sum()), int(q.positive.sum()))
        for q in questions(entries, seen)
    }
    assert found == {
        "a: normal / pneumonia": ("labels", 30, 61),
        "a: bacterial / viral": ("labels", 30, 31),
        "a / b": ("sources", 131, 59),
    }
    seen[0] = False  # one normal film unread: 29 are too few
    assert "a: normal / pneumonia" not in {q.name for q in questions(entries, seen)}


def test_a_side_of_few_patients_is_not_asked(tmp_path: Path) -> None:
    from exploring import Gathered

    rows = [
        {"label": "normal" if i % 2 else "covid", "patient_id": f"p{i % 2}{i % 6}"}
        for i in range(80)
    ]
    entries = entries_of(tmp_path, rows)
    features = {n: np.zeros((80, 1), np.float32) for n in FEATURES}
    gathered = Gathered(entries, np.ones((80, 2), int), features, {}, {}, [], Counter())
    (question,) = questions(entries, gathered.seen)
    answers = [probe.answer(question, gathered, what, 10, 0) for what in FEATURES]
    assert {a.why_not for a in answers} == {"fewer than 5 patients on one side"}
    assert all(a.auc.value is None for a in answers)


def answers(about: str = "labels", **lows: float | None) -> list[Answer]:
    names = {"film": FILM, "outside": OUTSIDE, "numbers": NUMBERS, "aspect": ASPECT, "crop": CROP}
    out = []
    for key, what in names.items():
        low = lows.get(key, 0.45)
        value = Figure(None, None, None, 0) if low is None else Figure(low + 0.05, low, 0.99, 80)
        out.append(Answer("q", about, what, value, (40, 40), 80, "" if low is not None else "few"))
    return out


@pytest.mark.parametrize("key", ["outside", "numbers", "aspect"])
def test_what_sees_no_lung_warns_above_the_limit(key: str) -> None:
    assert verdicts(answers(**{key: 0.701}))[0].level == "warning"
    assert verdicts(answers(**{key: 0.7}))[0].level == "caution"
    assert verdicts(answers(**{key: 0.5}))[0].level == "clear"


@pytest.mark.parametrize("key", ["film", "crop"])
def test_what_sees_a_lung_never_warns(key: str) -> None:
    assert verdicts(answers(**{key: 0.95}))[0].level == "clear"


def test_without_boxes_nothing_is_said_to_be_clear() -> None:
    (found,) = verdicts(answers(outside=None, numbers=None, crop=None))
    assert found.level == "unknown" and "--crops" in found.text
    assert verdicts(answers(outside=None, aspect=0.8))[0].level == "warning"  # that is known


def test_more_than_chance_is_said_without_a_warning() -> None:
    assert "more than chance" in verdicts(answers(outside=0.6))[0].text
    assert "more than chance" not in verdicts(answers())[0].text


def test_the_headline_names_what_was_found() -> None:
    assert headline([]).startswith("No two labels")
    assert "better than by chance (q)" in headline(verdicts(answers(outside=0.6)))
    assert headline(verdicts(answers())).startswith("No label that could be checked")
    assert "can be told without lungs (q)" in headline(verdicts(answers(outside=0.9)))
    assert "Not checked for want of thorax boxes: q" in headline(verdicts(answers(outside=None)))
    assert "never pool" in headline(
        [*verdicts(answers()), *verdicts(answers("sources", aspect=0.9))]
    )


def test_figures_in_words() -> None:
    assert auc_text(Figure(0.9791, 0.9684, 0.985, 9)) == "0.979 [0.968, 0.985]"
    assert auc_text(Figure(0.9, None, None, 9)) == "0.900, without an interval"
    assert auc_text(Figure(None, None, None, 0)) == "not measured"


def test_words_that_are_not_known_are_told_and_not_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        *({"label": ("normal", "Normal ", "No_Finding")[n % 3]} for n in range(30)),
        *({"label": ("pneumonia", "PNEUMONIA")[n % 2]} for n in range(30)),
        *({"label": "pnuemonia"} for _ in range(31)),
        *({"label": ""} for _ in range(32)),
    ]
    seen = np.ones(len(rows), bool)
    set_up_logging()
    (asked,) = questions(entries_of(tmp_path, rows), seen)
    assert asked.name == "here: normal / pneumonia" and (~asked.positive).sum() == 30
    said = " ".join(capsys.readouterr().err.split())
    assert "pnuemonia (31 films of here" in said and "(empty) (32 films" in said
    own = read_entries(tmp_path, known=["Pnuemonia"])
    assert "here: normal / pnuemonia" in [q.name for q in questions(own, seen)]
