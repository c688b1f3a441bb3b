"""Reading of DICOM radiographs: what the header must say, what is kept of it, what is refused.

Names and clear-text ids of a header never leave this module: ids are hashed.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import warnings
import zlib
from dataclasses import dataclass, field

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from cxr.codestream import MAX_PIXELS, check_size
from cxr.dicom_decode import decode_stored
from cxr.errors import FilmError
from cxr.greyscale import colour_to_grey, grey_from_stored, min_max_valid
from cxr.intensity import resize
from cxr.notes import note

# RG and HC are digitised film, DR is written by some devices for DX, SC by some for OT.
_FILM_MODALITIES = {"CR", "DX", "DR", "RG", "HC", "OT", "SC"}
_FILM_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # CR, and by prefix .1.1.1, .1.1.1.1 DX
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture, and its multi-frame forms
)
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_HASH_KEY_VARIABLE = "LUNGFIRST_HASH_KEY"
_DEFAULT_HASH_KEY = "lungfirst"
_SQUARE = 1.01  # sides of a pixel that count as alike
_WIDEST = 4.0  # a ratio beyond it is a fault of the header
_FOR_PROCESSING = {
    f"1.2.840.10008.5.1.4.1.1.1.{kind}.1" for kind in (1, 2, 3)
}  # DX, mammography, intraoral


@dataclass(frozen=True, eq=False)
class StoredFilm:
    """What a DICOM file gives; the fields are those of `cxr.film.Film`."""

    pixels: np.ndarray = field(repr=False)  # (H, W) float32 in [0, 1], dense bone white
    spacing_mm: tuple[float, float] | None
    view: str
    laterality: str
    patient: str
    study: str
    bits: int
    notes: tuple[str, ...]
    stored_hw: tuple[int, int] | None = None


def read_dicom(data: bytes, for_processing: bool = False) -> StoredFilm:
    """Decode the bytes of a DICOM file.

    Raises:
        FilmError: with its reason; any failure of a decoder becomes one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers of old films are full of small faults
        try:
            return _read(data, for_processing)
        except FilmError:
            raise
        except Exception as error:  # decoders raise all kinds
            raise FilmError(
                "bad_pixels", f"The DICOM file could not be decoded ({type(error).__name__})."
            ) from error


def hash_id(text: str, kind: str) -> str:
    """Keyed BLAKE2b of an id as 16 hexadecimal digits; "" for an empty id.

    Args:
        text: the id in clear.
        kind: "patient" or "study": the same text hashes differently in each.

    The key is the environment variable LUNGFIRST_HASH_KEY. Without it a fixed, public key is used:
    ids then agree between sites, but somebody who can guess an id can recognise it.
    """
    text = text.strip().strip("\0")
    if not text:
        return ""
    secret = os.environ.get(_HASH_KEY_VARIABLE) or _DEFAULT_HASH_KEY
    key = hashlib.blake2b(secret.encode(), digest_size=32).digest()  # a key has at most 64 bytes
    person = kind.encode()[:16]
    return hashlib.blake2b(text.encode(), digest_size=8, key=key, person=person).hexdigest()


def _read(data: bytes, for_processing: bool) -> StoredFilm:
    if data[:4] == b"DICM":
        data = bytes(128) + data
    ds, notes = _parse(data)
    notes += _check_kind(ds) + _check_purpose(ds, for_processing)
    _check_present(ds, data)
    notes += _check_pixel_header(ds)
    stored = decode_stored(ds)
    if stored.ndim == 3:
        grey, more = min_max_valid(colour_to_grey(stored), None), [note("colour")]
    else:
        grey, more = grey_from_stored(ds, stored)
    spacing_mm, about_spacing = _spacing(ds)
    pixels = np.ascontiguousarray(grey, dtype=np.float32)
    stored_hw = pixels.shape
    pixels, spacing_mm, about_shape = _to_square(pixels, spacing_mm, _aspect(ds))
    return StoredFilm(
        pixels=pixels,
        stored_hw=None if pixels.shape == stored_hw else stored_hw,
        spacing_mm=spacing_mm,
        view=_view(ds),
        laterality=_laterality(ds),
        patient=hash_id(str(ds.get("PatientID") or ""), "patient"),
        study=hash_id(str(ds.get("StudyInstanceUID") or ""), "study"),
        bits=int(ds.BitsStored),
        notes=tuple(notes + more + about_spacing + about_shape),
    )


