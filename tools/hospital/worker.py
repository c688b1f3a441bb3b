"""The worker: films of the spool through classify.run's machinery, networks loaded once, and their
results into the outbox.

A batch has a run folder that is named by its films, so that a killed one goes on where it was. The
results' UIDs depend on film and networks alone and their time is the batch's own: what is made
twice is the same.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from cxr.engines import shared_by
from cxr.rules import RefusedError, refusing
from cxr.workdir import replacing
from hospital import worklist
from hospital.journal import Journal, Judgement, header_of
from hospital.settings import Site, hold, log, needs_pacs, role_site, until_told, where, with_parent

_TRIES = 3  # of a batch that ends its worker; then of each film by itself
_BREATH_S = 5.0  # after an error of the disk


Films = Mapping[str, Path]  # name → path
Judging = Callable[[Films, Path], Iterable[Any]]  # films and a run's folder to predictions' rows
# a run's folder, films and the time to each film's objects
Making = Callable[[Path, Films, datetime], Iterable[tuple[str, Sequence[Any]]]]


class Networks:
    """`classify.run FILMS --crops` with networks that stay loaded; no page, and maps only where
    they are sent."""

    def __init__(self, site: Site) -> None:
        from classify.work import Reader, fine_apart_of, load_panel

        self.site = site
        config = self._config(("-",), site.folders.runs)
        self._finder: Any = Reader(config).finder
        weights = dict(self._finder.weights)
        self._panel = load_panel(config, fine_apart_of(config.detector, weights))

    def _config(self, films: tuple[str, ...], out: Path) -> Any:
        from classify.work import RunConfig

        return RunConfig(
            films,
            crops="",
            out=str(out),
            ensemble=self.site.ensemble,
            engine=self.site.engine,
            saliency="saliency" in self.site.kinds,
            jobs=0,
        )

    def __call__(self, films: Films, run: Path) -> Iterable[Any]:
        """The rows of the films; raises OSError or ValueError as classify.run does."""
        from classify.run import begin_run, work_through
        from classify.work import note_panel, open_source

        config = self._config(tuple(map(str, films.values())), run)
        with ExitStack() as stack:
            source = open_source(config, stack, self._finder)
            note_panel(source, self._panel, config)
            _, table, book = begin_run(config, source, self._panel, stack)
            if not work_through(config, source, self._panel, table, book):
                raise KeyboardInterrupt
            return [table.done[name] for name in source.names]


def objects_of(site: Site) -> Making:
    """What makes the results that the site wants."""
    from hospital.results import results_of

    return lambda run, films, when: results_of(run, films, site.kinds, site.sr, when)


class Worker:
    """Batches of films from the journal, judged and laid into the outbox."""

    def __init__(self, site: Site, journal: Journal, judge: Judging, make: Making) -> None:
        self.site, self.journal, self.judge, self.make = site, journal, judge, make

    def step(self) -> bool:
        """Work on a batch, one that was begun before a new one; False where there is none yet."""
        if begun := self.journal.begun():
            self._resume(*begun[0])
            return True
        waiting = self.journal.waiting(self.site.batch)
        if not waiting:
            return False
        if len(waiting) < self.site.batch and time.time() - waiting[0][1] < self.site.wait_s:
            return False
        keys = sorted(key for key, _ in waiting)
        self._work(batch_name(keys), keys)
        return True

    def _resume(self, name: str, films: list[str], tries: int) -> None:
        if not films:
            self.journal.judged(name, [], time.time())
        elif tries < _TRIES:
            self._work(name, films)
        elif len(films) > 1:
            log.error("batch %s ended its worker %d times: its films go one by one", name, tries)
            self.journal.dissolve(name, time.time())
            for film in films:
                self._work(batch_name([film], "alone"), [film])
        else:
            log.error("film %s cannot be judged: it ended the worker %d times", films[0], tries)
            self.journal.fail(films[0], "judging it ended the worker", time.time())
            self.journal.judged(name, [], time.time())

    def _work(self, name: str, keys: list[str]) -> None:
        begun = self.journal.begin(name, keys, time.time())
        try:
            judgements = self._judged(keys, self.site.folders.runs / name, begun)
            self.journal.judged(name, judgements, time.time())
        except (OSError, RefusedError, sqlite3.OperationalError) as error:  # of the disk
            log.error("batch %s has to wait: %s", name, where(error))
            self.journal.untried(name)
            time.sleep(_BREATH_S)
        except Exception as error:  # a fault that one of the films brings out
            log.error("batch %s failed: %s", name, where(error))
        else:
            log.info("batch %s: %d films judged", name, len(keys))

    def _judged(self, keys: list[str], run: Path, begun: float) -> list[Judgement]:
        from classify.predictions import name_of

        folders = self.site.folders
        films = {name_of(folders.film(key)): folders.film(key) for key in keys}
        rows = {row.film: row for row in self.judge(films, run)}
        made: dict[str, dict[str, str]] = {}
        when = datetime.fromtimestamp(int(begun)).astimezone()
        for name, objects in self.make(run, films, when):
            made[name] = dict(map(self._lay_out, objects))
        found = []
        for name, path in films.items():
            row = rows[name]
            priority = worklist.priority_of(row.decision, row.tier)
            told = (path.stem, row.status, row.decision, row.tier, row.abnormal_score, priority)
            found.append(Judgement(*told, made.get(name, {})))
            if self.site.worklist_hours:
                header = header_of(path)
                worklist.write_item(self.site, path.stem, header, priority, path.stat().st_mtime)
        return found

    def _lay_out(self, made: Any) -> tuple[str, str]:
        """An object as a file of the outbox: its key and its kind."""
        key = self.site.folders.key_of(made.SOPInstanceUID)
        with replacing(self.site.folders.outbox / f"{key}.dcm") as file:
            made.save_as(file, enforce_file_format=True)
        return key, str(made.Modality)


def batch_name(keys: Sequence[str], more: str = "") -> str:
    """A batch is named by its films, so that the same ones resume the same run."""
    return hashlib.sha256("\n".join([*sorted(keys), more]).encode()).hexdigest()[:20]


def work(site: Site, judge: Judging, make: Making) -> int:
    """Work until SIGTERM, or until the parent is gone; the batch at hand is finished."""
    ended = until_told()
    # no other worker; and what a killed one left half written there, with names in it, is deleted
    held = [hold(place, ended) for place in (site.folders.outbox, site.folders.worklist)]
    with Journal(site.folders.journal) as journal:
        worker = Worker(site, journal, judge, make)
        while all(held) and not ended.is_set() and with_parent():
            if not worker.step():
                ended.wait(0.1)
    log.info("the worker has ended")
    return 0


def main() -> int:
    """The worker's process; `service` starts it."""
    site = role_site("worker")
    needs_pacs()
    os.nice(10)  # the receiver goes first
    with refusing(), shared_by(2):  # films are boxed while others are judged
        networks = Networks(site)
    log.info("the networks are loaded")
    return work(site, networks, objects_of(site))


if __name__ == "__main__":
    raise SystemExit(main())
