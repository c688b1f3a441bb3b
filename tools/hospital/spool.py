"""The spool: a film is on the disk and in the journal before its sender hears of success."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cxr.rules import RefusedError
from cxr.workdir import sha256_file
from hospital.journal import Journal
from hospital.roles import log
from hospital.settings import Site

SUCCESS, NO_SPACE, MISMATCH, NO_DICOM, OWN = 0x0000, 0xA700, 0xA900, 0xC000, 0xC010
WHY = {
    NO_SPACE: "no space",
    MISMATCH: "UID or class unlike the command's",
    NO_DICOM: "no readable data set",
    OWN: "made by lungfirst itself",
}
FILMS = (  # Computed Radiography, Digital X-Ray For Presentation, Secondary Capture
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.7",
)
PULLED = "pull-"  # how names of films begin that are being pulled
_STALE_S = 90.0  # a file not written to for so long is nobody's: the network gives up at 30
_DAY = 86400.0


def take_in(site: Site, journal: Journal, path: Path, uid: str = "", sop_class: str = "") -> int:
    """The DIMSE status for a film that lies at `path`, on the spool's file system: 0x0000 once it
    is in the spool and the journal. `uid` and `sop_class` are those that the sender announced; a
    film without an announcement must be of one of FILMS."""
    try:
        status = _take_in(site, journal, path, uid, sop_class)
    except (OSError, sqlite3.OperationalError) as error:  # full, or gone
        log.error("the spool or the journal cannot be written: %s", type(error).__name__)
        return NO_SPACE
    if status in WHY:
        log.warning("a film was refused: %s", WHY[status])
        with suppress(sqlite3.Error):
            journal.count(f"refused_{status:04X}")
    return status


def _take_in(site: Site, journal: Journal, path: Path, uid: str, sop_class: str) -> int:
    if not has_room(site, path.stat().st_size):
        return NO_SPACE
    header = header_of(path)
    if header is None:
        return NO_DICOM
    found, kind = str(header.get("SOPInstanceUID", "")), str(header.get("SOPClassUID", ""))
    if not found or not kind:
        return NO_DICOM
    if found != (uid or found) or kind != (sop_class or kind) or kind not in FILMS:
        return MISMATCH
    if is_own(header):
        return OWN
    key, sha256 = site.folders.key_of(found), sha256_file(path)
    if not journal.knows(key):
        place = site.folders.film(key)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            os.link(path, place)
        except FileExistsError:  # of a receiver that was killed before its row: that one counts
            sha256 = sha256_file(place)
        _sync(place.parent)
    if journal.receive(key, sha256) == "other":
        log.warning("film %s came again with other bytes: the first ones hold", key)
    return SUCCESS


def has_room(site: Site, size: int = 0) -> bool:
    """Would the reserve still be free beside so many bytes more?"""
    return shutil.disk_usage(site.folders.films).free - size >= site.reserve_mb << 20


def header_of(path: Path) -> Any:
    """A file's data set up to its pixels, without large elements; None where it is none."""
    from pydicom import dcmread

    try:
        return dcmread(path, stop_before_pixels=True, defer_size=1 << 16)
    except MemoryError:
        raise
    except Exception:  # a parser's: garbage brings out many kinds
        return None


def is_own(header: Any) -> bool:
    """Is this an object of our own make?"""
    from hospital.header import is_ours

    try:
        return bool(is_ours(header))
    except Exception:  # odd values in a header of others
        return False


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def opened(site: Site) -> Iterator[Journal]:
    """The journal of a site that has one; raises RefusedError."""
    path = site.folders.journal
    if not path.is_file():
        raise RefusedError(
            f"state must be the folder of a service that has run. {site.state} holds no journal: "
            "start one with python tools/pacs.py serve"
        )
    with Journal(path) as journal:
        yield journal


# --- what is left over ---


def adopt(site: Site, journal: Journal) -> tuple[int, int]:
    """Films in the spool without a row, of a receiver that was killed: received now, or deleted
    where they are none. Returns how many of each."""
    adopted = dropped = 0
    for path in site.folders.films.glob("*.dcm"):
        if journal.knows(path.stem):
            continue
        header = header_of(path)
        uid = str(header.get("SOPInstanceUID", "")) if header is not None else ""
        if uid and site.folders.key_of(uid) == path.stem:
            journal.receive(path.stem, sha256_file(path))
            adopted += 1
        else:
            path.unlink(missing_ok=True)
            dropped += 1
    return adopted, dropped


def sweep(site: Site, everything: bool = False) -> int:
    """Delete what transfers left half written; `everything`: no transfer is going on, but a pull
    may be."""
    gone, now = 0, time.time()
    for path in site.folders.arriving.iterdir():
        with suppress(OSError):
            idle = now - path.stat().st_mtime > _STALE_S
            if idle or (everything and not path.name.startswith(PULLED)):
                path.unlink()
                gone += 1
    return gone


def tidy(site: Site, journal: Journal, now: float) -> int:
    """Delete films, results and runs of which all is done, and old entries of the worklist; how
    many films that were."""
    folders, last = site.folders, now - site.keep_days * _DAY
    final = "committed" if site.commitment else "sent"
    query = "SELECT key FROM films WHERE held = 1 AND state IN (?, 'committed') AND done <= ?"
    films = [row["key"] for row in journal.rows(query, final, last)]
    for film in films:
        for row in journal.rows("SELECT key FROM outbox WHERE film = ?", film):
            (folders.outbox / f"{row['key']}.dcm").unlink(missing_ok=True)
        folders.film(film).unlink(missing_ok=True)
    with journal.writing() as db:
        db.executemany("UPDATE films SET held = 0 WHERE key = ?", [(film,) for film in films])
    query = (
        "SELECT name FROM batches b WHERE done IS NOT NULL AND held = 1 AND NOT EXISTS "
        "(SELECT 1 FROM films WHERE batch = b.name AND held = 1)"
    )
    for row in journal.rows(query):
        shutil.rmtree(folders.runs / row["name"], ignore_errors=True)
        with journal.writing() as db:
            db.execute("UPDATE batches SET held = 0 WHERE name = ?", (row["name"],))
    _drop_old(folders.worklist, now - site.worklist_hours * 3600)
    known = "SELECT 1 FROM outbox WHERE key = ?"
    _drop_old(folders.outbox, now - _DAY, lambda path: not journal.rows(known, path.stem))
    return len(films)


def _drop_old(folder: Path, last: float, also: Any = None) -> None:
    for path in folder.glob("*.dcm"):
        with suppress(OSError):
            if path.stat().st_mtime <= last and (also is None or also(path)):
                path.unlink()
