"""What a stopped audit goes on from: rows of the same settings, and controls of the same films."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cxr.workdir import Workdir, log, write_json

_BESIDE = ("films.jsonl", "controls.json")  # of no use without rows
_MADE = ("audit.csv", "audit.json", "compare.md", "report.html", "report.pdf", "run.json")
_STAMPS = "made_with"


def check_resumable(workdir: Workdir, settings: Mapping[str, Any], restart: bool) -> None:
    """Drop an earlier audit with `restart`; raises ValueError when it had other settings. What it
    did not record is not held against it."""
    rows, record = workdir / "audit.csv", workdir / "run.json"
    begun = rows.exists() and len(rows.read_bytes().splitlines()) > 1  # more than its header
    for name in (*_BESIDE, *_MADE) if restart else () if begun else _BESIDE:
        (workdir / name).unlink(missing_ok=True)
    if restart or not begun:
        return
    old = json.loads(record.read_text()).get("settings", {}) if record.exists() else {}
    new = json.loads(json.dumps(settings))
    differs = sorted(k for k in {*old, *new} if k in (old or new) and old.get(k) != new.get(k))
    if differs:
        raise ValueError(
            f"{workdir.path} holds an audit with other settings "
            f"({', '.join(differs)}). Give another --out, or --restart."
        )


class ControlResults:
    """controls.json: the results of the controls, each with what it was made with.

    A control is done once for the same films and options. Those of other films are dropped, as
    they say nothing of these; other options count only where the control is wanted again.
    """

    def __init__(self, path: Path, films: Iterable[str], options: Mapping[str, Any]) -> None:
        self.path, self.options = path, dict(options)
        names = "\n".join(sorted(films)).encode("utf-8", "surrogatepass")
        self.films = hashlib.sha256(names).hexdigest()
        read = json.loads(path.read_text()) if path.exists() else {}
        stamps = read.pop(_STAMPS, {})
        self._stamps = {k: stamp for k, stamp in stamps.items() if stamp["films"] == self.films}
        kept = {key for stamp in self._stamps.values() for key in stamp["keys"]}
        self.found: dict[str, Any] = {key: value for key, value in read.items() if key in kept}
        if len(self.found) < len(read):
            log.info("controls of other films than these are left out")

    def missing(self, wanted: Sequence[str]) -> list[str]:
        """Those of the controls that have not been done in this way."""
        return [n for n in wanted if self._stamps.get(n, {}).get("options") != self.options]

    def add(self, name: str, **results: Any) -> None:
        """Store what a control found, atomically with what was there."""
        self._stamps[name] = {"films": self.films, "options": self.options, "keys": [*results]}
        self.found |= results
        write_json(self.path, {**self.found, _STAMPS: self._stamps})
