"""Where a member looked: saliency maps of one logit, laid back on the film.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) on pytorch-grad-cam's hooks and weights. The
library scales each map to [0, 1], which hides how strong it was and shifts its energy; here maps
keep their unit, so that maps of several members can be compared and their energy audited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import cv2
import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from cxr.boxes import Frame


class SaliencyMethod(Protocol):
    """A way of making maps: a model, a batch and a class for each film, to (N, h, w) ≥ 0."""

    def __call__(
        self, model: nn.Module, layer: nn.Module, batch: torch.Tensor, classes: Sequence[int]
    ) -> np.ndarray: ...


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode without parameter gradients; afterwards just as it was.

    Training flags of every module, `requires_grad` and `.grad` of every parameter and all forward
    hooks are put back, also after an error.
    """
    modules = list(model.modules())
    training = [m.training for m in modules]
    hooks = [m._forward_hooks.copy() for m in modules]
    parameters = list(model.parameters())
    wanted = [(p.requires_grad, p.grad) for p in parameters]
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)  # only the activations' gradients are needed
        yield model
    finally:
        for module, flag, kept in zip(modules, training, hooks, strict=True):
            module.training = flag
            for handle in set(module._forward_hooks) - set(kept):
                del module._forward_hooks[handle]
        for parameter, (flag, gradient) in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = gradient


class _UnscaledGradCAM(GradCAM):
    """The library's Grad-CAM without its scaling of each map to [0, 1]."""

    def compute_cam_per_layer(self, input_tensor, targets, eigen_smooth):  # type: ignore[no-untyped-def]
        activations = self.activations_and_grads.activations[0].numpy()
        gradients = self.activations_and_grads.gradients
        if not gradients:
            raise ValueError("layer of Grad-CAM must lie on the way to the logits. No gradient "
                             "reached it: give the layer whose output the head pools.")  # fmt: skip
        return self.get_cam_image(input_tensor, self.target_layers[0], targets, activations,
                                  gradients[0].numpy(), eigen_smooth)  # fmt: skip

    def aggregate_multi_layers(self, cam_per_target_layer):  # type: ignore[no-untyped-def]
        return np.maximum(cam_per_target_layer, 0.0)


def grad_cam(
    model: nn.Module, layer: nn.Module, batch: torch.Tensor, classes: Sequence[int]
) -> np.ndarray:
    """Grad-CAM of one logit a film: (N, h, w) float32 ≥ 0 at the layer's own resolution.

    Args:
        model: gives (N, K) logits for `batch`; left as it was found.
        layer: a module of the model whose output is (N, C, h, w).
        batch: (N, 3, side, side), prepared for the model.
        classes: N indices of logits.
    """
    if len(classes) != len(batch):
        raise ValueError(f"classes must name one logit a film. Got {len(classes)} for "
                         f"{len(batch)} films instead.")  # fmt: skip
    if not any(m is layer for m in model.modules()):
        raise ValueError("layer must be a module of the model. Got one of another model instead.")
    if not len(batch):
        return np.zeros((0, 1, 1), np.float32)
    wanted = [ClassifierOutputTarget(int(c)) for c in classes]
    with left_as_found(model), torch.inference_mode(False), torch.enable_grad():
        # Not used as a context manager: the library's __exit__ swallows IndexError.
        cam = _UnscaledGradCAM(model, [layer])
        try:
            # the input carries the gradient, since the parameters carry none
            maps = cam(input_tensor=batch.clone().detach().requires_grad_(), targets=wanted)
        finally:
            cam.activations_and_grads.release()
    return np.ascontiguousarray(maps, dtype=np.float32)


def to_pixels(
    maps: np.ndarray, frames: Sequence[Frame], sizes_hw: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """Maps (N, h, w) of a model's square input to N maps (H, W) in the pixels it was made from.

    `frames` maps those pixels (of the crop, or of the whole film) to the model's input. Padding
    is cut off: outside the cut there is 0.
    """
    out = []
    for plane, frame, size_hw in zip(maps, frames, sizes_hw, strict=True):
        height, width = frame.canvas_hw
        canvas = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
        out.append(np.maximum(frame.restore(canvas, size_hw), 0.0).astype(np.float32, copy=False))
    return out


def saliency_layer(model: nn.Module) -> nn.Module:
    """The layer that the model itself names for its maps; raises ValueError where it names none."""
    layer = getattr(model, "saliency_layer", None)
    if not isinstance(layer, nn.Module):
        raise ValueError(f"{type(model).__name__} must name its `saliency_layer`, the module whose "
                         "output (N, C, h, w) is pooled. It names none.")  # fmt: skip
    return layer
