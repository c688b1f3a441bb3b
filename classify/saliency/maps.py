"""Where a member looked: saliency maps of one logit, laid back on the film.

    maps = saliency_maps(member, batch, [1] * len(batch), "layercam")  # (N, h, w), in its own unit
    planes = to_pixels(maps, frames, sizes_hw)  # each film's or crop's own pixels

pytorch-grad-cam scales each map to [0, 1], which hides how strong it was and shifts its energy;
here maps keep their unit: those of several members can be compared and their energy audited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from torch import nn

from classify.saliency.closed import CLOSED_FORMS, logits_and_maps, may_be_closed
from classify.saliency.fusion import backbone_maps, fuse, fused_maps, has_backbones
from classify.saliency.hooks import (
    bare_net,
    check_classes,
    check_layers,
    left_as_found,
    on_device_of,
    rearranges,
    saliency_layer,
)
from classify.saliency.library import eigen_maps, library_maps
from classify.saliency.own import OWN_MAPS, explanations
from classify.saliency.score import SCORE_BATCH, TOP_K, rank_correlation, score_maps
from cxr.boxes import Frame

__all__ = [
    "ALL_METHODS",
    "METHODS",
    "backbone_maps",
    "fuse",
    "fused_maps",
    "grad_cam",
    "left_as_found",
    "logits_and_maps",
    "logits_and_saliency",
    "rank_correlation",
    "saliency_layer",
    "saliency_maps",
    "to_pixels",
]

METHODS: tuple[str, ...] = (
    "grad_cam",
    "grad_cam_pp",
    "hirescam",
    "layercam",
    "eigen_cam",
    "score_cam",
    "cam",
)
ALL_METHODS: tuple[str, ...] = (*METHODS, *OWN_MAPS)  # the last for nets that draw their own maps


def saliency_maps(
    model: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
    method: str = "grad_cam",
    layer: nn.Module | None = None,
    closed_form: bool | Literal["auto"] = "auto",
    top_k: int | None = TOP_K,
    score_batch: int = SCORE_BATCH,
) -> np.ndarray:
    """Maps of one logit a film: (N, h, w) float32 ≥ 0 at the layer's own resolution, unscaled.

    Args:
        model: gives (N, K) logits for `batch`; left as it was found, also after an error.
        batch: (N, 3, height, width), prepared for the model.
        classes: N indices of logits.
        method: one of ALL_METHODS. eigen_cam and explanation explain no class in particular.
            explanation and explanation_class are of networks that draw a map, see `explanations`.
        layer: a module of the model whose output is (N, C, h, w); the model's own `saliency_layer`
            where it is None. A net with several backbones gives its `fused_maps` then.
        closed_form: auto takes the closed form (no backward pass) where the head is global mean
            pooling and linear layers, and pytorch-grad-cam's formulas elsewhere; True insists on
            the one, False on the other. score_cam has one form only.
        top_k, score_batch: of score_cam, see `score_maps`.

    Raises ValueError for arguments that do not fit, IndexError for a class without a logit.
    """
    if method not in ALL_METHODS:
        raise ValueError(f"method must be one of {', '.join(ALL_METHODS)}. Got {method!r} instead.")
    if closed_form not in ("auto", True, False):
        raise ValueError(f"closed_form must be auto, True or False. Got {closed_form!r} instead.")
    check_classes(classes, len(batch))
    if method in OWN_MAPS:
        return explanations(model, batch, None if method == "explanation" else classes)
    model, classes = bare_net(model, classes)
    if layer is None and has_backbones(model):
        if closed_form is True:
            raise ValueError(
                "closed_form must be auto or False for a net with several backbones. "
                "Got True instead."
            )
        return fused_maps(model, batch, classes, method, top_k, score_batch)
    layer = saliency_layer(model) if layer is None else layer
    check_layers(model, [layer])
    if not len(batch):
        return np.zeros((0, 1, 1), np.float32)
    batch = on_device_of(model, batch)
    if method == "score_cam":
        return score_maps(model, layer, batch, classes, top_k, score_batch)
    if method == "eigen_cam" and closed_form is not False:
        return eigen_maps(model, layer, batch, classes)
    if method in CLOSED_FORMS and (
        closed_form is True or (closed_form == "auto" and may_be_closed(layer))
    ):
        found = logits_and_maps(model, batch, layer)
        if found.head is not None or closed_form is True:
            return found.saliency(classes, method)
    return library_maps(model, [layer], batch, classes, method)[0]


def logits_and_saliency(
    model: nn.Module, batch: torch.Tensor, wanted: int, method: str = "grad_cam"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits (N, K) float32 and each film's map (N, h, w) of the logit `wanted`, from one forward
    pass. The maps are None where the method has no closed form on this model: `saliency_maps` makes
    them with closed_form=False then. Arguments and errors as for `saliency_maps`."""
    net, (logit,) = bare_net(model, [wanted])
    if net is not model and rearranges(model):
        bare, planes = logits_and_saliency(net, batch, logit, method)
        return model.rearrange(torch.from_numpy(bare)).numpy(), planes
    if has_backbones(model) or method not in CLOSED_FORMS:
        with left_as_found(model), torch.inference_mode():
            return model(on_device_of(model, batch)).float().cpu().numpy(), None
    found = logits_and_maps(model, batch)
    planes = None if found.head is None else found.saliency([wanted] * len(batch), method)
    return found.logits.float().cpu().numpy(), planes


def grad_cam(
    model: nn.Module, layer: nn.Module, batch: torch.Tensor, classes: Sequence[int]
) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of one logit a film by a backward pass:
    `saliency_maps` with closed_form=False."""
    return saliency_maps(model, batch, classes, "grad_cam", layer, closed_form=False)


def to_pixels(
    maps: np.ndarray, frames: Sequence[Frame], sizes_hw: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """Maps (N, h, w) of a model's square input to N maps (H, W) in the pixels it was made from.

    `frames` maps those pixels (of the crop, or of the whole film) to the model's input. Padding
    is cut off: outside the cut there is 0.
    """
    out = []
    for plane, frame, size_hw in zip(maps, frames, sizes_hw, strict=True):
        height, width = frame.canvas_hw
        canvas = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
        out.append(np.maximum(frame.restore(canvas, size_hw), 0.0).astype(np.float32, copy=False))
    return out
