"""audit.csv: a row a film and member with what the member answered and where it looked.

A film without a map (refused, unreadable) has its row and its reason too. Rows are flushed as they
are added, so a killed audit goes on from there, given the same settings; controls, given the same
films. Numbers are written in full: what is read back is what was written.

Flags say with reasons on which films a member looked elsewhere than it does on training films. A
threshold is a quantile of the training patients' own values, so a flag says «unusual for this
member», not «wrong». How good or bad the usual is, the audit's averages and controls say.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classify.audit.metrics import METRICS
from classify.members import TARGET
from cxr.ledger import ODD, Ledger, csv_line, read_csv
from cxr.rules import require, require_same_settings
from cxr.stats import Figure
from cxr.workdir import Workdir, log, read_json, write_json

Row = dict[str, Any]  # plain values of one row of audit.json: a figure, a control, a comparison
UNKNOWN = -1  # the truth where the film's label says nothing about the member's target
HITS = ("pointing_hit", "finding_hit")
_BY_LUCK = ("lift", "random_lift", "random_sd")
_BETWEEN = " | "  # parts of a cell; no flag, edge or reason may hold it


def figure_cells(found: Figure, value: str = "value", prefix: str = "") -> Row:
    """A figure in a row: under the name `value`, its interval and number under the prefix."""
    ends = {f"{prefix}low": found.low, f"{prefix}high": found.high, f"{prefix}n": found.n}
    return {value: found.value, **ends}


@dataclass(frozen=True)
class AuditRow:
    """One film under one member; `member`, whose TARGET the map explains, is "" in the only row of
    a film that no member saw.

    `status` is ok, or fallback (the box is uncertain), or why no member saw the film; `reason` a
    sentence for a status that is not ok, or for metrics that are missing. `source`, `label` and
    `sublabel` are those of films.csv, "" where unknown; `patient` is safe to group by, the film's
    own name where nothing is known. `lung_by` says who drew the lung field, "human" or "lungfield".
    `truth` is 0, 1, 2 (NORMAL, TARGET, OTHERS) for this member, -1 where unknown; `probabilities`
    are in that order. `field_disagreement` is 1 − IoU of the lung field's box and the thorax box,
    `metrics` those of METRICS, None where not defined; `empty`: the map is 0 everywhere. The lung
    field runs into the film's `cut_edges`. There is one of the `flag_reasons` a flag."""

    film: str
    status: str = "ok"
    reason: str = ""
    source: str = ""
    label: str = ""
    sublabel: str = ""
    patient: str = ""
    member: str = ""
    method: str = ""
    lung_by: str = ""
    truth: int = UNKNOWN
    probabilities: tuple[float, float, float] | None = None
    field_disagreement: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    empty: bool = False
    cut_edges: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    flag_reasons: tuple[str, ...] = ()

    def value(self, name: str) -> float | None:
        """A number of the table (hits are 0 or 1), or one of `_MADE`; None where not defined."""
        if name in _MADE:
            found = _MADE[name](self)
        elif name in _SHARES:
            found = self.probabilities and self.probabilities[_SHARES.index(name)]
        else:
            known = (*_NUMBERS, "empty")
            require(name in known, f"name must be one of {', '.join(known)}", name)
            found = self.metrics.get(name, getattr(self, name, None))
        return None if found is None else float(found)

    @property
    def answer(self) -> int | None:
        """0, 1 or 2: the largest probability; None for a film that no member saw."""
        return self.probabilities and self.probabilities.index(max(self.probabilities))

    @property
    def right(self) -> bool | None:
        """Is the answer the truth? None where either is unknown."""
        unknown = self.answer is None or self.truth == UNKNOWN
        return None if unknown else self.answer == self.truth


def _of(make: Callable[..., float | None], *names: str) -> Callable[[AuditRow], float | None]:
    """What is made of figures, all of which must be known."""

    def made(row: AuditRow) -> float | None:
        values = [row.value(name) for name in names]
        return None if None in values else make(*values)

    return made


