"""classify/models/unets.py: the network that restores, and its encoder in a classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from classify.models.backbones import build_backbone
from classify.models.settings import UNET_WIDTHS, BackboneConfig, UnetCbamConfig, known
from classify.models.unets import CBAM, UnetCbam, build_encoder
from classify.saliency import METHODS
from classify.saliency.maps import saliency_maps
from cxr.bundle import save_bundle

TINY = UnetCbamConfig(widths=(4, 6, 8))


def films(side: int = 32, number: int = 2) -> torch.Tensor:
    return torch.rand(number, 1, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("size", [(32, 32), (30, 45)])
def test_a_film_comes_back_in_its_size_and_range(norm: str, size: tuple[int, int]) -> None:
    net = UnetCbam(UnetCbamConfig(widths=(4, 6, 8), norm=norm))
    out = net(torch.rand(2, 1, *size))
    assert out.shape == (2, 1, *size)
    assert out.min() > 0 and out.max() < 1


def test_every_skip_goes_through_attention() -> None:
    net = UnetCbam(TINY)
    assert [type(s) for s in net.skips] == [CBAM, CBAM]
    seen: list[int] = []
    for skip in net.skips:
        skip.register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    net(films())
    assert sorted(seen) == [4, 6]


def test_plain_skips_have_none() -> None:
    net = UnetCbam(UnetCbamConfig(widths=(4, 6), attention=False))
    assert not any(isinstance(m, CBAM) for m in net.modules())
    assert net(films()).shape == (2, 1, 32, 32)


def test_every_weight_learns() -> None:
    net = UnetCbam(TINY)
    (net(films()) - films()).square().sum().backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not without


def test_each_stage_of_the_encoder_halves_the_size() -> None:
    encoder = build_encoder((4, 6, 8))
    assert list(dict(encoder.named_children())) == ["stage1", "stage2", "stage3"]
    assert encoder(torch.rand(1, 3, 40, 24)).shape == (1, 8, 10, 6)


@pytest.mark.parametrize("name", UNET_WIDTHS)
def test_the_encoder_is_a_body_of_the_classifiers(name: str) -> None:
    with torch.device("meta"):
        net = UnetCbam(UnetCbamConfig(name))
    body = build_backbone(BackboneConfig(name, 3, weights="none")).body
    assert {k: v.shape for k, v in net.encoder.state_dict().items()} == {
        k: v.shape for k, v in body.state_dict().items()
    }
    assert known(name).width == UNET_WIDTHS[name][-1]
    assert tuple(known(name).stages) == ("stage1", "stage2", "stage3", "stage4", "stage5")


def test_a_classifier_starts_from_the_bundle_of_a_pretraining(tmp_path: Path) -> None:
    """And its encoder answers what that of the restoring network answered."""
    net = UnetCbam(UnetCbamConfig("unet_cbam_small"))
    path = save_bundle(tmp_path / "p.safetensors", "pretrained", dict(net.state_dict()), half=False)
    config = BackboneConfig("unet_cbam_small", 3, weights=str(path), freeze_to="stage5")
    classifier = build_backbone(config)
    grey = films(64)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.inference_mode():
        expected = net.encoder((grey.expand(-1, 3, -1, -1) - 0.5) / 0.5)
        assert torch.allclose(classifier.maps((grey - mean) / std), expected, atol=1e-4)
    assert not any(p.requires_grad for p in classifier.body.parameters())


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    state = dict(UnetCbam(UnetCbamConfig("unet_cbam_small")).state_dict())
    path = save_bundle(tmp_path / "p.safetensors", "pretrained", state)
    with pytest.raises(ValueError, match=r"another shape.*stage1"):
        build_backbone(BackboneConfig("unet_cbam", 2, weights=str(path)))


@pytest.mark.parametrize("method", METHODS)
def test_every_map_can_be_made_of_the_classifier(method: str) -> None:
    net = build_backbone(BackboneConfig("unet_cbam_small", 3, weights="none"))
    maps = saliency_maps(net, torch.rand(2, 3, 64, 64), [0, 2], method, top_k=4)
    assert maps.shape == (2, 4, 4) and maps.min() >= 0


def test_maps_by_a_backward_pass_agree_with_the_closed_form() -> None:
    net = build_backbone(BackboneConfig("unet_cbam_small", 2, weights="none"))
    batch = torch.rand(1, 3, 64, 64)
    closed = saliency_maps(net, batch, [1], closed_form=True)
    graph = saliency_maps(net, batch, [1], closed_form=False)
    assert closed == pytest.approx(graph, abs=1e-4 * float(closed.max()))


def test_no_statistics_go_along_with_group_norm() -> None:
    """What a film becomes does not hang on the batch, in training either."""
    net = UnetCbam(TINY).train()
    both = net(films())
    assert torch.allclose(both[:1], net(films()[:1]), atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "unet"}, r"unet_cbam or unet_cbam_small.*'unet'"),
        ({"norm": "layer"}, "norm must be one of group, batch"),
        ({"widths": (4,)}, "two or more"),
        ({"reduction": 0}, "reduction"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        UnetCbamConfig(**wrong)
