"""Claims of hostile files: refused by what they say, before memory or minutes are spent on them."""

from __future__ import annotations

import io
import struct

import imagecodecs
import pytest
from dicom_films import BASELINE, J2K, RLE, compressed, film, ramp, written
from PIL import Image

from cxr.dicom import read_dicom
from cxr.notes import FilmError


def j2k_claim(tile: int = 0, block: int = 4, precinct: int | None = None) -> bytes:
    """A film of 8,000 × 9,000 pixels by its header, of a hundred bytes, in the pieces asked for."""
    zeros = ramp()[:64, :64]
    stream = bytearray(
        imagecodecs.jpeg2k_encode(zeros, bitspersample=12, codecformat="j2k", reversible=True)
    )
    struct.pack_into(">II", stream, 8, 8000, 9000)
    struct.pack_into(">II", stream, 24, *(tile or side for side in (8000, 9000)))
    style = stream.index(b"\xff\x52")
    stream[style + 10 : style + 12] = bytes([block, block])
    if precinct is not None:
        levels = stream[style + 9] + 1
        length = int.from_bytes(stream[style + 2 : style + 4], "big")
        stream[style + 2 : style + 5] = (length + levels).to_bytes(2, "big") + b"\1"
        stream[style + 2 + length : style + 2 + length] = bytes([precinct]) * levels
    return compressed(film(zeros, Rows=9000, Columns=8000), bytes(stream), J2K)


def many_scans() -> bytes:
    file = io.BytesIO()
    Image.fromarray(ramp(8)).save(file, "JPEG", progressive=True)
    data = bytearray(file.getvalue())
    struct.pack_into(">HH", data, data.index(b"\xff\xc2") + 5, 9000, 8000)
    stream = data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 10 + b"\xff\xd9"
    return compressed(film(ramp(8), 8, Rows=9000, Columns=8000), bytes(stream), BASELINE)


def many_elements() -> bytes:
    data = written(film(ramp()))
    at = data.index(b"\xe0\x7f\x10\x00")
    pairs = ((0x4001 + 2 * (n >> 16), n & 0xFFFF) for n in range(120_000))
    return (
        data[:at] + b"".join(struct.pack("<HH4s", *pair, b"LO\0\0") for pair in pairs) + data[at:]
    )


def deep_sequences() -> bytes:
    data = written(film(ramp()))
    at = data.index(b"\xe0\x7f\x10\x00")
    down = b"\x08\x00\x60\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    up = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return data[:at] + down * 5000 + up * 5000 + data[at:]


def rle_blow_up() -> bytes:
    stream = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 1_000_000
    return compressed(film(ramp(8), 8), stream, RLE)


HOSTILE = {
    "tiles": (lambda: j2k_claim(tile=35), "tiles"),
    "code-blocks": (lambda: j2k_claim(block=0), "blocks"),
    "precincts": (lambda: j2k_claim(precinct=0), "blocks"),
    "scans": (many_scans, "scans"),
    "elements": (many_elements, "elements"),
    "sequences": (deep_sequences, "DICOM header"),
    "runs": (rle_blow_up, "RLE data"),
    "frames": (lambda: written(film(ramp(), NumberOfFrames=10**9)), "1000000000 frames"),
    "pixels": (lambda: written(film(ramp(), Rows=60000, Columns=60000)), "60000 × 60000"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_claims_that_no_film_makes_are_refused_before_they_cost(name):
    build, why = HOSTILE[name]
    with pytest.raises(FilmError, match=why):
        read_dicom(build())
