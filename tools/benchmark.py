"""python tools/benchmark.py: speed ratios against named peers, and memory, all in one run.

Ratios are of medians over the same films, taken in turns on the same machine, because single times
mean little on a machine that others share.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

import cv2
import numpy as np
from rich.table import Table

from cxr.boxes import Frame
from cxr.cli import Several, as_list, parse_config, to_plain
from cxr.film import list_films, read_film
from cxr.workdir import Workdir, console, write_json

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1  # order of a member's logits: NORMAL, TARGET, OTHERS


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure detection, crop, members and saliency per film, and peak memory.

    Args:
        data: folder of films, or several of them; the sample chest of pydicom-data where there is
            none.
        films: how many films are timed.
        memory: numbers of films for the peak memory of the whole way; empty leaves it out.
        threads: of each engine.
        ensemble: folder of the members.
        saliency_batch: films in a batch for the saliency rows; 0 leaves these rows out.
        engines: time each shipped network by every engine that is installed, alone and eight films
            at a time.
        score_films: films for Score-CAM, which takes over a thousand forward passes each; 0 leaves
            it out.
        out: folder for benchmark.json.
    """

    data: Several = "../shared/data/images/kermany"
    films: int = 30
    memory: list[int] = field(default_factory=lambda: [100, 1000])
    threads: int = 2
    ensemble: str = "weights/ensemble_crops"
    saliency_batch: int = 16
    engines: bool = True
    score_films: int = 2
    out: str = "runs/benchmark"


class Timer(NamedTuple):
    """What is timed in round n, and how many films that does."""

    name: str
    call: Callable[[int], Any]
    films: int = 1


Group = list[dict[str, Any]]


def time_in_turns(timers: Sequence[Timer], rounds: int, ratios: bool = True) -> Group:
    """Rows of name, median milliseconds a film and ratio to the first, of rounds 0 … n − 1,
    A B C A B C …, after one warm-up each."""
    for timer in timers:
        timer.call(0)
    taken: list[list[float]] = [[] for _ in timers]
    for number in range(rounds):
        for timer, seconds in zip(timers, taken, strict=True):
            start = time.perf_counter()
            timer.call(number)
            seconds.append((time.perf_counter() - start) / timer.films)
    medians = [statistics.median(seconds) for seconds in taken]
    shares = [round(m / medians[0], 3) if ratios else None for m in medians]
    return [
        {"what": timer.name, "ms": round(m * 1e3, 2), "ratio": share}
        for timer, m, share in zip(timers, medians, shares, strict=True)
    ]


def detection_timers(films: list[Path]) -> list[Timer]:
    """file → box by us (with and without flips) and by torchvision's stock detector."""
    import torch
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    from detect.finder import ThoraxFinder
    from detect.model import build_detector
    from detect.predict import ThoraxDetector

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
        Timer("lungfirst, detector", ours(plain)),
        Timer("lungfirst with flips", ours(flipped)),
        Timer("lungfirst's network, COCO's sizes", ours(many)),
    ]


ENGINES = {
    "torch": ("torch", "fp32"),
    "torch, bf16": ("torch", "bf16"),
    "ONNX Runtime": ("onnx", "fp32"),
    "OpenVINO": ("openvino", "fp32"),
    "OpenVINO, bf16": ("openvino", "bf16"),
}


