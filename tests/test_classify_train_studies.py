"""classify/train.py: what the thesis' studies change: decoder, classes, diseases held out."""

from __future__ import annotations

import csv
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from classify.ensemble import Ensemble
from classify.models.settings import MemberConfig
from classify.predictions import read_predictions
from classify.preprocess import PreprocessConfig
from classify.tasks.member import crossfit, load_cases, train_ensemble
from classify.tasks.settings import CrossfitConfig, PhaseConfig, TrainConfig
from cxr.bundle import load_bundle
from cxr.film import read_film
from cxr.films_table import has_disease, read_films_table
from cxr.split import Split, make_split
from cxr.training.recipe import OptimConfig

PARTS = {"train": 0.5, "val": 0.25, "test": 0.25}


@pytest.fixture(scope="module")
def config(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    rows = read_films_table(phantom_folder / "films.csv")
    split = tmp_path_factory.mktemp("split") / "split.json"
    make_split([r.patient_id for r in rows], [r.sublabel for r in rows], PARTS).save(split)
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


def test_every_patient_is_answered_by_members_that_never_saw_the_patient(
    config: TrainConfig, tmp_path: Path
) -> None:
    rows = read_films_table(Path(str(config.data)) / "films.csv")
    lines = ["image,mask,source,patient_id,label,sublabel,licence"]
    for n, r in enumerate(rows):  # a patient a film, for there are few
        image, mask = (Path(str(config.data)).resolve() / name for name in (r.image, r.mask))
        lines.append(f"{image},{mask},{r.source},p{n},{r.label},{r.sublabel},{r.licence}")
    (tmp_path / "films.csv").write_text("\n".join(lines))
    make_split([f"p{n}" for n in range(len(rows))], [r.sublabel for r in rows], PARTS).save(
        tmp_path / "own.json"
    )
    config = replace(config, data=str(tmp_path), split=str(tmp_path / "own.json"))
    own = {f.name: getattr(config, f.name) for f in fields(TrainConfig)}
    own |= {"out": str(tmp_path), "shared": True, "targets": ("bacterial", "viral")}
    every = CrossfitConfig(**own, pooled=("train", "val"), folds=2)
    crossfit(every)
    targets, rows = read_predictions(tmp_path / "predictions.csv")
    cases, parts = load_cases(config)
    pooled = [cases[i] for part in ("train", "val") for i in parts[part]]
    assert targets == ("bacterial", "viral")
    assert {row.film for row in rows} == {case.row.image for case in pooled}
    said = {row.film: row.logits for row in rows}
    held = [Split.load(tmp_path / f"fold{k}" / "split.json").part_of for k in range(2)]
    fold_of = Split.load(tmp_path / "folds.json").part_of
    for case in pooled:
        assert sorted(part[case.patient] == "held" for part in held) == [False, True]
        assert held[int(fold_of[case.patient])][case.patient] == "held"
    for k in range(2):  # a fold's answers are those of its own members
        mine = next(c for c in pooled if held[k][c.patient] == "held")
        members = Ensemble.load(tmp_path / f"fold{k}", "cpu")
        assert np.allclose(
            members.predict([read_film(mine.film).pixels])[0], said[mine.row.image], atol=1e-2
        )
    told = Split.load(tmp_path / "split.json").part_of
    assert {told[c.patient] for c in pooled} == {"fit", "calibration"}
    assert {told[cases[i].patient] for i in parts["test"]} == {"test"}
    before = (tmp_path / "predictions.csv").read_bytes()
    crossfit(every)  # what is finished is left as it is
    assert (tmp_path / "predictions.csv").read_bytes() == before


def test_films_of_unknown_patients_train_every_fold_and_are_never_answered(
    config: TrainConfig, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(config.data, data)
    with (data / "films.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    split = dict.fromkeys((r["patient_id"] for r in table), "train")
    unnamed, split[max(split)] = {min(split)}, "val"
    Split(0, split).save(tmp_path / "split.json")
    for row in table:
        row["source"] = "unnamed" if row["patient_id"] in unnamed else "named"
    with (data / "films.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    own = {f.name: getattr(config, f.name) for f in fields(TrainConfig)}
    own |= {"data": str(data), "out": str(tmp_path / "out"), "split": str(tmp_path / "split.json")}
    crossfit(CrossfitConfig(**own, pooled=("train", "val"), folds=2, always=("unnamed",)))
    answered = {row.film for row in read_predictions(tmp_path / "out" / "predictions.csv")[1]}
    mine = {r["image"] for r in table if r["patient_id"] in unnamed}
    assert mine and answered == {r["image"] for r in table} - mine
    for k in range(2):
        parts = Split.load(tmp_path / "out" / f"fold{k}" / "split.json").part_of
        assert {parts[p] for p in unnamed} == {"train"}


def test_test_patients_are_never_pooled() -> None:
    with pytest.raises(ValueError, match="pooled must name parts of the split, and not test"):
        CrossfitConfig(pooled=("train", "test"))
