"""The whole way in processes of their own: its time beside that of the networks alone, time and
memory over many films, workers, and whether engines decide alike."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import imagecodecs
import numpy as np
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from classify.exported import open_ensemble
from classify.judge import find_ensembles
from classify.predictions import read_predictions
from cxr.boxes import Frame
from cxr.draw import new_figure, write_figure
from cxr.engines import OnnxNet, is_there
from cxr.film import read_film
from detect.finder import ThoraxFinder, refit
from detect.predict import prepare_film

ROOT = Path(__file__).resolve().parent.parent.parent
_PROGRAM = (
    "import pathlib, sys; from classify.run import main; code = main(sys.argv[1:]);"
    "status = pathlib.Path('/proc/self/status').read_text();"
    "print('PEAK', status.split('VmHWM:')[1].split()[0]);"  # not ru_maxrss: it starts with ours
    "sys.exit(code)"
)


ENGINES = {
    "torch": ("torch", "fp32"),
    "torch, bf16": ("torch", "bf16"),
    "ONNX Runtime": ("onnx", "fp32"),
    "OpenVINO": ("openvino", "fp32"),
    "OpenVINO, bf16": ("openvino", "bf16"),
}


def installed_engines(bf16: bool = True) -> dict[str, tuple[str, str]]:
    """ENGINES that are there, torch first; with bf16, or without."""
    ways = {name: way for name, way in ENGINES.items() if bf16 or way[1] == "fp32"}
    return {name: way for name, way in ways.items() if is_there(way[0])}


class Done(NamedTuple):
    """Seconds of a run, from the start of its process, its own peak memory, and the seconds that
    processors worked for it, which neighbours hardly change."""

    seconds: float
    mib: float
    worked: float

    def row(self, films: int) -> dict[str, float]:
        """What a table tells of a run over so many films."""
        each = {"ms": self.seconds, "worked_ms": self.worked}
        return {k: round(v / films * 1e3, 1) for k, v in each.items()} | {"mib": round(self.mib)}


def run_over(films: Path | Sequence[str], out: Path, *options: str) -> Done:
    """python -m classify.run in a process of its own; raises RuntimeError where it fails."""
    named = [str(films)] if isinstance(films, Path) else list(films)
    command = [sys.executable, "-c", _PROGRAM, *named, "--out", str(out), *options]
    began, before = time.perf_counter(), _worked()
    done = subprocess.run(  # noqa: S603 - our own program
        command, capture_output=True, text=True, cwd=ROOT, check=False
    )
    seconds = time.perf_counter() - began
    peaks = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("PEAK")]
    if not peaks:
        raise RuntimeError(f"the run over {films} failed:\n{done.stderr[-2000:]}")
    return Done(seconds, int(peaks[-1]) / 1024, _worked() - before)


def _worked() -> float:
    """Seconds of processors in all processes that this one has started and that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def vary_films(films: Sequence[Path], folder: Path, number: int, start: int = 0) -> None:
    """So many JPEG files, long side 512 px, no two alike: real films by turns with other noise;
    `start` goes on from an earlier call."""
    folder.mkdir(parents=True, exist_ok=True)
    base = [read_film(path).pixels for path in films]
    base = [Frame.letterbox((p.shape[0], p.shape[1]), 512).apply(p) for p in base]
    for index in range(start, number):
        rng = np.random.default_rng(index)
        own = base[index % len(base)]
        film = own * 255 + rng.normal(0, 2, own.shape)
        cv2.imwrite(str(folder / f"film{index:05d}.jpg"), np.clip(film, 0, 255).astype(np.uint8))


def large_dicom(films: Sequence[Path], folder: Path, number: int, side: int = 2650) -> None:
    """So many DICOM films of 7 megapixels and 12 bits, a quarter each uncompressed, RLE, lossless
    JPEG and JPEG 2000: real films, enlarged, with noise."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = (ExplicitVRLittleEndian, RLELossless, JPEGLosslessSV1, JPEG2000Lossless)
    for index in range(number):
        small = read_film(films[index % len(films)]).pixels
        large = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
        noise = np.random.default_rng(index).normal(0, 8, large.shape)
        words = np.clip(np.rint(large * 4000 + noise), 0, 4095).astype(np.uint16)
        _write_dicom(words, folder / f"film{index:03d}.dcm", kinds[index % len(kinds)])


def _write_dicom(words: np.ndarray, path: Path, syntax: Any) -> None:
    ds = Dataset()
    ds.ensure_file_meta()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = generate_uid()
    ds.Modality, ds.PresentationIntentType, ds.BodyPartExamined = "DX", "FOR PRESENTATION", "CHEST"
    ds.Rows, ds.Columns = words.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = words.tobytes()
    ds["PixelData"].VR = "OW"
    encoders = {
        JPEGLosslessSV1: lambda: imagecodecs.ljpeg_encode(words, bitspersample=12),
        JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(
            words, codecformat="j2k", reversible=True, level=0
        ),
    }
    if syntax == RLELossless:
        ds.compress(RLELossless)
    elif syntax in encoders:
        ds.PixelData = encapsulate([bytes(encoders[syntax]())])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)


def forward_ms(films: Sequence[Path], ensembles: Sequence[Path], engine: str) -> float:
    """Milliseconds a film of all networks' forward passes alone, on what they are given: detector,
    lung field with the view's head, and the members of each ensemble."""
    finder = ThoraxFinder.load(device="cpu", engine=engine)
    assert finder.field is not None and finder.views is not None
    pixels = [read_film(path).pixels for path in films]
    prepared = [prepare_film(p, finder.detector.config.side) for p in pixels]
    fields = np.stack([refit(*both, finder.field.side)[0] for both in prepared])
    canvases = np.stack([canvas for canvas, _ in prepared])
    seen = finder.field.look(list(fields))[1]
    members = [open_ensemble(folder, engine, "fp32", "cpu") for folder in ensembles]
    jobs: list[tuple[Any, np.ndarray]] = [
        (finder.detector.exported, canvases),
        (finder.field.exported, fields),
        (finder.views.head, seen),
        *((net, own.prepare(pixels)[0]) for own in members for net in own.nets),
    ]
    taken = []
    for _ in range(7):
        began = time.perf_counter()
        for net, given in jobs:
            assert isinstance(net, OnnxNet)
            net.run(given)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[1:])) / len(pixels) * 1e3


