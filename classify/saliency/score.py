"""Score-CAM in batches, over the channels that carry the most energy.

Score-CAM (Wang et al. 2020, arXiv 1910.01279) asks the network itself: each channel of a layer,
scaled to [0, 1] and enlarged to the input, masks the film, and the class's logit on what is left
weighs the channel. That is a forward pass a channel, 1,280 for one film of the shipped members, so
only the `top_k` channels with the highest activation energy Σ A² are asked; `rank_correlation`
says what that costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from classify.saliency.hooks import (
    check_classes,
    check_layers,
    check_logits,
    left_as_found,
    on_device_of,
    run_recorded,
    saliency_layer,
)
from classify.saliency.methods import SCORE_BATCH, TOP_K


def score_maps(
    model: nn.Module,
    layer: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
    top_k: int | None = TOP_K,
    score_batch: int = SCORE_BATCH,
) -> np.ndarray:
    """(N, h, w) float32 ≥ 0; the weights of a film's channels are a softmax and add up to 1.

    Args:
        top_k: channels that are asked, by activation energy; None for all of them.
        score_batch: masked films a forward pass.
    """
    _check_options(top_k, score_batch)
    with left_as_found(model), torch.inference_mode():
        maps = _look(model, layer, batch, classes)
        kept = _take(maps, _most_energy(maps, top_k))
        return _weigh(kept, _scores(model, batch, classes, kept, score_batch)).cpu().numpy()


def rank_correlation(
    model: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
    k: int = TOP_K,
    layer: nn.Module | None = None,
    score_batch: int = SCORE_BATCH,
) -> np.ndarray:
    """(N,) Spearman correlation between each film's map from its `k` channels and from all.

    Over the places of the layer's maps; NaN where a map is the same everywhere. Costs as much as
    Score-CAM over all channels, whose scores serve both maps.
    """
    _check_options(k, score_batch)
    layer = saliency_layer(model) if layer is None else layer
    check_layers(model, [layer])
    check_classes(classes, len(batch))
    if not len(batch):
        return np.zeros(0)
    batch = on_device_of(model, batch)
    with left_as_found(model), torch.inference_mode():
        maps = _look(model, layer, batch, classes)
        scores = _scores(model, batch, classes, maps, score_batch)
        chosen = _most_energy(maps, k)
        some = _weigh(_take(maps, chosen), scores.gather(1, chosen)).flatten(1).cpu().numpy()
        every = _weigh(maps, scores).flatten(1).cpu().numpy()
    return np.array([_spearman(a, b) for a, b in zip(some, every, strict=True)])


def _check_options(top_k: int | None, score_batch: int) -> None:
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all channels. Got {top_k}.")
    if score_batch < 1:
        raise ValueError(f"score_batch must be at least 1. Got {score_batch}.")


def _look(
    model: nn.Module, layer: nn.Module, batch: torch.Tensor, classes: Sequence[int]
) -> torch.Tensor:
    """The layer's maps (N, C, h, w)."""
    logits, (maps,) = run_recorded(model, [layer], batch)
    check_logits(classes, logits)
    return maps


def _most_energy(maps: torch.Tensor, top_k: int | None) -> torch.Tensor:
    """(N, k) indices of each film's channels with the highest Σ A², strongest first."""
    channels = maps.shape[1]
    k = channels if top_k is None else min(top_k, channels)
    return maps.float().square().sum((2, 3)).topk(k, dim=1).indices


def _take(maps: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) to (N, k, h, w): each film's chosen (N, k) channels."""
    return maps.gather(1, chosen[..., None, None].expand(-1, -1, *maps.shape[2:]))


def _scores(
    model: nn.Module, batch: torch.Tensor, classes: Sequence[int], maps: torch.Tensor, size: int
) -> torch.Tensor:
    """(N, C) logits of each film's class when each of its maps (N, C, h, w) masks the film."""
    wanted = torch.tensor([int(c) for c in classes], device=batch.device)
    # A channel that is the same everywhere masks everything: one black film serves them all.
    blank = model(torch.zeros_like(batch[:1])).float()[0, wanted]  # (N,)
    scores = blank[:, None].repeat(1, maps.shape[1])
    alive = maps.amax((2, 3)) > maps.amin((2, 3))
    films, channels = alive.nonzero(as_tuple=True)
    for film, channel in zip(films.split(size), channels.split(size), strict=True):
        masks = _masks(maps[film, channel], batch.shape[2:])
        logits = model(batch[film] * masks.to(batch.dtype)).float()
        scores[film, channel] = logits.gather(1, wanted[film, None])[:, 0]
    return scores


def _masks(maps: torch.Tensor, size_hw: Sequence[int]) -> torch.Tensor:
    """(B, h, w) maps, enlarged and each scaled to [0, 1]: (B, 1, height, width)."""
    # corners aligned and 1e-8 added, as pytorch-grad-cam does it
    large = F.interpolate(
        maps[:, None].float(), size=tuple(size_hw), mode="bilinear", align_corners=True
    )
    low, high = large.amin((2, 3), keepdim=True), large.amax((2, 3), keepdim=True)
    return (large - low) / (high - low + 1e-8)


def _weigh(maps: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) summed with the softmax of their scores (N, C): (N, h, w) ≥ 0."""
    return torch.einsum("nc,nchw->nhw", scores.softmax(1), maps.float()).clamp_min(0)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    flat = np.ptp(a) == 0 or np.ptp(b) == 0
    return float("nan") if flat else float(spearmanr(a, b).statistic)
