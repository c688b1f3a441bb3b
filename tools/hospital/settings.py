"""What a site tells the service (configs/pacs.yaml), its folders, and what its processes share.

Films are known by keyed hashes outside DICOM. A process has its log, and ends with its parent.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import signal
import socket
import ssl
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from logging.handlers import RotatingFileHandler
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from cxr.cli import from_plain
from cxr.engines import ENGINES
from cxr.rules import RefusedError, require, require_at_least, require_one_of
from cxr.workdir import claim, console, read_json
from hospital import FORMS, KINDS

DRAIN_S = 30.0  # from SIGTERM to the end


@dataclass(frozen=True)
class Site:
    """Films from the PACS in, results back as DICOM.

    Args:
        state: folder of spool, journal, outbox, worklist and logs; one service at a time.
        ae_title: our AE title.
        host: address that we listen on. One that is not of this machine alone needs TLS.
        port: DICOM port; 0 takes a free one.
        callers: AE titles that may send; empty: all.
        associations: how many may be open at a time.
        certificate: our certificate, PEM; switches TLS on, with key and authorities. Peers must
            show a certificate too.
        key: private key of the certificate, PEM.
        authorities: certificates of those who may sign a peer's certificate, PEM.
        insecure_network: listen on other machines' network without TLS: patients' names in clear.
        largest_mb: largest film that is taken.
        reserve_mb: disk that is left free: films are refused (0xA700) below; twice the largest at
            least.
        destination: where results go: AET@HOST:PORT (C-STORE) or the root URL of DICOMweb
            (STOW-RS). Empty: they wait in the outbox.
        destination_tls: C-STORE by TLS, with our certificate.
        commitment: ask the destination to commit itself to the results (C-STORE only).
        pull: root URL of DICOMweb, asked for films without a report of ours. Empty: no pull. Its
            user and password, or token, are LUNGFIRST_DICOMWEB_USER, _PASSWORD and _TOKEN of the
            environment.
        pull_days: films of so many days, today included, are asked for.
        pull_minutes: from one pull to the next.
        kinds: objects that are made of each film: sr, gsps, seg, saliency, sc (see results --help).
        sr: Comprehensive or Comprehensive 3D reports: comprehensive, comprehensive3d.
        ensemble: folder of the members; empty as in classify.run.
        engine: what runs the networks, as in classify.run.
        batch: films that are judged at a time.
        wait_s: seconds that a film waits for company.
        health_port: of the health page on this machine; 0 takes a free one.
        keep_days: how long a film and its results stay here after all is sent.
        worklist_hours: how long a film stays in the worklist.
    """

    state: Path = Path("runs/pacs")
    ae_title: str = "LUNGFIRST"
    host: str = "127.0.0.1"
    port: int = 11113
    callers: tuple[str, ...] = ()
    associations: int = 10
    certificate: str = ""
    key: str = ""
    authorities: str = ""
    insecure_network: bool = False
    largest_mb: int = 256
    reserve_mb: int = 512
    destination: str = ""
    destination_tls: bool = False
    commitment: bool = False
    pull: str = ""
    pull_days: int = 2
    pull_minutes: float = 5.0
    kinds: tuple[str, ...] = ("sr", "gsps")
    sr: str = "comprehensive"
    ensemble: str = ""
    engine: str = "onnx"
    batch: int = 16
    wait_s: float = 2.0
    health_port: int = 11180
    keep_days: float = 0.0
    worklist_hours: float = 24.0

    def __post_init__(self) -> None:
        require_one_of(self, engine=ENGINES, sr=FORMS)
        require_at_least(self, associations=1, largest_mb=1, batch=1, pull_days=1, wait_s=0)
        require_at_least(self, keep_days=0, worklist_hours=0, pull_minutes=0)
        for title in (self.ae_title, *self.callers):
            require(0 < len(title.strip()) <= 16, "an AE title has 1 to 16 characters", title)
        unknown = set(self.kinds) - set(KINDS)
        require(not unknown, f"kinds must be of {', '.join(KINDS)}", self.kinds)
        need = 2 * self.largest_mb
        require(self.reserve_mb >= need, f"reserve_mb must be at least {need}", self.reserve_mb)
        if any((self.certificate, self.key, self.authorities)) and not self.tls:
            raise ValueError("TLS needs all three: certificate, key and authorities.")
        if self.destination_tls and not self.tls:
            raise ValueError("destination_tls needs certificate, key and authorities.")
        if self.destination and not self.by_web:
            peer_of(self.destination)
        if self.commitment and self.by_web:
            raise ValueError("commitment is of C-STORE: the destination must be AET@HOST:PORT.")
        if not self.tls and not self.insecure_network and not is_local(self.host):
            raise ValueError(
                f"host must be of this machine alone (127.0.0.1) without TLS. Got {self.host!r}: "
                "others on the network could read patients' names and send films. Give "
                "certificate, key and authorities, or say --insecure_network true."
            )

    @property
    def tls(self) -> bool:
        """Is all there that TLS needs?"""
        return bool(self.certificate and self.key and self.authorities)

    @property
    def by_web(self) -> bool:
        """Do results go by STOW-RS?"""
        return self.destination.startswith(("http://", "https://"))

    @cached_property
    def folders(self) -> Folders:
        """The folders below `state`."""
        return Folders(Path(self.state))

    def tls_context(self, server: bool) -> ssl.SSLContext | None:
        """TLS 1.2 or newer, both sides with certificates; None where TLS is off. Raises
        RefusedError for files that are none."""
        if not self.tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False  # DICOM names hosts by address; the authority is our own
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.authorities)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise RefusedError(
                "certificate, key and authorities must be PEM files that fit together. "
                f"Got {self.certificate}, {self.key}, {self.authorities}: {error}."
            ) from error
        return context


class Folders:
    """Where things lie below `state`. Those with patients' identity are closed to others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.films = root / "spool" / "films"
        self.arriving = root / "spool" / "arriving"
        self.outbox = root / "outbox"
        self.runs = root / "runs"
        self.worklist = root / "worklist"
        self.logs = root / "logs"
        self.sender = root / "sender"  # held by the one that sends
        self.journal = root / "journal.sqlite"

    def make(self) -> Folders:
        """Make what is missing, all 0700, and the key of the hashes."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        inner = (self.films.parent, self.films, self.arriving, self.outbox, self.runs)
        for place in (self.root, *inner, self.worklist, self.logs, self.sender):
            place.mkdir(mode=0o700, exist_ok=True)
            place.chmod(0o700)
        self._secret_file()
        return self

    def _secret_file(self) -> Path:
        path = self.root / "hash.key"
        if not path.exists():
            fresh = path.with_name(f".hash.key.{os.getpid()}")
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
                os.fsync(handle)
            with suppress(FileExistsError):  # another process was first: its key holds
                os.link(fresh, path)
            fresh.unlink()
        return path

    @cached_property
    def secret(self) -> bytes:
        """The key of the hashes, of this state folder alone."""
        return self._secret_file().read_bytes()

    def key_of(self, uid: str) -> str:
        """A SOP Instance UID as 32 hexadecimal digits that say nothing without our key."""
        return hmac.new(self.secret, str(uid).strip().encode(), hashlib.sha256).hexdigest()[:32]

    def film(self, key: str) -> Path:
        """Where a film lies in the spool."""
        return self.films / f"{key}.dcm"


def is_local(host: str) -> bool:
    """Is this address of this machine alone?"""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)} if host else set()
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)


def peer_of(destination: str) -> tuple[str, str, int]:
    """AE title, host and port of AET@HOST:PORT; raises ValueError."""
    title, at, rest = destination.partition("@")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or "", parts.port or 0
    except ValueError:
        host, port = "", 0
    known = bool(at and 0 < len(title) <= 16 and host and port)
    require(known, "destination must be AET@HOST:PORT, or the URL of DICOMweb", destination)
    return title, host, port


def needs_pacs() -> Any:
    """pynetdicom, quiet; raises RefusedError with the remedy where it is not installed."""
    try:
        import pynetdicom
    except ModuleNotFoundError as error:
        raise RefusedError(
            f"{error.name} is not installed, which this needs: pip install -e '.[pacs]'"
        ) from error
    for name in ("pynetdicom", "pydicom", "dicomweb_client", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # they quote headers
    return pynetdicom


log = logging.getLogger("lungfirst.hospital")  # a run's own log leaves this one's file open
_PARENT = os.getppid()


def begin_role(site: Site, name: str) -> None:
    """Log to logs/NAME.log; nothing that a library says of a header, and no error's own words,
    which may quote one, gets there."""
    os.umask(0o077)
    site.folders.make()
    warnings.simplefilter("ignore")
    console.quiet = True
    handler = RotatingFileHandler(site.folders.logs / f"{name}.log", "a", 4 << 20, 3, "utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    sys.excepthook = _told
    threading.excepthook = lambda args: _told(args.exc_type, args.exc_value, args.exc_traceback)


def _told(kind: type[BaseException], error: Any, _: TracebackType | None) -> None:
    own = isinstance(error, RefusedError)  # our own words name no patient
    log.error("%s", error if own else where(error) if error is not None else kind.__name__)


def role_site(name: str) -> Site:
    """The site of a process of the service, which is started with the site's file; its log is
    begun."""
    site = from_plain(Site, read_json(sys.argv[1]))
    begin_role(site, name)
    return site


def until_told() -> threading.Event:
    """What SIGTERM and Ctrl-C set."""
    ended = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: ended.set())
    return ended


def where(error: BaseException) -> str:
    """An error's kind and place, without its words."""
    at = [f" at {Path(f.filename).name}:{f.lineno}" for f in extract_tb(error.__traceback__)[-1:]]
    return "".join([error.__class__.__name__, *at])


def hold(folder: Path, ended: threading.Event) -> Any:
    """The claim of a folder, waited for while an earlier process, whose parent is gone, ends what
    it has in hand; None where this one is to end itself."""
    while not ended.is_set() and with_parent():
        with suppress(RefusedError):
            return claim(folder)
        ended.wait(0.5)
    return None


def with_parent() -> bool:
    """Does the process that started this one still live?"""
    return os.getppid() == _PARENT
