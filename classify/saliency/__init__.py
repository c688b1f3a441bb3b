"""Where a network looked: saliency maps, laid back on the film. Here the methods by name; light, so
that a command can check its arguments before it loads.

A are a layer's maps (N, C, h, w), g the gradient of one logit by them, W the head's weights:

| method | map | source |
|---|---|---|
| cam | Σ_c W_c A_c | Zhou et al. 2016, arXiv 1512.04150 |
| grad_cam | Σ_c mean(g_c) A_c | Selvaraju et al. 2017, arXiv 1610.02391 |
| hirescam | Σ_c g_c A_c | Draelos & Carin 2020, arXiv 2011.08891 |
| layercam | Σ_c max(g_c, 0) A_c | Jiang et al. 2021 |
| grad_cam_pp | Σ_c A_c Σ_ij max(g, 0) g² / (2 g² + g³ ΣA + 1e-6) | Chattopadhyay 2018, 1710.11063 |
| eigen_cam | A projected on its first principal component | Muhammad & Yeasin 2020, 2008.00299 |
| score_cam | Σ_c softmax(logit of the film times A_c) A_c | Wang et al. 2020, arXiv 1910.01279 |
| occlusion, rise | parts of the input hidden, see `maps.masked_maps` | 2014, 2018 |
| explanation | drawn by the network itself (CXRNet) | |
| explanation_class | the same times its gradient, as hirescam | |
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cxr.boxes import Frame
from cxr.rules import require

CLOSED_FORMS = ("grad_cam", "grad_cam_pp", "hirescam", "layercam", "cam")
METHODS = (*CLOSED_FORMS[:4], "eigen_cam", "score_cam", "cam")
MASKED = ("occlusion", "rise")  # need neither gradients nor layers
OWN_MAPS = ("explanation", "explanation_class")  # of networks that draw their own maps
ALL_METHODS = (*METHODS, *MASKED, *OWN_MAPS)
# Their map, added up over its places, is the layer's share in the logit (for heads of mean pooling
# and linear layers): a gradient by one place shrinks with the number of places.
ADD_UP = ("grad_cam", "hirescam", "layercam")

TOP_K = 64  # channels that Score-CAM asks
SCORE_BATCH = 32  # masked films a forward pass


def check_method(method: str, name: str = "method") -> None:
    """Raises ValueError unless `method` is one of ALL_METHODS; `name` is the argument's."""
    require(method in ALL_METHODS, f"{name} must be one of {', '.join(ALL_METHODS)}", method)


def content_of(plane: np.ndarray, frame: Frame) -> np.ndarray:
    """A map (h, w) of a model's square input to (H, W) ≥ 0 over all that `frame` fitted into it, in
    the input's pixels: padding is cut off."""
    canvas = cv2.resize(plane, frame.canvas_hw[::-1], interpolation=cv2.INTER_LINEAR)
    (h, w), x, y = frame.content_hw, frame.pad_x, frame.pad_y
    return np.maximum(canvas[y : y + h, x : x + w], 0.0).astype(np.float32, copy=False)


def to_pixels(
    maps: np.ndarray, frames: Sequence[Frame], sizes_hw: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """Maps (N, h, w) of a model's square input to N maps (H, W) in the pixels it was made from.
    `frames` maps those pixels (of the crop, or of the whole film) to the model's input. Padding is
    cut off: outside the cut there is 0."""
    out = []
    for plane, frame, size_hw in zip(maps, frames, sizes_hw, strict=True):
        canvas = cv2.resize(plane, frame.canvas_hw[::-1], interpolation=cv2.INTER_LINEAR)
        out.append(np.maximum(frame.restore(canvas, size_hw), 0.0).astype(np.float32, copy=False))
    return out