def _parse(data: bytes) -> tuple[Dataset, list[str]]:
    notes = []
    has_preamble = data[128:132] == b"DICM"
    if not has_preamble:
        notes.append(note("preamble_missing"))
    if _DEFLATED in data[:1024]:
        _check_deflated(data)
    try:
        ds = pydicom.dcmread(io.BytesIO(data), force=not has_preamble)
    except InvalidDicomError as error:
        raise FilmError("not_an_image", "The file is no DICOM file.") from error
    except (EOFError, struct.error) as error:
        raise FilmError("truncated", "The DICOM header breaks off.") from error
    if not len(ds):
        raise FilmError("truncated", "The DICOM file holds no data set.")
    if "TransferSyntaxUID" not in ds.file_meta:
        notes.append(note("meta_missing"))
        implicit, little = ds.original_encoding
        code = "1.2.840.10008.1.2" + ("" if implicit else ".1" if little else ".2")
        ds.file_meta.TransferSyntaxUID = UID(code)
    return ds, notes


def _check_deflated(data: bytes) -> None:
    """A deflated data set of a kilobyte can ask for gigabytes: inflate it piece by piece first."""
    if data[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise FilmError("unsupported_syntax", "The deflated DICOM file has no file meta length.")
    start = 144 + int.from_bytes(data[140:144], "little")
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    piece = inflater.decompress(data[start:], 1 << 24)
    while piece:
        size += len(piece)
        if size > 2 * MAX_PIXELS + (1 << 24):
            raise FilmError("bad_pixels", "The deflated DICOM file is larger than a film may be.")
        piece = inflater.decompress(inflater.unconsumed_tail, 1 << 24)
    if not inflater.eof:
        raise FilmError("truncated", "The deflated DICOM data break off.")


def _check_kind(ds: Dataset) -> list[str]:
    """Refuse what is no single radiograph; returns notes."""
    sop_class = str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or "")
    if sop_class == _DIRECTORY_CLASS or "DirectoryRecordSequence" in ds:
        raise FilmError("no_pixels", "The file is a DICOMDIR: a list of files, not a film.")
    if "EncryptedAttributesSequence" in ds or "EncryptedContent" in ds:
        raise FilmError("encrypted", "The DICOM file has encrypted attributes.")
    modality = str(ds.get("Modality") or "").strip().upper()
    by_class = any(sop_class == c or sop_class.startswith(f"{c}.") for c in _FILM_CLASSES)
    if modality and modality not in _FILM_MODALITIES:
        shown = modality if modality.isalnum() and len(modality) <= 8 else "unknown"
        raise FilmError(
            "wrong_modality", f"The modality is {shown}; films are CR, DX or a capture of one (OT)."
        )
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1") and not by_class and modality in {"", "OT"}:
        raise FilmError("wrong_modality", "The DICOM object is of a kind that holds no film.")
    frames = ds.get("NumberOfFrames")
    if frames is not None and int(frames or 1) > 1:
        raise FilmError("multi_frame", f"The file holds {int(frames)} frames; a film has one.")
    return [] if modality else [note("modality_missing")]


def _check_purpose(ds: Dataset, for_processing: bool) -> list[str]:
    """Refuse raw detector data unless they are asked for; returns notes."""
    intent = "".join(c for c in str(ds.get("PresentationIntentType") or "").upper() if c.isalpha())
    if intent != "FORPROCESSING" and str(ds.get("SOPClassUID")) not in _FOR_PROCESSING:
        return [note("intent_unknown")] if intent not in ("", "FORPRESENTATION") else []
    if not for_processing:
        raise FilmError(
            "for_processing",
            "The film is FOR PROCESSING: raw detector data; take the one FOR PRESENTATION.",
        )
    return [note("for_processing")]


def _check_present(ds: Dataset, data: bytes) -> None:
    """Refuse a data set whose pixel data are absent or shorter than announced."""
    if "PixelData" in ds:
        raw = ds.get_item("PixelData")
        inflated = ds.file_meta.TransferSyntaxUID.is_deflated
        if not inflated and isinstance(raw, pydicom.dataelem.RawDataElement):
            undefined = raw.length == 0xFFFFFFFF
            length = len(raw.value or b"") + 8 if undefined else raw.length  # 8: end of sequence
            if raw.value_tell + length > len(data):
                raise FilmError("truncated", "The DICOM file ends inside its pixel data.")
        if ds.PixelData:
            return
    elif not ds.file_meta.TransferSyntaxUID.is_deflated and _breaks_off(ds, data):
        raise FilmError("truncated", "The DICOM file ends before its pixel data.")
    raise FilmError("no_pixels", "The DICOM file holds no pixel data.")


def _breaks_off(ds: Dataset, data: bytes) -> bool:
    last = ds.get_item(max(ds.keys()))
    if not isinstance(last, pydicom.dataelem.RawDataElement) or last.length == 0xFFFFFFFF:
        return False
    return last.value_tell + last.length != len(data)


