"""Reading of DICOM radiographs: what the header must say, what is kept of it, what is refused.

Names and clear-text ids of a header never leave this module: ids are hashed.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import warnings
import zlib

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut
from pydicom.uid import UID

from cxr.greyscale import grey_from_words
from cxr.intensity import resize
from cxr.notes import FilmError, bad_pixels, decoding, note, shown
from cxr.picture import MAX_PIXELS, Film, to_grey
from cxr.pixel_data import Header, Layout, Words, decode_words

# RG and HC are digitised film, DR is written by some devices for DX, SC by some for OT.
_FILM_MODALITIES = {"CR", "DX", "DR", "RG", "HC", "OT", "SC"}
_OTHER_MODALITIES = (  # that a refusal may name; another word could be a person's name
    "AU BI BMD CT DG DOC ECG EPS ES FID GM HD IO IVOCT IVUS KER KO LEN LS MG MR NM OAM OCT OP OPM "
    "OPT OPV OSS PLAN PR PT PX RESP RF RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT SEG SM SMR SR SRF "
    "STAIN TG US VA XA XC"
)
_FILM_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1",  # CR, and by prefix .1.1.1, .1.1.1.1 DX
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture, and its multi-frame forms
)
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_HASH_KEY_VARIABLE = "LUNGFIRST_HASH_KEY"
_DEFAULT_HASH_KEY = "lungfirst"
_SPACINGS = {
    "PixelSpacing": "",
    "ImagerPixelSpacing": "spacing_detector",
    "NominalScannedPixelSpacing": "spacing_scanner",
}
_DELIMITER = b"\xfe\xff\xdd\xe0" + bytes(4)
_MOST_READS = 100_000  # a header's elements take two each
_SQUARE = 1.01  # sides of a pixel that count as alike
_WIDEST = 4.0  # a ratio beyond it is a fault of the header
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_OLDEST = 120
# DX, mammography, intraoral
_FOR_PROCESSING = {f"1.2.840.10008.5.1.4.1.1.1.{kind}.1" for kind in (1, 2, 3)}


def read_dicom(data: bytes, for_processing: bool = False) -> Film:
    """Decode the bytes of a DICOM file; raises FilmError."""
    with warnings.catch_warnings(), decoding("The DICOM header is damaged."):
        warnings.simplefilter("ignore")  # headers of old films are full of small faults
        return _read(data, for_processing)


def hash_id(text: str, kind: str) -> str:
    """Keyed BLAKE2b of an id as 16 hexadecimal digits; "" for an empty id. `kind` is "patient" or
    "study": the same text hashes differently in each. The key is the environment variable
    LUNGFIRST_HASH_KEY. Without it a fixed, public key is used: ids then agree between sites, but
    somebody who can guess an id can recognise it."""
    text = text.strip().strip("\0")
    if not text:
        return ""
    secret = os.environ.get(_HASH_KEY_VARIABLE) or _DEFAULT_HASH_KEY
    key = hashlib.blake2b(secret.encode(), digest_size=32).digest()  # a key has at most 64 bytes
    person = kind.encode()[:16]
    return hashlib.blake2b(text.encode(), digest_size=8, key=key, person=person).hexdigest()


def _read(data: bytes, for_processing: bool) -> Film:
    if data[:4] == b"DICM":
        data = bytes(128) + data
    ds, data, notes = _parse(data)
    header = Header(ds, notes)
    _check_kind(header, for_processing)
    _check_present(ds, data)
    layout = header.layout()
    image = decode_words(ds, layout, notes)
    if layout.photometric.startswith("MONOCHROME"):
        pixels = grey_from_words(header, layout, image)
    else:
        pixels = _grey_of_colour(header, layout, image)
    spacing_mm, ratio = _spacing(header)
    pixels, spacing_mm, stored_hw = _to_square(header, pixels, spacing_mm, ratio)
    words = (header.word(keyword) for keyword in ("ImageLaterality", "Laterality"))
    laterality = next((word for word in words if word in {"L", "R", "B", "U"}), "")
    view = _view(header)
    _note_fitness(header, image.lossy, view, laterality)
    return Film(
        pixels=pixels,
        spacing_mm=spacing_mm,
        view=view,
        laterality=laterality,
        patient=hash_id(str(ds.get("PatientID") or ""), "patient"),
        study=hash_id(str(ds.get("StudyInstanceUID") or ""), "study"),
        bits=layout.stored,
        notes=tuple(dict.fromkeys(notes)),
        stored_hw=stored_hw,
        age_years=_age(header),
    )


def _parse(data: bytes) -> tuple[Dataset, bytes, list[str]]:
    """The data set, the bytes that it was read from, notes."""
    notes = []
    has_preamble = data[128:132] == b"DICM"
    if not has_preamble:
        notes.append(note("preamble_missing"))
    if _DEFLATED in data[:1024]:
        start = _start_of_deflated(data)
        if data[start : start + 1] == b"\x08" and data[start + 4 : start + 6].isupper():
            notes.append(note("syntax_contradicted", said="deflated", found="uncompressed"))
            data = data.replace(_DEFLATED, b"1.2.840.10008.1.2.1\0\0\0", 1)
        else:
            _check_deflated(data[start:])
    ds = _read_data_set(data, has_preamble)
    if not len(ds):  # pydicom gives nothing back where the last element has no end
        ds = _read_data_set(data + _DELIMITER, has_preamble)
        raw = ds.get_item("PixelData") if "PixelData" in ds else None
        if not isinstance(raw, pydicom.dataelem.RawDataElement) or raw.value is None:
            raise FilmError("truncated", "The DICOM header breaks off.")
        if raw.value_tell + len(raw.value) != len(data):
            raise FilmError("truncated", "The DICOM file ends inside its pixel data.")
        notes.append(note("delimiter_missing"))
        data += _DELIMITER
    if "TransferSyntaxUID" not in ds.file_meta:
        notes.append(note("meta_missing"))
        implicit, little = ds.original_encoding
        code = "1.2.840.10008.1.2" + ("" if implicit else ".1" if little else ".2")
        ds.file_meta.TransferSyntaxUID = UID(code)
    return ds, data, notes


class _Counted(io.BytesIO):
    """A file whose reads are counted: a header of a million elements takes minutes to parse."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MOST_READS:
            raise bad_pixels("The DICOM header has more elements than a film's.")
        return super().read(size)


