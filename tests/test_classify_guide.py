"""classify/augment.py and classify/tasks/guided.py: a training that is held to the lungs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from classify.augment import AugmentConfig, GuideConfig, swap_surroundings
from classify.dataset import FilmDataset, PixelCache, build_cache
from classify.films import RegionConfig, select_cases
from classify.members import TARGET
from classify.models.multitask import build_member
from classify.models.settings import BackboneConfig, MemberConfig
from classify.preprocess import PreprocessConfig
from classify.tasks.guided import Guide, near, without_lungs
from classify.tasks.member import train_ensemble
from classify.tasks.settings import PhaseConfig, SingleConfig, TrainConfig
from classify.tasks.single import train_single
from cxr.films_table import read_films_table
from cxr.split import make_split
from cxr.training.recipe import OptimConfig

TINY = MemberConfig("tu-test_efficientnet", "none", decoder_channels=(8, 8, 8, 8))
SETTINGS = PreprocessConfig(side=64)
RAW = PreprocessConfig(64, mean=(0, 0, 0), std=(1, 1, 1))
ALL = GuideConfig(swap=0.6, maps=1.0, blank=0.3, silence=1.0, gradient=0.1)


def lung_of(side: int = 64) -> np.ndarray:
    """A lung field in the middle quarter."""
    lung = np.zeros((side, side), np.uint8)
    lung[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 255
    return lung


def lung_tensor(films: int) -> torch.Tensor:
    """That field for so many films."""
    return torch.from_numpy(lung_of() > 0).float()[None, None].expand(films, 1, 64, 64)


def test_the_lungs_stay_and_the_rest_is_another_films() -> None:
    lung, rng = lung_of(), np.random.default_rng(0)
    mine, other = np.full((64, 64), 200, np.uint8), np.full((64, 64), 50, np.uint8)
    found = swap_surroundings(mine, lung, other, np.zeros_like(lung), rng)
    assert (found[24:40, 24:40] == 200).all()
    assert (found[:4] == 50).all() and (found[:, -4:] == 50).all()


def test_the_other_films_lungs_are_painted_over() -> None:
    lung, rng = lung_of(), np.random.default_rng(0)
    other = np.where(lung > 0, 255, 50).astype(np.uint8)
    none = np.zeros_like(lung)
    found = swap_surroundings(none, none, other, lung, rng)
    assert found[28:36, 28:36].max() < 110  # the mean of what lies around, and at most 38 of noise
    assert abs(float(found[:4].mean()) - 50) < 1


def test_pictures_without_lungs_are_black_there_or_one_grey() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(40, 1, 64, 64)
    found = without_lungs(pictures, lung_tensor(40))
    grey = found.flatten(1).std(1) < 1e-6
    assert 4 <= int(grey.sum()) <= 20  # three of ten
    assert not found[~grey][:, :, 16:48, 16:48].any()
    assert torch.equal(found[~grey][:, :, :10], pictures[~grey][:, :, :10])
    assert torch.allclose(found[grey].mean((1, 2, 3)), pictures[grey].mean((1, 2, 3)), atol=1e-5)


def test_a_film_whose_lungs_are_unknown_is_never_shown_as_one_without() -> None:
    found = without_lungs(torch.rand(20, 1, 64, 64), torch.zeros(20, 1, 64, 64))
    assert (found.flatten(1).std(1) < 1e-6).all()


class Pooled(torch.nn.Module):
    """Two maps that the picture's own two channels are, pooled; class k is map k."""

    def __init__(self) -> None:
        super().__init__()
        self.saliency_layer = torch.nn.Identity()
        self.fc = torch.nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.saliency_layer(x[:, :2]).mean((2, 3)))


