"""Tiny networks with every kind of head, a map worked out by hand, and the library as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

TARGET = 1
# Two channels of 2 × 2 places, which are input and maps of `HandNet` at once.
HAND_MAPS = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]]])


class HandNet(nn.Module):
    """The input itself is pooled; logit 1 is 4 · mean(A₁) − 8 · mean(A₂)."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Identity()
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[0.0, 1.0], [4.0, -8.0]]))

    @property
    def saliency_layer(self) -> nn.Module:
        return self.neck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.neck(x).mean((2, 3)))


class HeadNet(nn.Module):
    """Two convolutions of 8 channels, then any head; `broken` fails behind the layer."""

    def __init__(self, head: nn.Module, after: Callable | None = None, stride: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.neck = nn.Conv2d(6, 8, 1)
        self.after, self.head = after, head
        self.broken = False

    @property
    def saliency_layer(self) -> nn.Module:
        return self.neck

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.neck(self.body(x))
        if self.broken:
            raise RuntimeError("the head is broken")
        return self.head(maps if self.after is None else self.after(maps))


def pooled(*layers: nn.Module) -> nn.Sequential:
    """Global mean pooling and what comes behind it."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


def linear_net(seed: int = 0) -> HeadNet:
    torch.manual_seed(seed)
    return HeadNet(pooled(nn.Dropout(0.5), nn.Linear(8, 3))).eval()


def films(number: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(1))


def state_of(net: nn.Module) -> list[object]:
    """Training flags, hooks and gradients of all modules and parameters."""
    modules = [(m.training, len(m._forward_hooks)) for m in net.modules()]
    gradients = [None if p.grad is None else p.grad.sum().item() for p in net.parameters()]
    return [*modules, *(p.requires_grad for p in net.parameters()), *gradients]


def as_the_library_has_it(
    method: type[BaseCAM],
    net: nn.Module,
    layer: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
) -> np.ndarray:
    """(N, h, w) ≥ 0 by the library's own hooks, backward pass and formula; only its scaling is
    left out."""

    class Unscaled(method):  # type: ignore[valid-type, misc]
        def compute_cam_per_layer(self, input_tensor, targets, eigen_smooth):
            gradients = self.activations_and_grads.gradients
            activations = self.activations_and_grads.activations[0].numpy()
            grads = gradients[0].numpy() if gradients else None
            return self.get_cam_image(
                input_tensor, layer, targets, activations, grads, eigen_smooth
            )

        def aggregate_multi_layers(self, planes):
            return np.maximum(planes, 0)

    cam = Unscaled(net, [layer])
    planes = cam(batch.clone().requires_grad_(), [ClassifierOutputTarget(c) for c in classes])
    cam.activations_and_grads.release()
    return planes


def assert_same_maps(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-4) -> None:
    """Each map to `tolerance` of its own maximum, which must not be 0 everywhere."""
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    assert theirs.max() > 0
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * max(float(other.max()), 1e-12))
