"""python tests/hostile.py: films that mean harm, made from a seed, read one by one.

    python tests/hostile.py --count 10000 --out runs/hostile

Each goes through the reader of a run in another process, with its seconds and its peak memory; a
part of the folder then goes through detect.crop. What must not happen is listed, and the exit code
is 1: a crash, a refusal without a true reason or with an exception's name, a film that is none,
more than 10 s, more than 2 GB, a row that is missing.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pydicom
from dicom_films import DEFLATED, EXPLICIT, IMPLICIT, RLE, compressed, film, jpeg, ramp, written
from fuzz import CLASS_NAME, FAULTS, film_seeds, with_checksums
from PIL import Image

from cxr.film import Film
from cxr.notes import REASONS
from cxr.stream import read_or_say_why

ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS, MAX_MB, GIVE_UP_S = 10.0, 2048.0, 60.0
SYNTAXES = (
    *(IMPLICIT, EXPLICIT, DEFLATED, RLE, "1.2.840.10008.1.2.2"),
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 100, 201)),
)
SIZES = (0, 1, 63, 64, 97, 4096, 8945, 60_000, 65_535)
NUMBERS = (0, -1, 1, 7, 8, 15, 16, 17, 31, 255, 32_768, 65_535, 2**31, 1e308, 1e-308, math.nan)
VALUES: dict[str, Sequence[Any]] = {  # what a header may claim
    **dict.fromkeys(("Rows", "Columns"), SIZES),
    **dict.fromkeys(("BitsAllocated", "BitsStored", "HighBit"), (0, 1, 7, 8, 12, 15, 16, 32, 64)),
    "PixelRepresentation": (0, 1, 2, 65_535),
    "SamplesPerPixel": (0, 1, 2, 3, 4, 65_535),
    "PlanarConfiguration": (0, 1, 2),
    "PhotometricInterpretation": (
        *("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR"),
        *("", "monochrome2 ", "YBR_RCT", "HSV", "\0"),
    ),
    "NumberOfFrames": ("0", "1", "2", "1000000000", "-1", "1A", ""),
    "Modality": ("CR", "DX", "CT", "", "SR", "CR\\DX", "\0", "<b>"),
    **dict.fromkeys(("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"), NUMBERS),
    **dict.fromkeys(("PixelPaddingValue", "PixelPaddingRangeLimit"), (0, 1, 65_535)),
    **dict.fromkeys(("PixelSpacing", "ImagerPixelSpacing"), ("0\\0", "x", "-1\\1", "1e-9\\9", "1")),
    "SpecificCharacterSet": ("ISO_IR 192", "bogus", "\0", "ISO 2022 IR 87\\x", ""),
    "PresentationLUTShape": ("IDENTITY", "INVERSE", "x"),
    "VOILUTFunction": ("LINEAR", "SIGMOID", "LINEAR_EXACT", "x"),
    "PatientID": ("Doe^Jane", "\0", "x" * 5000),
    "StudyInstanceUID": ("1.2", "x", ""),
}
NAMES = (  # each is made unlike the others by a number in front
    *("a\nb.dcm", "a\rb.png", "\"'`;$(x)&.dcm", "<img src=x onerror=alert(1)>.png", "=1+1,2.dcm"),
    *("[red]x.dcm", "ü\u202e\u2028.png", " lead and trail ", "x" * 246 + ".dcm", "%s%n{0}.dcm"),
    os.fsdecode(b"\xff\xfe\x80.dcm"),
)


class Hostile(NamedTuple):
    """A file to be made: what was done to it, its name, its bytes."""

    kind: str
    name: str
    data: bytes


class Read(NamedTuple):
    """What became of a file: a reason or "film", the sentence, seconds of a processor, peak MB."""

    kind: str
    name: str
    outcome: str
    sentence: str
    seconds: float
    peak_mb: float
    fault: str


# --- making ---


def make(number: int, seed: int = 0) -> Hostile:
    """The hostile file of this number, the same each time."""
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < 0.04:
        kind, data = rng.choice(bombs())
    else:
        data = rng.choice(large() if rng.random() < 0.02 and large() else small())
        ways = [flip, cut, splice]
        if data[128:132] == b"DICM":
            ways += [element, value, value, value, syntax]
        elif data.startswith(b"\x89PNG"):
            ways += [png]
        elif data.startswith((b"\xff\xd8", b"II", b"MM")):
            ways += [number_in_header]
        way = rng.choice(ways)
        kind, data = way.__name__, way(data, rng)
        if rng.random() < 0.1:  # twice is worse
            data = rng.choice([flip, cut, splice])(data, rng)
    if rng.random() < 0.05:
        return Hostile(f"{kind}, odd name", f"{number:05d}{rng.choice(NAMES)}", data)
    return Hostile(kind, f"{number:05d}.{'dcm' if data[128:132] == b'DICM' else 'png'}", data)


@cache
def small() -> list[bytes]:
    """Sound or nearly sound files to begin with, up to 40 kB."""
    return list(film_seeds(Path()))


@cache
def large() -> list[bytes]:
    """Real films, where they lie beside the project."""
    folders = (FAULTS.parent / "data" / "dicom").glob("*.dcm"), FAULTS.glob("*/*.*")
    paths = [p for f in folders for p in sorted(f) if 40_000 < p.stat().st_size < 12 << 20]
    return [p.read_bytes() for p in paths]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Bits turned over; more often at the beginning, where the headers are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 5, 20, 100))):
        if out:
            end = min(len(out), 1500) if rng.random() < 0.6 else len(out)
            out[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end, or the beginning, is missing."""
    at = rng.randrange(len(data) + 1)
    return data[:at] if rng.random() < 0.8 else data[at:]


