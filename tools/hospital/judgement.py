"""What a finished run says of each film, and what results copy from the film's header.

Identity goes from a header into the result objects and nowhere else. Values that the standard does
not allow are left out where they identify nobody, and kept as they are where they do.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pydicom
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from classify.audit.rows import AuditRow, read_audit
from classify.predictions import PredictionRow, name_of, read_predictions
from classify.screener import Screener
from classify.screening.guarantee import OperatingPoint
from cxr.film import looks_like_dicom
from cxr.manifest import CropRow, read_manifest
from cxr.workdir import read_json

_SPACE = UUID("e5735b43-45bc-46fd-9ff8-6dbc6a8fb8ad")  # of all UIDs that are made here


def uid_of(*parts: str) -> str:
    """A UID of these parts alone. Of a film's result: its SOP Instance UID (not its bytes' hash: a
    PACS transcodes), `Ran.weights`, `Ran.threshold`, and the object's kind with what it holds
    beyond the usual; so it is the same for the same film and models, whenever it is made."""
    return f"2.25.{uuid5(_SPACE, chr(0).join(parts)).int}"


@dataclass(frozen=True)
class Algorithm:
    """One step of the judgement, as TID 4019 has it: `version` names every file of weights with
    its SHA-256."""

    name: str
    version: str
    parameters: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the version, where that is too long."""
        return hashlib.sha256(self.version.encode()).hexdigest()

    @property
    def uid(self) -> str:
        """A device's UID, another one for other weights."""
        return uid_of(self.name, self.version, *self.parameters)


@dataclass(frozen=True)
class Judged:
    """One film of a run.

    Attributes:
        ran: the run. `film`, `path`: its name in the run's tables, and its file.
        boxed: its row among the crops. `row`: its row of predictions.csv.
        judge: what judged it; None where no member saw the film.
        point: the operating point of the screener that judged it; None without one.
        audits: its rows of audit.csv that have a lift.
        far: its distance from the calibration films in units of what is allowed; None unguarded.
        saliency: the run's picture of the strongest member's map, `saliency_of`.
    """

    ran: Ran
    film: str
    path: Path
    boxed: CropRow
    row: PredictionRow
    judge: Algorithm | None = None
    point: OperatingPoint | None = None
    audits: tuple[AuditRow, ...] = ()
    far: float | None = None
    saliency: Path | None = None
    saliency_of: str = ""

    def uid(self, header: Dataset, kind: str) -> str:
        """Of a result of this film."""
        return uid_of(header.SOPInstanceUID, self.ran.weights, self.ran.threshold, kind)

    @property
    def thorax_xyxy(self) -> tuple[float, float, float, float] | None:
        """The thorax box in the film's stored pixels; None where none is sure enough."""
        return self.boxed.thorax_xyxy if self.row.status == "ok" else None

    @property
    def seen(self) -> bool:
        """Did the members see it?"""
        return self.row.logits is not None

    @property
    def line(self) -> str:
        """The decision in a line of ASCII, for a picture."""
        said = {"definitely_normal": "cleared", "read": "to be read"}
        told = f"lungfirst: {said.get(self.row.decision, 'not judged')}"
        if self.row.abnormal_score is not None and self.point is not None:
            told += f", score {self.row.abnormal_score:.3f} (threshold {self.point.threshold:.3f})"
        return f"{told}. Research only."


