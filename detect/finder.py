"""ThoraxFinder: two opinions, one box. The detector's box and the lung field's, by one rule.

Each errs in its own way (the field stops at a diaphragm that it sees, the detector knows where
lungs usually end), so their mean lies nearer to a person's box than either, and how far they lie
apart says how far to trust it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxr.boxes import Frame, iou_xyxy, stretch_xyxy
from detect.lungfield.field import LungField, field_box_xyxy
from detect.predict import Detections, ThoraxBox, ThoraxDetector, Xyxy, prepare_film

BOXES = ("both", "detector", "field")
TURNED = ("mend", "refuse")
_MAP_SIDE = 512  # px of the map that a field's box is read from: finer shows nothing more
_EARLY, _LATE = 0.2, 0.8  # probabilities of lung that an eager and a wary reader would draw at


@dataclass(frozen=True)
class PairRule:
    """How two opinions become one box: chosen on validation films, kept in the detector's bundle.

    Attributes:
        detector_share: of the left, top, right and bottom edge; the field has the rest.
        ok_apart: 1 − IoU of the two boxes up to which the box is used.
        refuse_apart: 1 − IoU above which there is no thorax.
        quality: points (doubt, IoU with a person's box), falling; between two of them a line. The
            doubt is the sum of 1 − IoU of the two boxes and of the field's own (`FieldBox.soft`).
        chosen_on: the films, and the SHA-256 of both bundles.
    """

    detector_share: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.5)
    ok_apart: float = 0.3
    refuse_apart: float = 1.0
    quality: tuple[tuple[float, float], ...] = ()
    chosen_on: dict[str, Any] | None = None

    @classmethod
    def of(cls, detector: ThoraxDetector) -> PairRule:
        """The bundle's; the plain mean of the boxes where nothing was chosen for it."""
        return cls(**detector.meta.get("pair", {}))

    def to_meta(self) -> dict[str, Any]:
        """For the bundle."""
        return asdict(self)

    def merge(self, detector: Sequence[float], field: Sequence[float]) -> Xyxy:
        """One box xyxy of the two."""
        share = np.asarray(self.detector_share)
        x0, y0, x1, y1 = share * np.asarray(detector) + (1 - share) * np.asarray(field)
        return float(x0), float(y0), float(x1), float(y1)

    def quality_at(self, doubt: float) -> float | None:
        """The IoU with a person's box that is to be expected."""
        if not self.quality:
            return None
        return round(float(np.interp(doubt, *np.transpose(self.quality))), 4)


class FieldBox(NamedTuple):
    """The lung field's box in film pixels; `soft` is 1 − IoU of the boxes that it would be for one
    who marks lung early and for one who marks it late."""

    xyxy: Xyxy
    soft: float


class ThoraxFinder:
    """Films in, one thorax box each or the reason why not, from both networks.

    `box` names whose box it is: both, detector or field. `turned` says what becomes of a film that
    lies on its side or upside down: it is turned upright before it is boxed (mend), or refused.
    The small copy of a film that the detector sees is made once; the field's is made of that.
    """

    def __init__(
        self,
        detector: ThoraxDetector,
        field: LungField | None = None,
        box: str = "both",
        turned: str = "mend",
    ) -> None:
        if box not in BOXES or (field is None and box != "detector"):
            raise ValueError(f"box must be one of {', '.join(BOXES)}. Got {box!r}, {field}.")
        self.detector, self.field, self.box, self.turned = detector, field, box, turned
        self.rule = PairRule.of(detector)
        self.weights = {**detector.weights, **(field.weights if field else {})}

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        field: str | Path | None = None,
        device: str = "auto",
        box: str = "both",
        turned: str = "mend",
    ) -> ThoraxFinder:
        """Both bundles; the shipped ones for None. Raises as their own `load` does."""
        detector = ThoraxDetector.load(weights, device)
        own = LungField.load(field, device) if box != "detector" else None
        return cls(detector, own, box, turned)

    def predict(self, films: Sequence[np.ndarray]) -> list[ThoraxBox]:
        """One decision a film (H, W) float32 in [0, 1]: `ok`, `fallback` or `no_thorax`."""
        sizes = [(f.shape[0], f.shape[1]) for f in films]
        return [
            self.decide(*seen, size) for seen, size in zip(self.look(films), sizes, strict=True)
        ]

    def look(self, films: Sequence[np.ndarray]) -> list[tuple[Detections, FieldBox | None]]:
        """What each network sees on each film, in its pixels."""
        if not films:
            return []
        prepared = [prepare_film(pixels, self.detector.config.side) for pixels in films]
        found = self.detector.detect_prepared(prepared)
        fields = self.find_fields(prepared) if self.field else [None] * len(films)
        return list(zip(found, fields, strict=True))

    def find_fields(self, prepared: Sequence[tuple[np.ndarray, Frame]]) -> list[FieldBox | None]:
        """The lung field's box of each film that the detector sees."""
        assert self.field is not None
        smaller = [refit(canvas, frame, self.field.side) for canvas, frame in prepared]
        return [
            read_box(probability, frame, self.field.threshold)
            for probability, (_, frame) in zip(
                self.field.forward([c for c, _ in smaller]), smaller, strict=True
            )
        ]

    def decide(
        self, found: Detections, field: FieldBox | None, size_hw: tuple[int, int]
    ) -> ThoraxBox:
        """The rule from both boxes, in pixels of a film of (height, width), to one decision."""
        box = self.detector.decide(found, size_hw)
        if self.box == "detector" or box.seen_xyxy is None:
            return box
        if field is None:
            why = "no thorax found: no lung field"
            return replace(box, xyxy=None, status="no_thorax", reason=box.reason or why, apart=1.0)
        apart = round(1 - float(iou_xyxy(box.seen_xyxy, field.xyxy)[0, 0]), 4)
        merged = self.rule.merge(box.seen_xyxy, field.xyxy)
        seen = field.xyxy if self.box == "field" else merged
        quality = self.rule.quality_at(apart + field.soft)
        box = replace(box, seen_xyxy=seen, apart=apart, quality=quality)
        differ = f"the detector's and the lung field's box differ, 1 − IoU is {apart:.2f} and above"
        if box.status == "ok":
            if apart > self.rule.refuse_apart:
                why = f"no thorax found: {differ} {self.rule.refuse_apart:.2f}"
                return replace(box, xyxy=None, status="no_thorax", reason=why)
            if apart > self.rule.ok_apart:
                return box.doubted(f"{differ} {self.rule.ok_apart:.2f}", size_hw)
            return replace(box, xyxy=seen)
        return box


