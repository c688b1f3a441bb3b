"""Real films with every oddity of a header that results must live with, and one run over them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRLittleEndian

from classify.predictions import PredictionRow
from cxr.manifest import CropRow

WHEN = datetime(2026, 11, 30, 12, 34, 56, tzinfo=UTC)
KINDS = ("sr", "gsps", "seg", "saliency", "sc")
KOREAN = "Hong^Gildong=洪^吉洞=홍^길동"
JAPANESE = "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"
LATIN = "Buc^Jérôme"
REFUSED = ("cut", "frames", "leg")
# identity that no file but a DICOM object may hold
SECRETS = (
    "CompressedSamples",
    "Gildong",
    "吉洞",
    "太郎",
    "Jérôme",
    "A-4711",
    "9RG1",
    "exam Number",
)

_MADE: list[World] = []


@dataclass
class World:
    """A finished run, its films by stem, and what its tables say."""

    root: Path
    run: Path
    rows: dict[str, PredictionRow]
    boxed: dict[str, CropRow]

    def film(self, stem: str) -> Path:
        return self.root / "films" / f"{stem}.dcm"

    def uids(self) -> set[str]:
        """Every UID of the films."""
        found = set()
        for path in self.root.glob("films/*.dcm"):
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
            keys = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
            found |= {str(header[k].value) for k in keys if k in header}
        return found


def make_films(folder: Path) -> None:
    """A chest of pydicom's samples in many headers, a leg, and what is no film."""
    folder.mkdir(parents=True)
    shutil.copy(get_testdata_file("RG1_J2KR.dcm"), folder / "chest.dcm")
    shutil.copy(get_testdata_file("RG3_J2KR.dcm"), folder / "leg.dcm")
    chest = pydicom.dcmread(get_testdata_file("RG1_UNCR.dcm"))
    words = np.ascontiguousarray(chest.pixel_array[::4, ::4])
    changes: dict[str, Callable[[Any], None]] = {
        "korean": _named(["", "ISO 2022 IR 149"], KOREAN),
        "japanese": _named(["ISO 2022 IR 13", "ISO 2022 IR 87"], JAPANESE),
        "latin": _named("ISO_IR 100", LATIN),
        "bare": _bare,
        "odd": _odd,
        "capture": _capture,
        "turned": lambda ds: _pixels(ds, np.rot90(words)),
        "tall": _tall(words),
        "frames": lambda ds: _pixels(ds, np.stack([words] * 3)),
        "cut": lambda ds: setattr(ds, "PixelData", ds.PixelData[:1000]),
    }
    for n, (stem, change) in enumerate(changes.items(), start=1):
        ds = pydicom.dcmread(get_testdata_file("RG1_UNCR.dcm"))
        _pixels(ds, words)
        del ds.PixelSpacing
        change(ds)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.4711.{n}"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"{stem}.dcm")
    (folder / "text.dcm").write_text("this is no film")


def _pixels(ds: Any, words: np.ndarray) -> None:
    ds.PixelData = np.ascontiguousarray(words).tobytes()
    ds.Rows, ds.Columns = words.shape[-2:]
    if words.ndim == 3:
        ds.NumberOfFrames = len(words)


def _named(characters: Any, name: str) -> Callable[[Any], None]:
    def change(ds: Any) -> None:
        ds.SpecificCharacterSet, ds.PatientName, ds.PatientID = characters, name, "A-4711"

    return change


def _bare(ds: Any) -> None:
    """Without anything of type 2, and without a body part."""
    for keyword in (
        *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
        *("PatientBirthDate", "PatientSex", "PatientName", "PatientID", "PatientOrientation"),
        *("BodyPartExamined", "SpecificCharacterSet"),
    ):
        del ds[keyword]


def _odd(ds: Any) -> None:
    """With values that the standard forbids."""
    for tag, vr, value in (
        (0x00101010, "AS", "62"),
        (0x00100030, "DA", "31.12.1950"),
        (0x00100040, "CS", "male"),
        (0x00080020, "DA", "yesterday"),
        (0x00080030, "TM", "late"),
    ):
        ds.add(DataElement(tag, vr, value, validation_mode=0))
    ds.PixelSpacing, ds.WindowWidth = [0, 0], 0


def _capture(ds: Any) -> None:
    ds.SOPClassUID, ds.Modality, ds.ConversionType = "1.2.840.10008.5.1.4.1.1.7", "OT", "WSD"


def _tall(words: np.ndarray) -> Callable[[Any], None]:
    def change(ds: Any) -> None:
        _pixels(ds, words[::2])
        ds.PixelSpacing = [0.4, 0.2]

    return change


def make_world(folder: Path) -> World:
    """The films, and what `classify.run --crops` with the shipped weights says of them."""
    from classify.predictions import read_predictions
    from classify.run import main
    from cxr.manifest import read_manifest

    make_films(folder / "films")
    run = folder / "run"
    arguments = [str(folder / "films"), "--crops", "--out", str(run), "--jobs", "0"]
    assert main(arguments) == 0
    rows = {Path(row.film).stem: row for row in read_predictions(run / "predictions.csv")[1]}
    boxed = {Path(row.film).stem: row for row in read_manifest(run / "crops")[1]}
    _audit(run, rows["latin"].film)
    return World(folder, run, rows, boxed)


def _audit(run: Path, film: str) -> None:
    """An audit of one film with two lifts, written as the audit writes it."""
    from classify.audit.rows import AuditRow, AuditWriter

    (run / "audit").mkdir()
    with AuditWriter(run / "audit" / "audit.csv", 2) as book:
        members = {"nodule_or_mass": 1.375, "pneumonia": 0.8125}
        told = {"film": film, "patient": "p", "method": "grad_cam", "lung_by": "lungfield"}
        book.add([AuditRow(**told, member=m, metrics={"lift": v}) for m, v in members.items()])


@pytest.fixture(scope="session")
def world(root: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One run for all tests of results, in whichever file they are."""
    if not _MADE:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)  # where the weights lie
            _MADE.append(make_world(tmp_path_factory.mktemp("hospital")))
    return _MADE[0]


def walk(item: Any) -> list[Any]:
    """All content items of a report below this one."""
    found = []
    for child in item.get("ContentSequence", []):
        found += [child, *walk(child)]
    return found


def named(report: Any, meaning: str) -> list[Any]:
    """The content items of a report by their concept's meaning."""
    items = [i for i in walk(report) if "ConceptNameCodeSequence" in i]
    return [i for i in items if i.ConceptNameCodeSequence[0].CodeMeaning == meaning]
