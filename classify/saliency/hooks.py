"""What passes through a layer during one forward pass, and the model left as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import torch
from torch import nn


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode without parameter gradients; afterwards just as it was.

    Training flags of every module, `requires_grad` and `.grad` of every parameter and all forward
    hooks are put back, also after an error.
    """
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
    """The layers that a net with several backbones, each with a map of its own, names by backbone;
    of any other net none."""
    return dict(getattr(model, "saliency_layers", None) or {})


def pooled_layers(model: nn.Module) -> list[nn.Module]:
    """The layers whose maps a network pools: each backbone's, or its one; none where it names
    none."""
    own = getattr(model, "saliency_layer", None)
    return [*backbone_layers(model).values()] or ([own] if isinstance(own, nn.Module) else [])


@contextmanager
def watching(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What a network's kind of films is known by, a forward pass long: a (N, F) float32 tensor on
    the CPU of each layer's maps (N, C, h, w), averaged over places; none where none is named.

    The layers are those whose maps are pooled; or, where a model names its `entered` module, what
    enters that: guided training leaves little in the last maps that tells hospitals and ages apart.
    """
    found: dict[nn.Module, torch.Tensor] = {}
    entered = getattr(model, "entered", None)

    def keep(layer: nn.Module, maps: torch.Tensor) -> None:
        found[layer] = maps.float().mean((2, 3)).cpu()

    if isinstance(entered, nn.Module):
        layers = [entered]
        handles = [entered.register_forward_pre_hook(lambda m, inputs: keep(m, inputs[0]))]
    else:
        layers = pooled_layers(model)
        handles = [y.register_forward_hook(lambda m, _, maps: keep(m, maps)) for y in layers]
    pooled: list[torch.Tensor] = []
    try:
        yield pooled
    finally:
        for handle in handles:
            handle.remove()
        pooled += [found[layer] for layer in layers if layer in found]


class Rearranges(Protocol):
    """A model whose logits are those of another network in another order.

    `bare_logits` is that network, and which of its logits each of the model's is; those that are
    made of several are left out. `rearrange` makes the model's logits from the network's (N, K).
    """

    @property
    def bare_logits(self) -> tuple[nn.Module, dict[int, int]]: ...

    def rearrange(self, logits: torch.Tensor) -> torch.Tensor: ...


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


def check_logits(classes: Sequence[int], logits: torch.Tensor) -> None:
    """Raises IndexError for a class without a logit, -1 too; logits are (N, K)."""
    wrong = [int(c) for c in classes if not 0 <= int(c) < logits.shape[1]]
    if wrong:
        raise IndexError(
            f"classes must lie in 0 … {logits.shape[1] - 1}, as the model has "
            f"{logits.shape[1]} logits. Got {wrong[0]} instead."
        )


def on_device_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """The batch where the model's parameters are."""
    parameter = next(model.parameters(), None)
    return batch if parameter is None else batch.to(parameter.device)


def run_recorded(
    model: nn.Module, layers: Sequence[nn.Module], batch: torch.Tensor, gradients: bool = False
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The model's logits (N, K) and the outputs (N, C, h, w) of layers, in the order in which the
    layers are named, whatever the order in which they run.

    With `gradients`, each output becomes the start of the graph, so that a backward pass ends
    there and never walks through the backbone: the same gradients for a fraction of the time.
    (A layer that lies behind another one of these stays connected to it.) Raises ValueError for
    layers of another model, or that give no maps to explain with.
    """
    if not set(layers) <= set(model.modules()):
        raise ValueError("layer must be a module of the model. Got one of another model instead.")
    seen: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}

    def record(layer: nn.Module, _inputs: Any, output: Any) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
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
