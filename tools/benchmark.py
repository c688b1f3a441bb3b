"""python tools/benchmark.py: speed ratios against named peers, and memory, all in one run.

Ratios are of medians over the same films, taken in turns on the same machine, because single times
mean little on a machine that others share.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

import cv2
import numpy as np
from rich.table import Table

from cxr.boxes import Frame
from cxr.cli import parse_config, to_plain
from cxr.film import list_films, read_film
from cxr.workdir import Workdir, console, write_json

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1  # order of a member's logits: NORMAL, TARGET, OTHERS


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure detection, crop, members and saliency per film, and peak memory.

    Args:
        data: folder of films; the sample chest of pydicom-data where it does not exist.
        films: how many films are timed.
        memory: numbers of films for the peak memory of the whole way; empty leaves it out.
        threads: of torch.
        ensemble: folder of the members.
        saliency_batch: films in a batch for the saliency rows; 0 leaves these rows out.
        score_films: films for Score-CAM, which takes over a thousand forward passes each; 0 leaves
            it out.
        out: folder for benchmark.json.
    """

    data: str = "../shared/data/images/kermany"
    films: int = 30
    memory: list[int] = field(default_factory=lambda: [100, 1000])
    threads: int = 2
    ensemble: str = "weights/ensemble_crops"
    saliency_batch: int = 16
    score_films: int = 2
    out: str = "runs/benchmark"


# A name, what is timed in round n, and how many films that does (one, where it is not said).
Timer = tuple[str, Callable[[int], Any]] | tuple[str, Callable[[int], Any], int]


def time_in_turns(
    timers: Sequence[Timer], rounds: int, ratios: bool = True
) -> list[dict[str, Any]]:
    """Rows of name, median milliseconds a film and ratio to the first, of rounds 0 … n − 1,
    A B C A B C …, after one warm-up each."""
    for _, call, *_ in timers:
        call(0)
    taken: list[list[float]] = [[] for _ in timers]
    for number in range(rounds):
        for (_, call, *films), seconds in zip(timers, taken, strict=True):
            start = time.perf_counter()
            call(number)
            seconds.append((time.perf_counter() - start) / (films[0] if films else 1))
    medians = [statistics.median(seconds) for seconds in taken]
    return [
        {
            "what": timer[0],
            "ms": round(m * 1e3, 2),
            "ratio": round(m / medians[0], 3) if ratios else None,
        }
        for timer, m in zip(timers, medians, strict=True)
    ]


def detection_timers(films: list[Path]) -> list[Timer]:
    """file → box by us (with and without flips) and by torchvision's stock detector."""
    import torch
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    from detect.model import build_detector
    from detect.predict import ThoraxDetector

    plain = ThoraxDetector.load(device="cpu", flips=False)
    flipped = ThoraxDetector.load(device="cpu", flips=True)
    # the same network with the sizes meant for COCO's many small objects
    coco = replace(
        plain.config,
        coarse_rpn=False,
        rpn_pre_nms=1000,
        proposals_test=1000,
        head_channels=1024,
        anchor_sizes=[0.1, 0.2, 0.4, 0.8, 1.0],
        refine=0,
    )
    many = ThoraxDetector(build_detector(coco), coco, plain.operating_point, False, "cpu")
    # no network is needed: with random weights it does the same work (150 proposals a film)
    stock = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()

    def run_stock(number: int) -> None:
        pixels = read_film(films[number]).pixels
        with torch.inference_mode():
            stock([torch.from_numpy(pixels).expand(3, -1, -1)])

    return [
        ("torchvision fasterrcnn_mobilenet_v3_large_320_fpn", run_stock),
        ("lungfirst", lambda n: plain.predict([read_film(films[n]).pixels])),
        ("lungfirst with flips", lambda n: flipped.predict([read_film(films[n]).pixels])),
        ("lungfirst's network, COCO's sizes", lambda n: many.predict([read_film(films[n]).pixels])),
    ]


def stage_timers(films: list[Path], ensemble_folder: str) -> tuple[list[Timer], list[np.ndarray]]:
    """Reading, cutting at full resolution, and one pass of all members over a crop; the crops."""
    from classify.ensemble import Ensemble
    from detect.crop import crop_film
    from detect.predict import ThoraxDetector

    read = [read_film(path) for path in films]
    boxes = ThoraxDetector.load(device="cpu").predict([film.pixels for film in read])
    ensemble = Ensemble.load(ensemble_folder, "cpu")
    crops = [
        crop_film(f, b, 0.05, False).pixels for f, b in zip(read, boxes, strict=True) if b.xyxy
    ]
    return [
        ("read a film", lambda n: read_film(films[n])),
        (
            "cut a crop",
            lambda n: crop_film(read[n], boxes[n], 0.05, False) if boxes[n].xyxy else None,
        ),
        (
            f"{len(ensemble.targets)} members on a crop",
            lambda n: ensemble.predict([crops[n % len(crops)]]),
        ),
    ], crops


