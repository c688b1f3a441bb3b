"""Structure of PNG, JPEG, JPEG-LS and JPEG 2000 streams, checked before a decoder sees them.

Decoders fill what is missing with grey and report nothing, or allocate what a header of eight
bytes asks for. So the end marker, the checksums and the size are checked here first.
"""

from __future__ import annotations

import math
import re
import struct
from typing import NamedTuple

from cxr.notes import FilmError

MAX_PIXELS = 80_000_000  # four times a 43 × 43 cm film at 0.1 mm; below Pillow's own alarm
MIN_SIDE_PX = 64

_JPEG_SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # F7 is JPEG-LS
_JPEG_NAMES = {
    0xC0: "baseline JPEG",
    0xC1: "extended JPEG",
    0xC2: "progressive JPEG",
    0xC3: "lossless JPEG",
    0xF7: "JPEG-LS",
}
# Neither stuffed data (below C0) nor restarts and other markers without a length (D0 to D8).
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_FEW_SCANS, _SCANNED_PIXELS = 12, 10**9  # of a progressive JPEG: each goes over all pixels
_MOST_TILES, _MOST_BLOCKS = 1 << 14, 1 << 21  # of a JPEG 2000 image: a kilobyte or so each
_TIFF_TYPES = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 5: ("II", 8), 16: ("Q", 8)}
_MOST_PAGES, _MOST_TAGS = 16, 4096
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_END = b"IEND\xaeB`\x82"


class StreamHeader(NamedTuple):
    """What a stream says of itself."""

    size_hw: tuple[int, int]
    bits: int
    samples: int
    kind: str  # such as "baseline JPEG"; "other" is a JPEG that no decoder reads
    lossy: bool = True


def check_size(size_hw: tuple[int, int], samples: int = 1) -> None:
    """Raise FilmError unless (height, width) in pixels is that of a film."""
    height, width = size_hw
    if height * width * samples > MAX_PIXELS:
        raise FilmError(
            "bad_pixels",
            f"The image claims {height} × {width} pixels, more than the {MAX_PIXELS:,} a film "
            "may have.",
        )
    if min(height, width) < 1:
        raise FilmError("bad_pixels", "The image's height or width is missing or 0.")
    if min(height, width) < MIN_SIDE_PX:
        raise FilmError(
            "too_small",
            f"The image has {height} × {width} pixels; a film has at least {MIN_SIDE_PX} a side.",
        )


