"""ThoraxDetector: films in, one thorax box each or the reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cxr.boxes import area_xyxy, clip_xyxy, flip_x_xyxy, iou_xyxy, union_xyxy
from cxr.bundle import load_bundle
from cxr.cli import from_plain
from detect.dataset import prepare_film, to_input
from detect.model import DetectorConfig, build_detector

DEFAULT_WEIGHTS = Path("weights/thorax_lite0.safetensors")  # commands run from the project's folder


@dataclass(frozen=True)
class Detections:
    """What the network sees on one film, best first: (N, 4) xyxy in film pixels, (N,), (N,)."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray  # index into the bundle's classes, from 0


@dataclass(frozen=True)
class ThoraxBox:
    """The decision on one film. `xyxy` in film pixels; the whole film for `fallback`; None for
    `no_thorax`. `reason` says why it is not `ok`."""

    xyxy: tuple[float, float, float, float] | None
    score: float
    status: str
    reason: str = ""
    label: int = 0


class ThoraxDetector:
    """A trained detector with its preprocessing and its operating point."""

    def __init__(
        self,
        model: nn.Module,
        config: DetectorConfig,
        operating_point: dict[str, Any],
        flips: bool = False,
        device: str = "auto",
        weights: dict[str, str] | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)
        self.config, self.flips = config, flips
        self.operating_point = operating_point
        self.weights = weights or {}
        self.meta = meta or {}

    @classmethod
    def load(
        cls, path: str | Path | None = None, device: str = "auto", flips: bool | None = None
    ) -> ThoraxDetector:
        """Read a bundle; the shipped one when `path` is None. `flips` None: as stored, else off:
        on validation films a second look at the mirror image gained nothing and costs as much.

        Raises FileNotFoundError or ValueError for what is no bundle of a thorax detector.
        """
        bundle = load_bundle(path or DEFAULT_WEIGHTS, "thorax")
        config = from_plain(DetectorConfig, bundle.meta["model"])
        model = build_detector(config)
        model.load_state_dict(bundle.tensors)
        point = bundle.meta["operating_point"]
        use_flips = bool(point.get("flips", False)) if flips is None else flips
        name = Path(bundle.path).name
        return cls(model, config, point, use_flips, device, {name: bundle.sha256}, bundle.meta)

    @torch.inference_mode()
    def detect(self, films: Sequence[np.ndarray]) -> list[Detections]:
        """All boxes on each film (H, W) float32 in [0, 1], in its own pixels, best first."""
        if not films:
            return []
        prepared = [prepare_film(pixels, self.config.side) for pixels in films]
        canvases = [canvas for canvas, _ in prepared]
        found = self._forward(canvases)
        if self.flips:
            widths = [frame.content_hw[1] for _, frame in prepared]
            mirrored = [_mirror(c, w) for c, w in zip(canvases, widths, strict=True)]
            again = self._forward(mirrored)
            found = [_fuse(a, b, w) for a, b, w in zip(found, again, widths, strict=True)]
        out = []
        for (_, frame), film, (boxes, scores, labels) in zip(prepared, films, found, strict=True):
            size_hw = (film.shape[0], film.shape[1])
            original = clip_xyxy(frame.to_original_xyxy(boxes), size_hw)
            order = np.argsort(-scores, kind="stable")
            out.append(Detections(original[order], scores[order], labels[order]))
        return out

    def predict(self, films: Sequence[np.ndarray]) -> list[ThoraxBox]:
        """One decision a film: `ok`, `fallback` (whole film, flagged) or `no_thorax`."""
        found = self.detect(films)
        sizes = [(f.shape[0], f.shape[1]) for f in films]
        return [self.decide(d, s) for d, s in zip(found, sizes, strict=True)]

    def decide(self, found: Detections, size_hw: tuple[int, int]) -> ThoraxBox:
        """The rule from boxes to one decision, with the thresholds stored in the bundle."""
        point = self.operating_point
        if not len(found.scores):
            return ThoraxBox(None, 0.0, "no_thorax", "no thorax found: no box at all")
        score = round(float(found.scores[0]), 4)
        if score < point["reject_score"]:
            why = f"no thorax found: best score {score:.2f} below {point['reject_score']:.2f}"
            return ThoraxBox(None, score, "no_thorax", why)
        box = self._box_of(found)
        label = int(found.labels[0])
        whole = (0.0, 0.0, float(size_hw[1]), float(size_hw[0]))
        width, height = box[2] - box[0], box[3] - box[1]
        low, high = point["aspect_range"]
        share = float(area_xyxy(box)[0]) / (size_hw[0] * size_hw[1])
        if width <= 0 or not low <= height / width <= high:
            why = f"no thorax found: a box of {width:.0f} × {height:.0f} px has no thorax' shape"
            return ThoraxBox(None, score, "no_thorax", why)
        if score < point["ok_score"]:
            why = f"uncertain box: score {score:.2f} below {point['ok_score']:.2f}; whole film used"
            return ThoraxBox(whole, score, "fallback", why, label)
        if share < point["min_area_share"]:
            why = f"uncertain box: it covers {share:.0%} of the film; whole film used"
            return ThoraxBox(whole, score, "fallback", why, label)
        return ThoraxBox(tuple(float(v) for v in box), score, "ok", "", label)  # type: ignore[arg-type]

    def _box_of(self, found: Detections) -> np.ndarray:
        """(4,) the best box; with `box_rule: union` the union of the best box of each class
        (left and right lung) that scores at least `ok_score`."""
        if self.config.box_rule == "best":
            return found.boxes_xyxy[0]
        sure = found.scores >= min(self.operating_point["ok_score"], float(found.scores[0]))
        firsts = [np.flatnonzero(sure & (found.labels == v))[:1] for v in np.unique(found.labels)]
        return union_xyxy(found.boxes_xyxy[np.concatenate(firsts)])

    def _forward(
        self, canvases: list[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        images = [to_input(c).to(self.device) for c in canvases]
        return [
            (
                f["boxes"].double().cpu().numpy(),
                f["scores"].double().cpu().numpy(),
                f["labels"].cpu().numpy() - 1,  # torchvision counts classes from 1
            )
            for f in self.model(images)
        ]


def _mirror(canvas: np.ndarray, width: int) -> np.ndarray:
    """The film's part of a letterbox mirrored; the padding stays on the right."""
    out = canvas.copy()
    out[:, :width] = canvas[:, :width][:, ::-1]
    return out


def _fuse(
    first: tuple[np.ndarray, np.ndarray, np.ndarray],
    mirrored: tuple[np.ndarray, np.ndarray, np.ndarray],
    width: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of a film and of its mirror image: partners (IoU ≥ 0.5) averaged, weighted by score;
    a box that only one of them shows keeps half its score."""
    boxes, scores, labels = first
    back = flip_x_xyxy(mirrored[0], width)
    ious = iou_xyxy(boxes, back)
    used: set[int] = set()
    out: list[tuple[np.ndarray, float, int]] = []
    for i in range(len(boxes)):
        options = [j for j in range(len(back)) if j not in used and ious[i, j] >= 0.5]
        if not options:
            out.append((boxes[i], scores[i] / 2, labels[i]))
            continue
        j = max(options, key=lambda k: ious[i, k])
        used.add(j)
        weights = np.array([scores[i], mirrored[1][j]])
        mean = (boxes[i] * weights[0] + back[j] * weights[1]) / max(weights.sum(), 1e-9)
        out.append((mean, float(weights.mean()), labels[i]))
    out += [
        (back[j], mirrored[1][j] / 2, mirrored[2][j]) for j in range(len(back)) if j not in used
    ]
    fused = np.array([o[0] for o in out]).reshape(-1, 4)
    return fused, np.array([o[1] for o in out]), np.array([o[2] for o in out], dtype=np.int64)
