"""python tools/fuzz.py: coverage-guided fuzzing of every reader of files that others wrote.

    pip install -e '.[fuzz]'
    python tools/fuzz.py --target film --minutes 20

A find is anything but a sound result or the reader's own refusal: another exception, a crash, more
than 10 s, more than 2 GB. Each lies in OUT/TARGET/finds with its traceback; `--reproduce FILE` does
one of them again.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import re
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.cli import parse_config
from cxr.rules import require_between, require_one_of
from cxr.workdir import console, log

MAX_SEED_BYTES = 40_000
MAX_SECONDS, MAX_MB = 10, 2048
UNSOUND = 99  # exit code of a child that did not come to libFuzzer
OURS = ("cxr", "detect", "classify", "labelling")
MODULES = ("cxr.film", "cxr.dicom", "cxr.manifest", "labelling.formats")
NETWORKS = ("classify.ensemble", "detect.lungfield.field", "detect.predict")
CLASS_NAME = re.compile(r"\b\w+(?:Error|Exception|Warning)\b|\(error\)")
FAULTS = Path(__file__).resolve().parents[2] / "shared" / "faults"
FAR, FILM_HW = "a.png", (96, 72)


class Target(NamedTuple):
    """Bytes of a file → read it from this folder; and what it begins with."""

    read: Callable[[bytes, Path], None]
    seeds: Callable[[Path], Iterator[bytes]]


# --- films ---


def read_film(data: bytes, folder: Path) -> None:
    """As `cxr.film.read_film`, and the film must be one."""
    from cxr.film import read_film

    path = folder / "film"
    path.write_bytes(with_checksums(data))
    pixels = read_film(path).pixels
    assert pixels.ndim == 2 and min(pixels.shape) >= 64 and pixels.dtype == "float32", pixels.shape
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1, (pixels.min(), pixels.max())


def with_checksums(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have; anything else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        out += [data[at:end], zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join(out) + data[at:]


def film_seeds(_: Path) -> Iterator[bytes]:
    """pydicom's own test files as radiographs, in all their syntaxes; one of them as picture; and
    the films with known faults, where they lie beside the project."""
    import pydicom.data
    from PIL import Image

    # not by pydicom's own list, which asks the network for files that are not installed
    folders = [Path(pydicom.data.__file__).parent / "test_files"]
    with contextlib.suppress(ImportError):
        import data_store  # of pydicom-data

        folders.append(Path(data_store.__file__).parent)
    paths = [p for folder in folders for p in folder.rglob("*.dcm")]
    for name in sorted(paths, key=lambda p: (p.name, p)):
        if name.stat().st_size > MAX_SEED_BYTES:
            continue
        with contextlib.suppress(Exception):  # some are broken on purpose: then as they are
            ds = pydicom.dcmread(name, force=True)
            ds.Modality, ds.SOPClassUID = "CR", "1.2.840.10008.5.1.4.1.1.1"
            file = io.BytesIO()
            ds.save_as(file)
            yield file.getvalue()
            continue
        yield name.read_bytes()
    grey = Image.linear_gradient("L").resize((72, 96))
    deep = grey.convert("I;16")
    plain: dict[str, Any] = {}
    ways = ("PNG", plain), ("JPEG", plain), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", plain)
    for image in (grey, deep, grey.convert("RGB"), grey.convert("P"), grey.convert("1")):
        for kind, options in ways:
            with contextlib.suppress(OSError):  # no JPEG of 16 bits
                file = io.BytesIO()
                image.save(file, kind, **options)
                yield file.getvalue()
    for path in sorted(FAULTS.glob("*/*.*")):
        if path.suffix not in (".json", ".md") and path.stat().st_size <= MAX_SEED_BYTES:
            yield path.read_bytes()


# --- tables and labels ---


def read_manifest(data: bytes, folder: Path) -> None:
    from cxr.manifest import read_manifest

    path = folder / "manifest.jsonl"
    path.write_bytes(data)
    _, rows = read_manifest(path)
    for row in rows:
        if row.readable:
            row.to_frame()


def manifest_seeds(folder: Path) -> Iterator[bytes]:
    from cxr.boxes import Frame
    from cxr.manifest import CropRow, ManifestWriter

    frame = Frame.cut((10, 12, 60, 80))
    box = {"thorax_xyxy": (12.5, 14.0, 58.0, 78.0), "crop_xyxy": frame.source_xyxy}
    known: dict[str, Any] = {"size_hw": FILM_HW, "score": 0.9, "frame": frame.to_dict(), **box}
    with ManifestWriter(folder / "manifest.jsonl", {"settings": {"margin": 0.05}}) as book:
        book.add(CropRow(FAR, "0" * 64, "ok", crop="0.png", **known))
        book.add(CropRow("b.png", "1" * 64, "unreadable", "truncated: The PNG breaks off."))
    yield (folder / "manifest.jsonl").read_bytes()


def reader_of(name: str) -> Callable[[bytes, Path], None]:
    """Label files of this format, of one known film; YOLO's classes follow on a zero byte."""

    def read(data: bytes, folder: Path) -> None:
        from labelling.formats import FORMATS
        from labelling.label_files import ReadRules

        labels, _, classes = data.partition(b"\0") if name == "yolo" else (data, b"", b"")
        path = folder / f"{name}{SUFFIXES[name]}"
        path.write_bytes(labels)
        if name == "yolo":
            path = path.replace(folder / "a.txt")
            (folder / "data.yaml").write_bytes(classes)
        for known in ({FAR: FILM_HW}, None):
            if known or name != "yolo":
                rules = ReadRules(hull=True, known=known)
                coco, unusable = FORMATS[name].read(path, None, rules)
                assert len(coco.films) + len(unusable) or name == "coco"

    return read