def check_jpeg(stream: bytes) -> StreamHeader:
    """Walk a JPEG or JPEG-LS stream from SOI to EOI; raise FilmError where it breaks off.

    Only the main image's own EOI counts: the EXIF thumbnail inside has one too. What follows it is
    padding.
    """
    header: StreamHeader | None = None
    at, scans = 2, 0
    while found := _JPEG_MARKER.search(stream, at):
        marker, at = stream[found.end() - 1], found.end()
        if marker == 0xD9:
            break
        segment = stream[at + 2 : at + 8]
        if len(segment) < 6:
            raise FilmError("truncated", "The JPEG data break off inside a segment.")
        if marker in _JPEG_SOF and header is None:
            bits, height, width, samples = struct.unpack(">BHHB", segment)
            kind = _JPEG_NAMES.get(marker, "other")
            header = StreamHeader((height, width), bits, samples, kind, marker not in (0xC3, 0xF7))
        if marker == 0xDA and header and header.kind == "JPEG-LS":
            near = at + 3 + 2 * stream[at + 2]
            header = header._replace(lossy=stream[near : near + 1] != b"\0")
        scans += marker == 0xDA
        if header and scans > max(_FEW_SCANS, _SCANNED_PIXELS // (math.prod(header.size_hw) or 1)):
            raise FilmError("bad_pixels", "The JPEG has more scans than a film.")
        at += int.from_bytes(stream[at : at + 2], "big")
    else:
        raise FilmError("truncated", "The JPEG data break off before their end marker.")
    if header is None:
        raise FilmError("bad_pixels", "The JPEG data hold no image.")
    return header


def check_jpeg2000(stream: bytes) -> StreamHeader:
    """Walk a JPEG 2000 codestream from tile-part to tile-part to its end marker.

    What follows that marker is padding. OpenJPEG itself accepts a cut stream, and allocates what
    tiny tiles, precincts and code-blocks ask for.
    """
    if stream[:4] != b"\xff\x4f\xff\x51" or len(stream) < 45:
        raise FilmError("bad_pixels", "The JPEG 2000 data hold no codestream.")
    right, bottom, left, top, tile_w, tile_h, tile_x, tile_y = struct.unpack_from(">8I", stream, 8)
    (samples,) = struct.unpack_from(">H", stream, 40)
    size_hw = (bottom - top, right - left)
    check_size(size_hw, samples)
    tiles = -(-(right - tile_x) // max(tile_w, 1)) * -(-(bottom - tile_y) // max(tile_h, 1))
    if not 0 < tiles <= _MOST_TILES:
        raise FilmError(
            "bad_pixels", f"The JPEG 2000 data have {tiles} tiles, too many for a film."
        )
    at, start, tile_part, lossy = 2, 0, 0, False
    while (marker := stream[at : at + 2]) != b"\xff\xd9":
        if marker[:1] != b"\xff" or at + 12 > len(stream):
            if b"\xff\xd9" in stream.rstrip(b"\0")[-16:]:
                break  # whole, but for the length that a tile-part says it has
            raise FilmError("truncated", "The JPEG 2000 data break off before their end marker.")
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == b"\xff\x90":  # a tile-part
            tile_part, start = int.from_bytes(stream[at + 6 : at + 10], "big"), at
        elif marker in (b"\xff\x52", b"\xff\x53"):
            body = stream[at + 4 : at + 2 + length]
            _check_blocks(body, marker[1], size_hw, samples)
            lossy |= marker == b"\xff\x52" and body[9:10] == b"\0"  # the irreversible wavelet
        if marker != b"\xff\x93":
            at += 2 + length
        elif tile_part:
            at = max(start + tile_part, at + 2)
        else:  # the last one, of unsaid length
            at = stream.find(b"\xff\xd9", at)
            at = len(stream) if at < 0 else at
    bits = (stream[42] & 0x7F) + 1
    return StreamHeader(size_hw, bits, samples, "JPEG 2000", lossy)


def _check_blocks(body: bytes, marker: int, size_hw: tuple[int, int], samples: int) -> None:
    """Refuse a coding style (COD, COC) whose code-blocks or precincts are countless."""
    style = body[0] if marker == 0x52 else body[1 + (samples > 256)]
    at = 5 if marker == 0x52 else 2 + (samples > 256)
    levels, wide, high = body[at : at + 3]
    areas = [wide + high + 4]
    if style & 1:
        sizes = body[at + 5 : at + 6 + levels]
        # each level further down has a quarter of the pixels
        areas += [(p & 15) + (p >> 4) + 2 * (levels - n) for n, p in enumerate(sizes)]
    if samples * size_hw[0] * size_hw[1] >> min(areas) > _MOST_BLOCKS:
        raise FilmError("bad_pixels", "The JPEG 2000 data are in more blocks than a film.")


def check_png(stream: bytes) -> StreamHeader:
    """The header of a PNG that has its end chunk; libpng checks what lies between."""
    if stream[12:16] != b"IHDR" or _PNG_END not in stream:
        raise FilmError("truncated", "The PNG breaks off before its end chunk.")
    width, height, bits, colour = struct.unpack_from(">IIBB", stream, 16)
    samples = _PNG_CHANNELS.get(colour, 1)
    check_size((height, width), -(-samples * bits // 32))  # 4 bytes a pixel
    return StreamHeader((height, width), bits, samples, "PNG", False)


def read_tiff_pages(stream: bytes) -> list[dict[int, tuple[float, ...]]]:
    """The numbers in the directories of a TIFF or BigTIFF, by tag, for at most `_MOST_PAGES` pages;
    raises FilmError where the first directory lies beyond the end."""
    order = "<" if stream[:2] == b"II" else ">"
    big = stream[2:4] in (b"+\0", b"\0+")
    word, count, step = ("Q", "Q", 20) if big else ("I", "H", 12)
    pages: list[dict[int, tuple[float, ...]]] = []
    try:
        (at,) = struct.unpack_from(f"{order}{word}", stream, 8 if big else 4)
        while at and len(pages) < _MOST_PAGES:
            (entries,) = struct.unpack_from(f"{order}{count}", stream, at)
            at += struct.calcsize(f"{order}{count}")
            page = {}
            for entry in range(at, at + step * min(entries, _MOST_TAGS), step):
                tag, kind, values = struct.unpack_from(f"{order}HH{word}", stream, entry)
                if kind in _TIFF_TYPES and values * _TIFF_TYPES[kind][1] <= len(stream):
                    page[tag] = _tiff_values(stream, order + word, kind, values, entry + step)
            at += step * entries
            pages.append(page)
            (at,) = struct.unpack_from(f"{order}{word}", stream, at)
    except struct.error:  # a broken chain behind a whole page is left alone
        pass
    if not pages:
        raise FilmError("truncated", "The TIFF ends before its directory.")
    return pages


def _tiff_values(stream: bytes, word: str, kind: int, values: int, end: int) -> tuple[float, ...]:
    """The values of a directory's entry that ends at `end`; `word` is its offset's format."""
    letters, size = _TIFF_TYPES[kind]
    room = struct.calcsize(word)
    at = end - room
    if values * size > room:
        (at,) = struct.unpack_from(word, stream, at)
    numbers = struct.unpack_from(f"{word[0]}{values * len(letters)}{letters[0]}", stream, at)
    if len(letters) == 1:
        return numbers
    return tuple(n / max(d, 1) for n, d in zip(numbers[::2], numbers[1::2], strict=True))
