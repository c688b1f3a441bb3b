"""What a DICOM header says, read so that nothing odd passes unsaid; and its pixel data, decoded.

A number that is there but cannot be read is never taken for one that is absent: it is noted, or
the film is refused, with the element's keyword and its value (`cxr.notes.shown`).

The words are raw: what they mean is `cxr.greyscale`'s to say. What the stream is decides how it is
decoded; a transfer syntax that says otherwise is noted. Decoders are imagecodecs' (libjpeg-turbo,
OpenJPEG, CharLS), under permissive licences.
"""

from __future__ import annotations

import math
import re
import struct
from typing import NamedTuple

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID

from cxr.notes import FilmError, bad_pixels, decoding, note, shown
from cxr.picture import StreamHeader, check_jpeg, check_jpeg2000, check_size

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")


class Layout(NamedTuple):
    """The image pixel module: how a film's values lie in the words of its pixel data."""

    size_hw: tuple[int, int]
    samples: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: bool

    @property
    def range(self) -> tuple[int, int]:
        """The lowest and the highest value that can be stored."""
        return -self.signed << self.stored - 1, (1 << self.stored - self.signed) - 1


class Words(NamedTuple):
    """(H, W) or (H, W, 3) uint8 or uint16 as decoded: sign, HighBit and BitsStored still apply."""

    words: np.ndarray
    bits: int  # of a word that its coding keeps, fewer than allocated in some streams
    is_ybr: bool = False  # and not RGB
    lossy: bool = False  # bits above BitsStored are then values beyond the range


class Header:
    """A data set and what has been noted of it so far."""

    def __init__(self, ds: Dataset, notes: list[str]) -> None:
        self.ds, self.notes = ds, notes

    def word(self, keyword: str, place: int = 0) -> str:
        """A code word in capitals, without blanks around it; "" where there is none."""
        values = _texts(self.ds, keyword) or []
        return values[place].upper() if place < len(values) else ""

    def items(self, keyword: str) -> list[Dataset] | None:
        """The items of a sequence; None where the header has no such sequence or an empty one."""
        if keyword not in self.ds:
            return None
        try:
            value = self.ds[keyword].value
        except Exception:  # pydicom raises all kinds on a damaged element
            return [Dataset()]
        return list(value) or None if isinstance(value, Sequence) else [Dataset()]

    def numbers(
        self, keyword: str, instead: str = "", item: Dataset | None = None
    ) -> tuple[float, ...] | None:
        """The values of a numeric element of the data set, or of an item of a sequence; () where
        the element is absent or empty, None where it is unreadable: `instead` says what happens
        then, for the note, and "" refuses the film."""
        texts = _texts(self.ds if item is None else item, keyword)
        if texts is not None and not "".join(texts):
            return ()
        told = shown("\\".join(texts or ()))
        points = [text.replace(",", ".") for text in texts or ()]
        right = points and all(map(_NUMBER.fullmatch, points))
        values = tuple(map(float, points)) if right else (math.inf,)
        if all(map(math.isfinite, values)):
            if points != texts:
                self.notes.append(note("decimal_comma", element=keyword, value=told))
            return values
        if not instead:
            raise bad_pixels(f"{keyword} of the header is unreadable ({told}).")
        self.notes.append(note("value_unreadable", element=keyword, value=told, instead=instead))
        return None

    def integer(self, keyword: str, default: int | None = None, assumed: bool = False) -> int:
        """The one value of an element that must be a whole number; FilmError otherwise. `default`
        stands in for an absent one, with a note where `assumed`."""
        values = self.numbers(keyword) or ()
        if values and values[0].is_integer():
            return int(values[0])
        if values or default is None:
            raise bad_pixels(f"The header's {keyword} is missing or no whole number.")
        if assumed:
            self.notes.append(note("assumed", element=keyword, value=default))
        return default

    def layout(self) -> Layout:
        """The checked image pixel module; FilmError where it is none of a film."""
        allocated = self.integer("BitsAllocated")
        stored = self.integer("BitsStored", allocated, assumed=True)
        samples = self.integer("SamplesPerPixel", 1, assumed=True)
        signed = self.integer("PixelRepresentation", 0, assumed=True)
        if allocated not in (8, 16) or not 1 <= stored <= allocated:
            raise bad_pixels(
                f"BitsStored {stored} of BitsAllocated {allocated}: films have 1 to 16 of 8 or 16."
            )
        if samples not in (1, 3) or signed not in (0, 1):
            raise bad_pixels(
                f"SamplesPerPixel {samples} or PixelRepresentation {signed} is not allowed."
            )
        size_hw = (self.integer("Rows"), self.integer("Columns"))
        check_size(size_hw, samples)
        return Layout(
            size_hw,
            samples,
            allocated,
            stored,
            self._high_bit(stored, allocated),
            signed == 1,
            self._photometric(samples),
            samples == 3 and self.integer("PlanarConfiguration", 0) == 1,
        )

    def _high_bit(self, stored: int, allocated: int) -> int:
        values = self.numbers("HighBit", instead=f"{stored - 1} assumed") or (stored - 1.0,)
        if stored - 1 <= values[0] < allocated and values[0].is_integer():
            return int(values[0])
        self.notes.append(note("high_bit_ignored", value=shown(f"{values[0]:g}")))
        return stored - 1

    def _photometric(self, samples: int) -> str:
        said = self.word("PhotometricInterpretation")
        letters = re.sub("[^A-Z0-9]", "", said)
        said = next((k for k in _GREY + _COLOUR if re.sub("[ _]", "", k) == letters), said)
        if not said:
            said = "MONOCHROME2" if samples == 1 else "RGB"
            self.notes.append(note("assumed", element="PhotometricInterpretation", value=said))
        if said not in (_GREY if samples == 1 else _COLOUR):
            what = said if said in _GREY + _COLOUR else "unknown"
            raise bad_pixels(
                f"PhotometricInterpretation is {what}, which does not go with {samples} "
                f"sample{'s' * (samples > 1)} a pixel."
            )
        return said


