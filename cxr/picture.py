"""PNG, JPEG and TIFF of 8 and 16 bits, decoded from memory to (H, W) float32 in [0, 1].

Values are divided by the full range of their type, so that a crop saved as a picture comes back as
it was. White is taken for dense: these formats cannot say (only TIFF's WhiteIsZero is honoured,
because it says how the picture is shown).
"""

from __future__ import annotations

import io
import re
import warnings
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from cxr.codestream import MAX_PIXELS, check_jpeg, check_png, check_size, read_tiff_pages
from cxr.greyscale import to_grey
from cxr.notes import FilmError, note

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
    """Decode a PNG, JPEG or TIFF.

    Returns:
        (H, W) float32 in [0, 1], the bits of a stored sample, notes.

    Raises:
        FilmError: with its reason; Pillow pads a cut file without a word, which is found out here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _read(data)
        except (FilmError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise FilmError("bad_pixels", "The picture claims more pixels than a film.") from error
        except UnidentifiedImageError as error:
            raise FilmError("truncated", "The picture's header is cut or damaged.") from error
        except Exception as error:  # decoders raise all kinds
            if isinstance(error, EOFError) or _CUT.search(str(error)):
                raise FilmError("truncated", "The picture's data break off.") from error
            raise FilmError("bad_pixels", "The picture is damaged: it does not decode.") from error


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
        raise FilmError("bad_pixels", "The TIFF has tiles or samples that no film has.")
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
        raise FilmError("bad_pixels", "A TIFF of more than 8 bits is read as grey or RGB only.")
    _note_shape([pages[number].get(tag, (0,))[0] for tag in (_X_RESOLUTION, _Y_RESOLUTION)], notes)
    values = imagecodecs.tiff_decode(data, index=number)
    if values.dtype.kind == "f":
        raise FilmError("bad_pixels", "The picture holds floating-point values, not 8 or 16 bits.")
    if values.min() < 0 or values.max() > 65535:
        raise FilmError("bad_pixels", "The picture has values outside 16 bits.")
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
