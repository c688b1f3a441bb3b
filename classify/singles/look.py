"""A single network's answers and where it looked for them; for a fusion net, each net's own map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from classify.saliency.closed import CLOSED_FORMS
from classify.saliency.fusion import has_backbones
from classify.saliency.hooks import check_logits, on_device_of
from classify.saliency.maps import (
    backbone_maps,
    fuse,
    left_as_found,
    logits_and_maps,
    saliency_maps,
)


@dataclass(frozen=True, eq=False)
class Explained:
    """Answers to N films and the maps of one class each.

    `logits` (N, K), `classes` the N that are explained, `maps` (N, h, w) ≥ 0 of the network, and
    of a fusion net `nets`: name → (N, h', w') of each net at its own resolution, of which `maps` is
    the sum.
    """

    logits: np.ndarray
    classes: tuple[int, ...]
    maps: np.ndarray
    nets: dict[str, np.ndarray]


def explain(
    net: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int] | None = None,
    method: str = "grad_cam",
) -> Explained:
    """Logits and maps of prepared films (N, 3, h, w), N at least 1.

    `classes` are N indices of logits; None explains what the network answered. One forward pass
    where the maps have a closed form. Errors as of `saliency_maps`.
    """
    if has_backbones(net) or method not in CLOSED_FORMS:
        found = None
        with left_as_found(net), torch.inference_mode():
            logits = net(on_device_of(net, batch)).float().cpu()
    else:
        found = logits_and_maps(net, batch)
        logits = found.logits.float().cpu()
    wanted = [int(k) for k in (logits.argmax(1) if classes is None else classes)]
    check_logits(wanted, logits)
    nets: dict[str, np.ndarray] = {}
    if has_backbones(net):
        nets = backbone_maps(net, batch, wanted, method)
        maps = fuse(nets, method)
    elif found is not None and found.head is not None:
        maps = found.saliency(wanted, method)
    else:
        maps = saliency_maps(net, batch, wanted, method)
    return Explained(logits.numpy(), tuple(wanted), maps, nets)