def test_the_loss_of_maps_is_the_share_outside_the_lungs() -> None:
    model = Pooled()
    guide = Guide(GuideConfig(maps=2.0), model, RAW)
    image = torch.zeros(1, 1, 64, 64)
    image[..., 28:36, 28:36] = 1  # 64 px in the lungs
    image[..., :2, :16] = 1  # 32 px far from them
    batch = {"image": image, "lung": lung_tensor(1), "label": torch.tensor([1])}
    away = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    for common in (0.0, 5.0):  # what all classes share changes nothing
        with torch.no_grad():
            model.fc.weight.copy_(1e6 * (away + common))
        _, terms = guide.ask(model, batch, training=True)
        assert terms["maps"].item() == pytest.approx(2.0 * 32 / 96, rel=1e-3)
    with torch.no_grad():
        model.fc.weight.copy_(
            1e-6 * away
        )  # a map that is nearly empty costs as much as an even one
    empty = guide.ask(model, batch, training=True)[1]["maps"].item()
    assert empty == pytest.approx(2.0 * (1 - 34**2 / 64**2), rel=1e-3)  # lungs and rim: 34 px
    none = {**batch, "lung": torch.zeros(1, 1, 64, 64)}
    assert guide.ask(model, none, training=True)[1]["maps"].item() == 0


def test_a_sure_answer_to_a_blank_costs_and_an_even_one_does_not() -> None:
    guide = Guide(GuideConfig(blank=1.0), torch.nn.Identity(), RAW)
    batch = {"image": torch.rand(4, 1, 64, 64), "lung": torch.ones(4, 1, 64, 64)}
    batch["label"] = torch.tensor([0, 1, 1, 0])
    costs = []
    for gap in (0.0, 3.0):
        logits, terms = guide.ask(lambda x, g=gap: torch.tensor([[0.0, g]] * len(x)), batch, True)
        assert logits.shape == (4, 2)
        costs.append(terms["blank"].item())
    assert costs[0] == pytest.approx(0, abs=1e-6)
    # KL(even, p) with p = sigmoid(±3): log(1/2) − (log p1 + log p2) / 2
    assert costs[1] == pytest.approx(np.log(0.5) + np.log1p(np.exp(-3)) + 1.5, rel=1e-4)


def test_silence_is_what_is_pooled_of_a_blank_beside_a_film() -> None:
    model = Pooled()
    guide = Guide(GuideConfig(silence=2.0, blank_share=0.75), model, RAW)
    image = torch.full((4, 1, 64, 64), 0.5)
    batch = {"image": image, "lung": torch.ones(4, 1, 64, 64), "label": torch.zeros(4).long()}
    torch.manual_seed(0)
    _, terms = guide.ask(model, batch, training=True)
    # a blank of grey shows as much as the films, a black one nothing: 2 × the share of grey ones
    assert terms["silence"].item() in [pytest.approx(2 * k / 3, abs=1e-5) for k in range(3)]
    torch.manual_seed(0)
    greys = int((without_lungs(image[:3], batch["lung"][:3]).amax((1, 2, 3)) > 0).sum())
    assert terms["silence"].item() == pytest.approx(2 * greys / 3, abs=1e-5)


def test_nothing_is_guided_in_validation_or_when_all_is_off() -> None:
    model = build_member(TINY)
    batch = {"image": torch.rand(4, 1, 64, 64), "label": torch.zeros(4, dtype=torch.long)}
    assert Guide(ALL, model, SETTINGS).ask(model, batch, training=False)[1] == {}
    assert Guide(GuideConfig(), model, SETTINGS).ask(model, batch, training=True)[1] == {}


def test_every_term_reaches_the_networks_weights() -> None:
    torch.manual_seed(0)
    model = build_member(TINY, classes=3, targets=2)
    guide = Guide(ALL, model, SETTINGS, 2, TARGET)
    batch = {"image": torch.rand(4, 1, 64, 64), "lung": lung_tensor(4)}
    batch["label"] = torch.tensor([[0, 1]] * 4)
    (logits, restored), terms = guide.ask(model.restore, batch, training=True)
    assert logits.shape == (4, 6) and len(restored) == 4
    for name in ("maps", "blank", "silence", "gradient"):
        model.zero_grad()
        terms[name].backward(retain_graph=True)
        assert model.encoder.model.conv_stem.weight.grad.abs().sum() > 0, name


