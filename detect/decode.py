"""Faster R-CNN behind its dense parts, in NumPy: what stands between the maps and the boxes.

An exported graph is traced on one film, and would keep that film's number of proposals for ever. So
only the dense parts are exported, backbone, pyramid and the RPN's head; proposals, RoIAlign, the
box head and the suppression of doubles are done here, and give what torchvision's own code gives
(Ren et al. 2015, arXiv 1506.01497; RoIAlign: He et al. 2017, arXiv 1703.06870).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr.boxes import iou_xyxy
from cxr.engines import OnnxNet
from cxr.rules import require
from cxr.stats import softmax

_LARGEST_STEP = math.log(1000 / 16)  # of a log width, as torchvision clips it
_RPN_IOU, _BOX_IOU, _LEAST_SCORE, _MOST_BOXES = 0.7, 0.5, 0.01, 4
_RPN_WEIGHTS, _BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)
_SAMPLES = 2  # along each side of a cell of RoIAlign
_PARTS = ("level", "score", "step")  # how an exported network names its outputs
_HEADS = ("box_head.fc6", "box_head.fc7", "box_predictor.cls_score", "box_predictor.bbox_pred")


@dataclass(frozen=True)
class Anchors:
    """Boxes of every aspect and size round the centre of each cell, as torchvision lays them."""

    sizes: tuple[int, ...]
    aspects: tuple[float, ...]

    def over(self, grid_hw: tuple[int, int], side: int) -> np.ndarray:
        """(h × w × aspects × sizes, 4) xyxy in pixels of a picture of `side`."""
        tall = np.sqrt(np.asarray(self.aspects, np.float32))
        sizes = np.asarray(self.sizes, np.float32)
        heights, widths = (np.outer(r, sizes).ravel() for r in (tall, 1 / tall))
        own = np.round(np.stack([-widths, -heights, widths, heights], 1) / 2)
        y, x = (np.arange(n, dtype=np.float32) * (side // n) for n in grid_hw)
        rows, columns = np.meshgrid(y, x, indexing="ij")
        corners = np.stack([columns, rows, columns, rows], -1).reshape(-1, 1, 4)
        return (corners + own).reshape(-1, 4)


class BoxDecoder:
    """From the dense parts' maps to boxes, for one detector of torchvision's kind. `tensors` are
    its bundle's: the box head's weights are taken from them."""

    def __init__(self, config: Any, tensors: Mapping[str, np.ndarray]) -> None:
        self.config = config
        sizes = tuple(int(f * config.side) for f in config.anchor_sizes)
        self.anchors = Anchors(sizes, tuple(config.anchor_aspects))
        self.layers = [
            (tensors[f"roi_heads.{name}.weight"].T, tensors[f"roi_heads.{name}.bias"])
            for name in _HEADS
        ]

    def read(
        self, net: OnnxNet, canvases: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """`boxes` of letterboxed films (side, side) uint8, whose dense parts `net` gives."""
        found = net.run(np.stack(canvases))
        parts = ([found[n] for n in net.outputs if n.startswith(p)] for p in _PARTS)
        return self.boxes(*parts)

    def boxes(
        self,
        levels: Sequence[np.ndarray],
        scores: Sequence[np.ndarray],
        steps: Sequence[np.ndarray],
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Each film's (N, 4) boxes xyxy in letterbox pixels, (N,) scores and (N,) labels from 0.
        `levels` are the pyramid's maps (B, C, h, w), fine to coarse; `scores` (B, A, h, w) and
        `steps` (B, 4 × A, h, w) the RPN's, of each level that proposes."""
        require(len(scores) == len(steps), "scores and steps must be of the same levels", "")
        side = self.config.side
        anchors = [self.anchors.over(s.shape[2:], side) for s in scores]
        films = [[level[n] for level in levels] for n in range(len(levels[0]))]
        seen = [
            self._propose(anchors, [s[n] for s in scores], [s[n] for s in steps])
            for n in range(len(films))
        ]
        for _ in range(self.config.refine):
            answers = self._head(films, seen)
            best = [logits[:, 1:].argmax(1) + 1 for logits, _ in answers]
            found = zip(answers, best, strict=True)
            seen = [np.clip(boxes[np.arange(len(b)), b], 0, side) for (_, boxes), b in found]
        return [self._conclude(*answer) for answer in self._head(films, seen)]

    def _propose(
        self,
        anchors: Sequence[np.ndarray],
        scores: Sequence[np.ndarray],
        steps: Sequence[np.ndarray],
    ) -> np.ndarray:
        """(P, 4) proposals of one film, best first; all by level."""
        config = self.config
        boxes, logits, levels = [], [], []
        for k, (laid, score, step) in enumerate(zip(anchors, scores, steps, strict=True)):
            flat = score.transpose(1, 2, 0).ravel()
            moves = step.reshape(len(score), 4, *score.shape[1:]).transpose(2, 3, 0, 1)
            best = np.argsort(-flat, kind="stable")[: config.rpn_pre_nms]
            boxes.append(moved(laid[best], moves.reshape(-1, 4)[best], _RPN_WEIGHTS))
            logits.append(flat[best])
            levels.append(np.full(len(best), k))
        every = np.clip(np.concatenate(boxes), 0, config.side)
        large = _wider_than(every, 1e-3)
        every, score, level = every[large], np.concatenate(logits)[large], np.concatenate(levels)
        return every[suppressed(every, score, level[large], _RPN_IOU)[: config.proposals_test]]

    def _head(
        self, films: Sequence[Sequence[np.ndarray]], proposals: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each film's (P, K) logits of the classes, 0 is background, and (P, K, 4) boxes of each;
        all films at once, for the head's weights are larger than a processor's cache."""
        side, size = self.config.side, self.config.roi_size
        pooled = [pooled_boxes(f, p, side, size) for f, p in zip(films, proposals, strict=True)]
        boxes = np.concatenate(proposals)
        x = np.concatenate(pooled).reshape(len(boxes), -1)
        for weight, bias in self.layers[:2]:
            x = np.maximum(x @ weight + bias, 0)
        (to_class, of_class), (to_step, of_step) = self.layers[2:]
        steps = (x @ to_step + of_step).reshape(len(boxes), -1, 4)
        ends = np.cumsum([len(own) for own in proposals])[:-1]
        logits, placed = x @ to_class + of_class, moved(boxes[:, None], steps, _BOX_WEIGHTS)
        return list(zip(np.split(logits, ends), np.split(placed, ends), strict=True))

    def _conclude(
        self, logits: np.ndarray, boxes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A film's boxes, scores and labels of what its proposals were answered."""
        scores = softmax(logits)[:, 1:]
        labels = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        flat = np.clip(boxes[:, 1:], 0, self.config.side).reshape(-1, 4)
        score, label = scores.ravel(), labels.ravel()
        kept = (score > _LEAST_SCORE) & _wider_than(flat, 1e-2)
        flat, score, label = flat[kept], score[kept], label[kept]
        best = suppressed(flat, score, label, _BOX_IOU)[:_MOST_BOXES]
        return flat[best].astype(np.float64), score[best].astype(np.float64), label[best]


def moved(boxes: np.ndarray, steps: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Boxes (…, 4) xyxy moved by steps (…, 4): of the centre in units of width and height, and of
    both logarithms."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + size / 2
    steps = steps / np.asarray(weights, np.float32)
    centre = centre + steps[..., :2] * size
    half = size * np.exp(np.minimum(steps[..., 2:], np.float32(_LARGEST_STEP))) / 2
    return np.concatenate([centre - half, centre + half], -1)


def suppressed(
    boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, most: float
) -> np.ndarray:
    """Indices of the boxes (N, 4) that stay, best first: one that overlaps a better one of its
    group by an IoU above `most` goes."""
    order = np.argsort(-scores, kind="stable")
    boxes, groups = boxes[order], groups[order]
    rivals = (iou_xyxy(boxes, boxes) > most) & (groups[:, None] == groups)
    gone = np.zeros(len(boxes), bool)
    for n, others in enumerate(rivals):
        if not gone[n]:
            gone[n + 1 :] |= others[n + 1 :]
    return order[~gone]


def pooled_boxes(
    levels: Sequence[np.ndarray], boxes: np.ndarray, side: int, size: int
) -> np.ndarray:
    """(P, C, size, size) of boxes (P, 4) xyxy in pixels of a picture of `side`: each is pooled from
    the level (C, h, w) that fits its area (Lin et al. 2017), by RoIAlign with two samples a side.
    """
    scales = [2.0 ** round(math.log2(level.shape[-1] / side)) for level in levels]
    first, last = (-round(math.log2(s)) for s in (scales[0], scales[-1]))
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    with np.errstate(divide="ignore"):
        wanted = np.floor(4 + np.log2(np.sqrt(area) / 224) + 1e-6)
    chosen = np.clip(wanted, first, last).astype(int) - first
    out = np.zeros((len(boxes), levels[0].shape[0], size, size), np.float32)
    for k in np.unique(chosen):
        own = np.flatnonzero(chosen == k)
        out[own] = _roi_align(levels[k], boxes[own] * np.float32(scales[k]), size)
    return out


def _roi_align(level: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """(P, C, size, size) of one level (C, h, w), boxes in its cells."""
    start, extent = boxes[:, :2], np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    places = (np.arange(size * _SAMPLES, dtype=np.float32) + 0.5) / (size * _SAMPLES)
    at = start[:, :, None] + extent[:, :, None] * places  # (P, xy, samples)
    channels, height, width = level.shape
    across, down = _shares(at[:, 0], width), _shares(at[:, 1], height)
    # bilinear interpolation and the mean are linear, and separable: two products of matrices
    rows = level.reshape(-1, width) @ across.reshape(-1, width).T
    rows = rows.reshape(channels, height, -1, size).transpose(2, 1, 0, 3)
    found = down @ rows.reshape(len(boxes), height, -1)
    return found.reshape(-1, size, channels, size).transpose(0, 2, 1, 3)


def _shares(at: np.ndarray, length: int) -> np.ndarray:
    """(P, size, length): the share that each of `length` cells has in the mean of a pooled cell's
    samples, which lie at (P, size × samples); none where a sample is off the map."""
    inside = (at >= -1) & (at <= length)
    at = np.clip(at, 0, length - 1)
    cells = np.arange(length, dtype=np.float32)
    shares = np.maximum(1 - np.abs(at[..., None] - cells), 0) * inside[..., None]
    return shares.reshape(len(at), -1, _SAMPLES, length).mean(2, dtype=np.float32)


def _wider_than(boxes: np.ndarray, least: float) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2] >= least).all(-1)
