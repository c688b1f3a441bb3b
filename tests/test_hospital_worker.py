"""tools/hospital: films judged in batches, once, whatever becomes of the worker."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="pip install -e '.[pacs]'")

from pacs_world import Forked, journal, quick_judge, quick_objects, site_of, spooled  # noqa: F401
from pacs_world import main as role
from pydicom import dcmread

from cxr.cli import to_plain
from cxr.workdir import write_json
from hospital import worker as worker_module
from hospital.check import wait_for
from hospital.journal import Journal
from hospital.settings import Site
from hospital.worker import Worker, batch_name


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = site_of(tmp_path, batch=4)
    made.folders.make()
    return made


def states(journal: Journal) -> list[str]:
    return sorted(row["state"] for row in journal.rows("SELECT state FROM films"))


def judged_of(site: Site) -> list[str]:
    """The films in the order in which they were judged, as often as they were."""
    files = site.folders.runs.glob("*/judged.txt")
    return sorted(line for path in files for line in path.read_text().split())


def test_films_become_results_in_batches(site: Site, journal: Journal) -> None:
    films = spooled(site, journal, 6)
    worker = Worker(site, journal, quick_judge, quick_objects)
    assert worker.step() and worker.step() and not worker.step()
    assert states(journal) == ["judged"] * 6 and judged_of(site) == films
    assert len(list(site.folders.runs.iterdir())) == 2
    rows = journal.rows("SELECT key, kind FROM outbox")
    assert sorted(row["kind"] for row in rows) == ["PR"] * 6 + ["SR"] * 6
    for row in rows:
        found = dcmread(site.folders.outbox / f"{row['key']}.dcm")
        assert site.folders.key_of(found.SOPInstanceUID) == row["key"]


def test_a_film_waits_for_company_but_not_for_long(tmp_path: Path) -> None:
    site = site_of(tmp_path, batch=4, wait_s=0.4)
    site.folders.make()
    with Journal(site.folders.journal) as journal:
        worker = Worker(site, journal, quick_judge, quick_objects)
        spooled(site, journal, 1)
        assert not worker.step()
        assert 0.1 < wait_for(worker.step, 3) < 1.5
        spooled(site, journal, 4)
        assert worker.step()  # a full batch waits for nobody


def test_batches_are_named_by_their_films() -> None:
    assert batch_name(["a", "b"]) == batch_name(["b", "a"]) != batch_name(["a"])
    assert batch_name(["a"], "alone") != batch_name(["a"])


def test_a_film_that_brings_out_a_fault_fails_alone(site: Site, journal: Journal) -> None:
    films = spooled(site, journal, 3)

    def judge(found: Mapping[str, Path], run: Path) -> Iterable[Any]:
        if any(films[1] in name for name in found):
            raise RuntimeError("a name that must not be told: Winterbottom")
        return quick_judge(found, run)

    worker = Worker(site, journal, judge, quick_objects)
    for _ in range(12):
        worker.step()
    assert states(journal) == ["failed", "judged", "judged"]
    assert not worker.step()
    row = journal.rows("SELECT key, reason FROM films WHERE state = 'failed'")[0]
    assert row["key"] == films[1] and "Winterbottom" not in row["reason"]


def test_a_full_disk_counts_against_no_film(
    site: Site, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_BREATH_S", 0.0)
    spooled(site, journal, 2)
    full = [True]

    def judge(found: Mapping[str, Path], run: Path) -> Iterable[Any]:
        if full[0]:
            raise OSError(28, "No space left on device")
        return quick_judge(found, run)

    worker = Worker(site, journal, judge, quick_objects)
    for _ in range(8):
        worker.step()
    full[0] = False
    assert worker.step() and states(journal) == ["judged", "judged"]


def test_a_film_without_a_possible_result_needs_a_person(site: Site, journal: Journal) -> None:
    spooled(site, journal, 1)
    worker = Worker(site, journal, quick_judge, lambda *_: iter(()))
    assert worker.step() and states(journal) == ["failed"]


def test_what_a_killed_worker_left_half_written_is_deleted(site: Site, journal: Journal) -> None:
    torn = [
        place / ".0123456789abcdef.dcm.abcd1234"
        for place in (site.folders.outbox, site.folders.worklist)
    ]
    for path in torn:
        path.write_bytes(b"half a report of Winterbottom")
    config = write_json(site.folders.root / "site.json", to_plain(site))
    worker = Forked(lambda: role("quick", str(config)))
    try:
        assert wait_for(lambda: not any(path.exists() for path in torn), 20) < 20
    finally:
        worker.kill()


POINTS = ("before run", "after run", "after objects", "inside commit", "after commit")


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_worker_goes_on_and_does_nothing_twice(
    site: Site, journal: Journal, point: str
) -> None:
    films = spooled(site, journal, 3)
    config = write_json(site.folders.root / "site.json", to_plain(site))
    assert Forked(lambda: role(point, str(config))).wait() == -signal.SIGKILL
    second = Forked(lambda: role(point, str(config)))
    try:
        assert wait_for(lambda: states(journal) == ["judged"] * 3, 20) < 20
        time.sleep(0.2)
    finally:
        second.kill()
    rows = journal.rows("SELECT key, film, kind FROM outbox")
    assert len(rows) == 6 and sorted({row["film"] for row in rows}) == films
    assert journal.counts()["judged"] == 3
    assert sorted(p.stem for p in site.folders.outbox.glob("*.dcm")) == sorted(
        r["key"] for r in rows
    )
