"""Where a network looked: saliency maps of one logit, laid back on the film.

    maps = saliency_maps(member, batch, [1] * len(batch), "layercam")  # (N, h, w), in its own unit
    planes = to_pixels(maps, frames, sizes_hw)  # each film's or crop's own pixels

pytorch-grad-cam scales each map to [0, 1], which hides how strong it was and shifts its energy;
here maps keep their unit: those of several members can be compared and their energy audited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classify.saliency import (
    ADD_UP,
    CLOSED_FORMS,
    MASKED,
    OWN_MAPS,
    SCORE_BATCH,
    TOP_K,
    check_method,
)
from classify.saliency.hooks import (
    LogitsAndMaps,
    backbone_layers,
    bare_net,
    check_classes,
    check_logits,
    eigen_maps,
    gradient_maps,
    left_as_found,
    logits_and_maps,
    may_be_closed,
    on_device_of,
    pooled_layers,
    rearranges,
    saliency_layer,
    score_maps,
    watching,
)


def saliency_maps(
    model: nn.Module,
    batch: Tensor,
    classes: Sequence[int],
    method: str = "grad_cam",
    layer: nn.Module | None = None,
    closed_form: bool | Literal["auto"] = "auto",
    top_k: int | None = TOP_K,
    score_batch: int = SCORE_BATCH,
) -> Array:
    """Maps of one logit a film: (N, h, w) float32 ≥ 0 at the layer's own resolution, unscaled.

    `model` gives (N, K) logits for `batch` (N, 3, height, width) and is left as it was found;
    `classes` are N indices of logits. Of the methods, eigen_cam and explanation explain no class in
    particular; explanation and explanation_class are of networks that draw a map, see
    `explanations`. `layer` gives (N, C, h, w): None takes the model's own `saliency_layer`, of a
    net with several backbones all of them, fused, see `fuse`; a model without a layer has
    occlusion, rise and score_cam alone, see `masked_maps`. `closed_form` auto takes the closed form
    (no backward pass) where the head is global mean pooling and linear layers, True insists on it,
    False on a backward pass; several backbones, eigen_cam and score_cam have one form. For `top_k`
    and `score_batch` see `score_maps`.

    Raises ValueError for arguments that do not fit, IndexError for a class without a logit."""
    check_method(method)
    check_classes(classes, len(batch))
    if method in OWN_MAPS:
        return explanations(model, batch, None if method == "explanation" else classes)
    if layer is None and needs_masks(method, [model]):
        return masked_maps([model], batch, classes, method, score_batch)[0]
    model, classes = bare_net(model, classes)
    if layer is None and backbone_layers(model):
        return fuse(backbone_maps(model, batch, classes, method, top_k, score_batch), method)
    layer = saliency_layer(model) if layer is None else layer
    tries = closed_form is True or (closed_form == "auto" and may_be_closed(layer))
    if method in CLOSED_FORMS and tries and len(batch):
        found = logits_and_maps(model, batch, layer)
        if found.head is not None or closed_form is True:
            return found.saliency(classes, method)
    return backbone_maps(model, batch, classes, method, top_k, score_batch, {"": layer})[""]


def maps_of_all(
    models: Sequence[nn.Module], batch: Tensor, wanted: int, method: str = "grad_cam"
) -> list[Array]:
    """`saliency_maps` of the logit `wanted` of each of several models; those that stand for one
    network share its forward passes."""
    if needs_masks(method, models):
        return masked_maps(models, batch, [wanted] * len(batch), method)
    of_net: dict[nn.Module, list[tuple[int, int]]] = {}
    for n, model in enumerate(models):
        net, (logit,) = bare_net(model, [wanted])
        of_net.setdefault(net, []).append((n, logit))
    found: dict[int, Array] = {}
    for net, own in of_net.items():
        single = len(own) == 1 or method not in CLOSED_FORMS or bool(backbone_layers(net))
        if single or not len(batch) or may_be_closed(saliency_layer(net)):
            classes = [wanted] * len(batch)
            found |= {n: saliency_maps(models[n], batch, classes, method) for n, _ in own}
        else:
            asked = [[logit] * len(batch) for _, logit in own]
            layers = [saliency_layer(net)]
            planes = gradient_maps(net, layers, on_device_of(net, batch), asked, method)
            found |= {n: plane for (n, _), (plane,) in zip(own, planes, strict=True)}
    return [found[n] for n in range(len(models))]


def backbone_maps(
    model: nn.Module,
    batch: Tensor,
    classes: Sequence[int],
    method: str = "grad_cam",
    top_k: int | None = TOP_K,
    score_batch: int = SCORE_BATCH,
    layers: Mapping[str, nn.Module] | None = None,
) -> dict[str, Array]:
    """(N, h, w) float32 ≥ 0 of each backbone of a fusion net, or of these `layers` by name, at its
    own resolution. The gradients of all come from one forward and one backward pass, which ends at
    the layers. Arguments and errors as for `saliency_maps`."""
    layers = backbone_layers(model) if layers is None else layers
    if not len(batch):
        return {name: np.zeros((0, 1, 1), np.float32) for name in layers}
    batch = on_device_of(model, batch)
    if method == "score_cam":
        how = (batch, classes, top_k, score_batch)
        return {name: score_maps(model, layer, *how) for name, layer in layers.items()}
    if method == "eigen_cam":
        return {n: eigen_maps(model, layer, batch, classes) for n, layer in layers.items()}
    (maps,) = gradient_maps(model, list(layers.values()), batch, [classes], method)
    return dict(zip(layers, maps, strict=True))


def fuse(by_name: Mapping[str, Array], method: str = "grad_cam") -> Array:
    """(N, h, w): maps of several backbones (N, …) at the finest one's resolution, added up in their
    own units; pytorch-grad-cam scales each to [0, 1] first, so that a backbone that says nothing
    weighs as much as one that decides. For grad_cam, hirescam and layercam a map keeps its sum when
    it is enlarged, so that each backbone keeps its share in the logit; with equal values instead, a
    coarse map would weigh more by the ratio of the areas. The other methods' maps keep their
    values."""
    maps = list(by_name.values())
    height, width = max(m.shape[1] for m in maps), max(m.shape[2] for m in maps)
    fused = np.zeros((len(maps[0]), height, width), np.float32)
    for planes in maps:
        for n, plane in enumerate(planes):
            large = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
            total = float(large.sum())
            if method in ADD_UP and total > 0:
                large = large * (float(plane.sum()) / total)
            fused[n] += large
    return fused


def look(
    members: Sequence[nn.Module], batch: Tensor, wanted: int, method: str = "grad_cam"
) -> list[tuple[Array, Array | None]]:
    """Of each member the logits (N, K) float32 and the maps (N, h, w) of the logit `wanted`, from
    one forward pass of each network: one that stands for several members runs once. The maps are
    None where the method has no closed form on the network: `saliency_maps` makes them with
    closed_form=False then. Arguments and errors as for `saliency_maps`."""
    return look_pooled(members, batch, wanted, method)[0]


def look_pooled(
    members: Sequence[nn.Module], batch: Tensor, wanted: int, method: str = "grad_cam"
) -> tuple[list[tuple[Array, Array | None]], Array | None]:
    """`look`, and from the same forward passes what the networks pool, (N, F) float32 as
    `Ensemble.predict_pooled` gives it; None where the method leaves a network's maps alone."""
    ran: dict[nn.Module, LogitsAndMaps] = {}
    looks = []
    for member in members:
        net, (logit,) = bare_net(member, [wanted])
        found = ran[net] = ran.get(net) or _run(net, batch, method)
        logits = found.logits.float().cpu()
        if net is not member and rearranges(member):
            logits = member.rearrange(logits)
        planes = found.saliency([logit] * len(batch), method) if found.head else None
        looks.append((logits.numpy(), planes))
    pooled = [found.pooled for found in ran.values()]
    return looks, torch.cat([*chain(*pooled)], dim=1).numpy() if all(pooled) else None


