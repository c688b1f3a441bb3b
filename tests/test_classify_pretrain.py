"""classify/pretrain.py: whole pretrainings of a tiny network on phantoms."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch

from classify.augment import GenesisConfig
from classify.ensemble import load_pretrained
from classify.models.settings import UnetCbamConfig
from classify.preprocess import PreprocessConfig
from classify.pretrain import main
from classify.tasks.restore import PretrainModule, load_films, pretrain
from classify.tasks.settings import PretrainConfig
from cxr.cli import build_parser, write_config
from cxr.films_table import read_films_table
from cxr.split import Split, make_split
from cxr.training.recipe import OptimConfig

OPTIM = OptimConfig("adamw", 1e-2, schedule="cosine", epochs=3, patience=0)


@pytest.fixture(scope="module")
def config(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    folder = tmp_path_factory.mktemp("pretraining")
    rows = read_films_table(phantom_folder / "films.csv")
    parts = {"train": 0.5, "val": 0.25, "test": 0.25}
    make_split([r.patient_id for r in rows], [r.sublabel for r in rows], parts).save(
        folder / "split.json"
    )
    return PretrainConfig(
        data=str(phantom_folder),
        split=str(folder / "split.json"),
        cache=str(folder / "cache"),
        preprocess=PreprocessConfig(side=32),
        net=UnetCbamConfig(widths=(4, 6, 8)),
        optim=OPTIM,
        genesis=GenesisConfig(shuffle_windows=20),
        batch=4,
        device="cpu",
        half=False,
    )


@pytest.fixture(scope="module")
def finished(config: PretrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining that ran through."""
    return pretrain(replace(config, out=str(tmp_path_factory.mktemp("run") / "out")))


def history_of(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "history.json").read_text())


def test_a_pretraining_leaves_its_bundle_history_and_pictures(finished: Path) -> None:
    for name in ("curves.png", "genesis.png", "restored.png"):
        picture = cv2.imread(str(finished / name))
        assert picture is not None and picture.std() > 5, name
    assert [r["epoch"] for r in history_of(finished)] == [0, 1, 2]
    figures = json.loads((finished / "done.json").read_text())["figures"]
    assert set(figures) == {
        "intensity curve",
        "local shuffling",
        "in-painting",
        "out-painting",
        "all four",
    }
    assert all(0 < v < 2 for panel in figures.values() for v in panel.values())


def test_the_loss_falls(finished: Path) -> None:
    rows = history_of(finished)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]


def test_validation_films_are_distorted_alike_in_each_epoch(finished: Path) -> None:
    assert len({round(r["val_untouched"], 6) for r in history_of(finished)}) == 1


