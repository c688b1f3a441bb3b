"""`check`: everything once on this machine, with real peers: the first thing to run on a new site.

Sample films go from DCMTK and Orthanc through the service and back; each step is a line of the
table. At the end comes a look at the memory, and for names in files.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.table import Table

from cxr.rules import RefusedError, require_at_least
from cxr.workdir import console, write_json
from hospital.receiver import UPS_PULL
from hospital.service import Service, health
from hospital.settings import Site, needs_pacs

SAMPLES = ("RG1_UNCI.dcm", "RG1_J2KI.dcm", "RG3_UNCI.dcm")


@dataclass(frozen=True)
class CheckConfig:
    """Start Orthanc and the service on this machine, send sample films through, validate what comes
    back, and show a table. No film of yours is touched.

    Args:
        patience_s: seconds that each step may take.
        keep: leave Orthanc's and the service's folders here, to look at.
    """

    patience_s: float = 120.0
    keep: str = ""

    def __post_init__(self) -> None:
        require_at_least(self, patience_s=1)


Step = tuple[str, bool | None, str]  # what was tried, does it hold (None: skipped), what was seen
_WORDS = {True: "ok", False: "failed", None: "skipped"}


@contextmanager
def running(site: Site, roles: Any = None) -> Iterator[Service]:
    """The service of a site, watched by a thread, for the time of a with block."""
    service = Service(site, roles) if roles else Service(site)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            service.watch()

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        service.address()
        watcher.start()
        yield service
    finally:
        ended.set()
        if watcher.is_alive():
            watcher.join()
        service.stop()


def wait_for(seen: Callable[[], bool], patience_s: float) -> float:
    """Seconds until it is so; infinite where it does not become so in time."""
    begun = time.monotonic()
    while not seen():
        if time.monotonic() - begun > patience_s:
            return float("inf")
        time.sleep(0.1)
    return time.monotonic() - begun


def sample_films(folder: Path) -> list[Path]:
    """Sample films, each with a UID of its own and of today; raises RefusedError with the
    remedy."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, name in enumerate((*SAMPLES, SAMPLES[0])):
        found = get_testdata_file(name, download=False)
        if not isinstance(found, str):
            raise RefusedError(f"the sample film {name} is missing: pip install -e '.[samples]'")
        film = dcmread(found)
        film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        film.StudyInstanceUID, film.SeriesInstanceUID = generate_uid(), generate_uid()
        film.StudyDate = time.strftime("%Y%m%d")
        film.PatientName, film.PatientID = f"Sample^Check{number}", f"CHECK-{number}"
        path = folder / f"{number}_{name}"
        film.save_as(path)
        paths.append(path)
    return paths


def run(config: CheckConfig) -> int:
    """`check`: 0 where every step that could be tried went well."""
    needs_pacs()
    steps = list(_steps(config))
    failed = sum(holds is False for _, holds, _ in steps)
    table = Table("step", "result", "seen", title=f"{len(steps)} steps, {failed} failed")
    for name, holds, seen in steps:
        table.add_row(name, _WORDS[holds], seen)
    console.print(table)
    return 1 if failed else 0


def _steps(config: CheckConfig) -> Iterator[Step]:
    from pydicom import dcmread

    missing = missing_peers()
    told = f"apt-get install --no-install-recommends {' '.join(missing)}" if missing else ""
    yield "peers", not missing or None, told or "all there"
    if missing_peers("Orthanc"):
        yield "a PACS to try with", False, "Orthanc or its DICOMweb is missing"
        return
    with tempfile.TemporaryDirectory(prefix="lungfirst-check-") as folder:
        root = Path(config.keep or folder)
        films, port = sample_films(root / "films"), free_port()
        with Orthanc(root / "orthanc", port) as pacs:
            site = Site(
                state=root / "state",
                port=port,
                destination=pacs.destination,
                commitment=True,
                pull=pacs.web,
                pull_minutes=0.1,
                health_port=0,
                keep_days=1.0,
            )
            with running(site) as service:
                yield "service", True, f"listens on 127.0.0.1:{port}"
                yield from _Way(pacs, service, films, config.patience_s).go()
            yield "end", True, "all processes ended after SIGTERM"
        texts = [t for path in films for t in texts_of(dcmread(path, stop_before_pixels=True))]
        found = leaks(site, texts)
        told = f"{len(texts)} names, ids and UIDs looked for" if not found else ", ".join(found)
        yield "no patient in logs, journal or runs", not found, told


