"""python -m detect.train end to end on synthetic films, and the parts of it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cxr.bundle import load_bundle
from cxr.coco import read_coco, write_coco
from cxr.film import read_film
from cxr.split import make_split
from cxr.training.recipe import OptimConfig
from detect.dataset import DetectorModule
from detect.predict import ThoraxDetector
from detect.train import main, pick_scores

SMALL = shlex.split(
    "--model.backbone test_efficientnet --model.side 64 --model.fpn_channels 16 "
    "--model.head_channels 16 --augment affine --batch 4 --accelerator cpu --picture_every 1"
)


@pytest.fixture(scope="module")
def run(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "run"
    code = main([*SMALL, "--data.data", str(phantom_folder), "--out", str(out), "--epochs", "1"])
    assert code == 0
    return out


def test_the_folder_holds_what_a_reader_needs(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert {
        "run.json",
        "run.log",
        "history.json",
        "curves.png",
        "val_boxes.png",
        "split.json",
        "thresholds.json",
        "thorax.safetensors",
        "tensorboard",
        "checkpoints",
    } <= names
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["model"]["side"] == 64 and record["versions"]["torch"]
    assert any((run / "tensorboard").iterdir())


def test_the_bundle_predicts(run: Path, phantom_folder: Path) -> None:
    detector = ThoraxDetector.load(run / "thorax.safetensors", device="cpu")
    film = read_film(phantom_folder / "images/film00.png")
    found = detector.detect([film.pixels])[0]
    assert found.boxes_xyxy.shape[1] == 4
    meta = load_bundle(run / "thorax.safetensors", "thorax").meta
    assert meta["trained_on"]["films"] + meta["trained_on"]["val_films"] == 24
    assert 0 <= meta["operating_point"]["reject_score"] <= meta["operating_point"]["ok_score"] <= 1


def test_a_stopped_run_goes_on(run: Path, phantom_folder: Path) -> None:
    before = json.loads((run / "history.json").read_text())
    args = [*SMALL, "--data.data", str(phantom_folder), "--out", str(run), "--epochs", "2"]
    assert main(args) == 0
    after = json.loads((run / "history.json").read_text())
    assert [r["epoch"] for r in after] == [0, 1] and after[:1] == before


def test_another_training_in_the_folder_is_refused_and_leaves_it_as_it_is(
    run: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (run / name).read_bytes() for name in ("run.json", "split.json")}
    args = [*SMALL, "--data.data", str(phantom_folder), "--out", str(run), "--epochs", "1"]
    assert main([*args, "--optimiser.rate", "0.1", "--seed", "1"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "other settings (optimiser.rate, seed). Give another --out, or --restart" in said
    assert before == {name: (run / name).read_bytes() for name in before}


def test_the_seed_is_of_everything_random(run: Path, phantom_folder: Path, tmp_path: Path) -> None:
    args = [*SMALL, "--data.data", str(phantom_folder), "--out", str(tmp_path), "--epochs", "1"]
    torch.manual_seed(7)  # what came before must not matter
    assert main(args) == 0
    first, again = (json.loads((f / "history.json").read_text())[0] for f in (run, tmp_path))
    assert again == first and len([k for k in again if k.startswith("train/")]) == 4


def test_wrong_data_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--data.data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(args) == 2
    assert "annotations must be COCO files" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("part", ["train", "val"])
def test_part_without_a_box_is_refused_before_the_first_epoch(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    films = read_coco(phantom_folder / "thorax.json")
    split = make_split([f.patient_id for f in films.films], [""] * 24, {"train": 0.5, "val": 0.5})
    split.save(tmp_path / "split.json")
    bare = [
        replace(f, boxes_xyxy=f.boxes_xyxy[:0], labels=(), notes=())
        if split.part_of[f.patient_id] == part
        else f
        for f in films.films
    ]
    write_coco(tmp_path / "boxes.json", replace(films, films=bare))
    args = [*SMALL, "--data.data", str(phantom_folder), "--out", str(tmp_path / "run")]
    args += ["--data.annotations", str(tmp_path / "boxes.json")]
    assert main([*args, "--data.split", str(tmp_path / "split.json")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"part {part} of the split must hold a film with a box" in said
    assert not (tmp_path / "run/recipe.json").exists()  # mended data may use the folder


@pytest.mark.parametrize("flag", ["--optimiser.name=lion", "--epochs=many", "--colour=red"])
def test_wrong_flags_are_exit_code_2(flag: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([flag])
    assert stop.value.code == 2


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "example:" in text and "configs/detect/" in text


class ConstantLoss(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))

    def forward(self, images: object, targets: object) -> dict[str, torch.Tensor]:
        return {"loss_box_reg": self.weight * 1.0}


def test_a_loss_that_is_not_finite_stops_the_run_with_its_terms() -> None:
    module = DetectorModule(ConstantLoss(float("nan")), OptimConfig())
    with pytest.raises(FloatingPointError, match="loss_box_reg nan"):
        module.training_step(([torch.zeros(3, 4, 4)], [{}]), 0)


def test_a_missed_film_counts_as_0_in_the_validation_iou() -> None:
    class Finds(nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            hit = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "scores": torch.tensor([0.9])}
            miss = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
            return [hit, miss]

    module = DetectorModule(Finds(), OptimConfig())
    truth = {"boxes": torch.tensor([[0.0, 0, 10, 20]])}
    module.validation_step(([torch.zeros(3, 4, 4)] * 2, [truth, truth]), 0)
    assert module.seen["iou"] == [0.5, 0.0]


def test_thresholds_part_chests_from_the_rest() -> None:
    chests = np.array([0.8, 0.9, 0.95, 0.99])
    reject, ok = pick_scores(chests, np.array([0.1, 0.2]))
    assert reject == pytest.approx(0.5) and ok == pytest.approx(np.percentile(chests, 2), abs=1e-3)


def test_where_every_chest_is_sure_the_bar_is_not_raised_to_rounding() -> None:
    assert pick_scores(np.array([0.9991, 0.9995, 1.0]), np.array([0.2]))[1] == 0.9


def test_where_groups_overlap_few_chests_are_refused() -> None:
    chests = np.concatenate([[0.05], np.linspace(0.7, 0.99, 99)])
    reject, _ = pick_scores(chests, np.array([0.1, 0.2, 0.3]))
    assert 0.3 < reject <= np.percentile(chests, 2)


def test_a_film_of_another_aspect_than_annotated_ends_the_run(
    phantom_folder: Path, tmp_path: Path
) -> None:
    text = (phantom_folder / "thorax.json").read_text().replace('"height": 160', '"height": 180')
    (tmp_path / "boxes.json").write_text(text)
    args = ["--data.data", str(phantom_folder), "--data.annotations", str(tmp_path / "boxes.json")]
    assert main([*SMALL, *args, "--out", str(tmp_path / "run")]) == 2
    said = (tmp_path / "run/run.log").read_text()
    assert "140 × 180 px, or be a scaled copy of it. Got 140 × 160 px" in said
