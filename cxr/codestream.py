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
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = (  # left, top, horizontal and vertical step of the seven passes
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


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
    """Walk the chunks of a PNG, with their checksums and sizes, from IHDR to IEND."""
    header, head, packed = None, b"", []
    at = 8
    while True:
        if at + 12 > len(stream):
            raise FilmError("truncated", "The PNG breaks off before its end chunk.")
        length, kind = struct.unpack_from(">I4s", stream, at)
        body = stream[at + 8 : at + 8 + length]
        if at + 12 + length > len(stream):
            raise FilmError("truncated", "The PNG breaks off inside a chunk.")
        (checksum,) = struct.unpack_from(">I", stream, at + 8 + length)
        if checksum != zlib.crc32(kind + body):
            raise FilmError("bad_pixels", "A checksum of the PNG is wrong: the file is damaged.")
        if kind == b"IHDR" and length == 13:
            head = body
            width, height, bits, colour = struct.unpack_from(">IIBB", head)
            header = StreamHeader((height, width), bits, _PNG_CHANNELS.get(colour, 1))
            check_size(header.size_hw)
        elif kind == b"IDAT":
            packed.append(body)
        elif kind == b"IEND":
            break
        at += 12 + length
    if header is None:
        raise FilmError("bad_pixels", "The PNG has no header chunk.")
    _check_png_rows(b"".join(packed), header, interlaced=head[12] == 1)
    return header


def _check_png_rows(packed: bytes, header: StreamHeader, interlaced: bool) -> None:
    """Refuse a PNG with fewer rows than announced: decoders leave the rest black."""
    height, width = header.size_hw
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for left, top, step_x, step_y in passes:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            expected += rows * (1 + -(-columns * header.bits * header.samples // 8))
    try:
        rows_bytes = len(zlib.decompressobj().decompress(packed, expected))
    except zlib.error as error:
        raise FilmError("bad_pixels", "The PNG's compressed rows are damaged.") from error
    if rows_bytes < expected:
        raise FilmError("truncated", "The PNG has fewer rows than its header says.")


def check_tiff(stream: bytes) -> None:
    """Raise FilmError where the first directory of a classic TIFF lies beyond the end."""
    order = "<" if stream[:2] == b"II" else ">"
    if len(stream) < 8 or stream[2:4] in (b"+\0", b"\0+"):  # BigTIFF: left to the decoder
        return
    (at,) = struct.unpack_from(f"{order}I", stream, 4)
    if at + 2 <= len(stream):
        (entries,) = struct.unpack_from(f"{order}H", stream, at)
        at += 2 + 12 * entries + 2
    if at + 2 > len(stream):
        raise FilmError("truncated", "The TIFF ends before its directory.")
