"""What a screener did to films whose truth is known: the 2×2 table and its shares, by source."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from classify.screening.films import ScreeningFilms
from cxr.stats import auc, exact_interval


@dataclass(frozen=True)
class ScreeningTable:
    """The 2×2 table in the thesis' form. Rows: abnormal, normal; columns: kept, cleared."""

    abnormal_kept: int
    abnormal_cleared: int
    normal_kept: int
    normal_cleared: int

    @classmethod
    def of(cls, is_abnormal: np.ndarray, is_cleared: np.ndarray) -> ScreeningTable:
        """Counts from (N,) truths and (N,) decisions."""
        sick, cleared = np.asarray(is_abnormal, bool), np.asarray(is_cleared, bool)
        return cls(
            int((sick & ~cleared).sum()),
            int((sick & cleared).sum()),
            int((~sick & ~cleared).sum()),
            int((~sick & cleared).sum()),
        )

    def figures(self, confidence: float = 0.95) -> dict[str, dict[str, float | int | None]]:
        """Sensitivity, specificity, NPV and share cleared: hits, total, value and exact interval.

        The value is None where nothing was there to count.
        """
        a, b = self.abnormal_kept, self.abnormal_cleared
        c, d = self.normal_kept, self.normal_cleared
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
    """For each source, and for `all` where there are several: the 2×2 table of films, shares with
    exact intervals, AUROC of the (N,) scores, and the patients of whom an abnormal film was
    cleared."""
    cleared = np.asarray(is_cleared, dtype=bool)
    groups = {s: np.array(films.sources) == s for s in sorted(set(films.sources))}
    if len(groups) != 1:
        groups["all"] = np.ones(len(cleared), dtype=bool)
    report: dict[str, Any] = {}
    for name, rows in groups.items():
        sick, gone = films.abnormal[rows], cleared[rows]
        patients = np.array(films.patients, dtype=object)[rows]
        both = 0 < sick.sum() < len(sick)
        table = ScreeningTable.of(sick, gone)
        report[name] = {
            "table": asdict(table),
            **table.figures(),
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
