"""classify/tasks/single.py: whole trainings of a tiny network on phantoms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from classify.ensemble import load_single
from classify.films import ProtocolConfig
from classify.models.settings import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig, FusionConfig
from classify.preprocess import PreprocessConfig
from classify.tasks.settings import SingleConfig
from classify.tasks.single import SingleModule, report_of, train_single
from cxr.ledger import read_answers
from cxr.training.recipe import OptimConfig

CLASSES = ("normal", "bacterial", "viral")
OPTIM = OptimConfig(
    rate=3e-3, weight_decay=0.0, encoder_rate=0.5, schedule="constant", epochs=3, patience=0
)


@pytest.fixture(scope="module")
def config(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SingleConfig:
    return SingleConfig(
        classes=CLASSES,
        data=str(phantom_folder),
        sources=(),
        optim=OPTIM,
        batch=4,
        device="cpu",
        cache=str(tmp_path_factory.mktemp("cache")),
        draws=20,
        protocol=ProtocolConfig(parts={"train": 0.5, "val": 0.25, "test": 0.25}),
        backbone=BackboneConfig("baseline_cnn", weights="none"),
        preprocess=PreprocessConfig(side=32, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    )


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SingleModule, "training_step", lambda *_: pytest.fail("trained again"))


def test_a_training_leaves_its_answers_figures_and_bundle(
    config: SingleConfig, tmp_path: Path
) -> None:
    config = replace(config, out=str(tmp_path), augment="rotate", copies=2, balance="weights")
    assert train_single(config) == tmp_path
    classes, answers = read_answers(tmp_path / "answers.csv")
    assert classes == CLASSES
    assert len(answers) == 6
    metrics = read(tmp_path / "metrics.json")
    assert metrics["films"]["train"] == {"normal": 4, "bacterial": 4, "viral": 4}
    assert metrics["patients"] == {"train": 6, "val": 3, "test": 3}
    assert metrics["pictures_an_epoch"] == 24
    assert list(metrics["figures"]) == ["val", "test"]  # those of the training part: never
    again = report_of(classes, answers, draws=20).to_dict()
    assert metrics["figures"]["test"] == json.loads(json.dumps(again))
    for name in ("curves.png", "confusion.png", "answers_val.csv", "run.json"):
        assert (tmp_path / name).stat().st_size > 0
    assert not list(tmp_path.glob("*.ckpt"))
    single = load_single(tmp_path / "single.safetensors")
    assert single.meta["licence_note"] == "trained on films under: CC BY 4.0"
    assert single.meta["training"]["protocol"] == "pooled"


def test_a_killed_training_goes_on_and_a_finished_one_is_loaded(
    config: SingleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, out=str(tmp_path), bundle=False)
    whole = SingleModule.training_step

    def killed(self: SingleModule, batch: dict, index: int) -> torch.Tensor:
        if self.current_epoch == 2:
            raise RuntimeError("killed")
        return whole(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(SingleModule, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train_single(config)
    assert not (tmp_path / "answers.csv").exists()
    train_single(config)
    assert [row["epoch"] for row in json.loads((tmp_path / "history.json").read_text())] == [
        0,
        1,
        2,
    ]
    assert not (tmp_path / "single.safetensors").exists()

    forbid(monkeypatch)
    answers = (tmp_path / "answers.csv").read_bytes()
    train_single(replace(config, draws=7))
    assert (tmp_path / "answers.csv").read_bytes() == answers
    with pytest.raises(ValueError, match=r"other settings \(films, max_films, seed\)"):
        train_single(replace(config, seed=1, max_films=18))


@pytest.mark.parametrize(("choose", "kept"), [("val_loss", 1), ("val_auc", 0)])
def test_answers_come_from_the_epoch_that_is_kept(
    config: SingleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choose: str, kept: int
) -> None:
    # the encoder stands still and the last bias is set: epoch 0 answers normal, 1 bacterial …
    def step(self: SingleModule, batch: dict, index: int) -> torch.Tensor:
        with torch.no_grad():
            self.model.head[-1].bias.zero_()
            self.model.head[-1].bias[self.current_epoch] = 1e4
        return 0 * self.losses(batch)[0]["loss"]

    losses, aucs = iter([3.0, 1.0, 2.0]), iter([0.9, 0.5, 0.4])
    whole = SingleModule.validation_step

    def validate(self: SingleModule, batch: dict, index: int) -> None:
        whole(self, batch, index)
        self._sums["val.loss"] = torch.tensor(next(losses)) * self._sums["val.n"]

    monkeypatch.setattr(SingleModule, "training_step", step)
    monkeypatch.setattr(SingleModule, "validation_step", validate)
    monkeypatch.setattr("cxr.training.learner.macro_auc", lambda *_: next(aucs))
    train_single(replace(config, out=str(tmp_path), choose=choose))
    assert read(tmp_path / "metrics.json")["kept_epoch"] == kept + 1
    _, answers = read_answers(tmp_path / "answers.csv")
    assert {answer.scores.index(max(answer.scores)) for answer in answers} == {kept}


def test_folds_test_each_film_once_and_are_pooled(
    config: SingleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = replace(OPTIM, epochs=1)
    config = replace(
        config, out=str(tmp_path), optim=optim, protocol=ProtocolConfig("folds", folds=4)
    )
    train_single(config)
    _, answers = read_answers(tmp_path / "answers.csv")
    assert len({answer.film for answer in answers}) == len(answers) == 24
    metrics = read(tmp_path / "metrics.json")
    assert metrics["figures"]["test"]["films"] == 24
    assert len(metrics["folds"]) == 4
    for k in range(4):
        assert (tmp_path / f"fold{k}" / "single.safetensors").exists()

    forbid(monkeypatch)  # a table killed between the folds' end and the pooling
    (tmp_path / "done.json").unlink()
    train_single(config)
    assert read_answers(tmp_path / "answers.csv")[1] == answers


def test_a_fusion_is_trained_by_the_same_road(config: SingleConfig, tmp_path: Path) -> None:
    fusion = FusionConfig("2fc", ("baseline_cnn",), weights="none")
    config = replace(
        config,
        out=str(tmp_path),
        kind="fusion",
        fusion=fusion,
        classes=("normal", "pneumonia"),
        balance="oversample",
        optim=replace(OPTIM, epochs=1, optimizer="sgd"),
    )
    train_single(config)
    metrics = read(tmp_path / "metrics.json")
    assert metrics["films"]["train"] == {"normal": 4, "pneumonia": 8}
    assert metrics["pictures_an_epoch"] == 16
    assert load_single(tmp_path / "single.safetensors").meta["family"] == "fusion"


def test_a_bright_patch_is_learnt(config: SingleConfig, tmp_path: Path) -> None:
    optim = replace(OPTIM, epochs=8)
    train_single(replace(config, out=str(tmp_path), optim=optim))
    losses = [row["train_loss"] for row in json.loads((tmp_path / "history.json").read_text())]
    assert min(losses[-3:]) < 0.6 * losses[0]
