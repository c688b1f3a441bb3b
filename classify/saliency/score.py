"""Score-CAM in batches, over the channels that carry the most energy.

Score-CAM (Wang et al. 2020, arXiv 1910.01279) asks the network itself: each channel of a layer,
scaled to [0, 1] and enlarged to the input, masks the film, and the class's logit on what is left
weighs the channel. That is a forward pass a channel, 1,280 for one film of the shipped members, so
only the `top_k` channels with the highest activation energy Σ A² are asked; tools.benchmark says
what that costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from classify.saliency.hooks import check_logits, left_as_found, run_recorded
from classify.saliency.methods import SCORE_BATCH, TOP_K
from cxr.rules import require


def score_maps(
    model: nn.Module,
    layer: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
    top_k: int | None = TOP_K,
    score_batch: int = SCORE_BATCH,
) -> np.ndarray:
    """(N, h, w) float32 ≥ 0; the weights of a film's channels are a softmax and add up to 1.

    `top_k` channels are asked, by activation energy (None: all), `score_batch` masked films a
    forward pass.
    """
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
