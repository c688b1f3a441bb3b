"""`check`: everything once on this machine, with real peers: the first thing to run on a new site.

Sample films go from DCMTK and Orthanc through the service and back; each step is a line of the
table.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.rules import RefusedError, require_at_least
from cxr.workdir import console
from hospital.health import health
from hospital.peers import (
    Orthanc,
    ask_worklist,
    call,
    find_peer,
    free_port,
    leaks,
    missing_peers,
    peak_mb,
    storescu,
    texts_of,
)
from hospital.service import Service
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


class Steps:
    """What was tried: name, "ok", "failed" or "skipped", and what was seen."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def add(self, name: str, holds: bool | None, seen: str) -> bool:
        """One step; None: skipped."""
        self.rows.append((name, {True: "ok", False: "failed", None: "skipped"}[holds], seen))
        return bool(holds)

    @property
    def failed(self) -> int:
        """How many steps failed."""
        return sum(state == "failed" for _, state, _ in self.rows)


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
    steps = Steps()
    missing = missing_peers()
    told = (
        f"apt-get install --no-install-recommends {' '.join(missing)}" if missing else "all there"
    )
    steps.add("peers", not missing or None, told)
    if missing_peers("Orthanc"):
        steps.add("a PACS to try with", False, "Orthanc or its DICOMweb is missing")
    else:
        with tempfile.TemporaryDirectory(prefix="lungfirst-check-") as folder:
            _try(Path(config.keep or folder), config.patience_s, steps)
    _show(steps)
    return 1 if steps.failed else 0


def _show(steps: Steps) -> None:
    from rich.table import Table

    table = Table(title=f"{len(steps.rows)} steps, {steps.failed} failed")
    for column in ("step", "result", "seen"):
        table.add_column(column)
    for row in steps.rows:
        table.add_row(*row)
    console.print(table)


def _try(root: Path, patience_s: float, steps: Steps) -> None:
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
            steps.add("service", True, f"listens on 127.0.0.1:{port}")
            _Way(pacs, service, films, patience_s, steps).go()
        steps.add("end", True, "all processes ended after SIGTERM")
    _look_for_names(site, films, steps)


