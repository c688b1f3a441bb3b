"""Which film should be read first: a DICOM worklist (UPS Pull), a table, and a page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.table import Table

from cxr.workdir import console, replacing, write_atomic
from hospital.journal import ORDER, Journal
from hospital.settings import Site

PRESSING = ("critical", "urgent")  # tiers of configs/classify/tiers.yaml that make a film HIGH
_COPIED = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "AccessionNumber", "StudyID"),
)
_UPS = "1.2.840.10008.5.1.4.34.6.1"


@dataclass(frozen=True)
class WorklistConfig(Site):
    """Show the films of the last hours in the order in which they should be read.

    Args:
        page: also write the table as this HTML file.
    """

    page: str = ""


def priority_of(decision: str, tier: str) -> str:
    """HIGH, MEDIUM or LOW, the words of DICOM: HIGH where a member found what is critical or
    urgent, LOW for the definitely normal, MEDIUM for the rest and for what was not judged."""
    from classify.screener import NOT_READ, READ  # late: the receiver does without

    if decision == READ and tier in PRESSING:
        return "HIGH"
    return "MEDIUM" if decision in (READ, NOT_READ) else "LOW"


def write_item(site: Site, key: str, header: Any, priority: str, received: float) -> None:
    """Lay a film's entry into the worklist's folder; `header` is the film's, None without one."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    item: Any = Dataset()
    for name in _COPIED:
        setattr(item, name, header.get(name, "") if header is not None else "")
    item.SOPClassUID = _UPS
    item.SOPInstanceUID = f"2.25.{int(key, 16)}"
    item.ProcedureStepState = "SCHEDULED"
    item.ScheduledProcedureStepPriority = priority
    item.ProcedureStepLabel = "Read chest radiograph"
    item.WorklistLabel = "lungfirst: research only"
    item.ScheduledProcedureStepStartDateTime = f"{datetime.fromtimestamp(received):%Y%m%d%H%M%S}"
    item.InputReadinessState = "READY"
    if header is not None:
        image = Dataset()
        image.ReferencedSOPClassUID = header.get("SOPClassUID", "")
        image.ReferencedSOPInstanceUID = header.get("SOPInstanceUID", "")
        source = Dataset()
        source.StudyInstanceUID = header.get("StudyInstanceUID", "")
        source.SeriesInstanceUID = header.get("SeriesInstanceUID", "")
        source.ReferencedSOPSequence = [image]
        item.InputInformationSequence = [source]
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = site.folders.worklist / f"{priority}-{key}.dcm"
    with replacing(path) as file:
        item.save_as(file, enforce_file_format=True)
    os.utime(path, (received, received))


def answer(site: Site, asked: Any) -> Iterator[Any]:
    """What C-FIND is answered, the most pressing and then the oldest first: of each entry that
    matches what was asked, the attributes that were asked for."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    wanted = str(asked.get("ScheduledProcedureStepPriority", "") or "")
    for priority in ("HIGH", "MEDIUM", "LOW"):
        if wanted and not fnmatchcase(priority, wanted):
            continue
        paths = site.folders.worklist.glob(f"{priority}-*.dcm")
        for path in sorted(paths, key=_age_of):
            try:
                item = dcmread(path)
            except OSError:  # it was too old just now
                continue
            if not _matches(item, asked):
                continue
            found = Dataset()
            for element in asked:
                if element.tag in item:
                    found[element.tag] = item[element.tag]
                else:
                    found.add_new(element.tag, element.VR, None)
            found.SpecificCharacterSet = item.get("SpecificCharacterSet", "")
            found.SOPInstanceUID, found.SOPClassUID = item.SOPInstanceUID, _UPS
            yield found


def _age_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _matches(item: Any, asked: Any) -> bool:
    """Single values, lists of UIDs and wild cards; a range of dates or a sequence matches all."""
    for element in asked:
        value = element.value
        if element.VR in ("SQ", "DA", "TM", "DT") or value in ("", None) or not len(value):
            continue
        if element.keyword == "SpecificCharacterSet":
            continue
        have = str(item.get(element.tag).value if element.tag in item else "")
        values = [value] if isinstance(value, str) or element.VR == "PN" else list(value)
        if not any(fnmatchcase(have, str(v).replace("[", "[[]")) for v in values):
            return False
    return True


COLUMNS = ("priority", "film", "received", "decision", "tier", "score", "state")


def table_rows(journal: Journal, since: float) -> list[tuple[str, ...]]:
    """The judged films since then, the most pressing and then the oldest first."""
    rows = journal.rows(
        f"SELECT * FROM films WHERE judged IS NOT NULL AND received >= ? ORDER BY {ORDER}",  # noqa: S608
        since,
    )
    return [
        (
            row["priority"],
            row["key"][:12],
            datetime.fromtimestamp(row["received"]).strftime("%Y-%m-%d %H:%M:%S"),
            row["decision"].replace("_", " "),
            row["tier"].replace("_", " "),
            "" if row["score"] is None else f"{row['score']:.3f}",
            row["state"],
        )
        for row in rows
    ]


def page_of(rows: list[tuple[str, ...]]) -> str:
    """The table as a page of its own."""
    from cxr.page.build import page_text

    template = Path(__file__).with_name("worklist.html")
    return page_text(template, columns=COLUMNS, rows=rows)


def run(config: WorklistConfig) -> int:
    """`worklist`: the table in the terminal, and the page where one was asked for."""
    from hospital.journal import opened

    with opened(config) as journal:
        rows = table_rows(journal, datetime.now().timestamp() - config.worklist_hours * 3600)
    table = Table(title=f"{len(rows)} films, the most pressing first")
    for column in COLUMNS:
        table.add_column(column, no_wrap=column in ("film", "received"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if config.page:
        console.print(f"page: {write_atomic(config.page, page_of(rows))}", highlight=False)
    return 0
