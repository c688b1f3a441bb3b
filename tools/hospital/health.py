"""How the service does: counts for people, for Prometheus, and as JSON on a port of this machine.
Films are told as counts, or by keyed hashes."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cxr.workdir import console
from hospital.journal import Journal
from hospital.settings import Site
from hospital.spool import opened

STALE_S = 900.0  # a film that waits for so long is a sign of trouble


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
    states = _by_state(journal, "films")
    results = _by_state(journal, "outbox")
    query = "SELECT min(received) AS oldest FROM films WHERE state IN ('received', 'judged')"
    oldest = journal.rows(query)[0]["oldest"]
    age = 0.0 if oldest is None else max(0.0, now - oldest)
    counts = journal.counts()
    failed = states.get("failed", 0)
    notes = {name: text for name, text in journal.notes().items() if text}
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
        "notes": notes,
    }


_RESULTS = ("waiting", "sent", "committed", "refused")


def _by_state(journal: Journal, table: str) -> dict[str, int]:
    query = f"SELECT state, count(*) AS n FROM {table} GROUP BY state"  # noqa: S608 - our own word
    return {row["state"]: row["n"] for row in journal.rows(query)}


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


def prometheus(told: dict[str, Any]) -> str:
    """`health` in Prometheus' text format."""
    lines = []
    for name, what in _HELP.items():
        kind = "counter" if name in ("received", "judged", "refused") else "gauge"
        metric = f"lungfirst_films_{name}" + ("_total" if kind == "counter" else "")
        metric = metric.replace("oldest_s", "oldest_seconds")
        lines += [f"# HELP {metric} {what}", f"# TYPE {metric} {kind}", f"{metric} {told[name]}"]
    lines += ["# HELP lungfirst_results results by state", "# TYPE lungfirst_results gauge"]
    lines += [f'lungfirst_results{{state="{s}"}} {n}' for s, n in told["results"].items()]
    lines += [
        "# HELP lungfirst_events_total what happened",
        "# TYPE lungfirst_events_total counter",
    ]
    lines += [f'lungfirst_events_total{{event="{s}"}} {n}' for s, n in told["counts"].items()]
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
                    found = _page(self.path, site, journal, more)
            except Exception:  # the page must outlive a full disk
                found = 503, "text/plain", "the journal cannot be read\n"
            status, kind, text = found
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


def run(config: StatusConfig) -> int:
    """`status`: 0 when all is well, 1 where a film failed or waits for long."""
    from rich.table import Table

    with opened(config) as journal:
        told = health(journal)
        failed = journal.rows("SELECT key, reason FROM films WHERE state = 'failed' LIMIT 20")
    if config.json:
        print(json.dumps(told, indent=1))
        return 0 if told["ok"] else 1
    table = Table(title="films")
    for column in ("", "count", "what"):
        table.add_column(column)
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
