"""ThoraxDetector: films in, one thorax box each or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cxr.boxes import Frame, Xyxy, area_xyxy, as_xyxy, clip_xyxy, flip_x_xyxy, iou_xyxy, union_xyxy
from cxr.cli import from_plain, load_named
from cxr.engines import OnnxNet, inferring, pick_device, pick_engine
from cxr.intensity import to_uint8
from detect.decode import BoxDecoder
from detect.settings import DetectorConfig

if TYPE_CHECKING:  # torch is imported where a network is at work
    from torch import Tensor, nn

Settings = TypeVar("Settings")
DEFAULT_WEIGHTS = Path("weights/thorax_lite0.safetensors")  # commands run from the project's folder


@dataclass(frozen=True)
class Detections:
    """What the network sees on one film, best first: (N, 4) xyxy in film pixels, (N,), (N,)."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray  # index into the bundle's classes, from 0


@dataclass(frozen=True)
class ThoraxBox:
    """The decision on one film.

    Attributes:
        xyxy: in film pixels; the whole film for `fallback`; None for `no_thorax`.
        score: the detector's, that there is a thorax.
        status: ok, fallback or no_thorax.
        reason: why it is not `ok`.
        label: index into the detector's classes.
        seen_xyxy: the best box in film pixels, also where it is not used.
        apart: 1 − IoU of the detector's and the lung field's box; None where one alone was asked.
        quality: the IoU with a person's box that such films have on average; None where not known.
        turned: degrees anticlockwise by which the film was turned before it was boxed.
        notes: what was noted of the picture, as a film's notes are (see `cxr.notes`).
    """

    xyxy: Xyxy | None
    score: float
    status: str
    reason: str = ""
    label: int = 0
    seen_xyxy: Xyxy | None = None
    apart: float | None = None
    quality: float | None = None
    turned: int = 0
    notes: tuple[str, ...] = ()

    @property
    def used_xyxy(self) -> Xyxy | None:
        """The box, where it is one of status ok."""
        return self.xyxy if self.status == "ok" else None

    def refused(self, why: str) -> ThoraxBox:
        """No thorax in the place of a box that is none."""
        return replace(self, xyxy=None, status="no_thorax", reason=why)

    def doubted(self, why: str, size_hw: tuple[int, int]) -> ThoraxBox:
        """The whole film of (height, width) in the place of a box that is not to be trusted."""
        whole = (0.0, 0.0, float(size_hw[1]), float(size_hw[0]))
        reason = f"uncertain box: {why}; whole film used"
        return replace(self, xyxy=whole, status="fallback", reason=reason)


