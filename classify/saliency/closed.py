"""Maps without a backward pass, where global mean pooling and linear layers make the head.

There the logit is  Σ_c W_kc · mean(A_c) + b_k,  so its gradient by A_c is W_kc / (h · w) at every
place, and each method becomes a weighted sum of the maps A (N, C, h, w):

| method | weight of channel c | why |
|---|---|---|
| cam | W | Zhou et al. 2016, arXiv 1512.04150 |
| grad_cam | g = W / (h · w) | the mean of a constant (Selvaraju et al. 2017, arXiv 1610.02391) |
| hirescam | g | gradient × activation at each place (Draelos & Carin 2020, arXiv 2011.08891) |
| layercam | max(g, 0) | as above, of the positive gradients (Jiang et al. 2021) |
| grad_cam_pp | h · w · max(g, 0) · g² / (2 g² + g³ · ΣA_c + 1e-6) | its equation 19, summed |

(Grad-CAM++: Chattopadhyay et al. 2018, arXiv 1710.11063. The 1e-6 is pytorch-grad-cam's: with
gradients near 1e-3 it weighs in, so it is kept.) One forward pass gives logits and maps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from classify.saliency.hooks import (
    LayerTape,
    check_classes,
    check_layers,
    check_logits,
    left_as_found,
    on_device_of,
    saliency_layer,
)

CLOSED_FORMS = ("grad_cam", "grad_cam_pp", "hirescam", "layercam", "cam")
_EPS = 1e-6  # of pytorch-grad-cam's Grad-CAM++
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


@dataclass(frozen=True, eq=False)
class LogitsAndMaps:
    """One forward pass: logits (N, K), maps (N, C, h, w) of a layer, and the head between them;
    `head` is None where it is anything but global mean pooling and linear layers."""

    logits: torch.Tensor
    maps: torch.Tensor
    head: LinearHead | None

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
    """(N, C) weights of the channels from the head's (N, C); the module's table says why."""
    if method == "cam":
        return weight
    places = maps.shape[2] * maps.shape[3]
    g = weight / places
    if method == "layercam":
        return g.clamp_min(0)
    if method == "grad_cam_pp":
        alpha = g**2 / (2 * g**2 + maps.sum((2, 3)) * g**3 + _EPS)
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
    with torch.inference_mode():
        logits, maps, linears = _forward(model, layer, batch)
        head = _product(linears, maps.shape[1], logits.shape[1])
        if layer not in _IS_LINEAR and len(batch):
            _IS_LINEAR[layer] = head is not None and _stands_random_maps(
                model, layer, batch[:1], head
            )
        if head is not None and not (_IS_LINEAR.get(layer, True) and _agree(head, maps, logits)):
            head = None
    return LogitsAndMaps(logits, maps, head)


def _forward(
    model: nn.Module, layer: nn.Module, batch: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[nn.Linear]]:
    """Logits, maps, and the linear layers in the order in which they ran behind the layer."""
    ran: list[nn.Module] = []
    with left_as_found(model):  # takes the hooks off again
        for module in (layer, *(m for m in model.modules() if isinstance(m, nn.Linear))):
            module.register_forward_hook(lambda m, _inputs, _output: ran.append(m))
        tape = LayerTape(model, [layer], gradients=False)
        logits = tape(batch)
    behind = ran[ran.index(layer) + 1 :]
    return logits, tape.recorded(layer), [m for m in behind if isinstance(m, nn.Linear)]


def _product(linears: Sequence[nn.Linear], channels: int, classes: int) -> LinearHead | None:
    """Linear layers one after the other as one; None when they do not fit together."""
    widths = [channels, *(m.out_features for m in linears)]
    if not linears or widths[-1] != classes:
        return None
    if any(m.in_features != width for m, width in zip(linears, widths, strict=False)):
        return None
    weight = linears[0].weight.detach().float().clone()  # stays what it is when training goes on
    bias = _bias(linears[0])
    for linear in linears[1:]:
        weight = linear.weight.float() @ weight
        bias = linear.weight.float() @ bias + _bias(linear)
    return LinearHead(weight, bias)


def _bias(linear: nn.Linear) -> torch.Tensor:
    if linear.bias is None:
        return torch.zeros(linear.out_features, device=linear.weight.device)
    return linear.bias.detach().float().clone()


def _agree(head: LinearHead, maps: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether the head gives the model's logits (N, K) to 1e-4 of their scale."""
    scale = max(1.0, float(logits.abs().max())) if logits.numel() else 1.0
    return bool(((head.logits(maps) - logits.float()).abs() <= _TOLERANCE * scale).all())


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

    with left_as_found(model):
        layer.register_forward_hook(replace)
        logits = model(film)
    return _agree(head, sent[0], logits)