def splice(data: bytes, rng: random.Random) -> bytes:
    """A part taken out, doubled, made of one byte, or put from another file."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 2, 4, 8, 64, 1000, 10_000)))
    part = data[start:end]
    other = rng.choice(small())
    filled = bytes([rng.choice((0, 255, 65))]) * len(part)
    middle = rng.choice((b"", part * 2, filled, other[: len(part)], other))
    return data[:start] + middle + data[end:]


def element(data: bytes, rng: random.Random) -> bytes:
    """A tag, a value representation or a length of the header is another one."""
    places = list(_elements(data)) or [132]
    at = rng.choice(places)
    out = bytearray(data)
    tag = rng.choice((0, 8, 0x28, 0x7FE0, 0xFFFE)), rng.randrange(65_536)
    kinds = b"OB", b"OW", b"SQ", b"UN", b"US", b"DS", b"\0\0", b"U\xbb"
    lengths = 0, 1, 3, 255, 65_534, 65_535
    what = rng.randrange(3)
    if what == 0:
        out[at : at + 4] = struct.pack("<HH", *tag)
    elif what == 1:
        out[at + 4 : at + 6] = rng.choice(kinds)
    else:
        out[at + 6 : at + 8] = struct.pack("<H", rng.choice(lengths))
    return bytes(out)


def _elements(data: bytes) -> Iterator[int]:
    """Where the elements of an explicit little-endian data set begin."""
    at = 132
    while at + 12 <= len(data):
        yield at
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF")
        size = struct.unpack_from("<I" if long else "<H", data, at + (8 if long else 6))[0]
        at += (12 if long else 8) + (0 if size == 0xFFFFFFFF else size)


def value(data: bytes, rng: random.Random) -> bytes:
    """One to four elements of the header claim something else, or are gone."""
    try:
        ds = pydicom.dcmread(io.BytesIO(data), force=True)
        for keyword in rng.sample(sorted(VALUES), rng.choice((1, 1, 2, 4))):
            new = rng.choice(VALUES[keyword])
            if rng.random() < 0.1:
                ds.pop(keyword, None)
            elif isinstance(new, float):
                setattr(ds, keyword, str(new)[:16])
            else:
                setattr(ds, keyword, new)
        file = io.BytesIO()
        ds.save_as(file)
        return file.getvalue()
    except Exception:  # pydicom will not write that: then bits
        return flip(data, rng)


def syntax(data: bytes, rng: random.Random) -> bytes:
    """The transfer syntax is said to be another one."""
    at = data.find(b"\x02\0\x10\0UI")
    if at < 0:
        return flip(data, rng)
    size = struct.unpack_from("<H", data, at + 6)[0]
    new = rng.choice((*SYNTAXES, "1.2.3", "", "nonsense")).encode()[:size].ljust(size, b"\0")
    return data[: at + 8] + new + data[at + 8 + size :]


def png(data: bytes, rng: random.Random) -> bytes:
    """The header's numbers, or a chunk, with checksums that are right."""
    out = bytearray(data)
    if rng.random() < 0.5:
        field, size = rng.choice(((16, 4), (20, 4), (24, 1), (25, 1), (26, 1), (27, 1), (28, 1)))
        new = rng.choice((0, 1, 2, 3, 4, 5, 8, 16, 64, 255, 60_000, 2**31 - 1, 2**32 - 1))
        out[field : field + size] = (new % 256**size).to_bytes(size, "big")
        return with_checksums(bytes(out))
    return with_checksums(flip(data, rng))


