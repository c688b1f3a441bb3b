"""The journal: what became of each film and each result, in one SQLite file that survives a kill.

A film goes received → judged → sent → committed, or refused or failed; a result of it waiting →
sent → committed, or refused. Films and results are known by keyed hashes alone.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What a SELECT answers."""
        return self._db.execute(query, values).fetchall()

    # --- films in ---

    def receive(self, key: str, sha256: str, now: float | None = None) -> str:
        """A "new" film, the "same" again, or one with "other" bytes, of which the first hold."""
        with self.writing() as db:
            known = db.execute("SELECT sha256 FROM films WHERE key = ?", (key,)).fetchone()
            if known is None:
                db.execute(
                    "INSERT INTO films (key, sha256, state, received) VALUES (?, ?, 'received', ?)",
                    (key, sha256, time.time() if now is None else now),
                )
                found = "new"
            else:
                found = "same" if known["sha256"] == sha256 else "other"
            _count(
                db, {"new": "received", "same": "repeats", "other": "repeats_other_bytes"}[found]
            )
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
        found = []
        query = "SELECT name, tries FROM batches WHERE done IS NULL ORDER BY begun"
        for batch in self.rows(query):
            films = "SELECT key FROM films WHERE batch = ? AND state = 'received' ORDER BY key"
            keys = [row["key"] for row in self.rows(films, batch["name"])]
            found.append((batch["name"], keys, batch["tries"]))
        return found

    def waiting(self, most: int) -> list[tuple[str, float]]:
        """Films that no batch has, oldest first, each with the time it came."""
        query = (
            "SELECT key, received FROM films WHERE state = 'received' AND batch IS NULL "
            "ORDER BY received LIMIT ?"
        )
        return [(row["key"], row["received"]) for row in self.rows(query, most)]

    def begin(self, name: str, films: Sequence[str], now: float) -> float:
        """These films are a batch; returns when it was begun, which a resumed one keeps."""
        with self.writing() as db:
            db.execute("INSERT OR IGNORE INTO batches (name, begun) VALUES (?, ?)", (name, now))
            db.execute(
                "UPDATE batches SET tries = tries + 1, done = NULL, held = 1 WHERE name = ?",
                (name,),
            )
            db.executemany(
                "UPDATE films SET batch = ? WHERE key = ? AND state = 'received'",
                [(name, film) for film in films],
            )
            row = db.execute("SELECT begun FROM batches WHERE name = ?", (name,)).fetchone()
        return float(row["begun"])

    def untried(self, name: str) -> None:
        """The last try of a batch does not count against its films."""
        with self.writing() as db:
            db.execute("UPDATE batches SET tries = tries - 1 WHERE name = ?", (name,))

    def dissolve(self, name: str, now: float) -> None:
        """A batch is given up; its films are to be judged one by one."""
        with self.writing() as db:
            db.execute("UPDATE batches SET done = ? WHERE name = ?", (now, name))
            query = "UPDATE films SET batch = NULL WHERE batch = ? AND state = 'received'"
            db.execute(query, (name,))

    def fail(self, film: str, reason: str, now: float) -> None:
        """This film cannot be judged at all; it stays in the spool."""
        with self.writing() as db:
            db.execute(
                "UPDATE films SET state = 'failed', reason = ?, done = ? WHERE key = ?",
                (reason, now, film),
            )

    def judged(self, name: str, films: Iterable[Judgement], now: float) -> None:
        """The batch is judged: films and their results in the outbox, in one transaction."""
        with self.writing() as db:
            for film in films:
                state, reason = "judged", film.reason
                if not film.objects:
                    state, reason = "failed", reason or "no result can be made of its header"
                made = db.execute(
                    "UPDATE films SET state = ?, judged = ?, status = ?, decision = ?, "
                    "tier = ?, score = ?, priority = ?, reason = ? "
                    "WHERE key = ? AND state = 'received'",
                    (
                        *(state, now, film.status, film.decision, film.tier, film.score),
                        *(film.priority, reason, film.film),
                    ),
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
        with self.writing() as db:
            again = "UPDATE outbox SET tries = tries + 1, due = ?, reason = ? WHERE key = ?"
            db.execute(f"{again} AND state = 'waiting'", (due, reason, key))

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
        with self.writing() as db:
            for key in good:
                db.execute(
                    "UPDATE outbox SET state = 'committed' WHERE key = ? AND asked = ? "
                    "AND state = 'sent'",
                    (key, transaction),
                )
                _close(db, key, now)
            for key, reason in bad.items():
                db.execute(
                    "UPDATE outbox SET state = 'waiting', asked = NULL, tries = tries + 1, "
                    "due = ?, reason = ? WHERE key = ? AND asked = ? AND state = 'sent'",
                    (now + 60, reason, key, transaction),
                )
                _close(db, key, now)

    # --- what is told ---

    def note(self, name: str, value: str) -> None:
        """Keep a word for status, such as why the destination does not answer."""
        with self.writing() as db:
            db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def notes(self) -> dict[str, str]:
        """What `note` kept."""
        return {row["name"]: row["value"] for row in self.rows("SELECT * FROM notes")}

    def counts(self) -> dict[str, int]:
        """How often what happened, since the journal was begun."""
        return {row["name"]: row["n"] for row in self.rows("SELECT * FROM counts ORDER BY name")}


def _count(db: sqlite3.Connection, name: str) -> None:
    db.execute(
        "INSERT INTO counts VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = n + 1", (name,)
    )


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
