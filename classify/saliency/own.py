"""The maps that a network draws itself (CXRNet), in the form of those of `classify.saliency`.

maps = explanations(net, batch)  # (N, h, w) ≥ 0: what it was shown, whatever the class
maps = explanations(net, batch, [1] * len(batch))  # what of that speaks for class 1
planes = to_pixels(maps, frames, sizes_hw)  # as for any method: the audit measures them alike
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from classify.saliency.hooks import bare_net, check_classes, left_as_found, on_device_of
from classify.saliency.library import library_maps

# Names as methods of `classify.saliency`: the map as it is drawn, and weighed by the class.
OWN_MAPS = ("explanation", "explanation_class")


def explains_itself(net: nn.Module) -> bool:
    """Does the network, or the one that it wraps as `net`, draw maps of its own?"""
    return _drawer(net) is not None


class Named(Protocol):
    """What is needed of an Ensemble."""

    targets: tuple[str, ...]

    def member(self, target: str) -> nn.Module: ...


def check_draws(method: str, members: Named, targets: Sequence[str] = ()) -> None:
    """Raises ValueError where `method` is one of OWN_MAPS and a member (of `targets`, or any) draws
    no map."""
    asked = targets or members.targets
    without = [name for name in asked if not explains_itself(members.member(name))]
    if method in OWN_MAPS and without:
        raise ValueError(
            f"--method {method} must be for networks that draw a map of their own, "
            f"such as CXRNet. Got {', '.join(without)}, without one: take another "
            "method, such as grad_cam."
        )


def explanations(
    net: nn.Module, batch: torch.Tensor, classes: Sequence[int] | None = None
) -> np.ndarray:
    """(N, h, w) float32 ≥ 0 at the resolution of the network's own map, unscaled.

    Args:
        net: with `explain(x)` → (N, 1, h, w) and `explanation_layer`, or a wrapper that holds such
            a one as `net`; left as it was found.
        batch: (N, 3, height, width), prepared for the network.
        classes: N indices of the logits of `net`. The map times its gradient, as HiResCAM has it
            (Draelos & Carin 2020, arXiv 2011.08891), where that is above 0: what speaks for the
            class. None takes the map as it is drawn, the same for every class.

    Raises ValueError for a network that draws none, IndexError for a class without a logit.
    """
    drawer = _drawer(net)
    if drawer is None:
        raise ValueError(
            f"{type(net).__name__} must have `explain`, which draws a map. It has "
            "none: take another method, such as grad_cam."
        )
    if classes is not None:
        check_classes(classes, len(batch))
    if not len(batch):
        return np.zeros((0, 1, 1), np.float32)
    if classes is not None:
        layer = drawer.explanation_layer
        assert isinstance(layer, nn.Module)
        bare, logits = bare_net(net, classes)
        return library_maps(bare, [layer], on_device_of(bare, batch), logits, "hirescam")[0]
    explain: Callable[[torch.Tensor], torch.Tensor] = drawer.explain  # type: ignore[assignment]
    with left_as_found(net), torch.inference_mode():
        maps = explain(on_device_of(net, batch))
    return maps[:, 0].float().cpu().numpy()


def _drawer(net: nn.Module) -> nn.Module | None:
    inner = getattr(net, "net", None)
    found = [m for m in (net, inner) if isinstance(m, nn.Module) and hasattr(m, "explain")]
    return found[0] if found else None
