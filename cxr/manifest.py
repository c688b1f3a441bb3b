"""crops/manifest.jsonl: the checked list of crops that stage one hands to stage two.

First line: schema, version, provenance. Then one JSON line a film, written when the film is
finished; a film without a crop stays in, with its status and reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from cxr.boxes import Frame
from cxr.workdir import Appender, drop_torn_line, write_atomic

SCHEMA, VERSION = "lungfirst.crops", 1
STATUSES = ("ok", "fallback", "no_thorax", "unreadable")


@dataclass(frozen=True)
class CropRow:
    """One film. Boxes are xyxy in the film's own pixels; `crop` is relative to the manifest."""

    film: str
    sha256: str
    status: str
    reason: str = ""
    patient: str = ""
    study: str = ""
    size_hw: tuple[int, int] | None = None
    thorax_xyxy: tuple[float, float, float, float] | None = None
    score: float | None = None
    crop_xyxy: tuple[int, int, int, int] | None = None
    frame: dict[str, Any] | None = None
    crop: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(
                f"status must be one of {', '.join(STATUSES)}. Got {self.status!r} instead."
            )
        has_crop = self.status in ("ok", "fallback")
        if has_crop and (not self.crop or not self.frame or not self.size_hw):
            raise ValueError(f"{self.film}: status {self.status} needs crop, frame and size_hw.")
        if not has_crop and (self.crop or not self.reason):
            raise ValueError(f"{self.film}: status {self.status} needs a reason and no crop.")

    @property
    def readable(self) -> bool:
        """Is there a crop to classify?"""
        return self.crop is not None

    def to_frame(self) -> Frame:
        """The Frame that maps crop pixels to film pixels; raises ValueError without a crop."""
        if self.frame is None:
            raise ValueError(f"{self.film} has no crop, so it has no frame ({self.reason}).")
        return Frame.from_dict(self.frame)


class ManifestWriter(Appender):
    """Appends rows, each flushed to disk, so that a killed run loses no finished film.

    A manifest that exists is continued: `done` holds its rows by film. A last line cut off by a
    kill is dropped, and its film is done again.
    """

    def __init__(self, path: str | Path, provenance: dict[str, Any], restart: bool = False) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, CropRow] = {}
        if restart:
            self.path.unlink(missing_ok=True)
        if self.path.exists() and self.path.stat().st_size:
            drop_torn_line(self.path)
        if self.path.exists() and self.path.stat().st_size:
            header, rows = read_manifest(self.path)
            check_same_settings(self.path, header, provenance)
            self.done = {row.film: row for row in rows}
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._write({"schema": SCHEMA, "version": VERSION, **provenance})

    def add(self, row: CropRow) -> None:
        """Write one film's row; raises ValueError when the film has one already."""
        if row.film in self.done:
            raise ValueError(f"{row.film} stands in {self.path} already.")
        self._write({k: v for k, v in asdict(row).items() if v is not None})
        self.done[row.film] = row

    def drop(self, films: Sequence[str]) -> None:
        """Take out the rows of these films, atomically, so that they can be made anew."""
        if not films:
            return
        gone = set(films)
        self._file.close()
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines[1:] if json.loads(line)["film"] not in gone]
        write_atomic(self.path, b"".join([lines[0], *kept]))
        self.done = {film: row for film, row in self.done.items() if film not in gone}
        self._file = self.path.open("a", encoding="utf-8")

    def _write(self, data: dict[str, Any]) -> None:
        self._file.write(json.dumps(data, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def check_same_settings(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise ValueError when a manifest was begun with other settings than it would be continued."""
    before, now = old.get("settings"), new.get("settings")
    if before != now:
        old_values, new_values = before or {}, now or {}
        names = {*old_values, *new_values}
        differs = sorted(k for k in names if old_values.get(k) != new_values.get(k))
        raise ValueError(
            f"{path} was begun with other settings ({', '.join(differs)}). "
            "Give another --out, or --restart to make the crops anew."
        )


def read_manifest(path: str | Path) -> tuple[dict[str, Any], list[CropRow]]:
    """Header and rows of a manifest; raises ValueError with the line that is wrong."""
    path = Path(path)
    if path.is_dir():
        path = path / "manifest.jsonl"
    if not path.exists():
        raise ValueError(
            f"{path} does not exist. Make crops first: "
            f"python -m detect.crop FILMS --out {path.parent}"
        )
    names = {f.name for f in fields(CropRow)}
    header: dict[str, Any] = {}
    rows: dict[str, CropRow] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                data = json.loads(line)
                if number == 1:
                    _check_header(data)
                    header = data
                    continue
                if not isinstance(data, dict):
                    raise ValueError("a row must be a JSON object")
                unknown = set(data) - names
                if unknown:
                    raise ValueError(f"unknown keys {sorted(unknown)}")
                values: dict[str, Any] = {
                    k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
                }
                row = CropRow(**values)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path} line {number}: {error}") from error
            if row.film in rows:
                raise ValueError(f"{path} line {number}: {row.film} stands there twice")
            rows[row.film] = row
    if not header:
        raise ValueError(f"{path} is empty: its first line must be the header.")
    return header, list(rows.values())


def _check_header(data: Any) -> None:
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"the first line must be a header with schema {SCHEMA!r}")
    if data.get("version") != VERSION:
        raise ValueError(f"version must be {VERSION}. Got {data.get('version')!r} instead")
