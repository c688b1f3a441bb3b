"""Maps of any network from one forward and one backward pass, and Eigen-CAM, in their own units.

The formulas are those of pytorch-grad-cam, which the tests hold them against. The library scales
each map to [0, 1] before it averages layers, which hides how strong each was, and its two lists of
activations and gradients follow the order in which layers run forwards and backwards: for parallel
backbones these differ, and maps would be made of one's activations and another one's gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from classify.saliency.hooks import check_logits, left_as_found, run_recorded

EPS = 1e-6  # pytorch-grad-cam's in Grad-CAM++; with gradients near 1e-3 it weighs in


def gradient_maps(
    model: nn.Module,
    layers: Sequence[nn.Module],
    batch: Tensor,
    classes: Sequence[int],
    method: str,
) -> list[np.ndarray]:
    """(N, h, w) float32 ≥ 0 of each layer, all from one forward and one backward pass, which ends
    at the layers. Arguments as for `saliency_maps`, which checks them."""
    with left_as_found(model), torch.inference_mode(False), torch.enable_grad():
        # cloned, for a batch made in inference mode cannot take part in a backward pass
        logits, maps = run_recorded(model, layers, batch.clone().detach(), gradients=True)
        check_logits(classes, logits)
        wanted = logits[torch.arange(len(batch)), [int(c) for c in classes]].sum()
        found: Sequence[Tensor | None] = [None] * len(maps)
        if wanted.requires_grad:
            found = torch.autograd.grad(wanted, maps, allow_unused=True)
    planes = []
    for layer, activations, gradients in zip(layers, maps, found, strict=True):
        if gradients is None:
            raise ValueError(
                f"layer must lie on the way to the logits. No gradient reached "
                f"{type(layer).__name__}: give the layer whose output the head pools."
            )
        plane = _FORMULAS[method](activations.detach().float(), gradients.float())
        planes.append(plane.clamp_min(0).cpu().numpy())
    return planes


def _cam(maps: Tensor, g: Tensor) -> Tensor:
    """The class's weights are the gradient of its logit by the pooled maps, which for linear heads
    are the head's weights."""
    spread = g.amax((2, 3)) - g.amin((2, 3))
    if g.numel() and spread.max() > 1e-4 * g.abs().max():
        raise ValueError(
            "cam needs a layer whose maps are pooled by their mean. The gradient "
            "differs from place to place: name the last layer before global mean "
            "pooling, or take grad_cam or hirescam."
        )
    return (g.sum((2, 3), keepdim=True) * maps).sum(1)  # mean × places


def _grad_cam_pp(maps: Tensor, g: Tensor) -> Tensor:
    alpha = g**2 / (2 * g**2 + maps.sum((2, 3), keepdim=True) * g**3 + EPS)
    return ((g.clamp_min(0) * alpha).sum((2, 3), keepdim=True) * maps).sum(1)


# (N, C, h, w) maps and gradients to (N, h, w); classify.saliency.methods has the sources
_FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": lambda maps, g: (g.mean((2, 3), keepdim=True) * maps).sum(1),
    "grad_cam_pp": _grad_cam_pp,
    "hirescam": lambda maps, g: (g * maps).sum(1),
    "layercam": lambda maps, g: (g.clamp_min(0) * maps).sum(1),
    "cam": _cam,
}


def eigen_maps(
    model: nn.Module, layer: nn.Module, batch: Tensor, classes: Sequence[int]
) -> np.ndarray:
    """Eigen-CAM of a whole batch: (N, h, w) float32 ≥ 0.

    The layer's activations projected on their first principal component, centred as in
    pytorch-grad-cam. It explains no class in particular: `classes` are only checked. A component's
    sign means nothing, so it is chosen: see `_active_is_positive`.
    """
    with left_as_found(model), torch.inference_mode():
        logits, (maps,) = run_recorded(model, [layer], batch)
        check_logits(classes, logits)
        activations = maps.double()
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


def _active_is_positive(planes: Tensor, activations: Tensor) -> Tensor:
    """(N, h, w) with the sign under which each plane rises with the energy Σ_c A² of the
    activations (N, C, h, w): positive is where the network is active. Where a plane does not
    depend on the energy at all, its strongest place is positive."""
    flat = planes.flatten(1)
    energy = activations.square().sum(1).flatten(1)
    energy = energy - energy.mean(1, keepdim=True)
    agreement = (flat * energy).sum(1)
    unclear = agreement.abs() <= 1e-9 * flat.norm(dim=1) * energy.norm(dim=1)
    strongest = flat.gather(1, flat.abs().argmax(1, keepdim=True))[:, 0]
    sign = torch.where(unclear, strongest, agreement) < 0
    return torch.where(sign[:, None, None], -planes, planes)
