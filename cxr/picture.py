"""A film as read; and PNG, JPEG and TIFF of 8 and 16 bits, decoded from memory to (H, W) float32.

Values are divided by the full range of their type, so that a crop saved as a picture comes back as
it was. White is taken for dense: these formats cannot say (only TIFF's WhiteIsZero is honoured,
because it says how the picture is shown).
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from cxr.boxes import stretch_xyxy
from cxr.notes import FilmError, bad_pixels, note

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READ_JPEGS = ("baseline JPEG", "extended JPEG", "progressive JPEG")
_CUT = re.compile("truncat|too small|not enough", re.IGNORECASE)  # in words of the decoders
_SEVERAL = "The picture holds several pages; a film has one."
# Tags of EXIF and TIFF.
_ORIENTATION, _SUBFILE, _OLD_SUBFILE, _WIDTH, _LENGTH = 274, 254, 255, 256, 257
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 258, 259, 262, 277, 284
_X_RESOLUTION, _Y_RESOLUTION, _TILE_WIDTH, _TILE_LENGTH = 282, 283, 322, 323
_EXTENT_TAGS = ((273, 279), (324, 325))  # strips and tiles: offsets, byte counts


@dataclass(frozen=True, eq=False)
class Film:
    """One film as read from a file; ids are hashed (see `cxr.dicom.hash_id`)."""

    pixels: np.ndarray = field(repr=False)  # (H, W) float32 in [0, 1], dense bone white
    path: str = ""  # as given
    sha256: str = ""  # of the file's bytes
    spacing_mm: tuple[float, float] | None = None  # (row, column) distance of pixel centres
    view: str = "unknown"  # or PA, AP, LATERAL
    laterality: str = ""  # or L, R, B, U
    patient: str = ""
    study: str = ""
    bits: int = 8  # grey depth of the stored values
    notes: tuple[str, ...] = ()  # what was assumed or left out (see `cxr.notes`)
    stored_hw: tuple[int, int] | None = None  # where it was resampled to square pixels: before that
    age_years: float | None = None  # of the patient

    def to_stored(self, boxes_xyxy: np.ndarray | Sequence[float]) -> np.ndarray:
        """(N, 4) or (4,) xyxy boxes in the film's pixels, in the pixels as stored."""
        size_hw = (self.pixels.shape[0], self.pixels.shape[1])
        stored = stretch_xyxy(boxes_xyxy, size_hw, self.stored_hw or size_hw)
        return stored.reshape(np.shape(boxes_xyxy))


class _Samples(NamedTuple):
    """(H, W) or (H, W, C) unsigned samples, the last channel alpha where C is 2 or 4, not yet
    upright."""

    values: np.ndarray
    bits: int
    orientation: int = 1
    white_is_zero: bool = False
    see_through: bool = False


def is_picture(data: bytes) -> bool:
    """Whether the bytes begin like a PNG, a JPEG or a TIFF."""
    return data.startswith((_PNG, _JPEG, *_TIFF))


def read_picture(data: bytes) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """(H, W) float32 in [0, 1] of a PNG, JPEG or TIFF, the bits of a stored sample, notes; raises
    FilmError. Pillow pads a cut file without a word, which is found out here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _read(data)
        except (FilmError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise bad_pixels("The picture claims more pixels than a film.") from error
        except UnidentifiedImageError as error:
            raise FilmError("truncated", "The picture's header is cut or damaged.") from error
        except Exception as error:  # decoders raise all kinds
            if isinstance(error, EOFError) or _CUT.search(str(error)):
                raise FilmError("truncated", "The picture's data break off.") from error
            raise bad_pixels("The picture is damaged: it does not decode.") from error


def _read(data: bytes) -> tuple[np.ndarray, int, tuple[str, ...]]:
    notes: list[str] = []
    if data.startswith(_PNG):
        return _finish(_decode(data, notes, png_bits=check_png(data).bits), notes)
    if not data.startswith(_JPEG):
        return _finish(_decode_tiff(data, notes), notes)
    about = check_jpeg(data)
    if about.kind not in _READ_JPEGS or about.bits != 8:
        kind = about.kind if about.bits == 8 else f"{about.bits}-bit JPEG"
        raise FilmError(
            "unsupported_syntax", f"A file of {kind} is not read: save it as PNG or DICOM."
        )
    check_size(about.size_hw)
    return _finish(_decode(data, notes), notes)


def _finish(found: _Samples, notes: list[str]) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Upright (H, W) float32 in [0, 1] of samples, their bits, notes."""
    values, bits = found.values, found.bits
    if values.ndim == 3:
        channels = values.shape[2]
        has_alpha = channels in (2, 4)
        if found.see_through or (has_alpha and values[..., -1].min() < 2**bits - 1):
            notes.append(note("alpha_ignored"))
        red, green, blue = (values[..., n * (channels > 2)] for n in range(3))
        coloured = (red != green).any() or (red != blue).any()
        values = values[..., :3] if coloured else red
        if coloured:
            notes.append(note("colour"))
    used = max(int(values.max()).bit_length(), 8)
    if bits == 16 and used <= 12:  # a 10- or 12-bit film in a 16-bit file would be all black
        bits = used
        notes.append(note("scaled_bits", value=used))
    grey = to_grey(values, 2**bits - 1)
    if found.white_is_zero:
        grey = 1 - grey
        notes.append(note("white_is_zero"))
    turned = _upright(grey, found.orientation)
    if turned is not grey:
        notes.append(note("turned", value=found.orientation))
    return np.ascontiguousarray(turned), bits, tuple(notes)


