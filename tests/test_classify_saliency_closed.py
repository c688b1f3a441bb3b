"""Closed forms against pytorch-grad-cam as it is, and the heads that allow them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_phantom
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from saliency_nets import (
    HAND_MAPS,
    TARGET,
    HandNet,
    HeadNet,
    as_the_library_has_it,
    assert_same_maps,
    films,
    linear_net,
    pooled,
    state_of,
)
from torch import nn

from classify.members import NORMAL
from classify.models.multitask import build_member
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig, preprocess, to_input
from classify.saliency import CLOSED_FORMS
from classify.saliency.hooks import logits_and_maps, may_be_closed
from classify.saliency.maps import look, saliency_maps
from cxr.bundle import load_bundle

LIBRARY = {
    "grad_cam": GradCAM,
    "grad_cam_pp": GradCAMPlusPlus,
    "hirescam": HiResCAM,
    "layercam": LayerCAM,
}
TINY = MemberConfig("tu-test_efficientnet", "none", 24, 0.1, decoder_channels=(8, 8))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("cam", [[0, 8], [12, 8]]),  # 4 A₁ − 8 A₂, and its negative place is 0
        ("grad_cam", [[0, 2], [3, 2]]),  # the gradients are 4 / 4 and −8 / 4
        ("hirescam", [[0, 2], [3, 2]]),
        ("layercam", [[1, 2], [3, 4]]),  # only A₁ has a positive gradient
        # channel 1: 4 places · 1 · 1² / (2 · 1² + 1³ · 10) = 1/3; channel 2: 0
        ("grad_cam_pp", [[1 / 3, 2 / 3], [1, 4 / 3]]),
    ],
)
@pytest.mark.parametrize("closed_form", [True, False])
def test_a_map_worked_out_by_hand(method: str, expected: list, closed_form: bool) -> None:
    (plane,) = saliency_maps(HandNet(), HAND_MAPS, [TARGET], method, closed_form=closed_form)
    np.testing.assert_allclose(plane, expected, rtol=1e-5)


@pytest.mark.parametrize("method", LIBRARY)
@pytest.mark.parametrize("neck", [24, 0])
def test_a_member_gets_the_library_s_map(method: str, neck: int) -> None:
    torch.manual_seed(0)
    member = build_member(replace(TINY, neck_channels=neck)).eval()
    batch, classes = films(3, 64, 96), [0, 1, 2]
    ours = saliency_maps(member, batch, classes, method, closed_form=True)
    layer = member.saliency_layer
    theirs = as_the_library_has_it(LIBRARY[method], member, layer, batch, classes)
    assert_same_maps(ours, theirs)


@pytest.fixture(scope="module")
def shipped(root: Path) -> nn.Module:
    from classify.ensemble import member_of
    from classify.members import member_files

    folder = root / "weights/ensemble_crops"
    if not folder.is_dir():
        pytest.skip("the shipped member is missing: no weights/ensemble_crops")
    return member_of(load_bundle(member_files(folder)[0], "member")).eval()


@pytest.mark.parametrize("method", LIBRARY)
def test_the_shipped_member_gets_the_library_s_map(method: str, shipped: nn.Module) -> None:
    settings = PreprocessConfig(side=160)  # smaller than its own, to be quick
    image = preprocess(draw_phantom()[0].astype(np.float32), settings)
    batch = to_input(torch.from_numpy(image)[None, None], settings)
    ours = saliency_maps(shipped, batch, [NORMAL], method, closed_form=True)
    layer = shipped.saliency_layer
    theirs = as_the_library_has_it(LIBRARY[method], shipped, layer, batch, [NORMAL])
    assert_same_maps(ours, theirs)


def test_cam_adds_up_to_the_logit_without_its_bias() -> None:
    net = linear_net()
    net.head[-1].weight.data.abs_()
    net.neck.weight.data.abs_()
    net.neck.bias.data.abs_()  # so that no place is negative and cut off
    plane = saliency_maps(net, films(), [2, 2, 2], "cam")
    logits = net(films())[:, 2] - net.head[-1].bias[2]
    np.testing.assert_allclose(plane.mean((1, 2)), logits.detach().numpy(), rtol=1e-4)


def test_several_linear_layers_are_multiplied() -> None:
    torch.manual_seed(0)
    head = pooled(nn.Linear(8, 7), nn.Identity(), nn.Linear(7, 5, bias=False), nn.Linear(5, 3))
    net = HeadNet(head).eval()
    found = logits_and_maps(net, films())
    assert found.head is not None and found.head.weight.shape == (3, 8)
    torch.testing.assert_close(found.head.logits(found.maps), net(films()), atol=1e-5, rtol=1e-4)
    theirs = as_the_library_has_it(GradCAM, net, net.neck, films(), [0, 1, 2])
    assert_same_maps(found.saliency([0, 1, 2]), theirs)


def heads_that_are_not_linear() -> dict[str, HeadNet]:
    torch.manual_seed(0)
    return {
        "non-linear": HeadNet(pooled(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))),
        "max pooling": HeadNet(
            nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        ),
        "no pooling": HeadNet(nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 3))),
        "ReLU before pooling": HeadNet(pooled(nn.Linear(8, 3)), after=nn.ReLU(inplace=True)),
        "convolution": HeadNet(
            nn.Sequential(nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        ),
    }


@pytest.mark.parametrize("name", heads_that_are_not_linear())
def test_another_head_falls_back_to_a_backward_pass(name: str) -> None:
    net = heads_that_are_not_linear()[name].eval()
    assert logits_and_maps(net, films()).head is None
    assert not may_be_closed(net.neck)
    ours = saliency_maps(net, films(), [0, 1, 2], "hirescam")
    if name != "ReLU before pooling":  # there the library's activations are changed in place
        theirs = as_the_library_has_it(HiResCAM, net, net.neck, films(), [0, 1, 2])
        assert_same_maps(ours, theirs)
    with pytest.raises(ValueError, match="closed_form must be auto or False for this model"):
        saliency_maps(net, films(), [0, 1, 2], closed_form=True)


def test_a_non_linearity_that_sleeps_on_these_films_is_found_out() -> None:
    """Maps that are all positive pass a ReLU unchanged: only the random maps show it."""
    torch.manual_seed(0)
    net = HeadNet(pooled(nn.ReLU(), nn.Linear(8, 3))).eval()
    net.neck.weight.data.abs_()
    net.neck.bias.data.abs_()
    assert net.neck(net.body(films())).min() >= 0
    assert logits_and_maps(net, films()).head is None


def test_a_path_round_the_layer_is_found_out() -> None:
    class Round(HeadNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x.mean((1, 2, 3))[:, None]

    torch.manual_seed(0)
    net = Round(pooled(nn.Linear(8, 3))).eval()
    assert logits_and_maps(net, films()).head is None


def test_a_head_that_is_changed_later_is_found_out() -> None:
    net = linear_net()
    assert logits_and_maps(net, films()).head is not None
    net.after = torch.tanh
    assert logits_and_maps(net, films()).head is None


def test_weights_that_are_changed_later_count() -> None:
    net = linear_net()
    before = saliency_maps(net, films(), [1, 1, 1], "cam")
    net.head[-1].weight.data *= 2
    np.testing.assert_allclose(saliency_maps(net, films(), [1, 1, 1], "cam"), 2 * before, rtol=1e-5)


def test_one_pass_gives_the_logits_too() -> None:
    net = linear_net()
    calls = []
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    look([net], films(), TARGET)
    calls.clear()  # the first time tries the head with random maps
    ((logits, planes),) = look([net], films(), TARGET)
    handle.remove()
    assert len(calls) == 1
    np.testing.assert_array_equal(logits, net(films()).detach().numpy())
    assert planes is not None
    np.testing.assert_array_equal(planes, saliency_maps(net, films(), [TARGET] * 3))


def test_one_pass_gives_no_map_where_the_head_is_another() -> None:
    net = heads_that_are_not_linear()["non-linear"].eval()
    ((logits, planes),) = look([net], films(), TARGET)
    assert logits.shape == (3, 3) and planes is None


def test_no_backward_pass_is_made() -> None:
    net = linear_net()
    with torch.no_grad():
        for method in CLOSED_FORMS:
            planes = saliency_maps(net, films(), [0, 1, 2], method)
            assert planes.shape == (3, 8, 8)
    assert not any(p.grad is not None for p in net.parameters())


def test_dropout_of_a_net_in_training_does_not_reach_the_map() -> None:
    net = linear_net()
    expected = saliency_maps(net, films(), [1, 1, 1])
    net.train()
    before = state_of(net)
    np.testing.assert_array_equal(saliency_maps(net, films(), [1, 1, 1]), expected)
    assert state_of(net) == before
