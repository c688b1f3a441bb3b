"""Tables of kept features: cells of one network take it from one training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from classify.films import ProtocolConfig
from classify.models.settings import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from classify.preprocess import PreprocessConfig
from classify.tasks.iscore import SelectConfig
from classify.tasks.settings import IscoreConfig
from classify.tasks.single import SingleModule
from cxr.ledger import Answer, write_answers
from cxr.stats import Figure
from cxr.training.recipe import OptimConfig
from reproducing.cells import Cell, ReproduceConfig
from reproducing.experiment import Measure
from reproducing.layout import number
from reproducing.runners import find_runner, iscore_cell
from reproducing.table import measure_cell


def test_two_cells_of_one_network_train_it_once(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IscoreConfig(
        classes=("normal", "pneumonia"),
        data=str(phantom_folder),
        sources=(),
        batch=8,
        draws=10,
        optim=OptimConfig(rate=1e-3, schedule="constant", epochs=1, patience=0),
        device="cpu",
        protocol=ProtocolConfig(parts={"train": 0.5, "val": 0.25, "test": 0.25}),
        backbone=BackboneConfig("baseline_cnn", weights="none"),
        keep="head",
        preprocess=PreprocessConfig(side=32, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        select=SelectConfig(start=2, subsets=10, permutations=0, counts=(1,)),
        out=str(tmp_path / "cells/a"),
    )
    assert iscore_cell(config) == tmp_path / "cells/a"
    monkeypatch.setattr(SingleModule, "training_step", lambda *_: pytest.fail("trained again"))
    made = iscore_cell(replace(config, keep="iscore", out=str(tmp_path / "cells/b")))
    kept = json.loads((made / "figures.json").read_text())["features.kept"]["value"]
    assert kept in (1, 256)
    (folder,) = [p for p in (tmp_path / "shared").iterdir() if p.is_dir()]
    assert (folder / "single.safetensors").is_file()


def test_the_runner_leaves_the_networks_folder_out_of_a_cells_key() -> None:
    runner = find_runner("iscore")
    assert "trained" in runner.free and runner.config_class is IscoreConfig


def test_a_figure_that_a_cell_does_not_have_is_said_not_to_apply(tmp_path: Path) -> None:
    answers = [Answer(f"f{n}.png", f"p{n}", "toy", "normal", (0.6, 0.4)) for n in range(2)]
    write_answers(tmp_path / "answers.csv", ("normal", "pneumonia"), answers)
    (tmp_path / "result.json").write_text('{"answers": "."}')
    kept = {"features.kept": {"value": 64.0, "low": None, "high": None, "n": 2}}
    (tmp_path / "figures.json").write_text(json.dumps(kept))
    cell = Cell("t", "r", "c", "iscore", "0" * 16, tmp_path, {}, {})
    wanted = [Measure("accuracy"), Measure("features.kept"), Measure("gain.auc")]
    figures, reasons = measure_cell(cell, wanted, ReproduceConfig(("t",), draws=10))
    assert figures["features.kept"] == Figure(64.0, None, None, 2)
    assert figures["accuracy"].value == 1 and figures["gain.auc"] is None
    assert reasons == {"gain.auc": "does not apply"}


def test_a_number_of_features_is_written_as_one() -> None:
    assert number(Figure(64.0, None, None, 9)) == "64"
    assert number(Figure(1.0, None, None, 9)) == "1.000"  # may be a share
