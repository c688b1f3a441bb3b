"""classify/train.py: what the thesis' studies change: decoder, classes, diseases held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from classify.ensemble import Ensemble
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig
from classify.tasks.member import load_cases, train_ensemble
from classify.tasks.settings import PhaseConfig, TrainConfig
from cxr.bundle import load_bundle
from cxr.films_table import has_disease, read_films_table
from cxr.split import make_split
from cxr.training.optim import OptimConfig


@pytest.fixture(scope="module")
def config(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    rows = read_films_table(phantom_folder / "films.csv")
    split = tmp_path_factory.mktemp("split") / "split.json"
    parts = {"train": 0.5, "val": 0.25, "test": 0.25}
    make_split([r.patient_id for r in rows], [r.sublabel for r in rows], parts).save(split)
    return TrainConfig(
        targets=("bacterial",),
        data=str(phantom_folder),
        split=str(split),
        sources=(),
        preprocess=PreprocessConfig(side=32),
        batch=4,
        device="cpu",
        draws=20,
        member=MemberConfig("tu-test_efficientnet", "none", decoder_channels=(8, 8, 8, 8)),
        phases=(PhaseConfig("hard", "all", OptimConfig("adamw", 1e-3, epochs=1)),),
    )


@pytest.mark.parametrize(
    ("classes", "names"), [("normal", ["normal", "abnormal"]), ("target", ["rest", "bacterial"])]
)
def test_a_member_of_two_classes_says_so(
    config: TrainConfig, tmp_path: Path, classes: str, names: list[str]
) -> None:
    record = train_ensemble(replace(config, out=str(tmp_path), classes=classes))["bacterial"]
    assert list(record["films"]["bacterial"]["train"]) == names
    bundle = load_bundle(tmp_path / "bacterial.safetensors", "member")
    assert bundle.meta["classes"] == names
    assert bundle.tensors["fc.weight"].shape[0] == 2


def test_a_decoder_may_learn_to_segment(config: TrainConfig, tmp_path: Path) -> None:
    train_ensemble(replace(config, out=str(tmp_path), decoder="segmentation"))
    assert (tmp_path / "bacterial" / "restored.png").is_file()


def test_films_may_be_decoded_to_a_folder_that_trainings_share(
    config: TrainConfig, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    train_ensemble(replace(config, out=str(tmp_path / "a"), decoder="none", cache=str(cache)))
    assert list(cache.glob("*.images.npy"))
    assert not (tmp_path / "a" / "cache").exists()


def test_no_training_or_validation_film_has_a_held_out_disease(config: TrainConfig) -> None:
    cases, parts = load_cases(replace(config, unseen=("viral",)))
    viral = {i for i, case in enumerate(cases) if has_disease(case.row, ("viral",))}
    assert not viral & {*parts["train"], *parts["val"]}
    assert viral & set(parts["test"])
    assert parts["test"] == load_cases(config)[1]["test"]


def test_a_disease_that_no_film_has_cannot_be_held_out(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"unseen must stand in .* 'gout'"):
        load_cases(replace(config, unseen=("gout",)))


def test_one_network_may_be_trained_for_all_targets(config: TrainConfig, tmp_path: Path) -> None:
    both = replace(config, out=str(tmp_path), targets=("bacterial", "viral"), shared=True)
    record = train_ensemble(both)["members"]
    assert set(record["figures"]["val"]) == set(record["films"]) == {"bacterial", "viral"}
    assert (tmp_path / "members" / "restored_viral.png").is_file()
    bundle = load_bundle(tmp_path / "members.safetensors", "member")
    assert bundle.meta["targets"] == ["bacterial", "viral"]
    assert bundle.tensors["fc.weight"].shape[0] == 6
    assert Ensemble.load(tmp_path, "cpu").targets == ("bacterial", "viral")
