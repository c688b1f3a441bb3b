"""Tiers from members' answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from classify.screening.reading import film_tiers, found_targets, read_tiers, risk_table

TARGETS = ("pneumothorax", "nodule", "cardiomegaly")
TIERS = {"pneumothorax": "critical", "nodule": "urgent"}
NO, YES = [2.0, 0.0, 0.0], [0.0, 2.0, 0.0]


def test_a_film_takes_its_most_pressing_tier() -> None:
    logits = np.array([[YES, YES, NO], [NO, YES, YES], [NO, NO, YES], [NO, NO, NO]])
    assert film_tiers(logits, TARGETS, TIERS) == ["critical", "urgent", "untiered", ""]


def test_a_threshold_on_the_probability_replaces_the_largest_logit() -> None:
    logits = np.array([[[np.log(5.0), np.log(4.0), 0.0]]])  # probabilities 0.5, 0.4, 0.1
    assert not found_targets(logits).any()
    assert found_targets(logits, 0.4 - 1e-9).all()


def test_risk_table_counts_films_by_their_true_tier_and_disease() -> None:
    logits = np.array([[YES, NO, NO], [NO, YES, NO], [NO, NO, NO], [NO, NO, NO]])
    kept = np.array([True, True, False, False])
    truth = [
        frozenset({"pneumothorax", "nodule"}),
        frozenset({"nodule"}),
        frozenset({"nodule"}),
        frozenset[str](),
    ]
    rows = {
        (r.tier, r.disease): (r.films, r.kept, r.found)
        for r in risk_table(logits, kept, truth, TARGETS, TIERS)
    }
    assert rows[("critical", "")] == (1, 1, 1)
    assert rows[("urgent", "")] == (2, 1, 1)
    assert rows[("urgent", "nodule")] == (3, 2, 1)
    assert rows[("untiered", "cardiomegaly")] == (0, 0, 0)


def test_the_thirteen_targets_of_the_thesis_are_in_the_shipped_file(root: Path) -> None:
    tiers = read_tiers(root / "configs/classify/tiers.yaml")
    thesis = {
        "pneumothorax",
        "pneumoperitoneum",
        "mediastinal_widening",
        "pleural_effusion",
        "nodule",
        "consolidation",
        "active_tuberculosis",
        "advanced_tuberculosis",
        "atelectasis",
        "support_device",
        "pleural_calcification",
        "interstitial_opacity",
        "cardiomegaly",
    }
    assert thesis <= set(tiers)
    assert [tiers[t] for t in ("pneumothorax", "nodule", "atelectasis", "cardiomegaly")] == [
        "critical",
        "urgent",
        "non_urgent",
        "untiered",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tiers: [a]", "must hold `tiers:`"),
        ("tiers: {soon: [a]}", "Got 'soon'"),
        ("tiers: {critical: [a], urgent: [a]}", "must be in one tier"),
    ],
)
def test_a_wrong_tiers_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_tiers(tmp_path / "t.yaml")
