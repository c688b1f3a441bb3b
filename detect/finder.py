"""ThoraxFinder: two opinions, one box. The detector's box and the lung field's, by one rule.

Each errs in its own way (the field stops at a diaphragm that it sees, the detector knows where
lungs usually end), so their mean lies nearer to a person's box than either, and how far they lie
apart says how far to trust it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxr.boxes import Frame, Xyxy, as_xyxy, iou_xyxy, stretch_xyxy, turn_xyxy
from cxr.notes import note
from cxr.workdir import log
from detect.lungfield.field import LungField, large_parts
from detect.predict import Detections, ThoraxBox, ThoraxDetector, prepare_film
from detect.view import View, ViewNet

BOXES = ("both", "detector", "field")
TURNED = ("mend", "refuse")
_EARLY, _LATE = 0.2, 0.8  # probabilities of lung that an eager and a wary reader would draw at


@dataclass(frozen=True)
class PairRule:
    """How two opinions become one box: chosen on validation films, kept in the detector's bundle.

    Attributes:
        detector_share: of the left, top, right and bottom edge; the field has the rest.
        lone_apart: 1 − IoU of the two boxes above which the detector's is taken alone: a field
            that is so far off has run into the stomach, or stopped at a white lung.
        ok_apart: 1 − IoU above which no box is used, but the whole film.
        refuse_apart: 1 − IoU above which there is no thorax.
        quality: points (doubt, IoU with a person's box), falling; between two of them a line. The
            doubt is the sum of 1 − IoU of the two boxes and of the field's own (`FieldBox.soft`).
        chosen_on: the films, and the SHA-256 of both bundles.
    """

    detector_share: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.5)
    lone_apart: float = 0.25
    ok_apart: float = 0.5
    refuse_apart: float = 1.0
    quality: tuple[tuple[float, float], ...] = ()
    chosen_on: dict[str, Any] | None = None

    @classmethod
    def of(cls, detector: ThoraxDetector) -> PairRule:
        """The bundle's; the plain mean of the boxes where nothing was chosen for it."""
        return cls(**detector.meta.get("pair", {}))

    def merge(self, detector: Sequence[float], field: Sequence[float]) -> Xyxy:
        """One box xyxy of the two."""
        share = np.asarray(self.detector_share)
        return as_xyxy(share * np.asarray(detector) + (1 - share) * np.asarray(field))

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


class Look(NamedTuple):
    """What the networks see on one film, in its pixels."""

    found: Detections
    field: FieldBox | None = None
    view: View | None = None


class ThoraxFinder:
    """Films in, one thorax box each or the reason why not, from both networks.

    `box` names whose box it is: both, detector or field. With `views` a picture that is no frontal
    chest film is refused, or the whole of it is taken where a chest is in view. `turned` says what
    becomes of a film that lies on its side or upside down: it is turned upright before it is boxed
    (mend), or refused. The small copy of a film that the detector sees is made once; what the lung
    field's network sees is made of that.
    """

    def __init__(
        self,
        detector: ThoraxDetector,
        field: LungField | None = None,
        views: ViewNet | None = None,
        box: str = "both",
        turned: str = "mend",
    ) -> None:
        if box not in BOXES or (field is None and box != "detector"):
            raise ValueError(f"box must be one of {', '.join(BOXES)}. Got {box!r}, {field}.")
        self.detector, self.field, self.views = detector, field, views
        self.box, self.turned = box, turned
        self.rule = PairRule.of(detector)
        nets = (detector, field, views)
        self.weights = {k: v for net in nets if net for k, v in net.weights.items()}

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        field: str | Path | None = None,
        device: str = "auto",
        box: str = "both",
        turned: str = "mend",
        engine: str = "auto",
        precision: str = "fp32",
    ) -> ThoraxFinder:
        """The bundles; the shipped ones for None. The shipped views know the shipped field only:
        with another one no picture is refused for what it shows. `engine` and `precision`: see
        `cxr.engines`. Raises as their own `load` does."""
        detector = ThoraxDetector.load(weights, device, engine=engine, precision=precision)
        if box == "detector":
            return cls(detector, None, None, box, turned)
        own = LungField.load(field, device, engine, precision)
        views = None
        try:
            views = ViewNet.load(own)
        except (FileNotFoundError, ValueError):
            if not field:
                raise
            log.warning("%s: no picture is refused for what it shows (see detect.view)", field)
        return cls(detector, own, views, box, turned)

    def predict(self, films: Sequence[np.ndarray]) -> list[ThoraxBox]:
        """One decision a film (H, W) float32 in [0, 1]: `ok`, `fallback` or `no_thorax`."""
        return self.conclude(self.look(films), films)

    def conclude(self, looks: Sequence[Look], films: Sequence[np.ndarray]) -> list[ThoraxBox]:
        """`predict` for films that were looked at; one that lies turned is looked at again."""
        return [self._conclude(*both) for both in zip(looks, films, strict=True)]

    def _conclude(self, seen: Look, film: np.ndarray) -> ThoraxBox:
        if self.turned == "mend" and seen.view and seen.view.turned:
            return self._mend(film, seen.view.turned)
        return self.decide(seen, (film.shape[0], film.shape[1]))

    def look(self, films: Sequence[np.ndarray]) -> list[Look]:
        """What each network sees on each film."""
        if not films:
            return []
        prepared = [prepare_film(pixels, self.detector.config.side) for pixels in films]
        if self.field is None:
            return [Look(f) for f in self.detector.detect_prepared(prepared)]
        with ThreadPoolExecutor(1) as beside:  # both networks wait for nobody, and hold no lock
            found = beside.submit(self.detector.detect_prepared, prepared)
            boxes, views = self._look_at_field(prepared, self.field)
        return list(map(Look, found.result(), boxes, views))

    def _look_at_field(
        self, prepared: Sequence[tuple[np.ndarray, Frame]], field: LungField
    ) -> tuple[list[FieldBox | None], Sequence[View | None]]:
        """The field's box on each letterboxed film, and its view."""
        smaller = [refit(canvas, frame, field.side) for canvas, frame in prepared]
        maps, features = field.look([canvas for canvas, _ in smaller])
        boxes = [
            read_box(plane, frame, field.threshold)
            for plane, (_, frame) in zip(maps, smaller, strict=True)
        ]
        return boxes, self.views.judge(features) if self.views else [None] * len(prepared)

    def _mend(self, film: np.ndarray, degrees: int) -> ThoraxBox:
        """The decision on a film that is turned upright first, in the film's own pixels."""
        upright = np.ascontiguousarray(np.rot90(film, degrees // 90))
        size_hw = (upright.shape[0], upright.shape[1])
        box = self.decide(self.look([upright])[0], size_hw)

        def back(xyxy: Xyxy | None) -> Xyxy | None:
            return None if xyxy is None else as_xyxy(turn_xyxy(xyxy, size_hw, 360 - degrees)[0])

        notes = (note("lay_turned", value=degrees), *box.notes)
        boxes = back(box.xyxy), back(box.seen_xyxy)
        return replace(box, xyxy=boxes[0], seen_xyxy=boxes[1], turned=degrees, notes=notes)

    def decide(self, seen: Look, size_hw: tuple[int, int]) -> ThoraxBox:
        """The rule from what is seen, in pixels of a film of (height, width), to one decision."""
        box = self._decide_box(seen, size_hw)
        if seen.view is None:
            return box
        if seen.view.mirrored:
            box = replace(box, notes=(note("mirrored"),))
        if seen.view.kind == "frontal":
            return box
        in_view = seen.field and box.score >= self.detector.operating_point["reject_score"]
        if seen.view.kind == "many" and in_view:
            return box.doubted(seen.view.reason, size_hw)
        return box.refused(f"no frontal chest: {seen.view.reason}")

    def _decide_box(self, seen: Look, size_hw: tuple[int, int]) -> ThoraxBox:
        box, field = self.detector.decide(seen.found, size_hw), seen.field
        if self.box == "detector" or box.seen_xyxy is None:
            return box
        if field is None:
            why = box.reason if box.status == "no_thorax" else "no thorax found: no lung field"
            return replace(box.refused(why), apart=1.0)
        apart = round(1 - float(iou_xyxy(box.seen_xyxy, field.xyxy)[0, 0]), 4)
        merged = self.rule.merge(box.seen_xyxy, field.xyxy)
        both = merged if apart <= self.rule.lone_apart else box.seen_xyxy
        own = field.xyxy if self.box == "field" else both
        quality = self.rule.quality_at(apart + field.soft)
        box = replace(box, seen_xyxy=own, apart=apart, quality=quality)
        if box.status != "ok":
            return box
        differ = f"the detector's and the lung field's box differ, 1 − IoU is {apart:.2f} and above"
        if apart > self.rule.refuse_apart:
            return box.refused(f"no thorax found: {differ} {self.rule.refuse_apart:.2f}")
        if apart > self.rule.ok_apart:
            return box.doubted(f"{differ} {self.rule.ok_apart:.2f}", size_hw)
        return replace(box, xyxy=own)


def refit(canvas: np.ndarray, frame: Frame, side: int) -> tuple[np.ndarray, Frame]:
    """A letterboxed film fitted anew into a square of `side` px, and its Frame on the film."""
    if canvas.shape == (side, side):
        return canvas, frame
    inner = Frame.letterbox(frame.content_hw, side)
    return inner.apply(canvas), replace(inner, source_xyxy=frame.source_xyxy)


def read_box(probability: np.ndarray, frame: Frame, threshold: float) -> FieldBox | None:
    """The field's box from its map (S, S) in letterbox pixels; None without a field."""
    height, width = frame.content_hw
    content = probability[:height, :width]
    early, box, late = (_extent(content, t) for t in (_EARLY, threshold, _LATE))
    if box is None:
        return None
    soft = 1.0 if early is None or late is None else 1 - float(iou_xyxy(early, late)[0, 0])
    size_hw = frame.source_xyxy[3], frame.source_xyxy[2]
    return FieldBox(as_xyxy(stretch_xyxy(box, (height, width), size_hw)[0]), soft)


def _extent(probability: np.ndarray, threshold: float) -> Xyxy | None:
    """The box round what lies above the threshold, without specks, to a fraction of a pixel: an
    edge lies where the line between the centres of two pixels crosses the threshold."""
    above = probability > threshold
    large = large_parts(above)
    if large is None:
        return None
    kept = np.where(above & ~large, 0, probability)

    def ends(profile: np.ndarray) -> tuple[float, float]:
        inside = np.flatnonzero(profile > threshold)
        first, last = int(inside[0]), int(inside[-1])
        low, high = float(first), float(last + 1)
        if first:
            here, before = profile[first], profile[first - 1]
            low = first + 0.5 - float((here - threshold) / (here - before))
        if last + 1 < len(profile):
            here, behind = profile[last], profile[last + 1]
            high = last + 0.5 + float((here - threshold) / (here - behind))
        return low, high

    (x0, x1), (y0, y1) = ends(kept.max(0)), ends(kept.max(1))
    return x0, y0, x1, y1
