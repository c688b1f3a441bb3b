"""classify/ensemble.py: a single network comes back from its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from classify.ensemble import build_net, load_single, save_single
from classify.models.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneConfig,
    CXRNetConfig,
    FusionConfig,
)
from classify.preprocess import PreprocessConfig
from classify.tasks.settings import SingleConfig
from cxr.bundle import save_bundle

SMALL = SingleConfig(
    classes=("normal", "bacterial", "viral"),
    backbone=BackboneConfig("baseline_cnn", weights="none"),
    preprocess=PreprocessConfig(side=33, mean=IMAGENET_MEAN, std=IMAGENET_STD),
)
JOINED = replace(
    SMALL,
    kind="fusion",
    crops="crops",
    fusion=FusionConfig("1fc", ("baseline_cnn",), weights="none"),
)


DRAWING = replace(SMALL, kind="cxrnet", cxrnet=CXRNetConfig(width=4, depth=3))


@pytest.mark.parametrize("config", [SMALL, JOINED, DRAWING], ids=lambda c: c.kind)
def test_a_network_answers_alike_after_its_file(config: SingleConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_net(config.network()).eval()
    path = save_single(tmp_path / "single.safetensors", net, config, licence_note="none")
    single = load_single(path)
    x = torch.randn(2, 3, 33, 33)
    assert (single.net(x) - net(x)).abs().max() < 0.01  # fp16
    assert not single.net.training
    assert single.classes == ("normal", "bacterial", "viral")
    assert single.settings == config.preprocess
    assert single.trained_on == ("crops" if config.crops else "films")
    assert single.meta["licence_note"] == "none"


def test_frozen_and_fetched_weights_are_all_in_the_file(tmp_path: Path) -> None:
    frozen = replace(SMALL, backbone=BackboneConfig("resnet18", freeze_to="layer1"))
    net = build_net(BackboneConfig("resnet18", classes=3, weights="none"))
    single = load_single(save_single(tmp_path / "s.safetensors", net, frozen))
    assert all(p.requires_grad for p in single.net.parameters())


def test_numbers_that_fp16_cannot_hold_stay_float32(tmp_path: Path) -> None:
    net = build_net(SMALL.network())
    net.state_dict()["body.0.1.running_var"].fill_(1e6)
    path = save_single(tmp_path / "s.safetensors", net, SMALL)
    assert load_file(path)["body.0.1.running_var"].dtype == torch.float32
    assert load_single(path).net.state_dict()["body.0.1.running_var"].max() == 1e6


def test_another_bundle_and_other_weights_are_refused(tmp_path: Path) -> None:
    save_bundle(tmp_path / "a.safetensors", "member", {"w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"kind 'single'\. Got 'member'"):
        load_single(tmp_path / "a.safetensors")
    other = build_net(BackboneConfig("baseline_cnn", classes=2, weights="none"))
    save_single(tmp_path / "b.safetensors", other, SMALL)
    with pytest.raises(ValueError, match="weights of its own network"):
        load_single(tmp_path / "b.safetensors")
