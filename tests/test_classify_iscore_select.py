"""From pooled maps to a regression on the kept features: who chooses, who only reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from saliency_nets import state_of
from sklearn.linear_model import LogisticRegression

from classify.models.backbones import build_backbone
from classify.models.settings import BackboneConfig
from classify.tasks.iscore import SelectConfig
from classify.tasks.select import (
    Part,
    Selection,
    patients_permuted,
    pooled_features,
    select_features,
    write_selection,
)
from cxr.stats import macro_auc

QUICK = SelectConfig(start=4, subsets=150, permutations=5, draws=60)
TOLD = (5, 11)  # the features that tell the classes apart
CLASSES = ("normal", "pneumonia")


def part(name: str, films: int, seed: int, features: int = 16) -> Part:
    """Two films a patient; two features rise with the label, the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.permutation(films // 2) % 2, 2)
    values = rng.normal(size=(films, features))
    values[:, TOLD] += 1.5 * labels[:, None]
    return Part(values, labels, tuple(f"{name}{i // 2}" for i in range(films)))


@pytest.fixture(scope="module")
def chosen() -> Selection:
    return select_features(part("a", 160, 0), part("b", 60, 1), part("c", 80, 2), CLASSES, QUICK)


def test_pooled_features_are_what_the_head_gets_and_leave_the_net_alone() -> None:
    net = build_backbone(BackboneConfig("baseline_cnn", weights="none")).train()
    batch = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = state_of(net)
    found = pooled_features(net, [batch[:2], batch[2:]])
    assert state_of(net) == before
    assert found.shape == (3, 256) and found.dtype == np.float32
    with torch.inference_mode():
        logits = net.eval()(batch)
    assert np.allclose(net.head(torch.from_numpy(found)).detach(), logits, atol=1e-5)


def test_the_features_that_tell_come_first_and_every_feature_once(chosen: Selection) -> None:
    assert set(chosen.order[:2]) == set(TOLD)
    assert sorted(chosen.order) == list(range(16))


def test_the_number_is_the_validation_films_choice(chosen: Selection) -> None:
    own = [p for p in chosen.points if p.order == "i_score"]
    assert [p.kept for p in own] == [1, 2, 4, 8, 16]
    best = max(p.validation_auc for p in own)
    assert chosen.kept == min(p.kept for p in own if p.validation_auc == best)


def test_the_test_films_change_no_choice(chosen: Selection) -> None:
    other = part("c", 80, 9)
    other = Part(other.features[:, ::-1], 1 - other.labels, other.patients)  # as bad as can be
    again = select_features(part("a", 160, 0), part("b", 60, 1), other, CLASSES, QUICK)
    assert again.order == chosen.order and again.kept == chosen.kept
    assert again.report.macro_auc.value < chosen.report.macro_auc.value


def test_the_regression_is_scikit_learns_on_standardised_training_films(chosen: Selection) -> None:
    train, test = part("a", 160, 0), part("c", 80, 2)
    kept = list(chosen.order[: chosen.kept])
    mean, scale = train.features[:, kept].mean(0), train.features[:, kept].std(0)
    model = LogisticRegression(C=1.0, max_iter=5000)
    model.fit((train.features[:, kept] - mean) / scale, train.labels)
    plain = model.predict_proba((test.features[:, kept] - mean) / scale)
    assert np.allclose(chosen.scores, plain, atol=1e-6)
    assert chosen.report.macro_auc.value == pytest.approx(macro_auc(plain, test.labels))


def test_the_gain_is_the_chosen_auc_less_that_of_all_features(chosen: Selection) -> None:
    test = {p.kept: p.test_auc.value for p in chosen.points if p.order == "i_score"}
    assert chosen.gain.value == pytest.approx(test[chosen.kept] - test[16])
    assert chosen.gain.low <= chosen.gain.value <= chosen.gain.high


def test_sets_that_tell_score_above_what_chance_gives(chosen: Selection) -> None:
    assert chosen.chance is not None
    above = [m for m in chosen.modules if m.score > chosen.chance]
    assert above and all(set(m.features) & set(TOLD) for m in above)


def test_noise_scores_no_higher_than_chance() -> None:
    rng = np.random.default_rng(3)
    parts = [
        Part(rng.normal(size=(80, 12)), np.arange(80) % 2, tuple(f"{n}{i}" for i in range(80)))
        for n in "abc"
    ]
    config = replace(QUICK, permutations=20)
    found = select_features(*parts, CLASSES, config).to_dict()
    assert found["sets_above_chance"] == 0


def test_three_classes_and_a_feature_without_any_spread() -> None:
    def three(name: str, seed: int) -> Part:
        rng = np.random.default_rng(seed)
        labels = np.arange(60) % 3
        values = rng.normal(size=(60, 6))
        values[:, 2] += 2 * labels
        values[:, 4] = 1.0
        return Part(values, labels, tuple(f"{name}{i}" for i in range(60)))

    parts = [three(name, seed) for seed, name in enumerate("abc")]
    found = select_features(*parts, ("normal", "bacterial", "viral"), QUICK)
    assert found.order[0] == 2 and found.order[-1] == 4
    assert found.scores.shape == (60, 3) and np.allclose(found.scores.sum(1), 1)


def test_labels_dealt_out_anew_stay_with_their_patient() -> None:
    patients = [f"p{i // 3}" for i in range(30)]
    labels = np.repeat(np.arange(10) % 2, 3)
    dealt = labels[patients_permuted(patients, np.random.default_rng(0))]
    assert sorted(dealt) == sorted(labels) and not np.array_equal(dealt, labels)
    assert all(len(set(dealt[i : i + 3])) == 1 for i in range(0, 30, 3))


def test_what_was_chosen_is_written(chosen: Selection, tmp_path: Path) -> None:
    write_selection(tmp_path, chosen)
    record = json.loads((tmp_path / "iscore.json").read_text())
    assert record["features"] == list(chosen.order[: chosen.kept])
    assert record["test"]["films"] == 80 and len(record["points"]) == 15
    assert (tmp_path / "iscore.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"split": "thirds"}, "split"),
        ({"start": 15}, "start"),
        ({"counts": (0,)}, "counts"),
        ({"penalty": 0.0}, "penalty"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SelectConfig(**wrong)