_MADE: dict[str, Callable[[AuditRow], float | None]] = {  # figures that no column holds
    "accuracy": lambda row: row.right,
    "auc": lambda row: row.value("p_target"),  # its scores
    # the lift's distance from that of random maps as coarse, in their standard deviations
    "lift_z": _of(lambda z, mean, sd: (z - mean) / sd if sd else None, *_BY_LUCK),
    "lift_over_gaussian": _of(lambda lift, blob: lift - blob, "lift", "gaussian_lift"),
    "lift_answered": lambda row: row.value("lift") if row.answer == TARGET else None,
    "below_chance": _of(lambda lift: lift < 1, "lift"),
    "flagged": lambda row: bool(row.flags),
}
_SHARES = ("p_normal", "p_target", "p_others")
_NUMBERS = (*_SHARES, "field_disagreement", *METRICS)
_TEXTS = tuple(f.name for f in fields(AuditRow) if f.type == "str")
_LISTS = ("cut_edges", "flags", "flag_reasons")
AUDIT_COLUMNS = (*_TEXTS, "truth", *_NUMBERS, "empty", *_LISTS)


class AuditWriter(Ledger[list[AuditRow]]):
    """Appends rows to an audit.csv; `done` holds the rows of an earlier run by film. A film is
    added with all its rows at once, so a film with fewer rows than `members` was cut off by a kill:
    it is dropped, and may be added again. Raises ValueError for a file that is no audit.csv, or has
    a film with more members."""

    def __init__(self, path: str | Path, members: int) -> None:
        self.members = members

        def lines(rows: Sequence[AuditRow]) -> str:
            return "".join(csv_line(_cells(row)) for row in rows)

        super().__init__(path, csv_line(AUDIT_COLUMNS), self._earlier, lines)
        self.drop([f for f, rows in self.done.items() if rows[0].member and len(rows) < members])

    def _earlier(self, path: Path) -> dict[str, list[AuditRow]]:
        found: dict[str, list[AuditRow]] = {}
        for row in read_audit(path):
            found.setdefault(row.film, []).append(row)
        more = [film for film, rows in found.items() if len(rows) > max(1, self.members)]
        if more:
            raise ValueError(
                f"{path} was begun with other members: {more[0]} has "
                f"{len(found[more[0]])} rows, and there are {self.members} members. "
                "Give another folder, or remove the file."
            )
        return found

    def add(self, rows: Sequence[AuditRow]) -> None:
        """Write all rows of one film: one a member, or the only one of a film that none saw. Raises
        ValueError when the film has some already."""
        self.put(rows[0].film, list(rows))


