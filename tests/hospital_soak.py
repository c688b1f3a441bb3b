"""The service under load and under kills, beside a real Orthanc; not a part of the suite.

    python tests/hospital_soak.py load --films 200      the real networks
    python tests/hospital_soak.py kills --films 2000    a quick stand-in judges; about every 20 s a
                                                        random process is killed (SIGKILL)

load: N films at once by DCMTK's storescu and N others by Orthanc; how long until they are received,
the receiver's memory, whether all reports are in Orthanc, and the CPU a film takes beside that of
classify.run on the same folder. kills: films one after the other, each sent until it is taken;
at the end each film has one report and one only. The exit code is 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pacs_world import roles, send, site_of, write_film
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from hospital.check import SAMPLES, Orthanc, free_port, peak_mb, running, storescu, wait_for
from hospital.journal import Journal
from hospital.service import health

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 3000.0


def real_films(folder: Path, count: int) -> None:
    """Copies of the sample films and of ../shared's, uncompressed, each with UIDs of its own."""
    found = [Path(str(get_testdata_file(name, download=False))) for name in SAMPLES]
    found += sorted((ROOT.parent / "shared/data/dicom").glob("*.dcm"))
    films = []
    for path in found:
        film = dcmread(path, force=True)
        if "TransferSyntaxUID" in film.file_meta and film.get("Modality") in ("CR", "DX"):
            if film.file_meta.TransferSyntaxUID.is_compressed:
                film.decompress()
            films.append(film)
    folder.mkdir(parents=True)
    for n in range(count):
        film = films[n % len(films)]
        film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        film.StudyInstanceUID, film.SeriesInstanceUID = generate_uid(), generate_uid()
        film.save_as(folder / f"{n:04d}.dcm", enforce_file_format=True)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def load(count: int, root: Path) -> bool:
    """See above."""
    port = free_port()
    by_dcmtk, by_orthanc = root / "by_dcmtk", root / "by_orthanc"
    real_films(by_dcmtk, count)
    real_films(by_orthanc, count)
    size = sum(p.stat().st_size for p in by_dcmtk.iterdir()) / 1e6
    print(f"{count} films, {size:.0f} MB, and as many again", flush=True)
    with Orthanc(root / "orthanc", port) as pacs:
        ids = [pacs.upload(path) for path in sorted(by_orthanc.iterdir())]
        site = site_of(root, port=port, destination=pacs.destination, wait_s=2.0, reserve_mb=512)
        with running(site) as service:
            wait_for(lambda: "loaded" in _log(site, "worker"), 120)
            pids = {role.name: role.pid for role in service.roles}
            started = {name: cpu_s(pid) for name, pid in pids.items()}
            taken, begun = {}, time.monotonic()
            for name, sending in (
                ("storescu +sd +r", lambda: storescu(port, by_dcmtk)),
                ("Orthanc's REST store", lambda: pacs.push(*ids)),
            ):
                at = time.monotonic()
                sending()
                taken[name] = time.monotonic() - at
                got = health(service.journal)["received"]
                print(f"{name}: {taken[name]:.1f} s, {got} received so far", flush=True)
            done = lambda: health(service.journal)["sent"] >= 2 * count  # noqa: E731
            wait_for(done, PATIENCE_S)
            took = time.monotonic() - begun
            used = {name: cpu_s(pid) - started[name] for name, pid in pids.items()}
            peaks = {name: peak_mb(pid) for name, pid in pids.items()}
            same = all(role.pid == pids[role.name] for role in service.roles)
            found = health(service.journal)
        reports = len(set(pacs.find("SR")))
    films = 2 * count
    print(f"{films} films in {took:.0f} s; {reports} reports in Orthanc; {found['counts']}")
    for name in pids:
        each = used[name] / films
        print(
            f"{name}: {each:.3f} s CPU a film, {started[name]:.1f} s before, {peaks[name]:.0f} MB"
        )
    begun_cpu = _children_s()
    out = root / "run"
    words = [sys.executable, "-m", "classify.run", str(by_dcmtk), "--crops", "--out", str(out)]
    subprocess.run(words, check=True, cwd=ROOT, capture_output=True)
    alone = _children_s() - begun_cpu
    ours = (used["worker"] + started["worker"]) / films
    whole = sum(used.values()) / films
    print(f"classify.run on one folder: {alone / count:.3f} s CPU a film, start-up included")
    print(
        f"ratio: worker {ours / (alone / count):.2f}, all processes {whole / (alone / count):.2f}"
    )
    return reports == films and same and max(taken.values()) <= 15 and peaks["receiver"] <= 150


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _left(site: Any) -> int:
    places = (site.folders.films, site.folders.outbox)
    return sum(path.name != ".in_use" for place in places for path in place.iterdir())


def _log(site: Any, name: str) -> str:
    path = site.folders.logs / f"{name}.log"
    return path.read_text() if path.exists() else ""


def kills(count: int, every_s: float, minutes: float, seed: int, root: Path) -> bool:
    """See above; after so many minutes no further film is sent."""
    rng, port, ended = random.Random(seed), free_port(), threading.Event()
    killed: Counter[str] = Counter()
    with Orthanc(root / "orthanc", port) as pacs:
        site = site_of(root, port=port, destination=pacs.destination, batch=16, wait_s=0.5)
        with running(site, roles()) as service:

            def kill() -> None:
                while not ended.wait(rng.uniform(0.5, 1.5) * every_s):
                    role = rng.choice(service.roles)
                    if role.pid:
                        os.kill(role.pid, signal.SIGKILL)
                        killed[role.name] += 1

            threading.Thread(target=kill, daemon=True).start()
            begun, sent, tries = time.monotonic(), 0, 0
            path = root / "film.dcm"
            while sent < count and time.monotonic() - begun < minutes * 60:
                write_film(path)
                tries += 1
                while send(port, path) != [0x0000]:
                    tries += 1
                    time.sleep(0.2)
                sent += 1
            ended.set()
            wait_for(lambda: health(service.journal)["sent"] >= sent, 600)
            found = health(service.journal)
            wait_for(lambda: not _left(site), 60)
        films = Counter(
            pacs.rest(f"/instances/{i}/tags?simplify").json["StudyInstanceUID"]
            for i in pacs.find("SR")
        )
        with Journal(site.folders.journal) as journal:
            rows = len(journal.rows("SELECT key FROM films"))
    took = time.monotonic() - begun
    twice = sum(n > 1 for n in films.values())
    print(f"{sent} films in {took:.0f} s, {tries} tries; killed: {dict(killed)}")
    print(f"{len(films)} films have a report in Orthanc, {twice} have more than one")
    print(f"journal: {rows} films; {found['counts']}; failed {found['failed']}")
    print(f"files left in spool and outbox: {_left(site)}")
    return len(films) == sent == rows and not twice and not found["failed"]


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("load", "kills"))
    parser.add_argument("--films", type=int, default=200)
    parser.add_argument("--every", type=float, default=20.0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="lungfirst-soak-"))
    try:
        if told.what == "load":
            return 0 if load(told.films, root) else 1
        return 0 if kills(told.films, told.every, told.minutes, told.seed, root) else 1
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
