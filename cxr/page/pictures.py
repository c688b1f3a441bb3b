"""Small pictures and outlines for pages: those of 1,000 films must stay below 60 MB.

Everything here is pure: arrays in the film's or the crop's pixels in, data URIs or fractions out.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from cxr.boxes import as_boxes
from cxr.draw import encode_jpeg, encode_png, fit, to_data_uri
from cxr.intensity import to_uint8

SIDE, QUALITY, MAP_SIDE = 320, 70, 64
CARD_SIDE, CARD_QUALITY = 360, 72  # of a film's card in a run's report
_SMALLEST, _SLACK = 0.002, 0.004  # of the film's area; of its longer side

Polygon = list[list[float]]


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI; boxes are xyxy in its pixels."""

    uri: str
    width: int
    height: int
    thorax: tuple[float, float, float, float] | None = None
    cut: tuple[float, float, float, float] | None = None


def to_polygons(mask: np.ndarray) -> list[Polygon]:
    """A mask (H, W) to the outlines of its parts, as [x, y] fractions of the film's width, height.
    An outline runs through the middle of the outermost pixels, leaves out corners that matter less
    than 0.4 % of the longer side, and has no holes; parts below 0.2 % of the film are left out. The
    largest part comes first; an empty mask gives []."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(
            f"mask of to_polygons must be (H, W) of bool. Got {mask.dtype} of shape "
            f"{mask.shape} instead: compare with 0.5 first."
        )
    height, width = mask.shape
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    out = []
    for line in sorted(found, key=cv2.contourArea, reverse=True):
        if cv2.contourArea(line) < _SMALLEST * mask.size:
            break
        corners = cv2.approxPolyDP(line, _SLACK * max(mask.shape), True)[:, 0]
        if len(corners) >= 3:
            points = (corners + 0.5) / (width, height)
            out.append([[round(float(x), 4), round(float(y), 4)] for x, y in points])
    return out


def map_uri(saliency: np.ndarray, side: int = MAP_SIDE) -> str:
    """A map (h, w) ≥ 0 over what the member saw to a grey PNG of at most `side` px as a data URI.
    Its highest value becomes 255: the page colours it. An all-zero map stays black."""
    values = np.asarray(saliency, dtype=np.float32)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(
            "saliency of map_uri must be (h, w), finite and at least 0. Got shape "
            f"{values.shape} instead: clip or rectify it first."
        )
    small = np.maximum(fit(values, min(side, max(values.shape))), 0)
    top = float(small.max())
    share = small / top if top > 0 else np.zeros_like(small)
    return to_data_uri(encode_png(np.rint(share * 255).astype(np.uint8)))


def picture_uri(pixels: np.ndarray, side: int = SIDE, quality: int = QUALITY) -> str:
    """A film or crop (H, W) in [0, 1] to a JPEG of at most `side` px as a data URI."""
    if pixels.ndim != 2:
        raise ValueError(f"pixels of picture_uri must be (H, W). Got shape {pixels.shape} instead.")
    small = fit(pixels.astype(np.float32), min(side, max(pixels.shape)))
    return to_data_uri(encode_jpeg(to_uint8(np.clip(small, 0, 1)), quality))


def inferno(steps: int = 17) -> list[tuple[int, int, int]]:
    """RGB of the inferno colours, dark to bright: they rise evenly in lightness, so that no edge is
    seen that the map does not have."""
    ramp = np.linspace(0, 255, steps).round().astype(np.uint8)[None]
    bgr = cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[0]
    return [(int(r), int(g), int(b)) for b, g, r in bgr]


def make_picture(
    pixels: np.ndarray, thorax_xyxy: Any = None, cut_xyxy: Any = None, side: int = CARD_SIDE
) -> Picture:
    """A film or crop (H, W) float32 in [0, 1] as a thumbnail of at most `side` px; boxes are in
    its own pixels."""
    small = fit(pixels, min(side, max(pixels.shape)))
    height, width = small.shape
    scale = width / pixels.shape[1]
    boxes: list[Any] = [
        None if box is None else tuple(round(float(v) * scale, 1) for v in as_boxes(box)[0])
        for box in (thorax_xyxy, cut_xyxy)
    ]
    return Picture(picture_uri(small, side, CARD_QUALITY), width, height, *boxes)


def make_saliency_picture(saliency: np.ndarray, side: int = MAP_SIDE) -> Picture:
    """A map (H, W) ≥ 0 as a small see-through PNG to be laid over its crop. Inferno colours; the
    value is the opacity too, so that the crop is seen where nothing is salient. Scaled by its
    maximum: an all-zero map is fully transparent."""
    small = np.maximum(fit(saliency.astype(np.float32), min(side, max(saliency.shape))), 0)
    share = small / small.max() if small.max() > 0 else np.zeros_like(small)
    bgr = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    alpha = np.rint(share * 0.7 * 255).astype(np.uint8)
    raw = io.BytesIO()
    Image.fromarray(np.dstack([bgr[..., ::-1], alpha])).save(raw, "PNG", optimize=True)
    return Picture(to_data_uri(raw.getvalue()), small.shape[1], small.shape[0])
