"""The header of a film that results belong to: what they copy from it, made fit to be copied.

Identity goes from here into the result objects and nowhere else. Values that the standard does not
allow are left out where they identify nobody, and kept as they are where they do.
"""

from __future__ import annotations

import re
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pydicom
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from cxr.film import looks_like_dicom

MANUFACTURER, MODEL = "lungfirst project", "lungfirst"
_UID = re.compile(r"[0-9.]{1,64}")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_NAMES = ("PatientName", "ReferringPhysicianName")
_TEXTS = ("PatientID", "AccessionNumber", "StudyID")  # type 2, as are the names
_MORE = ("IssuerOfPatientID", "StudyDescription", "BodyPartExamined")
_PIXELS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
_TABLES = ("VOILUTSequence", "ModalityLUTSequence")
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing")
_ZONE = re.compile(r"([+-])(\d{2})(\d{2})")


def is_ours(dataset: Dataset) -> bool:
    """Whether an object is a result made here, which must never be judged as a film."""
    maker = str(dataset.get("Manufacturer") or "").strip(" \0").lower()
    return maker == MANUFACTURER


def read_header(path: Path) -> Dataset | None:
    """A film's header, fit to be copied from (see `fit_to_copy`); None for a file that is no DICOM
    or lacks what an object must point at. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(256)
    if not looks_like_dicom(start):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they would tell values
        try:
            film = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            return fit_to_copy(film)
        except OSError:
            raise
        except Exception:  # pydicom raises all kinds on a damaged header
            return None


def fit_to_copy(film: Dataset) -> Dataset | None:
    """What results copy from a film: all of type 1 and 2 that they need is there, empty where the
    film has none. None where it has no UIDs."""
    out = Dataset()
    for keyword in _NEEDED:
        text = _text(film, keyword)
        if not _UID.fullmatch(text):
            return None
        setattr(out, keyword, text)
    out.SpecificCharacterSet = _characters(film)
    for keyword in _NAMES:
        setattr(out, keyword, PersonName(_text(film, keyword)))
    for keyword in _TEXTS:
        setattr(out, keyword, _text(film, keyword))
    for keyword in _MORE:
        if text := _text(film, keyword):
            setattr(out, keyword, text)
    out.PatientBirthDate = _date(_text(film, "PatientBirthDate"))
    sex = _text(film, "PatientSex").upper()
    out.PatientSex = sex if sex in ("M", "F", "O") else ""
    out.StudyDate = _date(_text(film, "StudyDate"))
    out.StudyTime = _time(_text(film, "StudyTime"))
    if _ZONE.fullmatch(zone := _text(film, "TimezoneOffsetFromUTC")):
        out.TimezoneOffsetFromUTC = zone
    out.Modality = _text(film, "Modality") or "OT"
    _copy_picture(film, out)
    return out


def local_time(header: Dataset, when: datetime) -> datetime:
    """The time in the film's own zone where it names one, else as it is."""
    match = _ZONE.fullmatch(header.get("TimezoneOffsetFromUTC", ""))
    if not match or when.tzinfo is None:
        return when
    shift = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return when.astimezone(timezone(shift if match[1] == "+" else -shift))


def _copy_picture(film: Dataset, out: Dataset) -> None:
    """How the picture is laid out and shown."""
    for keyword in (*_PIXELS, *_TABLES):
        if _value(film, keyword) is not None:
            setattr(out, keyword, _value(film, keyword))
    centres, widths = (_numbers(film, f"Window{part}") for part in ("Center", "Width"))
    if centres and len(centres) == len(widths) and min(widths) >= 1:
        out.WindowCenter, out.WindowWidth = centres, widths
    lines = [_numbers(film, f"Rescale{part}") for part in ("Intercept", "Slope")]
    if [len(line) for line in lines] == [1, 1]:
        (out.RescaleIntercept,), (out.RescaleSlope,) = lines
        out.RescaleType = _text(film, "RescaleType") or "US"
    out.PhotometricInterpretation = _text(film, "PhotometricInterpretation") or "MONOCHROME2"
    frames = _text(film, "NumberOfFrames")
    if frames.isdigit() and int(frames) > 1:
        out.NumberOfFrames = int(frames)
    for keyword in _SPACINGS:
        values = [_positive(v) for v in _text(film, keyword).split("\\")]
        if len(values) == 2 and all(values):
            setattr(out, keyword, values)
    out.PatientOrientation = (
        _text(film, "PatientOrientation").split("\\") if _text(film, "PatientOrientation") else None
    )
    for keyword in ("Laterality", "ImageLaterality"):
        if _text(film, keyword) in ("L", "R"):
            setattr(out, keyword, _text(film, keyword))
    for keyword in _LOSSY:
        if _value(film, keyword) is not None:
            setattr(out, keyword, _value(film, keyword))


def _value(film: Dataset, keyword: str) -> Any:
    """An element's value; None where it is absent, empty or damaged."""
    try:
        value = film.get(keyword)
    except Exception:  # pydicom raises all kinds on a damaged element
        return None
    return None if value in ("", b"") else value


def _numbers(film: Dataset, keyword: str) -> list[float]:
    """All values of an element as numbers; [] where one of them is none."""
    try:
        return [float(text) for text in _text(film, keyword).split("\\")]
    except ValueError:
        return []


def _text(film: Dataset, keyword: str) -> str:
    """An element as it would be typed; "" where it is absent or damaged."""
    value = _value(film, keyword)
    if value is None or isinstance(value, bytes):
        return ""
    if isinstance(value, MultiValue | list):
        return "\\".join(str(v) for v in value)
    return str(value).strip(" \0")


def _characters(film: Dataset) -> str | list[str]:
    """The film's character set, where it is one; our own words are ASCII."""
    named = _text(film, "SpecificCharacterSet")
    codes = named.split("\\") if named else []
    try:
        convert_encodings(codes)
    except LookupError:
        return "ISO_IR 192"
    return codes[0] if len(codes) == 1 else codes


def _date(text: str) -> str:
    """YYYYMMDD, of the old YYYY.MM.DD too; "" for what is no date."""
    plain = text.replace(".", "") if re.fullmatch(r"\d{4}\.\d{2}\.\d{2}", text) else text
    try:
        datetime.strptime(plain, "%Y%m%d")
    except ValueError:
        return ""
    return plain


def _time(text: str) -> str:
    """HHMMSS.F, of the old HH:MM:SS too; "" for what is no time."""
    plain = text.replace(":", "")
    found = re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", plain)
    return plain if found else ""


def _positive(text: str) -> float:
    try:
        return max(float(text), 0.0)
    except ValueError:
        return 0.0
