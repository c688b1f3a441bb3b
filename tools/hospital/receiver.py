"""The receiver: films by C-STORE into the spool, C-ECHO, the worklist by C-FIND, and the
destination's answers to storage commitment. A process of its own, small and quick to start."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cxr.page import printable
from cxr.rules import RefusedError
from cxr.workdir import write_json
from hospital import worklist
from hospital.journal import FILMS, NO_SPACE, Journal, adopt, sweep, take_in
from hospital.settings import DRAIN_S, Site, log, needs_pacs, role_site, until_told, with_parent

SYNTAXES = (
    "1.2.840.10008.1.2.1",  # explicit VR, little endian
    "1.2.840.10008.1.2",  # implicit VR
    "1.2.840.10008.1.2.2",  # explicit VR, big endian
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.50",  # JPEG
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",  # JPEG, lossless
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",  # JPEG 2000
    "1.2.840.10008.1.2.4.91",
)
PDU = 131072  # bytes that a peer may send at a time
_LARGEST_PDU = 1 << 20  # of peers that do not keep to that
_LARGEST_COMMAND = 1 << 20
_HANDSHAKE_S, _ACSE_S, _DIMSE_S, _NETWORK_S = 5.0, 10.0, 30.0, 30.0
_MOST_THREADS = 400
VERIFICATION, UPS_PULL = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.34.6.3"
COMMITMENT = "1.2.840.10008.1.20.1"


class Receiver:
    """The Storage SCP of a site; `start` listens, `stop` drains."""

    def __init__(self, site: Site) -> None:
        needs_pacs()
        from pynetdicom import _config, evt

        _config.STORE_RECV_CHUNKED_DATASET = True
        _config.LOG_HANDLER_LEVEL = "none"
        self.site, self._local = site, threading.local()
        site.folders.make()
        tempfile.tempdir = str(site.folders.arriving)  # pynetdicom writes there as data come
        ae = _entity_class()(ae_title=site.ae_title)
        ae.require_called_aet = True
        ae.require_calling_aet = list(site.callers)
        ae.maximum_associations, ae.maximum_pdu_size = site.associations, PDU
        ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = _ACSE_S, _DIMSE_S, _NETWORK_S
        for film in FILMS:
            ae.add_supported_context(film, list(SYNTAXES))
        for other in (VERIFICATION, UPS_PULL):
            ae.add_supported_context(other)
        ae.add_supported_context(COMMITMENT, scu_role=False, scp_role=True)
        self._ae = ae
        self._handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_EVENT_REPORT, self._report),
            (evt.EVT_REJECTED, self._rejected),
        ]

    @property
    def journal(self) -> Journal:
        """This thread's connection."""
        if not hasattr(self._local, "journal"):
            self._local.journal = Journal(self.site.folders.journal)
        return self._local.journal

    def start(self) -> int:
        """Clear up what an earlier receiver left, then listen; returns the port."""
        gone = sweep(self.site, everything=True)
        adopted, dropped = adopt(self.site, self.journal)
        if gone or adopted or dropped:
            told = "%d half-written files deleted, %d films adopted, "
            told += "%d files that were none deleted"
            log.info(told, gone, adopted, dropped)
        self._server: Any = _server_class()(
            self._ae,
            (self.site.host, self.site.port),
            self.site.ae_title,
            self._ae.supported_contexts,
            self.site.tls_context(server=True),
            evt_handlers=self._handlers,
            limits=(self.site.largest_mb << 20, self.site.folders.arriving, self.site.reserve_mb),
        )
        self._ae._servers.append(self._server)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return int(self._server.server_address[1])

    def stop(self, drain_s: float = DRAIN_S) -> bool:
        """No new association; those that are open have so many seconds to end. False where one
        had to be cut off."""
        self._server.shutdown()
        end = time.monotonic() + drain_s
        while self._ae.active_associations and time.monotonic() < end:
            time.sleep(0.05)
        left = self._ae.active_associations
        for association in left:
            association.abort()
        return not left

    def _store(self, event: Any) -> int:
        path = Path(event.dataset_path)
        uid = str(event.request.AffectedSOPInstanceUID)
        sop_class = str(event.request.AffectedSOPClassUID)
        try:
            return take_in(self.site, self.journal, path, uid, sop_class)
        except Exception as error:  # its words may hold a header's; the sender is to try again
            log.error("a film could not be taken in: %s", type(error).__name__)
            return NO_SPACE
        finally:
            path.unlink(missing_ok=True)

    def _find(self, event: Any) -> Iterator[tuple[int, Any]]:
        for found in worklist.answer(self.site, event.identifier):
            if event.is_cancelled:
                yield 0xFE00, None
                return
            yield 0xFF00, found

    def _report(self, event: Any) -> tuple[int, Any]:
        return take_report(self.site, self.journal, event)

    def _rejected(self, event: Any) -> None:
        title = printable(str(event.assoc.requestor.ae_title))
        log.warning("an association of %r was refused", title)
        self.journal.count("associations_refused")


