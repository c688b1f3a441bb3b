"""films.jsonl: the page's record of each film, appended and flushed, read back one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cxr.workdir import drop_torn_line


class PageBook:
    """Records by film on disk; memory holds where each begins. A film added again is replaced.

    A file that exists is continued; a last line cut off by a kill is dropped.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, int] = {}
        if self.path.exists():
            drop_torn_line(self.path)
            place = 0
            with self.path.open("rb") as file:
                for line in file:
                    self._places[json.loads(line)["film"]] = place
                    place += len(line)
        self._file = self.path.open("ab")

    def add(self, record: Mapping[str, Any]) -> None:
        """Write one film's record."""
        self._places[record["film"]] = self._file.tell()
        self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def records(self) -> Iterator[dict[str, Any]]:
        """The films in the order in which they came first."""
        with self.path.open("rb") as file:
            for place in self._places.values():
                file.seek(place)
                yield json.loads(file.readline())

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> PageBook:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
