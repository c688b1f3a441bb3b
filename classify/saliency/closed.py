"""Maps without a backward pass, where global mean pooling and linear layers make the head.

There the logit is  Σ_c W_kc · mean(A_c) + b_k,  so its gradient by A_c is g = W_kc / (h · w) at
every place, and each method becomes a weighted sum of the maps A (N, C, h, w): with W for cam, the
mean of a constant for grad_cam and hirescam, max(g, 0) for layercam, and for grad_cam_pp
h · w · max(g, 0) · g² / (2 g² + g³ · ΣA_c + 1e-6), its equation 19 summed. One forward pass gives
logits and maps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from classify.saliency.gradients import EPS
from classify.saliency.hooks import (
    check_classes,
    check_layers,
    check_logits,
    left_as_found,
    on_device_of,
    run_recorded,
    saliency_layer,
)
from classify.saliency.methods import CLOSED_FORMS

_TOLERANCE = 1e-4

# Whether what follows a layer is mean pooling and linear layers, found out once for each.
_IS_LINEAR: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Global mean pooling, then linear layers without a non-linearity between them, as one:
    logits = mean(maps) @ weight.T + bias, with weight (K, C) and bias (K,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, maps: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) to (N, K)."""
        return maps.float().mean((2, 3)) @ self.weight.T + self.bias

    def gives(self, maps: torch.Tensor, logits: torch.Tensor) -> bool:
        """Whether the head gives the model's logits (N, K) to 1e-4 of their scale."""
        scale = max(1.0, float(logits.abs().max())) if logits.numel() else 1.0
        return bool(((self.logits(maps) - logits.float()).abs() <= _TOLERANCE * scale).all())


@dataclass(frozen=True, eq=False)
class LogitsAndMaps:
    """One forward pass: logits (N, K), maps (N, C, h, w) of a layer, and the head between them;
    `head` is None where it is anything but global mean pooling and linear layers."""

    logits: torch.Tensor
    maps: torch.Tensor
    head: LinearHead | None = None

    def saliency(self, classes: Sequence[int], method: str = "grad_cam") -> np.ndarray:
        """(N, h, w) float32 ≥ 0 of one logit a film in closed form.

        Raises ValueError without a linear head or for a method that has no closed form, IndexError
        for a class without a logit.
        """
        if self.head is None:
            raise ValueError(
                "closed_form must be auto or False for this model: its head is not global mean "
                "pooling followed by linear layers alone. Got True instead."
            )
        if method not in CLOSED_FORMS:
            raise ValueError(
                f"method must be one of {', '.join(CLOSED_FORMS)} in closed form. "
                f"Got {method!r} instead."
            )
        check_classes(classes, len(self.maps))
        check_logits(classes, self.logits)
        with torch.inference_mode():
            maps = self.maps.float()
            weights = _channel_weights(maps, self.head.weight[[int(c) for c in classes]], method)
            planes = torch.einsum("nc,nchw->nhw", weights, maps).clamp_min_(0)
        return planes.cpu().numpy()


def _channel_weights(maps: torch.Tensor, weight: torch.Tensor, method: str) -> torch.Tensor:
    """(N, C) weights of the channels from the head's (N, C); the module's text says why."""
    if method == "cam":
        return weight
    places = maps.shape[2] * maps.shape[3]
    g = weight / places
    if method == "layercam":
        return g.clamp_min(0)
    if method == "grad_cam_pp":
        alpha = g**2 / (2 * g**2 + maps.sum((2, 3)) * g**3 + EPS)
        return places * g.clamp_min(0) * alpha
    return g


def may_be_closed(layer: nn.Module) -> bool:
    """False for a layer that was found to have another head behind it."""
    return _IS_LINEAR.get(layer, True)


def logits_and_maps(
    model: nn.Module, batch: torch.Tensor, layer: nn.Module | None = None
) -> LogitsAndMaps:
    """Logits and a layer's maps from one forward pass, so that saliency costs next to nothing.

    Args:
        model: gives (N, K) logits for `batch`; left as it was found.
        batch: (N, 3, h, w), prepared for the model.
        layer: gives (N, C, h, w); the model's own `saliency_layer` where it is None.

    The head is made out on any network: the linear layers that run after `layer` are multiplied,
    and the product must give the model's logits for these films. Once for each layer (one film, one
    more forward pass) it must also give them for random maps in the layer's place, so that no
    non-linearity and no other pooling passes for a linear head by chance.
    """
    layer = saliency_layer(model) if layer is None else layer
    check_layers(model, [layer])
    batch = on_device_of(model, batch)
    ran: list[nn.Module] = []  # the layer and the linear layers, in the order in which they ran
    with left_as_found(model), torch.inference_mode():
        for module in (layer, *(m for m in model.modules() if isinstance(m, nn.Linear))):
            module.register_forward_hook(lambda m, _inputs, _output: ran.append(m))
        logits, (maps,) = run_recorded(model, [layer], batch)
        behind = [m for m in ran[ran.index(layer) + 1 :] if isinstance(m, nn.Linear)]
        head = _product(behind, maps.shape[1], logits.shape[1])
    if layer not in _IS_LINEAR and len(batch):
        _IS_LINEAR[layer] = head is not None and _stands_random_maps(model, layer, batch[:1], head)
    if head is not None and not (may_be_closed(layer) and head.gives(maps, logits)):
        head = None
    return LogitsAndMaps(logits, maps, head)


def _product(linears: Sequence[nn.Linear], channels: int, classes: int) -> LinearHead | None:
    """Linear layers one after the other as one; None when they do not fit together."""
    widths = [channels, *(m.out_features for m in linears)]
    if not linears or widths[-1] != classes or [m.in_features for m in linears] != widths[:-1]:
        return None
    device = linears[0].weight.device
    weight, bias = torch.eye(channels, device=device), torch.zeros(channels, device=device)
    for n, linear in enumerate(linears):  # copies: they stay what they are when training goes on
        own = linear.weight.detach().float()
        weight, bias = own @ weight if n else own.clone(), own @ bias
        bias = bias if linear.bias is None else bias + linear.bias.detach().float()
    return LinearHead(weight, bias)


def _stands_random_maps(
    model: nn.Module, layer: nn.Module, film: torch.Tensor, head: LinearHead
) -> bool:
    """Whether the head stays linear for maps of both signs, far from what the backbone gives."""
    sent: list[torch.Tensor] = []

    def replace(_layer: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        random = torch.Generator().manual_seed(0)
        maps = torch.randn(output.shape, generator=random).to(output.device, output.dtype)
        sent.append(maps * (10 * output.abs().max().clamp_min(1)))
        return sent[-1].clone()

    with left_as_found(model), torch.inference_mode():
        layer.register_forward_hook(replace)
        logits = model(film)
        return head.gives(sent[0], logits)
