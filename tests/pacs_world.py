"""What the tests of tools/hospital share: a site, small films, a quick judge and its objects, and
the service's processes with those. As a program (`python tests/pacs_world.py ROLE
SITE`) it is a role of the service: the worker with the quick judge, or one that kills itself.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
from dicom_films import film as data_set
from dicom_films import ramp
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import generate_uid

from hospital.journal import Journal, take_in
from hospital.settings import Site

EXPLICIT = "1.2.840.10008.1.2.1"
SR, PR = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.11.1"
NAME, PATIENT = "Winterbottom^Agatha", "MRN-470815"


def site_of(folder: Path, **told: Any) -> Site:
    """A site below a folder, on free ports, which takes films on nearly full disks too."""
    usual = dict(state=folder / "state", port=0, health_port=0, largest_mb=16, reserve_mb=32)
    return Site(**(usual | {"wait_s": 0.0} | told))  # type: ignore[arg-type]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site whose folders are there."""
    made = site_of(tmp_path)
    made.folders.make()
    return made


@pytest.fixture
def journal(site: Site) -> Iterator[Journal]:
    """The site's journal, opened."""
    with Journal(site.folders.journal) as opened:
        yield opened


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


def serve(wanted: Mapping[str, Sequence[str]], site: Site, **told: Any) -> int:
    """`pacs.py serve` with these processes."""
    from hospital import service

    usual, plain = service.Service, {f.name: getattr(site, f.name) for f in fields(Site)}
    service.Service = partial(usual, roles=wanted)  # type: ignore[misc,assignment]
    try:
        return service.run(service.ServeConfig(**plain, **told))
    finally:
        service.Service = usual  # type: ignore[misc]


class Forked:
    """A role as a child of this process, which need not import anything anew."""

    def __init__(self, role: Callable[[], int]) -> None:
        self.pid = os.fork()
        if not self.pid:
            try:
                from hospital import settings

                settings._PARENT = os.getppid()
                role()
            finally:
                os._exit(1)

    def wait(self) -> int:
        """The signal that ended it, 0 for none."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """End it for good."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


class Dying:
    """The quick worker's parts, of which one ends the process at a point, once."""

    def __init__(self, site: Site, point: str) -> None:
        self.point, self.mark = point, site.folders.root / f"died_{point.replace(' ', '_')}"

    def _die(self, point: str) -> None:
        if point == self.point and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def judge(self, films: Mapping[str, Path], run: Path) -> Iterable[QuickRow]:
        """As `quick_judge`."""
        self._die("before run")
        found = quick_judge(films, run)
        self._die("after run")
        return found

    def make(
        self, run: Path, films: Mapping[str, Path], when: datetime
    ) -> Iterator[tuple[str, Sequence[Any]]]:
        """As `quick_objects`."""
        yield from quick_objects(run, films, when)
        self._die("after objects")

    def patch_journal(self) -> None:
        """Die inside or after the transaction too."""
        usual = Journal.judged

        def judged(journal: Any, name: str, films: Any, now: float) -> None:
            films = [*films]
            if self.point == "inside commit" and not self.mark.exists():
                with journal.writing() as db:
                    db.execute("UPDATE films SET state = 'judged'")
                    self._die("inside commit")
            usual(journal, name, films, now)
            if films:
                self._die("after commit")

        Journal.judged = judged  # type: ignore[method-assign]


def main(role: str, site_file: str) -> int:
    """One role of the service."""
    from cxr.cli import from_plain
    from cxr.workdir import read_json
    from hospital.settings import begin_role
    from hospital.worker import work

    site = from_plain(Site, read_json(site_file))
    if role == "serve":  # the supervisor, with a receiver alone
        return serve({"receiver": roles()["receiver"]}, site)
    begin_role(site, "worker")
    if role == "quick":
        return work(site, quick_judge, quick_objects)
    dying = Dying(site, role)
    dying.patch_journal()
    return work(site, dying.judge, dying.make)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
