"""predictions.csv: a row a film with every member's logits and the screener's decision.

Rows are flushed as they are added, so a killed run loses no finished film and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr.ledger import ODD, Ledger, csv_line, read_csv
from cxr.rules import require
from cxr.workdir import write_atomic

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


class PredictionWriter(Ledger[PredictionRow]):
    """Appends rows to a predictions.csv; `done` holds those of an earlier run by film.

    Raises ValueError when the file has other members.
    """

    def __init__(self, path: str | Path, targets: Sequence[str]) -> None:
        self.targets = tuple(targets)
        super().__init__(path, csv_line(columns_of(self.targets)), self._earlier, self._line)

    def add(self, row: PredictionRow) -> None:
        """Write one film's row; raises ValueError when the film has one, or for other logits."""
        self.put(row.film, row)

    def _earlier(self, path: Path) -> dict[str, PredictionRow]:
        found, rows = read_predictions(path)
        if found != self.targets:
            raise ValueError(
                f"{path} was begun with the members {', '.join(found)}. Got "
                f"{', '.join(self.targets)} instead: give another folder, or remove the file."
            )
        return {row.film: row for row in rows}

    def _line(self, row: PredictionRow) -> str:
        return csv_line(_cells(row, len(self.targets)))


def write_predictions(
    path: str | Path, targets: Sequence[str], rows: Iterable[PredictionRow]
) -> Path:
    """All rows at once, atomically."""
    lines = [csv_line(columns_of(targets))]
    lines += [csv_line(_cells(row, len(targets))) for row in rows]
    return write_atomic(path, "".join(lines).encode("utf-8", ODD))


def read_predictions(path: str | Path) -> tuple[tuple[str, ...], list[PredictionRow]]:
    """Targets and rows of a predictions.csv; raises ValueError naming the line that is wrong."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} must be a predictions.csv. It does not exist: make one with "
            "python -m classify.run FILMS --crops"
        )
    targets: tuple[str, ...] = ()
    rows: dict[str, PredictionRow] = {}

    def reader_of(header: tuple[str, ...]) -> Callable[[list[str]], None]:
        nonlocal targets
        targets = tuple(c.removesuffix(".normal") for c in header if c.endswith(".normal"))
        if header != columns_of(targets):
            raise ValueError(
                f"{path} must have the columns {', '.join(columns_of(targets))}. "
                f"Got {', '.join(header)} instead."
            )
        return read

    def read(cells: list[str]) -> None:
        row = _row(cells, len(targets))
        if row.film in rows:
            raise ValueError(f"{row.film} stands there twice.")
        rows[row.film] = row

    read_csv(path, reader_of, ODD)
    return targets, list(rows.values())


def columns_of(targets: Sequence[str]) -> tuple[str, ...]:
    """The columns of a predictions.csv for these members."""
    return (*_BEFORE, *(f"{t}.{a}" for t in targets for a in ANSWERS), *_AFTER)


def _cells(row: PredictionRow, members: int) -> list[str]:
    logits = [""] * (members * len(ANSWERS))
    if row.logits is not None:
        shape = np.shape(row.logits)
        require(shape == (members, 3), f"logits of {row.film} must be ({members}, 3)", shape)
        logits = [repr(float(v)) for v in np.asarray(row.logits).ravel()]
    score = "" if row.abnormal_score is None else repr(float(row.abnormal_score))
    texts = (row.film, row.status, row.reason)
    return [*texts, *logits, score, row.decision, row.tier, row.threshold_id]


def _row(cells: list[str], members: int) -> PredictionRow:
    width = members * len(ANSWERS)
    wanted = len(_BEFORE) + width + len(_AFTER)
    if len(cells) != wanted:
        raise ValueError(f"a row must have {wanted} cells. Got {len(cells)} instead.")
    (film, status, reason), middle = cells[:3], cells[3 : 3 + width]
    score, decision, tier, threshold_id = cells[3 + width :]
    logits = None
    if any(middle):
        logits = np.array([float(v) for v in middle], dtype=np.float64).reshape(members, -1)
        if not np.isfinite(logits).all():
            raise ValueError("logits must be finite. Got NaN or infinity.")
    known = float(score) if score else None
    return PredictionRow(film, status, reason, logits, known, decision, tier, threshold_id)
