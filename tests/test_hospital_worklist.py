"""tools/hospital: which film should be read first."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

pytest.importorskip("pynetdicom", reason="pip install -e '.[pacs]'")

from pacs_world import NAME, PATIENT, receiving, site, write_film  # noqa: F401 - a fixture
from pydicom import dcmread

from hospital import worklist
from hospital.check import ask_worklist
from hospital.journal import Journal, Judgement
from hospital.settings import Site
from hospital.worklist import priority_of, table_rows

READ, NOT_READ, CLEARED = "read", "not_read_by_model", "definitely_normal"


@pytest.mark.parametrize(
    ("decision", "tier", "priority"),
    [
        (READ, "critical", "HIGH"),
        (READ, "urgent", "HIGH"),
        (READ, "non_urgent", "MEDIUM"),
        (READ, "", "MEDIUM"),
        (NOT_READ, "", "MEDIUM"),
        (CLEARED, "", "LOW"),
        (CLEARED, "urgent", "LOW"),
    ],
)
def test_priority_is_of_decision_and_tier(decision: str, tier: str, priority: str) -> None:
    assert priority_of(decision, tier) == priority


@pytest.fixture
def port(site: Site) -> Iterator[int]:
    for number, priority in enumerate(("LOW", "HIGH", "MEDIUM", "HIGH")):
        film = dcmread(write_film(site.folders.root / "film.dcm", AccessionNumber=f"A{number}"))
        worklist.write_item(site, f"{number:032x}", film, priority, time.time() - 100 + number)
    with receiving(site) as door:
        yield door.port


def accessions(port: int, priority: str = "", **keys: str) -> list[str]:
    found = ask_worklist(port, priority, **({"AccessionNumber": ""} | keys))
    return [str(item.AccessionNumber) for item in found]


def test_the_most_pressing_and_then_the_oldest_come_first(port: int) -> None:
    assert accessions(port) == ["A1", "A3", "A2", "A0"]


def test_a_priority_picks_its_own(port: int) -> None:
    assert accessions(port, "HIGH") == ["A1", "A3"]
    assert accessions(port, "MEDIUM") == ["A2"]


def test_other_keys_match_too_and_unknown_ones_are_empty(port: int) -> None:
    assert accessions(port, AccessionNumber="A3") == ["A3"]
    assert accessions(port, PatientID="MRN-*") == ["A1", "A3", "A2", "A0"]
    assert accessions(port, PatientID="MRN-1*") == []
    (found, *_) = ask_worklist(port, "LOW", ProtocolName="")
    assert found.PatientName == NAME and found.ProtocolName in ("", None)
    assert "PatientID" not in found  # was not asked for


def test_table_and_page_have_the_same_order_and_no_names(site: Site) -> None:
    with Journal(site.folders.journal) as journal:
        for number, priority in enumerate(("LOW", "HIGH", "MEDIUM")):
            key = f"film{number}"
            journal.receive(key, "x", now=1000.0 + number)
            journal.begin(key, [key], 1.0)
            told = Judgement(key, "ok", READ, "urgent", 0.25, priority, {f"o{key}": "SR"})
            journal.judged(key, [told], 2.0)
        rows = table_rows(journal, 0.0)
    assert [row[0] for row in rows] == ["HIGH", "MEDIUM", "LOW"]
    assert [row[1] for row in rows] == ["film1", "film2", "film0"] and rows[0][5] == "0.250"
    page = worklist.page_of(rows)
    assert page.index("film1") < page.index("film2") < page.index("film0")
    assert NAME not in page and PATIENT not in page