def refit(canvas: np.ndarray, frame: Frame, side: int) -> tuple[np.ndarray, Frame]:
    """A letterboxed film fitted anew into a square of `side` px, and its Frame on the film."""
    if canvas.shape == (side, side):
        return canvas, frame
    inner = Frame.letterbox(frame.content_hw, side)
    return inner.apply(canvas), replace(inner, source_xyxy=frame.source_xyxy)


def read_box(probability: np.ndarray, frame: Frame, threshold: float) -> FieldBox | None:
    """The field's box from its map (S, S) in letterbox pixels; None without a field."""
    width, height = frame.source_xyxy[2:]
    scale = min(1.0, _MAP_SIDE / max(width, height))
    small_hw = max(1, round(height * scale)), max(1, round(width * scale))
    small = replace(frame, source_xyxy=(0, 0, small_hw[1], small_hw[0]))
    plane = small.restore(probability, small_hw)
    early, box, late = (field_box_xyxy(plane > t) for t in (_EARLY, threshold, _LATE))
    if box is None:
        return None
    soft = 1.0 if early is None or late is None else 1 - float(iou_xyxy(early, late)[0, 0])
    x0, y0, x1, y1 = (float(v) for v in stretch_xyxy(box, small_hw, (height, width))[0])
    return FieldBox((x0, y0, x1, y1), soft)
