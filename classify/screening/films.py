"""Films for the screener: members' logits from predictions.csv, joined with the truth; and what a
screener did to them: the 2×2 table and its shares, by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.table import Table

from classify.predictions import read_predictions
from cxr.cli import Several
from cxr.data_folders import DataFolders
from cxr.films_table import FilmNames, FilmRow, is_abnormal, is_among, tell_unknown, why_unknown
from cxr.split import Split
from cxr.stats import auc, exact_interval


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

        Raises ValueError when no film is left.
        """
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
        return replace(
            self,
            logits=self.logits[chosen],
            abnormal=self.abnormal[chosen],
            patients=[self.patients[i] for i in chosen],
            sources=[self.sources[i] for i in chosen],
            films=[self.films[i] for i in chosen],
            views=[self.views[i] for i in chosen] if self.views else [],
            left_out=left_out,
        )

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
            truth = _match(row.film, table, names)
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


def _match(film: str, table: dict[str, FilmRow], names: FilmNames) -> FilmRow | None:
    parts = PurePosixPath(film.replace("\\", "/")).parts
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    found = next((end for end in ends if end in table), None) or names.find(film)
    return None if found is None else table[found]


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
