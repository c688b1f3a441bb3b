"""What calibration films prove about a screener: exact binomial bounds, and the operating point.

Clopper and Pearson (1934) give the bounds. The choice of the threshold needs no correction for
having looked at many: it is a fixed-sequence test (Learn then Test, Angelopoulos et al. 2021,
arXiv 2110.01052). All thresholds are tested from 0 upward and the first that fails ends the test.
As misses only grow with the threshold, the last that passes is an order statistic whose rank
depends on the number of patients alone, which is Wilks' distribution-free tolerance limit (1941).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cxr.rules import require
from cxr.stats import lower_bound


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
    """A film is cleared when its abnormal score lies *below* `threshold`.

    `proven_sensitivity` holds at `confidence` for patients like those of the calibration films;
    it equals `wanted_sensitivity` where that is proven, and is what no miss proves where not.
    """

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
    """The largest share cleared whose sensitivity the calibration films prove.

    Args:
        scores: (N,) abnormal scores of calibration films, whose patients were fitted on nowhere.
        is_abnormal: (N,) truth of each film.
        patients: N patient ids. A patient is missed when *any* of their abnormal films is cleared,
            and counts once: films of one patient are no independent proof.
        sensitivity: what is to be proven.
        confidence: of the proof.

    Where the patients are too few, the threshold is the largest without a miss, and the point says
    so and what that proves. Raises ValueError without abnormal films or with non-finite scores.
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
