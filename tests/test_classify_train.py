"""classify/train.py, classify/tasks/member.py: whole trainings of a tiny ensemble on phantoms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from classify.augment import AugmentConfig, GuideConfig
from classify.dataset import PixelCache
from classify.members import label_of
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig
from classify.tasks import member
from classify.tasks.member import (
    MemberJob,
    MemberModule,
    films_of_phase,
    load_cases,
    train_ensemble,
)
from classify.tasks.settings import PhaseConfig, TrainConfig
from classify.train import main
from cxr.bundle import load_bundle
from cxr.cli import build_parser
from cxr.films_table import read_films_table
from cxr.split import make_split
from cxr.training.learner import PlateauHalving
from cxr.training.recipe import OptimConfig

HARD = PhaseConfig("hard", "all", OptimConfig("adamw", 3e-3, schedule="cosine", epochs=3))


@pytest.fixture(scope="module")
def config(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    rows = read_films_table(phantom_folder / "films.csv")
    split = tmp_path_factory.mktemp("split") / "split.json"
    parts = {"train": 0.5, "val": 0.25, "calibration": 0.0, "test": 0.25}
    make_split([r.patient_id for r in rows], [r.sublabel for r in rows], parts).save(split)
    return TrainConfig(
        targets=("bacterial",),
        data=str(phantom_folder),
        split=str(split),
        sources=(),
        preprocess=PreprocessConfig(side=64),
        augment=AugmentConfig(),
        member=MemberConfig("tu-test_efficientnet", "none", decoder_channels=(8, 8, 8, 8)),
        phases=(HARD,),
        batch=4,
        device="cpu",
        draws=20,
    )


def history_of(out: Path, target: str = "bacterial") -> list[dict[str, float]]:
    return json.loads((out / target / "history.json").read_text())


def test_two_phases_leave_bundles_figures_and_pictures(config: TrainConfig, tmp_path: Path) -> None:
    weak = PhaseConfig("weak", "all", replace(HARD.optim, epochs=1, ema_decay=0.5))
    both = replace(
        config,
        out=str(tmp_path),
        phases=(HARD, weak),
        evaluate=("val", "test"),
        targets=("bacterial", "viral"),
    )
    records = train_ensemble(both)
    assert list(records) == ["bacterial", "viral"]
    figures = records["viral"]["figures"]
    assert set(figures) == {"val", "test"}
    assert 0 <= figures["test"]["viral"]["macro_auc"]["value"] <= 1
    assert [r["phase"] for r in history_of(tmp_path)] == [0, 0, 0, 1]
    for name in ("curves.png", "restored.png", "metrics.json", "recipe.json"):
        assert (tmp_path / "bacterial" / name).stat().st_size > 0
    assert list((tmp_path / "bacterial" / "0_hard" / "tensorboard").glob("events*"))
    assert not (tmp_path / "cache").exists()  # of decoded films: nobody asked to keep it
    bundle = load_bundle(tmp_path / "viral.safetensors", "member")
    assert bundle.meta["classes"] == ["normal", "viral", "others"]
    assert (bundle.meta["order"], bundle.meta["trained_on"]) == (1, "films")
    assert bundle.meta["licence_note"] == "trained on films under: CC BY 4.0"
    assert not any(name.startswith("decoder") for name in bundle.tensors)


def test_a_phase_may_be_held_to_the_lungs_in_its_own_way(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    real = member.MemberModule
    monkeypatch.setattr(member, "MemberModule", lambda *a: seen.append(a[-1]) or real(*a))
    once = replace(HARD, optim=replace(HARD.optim, epochs=1))
    usual, own = GuideConfig(blank=0.1), GuideConfig(blank=0.3)
    both = replace(config, out=str(tmp_path), guide=usual, phases=(once, replace(once, guide=own)))
    train_ensemble(both)
    assert seen == [usual, own]
    with pytest.raises(ValueError, match="guide must hold the training to the lungs"):
        replace(both, guide=GuideConfig())


def test_a_killed_training_goes_on_and_a_finished_one_is_skipped(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        config, out=str(tmp_path), phases=(replace(HARD, optim=replace(HARD.optim, ema_decay=0.8)),)
    )
    whole = MemberModule.training_step

    def killed(self: MemberModule, batch: dict, index: int) -> torch.Tensor:
        if self.current_epoch == 2:
            raise RuntimeError("killed")
        return whole(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(MemberModule, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train_ensemble(config)
    assert not (tmp_path / "bacterial.safetensors").exists()
    record = train_ensemble(config)["bacterial"]
    assert [r["epoch"] for r in history_of(tmp_path)] == [0, 1, 2]

    monkeypatch.setattr(MemberModule, "training_step", lambda *_: pytest.fail("trained again"))
    assert train_ensemble(config)["bacterial"] == record


def test_other_settings_do_not_continue_a_training(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, out=str(tmp_path), max_epochs=1, decoder="none")
    train_ensemble(config)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(batch, seed\).*--out"):
        train_ensemble(replace(config, seed=1, batch=2))
    assert (tmp_path / "run.json").read_bytes() == before  # it still tells how this was trained


def test_training_learns_a_bright_patch(config: TrainConfig, tmp_path: Path) -> None:
    optim = replace(HARD.optim, epochs=12, rate=1e-2)
    still = AugmentConfig(shift=0, scale=0, rotate=0, noise=0, blur=0, sharpen=0, gamma=0)
    easy = replace(
        config, out=str(tmp_path), phases=(PhaseConfig("hard", "all", optim),), augment=still
    )
    train_ensemble(easy)
    losses = [row["train_loss"] for row in history_of(tmp_path)]
    assert min(losses[-3:]) < 0.7 * losses[0]


def test_the_thesis_schedule_ends_a_training_by_itself(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = OptimConfig(rate=1e-4, patience=1, floor_rate=1e-4, epochs=40)
    thesis = replace(config, out=str(tmp_path), phases=(PhaseConfig("hard", "with_region", optim),))
    losses = iter([1.0, 2.0, 2.0, 2.0])  # start, no gain: halved below the floor, no gain: the end
    step = PlateauHalving.step
    monkeypatch.setattr(PlateauHalving, "step", lambda self, _: step(self, next(losses)))
    train_ensemble(thesis)
    assert [row["rate"] for row in history_of(tmp_path)] == [1e-4, 1e-4, 5e-5]


def test_onecycle_ends_at_a_lower_rate_and_stops_without_gain(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxr.training.learner.macro_auc", lambda *_: 0.5)  # never a gain
    optim = OptimConfig("sgd", 1e-3, schedule="onecycle", epochs=9, patience=2, clip_norm=1.0)
    train_ensemble(replace(config, out=str(tmp_path), phases=(PhaseConfig("hard", "all", optim),)))
    assert len(history_of(tmp_path)) == 3


def test_phase_hard_may_keep_to_films_with_a_known_goal(config: TrainConfig) -> None:
    cases, parts = load_cases(config)
    labels = [(label_of(case.row, "bacterial"),) for case in cases]
    drawn = [n % 2 - 1 for n in range(len(cases))]  # every other film has no region
    cache = PixelCache(
        np.zeros((24, 64, 64), np.uint8), np.zeros((1, 64, 64), np.uint8), np.array(drawn)[:, None]
    )
    job = MemberJob("bacterial", ("bacterial",), 0, config, cases, labels, parts, cache, cache)
    kept = films_of_phase(job, PhaseConfig("hard", "with_region"))
    assert kept == [i for i in parts["train"] if labels[i] != (1,) or drawn[i] >= 0]
    assert len(kept) < len(films_of_phase(job, HARD))


def test_max_films_and_parts_hold(config: TrainConfig) -> None:
    cases, parts = load_cases(replace(config, max_films=6))
    patients = {name: {cases[i].patient for i in films} for name, films in parts.items()}
    assert not patients["train"] & patients["val"]
    assert {name: len(films) for name, films in parts.items()} == {"train": 6, "val": 6, "test": 6}
    assert len(cases) == 18 and {c.row.sublabel for c in cases} >= {"bacterial", "viral"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data", "nowhere"], "films.csv"),
        (["--targets", "[gout]"], "gout"),
        (["--split", "nowhere.json"], "nowhere.json"),
        (["--evaluate", "[val,calibration]"], "calibration"),
        (["--crops", "nowhere"], "detect.crop"),
    ],
)
def test_what_is_missing_is_named_and_exits_with_2(
    config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: list, says: str
) -> None:
    from cxr.workdir import log

    given = ["--data", str(config.data)] * ("--data" not in flags)
    given += ["--split", config.split, "--out", str(tmp_path), "--sources", "[]"]
    log.addHandler(caplog.handler)
    try:
        assert main([*given, *flags]) == 2
    finally:
        log.removeHandler(caplog.handler)
    assert says in caplog.text


@pytest.mark.parametrize(
    "flags",
    [
        ["--targets", "[a,a]"],
        ["--targets", "[../a]"],
        ["--batch", "0"],
        ["--colour", "red"],
        ["--preprocess.side", "100"],
    ],  # not halved five times
)
def test_wrong_arguments_exit_with_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2


def test_every_configuration_in_the_tree_is_a_valid_one(root: Path) -> None:
    files = [
        f for f in (root / "configs" / "classify").glob("*.yaml") if "targets:" in f.read_text()
    ]
    assert files
    for file in files:
        parser = build_parser(TrainConfig, "classify.train", "")
        ready = parser.instantiate(parser.parse_args(["--config", str(file)]))
        assert ready.phases