def _texts(ds: Dataset, keyword: str) -> list[str] | None:
    """The values of an element as text; [] where it is absent, None where it is damaged."""
    try:
        value = ds.get(keyword)
        if isinstance(value, bytes) and " or " in ds[keyword].VR:  # implicit: 16 bits, little
            value = np.frombuffer(value, "<u2").tolist()
        elif isinstance(value, bytes):
            value = value.decode("ascii")
    except Exception:  # pydicom raises all kinds on a damaged element
        return None
    if isinstance(value, str):
        value = value.split("\\")
    values = value if isinstance(value, (list, tuple, MultiValue)) else [value]
    return ["" if v is None else str(v).strip(" \0\t\r\n") for v in values]


# --- the words of the pixel data ---

_PLAIN, _JPEG, _JPEG_LS, _JPEG2000, _RLE = "uncompressed", "JPEG", "JPEG-LS", "JPEG 2000", "RLE"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_SYNTAXES = {
    "1.2.840.10008.1.2": _PLAIN,
    "1.2.840.10008.1.2.1": _PLAIN,
    "1.2.840.10008.1.2.1.99": _PLAIN,  # deflated
    _BIG_ENDIAN: _PLAIN,
    "1.2.840.10008.1.2.5": _RLE,
    **{f"1.2.840.10008.1.2.4.{n}": _JPEG for n in (50, 51, 53, 55, 57, 70)},
    **{f"1.2.840.10008.1.2.4.{n}": _JPEG_LS for n in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{n}": _JPEG2000 for n in (90, 91, 201, 202, 203)},
}
_CONVERTED = re.compile(rb"JFIF|\xff\xee\x00[\x0e-\xff]Adobe")  # libjpeg then knows its colours
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")  # of a JPEG and a JPEG 2000 image
_MOST_FRAGMENTS = 1 << 16


def decode_words(ds: Dataset, layout: Layout, notes: list[str]) -> Words:
    """The words of the pixel data of a data set with a transfer syntax, and a note where that is
    contradicted. Raises FilmError: unsupported_syntax, truncated, no_pixels or bad_pixels."""
    syntax, data = str(ds.file_meta.TransferSyntaxUID), ds.PixelData
    said = _SYNTAXES.get(syntax)
    if said is None:
        name = UID(syntax).name if UID(syntax).is_transfer_syntax else "of an unknown kind"
        raise FilmError("unsupported_syntax", f"The transfer syntax is not read: {name}.")
    height, width = layout.size_hw
    needed = height * width * layout.samples * layout.allocated // 8
    if layout.photometric == "YBR_FULL_422":
        needed = needed * 2 // 3
    packed = data[:4] == _ITEM and (said != _PLAIN or len(data) not in _padded(needed))
    stream = _joined(data) if packed else b""
    found, about = _look_at(stream, said, layout) if packed else (_PLAIN, None)
    if found != said:
        if not found or (found == _PLAIN and len(data) not in _padded(needed)):
            raise bad_pixels(f"The header says {said}, the pixel data are not.")
        notes.append(note("syntax_contradicted", said=said, found=found))
    is_ybr = layout.photometric.startswith("YBR")
    if found == _PLAIN:
        words = _native(ds, layout, needed, big=syntax == _BIG_ENDIAN)
        return Words(words, layout.allocated, is_ybr)
    with decoding(f"The {found} data are damaged: no decoder reads them."):
        if about is None:
            return Words(_rle(stream, layout), layout.allocated, is_ybr)
        return _decode_stream(stream, found, about, layout)


def _decode_stream(stream: bytes, found: str, about: StreamHeader, layout: Layout) -> Words:
    if about.size_hw != layout.size_hw or about.samples != layout.samples:
        raise bad_pixels("The pixel data have another size than the header says.")
    if about.bits > layout.allocated:
        raise bad_pixels(
            f"The pixel data have {about.bits} bits, BitsAllocated is {layout.allocated}."
        )
    if about.kind == "other":
        raise FilmError("unsupported_syntax", "The pixel data are a kind of JPEG that is not read.")
    words = _decode(found, stream, layout)
    if words.ndim == 3 and words.shape[0] == layout.samples != words.shape[2]:
        words = np.moveaxis(words, 0, 2)
    if words.shape != layout.size_hw + (layout.samples,) * (layout.samples > 1):
        raise bad_pixels("The pixel data have another size than the header says.")
    # libjpeg turns YBR into RGB where it is lossy, OpenJPEG what JPEG 2000 itself transformed
    is_ybr = layout.photometric.startswith("YBR") and (
        about.kind in ("JPEG-LS", "lossless JPEG")
        or (found == _JPEG2000 and layout.photometric not in ("YBR_RCT", "YBR_ICT"))
    )
    signed = words.dtype.kind == "i"
    lossy = about.lossy and signed == layout.signed
    if signed:  # two's complement in a word of its own
        return Words(words.astype(np.int16).view(np.uint16), layout.allocated, is_ybr, lossy)
    return Words(words, about.bits, is_ybr, lossy)


def _padded(needed: int) -> tuple[int, int]:
    return needed, needed + needed % 2


def _joined(data: bytes) -> bytes:
    """The compressed image of all fragments but the offset table."""
    at = 0
    parts: list[bytes] = []
    while data[at : at + 4] == _ITEM and len(parts) < _MOST_FRAGMENTS:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > len(data):
            raise FilmError("truncated", "The DICOM file ends inside its pixel data.")
        parts.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    if data[at:].strip(b"\0") and not data.startswith(_DELIMITER, at):
        raise FilmError("truncated", "The DICOM file ends inside its pixel data.")
    if parts[0].startswith(_STARTS):  # some writers leave the offset table out
        parts.insert(0, b"")
    images = max(len(parts[0]) // 4, sum(part.startswith(_STARTS) for part in parts[1:]))
    if images > 1:
        raise FilmError("multi_frame", f"The pixel data hold {images} images; a film has one.")
    stream = b"".join(parts[1:])
    if stream[4:8] == b"jP  ":  # a whole JP2 file: its codestream is what DICOM allows
        stream = stream[max(stream.find(b"\xff\x4f\xff\x51"), 0) :]
    if not stream:
        raise FilmError("no_pixels", "The DICOM file holds an empty image.")
    return stream


def _look_at(stream: bytes, said: str, layout: Layout) -> tuple[str, StreamHeader | None]:
    """What a compressed stream is, by its first bytes, and what it says of itself, checked; ""
    where it is nothing known."""
    if stream[:2] == b"\xff\xd8":
        about = check_jpeg(stream)
        return _JPEG_LS if about.kind == "JPEG-LS" else _JPEG, about
    if stream[:2] == b"\xff\x4f":
        return _JPEG2000, check_jpeg2000(stream)
    planes = layout.samples * layout.allocated // 8
    if said == _RLE or stream[:8] == struct.pack("<2I", planes, 64):
        return _RLE, None
    return "", None


def _native(ds: Dataset, layout: Layout, needed: int, big: bool) -> np.ndarray:
    data = ds.PixelData
    if len(data) < needed:
        raise bad_pixels(f"The pixel data have {len(data):,} bytes, the header says {needed:,}.")
    if len(data) >= 2 * needed:
        raise bad_pixels("The pixel data hold more images than the header says.")
    kind = np.dtype("u1" if layout.allocated == 8 else ">u2" if big else "<u2")
    if big and layout.allocated == 8 and ds["PixelData"].VR == "OW":
        swapped = np.frombuffer(data[: len(data) // 2 * 2], "<u2").byteswap().tobytes()
        data = swapped + data[len(swapped) :]
    words = np.frombuffer(data, kind, count=needed // kind.itemsize)
    words = words.astype(kind.newbyteorder("="), copy=False)
    height, width = layout.size_hw
    if layout.samples == 1:
        return words.reshape(height, width)
    if layout.photometric == "YBR_FULL_422":  # Y Y Cb Cr for each two pixels
        pairs = words.reshape(-1, 4)
        pairs = np.stack([pairs[:, [0, 2, 3]], pairs[:, [1, 2, 3]]], axis=1)
        return pairs.reshape(height, width, 3)
    if layout.planar:
        return np.moveaxis(words.reshape(3, height, width), 0, 2)
    return words.reshape(height, width, 3)


def _rle(stream: bytes, layout: Layout) -> np.ndarray:
    """PackBits of a plane for each byte of each sample, the highest byte first (PS3.5 annex G)."""
    count, *starts = struct.unpack_from("<16I", stream)
    height, width = layout.size_hw
    size, deep = height * width, layout.allocated // 8
    if count != layout.samples * deep:
        raise bad_pixels(f"The RLE data have {count} planes, the header other ones.")
    ends = [*starts[1:count], len(stream)]
    words = np.zeros((size, layout.samples), np.uint16 if deep == 2 else np.uint8)
    for plane, (start, end) in enumerate(zip(starts, ends, strict=False)):
        segment = stream[start:end]
        raw = imagecodecs.packbits_decode(segment, out=size + len(segment))  # padding behind it
        if len(raw) < size:
            raise FilmError("truncated", "The RLE data have fewer pixels than the header says.")
        words[:, plane // deep] |= np.frombuffer(raw, np.uint8, size).astype(words.dtype) << (
            8 * (deep - 1 - plane % deep)
        )
    return words.reshape((height, width) + (layout.samples,) * (layout.samples > 1))


def _decode(found: str, stream: bytes, layout: Layout) -> np.ndarray:
    if found == _JPEG_LS:
        return imagecodecs.jpegls_decode(stream)
    if found == _JPEG2000:
        return imagecodecs.jpeg2k_decode(stream)
    if layout.photometric == "RGB" and not _CONVERTED.search(stream[:4096]):
        return imagecodecs.jpeg_decode(stream, colorspace="RGB", outcolorspace="RGB")
    return imagecodecs.jpeg_decode(stream)
