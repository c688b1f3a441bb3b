"""Fusion nets: a map for each backbone, added up in their own units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
from saliency_nets import as_the_library_has_it, assert_same_maps, films, state_of
from torch import nn

from classify.saliency.maps import (
    METHODS,
    backbone_maps,
    fused_maps,
    logits_and_saliency,
    saliency_maps,
)

STRIDES = {"fine": 2, "middle": 4, "coarse": 8}


class Fusion(nn.Module):
    """Three backbones of other resolutions and widths, run in another order than named."""

    def __init__(self, style: str = "layers", hidden: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(3, 4 + n, 3, stride, 1), nn.ReLU())
                for n, (name, stride) in enumerate(STRIDES.items())
            }
        )
        middle: list[nn.Module] = [nn.Linear(15, 9), nn.ReLU()] if hidden else []
        self.head = nn.Sequential(*middle, nn.Linear(9 if hidden else 15, 2))
        if style == "layers":
            self.saliency_layers = {name: net[1] for name, net in self.nets.items()}
        elif style == "backbones":
            self.backbones = {name: (net, net[1]) for name, net in self.nets.items()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = {name: self.nets[name](x).mean((2, 3)) for name in reversed(STRIDES)}
        return self.head(torch.cat([pooled[name] for name in STRIDES], dim=1))


class HandFusion(nn.Module):
    """Logit 1 is 4 · mean of the film + 1 · mean of its 2 × 2 means."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Identity(), nn.AvgPool2d(2)
        self.weights = nn.Parameter(torch.tensor([4.0, 1.0]))
        self.saliency_layers = {"fine": self.fine, "coarse": self.coarse}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine, coarse = (layer(x).mean((1, 2, 3)) for layer in (self.fine, self.coarse))
        return torch.stack([0 * fine, self.weights[0] * fine + self.weights[1] * coarse], dim=1)


def test_fused_maps_worked_out_by_hand() -> None:
    film = torch.zeros(1, 1, 4, 4)
    film[0, 0, :2, :2] = 4.0
    maps = backbone_maps(HandFusion(), film, [1])
    np.testing.assert_allclose(maps["fine"][0, :2, :2], 4 * 4 / 16)  # gradient 4 / 16 a place
    np.testing.assert_allclose(maps["coarse"][0], [[4 / 4, 0], [0, 0]])  # gradient 1 / 4 a place
    (fused,) = fused_maps(HandFusion(), film, [1])
    assert fused.shape == (4, 4)
    # each map's sum is its share of the logit: 4 · 1 + 1 · 1
    assert fused.sum() == pytest.approx(5.0)
    # the coarse map, enlarged (corner 1, then 3/4), keeps its sum of 1: before that it was 4
    assert fused[0, 0] == pytest.approx(1 + 1 / 4)
    assert fused[1, 1] == pytest.approx(1 + 0.75 * 0.75 / 4)


def test_a_backbone_that_says_nothing_adds_nothing() -> None:
    """The library would scale its map up to 1."""
    net = Fusion().eval()
    net.head[0].weight.data[:, 4:] *= 1e-4  # only the first backbone counts
    fused = fused_maps(net, films(), [1, 1, 1])
    alone = backbone_maps(net, films(), [1, 1, 1])["fine"]
    np.testing.assert_allclose(fused, alone, atol=1e-3 * alone.max())


@pytest.mark.parametrize("style", ["layers", "backbones"])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    ("method", "theirs"), [("grad_cam", GradCAM), ("hirescam", HiResCAM), ("layercam", LayerCAM)]
)
def test_each_backbone_gets_its_own_map(
    method: str, theirs: type, hidden: bool, style: str
) -> None:
    """As the library gives it for that layer alone, though the backbones run in another order."""
    net = Fusion(style, hidden).eval()
    maps = backbone_maps(net, films(), [0, 1, 1], method)
    assert list(maps) == list(STRIDES)
    for name, stride in STRIDES.items():
        assert maps[name].shape == (3, 16 // stride, 16 // stride)
        expected = as_the_library_has_it(theirs, net, net.nets[name][1], films(), [0, 1, 1])
        if expected.max() > 0:
            assert_same_maps(maps[name], expected)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_fused_and_saliency_maps_finds_the_backbones(method: str) -> None:
    net = Fusion("backbones").train()
    before = state_of(net)
    fused = saliency_maps(net, films(), [0, 1, 1], method)
    assert state_of(net) == before
    assert fused.shape == (3, 8, 8) and fused.dtype == np.float32
    assert fused.min() >= 0 and fused.max() > 0
    np.testing.assert_array_equal(fused, fused_maps(net, films(), [0, 1, 1], method))
    (alone,) = fused_maps(net, films()[2:], [1], method)
    np.testing.assert_allclose(alone, fused[2], atol=1e-5 * fused.max())


def test_the_share_of_each_backbone_is_kept() -> None:
    net = Fusion().eval()
    maps = backbone_maps(net, films(), [1, 1, 1], "layercam")
    shares = sum(plane.sum((1, 2)) for plane in maps.values())
    np.testing.assert_allclose(
        fused_maps(net, films(), [1, 1, 1], "layercam").sum((1, 2)), shares, rtol=1e-5
    )


def test_cam_of_a_backbone_is_weighed_by_the_head() -> None:
    net = Fusion().eval()
    maps = backbone_maps(net, films(), [1, 1, 1], "cam")
    with torch.no_grad():
        weights = net.head[0].weight[1, :4]
        expected = torch.einsum("c,nchw->nhw", weights, net.nets["fine"](films())).clamp_min(0)
    assert_same_maps(maps["fine"], expected.numpy())


def test_one_pass_of_a_fusion_net_gives_its_logits() -> None:
    net = Fusion().eval()
    logits, planes = logits_and_saliency(net, films(), 1)
    assert planes is None
    np.testing.assert_array_equal(logits, net(films()).detach().numpy())


def test_no_film_gives_no_fused_map() -> None:
    assert len(fused_maps(Fusion(), films()[:0], [])) == 0


def test_a_net_without_named_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="must name the layers of its backbones"):
        fused_maps(Fusion("none"), films(), [0, 0, 0])
    with pytest.raises(ValueError, match="auto or False for a net with several backbones"):
        saliency_maps(Fusion(), films(), [0, 0, 0], closed_form=True)
    net = Fusion()
    net.saliency_layers["fine"] = nn.ReLU()
    with pytest.raises(ValueError, match="must be a module of the model"):
        fused_maps(net, films(), [0, 0, 0])
