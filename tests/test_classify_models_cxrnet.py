"""CXRNet: shapes, losses worked out by hand, what the map hides, and its maps as saliency."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from saliency_nets import state_of
from torch import nn

from classify.audit.metrics import Regions, measure
from classify.models.backbones import build_backbone
from classify.models.settings import BackboneConfig, CXRNetConfig
from classify.models.unets import CXRNet, build_cxrnet, total_variation
from classify.saliency import to_pixels
from classify.saliency.maps import explains_itself, explanations, saliency_maps
from cxr.boxes import Frame

SMALL = CXRNetConfig(classes=3, width=4, depth=3, side=32)


def films(number: int = 4, side: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net() -> CXRNet:
    torch.manual_seed(0)
    return build_cxrnet(SMALL).eval()


def fixed_map(net: CXRNet, plane: torch.Tensor) -> None:
    """The decoder draws this (h, w) on every film."""
    net.explainer.register_forward_hook(lambda _m, _i, out: plane.expand_as(out).clone())


@pytest.mark.parametrize("side", [32, 45])
def test_logits_and_a_map_in_the_films_own_pixels(net: CXRNet, side: int) -> None:
    batch = films(side=side)
    assert net(batch).shape == (4, 3)
    shown = net.explain(batch)
    assert shown.shape == (4, 1, side, side)
    assert shown.min() > 0 and shown.max() < 1


def test_the_answer_comes_from_the_second_encoder_through_the_map(net: CXRNet) -> None:
    batch = films()
    seen = batch * net.explain(batch)
    assert torch.allclose(net(batch), net.head(net.second(seen).mean((2, 3))), atol=1e-6)


def test_what_the_map_hides_changes_no_answer(net: CXRNet) -> None:
    plane = torch.zeros(32, 32)
    plane[:, :16] = 1
    fixed_map(net, plane)
    one, other = films(seed=1), films(seed=1)
    other[..., 16:] = films(seed=2)[..., 16:]
    assert torch.equal(net(one), net(other))
    other[..., :16] = 10 * films(seed=2)[..., :16]
    assert not torch.allclose(net(one), net(other), atol=1e-3)


def test_the_classes_alone_teach_encoder_and_decoder(net: CXRNet) -> None:
    net.train()
    F.cross_entropy(net(films()), torch.tensor([0, 1, 2, 0])).backward()
    for part in (net.first, net.decoder, net.explainer, net.second):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in net.first_head.parameters())


def test_the_extra_loss_by_hand(net: CXRNet) -> None:
    plane = torch.zeros(32, 32)
    plane[8:24, 8:24] = 0.5
    fixed_map(net, plane)
    with torch.no_grad():  # the first encoder's own answer: the same logits on every film
        net.first_head[-1].weight.zero_()
        net.first_head[-1].bias.copy_(torch.tensor([0.0, 0.0, float(np.log(2))]))
    labels = torch.tensor([2, 2, 0, 1])  # probabilities ¼, ¼, ½
    own = (2 * np.log(2) + 2 * np.log(4)) / 4
    # an edge of height ½ crosses 2 · 16 of the 31 · 32 steps, down and across alike
    edges = 2 * (2 * 16 * 0.5) / (31 * 32)
    wanted = 0.5 * own + 0.3 * 0.5 * 256 / 1024 + 0.1 * edges
    assert net.terms(films(), labels)[1].item() == pytest.approx(wanted, rel=1e-5)


def test_one_pass_gives_the_logits_and_the_same_extra_loss(net: CXRNet) -> None:
    batch, labels = films(), torch.tensor([0, 1, 2, 0])
    logits, extra = net.terms(batch, labels)
    assert torch.allclose(logits, net(batch), atol=1e-6)
    assert torch.allclose(extra, net.terms(batch, labels)[1], atol=1e-6)
    weight = torch.tensor([1.0, 5.0, 1.0])
    assert not torch.allclose(extra, net.terms(batch, labels, weight)[1], atol=1e-4)


def test_total_variation_by_hand() -> None:
    maps = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    # down: ½, ½; across: 1, 0
    assert float(total_variation(maps)) == 1.0


def test_its_maps_are_saliency_and_the_net_is_left_as_found(net: CXRNet) -> None:
    net.train()
    batch, before = films(), state_of(net)
    drawn, weighed = explanations(net, batch), explanations(net, batch, [0, 1, 2, 0])
    assert state_of(net) == before
    for maps in (drawn, weighed):
        assert maps.shape == (4, 32, 32) and maps.dtype == np.float32 and maps.min() >= 0
    assert np.allclose(drawn, net.eval().explain(batch)[:, 0].detach(), atol=1e-6)
    assert explanations(net, batch[:0]).shape[0] == 0


def test_a_class_map_is_the_map_times_its_gradient(net: CXRNet) -> None:
    batch = films(2)
    shown = net.explain(batch).detach().requires_grad_()
    net.head(net.second(batch * shown).mean((2, 3)))[:, 1].sum().backward()
    by_hand = (shown * shown.grad)[:, 0].clamp_min(0).detach().numpy()
    assert by_hand.max() > 0
    assert np.allclose(explanations(net, batch, [1, 1]), by_hand, atol=1e-6)


def test_grad_cam_of_the_second_encoder_has_its_closed_form(net: CXRNet) -> None:
    closed = saliency_maps(net, films(), [0, 1, 2, 0], closed_form=True)
    library = saliency_maps(net, films(), [0, 1, 2, 0], closed_form=False)
    assert closed.shape == (4, 8, 8)
    assert np.allclose(closed, library, atol=1e-5 * closed.max())


def test_the_audit_measures_its_map_beside_grad_cam(net: CXRNet) -> None:
    lung = np.zeros((32, 32), bool)
    lung[4:28, 4:14] = lung[4:28, 18:28] = True
    plane = torch.from_numpy(lung).float()
    fixed_map(net, plane)
    frame = Frame.letterbox((32, 32), 32)
    regions = Regions(lung)
    own, cam = (
        to_pixels(maps, [frame], [(32, 32)])[0]
        for maps in (explanations(net, films(1)), saliency_maps(net, films(1), [1]))
    )
    area = 2 * 24 * 10 / 1024
    found = measure(own, regions, "film", draws=8)
    assert found["inside_share"] == pytest.approx(1) and found["lift"] == pytest.approx(1 / area)
    assert measure(cam, regions, "film", draws=8)["lift"] < found["lift"]


def test_a_wrapped_net_explains_itself_too(net: CXRNet) -> None:
    class Member(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)[:, [2, 0, 1]]

    member, batch = Member(), films(2)
    assert explains_itself(member)
    assert np.array_equal(explanations(member, batch), explanations(net, batch))
    assert np.allclose(explanations(member, batch, [0, 0]), explanations(net, batch, [2, 2]))


def test_a_net_that_draws_no_map_is_refused() -> None:
    plain = build_backbone(BackboneConfig("baseline_cnn", weights="none"))
    assert not explains_itself(plain)
    with pytest.raises(ValueError, match="Backbone must have `explain`"):
        explanations(plain, films(1))


def test_it_learns_to_find_a_patch_and_its_class_map_lies_on_it() -> None:
    torch.manual_seed(0)
    net = build_cxrnet(CXRNetConfig(width=4, depth=3, side=24))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # its statistics must keep up with so short a training
    batch, labels = 0.3 * films(16, 24), torch.arange(16) % 2
    rng, patches = np.random.default_rng(0), np.zeros((16, 24, 24), bool)
    for film, (y, x) in enumerate(rng.integers(2, 16, (16, 2))):
        patches[film, y : y + 6, x : x + 6] = True
        if labels[film]:
            batch[film, :, y : y + 6, x : x + 6] += 2.0
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(30):
        logits, extra = net.terms(batch, labels)
        optimiser.zero_grad()
        (F.cross_entropy(logits, labels) + extra).backward()
        optimiser.step()
    net.eval()
    assert (net(batch).argmax(1) == labels).float().mean() > 0.9
    maps, cams = explanations(net, batch, [1] * 16), saliency_maps(net, batch, [1] * 16)
    cams = cams.repeat(4, axis=1).repeat(4, axis=2)
    share, coarse = (
        np.mean([m[p].sum() / m.sum() for m, p in zip(s[1::2], patches[1::2])])
        for s in (maps, cams)
    )
    assert share > 0.3 > 36 / 576 and share > coarse


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"classes": 0}, "classes"),
        ({"depth": 1}, "depth"),
        ({"area": -1.0}, "area"),
        ({"side": 16}, "at least 32 px with depth 5"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CXRNetConfig(**wrong)