def engine_groups(films: Sequence[np.ndarray], folder: str, rounds: int) -> list[Group]:
    """The detector, the lung field's network and the members of an ensemble by each engine, one
    film and eight at a time: torch is the first of its kind. `apart` is the largest difference of
    an answer from torch's: px of a box, probability, logit."""
    from classify.exported import open_ensemble
    from cxr.engines import is_there
    from detect.lungfield.field import LungField
    from detect.predict import ThoraxDetector, prepare_film

    eight = [films[n % len(films)] for n in range(8)]
    asked: dict[str, dict[str, Callable[[int], np.ndarray]]] = {}
    for name, (engine, precision) in ENGINES.items():
        if not is_there(engine):
            continue
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
    from detect.finder import ThoraxFinder

    stock = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
    members = [ensemble.member(target) for target in ensemble.targets]
    finder = ThoraxFinder.load(device="cpu")
    ours = open_ensemble(Path(folder), "auto", "fp32", "cpu", maps=True)

    def usual(n: int) -> None:
        pixels = read_film(films[n % len(films)]).pixels
        with torch.inference_mode():
            stock([torch.from_numpy(pixels).expand(3, -1, -1)])
        batch = ensemble.prepare([pixels])[0]
        with torch.inference_mode():
            logits = [member(batch) for member in members]
        strongest = int(torch.stack([z[0, TARGET] for z in logits]).argmax())
        with _as_a_user_has_it(members[strongest]):
            by_library("GradCAM", members[strongest], batch)

    def lungfirst(n: int) -> None:
        read = [read_film(films[(8 * n + k) % len(films)]) for k in range(8)]
        boxes = finder.predict([film.pixels for film in read])
        found = [crop_film(f, b, 0.05, False) for f, b in zip(read, boxes, strict=True) if b.xyxy]
        ours.look_pooled(ours.prepare([crop.pixels for crop in found])[0])

    return [
        Timer("film → box, logits, Grad-CAM: torchvision, torch, pytorch-grad-cam", usual),
        Timer("the same and more: lungfirst, eight films at a time", lungfirst, 8),
    ]


def stage_timers(films: list[Path], ensemble: Any) -> tuple[list[Timer], list[np.ndarray]]:
    """Reading, cutting at full resolution, and one pass of all members over a crop; the crops."""
    from detect.crop import crop_film
    from detect.finder import ThoraxFinder

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


