"""What the tests of tools/hospital share: a site, small films, a quick judge and its objects, and
the service's processes with those. As a program (`python tests/hospital_world.py ROLE
SITE`) it is a role of the service: the worker with the quick judge, or one that kills itself.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from dicom_films import film as data_set
from dicom_films import ramp
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import generate_uid

from hospital.settings import Site
from hospital.spool import take_in

EXPLICIT = "1.2.840.10008.1.2.1"
SR, PR = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.11.1"
NAME, PATIENT = "Winterbottom^Agatha", "MRN-470815"


def site_of(folder: Path, **told: Any) -> Site:
    """A site below a folder, on free ports, which takes films on nearly full disks too."""
    usual = dict(state=folder / "state", port=0, health_port=0, largest_mb=16, reserve_mb=32)
    return Site(**(usual | {"wait_s": 0.0} | told))  # type: ignore[arg-type]


def write_film(path: Path, megabytes: float = 0.0, **header: Any) -> Path:
    """A small chest film's file, or one of a size, of one patient."""
    stored = ramp()
    if megabytes:
        stored = np.zeros((int(megabytes * 512), 1024), np.uint16)
    ds = data_set(stored)
    ds.PatientName, ds.PatientID, ds.StudyInstanceUID = NAME, PATIENT, generate_uid()
    ds.SeriesInstanceUID, ds.BodyPartExamined, ds.ViewPosition = generate_uid(), "CHEST", "PA"
    ds.StudyDate = datetime.now().strftime("%Y%m%d")
    for keyword, value in header.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_films(folder: Path, count: int, **header: Any) -> list[Path]:
    """Several films."""
    return [write_film(folder / f"{n:04d}.dcm", **header) for n in range(count)]


def spooled(site: Site, journal: Any, count: int = 1) -> list[str]:
    """Films in the spool and the journal; their keys."""
    site.folders.make()
    keys = []
    for n in range(count):
        path = write_film(site.folders.arriving / f"{n}.dcm")
        keys.append(site.folders.key_of(dcmread(path).SOPInstanceUID))
        assert take_in(site, journal, path) == 0
        path.unlink()
    return sorted(keys)


@dataclass(frozen=True)
class QuickRow:
    """As a row of predictions.csv."""

    film: str
    status: str = "ok"
    decision: str = "read"
    tier: str = "urgent"
    abnormal_score: float | None = 0.5


def quick_judge(films: Mapping[str, Path], run: Path) -> Iterable[QuickRow]:
    """Every film is to be read; the run's folder counts how often each was judged."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / "judged.txt").open("a") as file:
        file.writelines(f"{Path(name).stem}\n" for name in films)
    return [QuickRow(name) for name in films]


def quick_objects(
    run: Path, films: Mapping[str, Path], when: datetime
) -> Iterator[tuple[str, Sequence[Any]]]:
    """Two small objects a film with UIDs that the film alone decides."""
    for name, path in films.items():
        header = dcmread(path, stop_before_pixels=True)
        yield (
            name,
            [_object(header, kind, sop_class) for kind, sop_class in (("SR", SR), ("PR", PR))],
        )


def _object(header: Dataset, modality: str, sop_class: str) -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.Modality, made.Manufacturer = sop_class, modality, "lungfirst project"
    made.SOPInstanceUID = _uid(header.SOPInstanceUID, modality)
    made.SeriesInstanceUID = _uid(header.SOPInstanceUID, f"{modality} series")
    for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "StudyDate"):
        setattr(made, keyword, header[keyword].value)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = EXPLICIT
    made.is_little_endian, made.is_implicit_VR = True, False
    return made


def _uid(*parts: str) -> str:
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '|'.join(parts)).int}"


def roles(worker: str = "quick") -> dict[str, tuple[str, ...]]:
    """The service's processes, with this worker."""
    from hospital.service import ROLES

    return {**ROLES, "worker": (sys.executable, __file__, worker)}


@contextmanager
def receiving(site: Site) -> Iterator[Any]:
    """A receiver in this process, with `.port`."""
    from hospital.receiver import Receiver

    usual = tempfile.tempdir
    receiver = Receiver(site)
    try:
        receiver.port = receiver.start()
        yield receiver
        receiver.stop(2)
    finally:
        tempfile.tempdir = usual


def send(port: int, *paths: Path, called: str = "LUNGFIRST", **told: Any) -> list[int | None]:
    """C-STORE of films, one association; the status of each, None without an answer, nothing where
    there is no association."""
    from pynetdicom import AE

    ae = AE(ae_title=told.pop("calling", "SENDER"))
    ae.acse_timeout = ae.dimse_timeout = 60
    found = [dcmread(path) for path in paths]
    for ds in found:
        if str(ds.SOPClassUID) not in {str(c.abstract_syntax) for c in ae.requested_contexts}:
            ae.add_requested_context(ds.SOPClassUID, EXPLICIT)
    association = ae.associate("127.0.0.1", port, ae_title=called, **told)
    if not association.is_established:
        return []
    try:
        return [association.send_c_store(ds).get("Status") for ds in found]
    finally:
        association.release()


def _dying(site: Site, point: str) -> Any:
    """The quick worker's parts, of which one ends the process at a point, once."""
    mark = site.folders.root / f"died_{point.replace(' ', '_')}"

    def die() -> None:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def judge(films: Mapping[str, Path], run: Path) -> Iterable[QuickRow]:
        if point == "before run":
            die()
        found = quick_judge(films, run)
        if point == "after run":
            die()
        return found

    def make(
        run: Path, films: Mapping[str, Path], when: datetime
    ) -> Iterator[tuple[str, Sequence[Any]]]:
        yield from quick_objects(run, films, when)
        if point == "after objects":
            die()

    if point in ("inside commit", "after commit"):
        from hospital.journal import Journal

        usual = Journal.judged

        def judged(self: Any, name: str, films: Any, now: float) -> None:
            if point == "inside commit":
                films = [*films]
                with self.writing() as db:
                    db.execute("UPDATE films SET state = 'judged'")
                    die()
            usual(self, name, films, now)
            if films:
                die()

        Journal.judged = judged  # type: ignore[method-assign]
    return judge, make


def main(role: str, site_file: str) -> int:
    """One role of the service."""
    from cxr.cli import from_plain
    from cxr.workdir import read_json
    from hospital.roles import begin_role
    from hospital.worker import work

    site = from_plain(Site, read_json(site_file))
    begin_role(site, "worker")
    judge, make = (quick_judge, quick_objects) if role == "quick" else _dying(site, role)
    return work(site, judge, make)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
