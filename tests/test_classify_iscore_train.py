"""python -m classify.iscore_train: one network, three ways to answer with its features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classify.films import ProtocolConfig
from classify.iscore_train import main
from classify.models.settings import IMAGENET_MEAN, IMAGENET_STD, BackboneConfig
from classify.preprocess import PreprocessConfig
from classify.tasks import select
from classify.tasks.iscore import SelectConfig
from classify.tasks.select import train_iscore
from classify.tasks.settings import IscoreConfig
from classify.tasks.single import SingleModule
from cxr.ledger import read_answers
from cxr.training.recipe import OptimConfig

CLASSES = ("normal", "bacterial", "viral")
WIDTH = 256  # of the small CNN's last maps


@pytest.fixture(scope="module")
def config(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> IscoreConfig:
    folder = tmp_path_factory.mktemp("iscore")
    return IscoreConfig(
        classes=CLASSES,
        data=str(phantom_folder),
        sources=(),
        batch=4,
        device="cpu",
        draws=20,
        optim=OptimConfig(rate=1e-3, schedule="constant", epochs=1, patience=0),
        protocol=ProtocolConfig(parts={"train": 0.5, "val": 0.25, "test": 0.25}),
        backbone=BackboneConfig("baseline_cnn", weights="none"),
        trained=str(folder / "network"),
        preprocess=PreprocessConfig(side=32, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        select=SelectConfig(start=3, subsets=40, permutations=2, counts=(1, 4)),
    )


@pytest.fixture(scope="module")
def outs(config: IscoreConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All three, the network trained by the first of them."""
    folder = tmp_path_factory.mktemp("outs")
    return {
        keep: train_iscore(replace(config, keep=keep, out=str(folder / keep)))
        for keep in ("iscore", "all", "head")
    }


def figures(folder: Path) -> dict:
    return json.loads((folder / "figures.json").read_text())


def test_every_way_answers_the_same_films(outs: dict[str, Path], config: IscoreConfig) -> None:
    answers = {keep: read_answers(out / "answers.csv") for keep, out in outs.items()}
    assert {classes for classes, _ in answers.values()} == {CLASSES}
    films = [[(a.film, a.patient, a.truth) for a in some] for _, some in answers.values()]
    assert films[0] == films[1] == films[2] and len(films[0]) == 6
    assert answers["head"] == read_answers(Path(config.trained) / "answers.csv")
    assert len({str([a.scores for a in some]) for _, some in answers.values()}) == 3


def test_what_was_kept_and_gained_goes_into_figures_and_picture(outs: dict[str, Path]) -> None:
    made = json.loads((outs["iscore"] / "iscore.json").read_text())
    found = figures(outs["iscore"])
    assert found["features.kept"] == {"value": made["kept"], "low": None, "high": None, "n": 6}
    assert found["gain.auc"] == made["gain"]
    assert made["kept"] in (1, 4, WIDTH) and made["config"]["draws"] == 20
    assert (outs["iscore"] / "iscore.png").read_bytes().startswith(b"\x89PNG")
    for keep in ("all", "head"):
        assert figures(outs[keep]) == {
            "features.kept": {"value": WIDTH, "low": None, "high": None, "n": 6}
        }
        assert not (outs[keep] / "iscore.json").exists()


def test_all_features_are_what_the_selection_compares_itself_with(outs: dict[str, Path]) -> None:
    made = json.loads((outs["iscore"] / "iscore.json").read_text())
    (whole,) = (
        p["test_auc"]["value"]
        for p in made["points"]
        if (p["order"], p["kept"]) == ("i_score", WIDTH)
    )
    metrics = json.loads((outs["all"] / "metrics.json").read_text())
    assert metrics["figures"]["test"]["macro_auc"]["value"] == pytest.approx(whole)


def test_what_is_finished_is_neither_trained_nor_chosen_again(
    outs: dict[str, Path], config: IscoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SingleModule, "training_step", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(select, "select_features", lambda *_: pytest.fail("chosen again"))
    again = replace(config, out=str(outs["iscore"]))
    assert train_iscore(again) == outs["iscore"]
    other = replace(again, select=replace(config.select, subsets=30))
    with pytest.raises(ValueError, match=r"begun with other settings \(select\.subsets\)"):
        train_iscore(other)


def test_by_default_the_network_lies_in_its_folder_and_draws_are_the_trainings() -> None:
    config = IscoreConfig(out="runs/x", draws=0, seed=3, select=SelectConfig(seed=1))
    assert Path(config.to_single().out) == Path("runs/x/network")
    assert (config.to_select().seed, config.to_select().draws) == (3, 1)
    assert np.isclose(config.to_select().penalty, 1.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"keep": "best"}, "keep must be one of iscore, all, head"),
        ({"kind": "fusion"}, "kind must be backbone or cxrnet"),
        ({"protocol": ProtocolConfig("folds")}, "Got 'folds' instead"),
    ],
)
def test_wrong_settings_are_named(config: IscoreConfig, wrong: dict, says: str) -> None:
    sized = replace(config.preprocess, side=299)
    with pytest.raises(ValueError, match=says):
        replace(config, preprocess=sized, **wrong)


def test_the_command_says_what_is_missing() -> None:
    assert main(["--data", "nowhere"]) == 2
    with pytest.raises(SystemExit):
        main(["--keep", "best"])