@dataclass(frozen=True)
class Ran:
    """A folder of `classify.run FILMS --crops`, opened by `read_ran`."""

    folder: Path
    made: Mapping[str, Any]
    rows: Sequence[PredictionRow]
    boxed: Mapping[str, CropRow]
    audits: Mapping[str, list[AuditRow]] = field(default_factory=dict)

    @cached_property
    def weights(self) -> str:
        """A digest of the settings and weights that a judgement hangs on."""
        plain = json.dumps(self.made["settings"], sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()

    @property
    def threshold(self) -> str:
        """The screeners' thresholds by their names."""
        return str(self.made["settings"].get("threshold", ""))

    @cached_property
    def boxer(self) -> Algorithm:
        """What found the thorax."""
        crops = dict(self.made["settings"].get("crops") or {})
        files = crops.pop("boxes_from", {})
        told = tuple(f"{k} {v}" for k, v in sorted(crops.items()))
        return Algorithm("lungfirst thorax box", _files(files), told)

    @property
    def field_sha256(self) -> str:
        """Of the lung field's network."""
        crops = self.made["settings"].get("crops") or {}
        return str(crops.get("boxes_from", {}).get("lungfield.safetensors", ""))

    @property
    def software(self) -> str:
        """Version of the code that judged."""
        return f"lungfirst {self.made.get('git_commit', '')}".strip()[:64]

    @cached_property
    def ensembles(self) -> dict[str, tuple[Algorithm, OperatingPoint | None]]:
        """What judged, by the name of its folder. Raises ValueError where a screener is no longer
        the one of the run."""
        folders = self.made.get("folders", {})
        return {
            Path(folder).name: self._ensemble(Path(folder))
            for key, folder in folders.items()
            if key == "ensemble" or key.startswith("ensemble ")
        }

    def _ensemble(self, folder: Path) -> tuple[Algorithm, OperatingPoint | None]:
        from classify.members import GUARD, member_files, targets_of
        from cxr.bundle import bundle_meta

        name, members = folder.name, self.made["settings"].get("members", {})
        targets = [t for path in member_files(folder) for t in targets_of(bundle_meta(path))]
        files = {t: members[t] for t in targets if t in members}
        weights = self.made.get("weights", {})
        guard = weights.get(f"{name}/{GUARD}") or weights.get(GUARD)
        files |= {GUARD: guard} if guard else {}
        told: tuple[str, ...] = ()
        point = None
        if (folder / "screener.json").is_file():
            screener = Screener.load(folder)
            if screener.threshold_id not in self.threshold:
                raise ValueError(
                    f"{folder} must hold the screener that the run was judged by, "
                    f"{self.threshold}. It holds {screener.threshold_id}: put the old one back, "
                    "or make the run again."
                )
            point = screener.point
            files |= {"screener": screener.sha256}
            told = (f"threshold {point.threshold!r}",)
        if (least := self.made["settings"].get("tier_threshold")) is not None:
            told += (f"tier_threshold {least}",)
        return Algorithm(f"lungfirst {name}", _files(files), told), point

    def judged(self, source: Mapping[str, Path] | None = None) -> Iterator[Judged]:
        """Each film of predictions.csv, in order. `source` says where a film's file is now, by its
        name; the others are where the run read them."""
        cards = _Cards(self.folder / "report.jsonl")
        only = next(iter(self.ensembles)) if len(self.ensembles) == 1 else ""
        for row in self.rows:
            boxed, card = self.boxed[row.film], cards.of(row.film)
            judge, point = self.ensembles.get(row.ensemble or only, (None, None))
            shown = card.get("saliency") or {}
            uri = shown.get("uri", "")
            yield Judged(
                self,
                row.film,
                Path((source or {}).get(row.film, boxed.film)),
                boxed,
                row,
                judge if row.logits is not None else None,
                point if row.abnormal_score is not None else None,
                tuple(a for a in self.audits.get(row.film, ()) if a.value("lift") is not None),
                card.get("far"),
                self.folder / uri if uri and not uri.startswith("data:") else None,
                card.get("saliency_of", ""),
            )


def read_ran(folder: Path) -> Ran:
    """Raises ValueError or OSError for what is no finished run over films that it cropped."""
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(
            f"RUN must be a folder of python -m classify.run FILMS --crops. {folder} holds no "
            "run.json."
        )
    made = read_json(path)
    folders = made.get("folders") or {}
    if made.get("settings", {}).get("input") != "crops":
        raise ValueError(
            f"RUN must be one over crops, whose boxes the results show. {folder} judged whole "
            "films: run python -m classify.run FILMS --crops."
        )
    own = folder / "crops"
    place = own if (own / "manifest.jsonl").is_file() else Path(folders["crops"])
    boxed = {name_of(row.film): row for row in read_manifest(place)[1]}
    rows = read_predictions(folder / "predictions.csv")[1]
    if lost := next((row.film for row in rows if row.film not in boxed), None):
        raise ValueError(f"{place} must hold the crops of {folder}. It lacks {lost}.")
    audits: dict[str, list[AuditRow]] = {}
    audited = folder / "audit" / "audit.csv"
    for audit in read_audit(audited) if audited.is_file() else ():
        audits.setdefault(audit.film, []).append(audit)
    return Ran(folder, made, rows, boxed, audits)


class _Cards:
    """Cards of a run's report by film, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self._places = path, dict[str, int]()
        if not path.is_file():
            return
        with path.open("rb") as file:
            place = 0
            for line in file:
                self._places[json.loads(line)["film"]] = place
                place += len(line)

    def of(self, film: str) -> dict[str, Any]:
        if film not in self._places:
            return {}
        with self.path.open("rb") as file:
            file.seek(self._places[film])
            return dict(json.loads(file.readline()))


def _files(weights: Mapping[str, str]) -> str:
    """Files of weights with their hashes; a file that serves several targets is told once."""
    names: dict[str, list[str]] = {}
    for name, sha in weights.items():
        names.setdefault(sha, []).append(name)
    return "; ".join(f"{', '.join(own)} sha256 {sha}" for sha, own in names.items())


_UID = re.compile(r"[0-9.]{1,64}")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_NAMES = ("PatientName", "ReferringPhysicianName")
_TEXTS = ("PatientID", "AccessionNumber", "StudyID")  # type 2, as are the names
_MORE = ("IssuerOfPatientID", "StudyDescription", "BodyPartExamined")
_AS_THEY_ARE = (
    *("Rows", "Columns", "SamplesPerPixel", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit", "VOILUTSequence", "ModalityLUTSequence"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing")
_ZONE = re.compile(r"[+-]\d{4}")


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
    zone = header.get("TimezoneOffsetFromUTC", "")
    if not zone or when.tzinfo is None:
        return when
    return when.astimezone(datetime.strptime(zone, "%z").tzinfo)


def _copy_picture(film: Dataset, out: Dataset) -> None:
    """How the picture is laid out and shown."""
    for keyword in _AS_THEY_ARE:
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
        values = _numbers(film, keyword)
        if len(values) == 2 and all(v > 0 for v in values):
            setattr(out, keyword, values)
    orientation = _text(film, "PatientOrientation")
    out.PatientOrientation = orientation.split("\\") if orientation else None
    for keyword in ("Laterality", "ImageLaterality"):
        if _text(film, keyword) in ("L", "R"):
            setattr(out, keyword, _text(film, keyword))


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
