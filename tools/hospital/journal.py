"""The journal: what became of each film and each result, in one SQLite file that survives a kill.

A film goes received → judged → sent → committed, or refused or failed; a result of it waiting →
sent → committed, or refused. Films and results are known by keyed hashes alone.

And the spool: a film is on the disk and in the journal before its sender hears of success.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.rules import RefusedError
from cxr.workdir import sha256_file
from hospital import MANUFACTURER
from hospital.settings import Site, log

TABLES = """
CREATE TABLE IF NOT EXISTS films (
  key TEXT PRIMARY KEY, sha256 TEXT NOT NULL, state TEXT NOT NULL, received REAL NOT NULL,
  batch TEXT, judged REAL, done REAL, held INTEGER NOT NULL DEFAULT 1,
  status TEXT NOT NULL DEFAULT '', decision TEXT NOT NULL DEFAULT '',
  tier TEXT NOT NULL DEFAULT '', score REAL, priority TEXT NOT NULL DEFAULT '',
  reason TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS films_state ON films (state, received);
CREATE INDEX IF NOT EXISTS films_held ON films (held) WHERE held = 1;
CREATE TABLE IF NOT EXISTS batches (
  name TEXT PRIMARY KEY, begun REAL NOT NULL, tries INTEGER NOT NULL DEFAULT 0,
  done REAL, held INTEGER NOT NULL DEFAULT 1);
CREATE TABLE IF NOT EXISTS outbox (
  key TEXT PRIMARY KEY, film TEXT NOT NULL REFERENCES films (key), kind TEXT NOT NULL,
  state TEXT NOT NULL DEFAULT 'waiting', tries INTEGER NOT NULL DEFAULT 0,
  due REAL NOT NULL DEFAULT 0, sent REAL, asked TEXT, reason TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS outbox_state ON outbox (state, due);
CREATE INDEX IF NOT EXISTS outbox_film ON outbox (film);
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, n INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
# of films, the most pressing first
ORDER = "CASE priority WHEN 'HIGH' THEN 0 WHEN 'MEDIUM' THEN 1 ELSE 2 END, received"


@dataclass(frozen=True)
class Judgement:
    """What a film's row in predictions.csv says, and which results were made of it (key of the
    object's UID → kind)."""

    film: str
    status: str
    decision: str
    tier: str
    score: float | None
    priority: str
    objects: Mapping[str, str]
    reason: str = ""


class Journal:
    """One connection; each process and thread has its own."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.executescript(TABLES)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on the disk at the end, or nothing of it."""
        with self._db:  # which commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What a SELECT answers."""
        return self._db.execute(query, values).fetchall()

    def by_state(self, table: str) -> dict[str, int]:
        """How many films, or results (outbox), are in each state."""
        query = f"SELECT state, count(*) AS n FROM {table} GROUP BY state"  # noqa: S608 - our word
        return {row["state"]: row["n"] for row in self.rows(query)}

    def write(self, query: str, *values: Any) -> None:
        """A transaction of one statement."""
        with self.writing() as db:
            db.execute(query, values)

    # --- films in ---

    def receive(self, key: str, sha256: str, now: float | None = None) -> str:
        """A "new" film, the "same" again, or one with "other" bytes, of which the first hold."""
        with self.writing() as db:
            known = db.execute("SELECT sha256 FROM films WHERE key = ?", (key,)).fetchone()
            if known is None:
                query = "INSERT INTO films (key, sha256, state, received) VALUES (?, ?, ?, ?)"
                db.execute(query, (key, sha256, "received", time.time() if now is None else now))
                found, event = "new", "received"
            elif known["sha256"] == sha256:
                found, event = "same", "repeats"
            else:
                found, event = "other", "repeats_other_bytes"
            _count(db, event)
        return found

    def knows(self, key: str) -> bool:
        """Was this film received, ever?"""
        return bool(self.rows("SELECT 1 FROM films WHERE key = ?", key))

    def count(self, name: str) -> None:
        """One more of what happened, such as a film that was refused at the door."""
        with self.writing() as db:
            _count(db, name)

    # --- batches ---

    def begun(self) -> list[tuple[str, list[str], int]]:
        """Batches that are not judged to the end: name, films, tries."""
        films = "SELECT key FROM films WHERE batch = ? AND state = 'received' ORDER BY key"
        query = "SELECT name, tries FROM batches WHERE done IS NULL ORDER BY begun"
        return [
            (batch["name"], [row["key"] for row in self.rows(films, batch["name"])], batch["tries"])
            for batch in self.rows(query)
        ]

    def waiting(self, most: int) -> list[tuple[str, float]]:
        """Films that no batch has, oldest first, each with the time it came."""
        query = "SELECT key, received FROM films WHERE state = 'received' AND batch IS NULL"
        found = self.rows(f"{query} ORDER BY received LIMIT ?", most)
        return [(row["key"], row["received"]) for row in found]

    def begin(self, name: str, films: Sequence[str], now: float) -> float:
        """These films are a batch; returns when it was begun, which a resumed one keeps."""
        with self.writing() as db:
            db.execute("INSERT OR IGNORE INTO batches (name, begun) VALUES (?, ?)", (name, now))
            again = "UPDATE batches SET tries = tries + 1, done = NULL, held = 1 WHERE name = ?"
            db.execute(again, (name,))
            db.executemany(
                "UPDATE films SET batch = ? WHERE key = ? AND state = 'received'",
                [(name, film) for film in films],
            )
            row = db.execute("SELECT begun FROM batches WHERE name = ?", (name,)).fetchone()
        return float(row["begun"])

    def untried(self, name: str) -> None:
        """The last try of a batch does not count against its films."""
        self.write("UPDATE batches SET tries = tries - 1 WHERE name = ?", name)

    def dissolve(self, name: str, now: float) -> None:
        """A batch is given up; its films are to be judged one by one."""
        with self.writing() as db:
            db.execute("UPDATE batches SET done = ? WHERE name = ?", (now, name))
            query = "UPDATE films SET batch = NULL WHERE batch = ? AND state = 'received'"
            db.execute(query, (name,))

    def fail(self, film: str, reason: str, now: float) -> None:
        """This film cannot be judged at all; it stays in the spool."""
        query = "UPDATE films SET state = 'failed', reason = ?, done = ? WHERE key = ?"
        self.write(query, reason, now, film)

    def judged(self, name: str, films: Iterable[Judgement], now: float) -> None:
        """The batch is judged: films and their results in the outbox, in one transaction."""
        with self.writing() as db:
            for film in films:
                state, reason = "judged", film.reason
                if not film.objects:
                    state, reason = "failed", reason or "no result can be made of its header"
                told = (film.status, film.decision, film.tier, film.score, film.priority, reason)
                made = db.execute(
                    "UPDATE films SET state = ?, judged = ?, status = ?, decision = ?, tier = ?, "
                    "score = ?, priority = ?, reason = ? WHERE key = ? AND state = 'received'",
                    (state, now, *told, film.film),
                )
                if not made.rowcount:
                    continue
                db.executemany(
                    "INSERT OR IGNORE INTO outbox (key, film, kind) VALUES (?, ?, ?)",
                    [(key, film.film, kind) for key, kind in film.objects.items()],
                )
                _count(db, "judged")
            db.execute("UPDATE batches SET done = ? WHERE name = ?", (now, name))

    # --- results out ---

    def due(self, now: float, most: int) -> list[sqlite3.Row]:
        """Results that are to be sent now, the most pressing films first."""
        query = (
            "SELECT o.key, o.film, o.kind, o.tries FROM outbox o JOIN films f ON f.key = o.film "
            "WHERE o.state = 'waiting' AND o.due <= ? ORDER BY "
        )
        return self.rows(f"{query} {ORDER}, o.kind LIMIT ?", now, most)

    def next_due(self) -> float | None:
        """When the next waiting result is to be sent."""
        found = self.rows("SELECT min(due) AS due FROM outbox WHERE state = 'waiting'")[0]["due"]
        return None if found is None else float(found)

    def sent(self, key: str, now: float) -> None:
        """The destination has taken a result."""
        with self.writing() as db:
            done = "UPDATE outbox SET state = 'sent', sent = ?, reason = '' WHERE key = ?"
            db.execute(f"{done} AND state = 'waiting'", (now, key))
            _close(db, key, now)
            _count(db, "results_sent")

    def put_off(self, key: str, due: float, reason: str) -> None:
        """The destination could not take a result now."""
        again = "UPDATE outbox SET tries = tries + 1, due = ?, reason = ? WHERE key = ?"
        self.write(f"{again} AND state = 'waiting'", due, reason, key)

    def refused(self, key: str, reason: str, now: float) -> None:
        """The destination will never take this result as it is."""
        with self.writing() as db:
            db.execute("UPDATE outbox SET state='refused', reason=? WHERE key=?", (reason, key))
            _close(db, key, now)

    def again(self) -> int:
        """Results that the destination refused wait once more; returns how many."""
        with self.writing() as db:
            query = "SELECT DISTINCT film FROM outbox WHERE state = 'refused'"
            films = [row["film"] for row in db.execute(query)]
            count = db.execute(
                "UPDATE outbox SET state='waiting', tries=0, due=0 WHERE state='refused'"
            ).rowcount
            query = "UPDATE films SET state='judged', done=NULL, reason='' WHERE key=?"
            db.executemany(query, [(film,) for film in films])
        return count

    # --- storage commitment ---

    def to_commit(self, before: float) -> list[sqlite3.Row]:
        """Results sent that were not asked about, or asked before that time, unanswered."""
        query = "SELECT key, film FROM outbox WHERE state = 'sent' AND (asked IS NULL OR due < ?)"
        return self.rows(query, before)

    def asked(self, transaction: str, keys: Iterable[str], now: float) -> None:
        """The destination was asked to commit itself to these."""
        with self.writing() as db:
            db.executemany(
                "UPDATE outbox SET asked = ?, due = ? WHERE key = ? AND state = 'sent'",
                [(transaction, now, key) for key in keys],
            )

    def committed(
        self, transaction: str, good: Iterable[str], bad: Mapping[str, str], now: float
    ) -> None:
        """Its answer: what it did not keep (key → reason) is sent again."""
        kept = "state = 'committed'"
        lost = "state = 'waiting', asked = NULL, tries = tries + 1, due = ?, reason = ?"
        answers: list[tuple[str, tuple[Any, ...]]] = [(kept, (key,)) for key in good]
        answers += [(lost, (now + 60, reason, key)) for key, reason in bad.items()]
        with self.writing() as db:
            for change, values in answers:
                query = f"UPDATE outbox SET {change} WHERE key = ? AND asked = ? AND state = 'sent'"  # noqa: S608 - our words
                db.execute(query, (*values, transaction))
                _close(db, values[-1], now)

    # --- what is told ---

    def note(self, name: str, value: str) -> None:
        """Keep a word for status, such as why the destination does not answer."""
        self.write("INSERT OR REPLACE INTO notes VALUES (?, ?)", name, value)

    def notes(self) -> dict[str, str]:
        """What `note` kept."""
        return {row["name"]: row["value"] for row in self.rows("SELECT * FROM notes")}

    def counts(self) -> dict[str, int]:
        """How often what happened, since the journal was begun."""
        return {row["name"]: row["n"] for row in self.rows("SELECT * FROM counts ORDER BY name")}


def _count(db: sqlite3.Connection, name: str) -> None:
    query = "INSERT INTO counts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = n + 1"
    db.execute(query, (name,))


def _close(db: sqlite3.Connection, key: str, now: float) -> None:
    """The film of a result takes the state that its results have together."""
    row = db.execute("SELECT film FROM outbox WHERE key = ?", (key,)).fetchone()
    if row is None:
        return
    query = "SELECT DISTINCT state FROM outbox WHERE film = ?"
    states = {r["state"] for r in db.execute(query, (row["film"],))}
    state = "judged"
    if "waiting" not in states:
        state = "failed" if "refused" in states else "sent" if "sent" in states else "committed"
    reason = "the destination refused a result" if state == "failed" else ""
    done = None if state == "judged" else now
    query = "UPDATE films SET state = ?, done = ?, reason = CASE WHEN ? = '' THEN reason ELSE ? END"
    db.execute(f"{query} WHERE key = ?", (state, done, reason, reason, row["film"]))


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
        _sync(path)
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
    """Whether an object is a result made here, which must never be judged as a film."""
    try:
        maker = str(header.get("Manufacturer") or "").strip(" \0").lower()
    except Exception:  # odd values in a header of others
        return False
    return maker == MANUFACTURER


def _sync(path: Path) -> None:
    """A file, or a folder's entries, on the disk for good."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def opened(site: Site) -> Journal:
    """The journal of a site that has one; raises RefusedError."""
    path = site.folders.journal
    if not path.is_file():
        raise RefusedError(
            f"state must be the folder of a service that has run. {site.state} holds no journal: "
            "start one with python tools/pacs.py serve"
        )
    return Journal(path)


# --- what is left over ---


def adopt(site: Site, journal: Journal) -> tuple[int, int]:
    """Films in the spool without a row, of a receiver that was killed: received now, or deleted
    where they are none. Returns how many of each."""
    adopted = dropped = 0
    for path in site.folders.films.glob("*.dcm"):
        if journal.knows(path.stem):
            continue
        uid = str((header_of(path) or {}).get("SOPInstanceUID", ""))
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
        journal.write("UPDATE batches SET held = 0 WHERE name = ?", row["name"])
    _drop_old(folders.worklist, now - site.worklist_hours * 3600)
    known = "SELECT 1 FROM outbox WHERE key = ?"
    _drop_old(folders.outbox, now - _DAY, lambda path: not journal.rows(known, path.stem))
    return len(films)


def _drop_old(folder: Path, last: float, also: Any = None) -> None:
    for path in folder.glob("*.dcm"):
        with suppress(OSError):
            if path.stat().st_mtime <= last and (also is None or also(path)):
                path.unlink()
