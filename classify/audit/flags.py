"""Flags with reasons: films on which a member looked elsewhere than it does on training films.

A threshold is a quantile of the training patients' own values, so a flag says «unusual for this
member», not «wrong». How good or bad the usual is, the audit's averages and controls say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classify.audit.rows import AuditRow
from cxr.workdir import log, read_json, write_json

SCHEMA, VERSION = "lungfirst.audit_thresholds", 1
OUTSIDE, BORDER, TEXT, EMPTY = "looks outside", "border", "text", "map empty"
DISAGREE = "field and box disagree"
FLAGS = {  # and what each says
    OUTSIDE: "Far less attention on lung than on the films the network was trained on.",
    BORDER: "Unusually much attention on the outermost band of the picture.",
    TEXT: "Unusually much attention on letters or marks burnt into the film.",
    EMPTY: "The map is zero everywhere: nothing on the film speaks for the target.",
    DISAGREE: "Lung field and thorax box do not lie over each other: one of the two is wrong, so "
    "the figures of this film mean little.",
}


class Bound(NamedTuple):
    """Where a metric is flagged: on which `side` of its threshold, and a threshold of at `least`
    so much: where training films hardly look, a trace is no reason to flag."""

    flag: str
    side: str
    words: str
    least: float = 0.0


BOUNDS = {
    "lift": Bound(OUTSIDE, "below", "lift"),
    "border_share": Bound(BORDER, "above", "share of energy in the border band"),
    "text_share": Bound(TEXT, "above", "share of energy on burnt-in text", 0.01),
}
_FEWEST = 20  # films with a value; a quantile of fewer says nothing of the tail


@dataclass(frozen=True)
class Thresholds:
    """Where flags begin, by member and metric; None where there were too few training films.

    Attributes:
        method: of saliency: another method's maps are spread otherwise.
        by_member: member → lift (below is flagged), border_share and text_share (above is).
        field_disagreement: of lung field and thorax box (above is flagged).
        tail: share of the training films on the worse side.
        films, patients: how many the thresholds were taken from.
        members: member → SHA-256 of its file.
    """

    method: str
    by_member: Mapping[str, Mapping[str, float | None]]
    field_disagreement: float | None
    tail: float
    films: int
    patients: int
    members: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """As JSON, atomically."""
        return write_json(path, {"schema": SCHEMA, "version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Raises ValueError for what are no thresholds, OSError for a file that is not there."""
        how = "store them with python -m classify.audit RUN --fit"
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path} must hold thresholds of an audit. There is no such file: {how}"
            )
        try:
            data = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path} must be JSON: {error}") from error
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise ValueError(f"{path} must hold thresholds of an audit (schema {SCHEMA}): {how}")
        if (version := data.pop("version", None)) != VERSION:
            raise ValueError(f"{path} must be of version {VERSION}. Got {version!r}.")
        try:
            found = cls(**data)
            bounds = [v for own in found.by_member.values() for v in own.values() if v is not None]
            bounds += [found.tail, found.field_disagreement or 0.0]
            if all(isinstance(v, int | float) for v in bounds):
                return found
        except (TypeError, AttributeError):  # parts are missing, or of another kind
            pass
        raise ValueError(f"{path} must hold all parts of the thresholds, bounds as numbers: {how}")


def fit_thresholds(
    rows: Sequence[AuditRow], tail: float = 0.05, members: Mapping[str, str] | None = None
) -> Thresholds:
    """Quantiles of the rows of training films; empty maps and missing values are left out.

    Raises ValueError for rows of several methods, or too few films for any threshold.
    """
    rows = [row for row in rows if row.member]
    methods = sorted({row.method for row in rows})
    films = {row.film: row for row in rows}
    if len(methods) != 1 or len(films) < _FEWEST:
        raise ValueError(
            f"thresholds need at least {_FEWEST} films with maps of one method. Got "
            f"{len(films)} films, method {', '.join(methods) or 'none'}."
        )

    def threshold(member: str, metric: str, bound: Bound) -> float | None:
        values = [row.value(metric) for row in rows if row.member == member]
        found = _quantile(values, tail if bound.side == "below" else 1 - tail)
        return found if found is None else max(found, bound.least)

    return Thresholds(
        methods[0],
        {
            name: {metric: threshold(name, metric, bound) for metric, bound in BOUNDS.items()}
            for name in dict.fromkeys(row.member for row in rows)
        },
        _quantile([row.field_disagreement for row in films.values()], 1 - tail),
        tail,
        len(films),
        len({row.patient for row in films.values()}),
        dict(members or {}),
    )


def _quantile(values: Sequence[float | None], share: float) -> float | None:
    known: list[Any] = [v for v in values if v is not None]
    return float(np.quantile(known, share)) if len(known) >= _FEWEST else None


def read_thresholds(
    path: Path, asked_for: bool, method: str, members: Mapping[str, str] | None = None
) -> Thresholds | None:
    """Thresholds that fit the method and the members (name → SHA-256); None, with a warning, for
    those of others, and None where there is no file and none was asked for. Raises OSError or
    ValueError."""
    if not path.exists() and not asked_for:
        return None
    found = Thresholds.load(path)
    others = [k for k, v in (members or {}).items() if found.members.get(k, v) != v]
    why = ""
    if found.method != method:
        why = f"maps of {found.method} and says nothing of {method}: only empty maps are flagged"
    elif others:
        why = f"another training of {', '.join(others)}: only empty maps are flagged. "
        why += "Store it anew with --fit"
    if why:
        log.warning("%s was taken from %s", path, why)
    return None if why else found


def flag_row(row: AuditRow, thresholds: Thresholds | None) -> tuple[tuple[str, ...], ...]:
    """Flags, and a sentence for each, of one film under one member.

    An empty map is flagged without thresholds too. A lung field that is missing altogether
    disagrees with any box: field_disagreement is 1 then.
    """
    found: list[tuple[str, str]] = []
    if row.empty:
        found.append((EMPTY, f"{row.member}: the map is 0 everywhere, so it shows nothing"))
    own = thresholds.by_member.get(row.member, {}) if thresholds else {}
    for metric, (flag, side, words, _) in BOUNDS.items():
        value, bound = row.value(metric), own.get(metric)
        if value is None or bound is None or thresholds is None:
            continue
        if value < bound if side == "below" else value > bound:
            why = f"{words} {value:.3g} is {side} {bound:.3g}, as on"
            why += f" {100 * thresholds.tail:g} % of training films"
            found.append((flag, f"{row.member}: {why}"))
    value = row.field_disagreement
    bound = None if thresholds is None else thresholds.field_disagreement
    if value is not None and bound is not None and value > bound:
        why = f"overlap by {1 - value:.2f} (IoU), less than {1 - bound:.2f}"
        found.append((DISAGREE, f"lung field and thorax box {why}"))
    return tuple(flag for flag, _ in found), tuple(reason for _, reason in found)