class _Way:
    """Films through the service, step by step."""

    def __init__(
        self, pacs: Orthanc, service: Service, films: list[Path], patience_s: float, steps: Steps
    ) -> None:
        self.pacs, self.service, self.films = pacs, service, films
        self.patience_s, self.steps, self.site = patience_s, steps, service.site

    def go(self) -> None:
        """All steps; later ones are tried where earlier ones failed too."""
        self._receive()
        self._refuse()
        self._results()
        self._repeat()
        self._worklist()
        self._health()

    def _receive(self) -> None:
        port, add = self.site.port, self.steps.add
        if find_peer("storescu"):
            echo = call(["echoscu", "-aec", "LUNGFIRST", "127.0.0.1", str(port)])
            add("C-ECHO by DCMTK", echo.returncode == 0, f"echoscu ended with {echo.returncode}")
            sent = storescu(port, self.films[0], self.films[2])
            add(
                "two films by DCMTK", sent.returncode == 0, f"storescu ended with {sent.returncode}"
            )
        else:
            for path in (self.films[0], self.films[2]):
                self.pacs.push(self.pacs.upload(path))
            add("films by DCMTK", None, "DCMTK is missing: Orthanc sends them too")
        pushed = self.pacs.push(self.pacs.upload(self.films[1]))
        add("a JPEG 2000 film by Orthanc", pushed.status == 200, f"HTTP {pushed.status}")
        self.pacs.upload(self.films[3])
        wanted = len(self.films)
        took = wait_for(lambda: self._told()["received"] >= wanted, self.patience_s)
        add("a film that nobody sent is pulled", took < self.patience_s, f"after {took:.1f} s")

    def _told(self) -> dict[str, Any]:
        return health(self.service.journal)

    def _refuse(self) -> None:
        if not find_peer("storescu"):
            return
        from pydicom.data import get_testdata_file

        scan = Path(str(get_testdata_file("CT_small.dcm", download=False)))
        sent = storescu(self.site.port, scan)
        self.steps.add("a CT is not accepted", sent.returncode != 0, f"rc {sent.returncode}")
        sent = storescu(self.site.port, self.films[0], title="OTHER")
        told = f"rc {sent.returncode}"
        self.steps.add("a wrong AE title is not accepted", sent.returncode != 0, told)

    def _results(self) -> None:
        add, wanted = self.steps.add, len(self.films)
        took = wait_for(lambda: self._told()["committed"] >= wanted, self.patience_s)
        found = {kind: self.pacs.find(kind) for kind in ("SR", "PR")}
        told = ", ".join(f"{len(ids)} {kind}" for kind, ids in found.items())
        # a film without a thorax has a report that says so, and nothing to draw
        holds = len(found["SR"]) == wanted and 0 < len(found["PR"]) <= wanted
        add("results in Orthanc", holds, f"{told} of {wanted} films")
        add("storage commitment", took < self.patience_s, f"after {took:.1f} s")
        with tempfile.TemporaryDirectory() as folder:
            for kind, validator in (("SR", "dsrdump"), ("PR", "dcmpschk")):
                self._validate(kind, validator, found[kind], Path(folder))

    def _validate(self, kind: str, validator: str, ids: list[str], folder: Path) -> None:
        errors, rejected = 0, 0
        for instance in ids:
            path = folder / f"{instance}.dcm"
            path.write_bytes(self.pacs.file(instance))
            if find_peer("dciodvfy"):
                lines = call(["dciodvfy", path]).stderr.splitlines()
                errors += sum(line.startswith("Error") for line in lines)
            if find_peer(validator):
                rejected += call([validator, path]).returncode != 0
        tried = (bool(ids) and bool(find_peer("dciodvfy"))) or None
        self.steps.add(f"dciodvfy of {kind}", tried and not errors, f"{errors} errors")
        tried = (bool(ids) and bool(find_peer(validator))) or None
        self.steps.add(f"{validator} of {kind}", tried and not rejected, f"{rejected} not accepted")

    def _repeat(self) -> None:
        before = self._told()
        if find_peer("storescu"):
            sent = storescu(self.site.port, self.films[0])
            again = self._told()
            holds = sent.returncode == 0 and again["received"] == before["received"]
            repeats = again["counts"].get("repeats", 0) - before["counts"].get("repeats", 0)
            told = f"success, {repeats} repeat counted"
            self.steps.add("a film that comes again is not judged again", holds, told)
        ours = self.pacs.find("SR")[:1]
        if ours:
            pushed = self.pacs.push(*ours)
            told = f"HTTP {pushed.status} from Orthanc"
            self.steps.add("our own report is not taken as a film", pushed.status != 200, told)

    def _worklist(self) -> None:
        found = {p: len(ask_worklist(self.site.port, p)) for p in ("HIGH", "MEDIUM", "LOW")}
        told = ", ".join(f"{n} {priority}" for priority, n in found.items())
        holds = sum(found.values()) == len(self.films)
        self.steps.add("worklist by C-FIND (UPS Pull)", holds, told)

    def _health(self) -> None:
        from urllib.request import urlopen

        port = self.service.health.server_address[1]
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        holds = f"lungfirst_films_judged_total {len(self.films)}" in text
        self.steps.add("health page", holds, f"{len(text.splitlines())} lines for Prometheus")
        for role in self.service.roles:
            size = peak_mb(role.pid)
            holds = size < 150 if role.name == "receiver" else True
            self.steps.add(f"memory of the {role.name}", holds, f"peak {size:.0f} MB")


def _look_for_names(site: Site, films: list[Path], steps: Steps) -> None:
    from pydicom import dcmread

    texts = [t for path in films for t in texts_of(dcmread(path, stop_before_pixels=True))]
    found = leaks(site, texts)
    told = f"{len(texts)} names, ids and UIDs looked for" if not found else ", ".join(found)
    steps.add("no patient in logs, journal or runs", not found, told)
