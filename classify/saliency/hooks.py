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


def saliency_layer(model: nn.Module) -> nn.Module:
    """The layer that the model itself names for its maps; raises ValueError where it names none."""
    layer = getattr(model, "saliency_layer", None)
    if not isinstance(layer, nn.Module):
        raise ValueError(
            f"{type(model).__name__} must name its `saliency_layer`, the module whose "
            "output (N, C, h, w) is pooled. It names none."
        )
    return layer


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


def check_layers(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Raises ValueError for a layer that is none of the model's."""
    own = set(model.modules())
    if any(layer not in own for layer in layers):
        raise ValueError("layer must be a module of the model. Got one of another model instead.")


def check_classes(classes: Sequence[int], films: int) -> None:
    """Raises ValueError unless there is one index of a logit for each film."""
    if len(classes) != films:
        raise ValueError(
            f"classes must name one logit a film. Got {len(classes)} for {films} films instead."
        )


def check_logits(classes: Sequence[int], logits: torch.Tensor) -> None:
    """Raises IndexError for a class without a logit; logits are (N, K)."""
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


class LayerTape:
    """Records the outputs of layers, in the order in which the layers are named.

    With `gradients`, each output becomes the start of the graph, so that a backward pass ends
    there and never walks through the backbone: the same gradients for a fraction of the time.
    (A layer that lies behind another one of the same tape stays connected to it.) Replaces the
    library's ActivationsAndGradients, whose two lists follow the order in which layers run
    forwards and backwards: for parallel backbones these orders differ, and maps would be made of
    one backbone's activations and another one's gradients.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], gradients: bool) -> None:
        self.model, self.layers, self._wants_gradients = model, list(layers), gradients
        self._seen: dict[nn.Module, list[torch.Tensor]] = {}
        self._handles = [layer.register_forward_hook(self._record) for layer in self.layers]

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """The model's logits; raises ValueError for layers that give no maps to explain with."""
        self._seen = {layer: [] for layer in self.layers}
        logits = self.model(batch)
        for layer, outputs in self._seen.items():
            shapes = [tuple(o.shape) for o in outputs]
            if len(shapes) != 1 or len(shapes[0]) != 4:
                raise ValueError(
                    "layer must run once a forward pass and give maps (N, C, h, w). "
                    f"{type(layer).__name__} gave {shapes or 'nothing'}: name another layer."
                )
        return logits

    def _record(self, layer: nn.Module, _inputs: Any, output: Any) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
            raise ValueError(
                "layer must give one tensor (N, C, h, w). "
                f"{type(layer).__name__} gave a {type(output).__name__}: name another "
                "layer."
            )
        if not self._wants_gradients:
            self._seen[layer].append(output.clone())  # what follows may work in place
            return None
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        output.retain_grad()
        self._seen[layer].append(output)
        return output.clone()

    def recorded(self, layer: nn.Module) -> torch.Tensor:
        """(N, C, h, w) of one layer, where the model computed it."""
        return self._seen[layer][0].detach()

    @property
    def activations(self) -> list[torch.Tensor]:
        """(N, C, h, w) of each layer."""
        return [self._seen[layer][0].detach().cpu() for layer in self.layers]

    @property
    def gradients(self) -> list[torch.Tensor]:
        """(N, C, h, w) of each layer, after a backward pass."""
        out = []
        for layer in self.layers:
            gradient = self._seen[layer][0].grad
            if gradient is None:
                raise ValueError(
                    "layer must lie on the way to the logits. No gradient reached "
                    f"{type(layer).__name__}: give the layer whose output the head "
                    "pools."
                )
            out.append(gradient.detach().cpu())
        return out

    def clear(self) -> None:
        """Lets go of what was recorded."""
        self._seen = {layer: [] for layer in self.layers}

    def release(self) -> None:
        """Takes the hooks off again."""
        self.clear()
        for handle in self._handles:
            handle.remove()
        self._handles = []