def number_in_header(data: bytes, rng: random.Random) -> bytes:
    """Two or four bytes of a JPEG's or TIFF's header become another number."""
    out = bytearray(data)
    at, size = rng.randrange(2, min(len(out), 700)), rng.choice((2, 4))
    new = rng.choice((0, 1, 255, 32_768, 60_000, 65_535, 2**31, 2**32 - 1)) % 256**size
    out[at : at + size] = new.to_bytes(size, rng.choice(("big", "little")))
    return bytes(out)


@cache
def bombs() -> list[tuple[str, bytes]]:
    """Small files that ask for a lot."""
    out: list[tuple[str, bytes]] = []
    for size in ((60_000, 60_000), (65_535, 65_535), (65_535, 64)):
        claims = {"Rows": size[0], "Columns": size[1]}
        files = [written(film(ramp(), **claims), s) for s in (EXPLICIT, IMPLICIT)]
        files += [compressed(film(ramp(), **claims), bytes(900), s) for s in SYNTAXES[3:]]
        out += [("bomb: pixels", data) for data in files]
    for frames in ("1000000000", "2147483647", "99999999999999999999"):
        out.append(("bomb: frames", written(film(ramp(), NumberOfFrames=frames))))
    out.append(("bomb: deflate", _deflate_bomb()))
    for side in (60_000, 8_900, 2**31 - 1):
        out.append(("bomb: png", _png(side, zlib.compress(bytes(1 << 26)))))
    head = bytearray(jpeg(ramp(8)))
    at = head.find(b"\xff\xc0")
    head[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    out.append(("bomb: jpeg", bytes(head)))
    claims = {"Rows": 60_000, "Columns": 60_000}
    out.append(("bomb: jpeg", compressed(film(ramp(8), 8, **claims), bytes(head), SYNTAXES[5])))
    for width, rows_per_strip in ((60_000, 60_000), (60_000, 1)):
        out.append(("bomb: tiff", _tiff(width, rows_per_strip)))
    nested = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    sound = written(film(ramp()))
    for depth in (500, 20_000):
        deep = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + nested * depth
        out.append(("bomb: nesting", sound[: sound.find(b"\x08\0\x60\0CS")] + deep))
    at = sound.find(b"\xe0\x7f\x10\0OW")
    out.append(("bomb: length", sound[: at + 8] + b"\xfe\xff\xff\xff" + sound[at + 12 :]))
    plain = io.BytesIO()
    Image.fromarray(ramp(8)).save(plain, "PNG")
    text = zlib.compress(bytes(1 << 26))
    chunk = struct.pack(">I", len(text) + 3) + b"zTXta\0\0" + text + bytes(4)
    png = plain.getvalue()
    out.append(("bomb: png text", with_checksums(png[:33] + chunk + png[33:])))
    return out


def largest() -> Iterator[tuple[str, bytes]]:
    """Sound films of as many pixels as are let in, small as files."""
    side = 8944
    for channels, colour in ((1, 0), (3, 2)):
        row = bytes(1) + (np.arange(side * channels) % 251).astype(np.uint8).tobytes()
        yield "largest: png", _png(side, zlib.compress(row * side, 1), colour)
    stored = np.tile((np.arange(side) % 4096).astype(np.uint16), (side, 1))
    yield "largest: dicom", written(film(stored, PixelSpacing=[0.1, 0.2]), DEFLATED)


def _deflate_bomb() -> bytes:
    head = written(film(ramp()), DEFLATED)
    end = 144 + struct.unpack_from("<I", head, 140)[0]
    packer = zlib.compressobj(9, wbits=-15)
    body = packer.compress(zlib.decompress(head[end:], -15))
    for _ in range(24):
        body += packer.compress(bytes(1 << 24))
    return head[:end] + body + packer.flush()


def _png(side: int, body: bytes, colour: int = 0) -> bytes:
    head = struct.pack(">II5B", side, side, 8, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(d)) + k + d + bytes(4) for k, d in chunks)
    return with_checksums(b"\x89PNG\r\n\x1a\n" + data)


