"""classify/finetune.py: pretraining and training by one configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from classify.augment import GenesisConfig
from classify.ensemble import load_pretrained, load_single
from classify.films import ProtocolConfig
from classify.finetune import main
from classify.models.settings import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig, UnetCbamConfig
from classify.preprocess import PreprocessConfig
from classify.tasks.restore import PretrainModule
from classify.tasks.settings import FinetuneConfig, PretrainConfig
from classify.tasks.single import finetune
from cxr.cli import write_config
from cxr.films_table import read_films_table
from cxr.ledger import read_answers
from cxr.split import make_split
from cxr.training.recipe import OptimConfig

OPTIM = OptimConfig("adamw", 1e-3, schedule="constant", epochs=1, patience=0)
NAME = "unet_cbam_small"


@pytest.fixture(scope="module")
def config(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    folder = tmp_path_factory.mktemp("finetune")
    rows = read_films_table(phantom_folder / "films.csv")
    parts = {"train": 0.5, "val": 0.25, "test": 0.25}
    split = make_split([r.patient_id for r in rows], [r.sublabel for r in rows], parts)
    split.save(folder / "split.json")
    own = PreprocessConfig(side=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    return FinetuneConfig(
        classes=("normal", "bacterial", "viral"),
        data=str(phantom_folder),
        sources=(),
        protocol=ProtocolConfig("file", split=str(folder / "split.json")),
        batch=4,
        device="cpu",
        backbone=BackboneConfig(NAME, weights="none"),
        optim=OPTIM,
        draws=20,
        preprocess=PreprocessConfig(side=32, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        pretraining=PretrainConfig(
            out=str(folder / "pretrain"),
            preprocess=own,
            net=UnetCbamConfig(NAME),
            optim=OPTIM,
            batch=4,
            genesis=GenesisConfig(shuffle_windows=20),
        ),
    )


def test_the_network_starts_from_the_pretrained_encoder(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    still = replace(OPTIM, rate=1e-12)  # what it starts from is what it ends with
    out = finetune(replace(config, out=str(tmp_path / "a"), optim=still))
    net = load_single(out / "single.safetensors").net
    encoder = load_pretrained(Path(config.pretraining.out) / "pretrained.safetensors").net.encoder
    ours, theirs = net.body.state_dict(), encoder.state_dict()  # type: ignore[union-attr]
    assert all(torch.allclose(ours[k], v, atol=2e-3) for k, v in theirs.items())
    assert len(read_answers(out / "answers.csv")[1]) == 6


def test_a_finished_pretraining_is_not_done_again(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(replace(config, out=str(tmp_path / "a")))
    monkeypatch.setattr(PretrainModule, "training_step", lambda *_: pytest.fail("trained again"))
    finetune(replace(config, out=str(tmp_path / "b"), batch=3))


def test_own_weights_need_no_pretraining(config: FinetuneConfig, tmp_path: Path) -> None:
    nowhere = replace(config.pretraining, out=str(tmp_path / "none"))
    finetune(replace(config, out=str(tmp_path / "a"), start="own", pretraining=nowhere))
    assert not (tmp_path / "none").exists()


def test_the_pretraining_has_this_trainings_films_and_split(config: FinetuneConfig) -> None:
    before = replace(config, data="films", crops="crops", workers=2).to_pretraining()
    assert (before.data, before.crops, before.workers) == ("films", "crops", 2)
    assert before.split == config.protocol.split


def test_a_split_of_its_own_would_test_pretrained_films(config: FinetuneConfig) -> None:
    with pytest.raises(ValueError, match=r"protocol\.kind must be file.*Got 'pooled'"):
        replace(config, protocol=ProtocolConfig())


def test_another_network_than_the_pretrained_one_is_refused(config: FinetuneConfig) -> None:
    with pytest.raises(ValueError, match=f"the network that is pretrained, {NAME}. Got 'backbone"):
        replace(config, backbone=BackboneConfig("baseline_cnn", weights="none"))


def test_films_must_be_prepared_alike(config: FinetuneConfig) -> None:
    with pytest.raises(ValueError, match=r"preprocess must be that of pretraining.*others of side"):
        replace(config, preprocess=replace(config.preprocess, side=64))


def test_the_command_trains_and_names_what_is_wrong(config: FinetuneConfig, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    write_config(path, replace(config, out=str(tmp_path / "a"), start="own"))
    assert main(["--config", str(path)]) == 0
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["films"]["test"]
    assert main(["--config", str(path), "--data", str(tmp_path / "none")]) == 2
