"""What the service is tried with on one machine: real peers (Orthanc, DCMTK, dicom3tools), a look
at its memory and for names in its files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cxr.rules import RefusedError
from cxr.workdir import write_json
from hospital.settings import Site

PACKAGES = {
    "Orthanc": "orthanc",
    "storescu": "dcmtk",
    "echoscu": "dcmtk",
    "dsrdump": "dcmtk",
    "dcmpschk": "dcmtk",
    "dciodvfy": "dicom3tools",
}
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def find_peer(name: str) -> str:
    """The path of a peer's program, "" without one. Not the first of PATH: pynetdicom installs
    commands of the same names."""
    return shutil.which(name, path=f"/usr/bin:/usr/sbin:/usr/local/bin:{os.defpath}") or ""


def missing_peers(*names: str) -> list[str]:
    """Debian's packages that lack of these programs (all, where none is named); with Orthanc its
    DICOMweb too."""
    wanted = names or tuple(PACKAGES)
    found = {PACKAGES[name] for name in wanted if not find_peer(name)}
    if "Orthanc" in wanted and not _PLUGIN.exists():
        found.add("orthanc-dicomweb")
    return sorted(found)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(command: Sequence[str | Path], timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """A peer's program, its output kept."""
    words = [find_peer(str(command[0])) or str(command[0]), *map(str, command[1:])]
    return subprocess.run(  # noqa: S603 - programs of the distribution
        words, capture_output=True, text=True, errors="replace", timeout=timeout
    )


def storescu(port: int, *paths: Path, title: str = "LUNGFIRST", options: Sequence[str] = ()) -> Any:
    """dcmtk's storescu to a port of this machine, folders included."""
    target = ("-aet", "SENDER", "-aec", title, "127.0.0.1", str(port))
    return call(["storescu", *options, "+sd", "+r", *target, *paths], 600)


@dataclass(frozen=True)
class Answered:
    """What Orthanc's REST answered."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Orthanc:
    """A real PACS in a folder, for the time of a with block; it knows us at `our_port`.

    Its ports listen on all addresses (this version knows no other way): use it with sample films.
    """

    title = "ORTHANC"

    def __init__(self, folder: Path, our_port: int, **more: Any) -> None:
        if missing := missing_peers("Orthanc"):
            raise RefusedError(
                "a PACS to try with is missing: apt-get install --no-install-recommends "
                + " ".join(missing)
            )
        self.folder, self.port, self.web_port = folder, free_port(), free_port()
        us = {"AET": "LUNGFIRST", "Host": "127.0.0.1", "Port": our_port}
        allowed = ("AllowEcho", "AllowFind", "AllowStore", "AllowStorageCommitment")
        self._config = {
            "Name": "lungfirst-check",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(_PLUGIN)],
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "HttpPort": self.web_port,
            "DicomAet": self.title,
            "DicomCheckCalledAet": True,
            "DicomPort": self.port,
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {"lungfirst": us | dict.fromkeys(allowed, True)},
            "DicomScuTimeout": 10,
            "OverwriteInstances": False,
            "JobsHistorySize": 50,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "Ssl": False},
        } | more
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def destination(self) -> str:
        """As a site's destination."""
        return f"{self.title}@127.0.0.1:{self.port}"

    @property
    def web(self) -> str:
        """Root of its DICOMweb."""
        return f"http://127.0.0.1:{self.web_port}/dicom-web"

    def __enter__(self) -> Orthanc:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = write_json(self.folder / "orthanc.json", self._config)
        log = (self.folder / "orthanc.log").open("ab")
        self._process = subprocess.Popen(  # noqa: S603
            [find_peer("Orthanc"), str(config)], stdout=log, stderr=log
        )
        log.close()
        end = time.monotonic() + 30
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self.rest("/system").status == 200:
                    return self
            except OSError:
                time.sleep(0.05)
        self.__exit__(None, None, None)
        raise RefusedError(f"Orthanc does not start: see {self.folder / 'orthanc.log'}.")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def rest(self, path: str, data: bytes | Any = None, timeout: float = 300.0) -> Answered:
        """GET, or POST where there are data (bytes, or what becomes JSON)."""
        body = data if isinstance(data, bytes | None) else json.dumps(data).encode()
        request = Request(f"http://127.0.0.1:{self.web_port}{path}", data=body)
        try:
            with urlopen(request, timeout=timeout) as answer:  # noqa: S310
                return Answered(answer.status, answer.read())
        except HTTPError as error:
            return Answered(error.code, error.read())

    def upload(self, path: Path) -> str:
        """A file into Orthanc by its REST; its id there."""
        return str(self.rest("/instances", path.read_bytes()).json["ID"])

    def push(self, *ids: str) -> Answered:
        """Orthanc sends these instances to us by C-STORE."""
        return self.rest("/modalities/lungfirst/store", list(ids))

    def find(self, modality: str) -> list[str]:
        """Ids of all instances in series of a modality."""
        asked = {"Level": "Instance", "Query": {"Modality": modality}}
        return [str(found) for found in self.rest("/tools/find", asked).json]

    def file(self, instance: str) -> bytes:
        """An instance as a DICOM file."""
        return self.rest(f"/instances/{instance}/file").body


def ask_worklist(port: int, priority: str = "", **keys: str) -> list[Any]:
    """C-FIND by pynetdicom, as DCMTK's findscu knows no UPS: the entries with a priority."""
    from pydicom.dataset import Dataset
    from pynetdicom import AE

    from hospital.receiver import UPS_PULL

    asked: Any = Dataset()
    asked.ScheduledProcedureStepPriority = priority
    for keyword, value in ({"StudyInstanceUID": "", "PatientName": ""} | keys).items():
        setattr(asked, keyword, value)
    ae = AE(ae_title="READER")
    ae.add_requested_context(UPS_PULL)
    association = ae.associate("127.0.0.1", port, ae_title="LUNGFIRST")
    if not association.is_established:
        return []
    try:
        answers = list(association.send_c_find(asked, UPS_PULL))
    finally:
        association.release()
    return [found for status, found in answers if found is not None]


def peak_mb(pid: int) -> float:
    """Largest resident size of a process so far, in MB; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM")), 0.0)


def texts_of(film: Any) -> list[str]:
    """What must not stand outside DICOM: a film's name, id and UIDs."""
    names = str(film.get("PatientName", "")).split("^")
    uids = [str(film.get(f"{level}InstanceUID", "")) for level in ("SOP", "Study", "Series")]
    return [t for t in (*names, str(film.get("PatientID", "")), *uids) if len(t) > 3]


def leaks(site: Site, texts: list[str]) -> list[str]:
    """Files below the state that hold one of these texts, but for the DICOM files of spool, outbox
    and worklist, which need them."""
    folders = site.folders
    inside = (folders.films.parent, folders.outbox, folders.worklist)
    wanted = [text.encode() for text in texts]
    found = []
    for path in folders.root.rglob("*"):
        if not path.is_file() or any(path.is_relative_to(place) for place in inside):
            continue
        if any(text in path.read_bytes() or text.decode() in str(path) for text in wanted):
            found.append(os.fspath(path.relative_to(folders.root)))
    return found