def _tiff(side: int, rows_per_strip: int) -> bytes:
    strips = side // rows_per_strip
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, strips, 8), (277, 3, 1, 1), (278, 4, 1, rows_per_strip), (279, 4, strips, 8)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + body + bytes(4) + bytes(4 * 60_000)


# --- reading ---


def read_all(files: Sequence[tuple[str, Path]], jobs: int) -> list[Read]:
    """Each (kind, path) read in one of `jobs` processes; one that dies is put right and named."""
    parts = [files[k::jobs] for k in range(jobs)]
    with ThreadPoolExecutor(jobs) as threads:
        read = [r for part in threads.map(lambda p: list(_read_part(p)), parts) for r in part]
    return sorted(read, key=lambda r: r.name)


def _read_part(files: Sequence[tuple[str, Path]]) -> Iterator[Read]:
    child: tuple[Any, Connection] | None = None
    for kind, path in files:
        child = child or _start()
        process, pipe = child
        pipe.send(str(path))
        try:
            late = not pipe.poll(GIVE_UP_S)
            answer = None if late else pipe.recv()
        except (EOFError, OSError):
            late, answer = False, None
        if answer is None:
            process.kill()
            process.join()
            fault = "hung" if late else f"crashed the process ({process.exitcode})"
            yield Read(kind, path.name, "lost", "", GIVE_UP_S, 0.0, fault)
            child = None
        else:
            yield Read(kind, path.name, *answer)
    if child:
        child[1].send("")
        child[0].join()


def _start() -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _serve(pipe: Connection) -> None:
    while path := pipe.recv():
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        begun = time.process_time()
        found = read_or_say_why(path)
        seconds = time.process_time() - begun
        status = Path("/proc/self/status").read_text()
        peak_mb = int(status.split("VmHWM:")[1].split()[0]) / 1024
        if isinstance(found, Film):
            outcome, sentence = "film", ""
        else:
            outcome, sentence = found.reason, found.sentence
        pipe.send((outcome, sentence, seconds, peak_mb, complaint(found, seconds, peak_mb)))


def complaint(found: Any, seconds: float, peak_mb: float) -> str:
    """What must not be; "" when all is well."""
    if seconds > MAX_SECONDS:
        return f"took {seconds:.1f} s"
    if peak_mb > MAX_MB:
        return f"took {peak_mb:.0f} MB"
    if isinstance(found, Film):
        pixels = found.pixels
        right = pixels.ndim == 2 and min(pixels.shape) >= 64 and pixels.dtype == np.float32
        right = right and bool(np.isfinite(pixels).all())
        right = right and 0 <= float(pixels.min()) < float(pixels.max()) <= 1
        return "" if right else f"is no film: {pixels.shape} {pixels.dtype}"
    return fault_of_reason(found.reason, found.sentence)


