"""tools/hospital: settings, the journal, and what is left over in the spool."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="pip install -e '.[pacs]'")

from pacs_world import journal, site, site_of, spooled, write_film  # noqa: F401 - fixtures
from pydicom import dcmread

from hospital import journal as spool
from hospital.journal import Journal, Judgement
from hospital.service import health, prometheus
from hospital.settings import Site


def judge(journal: Journal, film: str, **objects: str) -> None:
    journal.begin(f"b{film}", [film], 100.0)
    told = Judgement(film, "ok", "read", "urgent", 0.5, "HIGH", objects)
    journal.judged(f"b{film}", [told], 101.0)


def state_of(journal: Journal, film: str) -> str:
    return str(journal.rows("SELECT state FROM films WHERE key = ?", film)[0]["state"])


# --- settings ---


@pytest.mark.parametrize("host", ["0.0.0.0", "", "192.168.1.7", "::"])
def test_another_network_without_tls_is_refused_with_the_reason(host: str) -> None:
    with pytest.raises(ValueError, match=r"without TLS.*patients' names"):
        Site(host=host)
    assert Site(host=host, insecure_network=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_no_tls(host: str) -> None:
    assert not Site(host=host).tls


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"certificate": "a.pem"}, "all three"),
        ({"largest_mb": 300}, "at least 600"),
        ({"destination": "ORTHANC"}, "AET@HOST:PORT"),
        ({"destination": "A@h:x"}, "AET@HOST:PORT"),
        ({"ae_title": "x" * 17}, "1 to 16"),
        ({"kinds": ("pdf",)}, "kinds"),
        ({"destination": "http://a/dicom-web", "commitment": True}, "C-STORE"),
    ],
)
def test_wrong_settings_are_said(told: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Site(**told)  # type: ignore[arg-type]


def test_folders_are_closed_to_others(site: Site) -> None:
    places = (site.folders.films, site.folders.outbox, site.folders.root, site.folders.worklist)
    assert {place.stat().st_mode & 0o777 for place in places} == {0o700}
    assert (site.folders.root / "hash.key").stat().st_mode & 0o777 == 0o600


def test_hashes_hang_on_the_sites_own_key(site: Site, tmp_path: Path) -> None:
    other = site_of(tmp_path / "other").folders.make()
    assert site.folders.key_of("1.2.3") == site_of(tmp_path).folders.key_of("1.2.3")
    assert site.folders.key_of("1.2.3") != other.key_of("1.2.3")


# --- journal ---


def test_a_repeat_changes_nothing(journal: Journal) -> None:
    assert [journal.receive("a", "x"), journal.receive("a", "x"), journal.receive("a", "y")] == [
        "new",
        "same",
        "other",
    ]
    assert journal.rows("SELECT sha256 FROM films")[0]["sha256"] == "x"
    assert journal.counts() == {"received": 1, "repeats": 1, "repeats_other_bytes": 1}


def test_a_batch_keeps_the_time_of_its_first_beginning(journal: Journal) -> None:
    journal.receive("a", "x")
    assert journal.begin("b", ["a"], 10.0) == 10.0
    assert journal.begin("b", ["a"], 20.0) == 10.0
    assert journal.begun() == [("b", ["a"], 2)]


def test_judged_and_outbox_are_one_transaction(journal: Journal) -> None:
    journal.receive("a", "x")
    journal.begin("b", ["a"], 10.0)

    def films() -> Iterator[Judgement]:
        yield Judgement("a", "ok", "read", "", 0.5, "HIGH", {"o1": "SR"})
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        journal.judged("b", films(), 11.0)
    assert state_of(journal, "a") == "received" and not journal.due(200.0, 10)


def test_judging_twice_adds_nothing(journal: Journal) -> None:
    journal.receive("a", "x")
    judge(journal, "a", o1="SR")
    judge(journal, "a", o1="SR")
    assert journal.counts()["judged"] == 1
    assert len(journal.due(200.0, 10)) == 1


def test_a_film_is_sent_when_all_its_results_are(journal: Journal) -> None:
    journal.receive("a", "x")
    judge(journal, "a", o1="SR", o2="PR")
    journal.sent("o1", 110.0)
    assert state_of(journal, "a") == "judged"
    journal.sent("o2", 111.0)
    assert state_of(journal, "a") == "sent"


def test_a_refused_result_needs_a_person_and_goes_again(journal: Journal) -> None:
    journal.receive("a", "x")
    judge(journal, "a", o1="SR")
    journal.refused("o1", "refused, 0xA900", 110.0)
    assert state_of(journal, "a") == "failed" and not health(journal)["ok"]
    assert journal.again() == 1
    assert state_of(journal, "a") == "judged" and len(journal.due(200.0, 10)) == 1


def test_what_was_not_committed_is_sent_again(journal: Journal) -> None:
    journal.receive("a", "x")
    judge(journal, "a", o1="SR", o2="PR")
    for key in ("o1", "o2"):
        journal.sent(key, 110.0)
    journal.asked("t", ["o1", "o2"], 111.0)
    journal.committed("other", ["o1"], {}, 112.0)  # not the transaction that was asked
    journal.committed("t", ["o1"], {"o2": "not committed, 0x0112"}, 112.0)
    states = {r["key"]: r["state"] for r in journal.rows("SELECT key, state FROM outbox")}
    assert states == {"o1": "committed", "o2": "waiting"} and state_of(journal, "a") == "judged"
    journal.sent("o2", 180.0)
    journal.asked("u", ["o2"], 181.0)
    journal.committed("u", ["o2"], {}, 182.0)
    assert state_of(journal, "a") == "committed"


def test_pressing_films_are_sent_first(journal: Journal) -> None:
    for film, priority in (("a", "LOW"), ("b", "HIGH"), ("c", "MEDIUM")):
        journal.receive(film, "x")
        journal.begin(film, [film], 1.0)
        told = Judgement(film, "ok", "read", "", None, priority, {f"o{film}": "SR"})
        journal.judged(film, [told], 2.0)
    assert [row["film"] for row in journal.due(10.0, 10)] == ["b", "c", "a"]


def test_health_counts_and_prometheus_agree(journal: Journal) -> None:
    for film in "ab":
        journal.receive(film, "x", now=1000.0)
    judge(journal, "a", o1="SR")
    journal.count("refused_C000")
    told = health(journal, now=1060.0)
    assert (told["received"], told["judged"], told["refused"], told["waiting"]) == (2, 1, 1, 1)
    assert told["oldest_s"] == 60.0 and told["results"]["waiting"] == 1
    lines = prometheus(told).splitlines()
    assert "lungfirst_films_received_total 2" in lines
    assert 'lungfirst_results{state="waiting"} 1' in lines


# --- what is left over ---


def test_orphans_are_adopted_and_garbage_is_dropped(site: Site, journal: Journal) -> None:
    path = write_film(site.folders.films / "x.dcm")
    key = site.folders.key_of(dcmread(path).SOPInstanceUID)
    path.rename(site.folders.film(key))
    (site.folders.films / f"{'0' * 32}.dcm").write_bytes(b"nothing")
    assert spool.adopt(site, journal) == (1, 1)
    assert journal.waiting(10)[0][0] == key
    assert spool.adopt(site, journal) == (0, 0)


def test_only_what_nobody_writes_to_is_swept(site: Site) -> None:
    old, young = site.folders.arriving / "old", site.folders.arriving / "young"
    for path in (old, young):
        path.write_bytes(b"half a film")
    os.utime(old, (time.time() - 200,) * 2)
    assert spool.sweep(site) == 1 and young.exists() and not old.exists()
    assert spool.sweep(site, everything=True) == 1


def test_films_and_results_are_deleted_when_all_is_sent(site: Site, journal: Journal) -> None:
    key, other = spooled(site, journal, 2)
    run = site.folders.runs / "b"
    run.mkdir()
    journal.begin("b", [key, other], 1.0)
    for film in (key, other):
        (site.folders.outbox / f"o{film}.dcm").write_bytes(b"result")
    told = [Judgement(f, "ok", "read", "", 0.1, "HIGH", {f"o{f}": "SR"}) for f in (key, other)]
    journal.judged("b", told, 2.0)
    journal.sent(f"o{key}", 3.0)
    assert spool.tidy(site, journal, 4.0) == 1
    assert not site.folders.film(key).exists() and site.folders.film(other).exists()
    assert run.exists()
    journal.sent(f"o{other}", 5.0)
    assert spool.tidy(site, journal, 6.0) == 1 and spool.tidy(site, journal, 7.0) == 0
    assert not run.exists() and not list(site.folders.outbox.iterdir())


def test_a_film_of_which_all_was_deleted_is_not_judged_again(site: Site, journal: Journal) -> None:
    path = write_film(site.folders.root / "film.dcm")
    key = site.folders.key_of(dcmread(path).SOPInstanceUID)
    assert spool.take_in(site, journal, path) == 0
    judge(journal, key, o1="SR")
    journal.sent("o1", 3.0)
    spool.tidy(site, journal, 4.0)
    assert spool.take_in(site, journal, path) == 0
    assert not site.folders.film(key).exists() and not journal.waiting(10)