def _read_data_set(data: bytes, has_preamble: bool) -> Dataset:
    try:
        return pydicom.dcmread(_Counted(data), force=not has_preamble)
    except InvalidDicomError as error:
        raise FilmError("not_an_image", "The file is no DICOM file.") from error
    except (EOFError, struct.error) as error:
        raise FilmError("truncated", "The DICOM header breaks off.") from error


def _start_of_deflated(data: bytes) -> int:
    if data[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise FilmError("unsupported_syntax", "The deflated DICOM file has no file meta length.")
    return 144 + int.from_bytes(data[140:144], "little")


def _check_deflated(deflated: bytes) -> None:
    """A deflated data set of a kilobyte can ask for gigabytes: inflate it piece by piece first."""
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        piece = inflater.decompress(deflated, 1 << 24)
        while piece:
            size += len(piece)
            if size > 2 * MAX_PIXELS + (1 << 24):
                raise bad_pixels("The deflated DICOM file is too large for a film.")
            piece = inflater.decompress(inflater.unconsumed_tail, 1 << 24)
    except zlib.error as error:
        raise bad_pixels("The header says deflated, the data are not, or are damaged.") from error
    if not inflater.eof:
        raise FilmError("truncated", "The deflated DICOM data break off.")


def _check_kind(header: Header, for_processing: bool) -> None:
    """Refuse what is no single radiograph, and raw detector data unless they are asked for."""
    ds = header.ds
    sop_class = header.word("SOPClassUID") or str(ds.file_meta.get("MediaStorageSOPClassUID") or "")
    if sop_class == _DIRECTORY_CLASS or "DirectoryRecordSequence" in ds:
        raise FilmError("no_pixels", "The file is a DICOMDIR: a list of files, not a film.")
    if "EncryptedAttributesSequence" in ds or "EncryptedContent" in ds:
        raise FilmError("encrypted", "The DICOM file has encrypted attributes.")
    modality = header.word("Modality")
    by_class = any(sop_class == c or sop_class.startswith(f"{c}.") for c in _FILM_CLASSES)
    if modality and modality not in _FILM_MODALITIES:
        what = modality if modality in _OTHER_MODALITIES.split() else "unknown"
        raise FilmError(
            "wrong_modality", f"The modality is {what}; films are CR, DX or a capture of one (OT)."
        )
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1") and not by_class and modality in {"", "OT"}:
        raise FilmError("wrong_modality", "The DICOM object is of a kind that holds no film.")
    if not modality:
        header.notes.append(note("modality_missing"))
    frames = header.numbers("NumberOfFrames", "one assumed")
    if frames and frames[0] > 1:
        raise FilmError("multi_frame", f"The file holds {frames[0]:.12g} frames; a film has one.")
    if frames and frames[0] != 1:
        header.notes.append(note("frames_odd", value=f"{frames[0]:g}"))
    intent = "".join(c for c in header.word("PresentationIntentType") if c.isalpha())
    if intent == "FORPROCESSING" or sop_class in _FOR_PROCESSING:
        if not for_processing:
            raise FilmError(
                "for_processing",
                "The film is FOR PROCESSING: raw detector data; take the one FOR PRESENTATION.",
            )
        header.notes.append(note("for_processing"))
    elif intent not in ("", "FORPRESENTATION"):
        header.notes.append(note("intent_unknown"))


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


def _grey_of_colour(header: Header, layout: Layout, image: Words) -> np.ndarray:
    """A colour capture to (H, W) float32 in [0, 1], never stretched."""
    top = (1 << layout.stored) - 1
    words = image.words & image.words.dtype.type(top)
    if layout.samples == 1:
        with decoding("The header's colour palette is broken."):
            words = apply_color_lut(words, header.ds)
        top = int(np.iinfo(words.dtype).max)
    neutral = (top + 1) // 2 if image.is_ybr else words[..., 0]
    if any((words[..., n] != neutral).any() for n in (1, 2)):
        header.notes.append(note("colour"))
    return to_grey(words[..., 0] if image.is_ybr else words, top)


def _spacing(header: Header) -> tuple[tuple[float, float] | None, float]:
    """(row, column) spacing in mm or None, and the height of a pixel over its width."""
    for keyword, code in _SPACINGS.items():
        if spacing_mm := _pair(header, keyword, "spacing unknown"):
            if code:
                header.notes.append(note(code))
            return spacing_mm, spacing_mm[0] / spacing_mm[1]
    height, width = _pair(header, "PixelAspectRatio", "square pixels assumed") or (1.0, 1.0)
    return None, height / width


def _pair(header: Header, keyword: str, instead: str) -> tuple[float, float] | None:
    values = header.numbers(keyword, instead)
    if not values:
        return None
    if len(values) > 1 and min(values[:2]) > 0:
        return values[0], values[1]
    told = shown("\\".join(f"{value:g}" for value in values))
    header.notes.append(note("value_unreadable", element=keyword, value=told, instead=instead))
    return None


def _to_square(
    header: Header, pixels: np.ndarray, spacing_mm: tuple[float, float] | None, ratio: float
) -> tuple[np.ndarray, tuple[float, float] | None, tuple[int, int] | None]:
    """Pixels with the coarser axis resampled to the finer one's spacing, the spacing, and the
    (rows, columns) before where that was done."""
    if 1 / _SQUARE <= ratio <= _SQUARE:
        return pixels, spacing_mm, None
    height, width = pixels.shape
    told = f"{ratio:.4g} : 1"
    if not 1 / _WIDEST <= ratio <= _WIDEST or height * width * max(ratio, 1 / ratio) > MAX_PIXELS:
        header.notes.append(note("not_square_ignored", value=told))
        return pixels, spacing_mm, None
    header.notes.append(note("not_square", value=told))
    hw = (round(height * max(ratio, 1)), round(width * max(1 / ratio, 1)))
    return resize(pixels, hw), spacing_mm and (min(spacing_mm),) * 2, (height, width)


def _note_fitness(header: Header, lossy: bool, view: str, laterality: str) -> None:
    """Notes of what makes a film less fit to be judged, or another film than it seems."""
    if header.word("ImageType") == "DERIVED":
        header.notes.append(note("derived"))
    if header.word("ImageType", 1) == "SECONDARY" or header.word("SOPClassUID").startswith(
        _FILM_CLASSES[1]
    ):
        header.notes.append(note("secondary"))
    if lossy or header.word("LossyImageCompression") in ("01", "1"):
        ratios = header.numbers("LossyImageCompressionRatio", "ratio unknown") or ()
        told = ", ".join(f"{ratio:g} : 1" for ratio in ratios[:3])
        header.notes.append(note("lossy", ratio=told and f", {told}"))
    if laterality == "U":
        header.notes.append(note("unpaired"))
    elif laterality in ("L", "R"):
        header.notes.append(note("laterality", value=laterality))
    if view == "LATERAL":
        header.notes.append(note("lateral"))


def _view(header: Header) -> str:
    text = header.word("ViewPosition")
    if not text:
        item = (header.items("ViewCodeSequence") or [Dataset()])[0]
        text = Header(item, []).word("CodeMeaning")
    letters = "".join(c for c in text if c.isalpha())
    if letters in {"PA", "POSTEROANTERIOR"}:
        return "PA"
    if letters in {"AP", "ANTEROPOSTERIOR"}:
        return "AP"
    if letters in {"LL", "RL", "LAT", "LLAT", "RLAT"} or letters.endswith("LATERAL"):
        return "LATERAL"
    return "unknown"


def _age(header: Header) -> float | None:
    """Years by PatientAge (`004Y`, `011M`); None without one, for 0, which stands there for an age
    that was taken out, and for what can be none."""
    match = _AGE.fullmatch(header.word("PatientAge"))
    years = int(match[1]) * _YEARS[match[2]] if match else 0.0
    return years if 0 < years <= _OLDEST else None
