"""The networks against the usual libraries, by timers that take turns.

Timed are a box, each network by each engine, many members, the way from a film to its answers, and
maps of one member. Single times mean little on a machine that others share: these are medians over
the same films on the same machine, and how far they spread.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import export
import numpy as np
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from benching import whole
from classify.audit.randomise import rank_correlation
from classify.ensemble import Ensemble
from classify.exported import ExportedEnsemble, open_ensemble
from classify.models.multitask import build_member
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig
from classify.saliency import SCORE_BATCH, TOP_K
from classify.saliency.hooks import saliency_layer
from classify.saliency.maps import saliency_maps
from cxr.bundle import save_bundle
from cxr.cli import to_plain
from cxr.engines import inferring
from cxr.film import read_film
from detect.crop import crop_film
from detect.finder import ThoraxFinder
from detect.lungfield.field import LungField
from detect.model import build_detector
from detect.predict import ThoraxDetector, prepare_film


def detection_timers(films: list[Path]) -> list[Timer]:
    """file → box by us (with and without flips) and by torchvision's stock detector."""
    plain, flipped = (ThoraxDetector.load(device="cpu", flips=flips) for flips in (False, True))
    # the same network with the sizes meant for COCO's many small objects
    sizes: dict[str, Any] = {"anchor_sizes": [0.1, 0.2, 0.4, 0.8, 1.0], "head_channels": 1024}
    sizes |= {"rpn_pre_nms": 1000, "proposals_test": 1000, "coarse_rpn": False, "refine": 0}
    coco = replace(plain.config, **sizes)
    many = ThoraxDetector(build_detector(coco), coco, plain.operating_point, False, "cpu")
    stock = stock_detector()

    def ours(finder: ThoraxDetector | ThoraxFinder) -> Callable[[int], Any]:
        return lambda n: finder.predict([read_film(films[n]).pixels])

    return [
        Timer(
            "torchvision fasterrcnn_mobilenet_v3_large_320_fpn",
            lambda n: stock(read_film(films[n]).pixels),
        ),
        Timer("lungfirst, detector and lung field", ours(ThoraxFinder.load(device="cpu"))),
        Timer("lungfirst, detector alone, by torch", ours(plain)),
        Timer("lungfirst, detector with flips, by torch", ours(flipped)),
        Timer("lungfirst, detector with sizes of COCO, by torch", ours(many)),
    ]


def stock_detector() -> Callable[[np.ndarray], Any]:
    """Boxes of a film by torchvision's own detector. No network is needed: with random weights it
    does the same work (150 proposals a film)."""
    stock = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()

    def boxes(pixels: np.ndarray) -> Any:
        with torch.inference_mode():
            return stock([torch.from_numpy(pixels).expand(3, -1, -1)])

    return boxes


def engine_groups(films: Sequence[np.ndarray], folder: str, rounds: int) -> list[Group]:
    """The detector, the lung field's network and the members of an ensemble by each engine, one
    film and eight at a time: torch is the first of its kind. `apart` is the largest difference of
    an answer from torch's: px of a box, probability, logit."""
    eight = [films[n % len(films)] for n in range(8)]
    asked: dict[str, dict[str, Callable[..., np.ndarray]]] = {}
    for name, way in whole.installed_engines().items():
        for kind, call in _answers(eight, folder, *way).items():
            asked.setdefault(kind, {})[name] = call
    groups = []
    for kind, by in asked.items():
        right = by["torch"](8)
        for many in (1, 8):
            timers = [
                Timer(f"{kind}, {many} at a time, {name}", partial(call, many), many)
                for name, call in by.items()
            ]
            groups.append(time_in_turns(timers, rounds))
            for row, again in zip(groups[-1], by.values(), strict=True):
                row["apart"] = round(float(np.abs(again(8) - right).max()), 6)
    return groups


def _answers(
    films: Sequence[np.ndarray], folder: str, engine: str, precision: str
) -> dict[str, Callable[..., np.ndarray]]:
    """Network → what it answers to the first n films, in any round."""
    detector = ThoraxDetector.load(None, "cpu", False, engine, precision)
    lungs = LungField.load(None, "cpu", engine, precision)
    members = open_ensemble(Path(folder), engine, precision, "cpu")
    small = [prepare_film(film, detector.config.side)[0] for film in films]
    smaller = [prepare_film(film, lungs.side)[0] for film in films]

    def best_boxes(n: int, _round: int = 0) -> np.ndarray:
        return np.concatenate([found.boxes_xyxy[:1] for found in detector.look_at(small[:n])])

    return {
        "detector": best_boxes,
        "lung field": lambda n, _round=0: lungs.forward(smaller[:n]),
        f"members of {Path(folder).name}": lambda n, _round=0: members.predict(films[:n]),
    }


