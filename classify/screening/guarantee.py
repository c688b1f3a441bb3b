"""Films for the screener (members' logits from predictions.csv, joined with the truth), what those
of the calibration prove about it (exact binomial bounds, and the operating point), and what it did
to films: the 2×2 table and its shares, by source.

Clopper and Pearson (1934) give the bounds. The choice of the threshold needs no correction for
having looked at many: it is a fixed-sequence test (Learn then Test, Angelopoulos et al. 2021,
arXiv 2110.01052). All thresholds are tested from 0 upward and the first that fails ends the test.
As misses only grow with the threshold, the last that passes is an order statistic whose rank
depends on the number of patients alone, which is Wilks' distribution-free tolerance limit (1941).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.table import Table

from classify.predictions import read_predictions
from cxr.cli import Several
from cxr.data_folders import DataFolders
from cxr.films_table import FilmNames, FilmRow, is_abnormal, is_among, tell_unknown, why_unknown
from cxr.rules import require
from cxr.split import Split
from cxr.stats import auc, exact_interval, lower_bound


def films_needed(sensitivity: float, confidence: float) -> int:
    """Fewest abnormal patients that prove the sensitivity when none is missed (0.99, 0.95: 299)."""
    check_shares(sensitivity, confidence)
    return int(np.ceil(np.log(1 - confidence) / np.log(sensitivity)))


def misses_allowed(total: int, sensitivity: float, confidence: float) -> int:
    """Most misses among `total` that still prove the sensitivity; -1 when even none does not."""
    check_shares(sensitivity, confidence)
    misses = -1
    while misses + 1 < total and lower_bound(total - misses - 1, total, confidence) >= sensitivity:
        misses += 1
    return misses


@dataclass(frozen=True)
class OperatingPoint:
    """A film is cleared when its abnormal score lies *below* `threshold`. `proven_sensitivity`
    holds at `confidence` for patients like those of the calibration films; it equals
    `wanted_sensitivity` where that is proven, and is what no miss proves where not."""

    threshold: float
    wanted_sensitivity: float
    confidence: float
    proven: bool
    proven_sensitivity: float
    abnormal_patients: int
    missed_patients: int
    needed: int
    share_cleared: float

    def sentence(self) -> str:
        """The guarantee in plain words."""
        sure = f"{percent(self.confidence)} confidence"
        if self.proven:
            return (
                f"proven: at least {percent(self.proven_sensitivity)} of patients with an abnormal "
                f"film are kept for reading, at {sure} ({self.missed_patients} of "
                f"{self.abnormal_patients} abnormal calibration patients cleared)."
            )
        return (
            f"not proven: {self.needed} abnormal films needed, {self.abnormal_patients} given (one "
            f"a patient) for a sensitivity of {percent(self.wanted_sensitivity)} at {sure}. "
            f"What is proven: at least {percent(self.proven_sensitivity)} "
            f"(no miss in {self.abnormal_patients})."
        )

    def to_dict(self) -> dict[str, Any]:
        """For screener.json."""
        return asdict(self)


def choose_operating_point(
    scores: np.ndarray,
    is_abnormal: np.ndarray,
    patients: Sequence[str],
    sensitivity: float = 0.99,
    confidence: float = 0.95,
) -> OperatingPoint:
    """The largest share cleared whose sensitivity the calibration films prove at this confidence: N
    films, whose patients were fitted on nowhere, with their abnormal scores and truths.

    A patient is missed when *any* of their abnormal films is cleared, and counts once: films of one
    patient are no independent proof. Where the patients are too few, the threshold is the largest
    without a miss, and the point says so and what that proves. Raises ValueError without abnormal
    films or with non-finite scores.
    """
    scores = np.asarray(scores, dtype=np.float64)
    abnormal = np.asarray(is_abnormal, dtype=bool)
    if not np.isfinite(scores).all():
        raise ValueError("scores of choose_operating_point must be finite. Got nan or inf instead.")
    lowest: dict[str, float] = {}
    for patient, score, sick in zip(patients, scores, abnormal, strict=True):
        if sick:
            lowest[patient] = min(score, lowest.get(patient, np.inf))
    if not lowest:
        raise ValueError(
            "is_abnormal of choose_operating_point must hold an abnormal film: without one nothing "
            "can be proven. Got none instead; check the labels and the calibration part."
        )
    ordered = np.sort(np.array(list(lowest.values())))
    n = len(ordered)
    allowed = misses_allowed(n, sensitivity, confidence)
    threshold = float(ordered[max(allowed, 0)])
    proven = allowed >= 0
    return OperatingPoint(
        threshold=threshold,
        wanted_sensitivity=sensitivity,
        confidence=confidence,
        proven=proven,
        proven_sensitivity=sensitivity if proven else lower_bound(n, n, confidence),
        abnormal_patients=n,
        missed_patients=int((ordered < threshold).sum()),
        needed=films_needed(sensitivity, confidence),
        share_cleared=float((scores < threshold).mean()),
    )


def percent(share: float) -> str:
    """0.99 as '99 %', 0.9876 as '98.7 %': rounded down, so that a proof is never overstated."""
    tenths = np.floor(share * 1000 + 1e-9) / 10
    return f"{tenths:g} %"


def check_shares(sensitivity: float, confidence: float) -> None:
    """Raise ValueError where one of them does not lie between 0 and 1."""
    for name, value in (("sensitivity", sensitivity), ("confidence", confidence)):
        require(0 < value < 1, f"{name} must lie between 0 and 1, both excluded", value)


@dataclass(frozen=True)
class ScreeningFilms:
    """N classified films: logits (N, M, 3) of the members `targets`, truth and who they are of."""

    targets: tuple[str, ...]
    logits: np.ndarray
    abnormal: np.ndarray  # (N,) bool
    patients: list[str]
    sources: list[str]
    films: list[str]
    left_out: dict[str, int] = field(default_factory=dict)
    views: list[str] = field(default_factory=list)  # as films.csv has them: PA, AP; none known: []

    def of_parts(self, split: str | Path, parts: Sequence[str]) -> ScreeningFilms:
        """The films whose patients are in these parts of the split, counting what is left out.
        Raises ValueError when no film is left."""
        part_of = Split.load(split).part_of
        chosen = [i for i, p in enumerate(self.patients) if part_of.get(p) in parts]
        if not chosen:
            raise ValueError(
                f"parts {', '.join(parts)} of {split} must hold patients of the predictions. "
                "Got none instead: is it the split that the members were trained with?"
            )
        strangers = sum(p not in part_of for p in self.patients)
        left_out = dict(self.left_out)
        if strangers:
            left_out["patient not in the split"] = strangers
        lists = ["patients", "sources", "films", *(["views"] if self.views else [])]
        kept: Any = {name: [getattr(self, name)[i] for i in chosen] for name in lists}
        kept |= {"logits": self.logits[chosen], "abnormal": self.abnormal[chosen]}
        return replace(self, **kept, left_out=left_out)

    def count_by_source(self) -> dict[str, int]:
        """Films of each source."""
        return dict(sorted(Counter(self.sources).items()))


def read_screening_films(
    predictions: Sequence[str | Path],
    labels: Several | Path,
    normal: str = "normal",
    sources: Sequence[str] = (),
) -> ScreeningFilms:
    """Films of one or more predictions.csv that have logits, a box (`ok`) and a known truth.

    A film that is never cleared (status `fallback`, or a doubt about it) neither proves nor teaches
    anything here.
    Films are matched to films.csv by the longest end of their path that stands there, else by
    `cxr.films_table`. Raises ValueError when the runs have different members or no film is left.
    """
    tables = [Path(p) for p in ([labels] if isinstance(labels, str | Path) else labels)]
    listed = DataFolders([path.parent for path in tables]).rows_of(tables)
    table, told = {row.image: row for row in listed}, ", ".join(map(str, tables))
    names = FilmNames(table)
    out: Counter[str] = Counter()
    kept: dict[str, tuple[FilmRow, np.ndarray]] = {}
    unsure: list[FilmRow] = []
    targets: tuple[str, ...] = ()
    for path in predictions:
        found, rows = read_predictions(path)
        if targets and found != targets:
            raise ValueError(
                f"predictions must all come from the same members. {path} has "
                f"{', '.join(found)}, another has {', '.join(targets)}."
            )
        targets = found
        for row in rows:
            parts = PurePosixPath(row.film.replace("\\", "/")).parts
            ends = ("/".join(parts[start:]) for start in range(len(parts)))
            name = next((end for end in ends if end in table), None) or names.find(row.film)
            truth = None if name is None else table[name]
            if row.logits is None or row.status != "ok":
                out[f"status {row.status}"] += 1
            elif row.doubt:
                out["never cleared: see column doubt"] += 1
            elif not row.complete:
                out["not judged by all members"] += 1
            elif truth is None:
                out["not in the labels"] += 1
            elif sources and not is_among(truth.source, sources):
                out["another source"] += 1
            elif unknown := why_unknown(truth, targets, normal):
                out[unknown] += 1
                unsure.append(truth)
            elif truth.image in kept:
                out["film given twice"] += 1
            else:
                kept[truth.image] = (truth, np.asarray(row.logits, dtype=np.float64))
    tell_unknown(unsure, told, targets, normal)
    if not kept:
        raise ValueError(
            f"predictions and {told} must have films in common. "
            f"Left out: {dict(out) or 'no row at all'}."
        )
    truths = [truth for truth, _ in kept.values()]
    return ScreeningFilms(
        targets,
        np.stack([logits.reshape(len(targets), 3) for _, logits in kept.values()]),
        np.array([is_abnormal(t, targets, normal) for t in truths], dtype=bool),
        [t.patient_id for t in truths],
        [t.source for t in truths],
        [t.image for t in truths],
        dict(out),
        [t.view for t in truths],
    )


def screening_table(is_abnormal: np.ndarray, is_cleared: np.ndarray) -> dict[str, int]:
    """The 2×2 table in the thesis' form, from (N,) truths and (N,) decisions."""
    sick, cleared = np.asarray(is_abnormal, bool), np.asarray(is_cleared, bool)
    sides = {"abnormal": sick, "normal": ~sick}
    ends = {"kept": ~cleared, "cleared": cleared}
    return {
        f"{k}_{e}": int((own & gone).sum()) for k, own in sides.items() for e, gone in ends.items()
    }


