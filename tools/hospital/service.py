"""The service: receiver, worker and sender as processes of their own, watched and started again.

A kill of one takes no other with it, and what one had in hand is in the journal. How it does is
told in counts for people, for Prometheus, and as JSON on a port of this machine; films only by
keyed hashes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rich.table import Table

from cxr.cli import to_plain
from cxr.rules import RefusedError
from cxr.workdir import claim, console, read_json, write_json
from hospital.journal import Journal, opened
from hospital.settings import DRAIN_S, Site, log, needs_pacs, until_told

TOOLS = Path(__file__).resolve().parent.parent
ROLES = {name: (sys.executable, "-m", f"hospital.{name}") for name in ("receiver", "worker")} | {
    "sender": (sys.executable, "-m", "hospital.outbox")
}
_LONGEST_PAUSE_S, _STEADY_S = 30.0, 20.0


@dataclass(frozen=True)
class ServeConfig(Site):
    """Receive films, judge them and send the results back, until SIGTERM.

    Args:
        once: end when all that was received or pulled is judged and sent.
    """

    once: bool = False


class Role:
    """One process that is kept alive; it is started again after a pause that grows while it dies
    at once."""

    def __init__(self, name: str, command: Sequence[str], site_file: Path) -> None:
        self.name, self._command = name, [*command, str(site_file)]
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts, self._pause, self._at, self._begun = 0, 0.5, 0.0, 0.0

    def watch(self, now: float) -> None:
        """Start what does not run, once its pause is over."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return
            steady = now - self._begun > _STEADY_S
            self._pause = 0.5 if steady else min(_LONGEST_PAUSE_S, 2 * self._pause)
            self._at, self.process = now + self._pause, None
            self.restarts += 1
            told = "the %s ended (%d) and is started again; logs/%s.log may say why"
            log.warning(told, self.name, code, self.name)
        if now >= self._at:
            self._begun = now
            paths = [str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH", "")]
            path = os.pathsep.join(filter(None, paths))
            self.process = subprocess.Popen(  # noqa: S603 - our own modules
                self._command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL
            )

    @property
    def pid(self) -> int:
        """Of the process; 0 while there is none."""
        return self.process.pid if self.process is not None else 0

    def signal(self, sign: int) -> None:
        """Tell the process, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(sign)


class Service:
    """All processes of a site; `roles` name their commands."""

    def __init__(self, site: Site, roles: Mapping[str, Sequence[str]] = ROLES) -> None:
        self.site = site
        site.folders.make()
        self._claim = claim(site.folders.root)
        site.tls_context(server=True)  # what is wrong with the files is said now
        plain = to_plain(site)
        own = {f.name: plain[f.name] for f in fields(Site)}
        site_file = write_json(site.folders.root / "site.json", own)
        (site.folders.root / "receiver.json").unlink(missing_ok=True)
        self.journal = Journal(site.folders.journal)
        self.roles = [Role(name, command, site_file) for name, command in roles.items()]
        self.health = serve_health(site, self._told)
        self.ended = threading.Event()

    def _told(self) -> dict[str, Any]:
        return {
            "processes": {role.name: role.pid for role in self.roles},
            "restarts": {role.name: role.restarts for role in self.roles},
        }

    def watch(self) -> None:
        """Start what does not run."""
        for role in self.roles:
            role.watch(time.monotonic())

    def address(self, patience_s: float = 30.0) -> str:
        """host:port of the receiver; raises RefusedError where it does not listen in time."""
        path, end = self.site.folders.root / "receiver.json", time.monotonic() + patience_s
        while time.monotonic() < end and not self.ended.is_set():
            self.watch()
            if path.exists():
                return f"{self.site.host}:{read_json(path)['port']}"
            time.sleep(0.05)
        raise RefusedError(
            f"{self.site.host}:{self.site.port} must be free to listen on. Nothing listens there "
            f"yet: see {self.site.folders.logs / 'receiver.log'}."
        )

    def is_idle(self) -> bool:
        """Is all that was received judged, sent and, where asked for, committed?"""
        told, site = health(self.journal), self.site
        if told["waiting"] or (site.pull and "pulled" not in told["notes"]):
            return False
        unsent = told["results"]["waiting"] or (site.commitment and told["results"]["sent"])
        return not site.destination or not unsent

    def stop(self) -> None:
        """SIGTERM to all; after DRAIN_S whoever is left is killed, which loses nothing."""
        for role in self.roles:
            role.signal(signal.SIGTERM)
        end = time.monotonic() + DRAIN_S + 2
        for role in self.roles:
            if role.process is not None:
                try:
                    role.process.wait(max(0.1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    role.process.kill()
                    role.process.wait()
        self.health.shutdown()
        self.health.server_close()
        self.journal.close()


def run(config: ServeConfig) -> int:
    """`serve`: until SIGTERM or Ctrl-C; with `once`, until all is done (1 where a film failed)."""
    needs_pacs()
    service = Service(config)
    if config.once:
        service.journal.note("pulled", "")
    service.ended = until_told()
    try:
        address, port = service.address(), service.health.server_address[1]
        how = "with TLS" if config.tls else "without TLS"
        where = config.destination or "nowhere: they wait in the outbox"
        for line in (
            f"films: {config.ae_title}@{address}, {how}",
            f"pull: {config.pull or 'none; films that a router loses are not missed'}",
            f"results: {where}",
            f"health: http://127.0.0.1:{port}/health, /metrics and /worklist",
        ):
            console.print(line, highlight=False, markup=False)
        while not service.ended.wait(0.2):
            service.watch()
            if config.once and service.is_idle():
                break
        failed = health(service.journal)["failed"]
    finally:
        service.stop()
    console.print("ended; what is not done goes on with the next serve", highlight=False)
    return 1 if config.once and failed else 0


STALE_S = 900.0  # a film that waits for so long is a sign of trouble
_RESULTS = ("waiting", "sent", "committed", "refused")
_HELP = {
    "received": "films taken in, ever",
    "judged": "films judged, ever",
    "refused": "objects refused at the door, ever",
    "waiting": "films that wait to be judged",
    "sent": "films whose results are all with the destination",
    "committed": "films whose results the destination has committed itself to",
    "failed": "films that need a person",
    "oldest_s": "age of the oldest film that is not done, seconds",
}


@dataclass(frozen=True)
class StatusConfig(Site):
    """Show how many films were received, judged, refused, sent, and what waits or failed.

    Args:
        json: as JSON, on standard output.
    """

    json: bool = False


def health(journal: Journal, now: float | None = None) -> dict[str, Any]:
    """What `status` and the health page show."""
    now = time.time() if now is None else now
    states, results = journal.by_state("films"), journal.by_state("outbox")
    query = "SELECT min(received) AS oldest FROM films WHERE state IN ('received', 'judged')"
    oldest = journal.rows(query)[0]["oldest"]
    age = 0.0 if oldest is None else max(0.0, now - oldest)
    counts = journal.counts()
    failed = states.get("failed", 0)
    return {
        "ok": not failed and age < STALE_S,
        "received": counts.get("received", 0),
        "judged": counts.get("judged", 0),
        "refused": sum(n for name, n in counts.items() if name.startswith("refused_")),
        "waiting": states.get("received", 0),
        "sent": states.get("sent", 0) + states.get("committed", 0),
        "committed": states.get("committed", 0),
        "failed": failed,
        "oldest_s": round(age, 1),
        "results": {name: results.get(name, 0) for name in _RESULTS},
        "counts": counts,
        "notes": {name: text for name, text in journal.notes().items() if text},
    }


def prometheus(told: dict[str, Any]) -> str:
    """`health` in Prometheus' text format."""
    lines = []
    for name, what in _HELP.items():
        kind = "counter" if name in ("received", "judged", "refused") else "gauge"
        metric = f"lungfirst_films_{name}" + ("_total" if kind == "counter" else "")
        metric = metric.replace("oldest_s", "oldest_seconds")
        lines += [f"# HELP {metric} {what}", f"# TYPE {metric} {kind}", f"{metric} {told[name]}"]
    for metric, kind, what, label, counts in (
        ("lungfirst_results", "gauge", "results by state", "state", told["results"]),
        ("lungfirst_events_total", "counter", "what happened", "event", told["counts"]),
    ):
        lines += [f"# HELP {metric} {what}", f"# TYPE {metric} {kind}"]
        lines += [f'{metric}{{{label}="{s}"}} {n}' for s, n in counts.items()]
    for name, pid in told.get("processes", {}).items():
        lines.append(f'lungfirst_process_up{{process="{name}"}} {int(bool(pid))}')
    return "\n".join(lines) + "\n"


def serve_health(site: Site, more: Any) -> ThreadingHTTPServer:
    """Answer /health, /metrics and /worklist on 127.0.0.1; `more` gives what is told beside."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            try:
                with Journal(site.folders.journal) as journal:
                    status, kind, text = _page(self.path, site, journal, more)
            except Exception:  # the page must outlive a full disk
                status, kind, text = 503, "text/plain", "the journal cannot be read\n"
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *told: Any) -> None:
            """Nothing: what was asked may hold anything."""

    server = ThreadingHTTPServer(("127.0.0.1", site.health_port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _page(path: str, site: Site, journal: Journal, more: Any) -> tuple[int, str, str]:
    from hospital.worklist import page_of, table_rows

    if path == "/worklist":
        since = time.time() - site.worklist_hours * 3600
        return 200, "text/html", page_of(table_rows(journal, since))
    told = health(journal) | more()
    if path == "/metrics":
        return 200, "text/plain", prometheus(told)
    if path in ("/", "/health"):
        return (200 if told["ok"] else 503), "application/json", json.dumps(told, indent=1) + "\n"
    return 404, "text/plain", "there are /health, /metrics and /worklist\n"


def tell(config: StatusConfig) -> int:
    """`status`: 0 when all is well, 1 where a film failed or waits for long."""
    with opened(config) as journal:
        told = health(journal)
        failed = journal.rows("SELECT key, reason FROM films WHERE state = 'failed' LIMIT 20")
    if config.json:
        print(json.dumps(told, indent=1))
        return 0 if told["ok"] else 1
    table = Table("", "count", "what", title="films")
    for name, what in _HELP.items():
        table.add_row(name, str(told[name]), what)
    for name, count in told["results"].items():
        table.add_row(f"results {name}", str(count), "")
    for name, count in told["counts"].items():
        if name not in ("received", "judged", "results_sent"):
            table.add_row(name.replace("_", " "), str(count), "events")
    console.print(table)
    for name, text in told["notes"].items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    for row in failed:
        console.print(f"failed: film {row['key'][:12]}, {row['reason']}", highlight=False)
    return 0 if told["ok"] else 1