def way_timers(films: list[Path], folder: str, ensemble: Any) -> list[Timer]:
    """Film to box, crop, logits and Grad-CAM: by the usual libraries film by film, and by us eight
    films at a time. The peers' member is ours, eager; their box is not used, for random weights
    find none, and so all members see the same crops' worth of pixels."""
    stock = stock_detector()
    finder = ThoraxFinder.load(device="cpu")
    ours = open_ensemble(Path(folder), "auto", "fp32", "cpu", maps=True)

    def usual(n: int) -> None:
        pixels = read_film(films[n % len(films)]).pixels
        stock(pixels)
        batch = ensemble.prepare([pixels])[0]
        logits = ensemble.predict_prepared(batch)[0]
        member = ensemble.member(ensemble.targets[int(logits[:, TARGET].argmax())])
        with as_a_user_has_it(member):
            by_library("GradCAM", member, batch)

    def lungfirst(n: int) -> None:
        read = [read_film(films[(8 * n + k) % len(films)]) for k in range(8)]
        boxes = finder.predict([film.pixels for film in read])
        found = [crop_film(f, b, 0.05, False) for f, b in zip(read, boxes, strict=True) if b.xyxy]
        ours.look_pooled(ours.prepare([crop.pixels for crop in found])[0])

    return [
        Timer("film → box, logits, Grad-CAM: torchvision, torch, pytorch-grad-cam", usual),
        Timer("the same and more: lungfirst, eight films at a time", lungfirst, 8),
        *xrv_timers(films),
    ]


def xrv_timers(films: list[Path]) -> list[Timer]:
    """Film to lungs and findings as torchxrayvision's examples have it: its loader, its PSPNet and
    its DenseNet-121, both with random weights; none where it is not installed."""
    try:
        import torchxrayvision as xrv
        from torchxrayvision.baseline_models.chestx_det.ptsemseg.pspnet import pspnet
    except ImportError:
        return []
    dense, lungs = xrv.models.DenseNet(weights=None).eval(), pspnet(14).eval()
    cut = xrv.datasets.XRayCenterCrop()
    small, large = (xrv.datasets.XRayResizer(side, engine="cv2") for side in (224, 512))

    def theirs(n: int) -> None:
        grey = np.rint(read_film(films[n % len(films)]).pixels * 255)
        square = cut(xrv.datasets.normalize(grey, 255)[None])
        with torch.inference_mode():
            dense(torch.from_numpy(small(square))[None].float())
            coloured = torch.from_numpy(large(square)).float()[None].expand(-1, 3, -1, -1)
            lungs(coloured)

    return [Timer("film → lungs, findings: torchxrayvision, DenseNet-121 and PSPNet", theirs)]


def many_members(many: int = 13, crops: int = 30, rounds: int = 3) -> Group:
    """So many members on DenseNet-121 over so many crops, as the thesis has them, by each engine;
    with random weights, which do the same work. Two files stand for all, by turns."""
    config, settings = MemberConfig("densenet121", "none"), PreprocessConfig()
    films = [np.random.default_rng(n).random((300, 280), np.float32) for n in range(crops)]
    meta = {"network": to_plain(config), "decoder": False, "trained_on": "crops"}
    meta |= {"preprocessing": settings.to_dict()}
    with tempfile.TemporaryDirectory() as folder:
        for order, name in enumerate(("a", "b")):
            torch.manual_seed(order)
            tensors = build_member(config).shipped_tensors(decoder=False)
            bundle = Path(folder) / f"{name}.safetensors"
            save_bundle(bundle, "member", tensors, target=name, order=order, **meta)
            export.export(bundle, films[:2])
        runs: dict[str, Any] = {}
        for name, (engine, precision) in whole.installed_engines().items():
            if engine == "torch":
                runs[name] = Ensemble.load(folder, "cpu", precision)
            else:
                runs[name] = ExportedEnsemble.load(folder, engine, precision)

        def forward(members: Any, _round: int) -> None:
            batch = members.prepare(films)[0]
            for k in range(many):
                if isinstance(members, ExportedEnsemble):
                    members.nets[k % 2].run(batch)
                else:
                    with inferring(members.device, members.precision):
                        members.networks[k % 2](batch)

        what = f"{many} DenseNet-121 members on {crops} crops"
        timers = [
            Timer(f"{what}, {name}", partial(forward, own), crops) for name, own in runs.items()
        ]
        return time_in_turns(timers, rounds)


def stage_timers(films: list[Path], ensemble: Any) -> tuple[list[Timer], list[np.ndarray]]:
    """Reading, cutting at full resolution, and one pass of all members over a crop; the crops."""
    read = [read_film(path) for path in films]
    boxes = ThoraxFinder.load(device="cpu").predict([film.pixels for film in read])

    def cut(n: int) -> Any:
        return crop_film(read[n], boxes[n], 0.05, False) if boxes[n].xyxy else None

    crops = [found.pixels for found in map(cut, range(len(read))) if found]
    every = f"{len(ensemble.targets)} members on a crop"
    return [
        Timer("read a film", lambda n: read_film(films[n])),
        Timer("cut a crop", cut),
        Timer(every, lambda n: ensemble.predict([crops[n % len(crops)]])),
    ], crops


TARGET = 1  # order of a member's logits: NORMAL, TARGET, OTHERS


