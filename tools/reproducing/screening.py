"""An ensemble's screener for a table: what it keeps for reading, and what is found, by tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from classify.films import Case
from classify.screener import CLEARED, FitConfig, calibrate, fit_screener
from classify.screening.films import ScreeningFilms
from classify.screening.tiers import risk_table
from cxr.films_table import has_disease
from cxr.stats import Figure, share_figure
from cxr.workdir import write_json


@dataclass(frozen=True)
class ScreenJob:
    """Members' logits (N, M, 3) of the films of the parts val, calibration and test.

    `tiers`: tier → targets; `out` holds the members' bundles and takes the screener.
    """

    out: Path
    targets: tuple[str, ...]
    tiers: Mapping[str, Sequence[str]]
    cases: Mapping[str, Sequence[Case]]
    logits: Mapping[str, np.ndarray]
    seed: int = 0
    draws: int = 1000

    def films(self, part: str) -> ScreeningFilms:
        """The films of a part as the screener takes them."""
        rows = [case.row for case in self.cases[part]]
        return ScreeningFilms(
            self.targets,
            np.asarray(self.logits[part], dtype=np.float64),
            np.array([row.label != "normal" for row in rows], dtype=bool),
            [row.patient_id for row in rows],
            [row.source for row in rows],
            [row.image for row in rows],
        )


def screen_films(
    job: ScreenJob, sensitivity: float = 0.99, confidence: float = 0.95, folds: int = 5
) -> dict[str, Figure]:
    """Fit on val, fix the operating point on calibration, measure on test; leaves screener.skops,
    screener.json and risk.json.

    Returns kept.TIER, found.TIER, the same for each target, and kept.normal: the share of films
    kept for reading, and of those on which the member (of a tier, any of it) said target. A film
    counts in the most pressing tier it has. Raises ValueError for too few patients.
    """
    settings = FitConfig(
        ("the members' own logits",),
        ensemble=job.out,
        sensitivity=sensitivity,
        confidence=confidence,
        folds=folds,
        seed=job.seed,
    )
    fitted, calibration = job.films("val"), job.films("calibration")
    meta = {
        "fit_films_by_source": fitted.count_by_source(),
        "calibration_films_by_source": calibration.count_by_source(),
    }
    screener = calibrate(fit_screener(fitted, settings), calibration, settings, meta)
    tested = job.films("test")
    kept = np.array([d != CLEARED for d in screener.decide(tested.logits)[1]], dtype=bool)
    return _figures(job, tested, kept)


def _figures(job: ScreenJob, tested: ScreeningFilms, kept: np.ndarray) -> dict[str, Figure]:
    tier_of = {target: tier for tier, targets in job.tiers.items() for target in targets}
    diseases = [
        frozenset(t for t in job.targets if has_disease(case.row, [t]))
        for case in job.cases["test"]
    ]
    table = risk_table(tested.logits, kept, diseases, job.targets, tier_of)
    write_json(job.out / "risk.json", [asdict(row) for row in table])
    # film by film the table says who counts where: an interval by patient needs to know
    films = [
        risk_table(tested.logits[[i]], kept[[i]], [diseases[i]], job.targets, tier_of)
        for i in range(len(diseases))
    ]
    figures = {}
    for n, row in enumerate(table):
        among = [i for i, rows in enumerate(films) if rows[n].films]
        name = row.disease or row.tier
        for what in ("kept", "found"):
            hits = [bool(getattr(films[i][n], what)) for i in among]
            figures[f"{what}.{name}"] = _share(job, tested, among, hits)
    normal = [int(i) for i in np.flatnonzero(~tested.abnormal)]
    figures["kept.normal"] = _share(job, tested, normal, [bool(kept[i]) for i in normal])
    return figures


def _share(
    job: ScreenJob, films: ScreeningFilms, among: Sequence[int], hits: Sequence[bool]
) -> Figure:
    patients = [films.patients[i] for i in among]
    return share_figure(hits, patients, job.draws, job.seed)
