"""Stored values of a DICOM radiograph from its transfer syntax.

Decoders are pydicom, Pillow, pylibjpeg-openjpeg, pyjpegls and imagecodecs, all under permissive
licences. (GDCM's wheel prints an error for 12-bit JPEG and returns what was in memory.)
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import UID

from cxr.codestream import check_jpeg, check_jpeg2000
from cxr.errors import FilmError

_NATIVE = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
}
# One decoder for each syntax: which one answers must not depend on what else is installed.
_PLUGIN = {
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG baseline
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
}
_IMAGECODECS = {
    "1.2.840.10008.1.2.4.51",  # JPEG extended, 8 or 12 bits
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, selection value 1
}
_RLE = "1.2.840.10008.1.2.5"
_JPEG2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}


def decode_stored(ds: Dataset) -> np.ndarray:
    """Stored values as (H, W) integers, or (H, W, 3) RGB of a colour capture.

    Args:
        ds: data set with a checked image pixel module, pixel data and transfer syntax.

    Raises:
        FilmError: unsupported_syntax, truncated, no_pixels or bad_pixels; decoders raise their own.
    """
    syntax = str(ds.file_meta.TransferSyntaxUID)
    if syntax in _NATIVE:
        stored = _decode_native(ds)
    elif syntax in _PLUGIN:
        _checked_stream(ds, syntax)
        stored = pixel_array(ds, decoding_plugin=_PLUGIN[syntax])
    elif syntax in _IMAGECODECS:
        stored = _decode_jpeg(ds, _checked_stream(ds, syntax))
    else:
        name = UID(syntax).name if UID(syntax).is_transfer_syntax else "of an unknown kind"
        raise FilmError("unsupported_syntax", f"The transfer syntax is not read: {name}.")
    if str(ds.PhotometricInterpretation).strip().upper() == "PALETTE COLOR":
        stored = apply_color_lut(stored, ds)
    if stored.shape[:2] != (ds.Rows, ds.Columns):
        raise FilmError("bad_pixels", "The pixel data have another size than the header says.")
    return stored


def _decode_native(ds: Dataset) -> np.ndarray:
    bits_a_pixel = ds.BitsAllocated * ds.SamplesPerPixel
    if str(ds.PhotometricInterpretation).strip().upper() == "YBR_FULL_422":
        bits_a_pixel = ds.BitsAllocated * 2
    if len(ds.PixelData) * 8 < ds.Rows * ds.Columns * bits_a_pixel:
        raise FilmError("bad_pixels", "The pixel data are shorter than the header says.")
    shift = _bits_below(ds)
    if not shift:
        return pixel_array(ds)
    big = ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.2"
    words = np.frombuffer(ds.PixelData, ">u2" if big else "<u2", count=ds.Rows * ds.Columns)
    if int(words.max()) >> ds.BitsStored == 0:  # HighBit is wrong: the values lie at the bottom
        shift = 0
    return _signed(words.reshape(ds.Rows, ds.Columns) >> shift, ds)


def _bits_below(ds: Dataset) -> int:
    """Unused bits below the value: films of before DICOM 2014 may sit at the top of their word."""
    high_bit = ds.get("HighBit")
    if not isinstance(high_bit, int) or ds.SamplesPerPixel != 1 or ds.BitsAllocated != 16:
        return 0
    shift = high_bit + 1 - ds.BitsStored
    return shift if 0 < shift <= ds.BitsAllocated - ds.BitsStored else 0


def _decode_jpeg(ds: Dataset, stream: bytes) -> np.ndarray:
    import imagecodecs  # late: only these few syntaxes need it

    stored = imagecodecs.jpeg_decode(stream)
    return _signed(stored, ds) if stored.ndim == 2 else stored


def _signed(stored: np.ndarray, ds: Dataset) -> np.ndarray:
    """Values cut to BitsStored, with their sign where the header says they have one."""
    mask = (1 << ds.BitsStored) - 1
    values = stored.astype(np.int32) & mask
    if ds.PixelRepresentation == 1:
        values = np.where(values > mask >> 1, values - mask - 1, values)
        return values.astype(np.int16)
    return values.astype(np.uint16)


def _checked_stream(ds: Dataset, syntax: str) -> bytes:
    """The compressed image; refused when it is cut, or when its own size is not the header's."""
    try:
        stream = next(generate_frames(ds.PixelData, number_of_frames=1), b"")
    except ValueError as error:
        raise FilmError("truncated", "The compressed pixel data break off.") from error
    if not stream:
        raise FilmError("no_pixels", "The DICOM file holds an empty image.")
    if syntax == _RLE:
        return stream
    header = check_jpeg2000(stream) if syntax in _JPEG2000 else check_jpeg(stream)
    if header.size_hw != (ds.Rows, ds.Columns) or header.samples != ds.SamplesPerPixel:
        raise FilmError("bad_pixels", "The pixel data have another size than the header says.")
    if header.bits > ds.BitsAllocated:
        raise FilmError("bad_pixels", "The pixel data have more bits than the header allocates.")
    return stream