def fault_of_reason(reason: str, sentence: str) -> str:
    """What is wrong with a refusal; "" for one as it should be."""
    if reason not in REASONS:
        return f"has no true reason: {reason}: {sentence}"
    if CLASS_NAME.search(sentence):
        return f"names an exception: {sentence}"
    return "" if sentence.endswith(".") and len(sentence) > 15 else f"says too little: {sentence!r}"


def faults_of_manifest(path: Path, films: Sequence[Path]) -> list[str]:
    """What is wrong with the rows of these films."""
    from cxr.manifest import read_manifest

    rows = {row.film: row for row in read_manifest(path)[1]}
    faults = [f"{f.name!r} has no row" for f in films if f.as_posix() not in rows]
    for row in rows.values():
        if row.status == "unreadable":
            reason, _, sentence = row.reason.partition(": ")
            if fault := fault_of_reason(reason, sentence):
                faults.append(f"{Path(row.film).name!r} {fault}")
    return faults


# --- the command ---


def write(out: Path, numbers: Sequence[int], seed: int) -> list[tuple[str, Path]]:
    """The files of these numbers in a folder; (kind, path) of each."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for number in numbers:
        one = make(number, seed)
        (out / one.name).write_bytes(one.data)
        made.append((one.kind, out / one.name))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="files to make")
    parser.add_argument("--crop", type=int, default=400, help="of these through detect.crop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="kept there; without it a temporary folder")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        made = write(out / "films", range(args.count), args.seed)
        for number, (kind, data) in enumerate(largest()):
            made.append((kind, out / f"films/largest{number}"))
            made[-1][1].write_bytes(data)
        read = read_all(made, args.jobs)
        with (out / "read.jsonl").open("w") as file:
            file.writelines(json.dumps(r._asdict()) + "\n" for r in read)
        tell(read)
        faults = [f"{r.name!r} ({r.kind}) {r.fault}" for r in read if r.fault]
        if args.crop:
            faults += crop(out, [path for _, path in made[: args.crop]])
    print(*faults[:100], f"{len(faults)} faults", sep="\n")
    return int(bool(faults))


def tell(read: Sequence[Read]) -> None:
    """A table: what was done to the files, and what became of them."""
    kinds = {r.name: r.kind.removesuffix(", odd name") for r in read}
    outcomes = sorted({r.outcome for r in read})
    counts = Counter((kinds[r.name], r.outcome) for r in read)
    print("|", " | ".join(["done to it", "files", *outcomes]), "|")
    print("|---" * (len(outcomes) + 2) + "|")
    for kind in sorted(set(kinds.values())):
        each = [counts[kind, o] for o in outcomes]
        print("|", " | ".join(map(str, [kind, sum(each), *each])), "|")
    each = [sum(r.outcome == o for r in read) for o in outcomes]
    print("|", " | ".join(map(str, ["all", len(read), *each])), "|")
    odd = sum(r.kind.endswith("odd name") for r in read)
    slow, big = (max(read, key=lambda r: (r.seconds, r.peak_mb)[k]) for k in (0, 1))
    print(f"odd names: {odd}; slowest {slow.seconds:.1f} s ({slow.kind}); ", end="")
    print(f"largest {big.peak_mb:.0f} MB ({big.kind})")


def crop(out: Path, films: Sequence[Path]) -> list[str]:
    """The command over these films; what is wrong with its answer."""
    paths = sorted({p.absolute() for p in films})
    command = [sys.executable, "-m", "detect.crop", *map(str, paths), "--out", str(out / "crops")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--restart"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    print(f"detect.crop over {len(paths)} of them: exit code {done.returncode}")
    wrong = ["detect.crop shows a traceback"] * ("Traceback" in done.stderr)
    if done.returncode:
        wrong.append(f"detect.crop ended with {done.returncode}: {done.stderr[-500:]}")
    return wrong + faults_of_manifest(out / "crops", paths)


if __name__ == "__main__":
    raise SystemExit(main())