def saliency_rows(
    crops: list[np.ndarray], ensemble: Any, config: BenchmarkConfig
) -> tuple[list[Group], list[float]]:
    """Rows for Grad-CAM and for Score-CAM of one member against pytorch-grad-cam as it is, and the
    rank correlations of Score-CAM over the strongest channels with that over all."""
    from classify.audit.randomise import rank_correlation
    from classify.saliency.maps import saliency_maps
    from classify.saliency.methods import TOP_K

    member = ensemble.member(ensemble.targets[0])
    # as many crops as a batch needs, taken over again where there are fewer
    batch, _ = ensemble.prepare([crops[n % len(crops)] for n in range(config.saliency_batch)])
    # each round of Grad-CAM does several batches: a third of the films is enough
    groups = [time_in_turns(gradient_timers(member, batch), max(1, config.films // 3))]
    if not config.score_films:
        return groups, []
    groups.append(time_in_turns(score_timers(member, batch), config.score_films))
    few = batch[: config.score_films]
    asked = member, few, [TARGET] * len(few), "score_cam"
    pairs = zip(*(saliency_maps(*asked, top_k=k) for k in (TOP_K, None)), strict=True)
    return groups, [round(rank_correlation(a, b), 4) for a, b in pairs]


def by_library(method: str, member: Any, films: Any, **settings: Any) -> None:
    """Maps of the films by a class of pytorch-grad-cam, as its README has it."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from classify.saliency.hooks import saliency_layer

    cam = getattr(pytorch_grad_cam, method)(model=member, target_layers=[saliency_layer(member)])
    vars(cam).update(settings)
    cam(input_tensor=films, targets=[ClassifierOutputTarget(TARGET)] * len(films))
    cam.activations_and_grads.release()


def gradient_timers(member: Any, crops: Any) -> list[Timer]:
    """Grad-CAM by the library, and by us with and without a backward pass."""
    import torch

    from classify.saliency.maps import saliency_maps

    def library(films: Any) -> None:
        with _as_a_user_has_it(member):
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
    import torch

    from classify.saliency.maps import saliency_maps
    from classify.saliency.methods import SCORE_BATCH, TOP_K

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
def _as_a_user_has_it(member: Any) -> Iterator[None]:
    """Gradients of all parameters wanted, as in a net fresh from its file; gone afterwards."""
    wanted = [(p, p.requires_grad) for p in member.parameters()]
    member.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
            parameter.grad = None


def peak_memory_mib(films: Sequence[Path], number: int, ensemble: str) -> float:
    """Peak resident memory of the whole way over so many films, in a process of its own, as Linux
    tells it."""
    with tempfile.TemporaryDirectory() as folder:
        vary_films(films[:20], Path(folder) / "films", number)
        # not ru_maxrss: a new process starts with its parent's
        program = (
            "import pathlib, sys; from classify.run import main; code = main(sys.argv[1:]);"
            "status = pathlib.Path('/proc/self/status').read_text();"
            "print('PEAK', status.split('VmHWM:')[1].split()[0], file=sys.stdout);"
            "sys.exit(code)"
        )
        options = ["--crops", "--ensemble", ensemble, "--out", f"{folder}/run", "--jobs", "0"]
        command = [sys.executable, "-c", program, f"{folder}/films", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)  # noqa: S603
        peaks = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("PEAK")]
        if not peaks:
            raise RuntimeError(f"the run over {number} films failed:\n{done.stderr[-2000:]}")
        return int(peaks[-1]) / 1024


def vary_films(films: Sequence[Path], folder: Path, number: int) -> None:
    """So many PNG files, long side 512 px, no two alike: real films by turns with other noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    base = [read_film(path).pixels for path in films]
    base = [Frame.letterbox((p.shape[0], p.shape[1]), 512).apply(p) for p in base]
    for index in range(number):
        film = base[index % len(base)] * 255 + rng.normal(0, 2, base[0].shape)
        pixels = np.clip(film, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"film{index:05d}.png"), pixels)


def source_films(config: BenchmarkConfig) -> list[Path]:
    """Films of the data folder, or the sample chest of pydicom-data where there is none."""
    if folders := [folder for folder in as_list(config.data) if Path(folder).is_dir()]:
        return list_films(folders).films[: config.films]
    from demo import sample_films

    return sample_films()[:1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, write benchmark.json."""
    prog = "python tools/benchmark.py"
    config = parse_config(BenchmarkConfig, argv, prog, f"{prog} --films 10 --memory '[]'")
    import torch

    from classify.ensemble import Ensemble

    torch.set_num_threads(config.threads)
    os.environ["OMP_NUM_THREADS"] = str(config.threads)  # the other engines take as many
    workdir = Workdir(config.out)
    workdir.start(to_plain(config))
    films, ensemble = source_films(config), Ensemble.load(config.ensemble, "cpu")
    stages, crops = stage_timers(films, ensemble)
    groups = [
        time_in_turns(detection_timers(films), len(films)),
        time_in_turns(stages, len(films), ratios=False),
    ]
    groups.append(time_in_turns(way_timers(films, config.ensemble, ensemble), len(films)))
    if config.engines:
        groups += engine_groups(crops[:8], config.ensemble, max(1, config.films // 2))
    correlations: list[float] = []
    if config.saliency_batch:
        more, correlations = saliency_rows(crops, ensemble, config)
        groups += more
    table = Table("per film", "median ms", "ratio to the first of its kind", "differs by")
    for group in groups:
        table.add_section()
        for row in group:
            told = (f"{row['ms']:.1f}", str(row["ratio"] or ""), str(row.get("apart", "")))
            table.add_row(row["what"], *told)
    table.add_section()
    if correlations:
        what = "Score-CAM: rank correlation of its channels' map with all channels' map"
        table.add_row(what, ", ".join(f"{r:.3f}" for r in correlations), "")
    memory = {str(n): round(peak_memory_mib(films, n, config.ensemble)) for n in config.memory}
    for number, mib in memory.items():
        table.add_row(f"peak memory of the whole way, {number} films", f"{mib} MiB", "")
    console.print(table)
    record = {
        "films": len(films),
        "rows": [row for group in groups for row in group],
        "score_cam_rank_correlation": correlations,
        "memory_mib": memory,
    }
    write_json(workdir / "benchmark.json", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