def _run(net: nn.Module, batch: Tensor, method: str) -> LogitsAndMaps:
    """Logits, with a layer's maps where the method may have a closed form; of several backbones
    with what they pool."""
    backbones = list(backbone_layers(net).values())
    if method in CLOSED_FORMS and not backbones and pooled_layers(net):
        return logits_and_maps(net, batch)
    with left_as_found(net), torch.inference_mode(), watching(net) as pooled:
        logits = net(on_device_of(net, batch))
    return LogitsAndMaps(logits, torch.empty(0), pooled=pooled)


@dataclass(frozen=True, eq=False)
class Explained:
    """Answers to N films and the maps of one class each. `logits` (N, K), `classes` the N that are
    explained, `maps` (N, h, w) ≥ 0 of the network, and of a fusion net `nets`: name → (N, h', w')
    of each net at its own resolution, of which `maps` is the sum."""

    logits: Array
    classes: tuple[int, ...]
    maps: Array
    nets: dict[str, Array]


def explain(
    net: nn.Module, batch: Tensor, classes: Sequence[int] | None = None, method: str = "grad_cam"
) -> Explained:
    """Logits and maps of prepared films (N, 3, h, w), N at least 1. `classes` are N indices of
    logits; None explains what the network answered. One forward pass where the maps have a closed
    form. Errors as of `saliency_maps`."""
    found = _run(net, batch, method)
    logits = found.logits.float().cpu()
    wanted = [int(k) for k in (logits.argmax(1) if classes is None else classes)]
    check_logits(wanted, logits)
    nets = backbone_maps(net, batch, wanted, method) if backbone_layers(net) else {}
    if nets:
        maps = fuse(nets, method)
    elif found.head is not None:
        maps = found.saliency(wanted, method)
    else:
        maps = saliency_maps(net, batch, wanted, method)
    return Explained(logits.numpy(), tuple(wanted), maps, nets)


# --- maps that a network draws itself (CXRNet), in the form of those of any other method


