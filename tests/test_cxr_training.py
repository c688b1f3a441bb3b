"""cxr/training: the resume rule, the one loop of all trainings, and devices."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cxr.engines import pick_device
from cxr.training.learner import BEST, LAST, HistoryFile, Learner, PlateauHalving, fit, load_best
from cxr.training.recipe import (
    OptimConfig,
    disk_need,
    free,
    keep_to_recipe,
    recipe_of,
    require_writable,
)


@dataclass(frozen=True)
class Films:
    folder: str = free("data")
    side: int = 64


@dataclass(frozen=True)
class Settings:
    out: str = free("runs/x")
    films: Films = field(default_factory=Films)
    seed: int = 0
    widths: tuple[int, ...] = (8, 4)


# --- what must be there before the first epoch


def test_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--out must be a folder that can be written"):
        require_writable(tmp_path / "file" / "run")
    require_writable(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_disk_without_room_for_the_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"where \d+\.\d GB are free.*free some"):
        require_writable(tmp_path, 1 << 60)
    assert disk_need(nn.Linear(1000, 999)) > 10 * 4_000_000  # six to ten times the weights


# --- the resume rule


def test_free_settings_are_no_part_of_the_recipe() -> None:
    assert recipe_of(Settings()) == {"films": {"side": 64}, "seed": 0, "widths": [8, 4]}


def test_work_goes_on_with_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    keep_to_recipe(tmp_path / "run", {"seed": 0, "batch": 4})
    keep_to_recipe(tmp_path / "run", {"batch": 4, "seed": 0})
    with pytest.raises(ValueError, match=r"run was begun with other settings \(seed, side\)"):
        keep_to_recipe(tmp_path / "run", {"seed": 1, "batch": 4, "side": 32})


def test_where_and_how_fast_may_change_and_what_is_learnt_may_not(tmp_path: Path) -> None:
    keep_to_recipe(tmp_path, Settings())
    keep_to_recipe(tmp_path, Settings("elsewhere", Films("moved")))
    other = Settings(films=Films(side=32), seed=1)
    with pytest.raises(ValueError, match=r"\(films\.side, seed\).*remove that folder"):
        keep_to_recipe(tmp_path, other)
    with pytest.raises(ValueError, match="--restart"):
        keep_to_recipe(tmp_path, other, restart=False)
    keep_to_recipe(tmp_path, other, restart=True)
    keep_to_recipe(tmp_path, other)


@pytest.mark.parametrize(
    ("begun", "refused"),
    [
        ({"out": "x", "films": {"folder": "y", "side": 32}, "seed": 0, "widths": [8, 4]}, True),
        ({"out": "x", "films": {"folder": "y", "side": 64}, "seed": 0, "widths": [8, 4]}, False),
        ({"margin": 0.1, "seed": 3}, False),  # another command's folder
    ],
)
def test_a_folder_from_before_is_known_by_its_run(
    tmp_path: Path, begun: dict, refused: bool
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": begun}))
    if refused:
        with pytest.raises(ValueError, match=r"\(films\.side\)"):
            keep_to_recipe(tmp_path, Settings())
    else:
        keep_to_recipe(tmp_path, Settings())


# --- the loop


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


class LineLearner(Learner):
    """Fits y = 2 x; `val_gain` is what the epoch is chosen by."""

    def __init__(self, optim: OptimConfig, stop_after: int) -> None:
        torch.manual_seed(0)
        super().__init__(Line(), optim, "val_gain", stop_after)
        self.gains: Sequence[float] = ()

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], None]:
        return {"loss": ((self.model(batch["x"]) - 2 * batch["x"]) ** 2).mean()}, None

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self._add("val", self.losses(batch)[0], len(batch["x"]))

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        gain = self.gains[self.current_epoch] if self.gains else -means["val_loss"]
        return {**super().figures(means), "val_gain": gain}

    def line(self) -> str:
        return f"gain {self.history[-1]['val_gain']:.3f}"


def train(
    folder: Path, epochs: int, gains: Sequence[float] = (), stop_after: int = 0, **how: bool
) -> LineLearner:
    optim = OptimConfig("sgd", 0.005, schedule="cosine", epochs=epochs, patience=0)
    learner = LineLearner(replace(optim, warmup_epochs=0.5), stop_after)
    learner.gains = gains
    films = [{"x": torch.tensor([float(k)])} for k in range(4)]
    loaders = (DataLoader(films, 2), DataLoader(films, 4))
    watching = [HistoryFile(folder, ("val_gain",))]
    fit(learner, "line", folder, *loaders, "cpu", callbacks=watching, **how)
    return learner


def test_the_best_epoch_is_kept_and_the_history_written(tmp_path: Path) -> None:
    learner = train(tmp_path, 3, gains=[0.1, 0.3, 0.2])
    assert {p.name for p in tmp_path.iterdir()} >= {BEST, LAST, "curves.png", "tensorboard"}
    rows = json.loads((tmp_path / "history.json").read_text())
    assert [r["val_gain"] for r in rows] == [0.1, 0.3, 0.2]
    assert rows[1]["train_loss"] == round(learner.history[1]["train_loss"], 5)
    last = learner.model.head.weight.clone()
    load_best(learner, tmp_path)
    epoch = torch.load(tmp_path / BEST, weights_only=True)["epoch"]
    assert epoch == 1 and not torch.equal(learner.model.head.weight, last)
    assert not learner.training


@pytest.mark.parametrize(("stop", "epochs"), [(2, 4), (0, 5)])
def test_training_ends_after_so_many_epochs_without_a_better_one(
    tmp_path: Path, stop: int, epochs: int
) -> None:
    learner = train(tmp_path, 5, [0.1, 0.5, 0.2, 0.5, 0.1], stop_after=stop)
    assert len(learner.history) == epochs


def test_a_stopped_training_goes_on_and_restart_begins_anew(tmp_path: Path) -> None:
    first = train(tmp_path, 1)
    more = train(tmp_path, 2)
    assert [r["epoch"] for r in more.history] == [0, 1]
    assert more.history[0] == first.history[0]
    anew = train(tmp_path, 2, restart=True)
    assert len(anew.history) == 2 and anew.history[0]["seconds"] != first.history[0]["seconds"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoints_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    train(tmp_path, 1)
    before = {name: (tmp_path / name).read_bytes() for name in (BEST, LAST)}

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, fail)
        with pytest.raises(OSError, match="No space left on device"):
            train(tmp_path, 2)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    assert len(train(tmp_path, 2).history) == 2


def test_an_old_checkpoint_without_a_history_takes_the_files(tmp_path: Path) -> None:
    before = train(tmp_path, 1).history
    state = torch.load(tmp_path / LAST, weights_only=False)
    del state["history"], state["plateau"]
    torch.save(state, tmp_path / LAST)
    after = train(tmp_path, 2).history
    assert [r["epoch"] for r in after] == [0, 1]
    assert after[0]["train_loss"] == pytest.approx(before[0]["train_loss"], abs=1e-5)


def test_a_gain_below_the_least_share_is_none() -> None:
    rule = PlateauHalving(1.0, patience=2, factor=0.5, floor_rate=0.0, least_gain=1e-4)
    assert [rule.step(v) for v in (-0.5, -0.50001, -0.50002, -0.6)] == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(("word", "kind"), [("cpu", "cpu"), ("gpu", "cuda"), ("cuda:1", "cuda")])
def test_devices_have_one_vocabulary(word: str, kind: str) -> None:
    assert pick_device(word).type == kind


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, cpu, gpu"):
        pick_device("abacus")