def test_a_map_counts_the_rim_as_lung() -> None:
    share = near(lung_tensor(1), (64, 64))[0]
    assert share[15, 32] == 1 and share[10, 32] == 0


def test_training_pictures_have_other_surroundings_and_their_own_lungs() -> None:
    images = np.stack([np.full((32, 32), v, np.uint8) for v in (50, 200)])
    lungs = np.stack([lung_of(32)] * 2)
    cache = PixelCache(images, np.zeros((0, 32, 32), np.uint8), np.full((2, 1), -1), lungs)

    def still(image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return image, masks

    torch.manual_seed(0)
    films = FilmDataset(cache, [0, 1], [0, 1], 32, still, guide=GuideConfig(swap=1.0))
    shown = [films[0]["image"][0] * 255 for _ in range(12)]
    assert all(abs(float(p[16, 16]) - 50) < 1 for p in shown)
    assert any(abs(float(p[0, 0]) - 200) < 1 for p in shown)
    assert torch.equal(films[0]["lung"][0] > 0, torch.from_numpy(lungs[0] > 0))


def test_lungs_of_a_person_go_before_the_networks(phantom_folder: Path, tmp_path: Path) -> None:
    rows = read_films_table(phantom_folder / "films.csv")[:2]
    rows[1] = replace(rows[1], mask="")  # a phantom, which the network need not know
    cases, _ = select_cases(rows, phantom_folder)
    guide = GuideConfig(maps=1.0)
    cache = build_cache(cases, SETTINGS, RegionConfig(), tmp_path, 64, guide=guide)
    assert cache.lungs is not None and cache.lungs.shape == (2, 64, 64)
    assert np.array_equal(cache.lungs[0], cache.regions[0])
    assert set(np.unique(cache.lungs[1])) <= {0, 255}
    with pytest.raises(ValueError, match=r"guide\.field must be a bundle"):
        missing = replace(guide, field="none.safetensors")
        build_cache(cases, SETTINGS, RegionConfig(), tmp_path, 64, guide=missing)


def test_members_and_single_networks_are_trained_guided(
    phantom_folder: Path, tmp_path: Path
) -> None:
    rows = read_films_table(phantom_folder / "films.csv")
    parts = {"train": 0.5, "val": 0.25, "calibration": 0.0, "test": 0.25}
    split = tmp_path / "split.json"
    make_split([r.patient_id for r in rows], [r.sublabel for r in rows], parts).save(split)
    optim = OptimConfig("adamw", 1e-3, schedule="constant", epochs=1)
    config = TrainConfig(
        targets=("bacterial", "viral"),
        data=str(phantom_folder),
        split=str(split),
        out=str(tmp_path / "members"),
        sources=(),
        preprocess=SETTINGS,
        augment=AugmentConfig(),
        member=TINY,
        phases=(PhaseConfig("hard", "all", optim), PhaseConfig("weak", "all", optim)),
        batch=4,
        device="cpu",
        draws=20,
        shared=True,
        guide=ALL,
    )
    assert train_ensemble(config)["members"]["epochs"] == 2
    single = SingleConfig(
        classes=("normal", "viral"),
        data=str(phantom_folder),
        out=str(tmp_path / "single"),
        sources=(),
        backbone=BackboneConfig("baseline_cnn", weights="none"),
        preprocess=replace(SingleConfig().preprocess, side=64),
        augment="rotate",
        optim=optim,
        batch=4,
        device="cpu",
        draws=20,
        guide=ALL,
    )
    assert (train_single(single) / "single.safetensors").is_file()
    history = (tmp_path / "single" / "history.json").read_text()
    assert all(f"train_{name}" in history for name in ("answer", "maps", "blank", "silence"))


def test_shares_and_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="swap"):
        GuideConfig(swap=1.2)
    with pytest.raises(ValueError, match="maps"):
        GuideConfig(maps=-1)
