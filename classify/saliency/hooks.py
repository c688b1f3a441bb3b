"""What passes through a layer during one forward pass, with the model left as it was found; and
maps made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classify.saliency import SCORE_BATCH, TOP_K
from cxr.rules import require


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode without parameter gradients; afterwards just as it was. Training
    flags of every module, `requires_grad` and `.grad` of every parameter and all forward hooks are
    put back, also after an error."""
    modules = [(m, m.training, m._forward_hooks.copy()) for m in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for module, *_ in modules:
            module.training = False
        for parameter, *_ in parameters:
            parameter.requires_grad_(False)  # only the activations' gradients are needed
        yield model
    finally:
        for module, training, kept in modules:
            module.training = training
            for handle in set(module._forward_hooks) - set(kept):
                del module._forward_hooks[handle]
        for parameter, wanted, gradient in parameters:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient


def saliency_layer(model: nn.Module) -> nn.Module:
    """The layer that the model itself names for its maps; raises ValueError where it names none."""
    layer = getattr(model, "saliency_layer", None)
    if not isinstance(layer, nn.Module):
        raise ValueError(
            f"{type(model).__name__} must name its `saliency_layer`, the module whose "
            "output (N, C, h, w) is pooled. It names none."
        )
    return layer


def backbone_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that a net with several backbones names, by backbone; of any other net none."""
    return dict(getattr(model, "saliency_layers", None) or {})


def pooled_layers(model: nn.Module) -> list[nn.Module]:
    """The layers whose maps a network pools: each backbone's, or its one; or none is named."""
    own = getattr(model, "saliency_layer", None)
    return [*backbone_layers(model).values()] or ([own] if isinstance(own, nn.Module) else [])


@contextmanager
def watching(model: nn.Module) -> Iterator[list[Tensor]]:
    """What a network's kind of films is known by, a forward pass long: a (N, F) float32 tensor on
    the CPU of each layer's maps (N, C, h, w), averaged over places; none where none is named. The
    layers are those whose maps are pooled; or, where a model names its `entered` module, what
    enters that: guided training leaves little in the last maps that tells hospitals and ages
    apart."""
    found: dict[nn.Module, Tensor] = {}
    entered = getattr(model, "entered", None)

    def keep(layer: nn.Module, maps: Tensor) -> None:
        found[layer] = maps.float().mean((2, 3)).cpu()

    if isinstance(entered, nn.Module):
        layers = [entered]
        handles = [entered.register_forward_pre_hook(lambda m, inputs: keep(m, inputs[0]))]
    else:
        layers = pooled_layers(model)
        handles = [y.register_forward_hook(lambda m, _, maps: keep(m, maps)) for y in layers]
    pooled: list[Tensor] = []
    try:
        yield pooled
    finally:
        for handle in handles:
            handle.remove()
        pooled += [found[layer] for layer in layers if layer in found]


class Rearranges(Protocol):
    """A model whose logits are those of another network in another order. `bare_logits` is that
    network, and which of its logits each of the model's is; those that are made of several are left
    out. `rearrange` makes the model's logits from the network's (N, K)."""

    @property
    def bare_logits(self) -> tuple[nn.Module, dict[int, int]]: ...

    def rearrange(self, logits: Tensor) -> Tensor: ...


def rearranges(model: Any) -> TypeGuard[Rearranges]:
    """Whether a model stands for another network."""
    return hasattr(model, "bare_logits")


def bare_net(model: nn.Module, classes: Sequence[int]) -> tuple[nn.Module, Sequence[int]]:
    """The network to explain, and its classes: of a model that stands for another network that one,
    so that its head is seen as it is; the model itself where a class has no logit there."""
    if rearranges(model):
        net, logits = model.bare_logits
        if all(int(c) in logits for c in classes):
            return net, [logits[int(c)] for c in classes]
    return model, classes


def check_classes(classes: Sequence[int], films: int) -> None:
    """Raises ValueError unless there is one index of a logit for each film."""
    if len(classes) != films:
        raise ValueError(
            f"classes must name one logit a film. Got {len(classes)} for {films} films instead."
        )


def check_logits(classes: Sequence[int], logits: Tensor) -> None:
    """Raises IndexError for a class without a logit, -1 too; logits are (N, K)."""
    wrong = [int(c) for c in classes if not 0 <= int(c) < logits.shape[1]]
    if wrong:
        raise IndexError(
            f"classes must lie in 0 … {logits.shape[1] - 1}, as the model has "
            f"{logits.shape[1]} logits. Got {wrong[0]} instead."
        )


def on_device_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The batch where the model's parameters are."""
    parameter = next(model.parameters(), None)
    return batch if parameter is None else batch.to(parameter.device)


def run_recorded(
    model: nn.Module, layers: Sequence[nn.Module], batch: Tensor, gradients: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The model's logits (N, K) and the outputs (N, C, h, w) of layers, in the order in which the
    layers are named, whatever the order in which they run. With `gradients`, each output becomes
    the start of the graph, so that a backward pass ends there and never walks through the backbone:
    the same gradients for a fraction of the time. (A layer that lies behind another one of these
    stays connected to it.) Raises ValueError for layers of another model, or that give no maps to
    explain with."""
    if not set(layers) <= set(model.modules()):
        raise ValueError("layer must be a module of the model. Got one of another model instead.")
    seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def record(layer: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            raise ValueError(
                "layer must give one tensor (N, C, h, w). "
                f"{type(layer).__name__} gave a {type(output).__name__}: name another layer."
            )
        if gradients and not output.requires_grad:
            output = output.detach().requires_grad_()
        # a copy on one of the two ways, for what follows may work in place
        seen[layer].append(output if gradients else output.clone())
        return output.clone() if gradients else None

    handles = [layer.register_forward_hook(record) for layer in seen]
    try:
        logits = model(batch)
    finally:
        for handle in handles:
            handle.remove()
    for layer, outputs in seen.items():
        shapes = [tuple(o.shape) for o in outputs]
        if len(shapes) != 1 or len(shapes[0]) != 4:
            raise ValueError(
                "layer must run once a forward pass and give maps (N, C, h, w). "
                f"{type(layer).__name__} gave {shapes or 'nothing'}: name another layer."
            )
    return logits, [seen[layer][0] for layer in layers]


# --- maps from a layer's activations: from one backward pass of any network; without one where
# global mean pooling and linear layers make the head; Eigen-CAM and Score-CAM. All in their own
# units.
#
# With such a head the logit is  Σ_c W_kc · mean(A_c) + b_k,  so its gradient by A_c is
# W_kc / (h · w) at every place: one forward pass gives logits and maps at once.
#
# The formulas are those of pytorch-grad-cam, which the tests hold them against. The library scales
# each map to [0, 1] before it averages layers, which hides how strong each was, and its two lists
# of activations and gradients follow the order in which layers run forwards and backwards: for
# parallel backbones these differ, and maps would be made of one's activations and another one's
# gradients.

Array = np.ndarray
_EPS = 1e-6  # pytorch-grad-cam's in Grad-CAM++; with gradients near 1e-3 it weighs in
_TOLERANCE = 1e-4
# Whether what follows a layer is mean pooling and linear layers, found out once for each.
_IS_LINEAR: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _cam(maps: Tensor, g: Tensor) -> Tensor:
    """Weights are the logit's gradient by the pooled maps: for linear heads the head's weights."""
    spread = g.amax((2, 3)) - g.amin((2, 3))
    if g.numel() and spread.max() > 1e-4 * g.abs().max():
        raise ValueError(
            "cam needs a layer whose maps are pooled by their mean. The gradient "
            "differs from place to place: name the last layer before global mean "
            "pooling, or take grad_cam or hirescam."
        )
    return g.mean((2, 3), keepdim=True) * maps[0, 0].numel()


def _grad_cam_pp(maps: Tensor, g: Tensor) -> Tensor:
    alpha = g**2 / (2 * g**2 + maps.sum((2, 3), keepdim=True) * g**3 + _EPS)
    return (g.clamp_min(0) * alpha).mean((2, 3), keepdim=True) * maps[0, 0].numel()


# Maps (N, C, h, w) and their gradients, (N, C, 1, 1) where they are the same at every place, to
# what weighs the maps; classify.saliency has the sources.
_WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": lambda maps, g: g.mean((2, 3), keepdim=True),
    "grad_cam_pp": _grad_cam_pp,
    "hirescam": lambda maps, g: g,
    "layercam": lambda maps, g: g.clamp_min(0),
    "cam": _cam,
}


def _weighed(maps: Tensor, gradients: Tensor, method: str) -> Array:
    """(N, h, w) float32 ≥ 0."""
    weights = _WEIGHTS[method](maps, gradients)
    if weights.shape[2:] == (1, 1):
        planes = torch.einsum("nc,nchw->nhw", weights[..., 0, 0], maps)
    else:
        planes = (weights * maps).sum(1)
    return planes.clamp_min(0).cpu().numpy()


def gradient_maps(
    model: nn.Module,
    layers: Sequence[nn.Module],
    batch: Tensor,
    wanted: Sequence[Sequence[int]],
    method: str,
) -> list[list[Array]]:
    """For each of the `wanted` classes (N,) of the films (N, h, w) float32 ≥ 0 of each layer: one
    forward pass, and for each a backward pass, which ends at the layers. Arguments as for
    `saliency_maps`, which checks them."""
    with left_as_found(model), torch.inference_mode(False), torch.enable_grad():
        # cloned, for a batch made in inference mode cannot take part in a backward pass
        logits, maps = run_recorded(model, layers, batch.clone().detach(), gradients=True)
        found = []
        for n, classes in enumerate(wanted, start=1):
            check_logits(classes, logits)
            total = logits[torch.arange(len(batch)), [int(c) for c in classes]].sum()
            own: Sequence[Tensor | None] = [None] * len(maps)
            if total.requires_grad:
                again = n < len(wanted)
                own = torch.autograd.grad(total, maps, allow_unused=True, retain_graph=again)
            planes: list[Array] = []
            for layer, plane, gradient in zip(layers, maps, own, strict=True):
                if gradient is None:
                    raise ValueError(
                        "layer must lie on the way to the logits. No gradient reached "
                        f"{type(layer).__name__}: give the layer whose output the head pools."
                    )
                planes.append(_weighed(plane.detach().float(), gradient.float(), method))
            found.append(planes)
    return found


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Global mean pooling, then linear layers without a non-linearity between them, as one:
    logits = mean(maps) @ weight.T + bias, with weight (K, C) and bias (K,)."""

    weight: Tensor
    bias: Tensor

    def logits(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to (N, K)."""
        return maps.float().mean((2, 3)) @ self.weight.T + self.bias

    def gives(self, maps: Tensor, logits: Tensor) -> bool:
        """Whether the head gives the model's logits (N, K) to 1e-4 of their scale."""
        scale = max(1.0, float(logits.abs().max())) if logits.numel() else 1.0
        return bool(((self.logits(maps) - logits.float()).abs() <= _TOLERANCE * scale).all())


@dataclass(frozen=True, eq=False)
class LogitsAndMaps:
    """One forward pass: logits (N, K), maps (N, C, h, w) of a layer, and the head between them;
    `head` is None where it is anything but global mean pooling and linear layers. `pooled` (N, F)
    are what `watching` saw, one for each layer; none where the model names no layer."""

    logits: Tensor
    maps: Tensor
    head: LinearHead | None = None
    pooled: Sequence[Tensor] = ()

    def saliency(self, classes: Sequence[int], method: str = "grad_cam") -> Array:
        """(N, h, w) float32 ≥ 0 of one logit a film by one of CLOSED_FORMS; raises ValueError
        without a linear head, IndexError for a class without a logit."""
        if self.head is None:
            raise ValueError(
                "closed_form must be auto or False for this model: its head is not global mean "
                "pooling followed by linear layers alone. Got True instead."
            )
        check_classes(classes, len(self.maps))
        check_logits(classes, self.logits)
        with torch.inference_mode():
            maps, weight = self.maps.float(), self.head.weight[[int(c) for c in classes]]
            return _weighed(maps, (weight / maps[0, 0].numel())[..., None, None], method)


def may_be_closed(layer: nn.Module) -> bool:
    """False for a layer that was found to have another head behind it."""
    return _IS_LINEAR.get(layer, True)


def logits_and_maps(
    model: nn.Module, batch: Tensor, layer: nn.Module | None = None
) -> LogitsAndMaps:
    """Logits (N, K) of a prepared batch (N, 3, h, w) and a layer's maps (by default those of the
    model's own `saliency_layer`) from one forward pass, so that saliency costs next to nothing. The
    head is made out on any network: the linear layers that run after `layer` are multiplied, and
    the product must give the model's logits for these films. Once for each layer (one film, one
    more forward pass) it must also give them for random maps in the layer's place, so that no
    non-linearity and no other pooling passes for a linear head by chance."""
    layer = saliency_layer(model) if layer is None else layer
    batch = on_device_of(model, batch)
    ran: list[nn.Module] = []  # the layer and the linear layers, in the order in which they ran
    with left_as_found(model), torch.inference_mode():
        for module in model.modules():
            if module is layer or isinstance(module, nn.Linear):
                module.register_forward_hook(lambda m, _inputs, _output: ran.append(m))
        with watching(model) as pooled:
            logits, (maps,) = run_recorded(model, [layer], batch)
        behind = [m for m in ran[ran.index(layer) + 1 :] if isinstance(m, nn.Linear)]
        head = _product(behind, maps.shape[1], logits.shape[1])
    if layer not in _IS_LINEAR and len(batch):
        _IS_LINEAR[layer] = head is not None and _stands_random_maps(model, layer, batch[:1], head)
    if head is not None and not (may_be_closed(layer) and head.gives(maps, logits)):
        head = None
    return LogitsAndMaps(logits, maps, head, pooled)


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


def _stands_random_maps(model: nn.Module, layer: nn.Module, film: Tensor, head: LinearHead) -> bool:
    """Whether the head stays linear for maps of both signs, far from what the backbone gives."""
    sent: list[Tensor] = []

    def replace(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(0)
        maps = torch.randn(output.shape, generator=random).to(output.device, output.dtype)
        sent.append(maps * (10 * output.abs().max().clamp_min(1)))
        return sent[-1].clone()

    with left_as_found(model), torch.inference_mode():
        layer.register_forward_hook(replace)
        logits = model(film)
        return head.gives(sent[0], logits)


def eigen_maps(model: nn.Module, layer: nn.Module, batch: Tensor, classes: Sequence[int]) -> Array:
    """Eigen-CAM of a whole batch: (N, h, w) float32 ≥ 0. The layer's activations projected on their
    first principal component, centred as in pytorch-grad-cam. It explains no class in particular:
    `classes` are only checked. A component's sign means nothing: the one is taken under which the
    plane rises with the energy Σ_c A² of the activations, so that positive is where the network is
    active; where it does not depend on the energy at all, its strongest place is positive."""
    with left_as_found(model), torch.inference_mode():
        logits, (maps,) = run_recorded(model, [layer], batch)
        check_logits(classes, logits)
        n, _, h, w = maps.shape
        flat = maps.double().flatten(2).transpose(1, 2)  # (N, places, C)
        along, spread, _ = torch.linalg.svd(flat - flat.mean(1, keepdim=True), full_matrices=False)
        planes = along[..., 0] * spread[:, :1]
        energy = flat.square().sum(2)
        energy = energy - energy.mean(1, keepdim=True)
        agreement = (planes * energy).sum(1)
        unclear = agreement.abs() <= 1e-9 * planes.norm(dim=1) * energy.norm(dim=1)
        strongest = planes.gather(1, planes.abs().argmax(1, keepdim=True))[:, 0]
        turned = torch.where(unclear, strongest, agreement) < 0
        planes = torch.where(turned[:, None], -planes, planes)
    return planes.view(n, h, w).clamp_min(0).float().cpu().numpy()


# --- Score-CAM (Wang et al. 2020, arXiv 1910.01279) asks the network itself: each channel of a
# layer, scaled to [0, 1] and enlarged to the input, masks the film, and the class's logit on what
# is left weighs the channel. That is a forward pass a channel, 1,280 for one film of the shipped
# members, so only those with the highest activation energy Σ A² are asked; tools.benchmark says
# what that costs.


def score_maps(
    model: nn.Module,
    layer: nn.Module,
    batch: Tensor,
    classes: Sequence[int],
    top_k: int | None = TOP_K,
    score_batch: int = SCORE_BATCH,
) -> Array:
    """(N, h, w) float32 ≥ 0; the weights of a film's channels are a softmax. `top_k` channels are
    asked, by activation energy (None: all), `score_batch` masked films a forward pass."""
    require(top_k is None or top_k >= 1, "top_k must be at least 1, or None for all", top_k)
    require(score_batch >= 1, "score_batch must be at least 1", score_batch)
    with left_as_found(model), torch.inference_mode():
        logits, (maps,) = run_recorded(model, [layer], batch)
        check_logits(classes, logits)
        if top_k is not None and top_k < maps.shape[1]:
            chosen = maps.float().square().sum((2, 3)).topk(top_k, dim=1).indices
            maps = maps.gather(1, chosen[..., None, None].expand(-1, -1, *maps.shape[2:]))
        scores = _scores(model, batch, classes, maps, score_batch)
        planes = torch.einsum("nc,nchw->nhw", scores.softmax(1), maps.float())
        return planes.clamp_min(0).cpu().numpy()


def _scores(
    model: nn.Module, batch: Tensor, classes: Sequence[int], maps: Tensor, size: int
) -> Tensor:
    """(N, C) logits of each film's class when each of its maps (N, C, h, w) masks the film."""
    wanted = torch.tensor([int(c) for c in classes], device=batch.device)
    # A channel that is the same everywhere masks everything: one black film serves them all.
    blank = model(torch.zeros_like(batch[:1])).float()[0, wanted]  # (N,)
    scores = blank[:, None].repeat(1, maps.shape[1])
    alive = maps.amax((2, 3)) > maps.amin((2, 3))
    films, channels = alive.nonzero(as_tuple=True)
    for film, channel in zip(films.split(size), channels.split(size), strict=True):
        # enlarged with corners aligned and scaled with 1e-8 added, as pytorch-grad-cam does it
        masks = F.interpolate(
            maps[film, channel][:, None].float(),
            size=batch.shape[2:],
            mode="bilinear",
            align_corners=True,
        )
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        masks = (masks - low) / (high - low + 1e-8)
        logits = model(batch[film] * masks.to(batch.dtype)).float()
        scores[film, channel] = logits.gather(1, wanted[film, None])[:, 0]
    return scores
