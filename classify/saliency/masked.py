"""Maps that need neither gradients nor layers: parts of the input are hidden and the model is asked
again. For a network that only answers, such as an ONNX file.

| method | what is shown | map | source |
|---|---|---|---|
| occlusion | all but one cell of a grid | how much the answer falls | Zeiler & Fergus 2014 |
| rise | half of the cells, drawn by chance | Σ (answer − mean answer) · mask | Petsiuk 2018 |
| score_cam | one soft cell of a grid | softmax of the answers | Wang 2020, cells for channels |

The answer is the log-odds of the class against all other logits of the model; of a member those of
its target's probability. What is hidden takes the mean of the film's input. RISE as published takes
no mean away: its map is nearly even then, and says little of where its energy lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classify.saliency.hooks import (
    check_classes,
    check_logits,
    left_as_found,
    on_device_of,
    pooled_layers,
    rearranges,
)
from classify.saliency.methods import MASKED, SCORE_BATCH

CELLS = 8  # along each side, about as coarse as the last maps of a network
RISE_MASKS = 256


def needs_masks(method: str, models: Sequence[nn.Module]) -> bool:
    """Whether these models' maps by the method are made here."""
    layerless = method == "score_cam" and not all(map(pooled_layers, models))
    return method in MASKED or layerless


def masked_maps(
    models: Sequence[nn.Module],
    batch: Tensor,
    classes: Sequence[int],
    method: str,
    score_batch: int = SCORE_BATCH,
) -> list[np.ndarray]:
    """Of each model (N, h, w) float32 ≥ 0 for one of its logits a film, named by `classes`.

    `batch` is (N, C, height, width), prepared for the models; models that stand for one network ask
    it once. `score_batch` masked films go through a network at a time.
    """
    check_classes(classes, len(batch))
    grids = _grids(method)
    scores = torch.zeros(len(models), len(batch), len(grids))
    whole = torch.zeros(len(models), len(batch))
    pooled = torch.zeros(len(grids), CELLS, CELLS)
    with torch.inference_mode():
        for n, film in enumerate(batch):
            whole[:, n] = _answers(models, film[None], int(classes[n]))[:, 0]
        for start in range(0, len(grids), score_batch):
            part = slice(start, start + score_batch)
            masks = _enlarged(method, grids[part], start, batch.shape[2:])
            pooled[part] = F.adaptive_avg_pool2d(masks, CELLS)[:, 0]
            own = masks.to(batch.device, batch.dtype)
            for n, film in enumerate(batch):
                ground = film.mean((1, 2), keepdim=True)
                shown = ground + own * (film - ground)
                scores[:, n, part] = _answers(models, shown, int(classes[n]))
    return [_map(method, own, as_is, pooled) for own, as_is in zip(scores, whole, strict=True)]


def _map(method: str, scores: Tensor, whole: Tensor, pooled: Tensor) -> np.ndarray:
    """(N, h, w) from a model's answers (N, masks) to masked films and (N,) to the films."""
    if method == "rise":
        apart = scores - scores.mean(1, keepdim=True)
        planes = torch.einsum("np,phw->nhw", apart, pooled) / len(pooled)
    elif method == "occlusion":
        planes = (whole[:, None] - scores).view(-1, CELLS, CELLS)
    else:
        planes = scores.softmax(1).view(-1, CELLS, CELLS)
    return planes.clamp_min(0).numpy()


def _answers(models: Sequence[nn.Module], batch: Tensor, wanted: int) -> Tensor:
    """(models, N) log-odds of the wanted logit."""
    ran: dict[nn.Module, Tensor] = {}
    out = []
    for model in models:
        net = model.bare_logits[0] if rearranges(model) else model
        if net not in ran:
            with left_as_found(net):
                ran[net] = net(on_device_of(net, batch)).float()
        logits = model.rearrange(ran[net]) if rearranges(model) else ran[net]
        check_logits([wanted], logits)
        rest = [k for k in range(logits.shape[1]) if k != wanted]
        out.append(logits[:, wanted] - (logits[:, rest].logsumexp(1) if rest else 0))
    return torch.stack(out).cpu()


def _grids(method: str) -> Tensor:
    """(masks, cells, cells): what of a film each mask shows."""
    if method == "rise":  # one row and column more than are seen, for the shift
        drawn = torch.rand(RISE_MASKS, CELLS + 1, CELLS + 1, generator=_seeded(0))
        return (drawn < 0.5).float()
    single = torch.eye(CELLS * CELLS).view(-1, CELLS, CELLS)
    return 1 - single if method == "occlusion" else single


def _enlarged(method: str, grids: Tensor, first: int, size_hw: Sequence[int]) -> Tensor:
    """(B, 1, height, width) in [0, 1]; `first` is the number of the first of these masks."""
    height, width = size_hw
    if method == "occlusion":
        return F.interpolate(grids[:, None], size=(height, width), mode="nearest")
    if method != "rise":
        large = F.interpolate(grids[:, None], size=(height, width), mode="bilinear")
        return large / large.amax((2, 3), keepdim=True)
    cell = -(-height // CELLS), -(-width // CELLS)
    sides = ((CELLS + 1) * cell[0], (CELLS + 1) * cell[1])
    large = F.interpolate(grids[:, None], size=sides, mode="bilinear")
    corners = _corners(first, len(grids), cell)
    return torch.stack(
        [m[:, y : y + height, x : x + width] for m, (y, x) in zip(large, corners, strict=True)]
    )


def _corners(first: int, count: int, cell: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Where the window on each enlarged mask begins, up to a cell from its corner."""
    for number in range(first, first + count):
        y, x = torch.rand(2, generator=_seeded(1 + number)).tolist()
        yield int(y * cell[0]), int(x * cell[1])


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
