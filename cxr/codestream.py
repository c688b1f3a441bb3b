"""Structure of PNG, JPEG, JPEG-LS and JPEG 2000 streams, checked before a decoder sees them.

Decoders fill what is missing with grey and report nothing, or allocate what a header of eight
bytes asks for. So the end marker, the checksums and the size are checked here first.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from cxr.errors import FilmError

MAX_PIXELS = 80_000_000  # four times a 43 × 43 cm film at 0.1 mm; below Pillow's own alarm
MIN_SIDE_PX = 64

_JPEG_SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # F7 is JPEG-LS
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


class StreamHeader(NamedTuple):
    """What a stream says of itself."""

    size_hw: tuple[int, int]
    bits: int
    samples: int


def check_size(size_hw: tuple[int, int], samples: int = 1) -> None:
    """Raise FilmError unless (height, width) in pixels is that of a film."""
    height, width = size_hw
    if height * width * samples > MAX_PIXELS:
        raise FilmError(
            "bad_pixels",
            f"The image claims {height} × {width} pixels, more than the {MAX_PIXELS:,} a film "
            "may have.",
        )
    if min(height, width) < MIN_SIDE_PX:
        raise FilmError(
            "too_small",
            f"The image has {height} × {width} pixels; a film has at least {MIN_SIDE_PX} a side.",
        )


def check_jpeg(stream: bytes) -> StreamHeader:
    """Walk a JPEG or JPEG-LS stream from SOI to EOI; raise FilmError where it breaks off.

    Only the main image's own EOI counts: the EXIF thumbnail inside has one too.
    """
    if stream[:2] != b"\xff\xd8":
        raise FilmError("bad_pixels", "The JPEG data do not begin with a JPEG marker.")
    header: StreamHeader | None = None
    at = 2
    while True:
        at = stream.find(b"\xff", at)
        if at < 0 or at + 1 >= len(stream):
            raise FilmError("truncated", "The JPEG data break off before their end marker.")
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xD9:
            break
        elif marker < 0x80 or marker in _JPEG_BARE:  # stuffed data, or no segment
            at += 2
        else:
            segment = stream[at + 4 : at + 10]
            if len(segment) < 6:
                raise FilmError("truncated", "The JPEG data break off inside a segment.")
            if marker in _JPEG_SOF and header is None:
                bits, height, width, samples = struct.unpack(">BHHB", segment)
                header = StreamHeader((height, width), bits, samples)
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    if header is None:
        raise FilmError("bad_pixels", "The JPEG data hold no image.")
    return header


def check_jpeg2000(stream: bytes) -> StreamHeader:
    """Read the SIZ segment of a JPEG 2000 codestream (bare or in a JP2 box) and check its end."""
    start = stream.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(stream) < start + 43:
        raise FilmError("bad_pixels", "The JPEG 2000 data hold no codestream.")
    width, height, left, top = struct.unpack_from(">4I", stream, start + 8)
    (samples,) = struct.unpack_from(">H", stream, start + 40)
    bits = (stream[start + 42] & 0x7F) + 1
    if b"\xff\xd9" not in stream[-16:]:  # OpenJPEG itself accepts a cut stream
        raise FilmError("truncated", "The JPEG 2000 data break off before their end marker.")
    return StreamHeader((height - top, width - left), bits, samples)


def check_png(stream: bytes) -> StreamHeader:
    """Walk the chunks of a PNG, with their checksums, from IHDR to IEND."""
    header: StreamHeader | None = None
    at = 8
    while True:
        if at + 12 > len(stream):
            raise FilmError("truncated", "The PNG breaks off before its end chunk.")
        length, kind = struct.unpack_from(">I4s", stream, at)
        body = stream[at + 8 : at + 8 + length]
        if len(body) < length or at + 12 + length > len(stream):
            raise FilmError("truncated", "The PNG breaks off inside a chunk.")
        (checksum,) = struct.unpack_from(">I", stream, at + 8 + length)
        if checksum != zlib.crc32(kind + body):
            raise FilmError("bad_pixels", "A checksum of the PNG is wrong: the file is damaged.")
        if kind == b"IHDR" and length == 13:
            width, height, bits, colour = struct.unpack_from(">IIBB", body)
            header = StreamHeader((height, width), bits, {2: 3, 3: 3, 4: 2, 6: 4}.get(colour, 1))
        if kind == b"IEND":
            break
        at += 12 + length
    if header is None:
        raise FilmError("bad_pixels", "The PNG has no header chunk.")
    return header
