"""tools/hospital: all processes together, with a real PACS beside them; the commands once each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

pytest.importorskip("pynetdicom", reason="pip install -e '.[pacs]'")

import pacs as command
import pacs_world
from pacs_world import roles, send, serve, site_of, spooled, write_film, write_films
from pydicom import dcmread

from cxr.cli import to_plain, write_config
from cxr.workdir import read_json, write_json
from hospital.check import Orthanc, free_port, leaks, missing_peers, running, texts_of, wait_for
from hospital.journal import Journal
from hospital.service import Service, health
from hospital.settings import Site

needs_orthanc = pytest.mark.skipif(
    bool(missing_peers("Orthanc")),
    reason=f"a PACS is missing: apt-get install {' '.join(missing_peers('Orthanc'))}",
)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Orthanc, int]]:
    port = free_port()
    with Orthanc(tmp_path_factory.mktemp("orthanc"), port) as started:
        yield started, port


def told(service: Service, *names: str) -> tuple[int, ...]:
    found = health(service.journal)
    return tuple(found[name] for name in names)


def ask(service: Service, path: str) -> tuple[int, str]:
    port = service.health.server_address[1]
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def port_of(service: Service) -> int:
    return int(read_json(service.site.folders.root / "receiver.json")["port"])


@needs_orthanc
def test_kills_of_every_process_lose_nothing_and_send_nothing_twice(
    pacs: tuple[Orthanc, int], tmp_path: Path
) -> None:
    orthanc, port = pacs
    films = write_films(tmp_path / "films", 12)
    before = len(orthanc.find("SR"))
    site = site_of(tmp_path, destination=orthanc.destination, port=port, batch=3)
    with running(site, roles()) as service:
        for number, path in enumerate(films):
            if number in (3, 6, 9):
                os.kill(service.roles[number // 3 - 1].pid, signal.SIGKILL)
            assert wait_for(lambda path=path: send(port, path) == [0x0000], 20) < 20
        done = wait_for(lambda: told(service, "sent") == (12,), 30)
        assert done < 30 and told(service, "received", "judged", "failed") == (12, 12, 0)
        assert len(orthanc.find("SR")) == before + 12
        assert sum(role.restarts for role in service.roles) == 3
        _look_at_pages(service)
        # what is on the disk names nobody, and soon nothing of the films is left
        texts = [t for path in films for t in texts_of(dcmread(path))]
        assert not leaks(site, texts)
        places = (site.folders.films, site.folders.runs)
        assert wait_for(lambda: not any(list(p.iterdir()) for p in places), 20) < 20
        left = {path.name for path in site.folders.outbox.iterdir()} - {".in_use"}
        assert not left
        pages = "".join(ask(service, p)[1] for p in ("/health", "/metrics", "/worklist", "/no"))
        assert not any(text in pages for text in texts)


def _look_at_pages(service: Service) -> None:
    status, text = ask(service, "/health")
    found = json.loads(text)
    assert status == 200 and found["ok"] and found["sent"] == 12
    assert set(found["processes"]) == {"receiver", "worker", "sender"}
    assert "lungfirst_films_judged_total 12" in ask(service, "/metrics")[1]
    assert ask(service, "/worklist")[1].count("<tr>") == 13
    assert ask(service, "/etc/passwd")[0] == 404


def test_a_killed_service_takes_its_processes_along_and_goes_on(tmp_path: Path) -> None:
    site = site_of(tmp_path, port=free_port())
    config = write_json(tmp_path / "site.json", to_plain(site))
    words = [sys.executable, pacs_world.__file__, "serve", str(config)]

    def start() -> subprocess.Popen[bytes]:
        (site.folders.root / "receiver.json").unlink(missing_ok=True)
        found = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        assert wait_for((site.folders.root / "receiver.json").exists, 30) < 30
        return found

    first = start()
    pid = read_json(site.folders.root / "receiver.json")["pid"]
    first.kill()
    first.wait()
    assert wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10) < 10
    second = start()  # the folder and the port are free again
    assert send(site.port, write_film(tmp_path / "a.dcm")) == [0x0000]
    begun = time.monotonic()
    second.send_signal(signal.SIGTERM)
    assert second.wait(40) == 0 and time.monotonic() - begun < 33


def test_two_services_do_not_share_a_folder(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    site.folders.make()
    script = (
        "import sys, time; from cxr.workdir import claim; held = claim(sys.argv[1]); "
        "print('held', flush=True); time.sleep(60)"
    )
    root = str(site.folders.root)
    other = subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(ValueError, match="no other run is writing"):
            Service(site)
    finally:
        other.kill()
        other.wait()


@needs_orthanc
def test_check_finds_everything_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = command.main(["check", "--keep", str(tmp_path)])
    text = capsys.readouterr().err
    assert code == 0, text
    assert "0 failed" in text and "storage commitment" in text


def test_check_without_peers_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hospital import check

    monkeypatch.setattr(check, "find_peer", lambda name: "")
    assert command.main(["check"]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "orthanc" in text and "dicom3tools" in text


def test_serve_once_ends_when_the_queue_is_empty(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    config = tmp_path / "site.yaml"
    write_config(config, site)
    site.folders.make()
    with Journal(site.folders.journal) as journal:
        spooled(site, journal, 2)
        assert serve(roles(), site, once=True) == 0
        assert health(journal)["judged"] == 2
    assert command.main(["status", "--config", str(config)]) == 0
    assert command.main(["worklist", "--config", str(config), "--page", str(tmp_path / "w")]) == 0
    assert (tmp_path / "w").read_text().count("<tr>") == 3


@pytest.mark.parametrize("word", ["status", "worklist", "send"])
def test_commands_without_a_service_say_so(word: str, tmp_path: Path) -> None:
    more = ["--destination", "A@127.0.0.1:1"] if word == "send" else []
    assert command.main([word, "--state", str(tmp_path / "none"), *more]) == 2


def test_the_shipped_settings_are_good(root: Path) -> None:
    import yaml

    told = yaml.safe_load((root / "configs/pacs.yaml").read_text())
    assert Site(**(told | {"callers": (), "kinds": tuple(told["kinds"])})).by_web is False
