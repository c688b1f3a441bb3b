"""python -m detect.film_class end to end on synthetic films: train, answer, resume, reuse."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect.film_class as command
from cxr.bundle import load_bundle
from cxr.cli import from_plain, to_plain
from cxr.ledger import read_answers
from cxr.manifest import read_manifest
from cxr.rules import RefusedError
from cxr.training.recipe import OptimConfig
from detect import crop
from detect.dataset import FilmClassModule
from detect.film_class import FilmClassConfig, main, train_film_class

CLASSES = ("normal", "pneumonia", "no box")


def settings(data: Path, out: Path) -> FilmClassConfig:
    plain = {
        "out": str(out),
        "data": {"data": str(data), "parts": {"train": 0.5, "val": 0.25, "test": 0.25}},
        "model": {
            "backbone": "test_efficientnet",
            "side": 64,
            "fpn_channels": 16,
            "head_channels": 16,
        },
        "epochs": 2,
        "batch": 4,
        "accelerator": "cpu",
        "picture_every": 0,
        "augment": "none",
        "ema": 0.0,
    }
    return from_plain(FilmClassConfig, plain)


@pytest.fixture(scope="module")
def run(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_film_class(settings(phantom_folder, tmp_path_factory.mktemp("two") / "run"))


def test_the_answers_are_those_of_the_test_films(run: Path) -> None:
    classes, answers = read_answers(run / "answers.csv")
    part_of = json.loads((run / "split.json").read_text())["part_of"]
    tested = {patient for patient, part in part_of.items() if part == "test"}
    assert classes == CLASSES
    assert {a.patient for a in answers} == tested
    assert {a.truth for a in answers} <= {"normal", "pneumonia"}


def test_the_figures_are_those_of_the_answers(run: Path) -> None:
    classes, answers = read_answers(run / "answers.csv")
    figures = json.loads((run / "metrics.json").read_text())
    right = sum(classes[int(np.argmax(a.scores))] == a.truth for a in answers)
    assert figures["accuracy"] == pytest.approx(right / len(answers))
    assert figures["part"] == "test" and not figures["chosen_on_answered"]
    assert figures["provenance"]["weights"]["thorax.safetensors"]
    assert np.sum(figures["confusion"]["films"]) == len(answers)


def test_each_film_has_its_boxes(run: Path) -> None:
    table = json.loads((run / "boxes.json").read_text())
    _, answers = read_answers(run / "answers.csv")
    assert [row["film"] for row in table["films"]] == [a.film for a in answers]
    for row in table["films"]:
        assert row["size_hw"] == [160, 140] and len(row["truth_xyxy"]) == 4
        assert (row["box_xyxy"] is None) == (row["class"] == "no box")
        assert 0 <= row["iou"] <= 1


@pytest.mark.parametrize("name", ["confusion.png", "predictions.png"])
def test_the_pictures_can_be_opened(run: Path, name: str) -> None:
    picture = cv2.imread(str(run / name))
    assert picture is not None and min(picture.shape[:2]) > 100


def test_the_bundle_stays_and_the_checkpoints_go(run: Path) -> None:
    assert load_bundle(run / "thorax.safetensors", "thorax").meta["metrics"]["val_share"] >= 0
    assert not (run / "checkpoints").exists()


def test_a_finished_folder_is_not_done_again(
    run: Path, phantom_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "train", None)
    before = (run / "metrics.json").read_bytes()
    assert train_film_class(settings(phantom_folder, run)) == run
    assert (run / "metrics.json").read_bytes() == before


def test_a_folder_of_other_settings_is_refused(run: Path, phantom_folder: Path) -> None:
    other = replace(settings(phantom_folder, run), seed=1, workers=0, picture_every=3)
    with pytest.raises(RefusedError, match=r"begun with other settings \(seed\)\. .*--restart"):
        train_film_class(other)


def test_a_run_killed_while_answering_does_not_train_again(
    run: Path, phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    for name in ("done.json", "answers.csv", "metrics.json"):
        (out / name).unlink()
    monkeypatch.setattr(command, "train", None)
    train_film_class(settings(phantom_folder, out))
    assert (out / "answers.csv").read_bytes() == (run / "answers.csv").read_bytes()


def test_a_killed_training_goes_on_at_its_last_epoch(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(phantom_folder, tmp_path / "run")
    step, first = FilmClassModule.training_step, config.out

    def killed(self: FilmClassModule, batch: object, index: int) -> torch.Tensor:
        if self.current_epoch == 1:
            raise KeyboardInterrupt(first)
        return step(self, batch, index)  # type: ignore[arg-type]

    monkeypatch.setattr(FilmClassModule, "training_step", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_film_class(config)
    begun = json.loads((tmp_path / "run/history.json").read_text())
    monkeypatch.setattr(FilmClassModule, "training_step", step)
    train_film_class(config)
    rows = json.loads((tmp_path / "run/history.json").read_text())
    assert [r["epoch"] for r in begun] == [0]
    assert [r["epoch"] for r in rows] == [0, 1] and rows[0] == begun[0]


def test_a_bundle_trained_before_answers_without_a_training(
    run: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    config = replace(settings(phantom_folder, tmp_path), weights=str(run / "thorax.safetensors"))
    train_film_class(config)
    assert (tmp_path / "answers.csv").read_bytes() == (run / "answers.csv").read_bytes()
    assert not (tmp_path / "thorax.safetensors").exists()


def test_without_a_test_part_the_validation_films_are_answered_and_that_is_said(
    run: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    config = settings(phantom_folder, tmp_path)
    data = replace(config.data, parts={"train": 0.5, "val": 0.5})
    train_film_class(replace(config, data=data, weights=str(run / "thorax.safetensors")))
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["part"] == "val" and figures["chosen_on_answered"]


def test_a_training_without_films_of_a_class_is_refused(
    phantom_folder: Path, tmp_path: Path
) -> None:
    config = settings(phantom_folder, tmp_path)
    data = replace(config.data, max_films=1)
    with pytest.raises(RefusedError, match=r"each class. Got none of .* data.per_label"):
        train_film_class(replace(config, data=data))


def test_settings_survive_the_way_through_plain_values(tmp_path: Path) -> None:
    config = settings(tmp_path, tmp_path)
    assert config.data.class_from == "label" and config.model.classes == ["normal", "pneumonia"]
    assert from_plain(FilmClassConfig, to_plain(config)) == config


@pytest.mark.parametrize(
    "flag",
    ["--model.classes=[normal]", "--model.classes=[normal,no box]", "--model.box_rule=union"],
)
def test_wrong_flags_are_exit_code_2(flag: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([flag])
    assert stop.value.code == 2


def test_wrong_data_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data.data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "annotations must be COCO files" in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_films_is_answered_and_bad_films_keep_their_row(
    run: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    shutil.copy(phantom_folder / "images/film00.png", films)
    (films / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    weights = str(run / "thorax.safetensors")
    args = ["--films", str(films), "--weights", weights, "--accelerator", "cpu"]
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out/film_classes.csv").open(newline="") as file:
        good, torn = csv.DictReader(file)
    assert good["class"] in CLASSES and good["status"] != "unreadable"
    assert sum(float(good[f"score.{name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-5)
    assert torn["status"] == "unreadable" and torn["reason"] and not torn["class"]
    assert cv2.imread(str(tmp_path / "out/film_classes.png")) is not None


def test_a_folder_needs_weights_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--films", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no such weights" in " ".join(capsys.readouterr().err.split())


def test_a_bundle_of_two_classes_crops_films(
    run: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    args = [str(phantom_folder / "images"), "--weights", str(run / "thorax.safetensors")]
    assert crop.main([*args, "--out", str(tmp_path), "--device", "cpu", "--jobs", "0"]) == 0
    _, rows = read_manifest(tmp_path / "manifest.jsonl")
    assert len(rows) == 24 and {r.status for r in rows} <= {"ok", "fallback", "no_thorax"}


def test_validation_counts_the_share_of_the_true_class() -> None:
    module = FilmClassModule(torch.nn.Identity(), OptimConfig())
    box = torch.tensor([[0.0, 0, 10, 10]])
    target = {"boxes": box, "labels": torch.tensor([2])}
    both = {
        "boxes": box.repeat(2, 1),
        "scores": torch.tensor([0.6, 0.2]),
        "labels": torch.tensor([2, 1]),
    }
    none = {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0, dtype=torch.int64),
    }
    module.measure(both, target)
    module.measure(none, target)
    assert module.seen == {
        "share": pytest.approx([0.75, 0.0]),
        "right": [True, False],
        "iou": [1.0, 0.0],
    }