def saliency_rows(
    crops: Sequence[np.ndarray], ensemble: Any, batch_size: int, films: int, score_films: int
) -> tuple[list[Group], list[float]]:
    """Rows for Grad-CAM and for Score-CAM of one member against pytorch-grad-cam as it is, and the
    rank correlations of Score-CAM over the strongest channels with that over all."""
    member = ensemble.member(ensemble.targets[0])
    # as many crops as a batch needs, taken over again where there are fewer
    batch, _ = ensemble.prepare([crops[n % len(crops)] for n in range(batch_size)])
    # each round of Grad-CAM does several batches: a third of the films is enough
    groups = [time_in_turns(gradient_timers(member, batch), max(1, films // 3))]
    if not score_films:
        return groups, []
    groups.append(time_in_turns(score_timers(member, batch), score_films))
    few = batch[:score_films]
    asked = member, few, [TARGET] * len(few), "score_cam"
    pairs = zip(*(saliency_maps(*asked, top_k=k) for k in (TOP_K, None)), strict=True)
    return groups, [round(rank_correlation(a, b), 4) for a, b in pairs]


def by_library(method: str, member: Any, films: Any, **settings: Any) -> None:
    """Maps of the films by a class of pytorch-grad-cam, as its README has it."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = getattr(pytorch_grad_cam, method)(model=member, target_layers=[saliency_layer(member)])
    vars(cam).update(settings)
    cam(input_tensor=films, targets=[ClassifierOutputTarget(TARGET)] * len(films))
    cam.activations_and_grads.release()


def gradient_timers(member: Any, crops: Any) -> list[Timer]:
    """Grad-CAM by the library, and by us with and without a backward pass."""

    def library(films: Any) -> None:
        with as_a_user_has_it(member):
            by_library("GradCAM", member, films)

    def ours(films: Any, closed_form: bool) -> None:
        saliency_maps(member, films, [TARGET] * len(films), closed_form=closed_form)

    def alone(n: int) -> Any:
        return crops[n % len(crops), None]

    def forward(_: int) -> None:
        with torch.inference_mode():
            member(crops)

    number, us = len(crops), "lungfirst"
    many = f"Grad-CAM of {number} films"
    return [
        Timer("pytorch-grad-cam, Grad-CAM film by film", lambda n: library(alone(n))),
        Timer(f"pytorch-grad-cam, {many}", lambda _: library(crops), number),
        Timer(f"{us}, {many}, backward pass to the layer", lambda _: ours(crops, False), number),
        Timer(f"{us}, Grad-CAM film by film, closed form", lambda n: ours(alone(n), True)),
        Timer(f"{us}, {many}, closed form", lambda _: ours(crops, True), number),
        Timer(f"the member's forward pass alone, {number} films", forward, number),
    ]


def score_timers(member: Any, crops: Any) -> list[Timer]:
    """Score-CAM of one film by the library, by us over all channels, and over the strongest."""

    def library(n: int) -> None:
        # with the same batch size as ours, and its progress bar out of the way
        with contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
            by_library("ScoreCAM", member, crops[n % len(crops), None], batch_size=SCORE_BATCH)

    def ours(n: int, top_k: int | None) -> None:
        saliency_maps(member, crops[n % len(crops), None], [TARGET], "score_cam", top_k=top_k)

    return [
        Timer("pytorch-grad-cam, Score-CAM, all channels", library),
        Timer("lungfirst, Score-CAM, all channels", lambda n: ours(n, None)),
        Timer(f"lungfirst, Score-CAM, {TOP_K} channels", lambda n: ours(n, TOP_K)),
    ]


@contextlib.contextmanager
def as_a_user_has_it(member: Any) -> Iterator[None]:
    """Gradients of all parameters wanted, as in a net fresh from its file; gone afterwards."""
    wanted = [(p, p.requires_grad) for p in member.parameters()]
    member.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
            parameter.grad = None


class Timer(NamedTuple):
    """What is timed in round n, and how many films that does."""

    name: str
    call: Callable[[int], Any]
    films: int = 1


Group = list[dict[str, Any]]


def time_in_turns(timers: Sequence[Timer], rounds: int, ratios: bool = True) -> Group:
    """Rows of name, median milliseconds a film with its quartiles and ratio to the first, of rounds
    0 … n − 1, A B C A B C …, after one warm-up each."""
    for timer in timers:
        timer.call(0)
    taken: list[list[float]] = [[] for _ in timers]
    for number in range(rounds):
        for timer, seconds in zip(timers, taken, strict=True):
            start = time.perf_counter()
            timer.call(number)
            seconds.append((time.perf_counter() - start) / timer.films)
    quartiles = [np.percentile(seconds, (50, 25, 75)) * 1e3 for seconds in taken]
    first = quartiles[0][0]
    return [
        {
            "what": timer.name,
            "ms": round(float(middle), 2),
            "quartiles": [round(float(low), 2), round(float(high), 2)],
            "ratio": round(float(middle / first), 3) if ratios else None,
        }
        for timer, (middle, low, high) in zip(timers, quartiles, strict=True)
    ]
