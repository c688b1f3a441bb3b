"""What a picture shows: an upright frontal chest film, or why it is none.

    python -m detect.view train --config configs/detect/view.yaml
    python -m detect.view evaluate --out runs/view_evaluate

A small head on the features of the lung field's network, so that one forward pass answers both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr.engines import OnnxNet, is_there, onnx_path
from cxr.stats import softmax

if TYPE_CHECKING:  # torch is imported where a network is at work
    from torch import nn

    from detect.lungfield.field import LungField

DEFAULT_WEIGHTS = Path("weights/view.safetensors")  # commands run from the project's folder
# many: a collage, a screenshot, a whole spine, a babygram: thorax in view, but no one chest film
KINDS = ("frontal", "turned", "lateral", "other", "many")
CLASSES = ("frontal", "turned 90", "turned 180", "turned 270", "lateral", "other", "many")
_REASONS = {
    "turned": "a frontal film turned by {turned}°",
    "lateral": "a lateral view, not a frontal one",
    "other": "another part of the body, another kind of picture, or none",
    "many": "several pictures, a screenshot, or the whole trunk",
}


@dataclass(frozen=True)
class View:
    """What a picture shows."""

    kind: str  # one of KINDS
    turned: int  # np.rot90(pixels, turned // 90) sets a turned film upright; else 0
    mirrored: bool  # the heart lies on the other side: a flag, never a refusal
    score: float  # the kind's probability
    reason: str  # empty for a frontal film


class ViewNet:
    """The head with its thresholds: `frontal`, the least probability of a frontal film, and
    `mirrored`, the least one of a mirrored film."""

    def __init__(
        self,
        head: nn.Module | OnnxNet,
        point: dict[str, float],
        meta: dict[str, Any],
        weights: dict[str, str] | None = None,
    ) -> None:
        self.head = head if isinstance(head, OnnxNet) else head.eval()
        self.point, self.meta = point, meta
        self.weights = weights or {}

    @classmethod
    def load(cls, field: LungField, path: str | Path | None = None) -> ViewNet:
        """Read a bundle; the shipped one when `path` is None. Where the field's network runs
        without torch, so does the head. Raises FileNotFoundError or ValueError for what is no
        bundle of a view, ValueError for one trained on another lung-field network than `field`."""
        from cxr.bundle import load_bundle, load_meta, rebuilding

        path = Path(path or DEFAULT_WEIGHTS)
        head: Any
        if field.exported is not None and (onnx_path(path).is_file() or not is_there("torch")):
            meta = load_meta(path, "view")
            head = OnnxNet(path, field.exported.engine)
            sha256 = head.sha256
        else:
            from detect.view.net import ViewHead

            bundle = load_bundle(path, "view")
            meta, sha256 = bundle.meta, bundle.sha256
            with rebuilding(path):
                head = ViewHead(**meta["model"])
                head.load_state_dict(bundle.tensors)
        with rebuilding(path):
            wanted, point = meta["field_sha256"], meta["operating_point"]
        if wanted not in field.weights.values():
            raise ValueError(
                f"{path} must be used with the lung field it was trained on ({wanted[:12]}…). Got "
                f"{', '.join(f'{n} ({s[:12]}…)' for n, s in field.weights.items()) or 'another'}: "
                "train it anew with python -m detect.view train --config configs/detect/view.yaml."
            )
        return cls(head, point, meta, {path.name: sha256})

    def judge(self, features: np.ndarray) -> list[View]:
        """What each of N pictures shows, from the (N, C, G, G) of `LungField.look`."""
        if isinstance(self.head, OnnxNet):
            logits = self.head.run(features)["logits"]
        else:
            from detect.view.net import answer

            logits = answer(self.head, features)
        shares, mirrored = shares_of(logits)
        return [self.decide(s, float(m)) for s, m in zip(shares, mirrored, strict=True)]

    def decide(self, shares: np.ndarray, mirrored: float) -> View:
        """The rule from the (7,) probabilities of CLASSES: frontal from the threshold on, else
        what is the most probable among the rest."""
        if shares[0] >= self.point["frontal"]:
            flag = mirrored >= self.point["mirrored"]
            return View("frontal", 0, flag, round(float(shares[0]), 4), "")
        best = 1 + int(np.argmax(shares[1:]))
        kind, _, turned = CLASSES[best].partition(" ")
        reason = _REASONS[kind].format(turned=turned)
        return View(kind, int(turned or 0), False, round(float(shares[best]), 4), reason)


def shares_of(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The head's logits (N, classes + 1) to (N, classes) probabilities, and (N,) that the film is
    mirrored."""
    logits = np.asarray(logits, np.float64)
    return softmax(logits[:, :-1]), 1 / (1 + np.exp(-logits[:, -1]))