def prepare_film(pixels: np.ndarray, side: int) -> tuple[np.ndarray, Frame]:
    """A film (H, W) float32 in [0, 1] as the detector sees it: uint8 letterbox and its Frame. uint8
    because that is what most training films are: what is learnt on 8 bits must not meet another
    quantisation in use. Contrast is stretched between the 0.5 and 99.5 percentile, so that narrow
    and wide exposures look alike."""
    frame = Frame.letterbox((pixels.shape[0], pixels.shape[1]), side)
    canvas = frame.apply(pixels)
    h, w = frame.content_hw
    inner = canvas[:h, :w]
    low, high = np.percentile(inner[:: max(1, h // 128), :: max(1, w // 128)], (0.5, 99.5))
    if high > low:
        inner[:] = np.clip((inner - low) / (high - low), 0.0, 1.0)
    return to_uint8(canvas), frame


def to_input(canvas: np.ndarray) -> Tensor:
    """uint8 (S, S) to the network's float (3, S, S) in [0, 1]; it normalises by itself."""
    import torch

    return torch.from_numpy(canvas).float().div_(255.0).expand(3, -1, -1)


class TrainedNet:
    """A network on its device, as it is in use; `weights` is its file's name → SHA-256, `meta` what
    its bundle says. One that was exported needs no device, and no torch."""

    def __init__(
        self,
        model: nn.Module | OnnxNet,
        device: str = "auto",
        weights: dict[str, str] | None = None,
        meta: dict[str, Any] | None = None,
        precision: str = "fp32",
    ) -> None:
        self.weights, self.meta, self.precision = weights or {}, meta or {}, precision
        self.exported = model if isinstance(model, OnnxNet) else None
        if not isinstance(model, OnnxNet):
            import torch

            self.device = pick_device(device)
            self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)

    def inferring(self) -> Any:
        """The mode in which torch answers."""
        return inferring(self.device, self.precision)


def fold_batchnorm(module: nn.Module) -> None:
    """Put each BatchNorm, in evaluation mode, into the weights of the convolution before it: the
    same answers up to rounding, and on a processor a third of the time less. A convolution and the
    norm that follows it among a module's children belong together in every backbone that is known
    here; timm's norm has its activation inside, which stays."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    children = list(module.named_children())
    for (name, conv), (after, norm) in pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, after, getattr(norm, "act", nn.Identity()))
    for _, child in children:
        fold_batchnorm(child)


def load_net(
    path: str | Path,
    kind: str,
    settings: type[Settings],
    build: Callable[[Settings], nn.Module] | str,
    fold: bool = True,
    engine: str = "torch",
    precision: str = "fp32",
) -> tuple[Any, Settings, dict[str, str], dict[str, Any]]:
    """A bundle's network, or for another engine than torch the exported one beside it, its
    settings, its file's name → SHA-256, and its metadata. `build` may be named as "module:name";
    without `fold` each BatchNorm stays what it is. Raises FileNotFoundError or ValueError for what
    is no bundle of this kind."""
    from cxr.bundle import load_bundle, load_meta, rebuilding

    bundle = load_bundle(path, kind) if engine == "torch" else None
    meta = bundle.meta if bundle else load_meta(path, kind)
    make: Any = load_named(build) if bundle else None  # imported here, where weights are drawn yet
    net: Any = None if bundle else OnnxNet(path, engine, precision)
    with rebuilding(path):
        # nothing is fetched, whatever the metadata say: the weights are all in the bundle
        config = from_plain(settings, {**meta["model"], "weights": "none"})
        if bundle:
            net = make(config)
            net.load_state_dict(bundle.tensors)
            net.eval()
            if fold:
                fold_batchnorm(net)
    return net, config, {Path(path).name: (bundle or net).sha256}, meta


class ThoraxDetector(TrainedNet):
    """A trained detector with its preprocessing and its operating point."""

    def __init__(
        self,
        model: nn.Module | OnnxNet,
        config: DetectorConfig,
        operating_point: dict[str, Any],
        flips: bool = False,
        device: str = "auto",
        weights: dict[str, str] | None = None,
        meta: dict[str, Any] | None = None,
        precision: str = "fp32",
        decoder: BoxDecoder | None = None,
    ) -> None:
        super().__init__(model, device, weights, meta, precision)
        self.decoder = decoder
        self.config, self.flips = config, flips
        self.operating_point = operating_point

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        device: str = "auto",
        flips: bool | None = None,
        engine: str = "torch",
        precision: str = "fp32",
    ) -> ThoraxDetector:
        """Read a bundle; the shipped one when `path` is None. `flips` None: as stored, else off: on
        validation films a second look at the mirror image gained nothing and costs as much.
        `engine` and `precision`: see `cxr.engines`. Raises FileNotFoundError or ValueError for what
        is no bundle of a thorax detector."""
        from cxr.bundle import load_arrays, rebuilding

        path = Path(path or DEFAULT_WEIGHTS)
        engine = pick_engine(engine, [path], device, precision == "bf16")
        net = ("thorax", DetectorConfig, "detect.model:build_detector")
        model, config, weights, meta = load_net(path, *net, engine=engine, precision=precision)
        with rebuilding(path):
            decoder = None
            if engine != "torch":
                decoder = BoxDecoder(config, load_arrays(path, "thorax")[0])
            point = meta["operating_point"]
            use_flips = bool(point.get("flips", False)) if flips is None else flips
        return cls(model, config, point, use_flips, device, weights, meta, precision, decoder)

    def detect(self, films: Sequence[np.ndarray]) -> list[Detections]:
        """All boxes on each film (H, W) float32 in [0, 1], in its own pixels, best first."""
        return self.detect_prepared([prepare_film(pixels, self.config.side) for pixels in films])

    def detect_prepared(self, prepared: Sequence[tuple[np.ndarray, Frame]]) -> list[Detections]:
        """`detect` for whole films that `prepare_film` has letterboxed at the network's side."""
        if not prepared:
            return []
        found = self.look_at([canvas for canvas, _ in prepared])
        if self.flips:
            widths = [frame.content_hw[1] for _, frame in prepared]
            mirrored = [_mirror(c, w) for (c, _), w in zip(prepared, widths, strict=True)]
            again = self.look_at(mirrored)
            found = [_fuse(a, b, w) for a, b, w in zip(found, again, widths, strict=True)]
        out = []
        for (_, frame), seen in zip(prepared, found, strict=True):
            width, height = frame.source_xyxy[2:]
            boxes = clip_xyxy(frame.to_original_xyxy(seen.boxes_xyxy), (height, width))
            order = np.argsort(-seen.scores, kind="stable")
            out.append(Detections(boxes[order], seen.scores[order], seen.labels[order]))
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
        x0, y0, x1, y1 = seen = as_xyxy(self._box_of(found))
        width, height = x1 - x0, y1 - y0
        box = ThoraxBox(None, score, "no_thorax", "", int(found.labels[0]), seen)
        low, high = point["aspect_range"]
        if score < point["reject_score"]:
            why = f"best score {score:.2f} below {point['reject_score']:.2f}"
            return replace(box, reason=f"no thorax found: {why}")
        if width <= 0 or not low <= height / width <= high:
            why = f"a box of {width:.0f} × {height:.0f} px has no thorax' shape"
            return replace(box, reason=f"no thorax found: {why}")
        share = float(area_xyxy(seen)[0]) / (size_hw[0] * size_hw[1])
        if score < point["ok_score"]:
            return box.doubted(f"score {score:.2f} below {point['ok_score']:.2f}", size_hw)
        if share < point["min_area_share"]:
            return box.doubted(f"it covers {share:.0%} of the film", size_hw)
        return replace(box, xyxy=seen, status="ok")

    def _box_of(self, found: Detections) -> np.ndarray:
        """(4,) the best box; with `box_rule: union` the union of the best box of each class
        (left and right lung) that scores at least `ok_score`."""
        if self.config.box_rule == "best":
            return found.boxes_xyxy[0]
        sure = found.scores >= min(self.operating_point["ok_score"], float(found.scores[0]))
        firsts = [np.flatnonzero(sure & (found.labels == v))[:1] for v in np.unique(found.labels)]
        return union_xyxy(found.boxes_xyxy[np.concatenate(firsts)])

    def look_at(self, canvases: Sequence[np.ndarray]) -> list[Detections]:
        """What the network sees on letterboxed films, in their pixels."""
        if self.exported is not None and self.decoder is not None:
            return [Detections(*seen) for seen in self.decoder.read(self.exported, canvases)]
        images = [to_input(canvas).to(self.device) for canvas in canvases]
        with self.inferring():
            found = self.model(images)
        return [
            Detections(
                f["boxes"].double().cpu().numpy(),
                f["scores"].double().cpu().numpy(),
                f["labels"].cpu().numpy() - 1,  # torchvision counts classes from 1
            )
            for f in found
        ]


def _mirror(canvas: np.ndarray, width: int) -> np.ndarray:
    """The film's part of a letterbox mirrored; the padding stays on the right."""
    out = canvas.copy()
    out[:, :width] = canvas[:, :width][:, ::-1]
    return out


def _fuse(first: Detections, mirrored: Detections, width: int) -> Detections:
    """Boxes of a film and of its mirror image: partners (IoU ≥ 0.5) averaged, weighted by score;
    a box that only one of them shows keeps half its score."""
    back = flip_x_xyxy(mirrored.boxes_xyxy, width)
    ious = iou_xyxy(first.boxes_xyxy, back)
    lonely = set(range(len(back)))
    boxes, scores, labels = [], [], [*first.labels]
    for box, score, likeness in zip(first.boxes_xyxy, first.scores, ious, strict=True):
        partner = max(
            (j for j in sorted(lonely) if likeness[j] >= 0.5), key=likeness.item, default=None
        )
        if partner is None:
            boxes.append(box)
            scores.append(score / 2)
            continue
        lonely.remove(partner)
        other = mirrored.scores[partner]
        boxes.append((box * score + back[partner] * other) / max(score + other, 1e-9))
        scores.append((score + other) / 2)
    rest = sorted(lonely)
    return Detections(
        np.array([*boxes, *back[rest]]).reshape(-1, 4),
        np.array([*scores, *mirrored.scores[rest] / 2]),
        np.array([*labels, *mirrored.labels[rest]], dtype=np.int64),
    )