def take_report(site: Site, journal: Journal, event: Any) -> tuple[int, None]:
    """What an N-EVENT-REPORT of storage commitment says goes into the journal; its answer."""
    told, key_of = event.event_information, site.folders.key_of
    good = [key_of(i.ReferencedSOPInstanceUID) for i in told.get("ReferencedSOPSequence") or ()]
    bad = {
        key_of(i.ReferencedSOPInstanceUID): f"not committed, 0x{int(i.get('FailureReason', 0)):04X}"
        for i in told.get("FailedSOPSequence") or ()
    }
    journal.committed(str(told.get("TransactionUID", "")), good, bad, time.time())
    return 0x0000, None


def _entity_class() -> Any:
    from pynetdicom import ae

    entity: Any = ae.ApplicationEntity

    class Entity(entity):
        """Connections that have not said who they are do not count as associations: a few silent
        ones would keep all others out."""

        @property
        def active_associations(self) -> list[Any]:
            own = threading.current_thread()
            return [a for a in super().active_associations if a.is_established or a is own]

    return Entity


def _server_class() -> Any:
    from pynetdicom import transport

    handler: Any = transport.RequestHandler
    server: Any = transport.ThreadedAssociationServer

    class Handler(handler):
        """Runs in a thread of its own: the handshake of one client holds up no other."""

        request: Any

        def handle(self) -> None:
            self.request.settimeout(_HANDSHAKE_S)
            context = self.server.handshake
            if context is not None:
                self.request = context.wrap_socket(self.request, server_side=True)
            self.request.settimeout(_NETWORK_S)
            super().handle()

        def _create_association(self) -> Any:
            association = super()._create_association()
            limits = self.server.limits

            def receive(size: int) -> bytearray:
                """In larger pieces than pynetdicom's 4 KiB."""
                _check(size, association.dimse.message, *limits)
                data, got = bytearray(size), 0
                while got < size:
                    more = self.request.recv_into(memoryview(data)[got:])
                    if not more:
                        return data[:got]
                    got += more
                return data

            association.dul.socket.recv = receive
            return association

    class Server(server):
        """With limits, and TLS in the thread of the association."""

        daemon_threads = True
        request_queue_size = 64

        def __init__(self, *told: Any, limits: tuple[int, Path, int], **more: Any) -> None:
            *rest, self.handshake = told
            self.limits = limits
            super().__init__(*rest, None, request_handler=Handler, **more)

        def verify_request(self, request: Any, client_address: Any) -> bool:
            return threading.active_count() < _MOST_THREADS

        def handle_error(self, request: Any, client_address: Any) -> None:
            log.warning("a connection failed before its association, as a wrong certificate does")

        def service_actions(self) -> None:
            gc.collect(0)

    return Server


def _check(size: int, message: Any, largest: int, folder: Path, reserve_mb: int) -> None:
    """Raises OSError, which closes the connection, before more is read than fits."""
    if size > _LARGEST_PDU:
        raise OSError("the peer announced too large a PDU")
    if message is None:
        return
    sets = (message.encoded_command_set, message.data_set)
    if any(part is not None and part.tell() > _LARGEST_COMMAND for part in sets):
        raise OSError("the peer's message is too large")
    file = getattr(message, "_data_set_file", None)
    if file is not None and not file.closed:
        if file.tell() > largest:
            raise OSError("the peer's film is too large")
        if shutil.disk_usage(folder).free < reserve_mb << 19:  # half of it
            raise OSError("no space")


def main() -> int:
    """The receiver's process; `service` starts it."""
    site = role_site("receiver")
    receiver, ended = Receiver(site), until_told()
    try:
        port = receiver.start()
    except OSError as error:
        raise RefusedError(f"{site.host}:{site.port} cannot be listened on: {error}") from error
    write_json(site.folders.root / "receiver.json", {"pid": os.getpid(), "port": port})
    told = "listening on %s:%d as %s, %s"
    log.info(told, site.host, port, site.ae_title, "TLS" if site.tls else "without TLS")
    while not ended.wait(1.0) and with_parent():
        if int(time.monotonic()) % 60 == 0:
            sweep(site)
    clean = receiver.stop()
    log.info("the receiver has ended%s", "" if clean else "; a transfer was cut off")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