def _check_pixel_header(ds: Dataset) -> list[str]:
    """Check the image pixel module, fill what may be assumed; returns notes."""
    notes = []
    allocated = _header_int(ds, "BitsAllocated")
    defaults = {"BitsStored": allocated, "SamplesPerPixel": 1, "PixelRepresentation": 0}
    for keyword, value in defaults.items():
        if ds.get(keyword) in (None, ""):
            setattr(ds, keyword, value)
            notes.append(note("assumed", element=keyword, value=value))
    if not ds.get("PhotometricInterpretation"):
        ds.PhotometricInterpretation = "MONOCHROME2" if ds.SamplesPerPixel == 1 else "RGB"
        notes.append(
            note(
                "assumed",
                element="PhotometricInterpretation",
                value=ds.PhotometricInterpretation,
            )
        )
    stored, samples = _header_int(ds, "BitsStored"), _header_int(ds, "SamplesPerPixel")
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise FilmError(
            "bad_pixels",
            f"{stored} bits stored in {allocated} allocated; films have 1 to 16 in 8 or 16.",
        )
    if samples not in (1, 3) or _header_int(ds, "PixelRepresentation") not in (0, 1):
        raise FilmError("bad_pixels", "Samples per pixel or pixel representation is not allowed.")
    if samples == 3 and "PlanarConfiguration" not in ds:
        ds.PlanarConfiguration = 0
    ds.NumberOfFrames = 1
    check_size((_header_int(ds, "Rows"), _header_int(ds, "Columns")), samples)
    return notes


def _header_int(ds: Dataset, keyword: str) -> int:
    try:
        return int(ds[keyword].value)
    except (KeyError, TypeError, ValueError) as error:
        raise FilmError("bad_pixels", f"The header's {keyword} is missing or no number.") from error


def _spacing(ds: Dataset) -> tuple[tuple[float, float] | None, list[str]]:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        value = ds.get(keyword)
        if value is None or value == "":
            continue
        try:
            row_mm, column_mm = (float(v) for v in value)
        except (TypeError, ValueError):
            continue
        if all(math.isfinite(v) and v > 0 for v in (row_mm, column_mm)):
            at_detector = keyword == "ImagerPixelSpacing"
            notes = [note("spacing_detector")] if at_detector else []
            return (row_mm, column_mm), notes
    return None, []


def _aspect(ds: Dataset) -> float:
    """Height of a pixel over its width where the header has no spacing."""
    try:
        height, width = (float(v) for v in ds.get("PixelAspectRatio") or (1, 1))
        return height / width
    except (TypeError, ValueError, ZeroDivisionError):
        return 1.0


def _to_square(
    pixels: np.ndarray, spacing_mm: tuple[float, float] | None, aspect: float
) -> tuple[np.ndarray, tuple[float, float] | None, list[str]]:
    """Pixels with the coarser axis resampled to the finer one's spacing, the spacing, notes."""
    ratio = spacing_mm[0] / spacing_mm[1] if spacing_mm else aspect
    if 1 / _SQUARE <= ratio <= _SQUARE:
        return pixels, spacing_mm, []
    height, width = pixels.shape
    hw = (round(height * max(ratio, 1)), round(width * max(1 / ratio, 1)))
    told = f"{ratio:.4g} : 1"
    if not 1 / _WIDEST <= ratio <= _WIDEST or hw[0] * hw[1] > MAX_PIXELS:
        return pixels, spacing_mm, [note("not_square_ignored", value=told)]
    if spacing_mm:
        spacing_mm = (min(spacing_mm),) * 2
    return resize(pixels, hw), spacing_mm, [note("not_square", value=told)]


def _view(ds: Dataset) -> str:
    text = str(ds.get("ViewPosition") or "").strip().upper()
    if not text and ds.get("ViewCodeSequence"):
        text = str(ds.ViewCodeSequence[0].get("CodeMeaning") or "").upper()
    letters = "".join(c for c in text if c.isalpha())
    if letters in {"PA", "POSTEROANTERIOR"}:
        return "PA"
    if letters in {"AP", "ANTEROPOSTERIOR"}:
        return "AP"
    if letters in {"LL", "RL", "LAT", "LLAT", "RLAT"} or letters.endswith("LATERAL"):
        return "LATERAL"
    return "unknown"


def _laterality(ds: Dataset) -> str:
    for keyword in ("ImageLaterality", "Laterality"):
        value = str(ds.get(keyword) or "").strip().upper()
        if value in {"L", "R", "B", "U"}:
            return value
    return ""
