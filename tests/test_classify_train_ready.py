"""Every training of a classifier sees before its first epoch that its end can be reached."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from classify.films import ProtocolConfig
from classify.models.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneConfig,
    MemberConfig,
    UnetCbamConfig,
)
from classify.preprocess import PreprocessConfig
from classify.tasks.settings import (
    FinetuneConfig,
    IscoreConfig,
    PhaseConfig,
    PretrainConfig,
    SingleConfig,
    TrainConfig,
)
from classify.train import run_task
from cxr.cli import write_config
from cxr.films_table import read_films_table
from cxr.split import Split
from cxr.training.recipe import OptimConfig

NET = "unet_cbam_small"
OWN = PreprocessConfig(side=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
ONE = OptimConfig("adamw", 1e-3, schedule="constant", epochs=1, patience=0)
EVERY = ("train", "single", "finetune", "pretrain", "iscore_train")
CHOOSING = ("train", "single", "finetune", "iscore_train")  # by an AUC of validation films


@pytest.fixture
def data(phantom_folder: Path, tmp_path: Path) -> Path:
    """A copy of the phantoms with a split in which every part has films of every class."""
    folder = tmp_path / "data"
    shutil.copytree(phantom_folder, folder)
    save_split(folder, lambda number, _: ("train", "train", "val", "test")[number // 6])
    return folder


def save_split(folder: Path, part: Callable[[int, str], str]) -> None:
    rows = read_films_table(folder / "films.csv")
    Split(0, {r.patient_id: part(n, r.sublabel) for n, r in enumerate(rows)}).save(
        folder / "split.json"
    )


def config_of(name: str, folder: Path, out: Path) -> Any:
    split = str(folder / "split.json")
    given: Any = {"data": str(folder), "out": str(out), "sources": (), "batch": 4, "device": "cpu"}
    if name == "train":
        member = MemberConfig("tu-test_efficientnet", "none", decoder_channels=(8, 8, 8, 8))
        return TrainConfig(
            **given,
            targets=("bacterial", "viral"),
            split=split,
            member=member,
            preprocess=PreprocessConfig(side=64),
            phases=(PhaseConfig("hard", "all", ONE),),
        )
    pretraining = PretrainConfig(
        **{**given, "out": str(out) + "_first"},
        split=split,
        preprocess=PreprocessConfig(side=32, mean=(0.5,) * 3, std=(0.5,) * 3),
        net=UnetCbamConfig(NET),
        optim=ONE,
    )
    if name == "pretrain":
        return replace(pretraining, out=str(out))
    given |= {"classes": ("normal", "bacterial", "viral"), "preprocess": OWN, "optim": ONE}
    given |= {"protocol": ProtocolConfig("file", split=split), "choose": "val_auc"}
    if name == "finetune":
        net = BackboneConfig(NET, weights="none")
        return FinetuneConfig(**given, backbone=net, pretraining=pretraining)
    net = BackboneConfig("baseline_cnn", weights="none")
    if name == "single":
        return SingleConfig(**given, backbone=net)
    return IscoreConfig(**{**given, "choose": "val_loss"}, backbone=net)


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a command that must end with 2 before any epoch; returns what it says."""

    def run(name: str, folder: Path, out: Path | None = None, **changes: Any) -> str:
        config = replace(config_of(name, folder, out or tmp_path / "out"), **changes)
        write_config(tmp_path / "config.yaml", config)
        monkeypatch.setattr(pl.Trainer, "fit", lambda *_, **__: pytest.fail("an epoch was begun"))
        assert run_task(name, ["--config", str(tmp_path / "config.yaml")]) == 2
        return " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.parametrize("name", EVERY)
def test_a_missing_film_is_told_with_their_number(name: str, data: Path, refused: Any) -> None:
    for film in sorted((data / "images").iterdir())[1:3]:
        film.unlink()
    said = refused(name, data)
    assert "data and crops must hold the files of all films. 2 of" in said and ".png" in said


@pytest.mark.parametrize("name", EVERY)
def test_films_that_cannot_be_read_are_told_together(name: str, data: Path, refused: Any) -> None:
    films = sorted((data / "images").iterdir())
    for film in (films[0], films[12]):  # of train and of val
        film.write_bytes(b"no picture")
    said = refused(name, data)
    assert "must hold films that can be read. 2 of" in said and "remove their rows" in said


def test_a_film_of_the_tested_part_is_read_before_the_pretraining(data: Path, refused: Any) -> None:
    sorted((data / "images").iterdir())[-1].write_bytes(b"no picture")
    assert "must hold films that can be read. 1 of" in refused("finetune", data)


@pytest.mark.parametrize("name", EVERY)
def test_a_folder_that_cannot_be_written_is_refused(
    name: str, data: Path, tmp_path: Path, refused: Any
) -> None:
    (tmp_path / "file").touch()
    said = refused(name, data, tmp_path / "file/out")
    assert "--out must be a folder that can be written. Got" in said and "Give another one" in said


@pytest.mark.parametrize("name", EVERY)
def test_a_full_disk_is_told_first(
    name: str, data: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1000))
    assert "GB are free" in refused(name, data)


@pytest.mark.parametrize("name", CHOOSING)
def test_validation_films_of_one_class_are_refused(name: str, data: Path, refused: Any) -> None:
    save_split(
        data,
        lambda n, sub: ("train", "test")[n // 12] if sub != "No Finding" or n < 6 else "val",
    )
    said = refused(name, data)
    assert "the part val must hold films of two classes at least" in said and "normal alone" in said


@pytest.mark.parametrize("name", CHOOSING)
def test_training_films_without_a_class_are_refused(name: str, data: Path, refused: Any) -> None:
    save_split(
        data,
        lambda n, sub: "test" if sub == "viral" else ("train", "train", "val", "test")[n // 6],
    )
    said = refused(name, data)
    assert "viral" in said or "class number 2" in said


@pytest.mark.parametrize("name", EVERY)
def test_a_part_without_films_is_refused(name: str, data: Path, refused: Any) -> None:
    save_split(data, lambda n, _: ("train", "test")[n // 12])
    assert "val" in refused(name, data)


def test_a_loss_needs_no_second_class_to_choose_by(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_split(
        data,
        lambda n, sub: ("train", "test")[n // 12] if sub != "No Finding" or n < 6 else "val",
    )
    config = replace(config_of("single", data, tmp_path / "out"), choose="val_loss")
    write_config(tmp_path / "config.yaml", config)
    assert run_task("single", ["--config", str(tmp_path / "config.yaml")]) == 0
