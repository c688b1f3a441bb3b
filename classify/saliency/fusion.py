"""Networks of several backbones: one map for each, fused in their own units.

pytorch-grad-cam scales every layer's map to [0, 1] before it averages them, so that a backbone
that says nothing weighs as much as one that decides. Here the maps are added as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from classify.saliency.hooks import check_classes, check_layers, on_device_of
from classify.saliency.library import eigen_maps, library_maps
from classify.saliency.score import SCORE_BATCH, TOP_K, score_maps

# Methods whose map, added up over its places, is the backbone's share in the logit (for heads of
# mean pooling and linear layers): a gradient by one place shrinks with the number of places.
_ADD_UP = ("grad_cam", "hirescam", "layercam")


def saliency_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that a fusion net names for its maps, by backbone.

    From `saliency_layers` (name → layer) or `backbones` (name → (module, layer)); ValueError where
    there is neither.
    """
    named: Any = getattr(model, "saliency_layers", None)
    if named is None:
        pairs: Any = getattr(model, "backbones", None)
        if hasattr(pairs, "items"):
            named = {k: v[1] for k, v in pairs.items() if isinstance(v, tuple) and len(v) == 2}
    if not named or not all(isinstance(layer, nn.Module) for layer in named.values()):
        raise ValueError(
            f"{type(model).__name__} must name the layers of its backbones: `saliency_layers` "
            "(name to layer) or `backbones` (name to (module, layer)). It names none."
        )
    return dict(named)


def has_backbones(model: nn.Module) -> bool:
    """Whether a model is a fusion net for `fused_maps`."""
    try:
        return bool(saliency_layers(model))
    except ValueError:
        return False


def backbone_maps(
    model: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
    method: str = "grad_cam",
    top_k: int | None = TOP_K,
    score_batch: int = SCORE_BATCH,
) -> dict[str, np.ndarray]:
    """(N, h, w) float32 ≥ 0 of each backbone at its own resolution.

    The gradients of all backbones come from one forward and one backward pass, which ends at the
    layers. Arguments and errors as for `saliency_maps`.
    """
    layers = saliency_layers(model)
    check_layers(model, list(layers.values()))
    check_classes(classes, len(batch))
    if not len(batch):
        return {name: np.zeros((0, 1, 1), np.float32) for name in layers}
    batch = on_device_of(model, batch)
    if method == "score_cam":
        return {
            name: score_maps(model, layer, batch, classes, top_k, score_batch)
            for name, layer in layers.items()
        }
    if method == "eigen_cam":
        return {n: eigen_maps(model, layer, batch, classes) for n, layer in layers.items()}
    maps = library_maps(model, list(layers.values()), batch, classes, method)
    return dict(zip(layers, maps, strict=True))


def fused_maps(
    model: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
    method: str = "grad_cam",
    top_k: int | None = TOP_K,
    score_batch: int = SCORE_BATCH,
) -> np.ndarray:
    """(N, h, w) float32 ≥ 0: the maps of all backbones at the finest one's resolution, added up.

    For grad_cam, hirescam and layercam a map keeps its sum when it is enlarged, so that each
    backbone keeps its share in the logit; with equal values instead, a coarse map would weigh more
    by the ratio of the areas. The other methods' maps keep their values.
    """
    return fuse(backbone_maps(model, batch, classes, method, top_k, score_batch), method)


def fuse(by_name: Mapping[str, np.ndarray], method: str = "grad_cam") -> np.ndarray:
    """(N, h, w): maps of several backbones (N, …) added up as `fused_maps` does."""
    maps = list(by_name.values())
    height, width = max(m.shape[1] for m in maps), max(m.shape[2] for m in maps)
    fused = np.zeros((len(maps[0]), height, width), np.float32)
    for planes in maps:
        for n, plane in enumerate(planes):
            large = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
            total = float(large.sum())
            if method in _ADD_UP and total > 0:
                large = large * (float(plane.sum()) / total)
            fused[n] += large
    return fused