SUFFIXES = {"coco": ".json", "labelme": ".json", "voc": ".xml", "yolo": ".txt"}


def seeds_of(name: str) -> Callable[[Path], Iterator[bytes]]:
    """What our own writer of the format makes of two films, one without a box."""

    def seeds(folder: Path) -> Iterator[bytes]:
        from cxr.boxes import as_boxes
        from cxr.coco import CocoFilm, CocoSet
        from labelling.formats import FORMATS

        extra = {"patient_id": "p1", "flags": ["lateral"], "prelabelled": True}
        boxes = as_boxes([(8.0, 9.5, 60.25, 80.0), (1, 1, 9, 9)])
        films = [CocoFilm(FAR, FILM_HW, boxes, (0, 1), extra)]
        films.append(CocoFilm("b.png", FILM_HW, as_boxes([]), ()))
        out = folder / f"written_{name}"
        paths = FORMATS[name].write(CocoSet(films, ("thorax", "lung")), out)
        classes = b"\0" + (out / "data.yaml").read_bytes() if name == "yolo" else b""
        for path in paths:
            yield path.read_bytes() + classes
        if name == "yolo":
            yield b"0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n\0names: {0: thorax, 1: lung}\n"

    return seeds


# --- weights ---


def read_bundle(data: bytes, folder: Path) -> None:
    """A weights file through its loader. Data that begin as JSON are the metadata of a file without
    weights: random bytes would hardly ever come past the header."""
    from safetensors.numpy import save

    from cxr.bundle import bundle_kind, load_bundle

    path = folder / "weights.safetensors"
    if data[:1] == b"{":
        data = save({}, metadata={"lungfirst": data.decode("utf-8", "replace")})
    path.write_bytes(data)
    kind = bundle_kind(path)
    if kind in ("thorax", "lungfield"):
        from detect.lungfield.field import LungField
        from detect.predict import ThoraxDetector

        (ThoraxDetector if kind == "thorax" else LungField).load(path, "cpu")
    elif kind in ("member", "single"):
        from classify.ensemble import Ensemble

        Ensemble.load(folder, "cpu")
    elif kind == "pretrained":
        from classify.ensemble import load_pretrained

        load_pretrained(path)
    else:
        load_bundle(path, "thorax")


def bundle_seeds(folder: Path) -> Iterator[bytes]:
    """The metadata of the shipped weights, and a small whole file."""
    import torch
    from safetensors import safe_open

    from cxr.bundle import save_bundle

    used = ["schema", "version", "kind", "model", "network", "classes", "preprocessing"]
    used += ["operating_point", "target", "order", "decoder", "trained_on", "family"]
    for path in sorted((Path(__file__).resolve().parents[1] / "weights").rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["lungfirst"])
        yield json.dumps({k: meta[k] for k in used if k in meta}).encode()
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    yield save_bundle(folder / "x", "thorax", tensors, model={"side": 320}).read_bytes()


TARGETS = {
    "film": Target(read_film, film_seeds),
    "manifest": Target(read_manifest, manifest_seeds),
    **{name: Target(reader_of(name), seeds_of(name)) for name in SUFFIXES},
    "bundle": Target(read_bundle, bundle_seeds),
}


# --- the command ---