def shares_of(
    table: Mapping[str, int], confidence: float = 0.95
) -> dict[str, dict[str, float | int | None]]:
    """Sensitivity, specificity, NPV and share cleared of a 2×2 table: hits, total, value and exact
    interval. The value is None where nothing was there to count."""
    a, b, c, d = (table[f"{k}_{e}"] for k in ("abnormal", "normal") for e in ("kept", "cleared"))
    counts = {
        "sensitivity": (a, a + b),
        "specificity": (d, c + d),
        "npv": (d, b + d),
        "share_cleared": (b + d, a + b + c + d),
    }
    figures: dict[str, dict[str, float | int | None]] = {}
    for name, (hits, total) in counts.items():
        low, high = exact_interval(hits, total, confidence)
        value = hits / total if total else None
        figures[name] = {"hits": hits, "total": total, "value": value, "low": low, "high": high}
    return figures


def figures_by_source(
    films: ScreeningFilms, scores: np.ndarray, is_cleared: np.ndarray
) -> dict[str, Any]:
    """For each source, for `all` where there are several, and for each view of a source that has
    several: the 2×2 table of films, shares with exact intervals, AUROC of the (N,) scores, and the
    patients of whom an abnormal film was cleared."""
    cleared = np.asarray(is_cleared, dtype=bool)
    groups = {s: np.array(films.sources) == s for s in sorted(set(films.sources))}
    if len(groups) != 1:
        groups["all"] = np.ones(len(cleared), dtype=bool)
    views = np.array(films.views or [""] * len(cleared))
    for source, rows in list(groups.items()):
        own = sorted({v for v in views[rows] if v})
        if len(own) > 1 and source in films.sources:
            groups |= {f"{source} {view}": rows & (views == view) for view in own}
    report: dict[str, Any] = {}
    for name, rows in groups.items():
        sick, gone = films.abnormal[rows], cleared[rows]
        patients = np.array(films.patients, dtype=object)[rows]
        both = 0 < sick.sum() < len(sick)
        table = screening_table(sick, gone)
        report[name] = {
            "table": table,
            **shares_of(table),
            "abnormal_patients": len(set(patients[sick])),
            "missed_patients": len(set(patients[sick & gone])),
            "auroc": auc(scores[rows], sick) if both else None,
        }
    return report


def to_rich_table(name: str, figures: dict[str, Any]) -> Table:
    """One source's 2×2 table in the thesis' form, with the shares in its caption."""
    labels = {
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "npv": "NPV",
        "share_cleared": "cleared",
    }
    lines = [f"{label} {_share(figures[key])}" for key, label in labels.items()]
    lines.append(f"patients missed {figures['missed_patients']}/{figures['abnormal_patients']}")
    table = Table(title=name, caption="\n".join(lines))
    for column in ("", "kept", "cleared", "films"):
        table.add_column(column, justify="right" if column else "left")
    for row in ("abnormal", "normal"):
        kept, gone = (figures["table"][f"{row}_{column}"] for column in ("kept", "cleared"))
        table.add_row(row, str(kept), str(gone), str(kept + gone))
    return table


def _share(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "— (no film)"
    return (
        f"{figure['value']:.3f} [{figure['low']:.3f}–{figure['high']:.3f}] "
        f"({figure['hits']}/{figure['total']})"
    )
