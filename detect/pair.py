"""Choose how the detector's box and the lung field's become one, on films of part val.

    python -m detect.pair --weights runs/mine/thorax.safetensors
    python -m detect.pair --weights A.safetensors --field B.safetensors --data FOLDER --part all

Writes the rule (see detect.finder.PairRule) into the detector's bundle, where detect.crop and
classify.run find it. A detector without one is used with the plain mean of both boxes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cxr.boxes import iou_xyxy, union_xyxy
from cxr.cli import as_command, parse_config
from cxr.coco import CocoFilm
from cxr.data_folders import DataFolders
from cxr.film import Film
from cxr.rules import refusing, require
from cxr.stream import Unread, batched, default_jobs
from cxr.workdir import console, log
from detect.data import MeasureConfig, choose_part, read_annotations
from detect.evaluate import read_fitted
from detect.finder import PairRule, ThoraxFinder
from detect.metrics import SIDES
from detect.predict import DEFAULT_WEIGHTS

_LEAST_APART = 0.2  # two people lie as far apart on hard films: less is no reason for doubt
_FEWEST = 20  # films: fewer say nothing about the rare ones that a threshold is for
_STEPS = np.linspace(0, 1, 21)


@dataclass(frozen=True)
class PairConfig(MeasureConfig):
    """Choose how the detector's and the lung field's box become one box, and when they differ too
    much to be used, on films that neither was trained on; the rule goes into the detector's bundle.

    Args:
        field: the lung field's bundle; empty takes the one that comes with lungfirst.
        out: the bundle to write; empty writes into `weights`.
    """

    field: str = ""
    part: str = "val"
    out: str = ""


@dataclass(frozen=True)
class PairFilm:
    """One film: both boxes and a person's (xyxy, fractions of the film), 1 − IoU of both boxes, and
    the box's doubt (see PairRule.quality)."""

    detector: np.ndarray
    field: np.ndarray
    truth: np.ndarray
    apart: float
    doubt: float


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; 2 for data or bundles that do not fit."""
    example = "python -m detect.pair --weights runs/mine/thorax.safetensors"
    config = parse_config(PairConfig, argv, example)
    with refusing():
        finder = ThoraxFinder.load(config.weights or None, config.field or None, config.device)
        chosen, _ = choose_part(read_annotations(config.data, config.annotations), config)
        films = list(look(finder, [f for f in chosen if len(f.boxes_xyxy)], config))
        require(len(films) >= _FEWEST, f"there must be {_FEWEST} films with both boxes", len(films))
    rule = choose_rule(films)
    weights = Path(config.weights or DEFAULT_WEIGHTS)
    on = {"films": len(films), "part": config.part, "weights": finder.weights}
    from cxr.bundle import load_bundle, save_bundle

    bundle = load_bundle(weights, "thorax")
    meta = {k: v for k, v in bundle.meta.items() if k not in ("schema", "version", "kind")}
    meta["pair"] = asdict(replace(rule, chosen_on=on))
    out = save_bundle(config.out or weights, "thorax", bundle.tensors, **meta)
    console.print(f"{_told(rule, films)}\nwrote {out}", highlight=False)
    return 0


def look(finder: ThoraxFinder, films: Sequence[CocoFilm], config: PairConfig) -> Iterator[PairFilm]:
    """Each film on which both networks and a person see a thorax."""
    data = DataFolders(config.data)
    for fitted in batched(read_fitted(films, data, default_jobs(len(films))), 8):
        read = [(truth, film) for truth, film in fitted if isinstance(film, Film)]
        for truth, film in fitted:
            if isinstance(film, Unread):
                log.warning("%s left out: %s", truth.file_name, film.sentence)
        looks = finder.look([film.pixels for _, film in read])
        for (truth, film), (found, field, _) in zip(read, looks, strict=True):
            size_hw = (film.pixels.shape[0], film.pixels.shape[1])
            box = finder.detector.decide(found, size_hw).seen_xyxy
            if box is None or field is None:
                log.warning("%s left out: one of the networks sees no thorax", truth.file_name)
                continue
            whole = np.tile(size_hw[::-1], 2)
            drawn = union_xyxy(truth.boxes_xyxy)
            apart = 1 - float(iou_xyxy(box, field.xyxy)[0, 0])
            one, other, true = (np.asarray(b) / whole for b in (box, field.xyxy, drawn))
            yield PairFilm(one, other, true, apart, apart + field.soft)


def choose_rule(films: Sequence[PairFilm]) -> PairRule:
    """Shares, thresholds that leave these films alone, and the IoU that goes with a doubt.

    Of the shares whose edge lies within one standard error of the least mean distance from a
    person's, the one nearest to the plain mean is taken (the one-standard-error rule of Breiman et
    al. 1984): these films are like those of the training, and what differs little here may differ
    the other way on films of another place.
    """
    detector, field, truth = (
        np.array([getattr(f, name) for f in films]) for name in ("detector", "field", "truth")
    )
    mixed = _STEPS[:, None, None] * detector + (1 - _STEPS[:, None, None]) * field
    errors = np.abs(mixed - truth)  # (steps, films, 4)
    shares = tuple(choose_share(errors[:, :, edge]) for edge in range(4))
    # a frontal chest is rarely passed over: the farthest of these films stays well below
    lone = min(0.3, max(_LEAST_APART, 1.5 * max(f.apart for f in films)))
    rule = PairRule(shares, round(lone, 3), round(2 * lone, 3), round(3 * lone, 3))  # type: ignore[arg-type]
    boxes = [rule.merge(d, f) for d, f in zip(detector, field, strict=True)]
    ious = [float(iou_xyxy(b, t)[0, 0]) for b, t in zip(boxes, truth, strict=True)]
    return replace(rule, quality=fit_quality([f.doubt for f in films], ious))


def choose_share(errors: np.ndarray) -> float:
    """The detector's share in one edge, of `_STEPS`, from its distances (steps, films)."""
    means = errors.mean(axis=1)
    best = int(means.argmin())
    close = means <= means[best] + errors[best].std() / np.sqrt(errors.shape[1])
    return float(round(_STEPS[close][np.abs(_STEPS[close] - 0.5).argmin()], 2))


def fit_quality(doubts: Sequence[float], ious: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Points (doubt, IoU), never rising: isotonic regression (Barlow et al. 1972), thinned to the
    means of at most eight groups of films."""
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(doubts, kind="stable")
    x, y = np.asarray(doubts)[order], np.asarray(ious)[order]
    fitted = IsotonicRegression(increasing=False).fit_transform(x, y)
    groups = np.array_split(np.arange(len(x)), min(8, max(2, len(x) // 20)))
    return tuple((round(float(x[g].mean()), 4), round(float(fitted[g].mean()), 4)) for g in groups)


def _told(rule: PairRule, films: Sequence[PairFilm]) -> str:
    shares = ", ".join(f"{e} {s:.2f}" for e, s in zip(SIDES, rule.detector_share, strict=True))
    over = sum(f.apart > rule.lone_apart for f in films)
    return (
        f"{len(films)} films; the detector's share of each edge: {shares}; where 1 − IoU is above "
        f"{rule.lone_apart:.3f} ({over} of these films) the detector's box alone, above "
        f"{rule.ok_apart:.3f} the whole film, above {rule.refuse_apart:.3f} refused"
    )


if __name__ == "__main__":
    sys.exit(main())
