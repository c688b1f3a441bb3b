"""tools/hospital: films at the door, and everything that comes there and is none."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="pip install -e '.[pacs]'")

from pacs_world import (
    EXPLICIT,
    NAME,
    PATIENT,
    Forked,
    receiving,
    roles,
    send,
    site,  # noqa: F401 - a fixture
    site_of,
    write_film,
    write_films,
)
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from cxr.cli import to_plain
from cxr.workdir import read_json, write_json
from hospital import journal as spool
from hospital import receiver as receiver_module
from hospital.check import find_peer, missing_peers, peak_mb, storescu, wait_for
from hospital.journal import Journal
from hospital.receiver import SYNTAXES
from hospital.settings import Site

needs_dcmtk = pytest.mark.skipif(
    bool(missing_peers("storescu")), reason="DCMTK is missing: apt-get install dcmtk"
)


@pytest.fixture
def door(site: Site) -> Iterator[Any]:
    with receiving(site) as receiver:
        yield receiver


def films_of(site: Site) -> list[Path]:
    return sorted(site.folders.films.glob("*.dcm"))


def counts(site: Site) -> dict[str, int]:
    with Journal(site.folders.journal) as journal:
        return journal.counts()


@pytest.fixture
def process(site: Site) -> Iterator[Callable[[], tuple[subprocess.Popen[bytes], int]]]:
    """Starts the receiver as a process of its own; returns it with its port."""
    started = []

    def start() -> tuple[subprocess.Popen[bytes], int]:
        site.folders.make()
        path = site.folders.root / "receiver.json"
        path.unlink(missing_ok=True)
        config = write_json(site.folders.root / "site.json", to_plain(site))
        found = subprocess.Popen([*roles()["receiver"], str(config)], env=environment())
        started.append(found)
        assert wait_for(path.exists, 20) < 20
        return found, int(read_json(path)["port"])

    yield start
    for found in started:
        found.kill()
        found.wait()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# --- films ---


def test_a_film_is_on_the_disk_and_in_the_journal_before_success(site: Site, door: Any) -> None:
    path = write_film(site.folders.root / "a.dcm")
    assert send(door.port, path) == [0x0000]
    (kept,) = films_of(site)
    assert dcmread(kept).PixelData == dcmread(path).PixelData
    assert kept.stem == site.folders.key_of(dcmread(path).SOPInstanceUID)
    assert counts(site) == {"received": 1} and not list(site.folders.arriving.iterdir())


def test_twelve_transfer_syntaxes_and_three_classes(door: Any) -> None:
    offered = {str(c.abstract_syntax): c.transfer_syntax for c in door._ae.supported_contexts}
    assert len(SYNTAXES) == len(set(SYNTAXES)) == 12
    assert all(set(map(str, offered[film])) == set(SYNTAXES) for film in spool.FILMS)


def test_a_repeat_is_success_and_changes_nothing(site: Site, door: Any, tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.dcm")
    assert send(door.port, path, path) == [0x0000, 0x0000]
    before = films_of(site)[0].read_bytes()
    other = dcmread(path)
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(tmp_path / "b.dcm")
    assert send(door.port, tmp_path / "b.dcm") == [0x0000]
    assert films_of(site)[0].read_bytes() == before
    assert counts(site) == {"received": 1, "repeats": 1, "repeats_other_bytes": 1}


@needs_dcmtk
def test_dcmtk_sends_a_folder(site: Site, door: Any, tmp_path: Path) -> None:
    write_films(tmp_path / "films", 5)
    assert storescu(door.port, tmp_path / "films").returncode == 0
    assert len(films_of(site)) == 5


# --- what is no film of ours to judge ---


@needs_dcmtk
def test_a_ct_is_not_accepted(site: Site, door: Any) -> None:
    scan = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    assert storescu(door.port, scan).returncode != 0
    assert not films_of(site)


def test_our_own_capture_is_refused(site: Site, door: Any, tmp_path: Path) -> None:
    own = write_film(
        tmp_path / "sc.dcm",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.7",
        Manufacturer="lungfirst project",
    )
    assert send(door.port, own) == [spool.OWN]
    assert not films_of(site) and counts(site) == {f"refused_{spool.OWN:04X}": 1}


def store_as(port: int, data: bytes, uid: str, sop_class: str) -> int:
    """C-STORE of bytes under an announcement that may not be theirs."""
    from pynetdicom import AE
    from pynetdicom.dimse_primitives import C_STORE

    ae = AE(ae_title="SENDER")
    ae.add_requested_context(sop_class, EXPLICIT)
    association = ae.associate("127.0.0.1", port, ae_title="LUNGFIRST")
    assert association.is_established
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, uid
    request.DataSet = io.BytesIO(data)
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return int(answer.Status)


def encoded(path: Path) -> bytes:
    from pynetdicom.dsutils import encode

    return bytes(encode(dcmread(path), False, True) or b"")


def test_uid_and_class_must_be_those_of_the_command(site: Site, door: Any, tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.dcm")
    ds, data = dcmread(path), encoded(path)
    assert store_as(door.port, data, generate_uid(), ds.SOPClassUID) == spool.MISMATCH
    assert store_as(door.port, data, ds.SOPInstanceUID, spool.FILMS[1]) == spool.MISMATCH
    assert store_as(door.port, data, ds.SOPInstanceUID, ds.SOPClassUID) == spool.SUCCESS
    assert len(films_of(site)) == 1


@pytest.mark.parametrize("data", [b"\xff" * 5000, b"GET / HTTP/1.1\r\n" * 99, bytes(4000)])
def test_garbage_is_refused(site: Site, door: Any, data: bytes) -> None:
    status = store_as(door.port, data, generate_uid(), spool.FILMS[0])
    assert status == spool.NO_DICOM and not films_of(site)
    assert not list(site.folders.arriving.iterdir())


@needs_dcmtk
def test_wrong_ae_titles_are_refused(tmp_path: Path) -> None:
    site = site_of(tmp_path, callers=("ORTHANC",))
    path = write_film(tmp_path / "a.dcm")
    with receiving(site) as door:
        assert storescu(door.port, path, title="OTHER").returncode != 0
        assert storescu(door.port, path).returncode != 0  # calls itself SENDER
        assert send(door.port, path, calling="ORTHANC") == [0x0000]
        assert counts(site)["associations_refused"] == 2


def test_more_associations_than_allowed_are_refused(tmp_path: Path) -> None:
    from pynetdicom import AE

    site = site_of(tmp_path, associations=2)
    with receiving(site) as door:
        ae = AE()
        ae.add_requested_context(spool.FILMS[0], EXPLICIT)
        held = [ae.associate("127.0.0.1", door.port, ae_title="LUNGFIRST") for _ in range(3)]
        assert [a.is_established for a in held] == [True, True, False]
        held[0].release()
        assert wait_for(lambda: len(door._ae.active_associations) < 2, 5) < 5
        assert send(door.port, write_film(tmp_path / "a.dcm")) == [0x0000]
        held[1].release()


# --- space ---


def test_without_room_films_are_refused_and_nothing_stays(
    site: Site, door: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_film(tmp_path / "a.dcm")
    with monkeypatch.context() as full:
        full.setattr(spool, "has_room", lambda *_: False)
        assert send(door.port, path) == [0xA700]
    assert not films_of(site) and not list(site.folders.arriving.iterdir())
    assert send(door.port, path) == [0x0000]


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted as root only")
def test_a_real_small_disk_fills_up_to_the_reserve(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        site = site_of(disk, largest_mb=4, reserve_mb=8)
        films = [write_film(tmp_path / f"{n}.dcm", megabytes=3) for n in range(8)]
        with receiving(site) as door:
            found = send(door.port, *films)
            taken = found.count(0x0000)
            assert taken >= 3 and found == [0x0000] * taken + [0xA700] * (8 - taken)
            assert len(films_of(site)) == taken
            assert not list(site.folders.arriving.iterdir())
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_film_that_is_too_large_is_cut_off(tmp_path: Path) -> None:
    site = site_of(tmp_path, largest_mb=1)
    with receiving(site) as door:
        assert send(door.port, write_film(tmp_path / "a.dcm", megabytes=4)) in ([None], [])
        assert send(door.port, write_film(tmp_path / "b.dcm")) == [0x0000]
        assert len(films_of(site)) == 1


# --- transfers that end early ---


class Half:
    """A proxy that lets so many bytes through, then cuts the line or stands still."""

    def __init__(self, port: int, size: int, cut: bool) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, args=(port, size, cut), daemon=True).start()

    def _serve(self, port: int, size: int, cut: bool) -> None:
        sender, _ = self._server.accept()
        ours = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=self._back, args=(ours, sender), daemon=True).start()
        while size > 0 and (data := sender.recv(min(size, 65536))):
            ours.sendall(data)
            size -= len(data)
        if cut:
            ours.shutdown(socket.SHUT_RDWR)
            ours.close()
            sender.close()
        else:
            time.sleep(20)

    @staticmethod
    def _back(ours: socket.socket, sender: socket.socket) -> None:
        try:
            while data := ours.recv(65536):
                sender.sendall(data)
            sender.close()
        except OSError:
            pass


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "stalled"])
def test_half_a_film_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    monkeypatch.setattr(receiver_module, "_NETWORK_S", 0.7)
    monkeypatch.setattr(receiver_module, "_DIMSE_S", 0.7)
    monkeypatch.setattr(spool, "_STALE_S", 0.2)
    site, path = site_of(tmp_path), write_film(tmp_path / "a.dcm", megabytes=4)
    with receiving(site) as door:
        through = Half(door.port, 2_000_000, cut)
        assert send(through.port, path) in ([], [None])
        assert wait_for(lambda: not door._ae.active_associations, 10) < 10
        time.sleep(0.3)
        spool.sweep(site)
        assert not list(site.folders.arriving.iterdir()) and not films_of(site)
        assert send(door.port, path) == [0x0000]


# --- kills and ends ---


@pytest.mark.parametrize("point", ["file", "journal"])
def test_a_receiver_killed_between_file_journal_and_answer_loses_nothing(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    path = write_film(tmp_path / "a.dcm")
    site.folders.make()
    config = write_json(site.folders.root / "site.json", to_plain(site))
    ready, usual = site.folders.root / "receiver.json", Journal.receive

    def dies(self: Journal, key: str, sha256: str, now: float | None = None) -> str:
        if point == "journal":
            usual(self, key, sha256, now)
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def start(receive: Any) -> tuple[Forked, int]:
        ready.unlink(missing_ok=True)
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "receive", receive)
            patched.setattr(sys, "argv", ["receiver", str(config)])
            found = Forked(receiver_module.main)
        assert wait_for(ready.exists, 20) < 20
        return found, int(read_json(ready)["port"])

    first, port = start(dies)
    assert send(port, path) in ([], [None])
    assert first.wait() == -signal.SIGKILL
    second, port = start(usual)
    try:
        assert counts(site)["received"] == 1  # adopted, or known
        assert send(port, path) == [0x0000]
        assert len(films_of(site)) == 1
        told = counts(site)
        assert (told["received"], told["repeats"]) == (1, 1)
    finally:
        second.kill()


@needs_dcmtk
def test_sigterm_lets_a_transfer_end(
    site: Site, tmp_path: Path, process: Callable[[], tuple[subprocess.Popen[bytes], int]]
) -> None:
    found, port = process()
    path = write_film(tmp_path / "a.dcm", megabytes=14)
    sender = subprocess.Popen(
        [
            *(find_peer("storescu"), "-aec", "LUNGFIRST", "--max-send-pdu", "4096"),
            *("127.0.0.1", str(port), str(path)),
        ]
    )
    assert wait_for(lambda: any(site.folders.arriving.iterdir()), 10) < 10
    found.send_signal(signal.SIGTERM)
    assert sender.wait(30) == 0 and found.wait(35) == 0
    assert len(films_of(site)) == 1


def test_a_fuzzed_port_stays_alive_and_small(
    site: Site, tmp_path: Path, process: Callable[[], tuple[subprocess.Popen[bytes], int]]
) -> None:
    import random

    rng, (found, port) = random.Random(7), process()
    huge = b"\x04\x00\xff\xff\xff\xff"
    cases = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x01\x00\xff\xff\xff\xff" + bytes(1 << 20)]
    cases += [huge + bytes(1 << 20), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""]
    cases += [bytes([kind, 0]) + rng.randbytes(rng.randrange(300)) for kind in range(9)] * 3
    cases += [rng.randbytes(rng.randrange(1, 4000)) for _ in range(40)]
    for data in cases:
        with socket.create_connection(("127.0.0.1", port), 5) as line:
            try:
                line.sendall(data)
                if rng.random() < 0.2:
                    line.settimeout(0.05)
                    line.recv(100)
            except OSError:
                pass
    assert send(port, write_film(tmp_path / "a.dcm")) == [0x0000]
    assert found.poll() is None and peak_mb(found.pid) < 150


def test_a_pdu_of_many_megabytes_is_not_held(
    site: Site, tmp_path: Path, process: Callable[[], tuple[subprocess.Popen[bytes], int]]
) -> None:
    found, port = process()
    with socket.create_connection(("127.0.0.1", port), 5) as line:
        try:
            line.sendall(b"\x01\x00\x18\x00\x00\x00")  # 400 MB are announced
            for _ in range(200):
                line.sendall(bytes(1 << 20))
        except OSError:
            pass
    assert found.poll() is None and peak_mb(found.pid) < 150


def test_silent_clients_keep_no_one_out(tmp_path: Path) -> None:
    site = site_of(tmp_path, associations=2)
    with receiving(site) as door:
        silent = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(30)]
        begun = time.monotonic()
        assert send(door.port, write_film(tmp_path / "a.dcm")) == [0x0000]
        assert time.monotonic() - begun < 1.0
        for line in silent:
            line.close()


def test_logs_name_no_patient(site: Site, door: Any, tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.dcm")
    assert send(door.port, path, path) == [0, 0]
    uid = str(dcmread(path).SOPInstanceUID)
    for found in site.folders.root.rglob("*"):
        if found.is_file() and not found.is_relative_to(site.folders.films):
            data = found.read_bytes()
            assert not any(t.encode() in data for t in (NAME, PATIENT, uid)), found.name