@dataclass(frozen=True)
class FuzzConfig:
    """Fuzz one reader, or do one find again.

    Args:
        target: film, manifest, coco, labelme, voc, yolo or bundle.
        minutes: how long; a corpus of before is gone on with.
        out: folder for corpora and finds.
        seed: of libFuzzer's random numbers; 0 takes another one each time.
        reproduce: a find to be read again, in place of fuzzing; its traceback is shown.
    """

    target: str = "film"
    minutes: float = 20
    out: str = "runs/fuzz"
    seed: int = 0
    reproduce: str = ""

    def __post_init__(self) -> None:
        require_one_of(self, target=tuple(TARGETS))
        require_between(self, minutes=(0, 10_000))


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 without finds, 1 with some, 2 where it cannot run."""
    example = "python tools/fuzz.py --target film --minutes 20"
    config = parse_config(FuzzConfig, argv, example)
    target = TARGETS[config.target]
    if config.reproduce:
        with tempfile.TemporaryDirectory() as folder:
            error = find(target, Path(config.reproduce).read_bytes(), Path(folder))
        said = "".join(traceback.format_exception(error)) if error else "no find"
        console.print(said, markup=False, highlight=False)
        return int(bool(error))
    try:
        import atheris
    except ImportError:
        log.error("Fuzzing needs atheris (Linux): pip install -e '.[fuzz]'")
        return 2
    out = Path(config.out) / config.target
    (out / "finds").mkdir(parents=True, exist_ok=True)
    count = mmap.mmap(-1, 8)  # executions, counted across children
    end, begun = time.monotonic() + 60 * config.minutes, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lungfirst-fuzz-") as folder:
        while (left := end - time.monotonic()) > 1:
            child = os.fork()  # libFuzzer ends its process with a crash, a hang, or the time
            if not child:
                with (out / "log.txt").open("ab") as errors:
                    os.dup2(errors.fileno(), 2)
                try:
                    fuzz(atheris, config, Path(folder), int(left) + 1, count)
                finally:
                    traceback.print_exc()
                    os._exit(UNSOUND)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == UNSOUND:
                log.error("fuzzing did not begin: see %s", out / "log.txt")
                return 2
    finds = sorted(p.name for p in (out / "finds").iterdir() if p.suffix != ".txt")
    minutes = (time.monotonic() - begun) / 60
    corpus = sum(1 for _ in (out / "corpus").iterdir())
    runs = int.from_bytes(count[:8], "little")
    console.print(f"{config.target}: {minutes:.1f} min, {runs} executions, corpus of {corpus}")
    for name in finds:
        command = f"python tools/fuzz.py --target {config.target} --reproduce"
        console.print(f"  {command} {out / 'finds' / name}", soft_wrap=True, highlight=False)
    return int(bool(finds))


def find(target: Target, data: bytes, folder: Path) -> Exception | None:
    """What the reader must not raise; None for a sound result or a refusal."""
    from cxr.film import FilmError
    from labelling.label_files import LabelError

    try:
        target.read(data, folder)
    except Exception as error:
        refused = type(error) in (ValueError, FilmError, LabelError)  # not what derives from them
        return None if refused and not CLASS_NAME.search(str(error)) else error
    return None


def save_find(folder: Path, error: Exception, data: bytes) -> None:
    """Keep it under its kind and place, unless a shorter one is there."""
    origin: BaseException = error
    while origin.__cause__:
        origin = origin.__cause__
    last = traceback.extract_tb(origin.__traceback__)[-1]
    path = folder / f"{type(origin).__name__}-{Path(last.filename).stem}-{last.lineno}"
    if not path.exists() or path.stat().st_size > len(data):
        path.write_bytes(data)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))


def fuzz(
    atheris: ModuleType, config: FuzzConfig, folder: Path, seconds: int, count: mmap.mmap
) -> None:
    """Fuzz in this process, which libFuzzer ends."""
    target, out = TARGETS[config.target], Path(config.out) / config.target
    with atheris.instrument_imports(include=[*OURS, "pydicom"]):
        for module in MODULES + NETWORKS * (config.target == "bundle"):
            import_module(module)
    label_files: Any = sys.modules["labelling.label_files"]
    label_files.track = lambda items, *_, **__: items  # no bar, which takes a thread
    corpus = out / "corpus"
    if not corpus.exists():
        seeds = list(target.seeds(folder))
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / f"seed{number:03d}").write_bytes(seed)

    def one(data: bytes) -> None:
        count[:8] = (int.from_bytes(count[:8], "little") + 1).to_bytes(8, "little")
        if error := find(target, data, folder):
            save_find(out / "finds", error, data)

    rules = [f"-max_total_time={seconds}", f"-timeout={MAX_SECONDS}", f"-rss_limit_mb={MAX_MB}"]
    rules += [f"-max_len={MAX_SEED_BYTES}", f"-seed={config.seed}"]
    rules += [f"-artifact_prefix={out / 'finds'}/", "-verbosity=0"]
    atheris.Setup(["fuzz", *rules, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    raise SystemExit(main())
