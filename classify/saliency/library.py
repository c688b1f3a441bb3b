"""Maps of any network by pytorch-grad-cam's own formulas, in their own units.

The library scales each map to [0, 1] before it averages layers, which hides how strong each was;
here the maps come out as they are. LayerTape stands in for the library's hooks. Eigen-CAM is also
written out for a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from classify.saliency.hooks import LayerTape, check_logits, left_as_found, on_device_of


class _Logit(ClassifierOutputTarget):
    """The library's target that refuses a class without a logit, -1 too."""

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        check_logits([self.category], model_output[None])
        return model_output[self.category]


class _Unscaled(BaseCAM):
    """A method of the library without scaling and averaging: gives a list of maps, one a layer."""

    activations_and_grads: LayerTape

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module]) -> None:
        super().__init__(model, list(layers))
        self.activations_and_grads.release()
        # `uses_gradients` is what the library's own __init__ of the method says
        self.activations_and_grads = LayerTape(model, layers, self.uses_gradients)

    def compute_cam_per_layer(self, input_tensor: Any, targets: Any, eigen_smooth: bool) -> Any:
        tape = self.activations_and_grads
        activations = [a.float().numpy() for a in tape.activations]
        gradients: list[np.ndarray | None] = [None] * len(activations)
        if self.uses_gradients:
            gradients = [g.float().numpy() for g in tape.gradients]
        return [
            self.get_cam_image(input_tensor, layer, targets, a, g, eigen_smooth)
            for layer, a, g in zip(self.target_layers, activations, gradients, strict=True)
        ]

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> Any:
        return cam_per_target_layer


class _GradCAM(_Unscaled, GradCAM):
    pass


class _GradCAMPlusPlus(_Unscaled, GradCAMPlusPlus):
    pass


class _HiResCAM(_Unscaled, HiResCAM):
    pass


class _LayerCAM(_Unscaled, LayerCAM):
    pass


class _EigenCAM(_Unscaled, EigenCAM):
    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        targets: Any,
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> np.ndarray:
        planes = super().get_cam_image(
            input_tensor, target_layer, targets, activations, grads, eigen_smooth
        )
        return _active_is_positive(torch.from_numpy(planes), torch.from_numpy(activations)).numpy()


class _CAM(_Unscaled):
    """CAM where the head is not one linear layer behind one backbone: the class's weights are the
    gradient of its logit by the pooled maps, which for linear heads are the head's weights."""

    def get_cam_weights(
        self, input_tensor: Any, target_layers: Any, targets: Any, activations: Any, grads: Any
    ) -> np.ndarray:
        spread = np.ptp(grads, axis=(2, 3)).max(initial=0)
        if spread > 1e-4 * np.abs(grads).max(initial=0):
            raise ValueError(
                "cam needs a layer whose maps are pooled by their mean. The gradient "
                "differs from place to place: name the last layer before global mean "
                "pooling, or take grad_cam or hirescam."
            )
        return grads.sum(axis=(2, 3))  # (N, C): mean × places


_CLASSES: dict[str, type[_Unscaled]] = {
    "grad_cam": _GradCAM,
    "grad_cam_pp": _GradCAMPlusPlus,
    "hirescam": _HiResCAM,
    "layercam": _LayerCAM,
    "eigen_cam": _EigenCAM,
    "cam": _CAM,
}


def library_maps(
    model: nn.Module,
    layers: Sequence[nn.Module],
    batch: torch.Tensor,
    classes: Sequence[int],
    method: str,
) -> list[np.ndarray]:
    """(N, h, w) float32 ≥ 0 of each layer, all from one forward and at most one backward pass,
    which ends at the layers. Arguments as for `saliency_maps`, which checks them."""
    with left_as_found(model), torch.inference_mode(False), torch.enable_grad():
        # Not used as a context manager: the library's __exit__ swallows IndexError.
        cam = _CLASSES[method](model, layers)
        try:
            # cloned, for a batch made in inference mode cannot take part in a backward pass
            planes = cam(
                input_tensor=batch.clone().detach(), targets=[_Logit(int(c)) for c in classes]
            )
            check_logits(classes, cam.outputs)
        finally:
            cam.activations_and_grads.release()
    return [np.ascontiguousarray(np.maximum(p, 0), dtype=np.float32) for p in planes]


def eigen_maps(
    model: nn.Module, layer: nn.Module, batch: torch.Tensor, classes: Sequence[int]
) -> np.ndarray:
    """Eigen-CAM (Muhammad & Yeasin 2020, arXiv 2008.00299) of a whole batch: (N, h, w) float32 ≥ 0.

    The layer's activations projected on their first principal component, centred as in
    pytorch-grad-cam. It explains no class in particular: `classes` are only checked. A component's
    sign means nothing, so it is chosen: see `_active_is_positive`.
    """
    with left_as_found(model), torch.inference_mode():
        tape = LayerTape(model, [layer], gradients=False)
        check_logits(classes, tape(on_device_of(model, batch)))
        activations = tape.recorded(layer).double()
        n, channels, h, w = activations.shape
        centred = activations.flatten(2).transpose(1, 2)  # (N, places, C)
        centred = centred - centred.mean(1, keepdim=True)
        if h * w <= channels:  # the smaller of the two Gram matrices has the same component
            values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
            planes = vectors[..., -1] * values[:, -1:].clamp_min(0).sqrt()
        else:
            vectors = torch.linalg.eigh(centred.transpose(1, 2) @ centred)[1]
            planes = (centred @ vectors[..., -1:])[..., 0]
        planes = _active_is_positive(planes.view(n, h, w), activations)
    return planes.clamp_min(0).float().cpu().numpy()


def _active_is_positive(planes: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
    """(N, h, w) with the sign under which each plane rises with the energy Σ_c A² of the
    activations (N, C, h, w): positive is where the network is active. Where a plane does not
    depend on the energy at all, its strongest place is positive."""
    flat = planes.flatten(1).double()
    energy = activations.double().square().sum(1).flatten(1)
    energy = energy - energy.mean(1, keepdim=True)
    agreement = (flat * energy).sum(1)
    unclear = agreement.abs() <= 1e-9 * flat.norm(dim=1) * energy.norm(dim=1)
    strongest = flat.gather(1, flat.abs().argmax(1, keepdim=True))[:, 0]
    sign = torch.where(unclear, strongest, agreement) < 0
    return torch.where(sign[:, None, None], -planes, planes)
