"""Grad-CAM against its closed form, geometry back to the film, and the model left as found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from classify.saliency.maps import grad_cam, left_as_found, saliency_layer, to_pixels
from cxr.boxes import Frame


class TinyNet(nn.Module):
    """Two convolutions, global average pooling, a linear head: Grad-CAM equals CAM / area."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.neck = nn.Conv2d(4, 5, 1)
        self.fc = nn.Linear(5, 3)

    @property
    def saliency_layer(self) -> nn.Module:
        return self.neck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.neck(self.body(x)).mean((2, 3)))


@pytest.fixture
def net() -> TinyNet:
    return TinyNet().eval()


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_grad_cam_equals_its_closed_form(net: TinyNet, batch: torch.Tensor) -> None:
    classes = [0, 1, 2]
    maps = grad_cam(net, net.neck, batch, classes)
    with torch.no_grad():
        features = net.neck(net.body(batch))
        weights = net.fc.weight[classes] / 16  # the mean over 4 × 4 places
        expected = torch.einsum("nc,nchw->nhw", weights, features).clamp_min(0)
    assert maps.shape == (3, 4, 4) and maps.dtype == np.float32
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-6)


def test_the_map_of_a_film_does_not_depend_on_its_batch(net: TinyNet, batch: torch.Tensor) -> None:
    together = grad_cam(net, net.neck, batch, [1, 1, 1])
    alone = grad_cam(net, net.neck, batch[2:], [1])
    np.testing.assert_allclose(together[2], alone[0], atol=1e-6)


def state_of(net: nn.Module) -> list[object]:
    modules = [(m.training, len(m._forward_hooks)) for m in net.modules()]
    gradients = [None if p.grad is None else p.grad.sum().item() for p in net.parameters()]
    return [*modules, *(p.requires_grad for p in net.parameters()), *gradients]


def test_the_model_is_left_as_it_was_found(net: TinyNet, batch: torch.Tensor) -> None:
    net.train()
    net.body[1].eval()
    net.fc.weight.requires_grad_(False)
    net.neck(net.body(batch)).sum().backward()
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    before = state_of(net)
    grad_cam(net, net.neck, batch, [0, 0, 0])
    assert state_of(net) == before
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())


def test_the_model_is_left_as_it_was_found_after_an_error(net: TinyNet) -> None:
    net.train()
    before = state_of(net)
    with pytest.raises(RuntimeError):
        grad_cam(net, net.neck, torch.zeros(1, 2, 8, 8), [0])  # two channels: the body fails
    with pytest.raises(IndexError):
        grad_cam(net, net.neck, torch.zeros(1, 3, 8, 8), [7])  # no eighth logit
    assert state_of(net) == before


def test_hooks_of_others_stay(net: TinyNet, batch: torch.Tensor) -> None:
    seen = []
    handle = net.neck.register_forward_hook(lambda *_: seen.append(1))
    grad_cam(net, net.neck, batch, [0, 0, 0])
    net(batch)
    handle.remove()
    assert len(seen) == 2


def test_grad_cam_works_inside_inference_mode(net: TinyNet, batch: torch.Tensor) -> None:
    with torch.inference_mode():
        made_there = batch * 1.0
        maps = grad_cam(net, net.neck, made_there, [1, 1, 1])
    np.testing.assert_allclose(maps, grad_cam(net, net.neck, batch, [1, 1, 1]))


def test_no_film_gives_no_map(net: TinyNet) -> None:
    assert len(grad_cam(net, net.neck, torch.zeros(0, 3, 8, 8), [])) == 0


def test_a_layer_off_the_way_is_refused(net: TinyNet, batch: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be a module of the model"):
        grad_cam(net, TinyNet().neck, batch, [0, 0, 0])
    with pytest.raises(ValueError, match="one logit a film"):
        grad_cam(net, net.neck, batch, [0])


def test_left_as_found_stops_parameter_gradients(net: TinyNet, batch: torch.Tensor) -> None:
    with left_as_found(net):
        assert not net(batch).requires_grad
    assert net(batch).requires_grad


def test_a_map_comes_back_where_it_was_on_a_film_that_is_not_square() -> None:
    frame = Frame.letterbox((100, 50), 20, centre=True)  # 20 × 10 of content, 5 px of air beside
    plane = np.zeros((20, 20), np.float32)
    plane[4, 6] = 1.0  # content row 4, column 1: film rows 20–25, columns 5–10
    plane[4, 0] = 9.0  # in the air: must vanish
    (pixels,) = to_pixels(plane[None], [frame], [(100, 50)])
    assert pixels.shape == (100, 50) and pixels.min() >= 0
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    assert 20 <= row < 25 and 5 <= column < 10
    assert pixels.max() <= 1.0


def test_a_model_must_name_its_layer(net: TinyNet) -> None:
    assert saliency_layer(net) is net.neck
    with pytest.raises(ValueError, match="must name its `saliency_layer`"):
        saliency_layer(nn.Linear(2, 2))