def read_audit(path: str | Path) -> list[AuditRow]:
    """Rows of an audit.csv; raises ValueError naming the line that is wrong."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} must be an audit.csv. It does not exist: make one with "
            "python -m classify.audit RUN"
        )
    seen: set[tuple[str, str]] = set()

    def reader_of(header: tuple[str, ...]) -> Callable[[list[str]], AuditRow]:
        if header != AUDIT_COLUMNS:
            wrong = sorted(set(AUDIT_COLUMNS) ^ set(header))
            raise ValueError(
                f"{path} must have the columns of an audit.csv. Missing or unknown: "
                f"{', '.join(wrong) or 'none, but in another order'}."
            )
        return read

    def read(cells: list[str]) -> AuditRow:
        row = _row(cells)
        if (row.film, row.member) in seen:
            raise ValueError(f"{row.film} stands there twice under {row.member!r}.")
        seen.add((row.film, row.member))
        return row

    return read_csv(path, reader_of, ODD)


def _cells(row: AuditRow) -> list[str]:
    numbers = _finite({name: row.value(name) for name in _NUMBERS})
    lists = [getattr(row, name) for name in _LISTS]
    wrong = [part for parts in lists for part in parts if not part or _BETWEEN in part]
    rule = f"{' and '.join(_LISTS)} of {row.film} must hold words without {_BETWEEN!r}"
    require(not wrong, rule, next(iter(wrong), ""))
    return [
        *(str(getattr(row, name)) for name in (*_TEXTS, "truth")),
        *(
            "" if v is None else f"{v:.0f}" if name in HITS else repr(float(v))
            for name, v in numbers.items()
        ),
        "1" if row.empty else "",
        *(_BETWEEN.join(parts) for parts in lists),
    ]


def _row(texts: Sequence[str]) -> AuditRow:
    width = len(AUDIT_COLUMNS)
    require(len(texts) == width, f"a row must have {width} cells", len(texts))
    cells: dict[str, Any] = dict(zip(AUDIT_COLUMNS, texts, strict=True))
    numbers = _finite({name: float(cells[name]) if cells[name] else None for name in _NUMBERS})
    numbers |= {name: bool(numbers[name]) for name in HITS if numbers[name] is not None}
    shares = tuple(numbers[name] for name in _SHARES)
    parts = {name: tuple(cells[name].split(_BETWEEN)) if cells[name] else () for name in _LISTS}
    plain: dict[str, Any] = {**{name: cells[name] for name in _TEXTS}, **parts}
    return AuditRow(
        truth=int(cells["truth"]),
        probabilities=None if None in shares else shares,
        field_disagreement=numbers["field_disagreement"],
        metrics={name: numbers[name] for name in METRICS},
        empty=cells["empty"] == "1",
        **plain,
    )


def _finite(numbers: Row) -> Row:
    for name, value in numbers.items():
        holds = value is None or math.isfinite(value)
        require(holds, f"{name} must be finite, or missing", value)
    return numbers


_BESIDE = ("films.jsonl", "controls.json")  # of no use without rows
_FILES = ("audit.csv", "audit.json", "compare.md", "report.html", "report.pdf", "run.json")
_STAMPS = "made_with"


def check_resumable(workdir: Workdir, settings: Mapping[str, Any], restart: bool) -> None:
    """Drop an earlier audit with `restart`; raises ValueError when it had other settings. What it
    did not record is not held against it."""
    rows, record = workdir / "audit.csv", workdir / "run.json"
    begun = rows.exists() and len(rows.read_bytes().splitlines()) > 1  # more than its header
    for name in (*_BESIDE, *_FILES) if restart else () if begun else _BESIDE:
        (workdir / name).unlink(missing_ok=True)
    if restart or not begun:
        return
    try:
        old = dict(read_json(record)["settings"])
    except (OSError, ValueError, KeyError, TypeError):  # none are recorded
        old = {}
    new = json.loads(json.dumps(settings))
    require_same_settings(workdir.path, old, {k: v for k, v in new.items() if k in (old or new)})


class ControlResults:
    """controls.json: the results of the controls, each with what it was made with. A control is
    done once for the same films and options. Those of other films are dropped, as they say nothing
    of these; other options count only where the control is wanted again."""

    def __init__(self, path: Path, films: Iterable[str], options: Mapping[str, Any]) -> None:
        self.path, self.options = path, dict(options)
        names = "\n".join(sorted(films)).encode("utf-8", "surrogatepass")
        self.films = hashlib.sha256(names).hexdigest()
        try:
            read = dict(read_json(path)) if path.exists() else {}
            stamps = dict(read.pop(_STAMPS, {}))
            self._stamps = {k: stamp for k, stamp in stamps.items() if stamp["films"] == self.films}
            kept = {key for stamp in self._stamps.values() for key in stamp["keys"]}
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged: its controls are left out", path)
            read, kept, self._stamps = {}, set(), {}
        self.found: dict[str, Any] = {key: value for key, value in read.items() if key in kept}
        if len(self.found) < len(read):
            log.info("controls of other films than these are left out")

    def missing(self, wanted: Sequence[str]) -> list[str]:
        """Those of the controls that have not been done in this way."""
        return [n for n in wanted if self._stamps.get(n, {}).get("options") != self.options]

    def add(self, name: str, results: Mapping[str, Any]) -> None:
        """Store what a control found, atomically with what was there."""
        self._stamps[name] = {"films": self.films, "options": self.options, "keys": [*results]}
        self.found |= results
        write_json(self.path, {**self.found, _STAMPS: self._stamps})


# --- flags

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
    """Where flags begin, `by_member` and by metric of BOUNDS; None for too few training films. They
    are of one saliency method: another one's maps are spread otherwise. `tail` is the share of the
    training films on the worse side, `members` holds the SHA-256 of each one's file."""

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
    """Quantiles of the rows of training films; empty maps and missing values are left out. Raises
    ValueError for rows of several methods, or too few films for any threshold."""
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
    """Flags, and a sentence for each, of a film under a member. An empty map is flagged without
    thresholds too. A missing lung field disagrees with any box: field_disagreement is 1 then."""
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
