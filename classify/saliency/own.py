"""The maps that a network draws itself (CXRNet), in the form of those of any other method.

maps = explanations(net, batch)  # (N, h, w) ≥ 0: what it was shown, whatever the class
maps = explanations(net, batch, [1] * len(batch))  # what of that speaks for class 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from classify.saliency.gradients import gradient_maps
from classify.saliency.hooks import bare_net, check_classes, left_as_found, on_device_of
from classify.saliency.methods import OWN_MAPS


def explains_itself(net: nn.Module) -> bool:
    """Does the network, or the one that it wraps as `net`, draw maps of its own?"""
    return _drawer(net) is not None


def check_draws(method: str, members: Mapping[str, nn.Module]) -> None:
    """Raises ValueError where `method` is one of OWN_MAPS and one of the members draws no map."""
    without = [name for name, net in members.items() if not explains_itself(net)]
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
        classes: N indices of the logits of `net`. The map times its gradient, as HiResCAM has it,
            where that is above 0: what speaks for the class. None takes the map as it is drawn,
            the same for every class.

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
    batch = on_device_of(net, batch)
    if classes is not None:
        bare, logits = bare_net(net, classes)
        return gradient_maps(bare, [drawer.explanation_layer], batch, logits, "hirescam")[0]
    with left_as_found(net), torch.inference_mode():
        return drawer.explain(batch)[:, 0].float().cpu().numpy()


def _drawer(net: nn.Module) -> Any:
    return next((m for m in (net, getattr(net, "net", None)) if hasattr(m, "explain")), None)
