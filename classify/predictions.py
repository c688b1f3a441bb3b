"""predictions.csv: a row a film with every member's logits and the screener's decision.

Rows are flushed as they are added, so a killed run loses no finished film and goes on from there.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from cxr.workdir import Appender, drop_torn_line, write_atomic

ANSWERS = ("normal", "target", "others")
_BEFORE = ("film", "status", "reason")
_AFTER = ("abnormal_score", "decision", "tier", "threshold_id")


@dataclass(frozen=True, eq=False)
class PredictionRow:
    """One film. `logits` (M, 3), NORMAL, TARGET, OTHERS of each member, or None when refused."""

    film: str
    status: str
    reason: str = ""
    logits: np.ndarray | None = None
    abnormal_score: float | None = None
    decision: str = ""
    tier: str = ""
    threshold_id: str = ""


class PredictionWriter(Appender):
    """Appends rows to a predictions.csv; `done` holds those of an earlier run by film.

    A last line cut off by a kill is dropped. Raises ValueError when the file has other members.
    """

    def __init__(self, path: str | Path, targets: Sequence[str]) -> None:
        self.path, self.targets = Path(path), tuple(targets)
        self.done: dict[str, PredictionRow] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            drop_torn_line(self.path)
        if self.path.exists() and self.path.stat().st_size:
            found, rows = read_predictions(self.path)
            if found != self.targets:
                raise ValueError(
                    f"{self.path} was begun with the members {', '.join(found)}. Got "
                    f"{', '.join(self.targets)} instead: give another folder, or remove the file."
                )
            self.done = {row.film: row for row in rows}
        self._file: TextIO = self.path.open("a", newline="", encoding="utf-8")
        if self._file.tell() == 0:
            self._write(list(columns_of(self.targets)))

    def add(self, row: PredictionRow) -> None:
        """Write one film's row; raises ValueError when the film has one, or for other logits."""
        if row.film in self.done:
            raise ValueError(f"{row.film} stands in {self.path} already.")
        self._write(_cells(row, len(self.targets)))
        self.done[row.film] = row

    def _write(self, cells: list[str]) -> None:
        self._file.write(_line(cells))
        self._file.flush()
        os.fsync(self._file.fileno())


def write_predictions(
    path: str | Path, targets: Sequence[str], rows: Iterable[PredictionRow]
) -> Path:
    """All rows at once, atomically."""
    lines = [_line(list(columns_of(targets)))]
    lines += [_line(_cells(row, len(targets))) for row in rows]
    return write_atomic(path, "".join(lines))


def read_predictions(path: str | Path) -> tuple[tuple[str, ...], list[PredictionRow]]:
    """Targets and rows of a predictions.csv; raises ValueError naming the line that is wrong."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} must be a predictions.csv. It does not exist: make one with "
            "python -m classify.run FILMS --crops"
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, []))
        targets = tuple(c.removesuffix(".normal") for c in header if c.endswith(".normal"))
        if header != columns_of(targets):
            raise ValueError(
                f"{path} must have the columns {', '.join(columns_of(targets))}. "
                f"Got {', '.join(header)} instead."
            )
        rows: dict[str, PredictionRow] = {}
        for cells in reader:
            try:
                row = _row(cells, len(targets))
            except ValueError as error:
                raise ValueError(f"{path} line {reader.line_num}: {error}") from error
            if row.film in rows:
                raise ValueError(f"{path} line {reader.line_num}: {row.film} stands there twice.")
            rows[row.film] = row
    return targets, list(rows.values())


def columns_of(targets: Sequence[str]) -> tuple[str, ...]:
    """The columns of a predictions.csv for these members."""
    return (*_BEFORE, *(f"{t}.{a}" for t in targets for a in ANSWERS), *_AFTER)


def _cells(row: PredictionRow, members: int) -> list[str]:
    if row.logits is None:
        logits = [""] * (members * len(ANSWERS))
    else:
        shape = np.shape(row.logits)
        if shape != (members, len(ANSWERS)):
            raise ValueError(f"logits of {row.film} must be ({members}, 3). Got {shape} instead.")
        logits = [repr(float(v)) for v in np.asarray(row.logits).ravel()]
    score = "" if row.abnormal_score is None else repr(float(row.abnormal_score))
    texts = (row.film, row.status, row.reason)
    return [*texts, *logits, score, row.decision, row.tier, row.threshold_id]


def _row(cells: list[str], members: int) -> PredictionRow:
    width = members * len(ANSWERS)
    if len(cells) != len(_BEFORE) + width + len(_AFTER):
        raise ValueError(
            f"a row must have {len(_BEFORE) + width + len(_AFTER)} cells. Got {len(cells)} instead."
        )
    middle = cells[3 : 3 + width]
    score, decision, tier, threshold_id = cells[3 + width :]
    logits = None
    if any(middle):
        logits = np.array([float(v) for v in middle], dtype=np.float64).reshape(members, -1)
        if not np.isfinite(logits).all():
            raise ValueError("logits must be finite. Got NaN or infinity.")
    return PredictionRow(
        cells[0],
        cells[1],
        cells[2],
        logits,
        float(score) if score else None,
        decision,
        tier,
        threshold_id,
    )


def _line(cells: list[str]) -> str:
    # one line a row, always: a line break inside a reason would look like a torn row
    buffer = io.StringIO()
    clean = [
        " ".join(cell.splitlines()) if "\n" in cell or "\r" in cell else cell for cell in cells
    ]
    csv.writer(buffer, lineterminator="\n").writerow(clean)
    return buffer.getvalue()
