"""films.jsonl: the page's record of each film, appended and flushed, read back one by one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cxr.workdir import Appender, drop_torn_line


class PageBook(Appender):
    """Records by film on disk; memory holds where each begins. A film added again is replaced.

    A file that exists is continued; a last line cut off by a kill is dropped. Raises ValueError
    for a file of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, int] = {}
        if self.path.exists():
            drop_torn_line(self.path)
            place = 0
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    self._places[_film_of(line, number, self.path)] = place
                    place += len(line)
        self._file = self.path.open("ab")

    def add(self, record: Mapping[str, Any]) -> None:
        """Write one film's record."""
        self._places[record["film"]] = self._file.tell()
        self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def records(self, films: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
        """The films, or those of them that are named, in the order in which they came first."""
        with self.path.open("rb") as file:
            for film, place in self._places.items():
                if films is None or film in films:
                    file.seek(place)
                    yield json.loads(file.readline())

    def __contains__(self, film: str) -> bool:
        return film in self._places

    def __len__(self) -> int:
        return len(self._places)


def _film_of(line: bytes, number: int, path: Path) -> str:
    try:
        return str(json.loads(line)["film"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} line {number} must be the record of a film: remove the file, or "
            "give --restart."
        ) from error
