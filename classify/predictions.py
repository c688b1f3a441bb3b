"""predictions.csv: a row a film with every member's logits and the screener's decision.

Rows are flushed as they are added, so a killed run loses no finished film and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from cxr.ledger import ODD, Ledger, csv_line, read_csv
from cxr.notes import code_of
from cxr.rules import require

ANSWERS = ("normal", "target", "others")
_BEFORE = ("film", "status", "reason")
_AFTER = ("abnormal_score", "decision", "tier", "threshold_id")
# the last columns; tables of older runs lack some or all of them, and go on without them
_LATER = ("notes", "doubt", "ensemble")


@dataclass(frozen=True, eq=False)
class PredictionRow:
    """One film. `logits` (M, 3), NORMAL, TARGET, OTHERS of each member, or None when refused; NaN
    of the members of an ensemble that was not asked, whose cells are empty. `notes` are the film's,
    of which the table holds the codes, joined by "; " (see `cxr.notes`); `doubt` says why the film
    is never cleared, `ensemble` names the one that judged it."""

    film: str
    status: str
    reason: str = ""
    logits: np.ndarray | None = None
    abnormal_score: float | None = None
    decision: str = ""
    tier: str = ""
    threshold_id: str = ""
    notes: tuple[str, ...] = ()
    doubt: str = ""
    ensemble: str = ""

    @property
    def complete(self) -> bool:
        """Did all members answer?"""
        return self.logits is not None and bool(np.isfinite(self.logits).all())


class PredictionWriter(Ledger[PredictionRow]):
    """Appends rows to a predictions.csv; `done` holds those of an earlier run by film.

    Raises ValueError when the file has other members.
    """

    def __init__(self, path: str | Path, targets: Sequence[str]) -> None:
        self.targets, self._columns = tuple(targets), columns_of(targets)
        super().__init__(path, csv_line(self._columns), self._earlier, self._line)

    def add(self, row: PredictionRow) -> None:
        """Write one film's row; raises ValueError when the film has one, or for other logits."""
        plain = PredictionRow(**{f.name: getattr(row, f.name) for f in fields(PredictionRow)})
        self.put(row.film, plain)  # `done` must not hold a film's pictures

    def _earlier(self, path: Path) -> dict[str, PredictionRow]:
        self._columns, found, rows = _read(path)
        if found != self.targets:
            raise ValueError(
                f"{path} was begun with the members {', '.join(found)}. Got "
                f"{', '.join(self.targets)} instead: give another folder, or remove the file."
            )
        return {row.film: row for row in rows}

    def _line(self, row: PredictionRow) -> str:
        return csv_line(_cells(row, len(self.targets))[: len(self._columns)])


def read_predictions(path: str | Path) -> tuple[tuple[str, ...], list[PredictionRow]]:
    """Targets and rows of a predictions.csv; raises ValueError naming the line that is wrong."""
    _, targets, rows = _read(Path(path))
    return targets, rows


def _read(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], list[PredictionRow]]:
    if not path.is_file():
        raise ValueError(
            f"{path} must be a predictions.csv. It does not exist: make one with "
            "python -m classify.run FILMS --crops"
        )
    columns: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    rows: dict[str, PredictionRow] = {}

    def reader_of(header: tuple[str, ...]) -> Callable[[list[str]], None]:
        nonlocal columns, targets
        columns = header
        targets = tuple(c.removesuffix(".normal") for c in header if c.endswith(".normal"))
        wanted = columns_of(targets)
        if header not in [wanted[: len(wanted) - lacking] for lacking in range(len(_LATER) + 1)]:
            raise ValueError(
                f"{path} must have the columns {', '.join(wanted)}. "
                f"Got {', '.join(header)} instead."
            )
        return read

    def read(cells: list[str]) -> None:
        row = _row(cells, len(targets), len(columns))
        if row.film in rows:
            raise ValueError(f"{row.film} stands there twice.")
        rows[row.film] = row

    read_csv(path, reader_of, ODD)
    return columns, targets, list(rows.values())


def columns_of(targets: Sequence[str]) -> tuple[str, ...]:
    """The columns of a predictions.csv for these members."""
    return (*_BEFORE, *(f"{t}.{a}" for t in targets for a in ANSWERS), *_AFTER, *_LATER)


def _cells(row: PredictionRow, members: int) -> list[str]:
    logits = [""] * (members * len(ANSWERS))
    if row.logits is not None:
        shape = np.shape(row.logits)
        require(shape == (members, 3), f"logits of {row.film} must be ({members}, 3)", shape)
        logits = ["" if np.isnan(v) else repr(float(v)) for v in np.asarray(row.logits).ravel()]
    score = "" if row.abnormal_score is None else repr(float(row.abnormal_score))
    before = (row.film, row.status, row.reason)
    after = (score, row.decision, row.tier, row.threshold_id)
    return [*before, *logits, *after, "; ".join(map(code_of, row.notes)), row.doubt, row.ensemble]


def _row(cells: list[str], members: int, wanted: int) -> PredictionRow:
    width = members * len(ANSWERS)
    if len(cells) != wanted:
        raise ValueError(f"a row must have {wanted} cells. Got {len(cells)} instead.")
    (film, status, reason), middle = cells[:3], cells[3 : 3 + width]
    score, decision, tier, threshold_id, *later = cells[3 + width :]
    noted, doubt, ensemble = [*later, "", "", ""][: len(_LATER)]
    logits = None
    if any(middle):
        given = np.array(list(map(bool, middle))).reshape(members, -1)
        values = [float(v) if v else np.nan for v in middle]
        logits = np.array(values, dtype=np.float64).reshape(members, -1)
        if not np.isfinite(logits[given]).all():
            raise ValueError("logits must be finite. Got NaN or infinity.")
        if (given.any(axis=1) != given.all(axis=1)).any():
            raise ValueError("a member must have all of its logits, or none. Got some.")
    known = float(score) if score else None
    notes = tuple(filter(None, noted.split("; ")))
    texts = (decision, tier, threshold_id)
    return PredictionRow(film, status, reason, logits, known, *texts, notes, doubt, ensemble)