def test_the_bundle_gives_the_best_epochs_network_back(
    finished: Path, config: PretrainConfig
) -> None:
    found = load_pretrained(finished / "pretrained.safetensors")
    best = torch.load(finished / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    for name, tensor in found.net.state_dict().items():
        assert torch.equal(tensor, best[f"model.{name}"]), name
    assert found.net.config == config.net and found.settings == config.preprocess
    assert not found.net.training
    assert found.meta["training"]["films"] == 12 and found.meta["trained_on"] == "films"
    assert "CC BY 4.0" in found.meta["licence_note"]


def test_a_finished_pretraining_is_not_run_again(
    finished: Path, config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("classify.tasks.restore.train", lambda *_: pytest.fail("trained again"))
    assert pretrain(replace(config, out=str(finished))) == finished


def test_a_killed_pretraining_ends_as_if_it_had_not_been(
    finished: Path, config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = replace(config, out=str(tmp_path))
    step = PretrainModule.training_step

    def killed(module: PretrainModule, batch: dict, index: int) -> torch.Tensor:
        if module.current_epoch == 1 and index == 1:
            raise KeyboardInterrupt
        return step(module, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "training_step", killed)
        with pytest.raises(BaseException):  # Lightning may leave by SystemExit, too
            pretrain(again)
    assert not (tmp_path / "history.json").exists()
    pretrain(again)
    assert "going on from the last finished epoch" in (tmp_path / "run.log").read_text()
    one, two = ([r["val_loss"] for r in history_of(f)] for f in (finished, tmp_path))
    assert two == pytest.approx(one, abs=1e-6)


def test_another_recipe_in_the_same_folder_is_refused(
    finished: Path, config: PretrainConfig
) -> None:
    with pytest.raises(ValueError, match=r"other settings \(batch\)"):
        pretrain(replace(config, out=str(finished), batch=2))


def test_no_film_outside_train_and_val_is_touched(config: PretrainConfig, tmp_path: Path) -> None:
    films = load_films(replace(config, out=str(tmp_path)))
    part = Split.load(config.split).part_of
    assert {part[films.cases[i].patient] for i in films.train} == {"train"}
    assert {part[films.cases[i].patient] for i in films.val} == {"val"}
    assert len(films.cases) == len(films.train) + len(films.val) == 18


def test_films_of_unknown_truth_are_taken_and_closed_licences_are_not(
    config: PretrainConfig, tmp_path: Path, phantom_folder: Path
) -> None:
    rows = list(csv.DictReader((phantom_folder / "films.csv").open()))
    for row in rows[:6]:
        row["label"], row["sublabel"] = "unknown", ""
    for row in rows[6:12]:
        row["licence"] = "research only"
    (tmp_path / "images").symlink_to(phantom_folder / "images")
    with (tmp_path / "films.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    films = load_films(replace(config, data=str(tmp_path), out=str(tmp_path / "out")))
    names = {c.row.image for c in films.cases}
    assert names & {r["image"] for r in rows[:6]}
    assert not names & {r["image"] for r in rows[6:12]}


def test_a_trial_takes_a_few_films_of_each_part(config: PretrainConfig) -> None:
    films = load_films(replace(config, max_films=6))
    assert (len(films.train), len(films.val)) == (6, 6)


def test_a_loss_that_is_no_number_stops_with_its_terms(
    config: PretrainConfig, tmp_path: Path
) -> None:
    wild = replace(config, out=str(tmp_path), optim=replace(OPTIM, rate=1e30, warmup_epochs=0))
    write_config(tmp_path / "config.yaml", wild)
    assert main(["--config", str(tmp_path / "config.yaml")]) == 2
    log = (tmp_path / "run.log").read_text()
    assert "the loss must be finite. Got loss nan, mae nan" in log


@pytest.mark.parametrize("schedule", ["plateau", "onecycle"])
def test_other_schedules_and_a_moving_average_train_too(
    config: PretrainConfig, tmp_path: Path, schedule: str
) -> None:
    optim = OptimConfig("sgd", 1e-2, schedule=schedule, epochs=2, ema_decay=0.5)
    pretrain(replace(config, out=str(tmp_path), optim=optim, max_films=4))
    assert len(history_of(tmp_path)) == 2


def test_training_ends_when_validation_gains_no_more(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = PretrainModule.losses

    def constant(module: PretrainModule, batch: dict) -> tuple[dict, torch.Tensor]:
        terms, restored = losses(module, batch)
        return {k: v * 0 + 0.5 for k, v in terms.items()}, restored

    monkeypatch.setattr(PretrainModule, "losses", constant)
    optim = replace(OPTIM, epochs=9, patience=2)
    pretrain(replace(config, out=str(tmp_path), optim=optim, max_films=4))
    assert len(history_of(tmp_path)) == 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batch": 0}, "batch"),
        ({"max_films": -1}, "max_films"),
        ({"optim": replace(OPTIM, encoder_rate=0.1)}, "encoder_rate"),
        ({"net": UnetCbamConfig(widths=(1,) * 9)}, "at least 256 px"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PretrainConfig(**wrong)


def test_a_missing_table_is_named(config: PretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data must be a folder.*films\.csv"):
        load_films(replace(config, data=str(tmp_path)))


def test_the_shipped_configuration_is_valid(root: Path) -> None:
    parser = build_parser(PretrainConfig, "python -m classify.pretrain", "")
    path = root / "configs/classify/pretrain_unet_cbam.yaml"
    plain = parser.parse_args(["--config", str(path)])
    assert plain.net.name == "unet_cbam_small" and plain.preprocess.side == 96


def test_the_films_of_a_trial_are_drawn_by_the_seed(config: PretrainConfig) -> None:
    few = [load_films(replace(config, max_films=6, seed=seed)) for seed in (0, 0, 1)]
    drawn = [{films.cases[i].row.image for i in films.train} for films in few]
    assert drawn[0] == drawn[1] != drawn[2]
    labels = [few[0].cases[i].row.label for i in few[0].train]
    assert sorted(labels) == ["normal"] * 2 + ["pneumonia"] * 4  # in their shares
