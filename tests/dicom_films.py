"""Synthetic DICOM films for the tests: data sets, files, compressed files."""

from __future__ import annotations

import io
import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, generate_uid

from cxr.dicom import read_dicom
from cxr.notes import FilmError, code_of

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
BASELINE, EXTENDED, LOSSLESS, LOSSLESS_SV1, JLS, JLS_NEAR, J2K, J2K_LOSSY = (
    f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)
)
CR = "1.2.840.10008.5.1.4.1.1.1"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
H, W = 96, 72
_PACKED = {
    "rle": RLE,
    "jpeg-ls": JLS,
    "jpeg lossless": LOSSLESS_SV1,
    "htj2k": "1.2.840.10008.1.2.4.201",
    "jpeg 2000": J2K,
    "signed jpeg 2000": J2K,
}


def ramp(bits: int = 12) -> np.ndarray:
    """(96, 72) film that rises along rows and columns; its four corners all differ."""
    rows, columns = np.mgrid[0:H, 0:W]
    values = (rows * 3 + columns) / (3 * (H - 1) + W - 1) * (2**bits - 1)
    return np.rint(values).astype(np.uint8 if bits <= 8 else np.uint16)


def film(stored: np.ndarray, bits: int = 12, **header: object) -> Dataset:
    """A data set for stored values of (H, W) or (H, W, 3), not yet written."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CR, generate_uid()
    ds.Modality = "CR"
    ds.PatientID, ds.PatientName, ds.StudyInstanceUID = "MRN-4711", "Doe^Jane", "1.2.3.4"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.SamplesPerPixel = 3 if stored.ndim == 3 else 1
    ds.PhotometricInterpretation = "RGB" if stored.ndim == 3 else "MONOCHROME2"
    ds.BitsAllocated = stored.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW" if ds.BitsAllocated == 16 else "OB"
    for keyword, value in header.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def written(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    """The bytes of a complete DICOM file."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CR)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    if syntax == BIG and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    file = io.BytesIO()
    ds.save_as(
        file, implicit_vr=syntax == IMPLICIT, little_endian=syntax != BIG, enforce_file_format=True
    )
    return file.getvalue()


RAW = {"Modality": "DX", "PresentationIntentType": "FOR PROCESSING"}


def a_dicom(stored: np.ndarray, **header: object) -> bytes:
    """The bytes of a file of these stored values."""
    return written(film(stored, **header))


def compressed(ds: Dataset, stream: bytes, syntax: str) -> bytes:
    """The bytes of a file whose image is the given stream."""
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return written(ds, syntax)


def by_pydicom(ds: Dataset, syntax: str, **options: object) -> bytes:
    """The bytes of a file compressed by pydicom's own encoder."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    ds.compress(UID(syntax), generate_instance_uid=False, **options)
    return written(ds, syntax)


def packed(
    ds: Dataset, words: np.ndarray, kind: str, syntax: str = "", behind: bytes = b""
) -> bytes:
    """The bytes of a file whose (H, W) words are compressed without loss, of any bits."""
    bits = words.dtype.itemsize * 8
    if kind == "rle":
        planes = [words >> 8, words & 255] if bits == 16 else [words]
        parts = [imagecodecs.packbits_encode(plane.astype(np.uint8).tobytes()) for plane in planes]
        parts = [part + b"\0" * (len(part) % 2) for part in parts]
        starts = [64, 64 + len(parts[0])][: len(parts)]
        stream = struct.pack("<16I", len(parts), *starts, *[0] * (15 - len(parts))) + b"".join(
            parts
        )
    elif kind == "jpeg-ls":
        stream = imagecodecs.jpegls_encode(words)
    elif kind == "jpeg lossless":
        stream = imagecodecs.jpeg_encode(words, lossless=True, predictor=1, bitspersample=bits)
    elif kind == "htj2k":
        stream = imagecodecs.htj2k_encode(words)
    else:
        signed = np.dtype(f"i{bits // 8}")
        samples = words.view(signed) if kind.startswith("signed") else words
        stream = imagecodecs.jpeg2k_encode(
            samples, bitspersample=bits, codecformat="j2k", reversible=True
        )
    return compressed(ds, stream + behind, syntax or _PACKED[kind])


def jpeg(stored: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "JPEG", quality=98)
    return file.getvalue()


def codes(notes: tuple[str, ...]) -> set[str]:
    return {code_of(text) for text in notes}


def refused(data: bytes) -> str:
    with pytest.raises(FilmError) as caught:
        read_dicom(data)
    return caught.value.reason
