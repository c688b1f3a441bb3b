"""The judge's one pass for logits and Grad-CAM gives what two passes give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import draw_phantom
from saliency_nets import HeadNet, pooled
from torch import nn

from classify.ensemble import Ensemble, members_of
from classify.inputs import Item
from classify.judge import Judge, strongest_member
from classify.models.multitask import build_member
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig
from classify.saliency.maps import saliency_maps, to_pixels
from cxr.page.pictures import Picture

SIZES = [(120, 100), (80, 130), (96, 96), (100, 60)]


def member(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_member(MemberConfig("tu-test_efficientnet", "none", 16, decoder_channels=(8, 8)))


def non_linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return HeadNet(pooled(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)))


@pytest.fixture
def items() -> list[Item]:
    pixels = [draw_phantom(*size, seed=n)[0].astype(np.float32) for n, size in enumerate(SIZES)]
    return [Item(f"film{n}", "ok", pixels=p) for n, p in enumerate(pixels)]


@pytest.mark.parametrize("build", [member, non_linear])
def test_one_pass_gives_the_logits_and_maps_of_two(
    items: list[Item], build: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = Ensemble({"a": build(0), "b": build(1)}, PreprocessConfig(side=64))
    planes: list[np.ndarray] = []

    def keep(plane: np.ndarray) -> Picture:
        planes.append(plane)
        return Picture("", 1, 1)

    monkeypatch.setattr("classify.judge.make_saliency_picture", keep)
    rows = Judge(ensemble, None, {}, cropped=True).judge(items)
    pixels = [item.pixels for item in items if item.pixels is not None]
    batch, frames = ensemble.prepare(pixels)
    logits = ensemble.predict_prepared(batch)
    np.testing.assert_array_equal(np.stack([row.logits for row in rows]), logits)
    for n, plane in enumerate(planes):
        net = ensemble.member(ensemble.targets[strongest_member(logits[n])])
        maps = saliency_maps(net, batch[n : n + 1], [1], closed_form=False)
        (expected,) = to_pixels(maps, frames[n : n + 1], [pixels[n].shape])
        assert expected.max() > 0
        np.testing.assert_allclose(plane, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("saliency", [True, False])
def test_a_network_that_stands_for_several_members_runs_once(
    items: list[Item], saliency: bool
) -> None:
    torch.manual_seed(0)
    net = HeadNet(pooled(nn.Linear(8, 4)))
    ensemble = Ensemble(members_of(net, ("normal", "a", "b", "c")), PreprocessConfig(side=64))
    judge = Judge(ensemble, None, {}, cropped=True, saliency=saliency)
    judge.judge(items)  # tries the head once
    passes: list[int] = []
    net.register_forward_hook(lambda _m, x, _o: passes.append(len(x[0])))
    judged = judge.judge(items)
    assert passes == [len(items)]
    batch, _ = ensemble.prepare([i.pixels for i in items if i.pixels is not None])
    expected = ensemble.predict_prepared(batch)
    np.testing.assert_allclose(np.stack([i.logits for i in judged]), expected, atol=1e-5)


def test_a_closed_head_takes_one_pass_of_each_member(items: list[Item]) -> None:
    ensemble = Ensemble({"a": member(0), "b": member(1)}, PreprocessConfig(side=64))
    judge = Judge(ensemble, None, {}, cropped=True)
    judge.judge(items)  # tries each head once
    passes = []
    for target in ensemble.targets:
        ensemble.member(target).register_forward_hook(lambda _m, x, _o: passes.append(len(x[0])))
    judge.judge(items)
    assert passes == [len(items)] * 2