def _upright(grey: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) turned as EXIF and TIFF number it; the same array for 1 and what is none of 2 to 8."""
    if orientation not in range(2, 9):
        return grey
    if orientation >= 5:
        grey = grey.T
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return grey[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _decode(data: bytes, notes: list[str], page: int = 0, png_bits: int = 0) -> _Samples:
    """By Pillow, but for the pixels of a PNG: it cuts colour to 8 bits and pads what is cut."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF")) as image:
        check_size((image.height, image.width))
        if image.format != "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise FilmError("multi_frame", _SEVERAL)
        orientation = image.getexif().get(_ORIENTATION, 1)
        _note_shape(image.info.get("dpi") or image.info.get("aspect"), notes)
        if png_bits:
            return _Samples(imagecodecs.png_decode(data), max(png_bits, 8), orientation)
        if page:
            image.seek(page)
        image.load()  # raises where the data end early
        see_through = "transparency" in image.info
        grey, alpha = image.mode in {"1", "L", "LA", "La"}, image.mode in {"LA", "RGBA"}
        shown = image.convert(("L" if grey else "RGB") + "A" * alpha)
        return _Samples(np.asarray(shown), 8, orientation, see_through=see_through)


def _decode_tiff(data: bytes, notes: list[str]) -> _Samples:
    pages = read_tiff_pages(data)
    number = _main_page([{tag: v[0] for tag, v in page.items() if v} for page in pages], notes)
    page = {tag: int(v[0]) for tag, v in pages[number].items() if v}
    samples, photometric = page.get(_SAMPLES, 1), page.get(_PHOTOMETRIC, 1)
    bits, orientation = page.get(_BITS, 1), page.get(_ORIENTATION, 1)
    four_bytes = -(-samples * bits // 32)
    check_size((page.get(_LENGTH, 0), page.get(_WIDTH, 0)), four_bytes)
    if page.get(_TILE_WIDTH, 0) * page.get(_TILE_LENGTH, 0) > MAX_PIXELS or samples > 5:
        raise bad_pixels("The TIFF has tiles or samples that no film has.")
    for offsets, counts in _EXTENT_TAGS:
        ends = zip(pages[number].get(offsets, ()), pages[number].get(counts, ()), strict=False)
        if any(offset + count > len(data) for offset, count in ends):
            raise FilmError("truncated", "The TIFF ends inside its pixel data.")
    plain = photometric in (0, 1, 2) and page.get(_COMPRESSION) not in (6, 7)  # JPEG
    if bits < 8 or (bits == 8 and not plain):  # palettes, CMYK, YCbCr
        found = _decode(data, notes, number)
        if photometric == 0:
            notes.append(note("white_is_zero"))
        if orientation in range(2, 9):
            notes.append(note("turned", value=orientation))
        return found._replace(orientation=1)  # Pillow has turned a TIFF, and its white
    if not plain:
        raise bad_pixels("A TIFF of more than 8 bits is read as grey or RGB only.")
    _note_shape([pages[number].get(tag, (0,))[0] for tag in (_X_RESOLUTION, _Y_RESOLUTION)], notes)
    values = imagecodecs.tiff_decode(data, index=number)
    if values.dtype.kind == "f":
        raise bad_pixels("The picture holds floating-point values, not 8 or 16 bits.")
    if values.min() < 0 or values.max() > 65535:
        raise bad_pixels("The picture has values outside 16 bits.")
    if samples > 1 and page.get(_PLANAR) == 2:
        values = np.moveaxis(values, 0, 2)
    return _Samples(
        values.astype(np.uint16, copy=False), min(bits, 16), orientation, photometric == 0
    )


def _main_page(pages: list[dict[int, float]], notes: list[str]) -> int:
    """Which page is the picture, and not a reduced copy or a mask of it."""
    whole = [
        number
        for number, page in enumerate(pages)
        if not int(page.get(_SUBFILE, 0)) & 5 and page.get(_OLD_SUBFILE) != 2
    ] or [0]
    if len(whole) > 1:
        raise FilmError("multi_frame", _SEVERAL)
    if len(pages) > 1:
        notes.append(note("thumbnail_skipped"))
    return whole[0]


def _note_shape(resolution: object, notes: list[str]) -> None:
    """Pictures' resolution tags are too often wrong to obey; viewers and labels ignore them too."""
    try:
        across, down = (float(v) for v in resolution)  # type: ignore[attr-defined]
        ratio = across / down
    except (TypeError, ValueError, ZeroDivisionError):
        return
    if across > 0 and not 0.99 <= ratio <= 1.01:
        notes.append(note("not_square_ignored", value=f"{ratio:.4g} : 1"))


# --- grey values ---

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_BLOCK_VALUES = 1 << 22  # numpy's index and float copies of a whole film would take gigabytes


def by_rows(pixels: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(H, W) float32 from (H, W) or (H, W, C), converted a block of rows at a time."""
    result = np.empty(pixels.shape[:2], dtype=np.float32)
    step = max(1, _BLOCK_VALUES // max(1, pixels[0].size))
    for start in range(0, len(pixels), step):
        result[start : start + step] = convert(pixels[start : start + step])
    return result


def check_shows(levels: np.ndarray) -> None:
    """Raise FilmError where a film has only one value."""
    if levels.size == 0 or levels.min() == levels.max():
        raise FilmError("blank", "All pixels have the same value: there is no film.")


def to_grey(samples: np.ndarray, top: int) -> np.ndarray:
    """(H, W) grey or (H, W, 3) RGB samples of 0 to `top`, never stretched, to (H, W) float32 in
    [0, 1]: colour by its luma."""
    weights = np.asarray(_LUMA) if samples.ndim == 3 else 1.0
    grey = by_rows(samples, lambda rows: np.dot(rows.astype(np.float64), weights) / top)
    check_shows(grey)
    return grey


# --- the structure of streams, checked before a decoder sees them ---

# Decoders fill what is missing with grey and report nothing, or allocate what a header of eight
# bytes asks for. So the end marker, the checksums and the size are checked here first.
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
        raise bad_pixels(
            f"The image claims {height} × {width} pixels, more than the {MAX_PIXELS:,} a film "
            "may have."
        )
    if min(height, width) < 1:
        raise bad_pixels("The image's height or width is missing or 0.")
    if min(height, width) < MIN_SIDE_PX:
        raise FilmError(
            "too_small",
            f"The image has {height} × {width} pixels; a film has at least {MIN_SIDE_PX} a side.",
        )


def check_jpeg(stream: bytes) -> StreamHeader:
    """Walk a JPEG or JPEG-LS stream from SOI to EOI; raise FilmError where it breaks off. Only the
    main image's own EOI counts: the EXIF thumbnail inside has one too. What follows it is
    padding."""
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
            raise bad_pixels("The JPEG has more scans than a film.")
        at += int.from_bytes(stream[at : at + 2], "big")
    else:
        raise FilmError("truncated", "The JPEG data break off before their end marker.")
    if header is None:
        raise bad_pixels("The JPEG data hold no image.")
    return header


def check_jpeg2000(stream: bytes) -> StreamHeader:
    """Walk a JPEG 2000 codestream from tile-part to tile-part to its end marker. What follows that
    marker is padding. OpenJPEG itself accepts a cut stream, and allocates what tiny tiles,
    precincts and code-blocks ask for."""
    if stream[:4] != b"\xff\x4f\xff\x51" or len(stream) < 45:
        raise bad_pixels("The JPEG 2000 data hold no codestream.")
    right, bottom, left, top, tile_w, tile_h, tile_x, tile_y = struct.unpack_from(">8I", stream, 8)
    (samples,) = struct.unpack_from(">H", stream, 40)
    size_hw = (bottom - top, right - left)
    check_size(size_hw, samples)
    tiles = -(-(right - tile_x) // max(tile_w, 1)) * -(-(bottom - tile_y) // max(tile_h, 1))
    if not 0 < tiles <= _MOST_TILES:
        raise bad_pixels(f"The JPEG 2000 data have {tiles} tiles, too many for a film.")
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
        raise bad_pixels("The JPEG 2000 data are in more blocks than a film.")


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
