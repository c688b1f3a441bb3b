"""The maps that a network draws itself (CXRNet), in the form of those of `classify.saliency`.

    maps = explanations(net, batch)  # (N, h, w) ≥ 0: what it was shown, whatever the class
    maps = explanations(net, batch, [1] * len(batch))  # what of that speaks for class 1
    planes = to_pixels(maps, frames, sizes_hw)  # as for any method: the audit measures them alike
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from classify.saliency import saliency_maps
from classify.saliency_hooks import left_as_found, on_device_of


def explains_itself(net: nn.Module) -> bool:
    """Does the network, or the one that it wraps as `net`, draw maps of its own?"""
    return _drawer(net) is not None


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
        raise ValueError(f"{type(net).__name__} must have `explain`, which draws a map. It has "
                         "none: use saliency_maps.")  # fmt: skip
    if not len(batch):
        return np.zeros((0, 1, 1), np.float32)
    if classes is not None:
        layer = drawer.explanation_layer
        assert isinstance(layer, nn.Module)
        return saliency_maps(net, batch, classes, "hirescam", layer, closed_form=False)
    explain: Callable[[torch.Tensor], torch.Tensor] = drawer.explain  # type: ignore[assignment]
    with left_as_found(net), torch.inference_mode():
        maps = explain(on_device_of(net, batch))
    return maps[:, 0].float().cpu().numpy()


def _drawer(net: nn.Module) -> nn.Module | None:
    inner = getattr(net, "net", None)
    found = [m for m in (net, inner) if isinstance(m, nn.Module) and hasattr(m, "explain")]
    return found[0] if found else None
