"""The networks against the usual libraries: a box, each network by each engine, many members, and
the way from a film to its answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benching.saliency import TARGET, as_a_user_has_it, by_library
from benching.timing import Group, Timer, time_in_turns
from cxr.film import read_film
from detect.finder import ThoraxFinder
from detect.predict import ThoraxDetector


def detection_timers(films: list[Path]) -> list[Timer]:
    """file → box by us (with and without flips) and by torchvision's stock detector."""
    import torch
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    from detect.model import build_detector

    plain, flipped = (ThoraxDetector.load(device="cpu", flips=flips) for flips in (False, True))
    # the same network with the sizes meant for COCO's many small objects
    sizes: dict[str, Any] = {"anchor_sizes": [0.1, 0.2, 0.4, 0.8, 1.0], "head_channels": 1024}
    sizes |= {"rpn_pre_nms": 1000, "proposals_test": 1000, "coarse_rpn": False, "refine": 0}
    coco = replace(plain.config, **sizes)
    many = ThoraxDetector(build_detector(coco), coco, plain.operating_point, False, "cpu")
    # no network is needed: with random weights it does the same work (150 proposals a film)
    stock = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()

    def run_stock(number: int) -> None:
        pixels = read_film(films[number]).pixels
        with torch.inference_mode():
            stock([torch.from_numpy(pixels).expand(3, -1, -1)])

    def ours(finder: ThoraxDetector | ThoraxFinder) -> Callable[[int], Any]:
        return lambda n: finder.predict([read_film(films[n]).pixels])

    return [
        Timer("torchvision fasterrcnn_mobilenet_v3_large_320_fpn", run_stock),
        Timer("lungfirst, detector and lung field", ours(ThoraxFinder.load(device="cpu"))),
        Timer("lungfirst, detector alone, by torch", ours(plain)),
        Timer("lungfirst, detector with flips, by torch", ours(flipped)),
        Timer("lungfirst, detector with sizes of COCO, by torch", ours(many)),
    ]


ENGINES = {
    "torch": ("torch", "fp32"),
    "torch, bf16": ("torch", "bf16"),
    "ONNX Runtime": ("onnx", "fp32"),
    "OpenVINO": ("openvino", "fp32"),
    "OpenVINO, bf16": ("openvino", "bf16"),
}


def installed_engines(bf16: bool = True) -> dict[str, tuple[str, str]]:
    """ENGINES that are there, torch first; with bf16, or without."""
    from cxr.engines import is_there

    ways = {name: way for name, way in ENGINES.items() if bf16 or way[1] == "fp32"}
    return {name: way for name, way in ways.items() if is_there(way[0])}


def engine_groups(films: Sequence[np.ndarray], folder: str, rounds: int) -> list[Group]:
    """The detector, the lung field's network and the members of an ensemble by each engine, one
    film and eight at a time: torch is the first of its kind. `apart` is the largest difference of
    an answer from torch's: px of a box, probability, logit."""
    from classify.exported import open_ensemble
    from detect.lungfield.field import LungField
    from detect.predict import ThoraxDetector, prepare_film

    eight = [films[n % len(films)] for n in range(8)]
    asked: dict[str, dict[str, Callable[[int], np.ndarray]]] = {}
    for name, (engine, precision) in installed_engines().items():
        detector = ThoraxDetector.load(None, "cpu", False, engine, precision)
        lungs = LungField.load(None, "cpu", engine, precision)
        members = open_ensemble(Path(folder), engine, precision, "cpu")
        small = [prepare_film(film, detector.config.side)[0] for film in eight]
        smaller = [prepare_film(film, lungs.side)[0] for film in eight]
        calls = {
            "detector": partial(_best_boxes, detector, small),
            "lung field": partial(_fields, lungs, smaller),
            f"members of {Path(folder).name}": partial(_logits, members, eight),
        }
        for kind, call in calls.items():
            asked.setdefault(kind, {})[name] = call
    groups = []
    for kind, by in asked.items():
        right = by["torch"](8)
        for many in (1, 8):
            whats = [f"{kind}, {many} at a time, {name}" for name in by]
            timers = [
                Timer(what, partial(_at_once, call, many), many)
                for what, call in zip(whats, by.values(), strict=True)
            ]
            groups.append(time_in_turns(timers, rounds))
            for row, again in zip(groups[-1], by.values(), strict=True):
                row["apart"] = round(float(np.abs(again(8) - right).max()), 6)
    return groups


def _at_once(call: Callable[[int], np.ndarray], many: int, _round: int) -> np.ndarray:
    return call(many)


def _best_boxes(detector: Any, canvases: Sequence[np.ndarray], n: int) -> np.ndarray:
    return np.concatenate([found.boxes_xyxy[:1] for found in detector.look_at(canvases[:n])])


def _fields(net: Any, canvases: Sequence[np.ndarray], n: int) -> np.ndarray:
    return net.forward(canvases[:n])


def _logits(members: Any, films: Sequence[np.ndarray], n: int) -> np.ndarray:
    return members.predict(films[:n])


def way_timers(films: list[Path], folder: str, ensemble: Any) -> list[Timer]:
    """Film to box, crop, logits and Grad-CAM: by the usual libraries film by film, and by us eight
    films at a time. The peers' member is ours, eager; their box is not used, for random weights
    find none, and so all members see the same crops' worth of pixels."""
    import torch
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    from classify.exported import open_ensemble
    from detect.crop import crop_film

    stock = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
    finder = ThoraxFinder.load(device="cpu")
    ours = open_ensemble(Path(folder), "auto", "fp32", "cpu", maps=True)

    def usual(n: int) -> None:
        pixels = read_film(films[n % len(films)]).pixels
        with torch.inference_mode():
            stock([torch.from_numpy(pixels).expand(3, -1, -1)])
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
    import torch

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
    import export
    import torch

    from classify.ensemble import Ensemble
    from classify.exported import ExportedEnsemble
    from classify.models.multitask import build_member
    from classify.models.settings import MemberConfig
    from classify.preprocess import PreprocessConfig
    from cxr.bundle import save_bundle
    from cxr.cli import to_plain
    from cxr.engines import inferring

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
        for name, (engine, precision) in installed_engines().items():
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
    from detect.crop import crop_film

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