def saliency_rows(
    crops: list[np.ndarray], config: BenchmarkConfig
) -> tuple[list[list[dict[str, Any]]], list[float]]:
    """Rows for Grad-CAM and for Score-CAM of one member against pytorch-grad-cam as it is, and the
    rank correlations of Score-CAM over the strongest channels with that over all."""
    from classify.audit.randomise import rank_correlation
    from classify.ensemble import Ensemble
    from classify.saliency.maps import saliency_maps
    from classify.saliency.methods import TOP_K

    ensemble = Ensemble.load(config.ensemble, "cpu")
    member = ensemble.member(ensemble.targets[0])
    # as many crops as a batch needs, taken over again where there are fewer
    repeated = [crops[n % len(crops)] for n in range(config.saliency_batch)]
    batch, _ = ensemble.prepare(repeated)
    # each round of Grad-CAM does several batches: a third of the films is enough
    groups = [time_in_turns(gradient_timers(member, batch), max(1, config.films // 3))]
    if not config.score_films:
        return groups, []
    groups.append(time_in_turns(score_timers(member, batch), config.score_films))
    few = batch[: config.score_films]
    some, every = (
        saliency_maps(member, few, [TARGET] * len(few), "score_cam", top_k=k) for k in (TOP_K, None)
    )
    pairs = zip(some, every, strict=True)
    return groups, [round(rank_correlation(a, b), 4) for a, b in pairs]


def gradient_timers(member: Any, crops: Any) -> list[Timer]:
    """Grad-CAM by the library as its README has it, and by us with and without a backward pass."""
    import torch
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from classify.saliency.hooks import saliency_layer
    from classify.saliency.maps import saliency_maps

    number = len(crops)

    def library(batch: Any) -> None:
        with _as_a_user_has_it(member):
            cam = GradCAM(model=member, target_layers=[saliency_layer(member)])
            cam(input_tensor=batch, targets=[ClassifierOutputTarget(TARGET)] * len(batch))
            cam.activations_and_grads.release()

    def ours(batch: Any, closed_form: bool) -> None:
        saliency_maps(member, batch, [TARGET] * len(batch), closed_form=closed_form)

    def alone(n: int) -> Any:
        return crops[n % number, None]

    def forward(_: int) -> None:
        with torch.inference_mode():
            member(crops)

    many, us = f"Grad-CAM of {number} films", "lungfirst"
    return [
        ("pytorch-grad-cam, Grad-CAM film by film", lambda n: library(alone(n))),
        (f"pytorch-grad-cam, {many}", lambda _: library(crops), number),
        (f"{us}, {many}, backward pass to the layer", lambda _: ours(crops, False), number),
        (f"{us}, Grad-CAM film by film, closed form", lambda n: ours(alone(n), True)),
        (f"{us}, {many}, closed form", lambda _: ours(crops, True), number),
        (f"the member's forward pass alone, {number} films", forward, number),
    ]


def score_timers(member: Any, crops: Any) -> list[Timer]:
    """Score-CAM of one film by the library, by us over all channels, and over the strongest."""
    import torch
    from pytorch_grad_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from classify.saliency.hooks import saliency_layer
    from classify.saliency.maps import saliency_maps
    from classify.saliency.methods import SCORE_BATCH, TOP_K

    def library(n: int) -> None:
        # with the same batch size as ours, and its progress bar out of the way
        with contextlib.redirect_stderr(io.StringIO()):
            cam = ScoreCAM(model=member, target_layers=[saliency_layer(member)])
            cam.batch_size = SCORE_BATCH
            film = crops[n % len(crops), None]
            with torch.inference_mode():
                cam(input_tensor=film, targets=[ClassifierOutputTarget(TARGET)])
            cam.activations_and_grads.release()

    def ours(n: int, top_k: int | None) -> None:
        saliency_maps(member, crops[n % len(crops), None], [TARGET], "score_cam", top_k=top_k)

    return [
        ("pytorch-grad-cam, Score-CAM, all channels", library),
        ("lungfirst, Score-CAM, all channels", lambda n: ours(n, None)),
        (f"lungfirst, Score-CAM, {TOP_K} channels", lambda n: ours(n, TOP_K)),
    ]


@contextlib.contextmanager
def _as_a_user_has_it(member: Any) -> Iterator[None]:
    """Gradients of all parameters wanted, as in a net fresh from its file; gone afterwards."""
    wanted = [(p, p.requires_grad) for p in member.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(True)
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


def vary_films(films: Sequence[Path], folder: Path, number: int) -> list[Path]:
    """So many PNG files, long side 512 px, no two alike: real films by turns with other noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    base = [read_film(path).pixels for path in films]
    base = [Frame.letterbox((p.shape[0], p.shape[1]), 512).apply(p) for p in base]
    paths = []
    for index in range(number):
        film = base[index % len(base)] * 255 + rng.normal(0, 2, base[0].shape)
        paths.append(folder / f"film{index:05d}.png")
        cv2.imwrite(str(paths[-1]), np.clip(film, 0, 255).astype(np.uint8))
    return paths


def source_films(config: BenchmarkConfig) -> list[Path]:
    """Films of the data folder, or the sample chest of pydicom-data where there is none."""
    if Path(config.data).is_dir():
        return list_films([config.data]).films[: config.films]
    from demo import sample_films

    return sample_films()[:1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, write benchmark.json."""
    config = parse_config(
        BenchmarkConfig,
        argv,
        "python tools/benchmark.py",
        "python tools/benchmark.py --films 10 --memory '[]'",
    )
    import torch

    torch.set_num_threads(config.threads)
    workdir = Workdir(config.out)
    workdir.start(to_plain(config))
    films = source_films(config)
    stages, crops = stage_timers(films, config.ensemble)
    groups = [
        time_in_turns(detection_timers(films), len(films)),
        time_in_turns(stages, len(films), ratios=False),
    ]
    correlations: list[float] = []
    if config.saliency_batch:
        more, correlations = saliency_rows(crops, config)
        groups += more
    table = Table("per film", "median ms", "ratio to the first of its kind")
    for group in groups:
        table.add_section()
        for row in group:
            table.add_row(str(row["what"]), f"{row['ms']:.1f}", str(row["ratio"] or ""))
    table.add_section()
    if correlations:
        table.add_row(
            "Score-CAM: rank correlation of its channels' map with all channels' map",
            ", ".join(f"{r:.3f}" for r in correlations),
            "",
        )
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
