"""The sender: results from the outbox to the destination, again and again until it has them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cxr.rules import RefusedError
from cxr.workdir import claim, console
from hospital.journal import Journal, opened, tidy
from hospital.receiver import COMMITMENT, take_report
from hospital.settings import (
    Site,
    hold,
    log,
    needs_pacs,
    peer_of,
    role_site,
    until_told,
    where,
    with_parent,
)

CAP_S = 300.0  # longest wait, before its jitter
_AT_A_TIME = 50
_ASK_AGAIN_S = 600.0  # a commitment that was not answered
_IDLE_S = 2.0
Loaded = list[tuple[Any, Any]]  # rows of the journal, and their objects


@dataclass(frozen=True)
class SendConfig(Site):
    """Send the results that wait in the outbox; `serve` does the same as they come.

    Args:
        again: also what the destination refused.
    """

    again: bool = False


def is_for_good(status: int) -> bool:
    """Would the destination answer the same to the same object again? Its lack of room (0xA7xx)
    and what is unknown may pass."""
    return status >> 8 == 0xA9 or status >> 12 == 0xC or status == 0x0122


def is_taken(status: int) -> bool:
    """Success, or a warning: the object is kept."""
    return status == 0x0000 or status >> 12 == 0xB or status == 0x0001


def wait_after(tries: int, chance: float) -> float:
    """Seconds before the next try: 1, 2, 4 … up to CAP_S, with a jitter of ± 50 % and never more
    than CAP_S; `chance` in [0, 1)."""
    return min(CAP_S, 2.0 ** min(tries, 20) * (0.5 + chance))


class Sender:
    """One destination. `step` sends what is due and says how long there is nothing to do."""

    def __init__(
        self,
        site: Site,
        journal: Journal,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.site, self.journal, self.clock, self.chance = site, journal, clock, chance
        self._tries, self._until = 0, 0.0  # of a destination that does not answer

    def step(self) -> float:
        """Seconds until the next step is worth its while."""
        now = self.clock()
        if not self.site.destination:
            return _IDLE_S
        if now < self._until:
            return self._until - now
        rows = self.journal.due(now, _AT_A_TIME)
        asking = self._asking(now)
        if not rows and not asking:
            due = self.journal.next_due()
            return _IDLE_S if due is None else max(0.0, min(_IDLE_S, due - now))
        loaded = [(row, found) for row in rows if (found := self._load(row)) is not None]
        why = (self._by_web if self.site.by_web else self._by_store)(loaded)
        if not why:
            if self._tries:
                log.info("the destination answers again")
                self.journal.note("destination", "")
            self._tries, self._until = 0, 0.0
            return 0.0
        wait = wait_after(self._tries, self.chance())
        self._tries, self._until = self._tries + 1, now + wait
        log.warning("the destination: %s; next try in %.0f s", why, wait)
        self.journal.note("destination", f"{why}; try {self._tries}")
        return wait

    def _asking(self, now: float) -> list[Any]:
        return self.journal.to_commit(now - _ASK_AGAIN_S) if self.site.commitment else []

    def _load(self, row: Any) -> Any:
        """The object; None where its file is gone, which is told as a refusal."""
        from pydicom import dcmread

        try:
            return dcmread(self.site.folders.outbox / f"{row['key']}.dcm")
        except Exception:  # nothing that a later try would mend
            self.journal.refused(row["key"], "its file in the outbox cannot be read", self.clock())
            return None

    def answered(self, row: Any, status: int) -> None:
        """What the destination said of one object goes into the journal."""
        now = self.clock()
        if is_taken(status):
            self.journal.sent(row["key"], now)
        elif is_for_good(status):
            told = "the destination refused a %s of film %s: 0x%04X"
            log.error(told, row["kind"], row["film"], status)
            self.journal.refused(row["key"], f"refused, 0x{status:04X}", now)
        else:
            due = now + wait_after(row["tries"], self.chance())
            self.journal.put_off(row["key"], due, f"put off, 0x{status:04X}")

    # --- C-STORE and storage commitment ---

    def _by_store(self, loaded: Loaded) -> str:
        """Why the destination could not be reached, or ""."""
        classes = {str(found.SOPClassUID) for _, found in loaded}
        classes |= {COMMITMENT} if self.site.commitment else set()
        if not classes:
            return ""
        with self._association(classes) as (association, why):
            if why:
                return why
            accepted = {str(c.abstract_syntax) for c in association.accepted_contexts}
            for row, found in loaded:
                if str(found.SOPClassUID) not in accepted:
                    reason = f"no {row['kind']} is accepted by the destination"
                    self.journal.refused(row["key"], reason, self.clock())
                    continue
                answer = association.send_c_store(found)
                if "Status" not in answer:
                    return "no answer to a result"
                self.answered(row, int(answer.Status))
            if self.site.commitment:
                return self._ask(association, self._asking(self.clock()))
        return ""

    def _ask(self, association: Any, rows: list[Any]) -> str:
        """Ask the destination to commit itself to results that it has."""
        from pydicom.dataset import Dataset
        from pydicom.uid import generate_uid

        told, keys = Dataset(), []
        told.TransactionUID, told.ReferencedSOPSequence = generate_uid(prefix=None), []
        for row in rows:
            if (found := self._load(row)) is not None:
                item = Dataset()
                item.ReferencedSOPClassUID = found.SOPClassUID
                item.ReferencedSOPInstanceUID = found.SOPInstanceUID
                told.ReferencedSOPSequence.append(item)
                keys.append(row["key"])
        if not keys:
            return ""
        # first into the journal: the answer may come before this call ends
        self.journal.asked(str(told.TransactionUID), keys, self.clock())
        try:
            answer, _ = association.send_n_action(told, 1, COMMITMENT, f"{COMMITMENT}.1")
        except ValueError:
            return "no storage commitment is accepted"
        if "Status" not in answer or answer.Status != 0x0000:
            return "storage commitment was refused"
        time.sleep(0.2)  # some answer on the same association
        return ""

    @contextmanager
    def _association(self, classes: set[str]) -> Iterator[tuple[Any, str]]:
        """An association, or why there is none."""
        needs_pacs()
        from pynetdicom import AE, evt

        title, host, port = peer_of(self.site.destination)
        ae = AE(ae_title=self.site.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
        ae.connection_timeout = 10
        for sop_class in sorted(classes):
            ae.add_requested_context(sop_class, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
        tls = (self.site.tls_context(server=False), host) if self.site.destination_tls else None
        told = [(evt.EVT_N_EVENT_REPORT, self._report)]
        found = ae.associate(host, port, ae_title=title, tls_args=tls, evt_handlers=told)  # type: ignore
        try:
            if found.is_established:
                yield found, ""
            elif found.is_rejected:
                yield found, "it rejected the association: check both AE titles"
            else:
                yield found, "no association: it is down, or address or TLS are wrong"
        finally:
            if found.is_established:
                found.release()

    def _report(self, event: Any) -> tuple[int, Any]:
        with Journal(self.site.folders.journal) as journal:  # another thread
            return take_report(self.site, journal, event)

    # --- STOW-RS ---

    def _by_web(self, loaded: Loaded) -> str:
        from hospital.dicomweb import store

        if not loaded:
            return ""
        statuses, why = store(self.site.destination, [found for _, found in loaded])
        for row, found in loaded:
            if str(found.SOPInstanceUID) in statuses:
                self.answered(row, statuses[str(found.SOPInstanceUID)])
        return why


def run(config: SendConfig) -> int:
    """`send`: until the outbox is empty or the destination does not answer; 1 where something is
    left."""
    if not config.destination:
        raise RefusedError("destination must be AET@HOST:PORT or a URL. Got nothing.")
    with opened(config) as journal:
        if config.again:
            console.print(f"{journal.again()} results that were refused wait again")
        try:
            held = claim(config.folders.sender)
        except RefusedError:
            console.print("the service that runs on this folder sends them")
            return 0
        sender = Sender(config, journal)
        while journal.due(time.time(), 1) and sender.step() == 0.0:
            pass
        tidy(config, journal, time.time())
        del held
        states = journal.by_state("outbox")
        told = ", ".join(f"{n} {state}" for state, n in states.items()) or "nothing to send"
        why = journal.notes().get("destination", "")
        console.print(f"results: {told}" + f" ({why})" * bool(why), highlight=False, markup=False)
    return 1 if states.get("waiting") or states.get("refused") else 0


def main() -> int:
    """The sender's process, which also pulls and tidies up; `service` starts it."""
    site, ended = role_site("sender"), until_told()
    if site.pull:
        from hospital.dicomweb import keep_pulling

        threading.Thread(target=keep_pulling, args=(site, ended), daemon=True).start()
    with Journal(site.folders.journal) as journal:
        held = hold(site.folders.sender, ended)  # a `send` may be at work
        sender, tidied = Sender(site, journal), 0.0
        while held and not ended.is_set() and with_parent():
            try:
                wait = sender.step()
                if time.time() - tidied > 5:
                    tidy(site, journal, time.time())
                    tidied = time.time()
            except Exception as error:  # such as a full disk: what waits is kept
                log.error("sending has to wait: %s", where(error))
                wait = 5.0
            ended.wait(min(wait, 0.5) or 0.01)
    log.info("the sender has ended")
    os._exit(0)  # a pull may be under way: its film is asked for again


if __name__ == "__main__":
    raise SystemExit(main())