def _drawer(net: nn.Module) -> Any:
    """The network, or the one that it wraps as `net`, that draws maps of its own."""
    return next((m for m in (net, getattr(net, "net", None)) if hasattr(m, "explain")), None)


def explains_itself(net: nn.Module) -> bool:
    """Does the network, or the one that it wraps, draw maps of its own?"""
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


def explanations(net: nn.Module, batch: Tensor, classes: Sequence[int] | None = None) -> Array:
    """(N, h, w) float32 ≥ 0 at the resolution of the network's own map, unscaled. `net` has
    `explain(x)` → (N, 1, h, w) and `explanation_layer`, or holds such a one as `net`. For
    `classes`, N of its logits: the map times its gradient, as HiResCAM has it, where that is above
    0: what speaks for the class. None takes the map as it is drawn, the same for every class.
    Raises ValueError for a network that draws none, IndexError for a class without a logit."""
    drawer = _drawer(net)
    if drawer is None:
        raise ValueError(
            f"{type(net).__name__} must have `explain`, which draws a map. It has "
            "none: take another method, such as grad_cam."
        )
    if not len(batch):
        return np.zeros((0, 1, 1), np.float32)
    batch = on_device_of(net, batch)
    if classes is not None:
        bare, logits = bare_net(net, classes)
        return gradient_maps(bare, [drawer.explanation_layer], batch, [logits], "hirescam")[0][0]
    with left_as_found(net), torch.inference_mode():
        return drawer.explain(batch)[:, 0].float().cpu().numpy()


# --- maps that need neither gradients nor layers: parts of the input are hidden and the model is
# asked again. For a network that only answers, such as an ONNX file.
#
# | method | what is shown | map | source |
# |---|---|---|---|
# | occlusion | all but one cell of a grid | how much the answer falls | Zeiler & Fergus 2014 |
# | rise | half of the cells, drawn by chance | Σ (answer − mean answer) · mask | Petsiuk 2018 |
# | score_cam | one soft cell of a grid | softmax of the answers | Wang 2020, cells for channels |
#
# The answer is the log-odds of the class against all other logits of the model; of a member those
# of its target's probability. What is hidden takes the mean of the film's input. RISE as published
# takes no mean away: its map is nearly even then, and says little of where its energy lies.

Array = np.ndarray
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
) -> list[Array]:
    """Of each model (N, h, w) float32 ≥ 0 for one of its logits a film, named by `classes`. `batch`
    is (N, C, height, width), prepared for the models; models that stand for one network ask it
    once. `score_batch` masked films go through a network at a time."""
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


def _map(method: str, scores: Tensor, whole: Tensor, pooled: Tensor) -> Array:
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
    shown = []
    for number, mask in enumerate(large, start=first + 1):
        # the window on each enlarged mask begins up to a cell from its corner
        shares = torch.rand(2, generator=_seeded(number)).tolist()
        y, x = (int(share * side) for share, side in zip(shares, cell, strict=True))
        shown.append(mask[:, y : y + height, x : x + width])
    return torch.stack(shown)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- how alike two maps or pictures are, as a measure and as a loss: the structural similarity
# (Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity").
# Luminance, contrast and structure are compared in a Gaussian window (11 × 11, σ 1.5) at every
# place where the whole window lies on the picture, and the mean over the places is the figure.

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03  # of pixels in [0, 1]


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM of each pair: a, b (N, C, H, W) → (N,), at most 1, and 1 for equal pictures alone.
    Computed in float32 at least: variances are differences of squares, which half precision has not
    the digits for. Raises ValueError for shapes that differ, that are not (N, C, H, W), or that are
    smaller than the window."""
    return ssim_map(a, b).mean((1, 2, 3))


def ssim_of(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two pictures (h, w) in [0, 1], in the precision that they have."""
    return float(ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None]))


def ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 − SSIM, averaged over the batch: a scalar in [0, 2]."""
    return 1 - ssim(a, b).mean()


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM at every place of the window: a, b (N, C, H, W) → (N, C, H − 10, W − 10)."""
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[-2:]) < WINDOW:
        raise ValueError(
            f"a and b must be (N, C, H, W) of one shape, at least {WINDOW} px a side. "
            f"Got {tuple(a.shape)} and {tuple(b.shape)} instead."
        )
    with torch.autocast(a.device.type, enabled=False):
        kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        a, b = a.to(kind), b.to(kind)
        parts = _smooth(torch.stack([a, b, a * a, b * b, a * b]).flatten(0, 2)[:, None])
        mean_a, mean_b, aa, bb, ab = parts.view(5, *a.shape[:2], *parts.shape[-2:]).unbind()
        var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
        c1, c2 = K1**2, K2**2
        light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        return light * (2 * cov + c2) / (var_a + var_b + c2)


def _smooth(planes: Tensor) -> Tensor:
    """(M, 1, H, W) under the Gaussian window, without padding: one axis after the other."""
    places = torch.arange(WINDOW, device=planes.device, dtype=planes.dtype) - WINDOW // 2
    line = torch.exp(-0.5 * (places / SIGMA) ** 2)
    line = line / line.sum()
    return F.conv2d(F.conv2d(planes, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