def whole_rows(films: Sequence[Path], number: int, dicom: int) -> Iterator[dict[str, Any]]:
    """The run with all that it does, cold start included, over so many JPEG and large DICOM films,
    beside the networks' own time."""
    ensembles = find_ensembles(ROOT / "weights", "crops")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        vary_films(films, place / "eight", 8)
        vary_films(films, place / "jpeg", number)
        large_dicom(films, place / "dicom", dicom)
        eight = sorted((place / "eight").iterdir())
        engines = {e: forward_ms(eight, ensembles, e) for e in ("onnx", "openvino") if is_there(e)}
        best = min(engines, key=engines.__getitem__)
        for name, count in (("jpeg", number), ("dicom", dicom)):
            if not count:
                continue
            for saliency in ("true", "false"):
                options = ("--crops", "--saliency", saliency)
                done = run_over(place / name, place / f"{name}_{saliency}", *options)

                yield {
                    "films": f"{count} {name}",
                    "saliency": saliency,
                    **done.row(count),
                    "forward_ms": round(engines[best], 1),
                    "forward_by": best,
                    "ratio": round(done.seconds / count * 1e3 / engines[best], 2),
                }


def growth_rows(
    films: Sequence[Path], numbers: Sequence[int], ensemble: str
) -> Iterator[dict[str, Any]]:
    """Seconds and peak memory of the whole way over so many films, and the size of its page."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for k, number in enumerate(sorted(numbers)):
            start = sorted(numbers)[k - 1] if k else 0
            vary_films(films, place / "films", number, start)  # the earlier ones stay
            options = ("--crops", "--ensemble", ensemble, "--jobs", "0")
            done = run_over(place / "films", place / f"run{number}", *options)
            page = (place / f"run{number}/report.html").stat().st_size
            pages = len(list((place / f"run{number}").glob("report/*.html")))
            yield {
                "films": number,
                "seconds": round(done.seconds, 1),
                **done.row(number),
                "page_mb": round(page / 1e6, 1),
                "pages": pages + 1,
            }


def draw_growth(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds of processors and peak memory over the number of films."""
    films = [row["films"] for row in rows]
    figure = new_figure(9, 3.4)
    axes = figure.subplots(1, 2)
    seconds = [row["worked_ms"] * row["films"] / 1e3 for row in rows]
    axes[0].loglog(films, seconds, "o-")
    slope = seconds[-1] / films[-1]
    axes[0].loglog(films, [slope * n for n in films], "--", color="0.6", label="in proportion")
    axes[0].set(xlabel="films", ylabel="seconds of processors")
    axes[0].legend(frameon=False)
    peaks = [row["mib"] for row in rows]
    axes[1].semilogx(films, peaks, "o-")
    axes[1].set(xlabel="films", ylabel="peak memory, MiB", ylim=(0, 1.15 * max(peaks)))
    write_figure(figure, path, dpi=120)


def worker_rows(films: Sequence[Path], number: int) -> Iterator[dict[str, Any]]:
    """The whole way by one and by two workers of a core each; the time a film from what more
    films take than a third of them, so that starting the cluster does not count."""
    with tempfile.TemporaryDirectory() as folder:
        place, first = Path(folder), 0.0
        vary_films(films, place / "some", number // 3)
        vary_films(films, place / "all", number)
        for many in (1, 2):
            options = ("--crops", "--workers", f"ray:{many}")
            some, every = (
                run_over(place / name, place / f"{name}{many}", *options).seconds
                for name in ("some", "all")
            )
            each = (every - some) / (number - number // 3)
            first = first or each
            yield {
                "workers": many,
                "ms": round(each * 1e3, 1),
                "seconds": round(every, 1),
                "efficiency": round(first / each / many, 3),
            }


def decision_rows(
    films: Sequence[str], ways: dict[str, tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """What each engine decides of films, against torch: films whose decision or tier differs, by
    name, and the largest difference of a logit."""
    with tempfile.TemporaryDirectory() as folder:
        first: dict[str, Any] = {}
        for k, (name, (engine, precision)) in enumerate(ways.items()):
            out = Path(folder) / str(k)
            options = ["--crops", "--saliency", "false", "--engine", engine]
            run_over(films, out, *options, "--precision", precision, "--device", "cpu")
            found = {r.film: r for r in read_predictions(out / "predictions.csv")[1]}
            first = first or found
            pairs = [(first[film], row) for film, row in found.items()]
            apart = [
                float(np.nanmax(np.abs(a.logits - b.logits)))
                for a, b in pairs
                if a.logits is not None and b.logits is not None and a.ensemble == b.ensemble
            ]
            kinds = ("decision", "tier", "status")
            yield {
                "engine": name,
                "films": len(found),
                **{k: [b.film for a, b in pairs if getattr(a, k) != getattr(b, k)] for k in kinds},
                "logit": round(max(apart, default=0.0), 5),
            }