@dataclass(frozen=True)
class _Way:
    """Films through the service, step by step."""

    pacs: Orthanc
    service: Service
    films: list[Path]
    patience_s: float

    def go(self) -> Iterator[Step]:
        """All steps; later ones are tried where earlier ones failed too."""
        yield from self._receive()
        yield from self._refuse()
        yield from self._results()
        yield from self._repeat()
        found = {p: len(ask_worklist(self._port, p)) for p in ("HIGH", "MEDIUM", "LOW")}
        told = ", ".join(f"{n} {priority}" for priority, n in found.items())
        yield "worklist by C-FIND (UPS Pull)", sum(found.values()) == len(self.films), told
        yield from self._health()

    @property
    def _port(self) -> int:
        return self.service.site.port

    def _told(self) -> dict[str, Any]:
        return health(self.service.journal)

    def _wait_for(self, count: str) -> tuple[bool, str]:
        """Until as many films as were sent are counted so."""
        wanted, patience_s = len(self.films), self.patience_s
        took = wait_for(lambda: self._told()[count] >= wanted, patience_s)
        return took < patience_s, f"after {took:.1f} s"

    def _receive(self) -> Iterator[Step]:
        first, last = self.films[0], self.films[2]
        if find_peer("storescu"):
            echo = call(["echoscu", "-aec", "LUNGFIRST", "127.0.0.1", str(self._port)]).returncode
            yield "C-ECHO by DCMTK", echo == 0, f"echoscu ended with {echo}"
            sent = storescu(self._port, first, last).returncode
            yield "two films by DCMTK", sent == 0, f"storescu ended with {sent}"
        else:
            for path in (first, last):
                self.pacs.push(self.pacs.upload(path))
            yield "films by DCMTK", None, "DCMTK is missing: Orthanc sends them too"
        pushed = self.pacs.push(self.pacs.upload(self.films[1])).status
        yield "a JPEG 2000 film by Orthanc", pushed == 200, f"HTTP {pushed}"
        self.pacs.upload(self.films[3])
        yield "a film that nobody sent is pulled", *self._wait_for("received")

    def _refuse(self) -> Iterator[Step]:
        from pydicom.data import get_testdata_file

        if find_peer("storescu"):
            scan = Path(str(get_testdata_file("CT_small.dcm", download=False)))
            sent = storescu(self._port, scan).returncode
            yield "a CT is not accepted", sent != 0, f"rc {sent}"
            sent = storescu(self._port, self.films[0], title="OTHER").returncode
            yield "a wrong AE title is not accepted", sent != 0, f"rc {sent}"

    def _results(self) -> Iterator[Step]:
        committed, wanted = self._wait_for("committed"), len(self.films)
        found = {kind: self.pacs.find(kind) for kind in ("SR", "PR")}
        told = ", ".join(f"{len(ids)} {kind}" for kind, ids in found.items())
        # a film without a thorax has a report that says so, and nothing to draw
        holds = len(found["SR"]) == wanted and 0 < len(found["PR"]) <= wanted
        yield "results in Orthanc", holds, f"{told} of {wanted} films"
        yield "storage commitment", *committed
        for kind, validator in (("SR", "dsrdump"), ("PR", "dcmpschk")):
            yield from self._validate(kind, validator, found[kind])

    def _validate(self, kind: str, validator: str, ids: list[str]) -> Iterator[Step]:
        errors, rejected = 0, 0
        with tempfile.TemporaryDirectory() as folder:
            for instance in ids:
                path = Path(folder) / f"{instance}.dcm"
                path.write_bytes(self.pacs.file(instance))
                if find_peer("dciodvfy"):
                    lines = call(["dciodvfy", path]).stderr.splitlines()
                    errors += sum(line.startswith("Error") for line in lines)
                if find_peer(validator):
                    rejected += call([validator, path]).returncode != 0
        tried = [bool(ids and find_peer(peer)) or None for peer in ("dciodvfy", validator)]
        yield f"dciodvfy of {kind}", tried[0] and not errors, f"{errors} errors"
        yield f"{validator} of {kind}", tried[1] and not rejected, f"{rejected} not accepted"

    def _repeat(self) -> Iterator[Step]:
        before = self._told()
        if find_peer("storescu"):
            sent, again = storescu(self._port, self.films[0]), self._told()
            holds = sent.returncode == 0 and again["received"] == before["received"]
            repeats = again["counts"].get("repeats", 0) - before["counts"].get("repeats", 0)
            told = f"success, {repeats} repeat counted"
            yield "a film that comes again is not judged again", holds, told
        for ours in self.pacs.find("SR")[:1]:
            pushed = self.pacs.push(ours).status
            told = f"HTTP {pushed} from Orthanc"
            yield "our own report is not taken as a film", pushed != 200, told

    def _health(self) -> Iterator[Step]:
        port = self.service.health.server_address[1]
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        holds = f"lungfirst_films_judged_total {len(self.films)}" in text
        yield "health page", holds, f"{len(text.splitlines())} lines for Prometheus"
        for role in self.service.roles:
            size = peak_mb(role.pid)
            holds = role.name != "receiver" or size < 150
            yield f"memory of the {role.name}", holds, f"peak {size:.0f} MB"


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


class Answered(NamedTuple):
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
        self.__exit__()
        raise RefusedError(f"Orthanc does not start: see {self.folder / 'orthanc.log'}.")

    def __exit__(self, *error: object) -> None:
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
