"""tools/hospital: results out, to a destination that is down, that refuses, that commits itself."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="pip install -e '.[pacs]'")

from pacs_world import (
    PR,
    SR,
    Forked,
    quick_judge,
    quick_objects,
    receiving,
    site_of,
    spooled,
    write_film,
)
from pydicom import dcmread
from test_hospital_tls import make_authority, make_certificate

from hospital import dicomweb, outbox
from hospital import journal as spool
from hospital.check import Orthanc, free_port, missing_peers, wait_for
from hospital.dicomweb import pull
from hospital.journal import Journal
from hospital.outbox import CAP_S, Sender, is_for_good, is_taken, wait_after
from hospital.settings import Site
from hospital.worker import Worker

needs_orthanc = pytest.mark.skipif(
    bool(missing_peers("Orthanc")),
    reason=f"a PACS is missing: apt-get install {' '.join(missing_peers('Orthanc'))}",
)


def filled(site: Site, journal: Journal, count: int = 1) -> list[str]:
    """Films with results that wait in the outbox."""
    films = spooled(site, journal, count)
    worker = Worker(site, journal, quick_judge, quick_objects)
    while worker.step():
        pass
    return films


def states(journal: Journal, table: str = "outbox") -> list[str]:
    return sorted(row["state"] for row in journal.rows(f"SELECT state FROM {table}"))


@contextmanager
def destination(
    answers: Callable[[int], int | None], **told: Any
) -> Iterator[tuple[int, list[str]]]:
    """A Storage SCP on a port that answers the n-th object so (None: it falls silent); the UIDs
    that it was sent."""
    from pynetdicom import AE, evt

    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        status = answers(len(got) - 1)
        if status is None:
            event.assoc.abort()
            return 0xC000
        return status

    ae = AE(ae_title="PACS")
    ae.require_called_aet = True
    for sop_class in told.get("classes", (SR, PR)):
        ae.add_supported_context(sop_class)
    server = ae.start_server(
        ("127.0.0.1", told.get("port", 0)),
        block=False,
        evt_handlers=[(evt.EVT_C_STORE, store)],
        ssl_context=told.get("tls"),
    )
    try:
        yield server.server_address[1], got
    finally:
        server.shutdown()


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[Site, Journal]]]:
    opened = []

    def made(**told: Any) -> tuple[Site, Journal]:
        site = site_of(tmp_path, **told)
        site.folders.make()
        opened.append(Journal(site.folders.journal))
        return site, opened[-1]

    yield made
    for journal in opened:
        journal.close()


# --- what answers mean ---


@pytest.mark.parametrize("status", [0xA900, 0xA9FF, 0xC000, 0xC123, 0x0122])
def test_some_answers_are_for_good(status: int) -> None:
    assert is_for_good(status) and not is_taken(status)


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0x0110, 0x0211])
def test_others_may_pass(status: int) -> None:
    assert not is_for_good(status) and not is_taken(status)


def test_waits_double_with_jitter_up_to_a_cap() -> None:
    assert [wait_after(n, 0.5) for n in range(5)] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert (wait_after(3, 0.0), wait_after(3, 0.999)) == (4.0, pytest.approx(12.0, abs=0.1))
    assert wait_after(10, 0.5) == wait_after(5000, 0.99) == CAP_S == 300.0


# --- C-STORE ---


def test_results_are_sent_once(make: Callable[..., tuple[Site, Journal]]) -> None:
    with destination(lambda n: 0x0000) as (port, got):
        site, journal = make(destination=f"PACS@127.0.0.1:{port}")
        filled(site, journal, 3)
        sender = Sender(site, journal)
        assert sender.step() == 0.0 and sender.step() > 0.0
        assert len(got) == len(set(got)) == 6 and states(journal) == ["sent"] * 6
        assert states(journal, "films") == ["sent"] * 3


def test_an_hour_without_the_destination(make: Callable[..., tuple[Site, Journal]]) -> None:
    port, clock = free_port(), Clock()
    site, journal = make(destination=f"PACS@127.0.0.1:{port}")
    filled(site, journal, 2)
    sender, tries, begun, waits = Sender(site, journal, clock, lambda: 0.5), 0, clock.now, []
    while clock.now - begun < 3600:
        waits.append(sender.step())
        clock.now += waits[-1]
        tries += 1
    assert tries < 25 and waits[:4] == [1.0, 2.0, 4.0, 8.0] and max(waits) == 300.0
    assert states(journal) == ["waiting"] * 4
    assert "down" in journal.notes()["destination"]
    with destination(lambda n: 0x0000, port=port) as (_, got):
        assert sender.step() == 0.0 and len(got) == 4
    assert states(journal) == ["sent"] * 4 and journal.notes()["destination"] == ""


def test_a_refusal_for_good_is_not_repeated(make: Callable[..., tuple[Site, Journal]]) -> None:
    with destination(lambda n: 0xA900 if n == 0 else 0x0000) as (port, got):
        site, journal = make(destination=f"PACS@127.0.0.1:{port}")
        filled(site, journal)
        clock = Clock()
        sender = Sender(site, journal, clock)
        for _ in range(4):
            clock.now += sender.step()
        assert len(got) == 2 and states(journal) == ["refused", "sent"]
        assert states(journal, "films") == ["failed"]
        assert spool.tidy(site, journal, time.time() + 1e6) == 0  # kept for a person
        assert journal.again() == 1 and sender.step() == 0.0
        assert states(journal, "films") == ["sent"]


def test_a_full_destination_is_asked_again_later(
    make: Callable[..., tuple[Site, Journal]],
) -> None:
    with destination(lambda n: 0xA700 if n < 2 else 0x0000) as (port, got):
        site, journal = make(destination=f"PACS@127.0.0.1:{port}")
        filled(site, journal)
        clock = Clock()
        sender = Sender(site, journal, clock, lambda: 0.5)
        sender.step()
        assert states(journal) == ["waiting"] * 2 and 0 < sender.step() <= 1.0
        assert len(got) == 2
        clock.now += 1.01
        sender.step()
        assert len(got) == 4 and states(journal) == ["sent"] * 2


def test_a_line_that_breaks_loses_nothing(make: Callable[..., tuple[Site, Journal]]) -> None:
    with destination(lambda n: None if n == 1 else 0x0000) as (port, got):
        site, journal = make(destination=f"PACS@127.0.0.1:{port}")
        filled(site, journal, 2)
        clock = Clock()
        sender = Sender(site, journal, clock)
        for _ in range(4):
            clock.now += sender.step()
        assert states(journal) == ["sent"] * 4 and len(set(got)) == 4


@pytest.mark.parametrize("title", ["PACS", "WRONG"])
def test_a_wrong_ae_title_is_told(make: Callable[..., tuple[Site, Journal]], title: str) -> None:
    with destination(lambda n: 0x0000) as (port, got):
        site, journal = make(destination=f"{title}@127.0.0.1:{port}")
        filled(site, journal)
        Sender(site, journal).step()
        if title == "WRONG":
            assert not got and "AE titles" in journal.notes()["destination"]
        else:
            assert len(got) == 2


def test_a_class_that_is_not_accepted_needs_a_person(
    make: Callable[..., tuple[Site, Journal]],
) -> None:
    with destination(lambda n: 0x0000, classes=(SR,)) as (port, got):
        site, journal = make(destination=f"PACS@127.0.0.1:{port}")
        filled(site, journal)
        Sender(site, journal).step()
        assert len(got) == 1 and states(journal) == ["refused", "sent"]


def test_a_wrong_peer_that_is_no_pacs(make: Callable[..., tuple[Site, Journal]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:
        site, journal = make(destination=f"PACS@127.0.0.1:{web.getsockname()[1]}")
        filled(site, journal)

        def hang_up() -> None:
            line, _ = web.accept()
            line.recv(10)
            line.close()

        threading.Thread(target=hang_up, daemon=True).start()
        assert Sender(site, journal).step() > 0.4 and states(journal) == ["waiting"] * 2


def test_a_killed_sender_sends_the_rest(
    make: Callable[..., tuple[Site, Journal]],
) -> None:
    with destination(lambda n: 0x0000) as (port, got):
        site, journal = make(destination=f"PACS@127.0.0.1:{port}")
        filled(site, journal, 3)

        usual = Journal.sent

        def role() -> int:
            sent: list[int] = []

            def dying(self: Journal, key: str, now: float) -> None:
                sent.append(1)
                if len(sent) == 3:  # the third is with the destination, and not in the journal
                    os.kill(os.getpid(), signal.SIGKILL)
                usual(self, key, now)

            Journal.sent = dying  # type: ignore[method-assign]
            with Journal(site.folders.journal) as own:
                Sender(site, own).step()
            return 0

        assert Forked(role).wait() == -signal.SIGKILL
        assert states(journal) == ["sent"] * 2 + ["waiting"] * 4
        Sender(site, journal).step()
        assert states(journal) == ["sent"] * 6
        assert len(set(got)) == 6  # by its UID the destination knows the one that came twice


# --- a real PACS ---


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Orthanc, int]]:
    port = free_port()
    with Orthanc(tmp_path_factory.mktemp("orthanc"), port) as started:
        yield started, port


@needs_orthanc
def test_orthanc_commits_itself(
    make: Callable[..., tuple[Site, Journal]], pacs: tuple[Orthanc, int]
) -> None:
    orthanc, port = pacs
    site, journal = make(destination=orthanc.destination, commitment=True, port=port)
    filled(site, journal, 2)
    with receiving(site):
        Sender(site, journal).step()
        assert wait_for(lambda: states(journal) == ["committed"] * 4, 15) < 15
    assert states(journal, "films") == ["committed"] * 2
    assert spool.tidy(site, journal, time.time() + 1) == 2
    assert not list(site.folders.outbox.iterdir()) and not list(site.folders.films.iterdir())


@needs_orthanc
def test_what_orthanc_lost_is_sent_again(
    make: Callable[..., tuple[Site, Journal]], pacs: tuple[Orthanc, int]
) -> None:
    orthanc, port = pacs
    site, journal = make(destination=orthanc.destination, commitment=True, port=port)
    filled(site, journal)
    with receiving(site):
        # the SR is taken for sent, and Orthanc never had it
        key = journal.rows("SELECT key FROM outbox WHERE kind = 'SR'")[0]["key"]
        journal.sent(key, time.time())
        clock = Clock()
        sender = Sender(site, journal, clock)
        sender.step()
        assert wait_for(lambda: states(journal) == ["committed", "waiting"], 15) < 15
        clock.now += 100
        sender.step()
        assert wait_for(lambda: states(journal) == ["committed"] * 2, 15) < 15


@needs_orthanc
def test_results_by_stow(
    make: Callable[..., tuple[Site, Journal]], pacs: tuple[Orthanc, int]
) -> None:
    orthanc, _ = pacs
    site, journal = make(destination=orthanc.web)
    filled(site, journal, 2)
    before = len(orthanc.find("SR"))
    assert Sender(site, journal).step() == 0.0
    assert states(journal) == ["sent"] * 4 and len(orthanc.find("SR")) == before + 2


def test_stow_to_nobody_waits(make: Callable[..., tuple[Site, Journal]]) -> None:
    site, journal = make(destination=f"http://127.0.0.1:{free_port()}/dicom-web")
    filled(site, journal)
    assert 0.4 < Sender(site, journal).step() < 1.6
    assert states(journal) == ["waiting"] * 2
    assert journal.notes()["destination"].startswith("no answer")


@needs_orthanc
def test_films_that_nobody_sent_are_pulled_once(
    make: Callable[..., tuple[Site, Journal]], pacs: tuple[Orthanc, int], tmp_path: Path
) -> None:
    orthanc, _ = pacs
    site, journal = make(destination=orthanc.web, pull=orthanc.web, pull_days=1)
    for n in range(3):
        orthanc.upload(write_film(tmp_path / f"{n}.dcm"))
    orthanc.upload(write_film(tmp_path / "old.dcm", StudyDate="20010101"))
    found = pull(site, journal)
    assert (found.seen, found.new) == (3, 3) and pull(site, journal).new == 0
    worker = Worker(site, journal, quick_judge, quick_objects)
    while worker.step():
        pass
    Sender(site, journal).step()
    assert states(journal, "films") == ["sent"] * 3


@needs_orthanc
def test_a_new_journal_knows_what_is_reported_on(tmp_path: Path, pacs: tuple[Orthanc, int]) -> None:
    orthanc, _ = pacs
    path = write_film(tmp_path / "a.dcm", StudyDate="20200202")
    other = write_film(tmp_path / "b.dcm", StudyDate="20200202")
    film = dcmread(path)
    second = dcmread(other)
    second.StudyInstanceUID = film.StudyInstanceUID
    second.save_as(other)
    for found in (path, other):
        orthanc.upload(found)
    orthanc.upload(report_on(film, tmp_path / "sr.dcm"))
    site = site_of(tmp_path, pull=orthanc.web, pull_days=1)
    site.folders.make()
    with Journal(site.folders.journal) as journal:
        told = pull(site, journal, date(2020, 2, 2))
        assert (told.seen, told.reported, told.new) == (2, 1, 1)
        assert journal.knows(site.folders.key_of(second.SOPInstanceUID))


def report_on(film: Any, path: Path) -> Path:
    """A report of ours that names the film as its evidence, as every SR does."""
    from pydicom.dataset import Dataset

    ((_, (made, _)),) = quick_objects(path.parent, {"a": path.parent / "a.dcm"}, None)  # type: ignore
    one, series, study = Dataset(), Dataset(), Dataset()
    one.ReferencedSOPClassUID = film.SOPClassUID
    one.ReferencedSOPInstanceUID = film.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = film.SeriesInstanceUID, [one]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = film.StudyInstanceUID, [series]
    made.CurrentRequestedProcedureEvidenceSequence = [study]
    made.save_as(path, enforce_file_format=True)
    return path


def test_web_refusals_are_told_apart() -> None:
    import requests

    class Answer:
        def __init__(self, code: int, text: str = "") -> None:
            self.status_code, self.text = code, text

    def told(code: int, text: str = "") -> tuple[dict[str, int], str]:
        error = requests.HTTPError(response=Answer(code, text))  # type: ignore[arg-type]
        return dicomweb._refusals(error, ["1.2", "1.3"], code)

    failed = (
        '{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}, '
        '"00081197": {"vr": "US", "Value": [42752]}}]}}'
    )
    assert told(409, failed) == ({"1.2": 0xA700}, "")
    assert told(503) == ({}, "it answers HTTP 503")
    assert told(415) == ({"1.2": 0xC000, "1.3": 0xC000}, "")


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes certificates")
def test_results_go_by_tls_where_that_is_asked_for(
    make: Callable[..., tuple[Site, Journal]], tmp_path: Path
) -> None:
    authority = make_authority(tmp_path / "papers", "own")
    certificate, key = make_certificate(authority, "both")
    tls = dict(certificate=certificate, key=key, authorities=str(authority))
    context = site_of(tmp_path, **tls).tls_context(server=True)
    with destination(lambda n: 0x0000, tls=context) as (port, got):
        told = dict(destination=f"PACS@127.0.0.1:{port}", **tls)
        site, journal = make(**told)
        filled(site, journal)
        assert Sender(site, journal).step() > 0.0 and not got  # in clear: the peer hangs up
        assert Sender(replace(site, destination_tls=True), journal).step() == 0.0
        assert len(got) == 2


def test_send_leaves_the_work_to_a_service_that_runs(
    make: Callable[..., tuple[Site, Journal]], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    site, journal = make(destination=f"PACS@127.0.0.1:{port}")
    filled(site, journal)
    script = (
        "import sys, time; from cxr.workdir import claim; held = claim(sys.argv[1]); "
        "print('held', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", script, str(site.folders.sender)]
    other = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline()
        config = outbox.SendConfig(state=site.state, destination=site.destination)
        assert outbox.run(config) == 0
        assert "the service that runs" in capsys.readouterr().err
        assert states(journal) == ["waiting"] * 2
    finally:
        other.kill()
        other.wait()


def test_send_says_what_is_left(
    make: Callable[..., tuple[Site, Journal]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with destination(lambda n: 0x0000) as (port, got):
        told = dict(destination=f"PACS@127.0.0.1:{port}")
        site, journal = make(**told)
        filled(site, journal)
        config = outbox.SendConfig(state=site.state, **told)  # type: ignore[arg-type]
        assert outbox.run(config) == 0 and len(got) == 2
        assert "2 sent" in capsys.readouterr().err
