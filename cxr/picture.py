"""PNG, JPEG and TIFF of 8 and 16 bits, decoded from memory to (H, W) float32 in [0, 1].

Values are divided by the full range of their type, so that a crop saved as a picture comes back as
it was. White is taken for dense: these formats cannot say (only TIFF's WhiteIsZero is honoured,
because it says how the picture is shown).
"""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cxr.codestream import check_jpeg, check_png, check_size, check_tiff
from cxr.errors import FilmError
from cxr.greyscale import colour_to_grey
from cxr.notes import note

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO = 0
_TAG_PHOTOMETRIC, _TAG_BITS = 262, 258
_EXTENT_TAGS = ((273, 279), (324, 325))  # strips and tiles: offsets, byte counts


def is_picture(data: bytes) -> bool:
    """Whether the bytes begin like a PNG, a JPEG or a TIFF."""
    return data.startswith((_PNG, _JPEG, *_TIFF))


def read_picture(data: bytes) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Decode a PNG, JPEG or TIFF.

    Returns:
        (H, W) float32 in [0, 1], the bits of a stored sample, notes.

    Raises:
        FilmError: with its reason; Pillow and OpenCV pad a cut file without a word, which is
            found out here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _read(data)
        except FilmError:
            raise
        except Image.DecompressionBombError as error:
            raise FilmError("bad_pixels", "The picture claims more pixels than a film.") from error
        except UnidentifiedImageError as error:
            raise FilmError("truncated", "The picture's header is cut or damaged.") from error
        except Exception as error:  # decoders raise all kinds
            cut = "truncat" in str(error).lower() or isinstance(error, EOFError)
            raise FilmError(
                "truncated" if cut else "bad_pixels",
                f"The picture could not be decoded ({type(error).__name__}).",
            ) from error


def _read(data: bytes) -> tuple[np.ndarray, int, tuple[str, ...]]:
    if data.startswith(_PNG):
        check_png(data)
    elif data.startswith(_JPEG):
        check_size(check_jpeg(data).size_hw)
    else:
        check_tiff(data)
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF", "MPO")) as image:
        check_size((image.height, image.width))
        if getattr(image, "n_frames", 1) > 1:
            raise FilmError("multi_frame", "The picture holds several pages; a film has one.")
        if image.format == "TIFF":
            _check_extents(image, len(data))
        samples, bits, notes = _samples(image, data)
    if samples.ndim == 3:
        if not (samples[..., 0] == samples[..., 1]).all():
            notes.append(note("colour"))
        grey = colour_to_grey(samples)
    else:
        grey = samples.astype(np.float64)
    if grey.min() == grey.max():
        raise FilmError("blank", "All pixels have the same value: there is no film.")
    top, used = 2**bits - 1, int(grey.max()).bit_length()
    if bits == 16 and used <= 12:  # a 10- or 12-bit film in a 16-bit file would be all black
        top = 2 ** max(used, 8) - 1
        notes.append(note("scaled_bits", value=max(used, 8)))
    return np.ascontiguousarray(grey / top, dtype=np.float32), bits, tuple(notes)


def _samples(image: Image.Image, data: bytes) -> tuple[np.ndarray, int, list[str]]:
    """(H, W) or (H, W, 3) unsigned samples, upright, their bits, and notes."""
    notes: list[str] = []
    upright = image.getexif().get(0x0112, 1) != 1
    tags = getattr(image, "tag_v2", {})
    image.load()  # raises where the data end early
    if upright:
        image = ImageOps.exif_transpose(image)
        notes.append(note("turned", value=image.getexif().get(0x0112, 1)))
    if image.mode.startswith("I;16") or image.mode == "I":
        array = np.asarray(image).astype(np.int64)
        if array.min() < 0 or array.max() > 65535:
            raise FilmError("bad_pixels", "The picture has values outside 16 bits.")
        if tags.get(_TAG_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns 8 bits only
            array = 65535 - array
            notes.append(note("white_is_zero"))
        return array, 16, notes
    if _has_deep_colour(data, tags):
        deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if deep is not None and deep.dtype == np.uint16:
            return deep[..., ::-1], 16, notes
    if image.mode == "F":
        raise FilmError("bad_pixels", "The picture holds floating-point values, not 8 or 16 bits.")
    if image.mode in {"1", "L", "LA", "La"}:
        return np.asarray(image.convert("L")), 8, notes
    return np.asarray(image.convert("RGB")), 8, notes


def _has_deep_colour(data: bytes, tags: object) -> bool:
    """Colour of 16 bits, which Pillow would cut to 8."""
    if data.startswith(_PNG):
        return data[24] == 16
    bits = tags.get(_TAG_BITS, ()) if hasattr(tags, "get") else ()
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) == 16


def _check_extents(image: Image.Image, size_bytes: int) -> None:
    tags = getattr(image, "tag_v2", {})
    for offsets_tag, counts_tag in _EXTENT_TAGS:
        offsets, counts = tags.get(offsets_tag, ()), tags.get(counts_tag, ())
        if any(o + c > size_bytes for o, c in zip(offsets, counts, strict=False)):
            raise FilmError("truncated", "The TIFF ends inside its pixel data.")
