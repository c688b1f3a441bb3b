"""Why a film must be read, whatever its members say of it, and how soon: its risk tier, from which
members found their target on it.

The tiers are Kim's thesis': thirteen diseases in three of them. Which disease is in which tier is
configuration (configs/classify/tiers.yaml), not code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from classify.members import TARGET
from cxr.notes import code_of
from cxr.rules import require
from cxr.stats import softmax

TIERS = ("critical", "urgent", "non_urgent", "untiered")  # the most pressing first
# notes of films that clearing was not proven on: seen from elsewhere, or no finished picture
NOTED = {
    "lay_turned": "the film lay turned",
    "mirrored": "the film may be mirrored",
    "for_processing": "the film is raw detector data (FOR PROCESSING)",
}
FINE_APART = 0.25  # detect.finder.PairRule's, for a detector that no rule was chosen for


def doubts_of(film: Any, fine_apart: float = FINE_APART) -> list[str]:
    """What speaks against clearing the film (an Item, or a row of the crops' manifest: `status`,
    `notes` and `apart` of its box), in words; none for a film that may be cleared.
    `fine_apart` is the 1 − IoU of the thorax box's two opinions from which on they disagree: the
    detector's `lone_apart` (detect.finder.PairRule)."""
    found = [] if film.status == "ok" else ["no thorax box is sure enough"]
    codes = {code_of(text) for text in film.notes}
    found += [why for code, why in NOTED.items() if code in codes]
    if film.apart is not None and film.apart > fine_apart:
        found.append(
            f"the two opinions on its thorax box differ by {film.apart:.4g} (1 − IoU), more than "
            f"{fine_apart:.4g}"
        )
    return found


def of_other_age(child: bool | None, patients: str) -> str:
    """The doubt about a film whose patient's age is known, and other than that of the `patients`
    (children, adults) that an ensemble is for; "" where either is not known."""
    if child is None or not patients or child == (patients == "children"):
        return ""
    return f"the patient is {'a child' if child else 'an adult'}, and the ensemble for {patients}"


def unlike(far: float) -> str:
    """The doubt about a film whose distance is `far` times what the guard allows; "" up to 1."""
    if far <= 1:  # not so for NaN
        return ""
    return f"the film is unlike those of the calibration: its distance is {far:.3f}, 1 is allowed"


@dataclass(frozen=True)
class RiskRow:
    """One tier or disease of `risk_table`. `kept` of its `films` were kept for reading by the
    screener; on `found` its own member (for a tier: any member of that tier) said target."""

    tier: str
    disease: str
    films: int
    kept: int
    found: int


def read_tiers(path: str | Path) -> dict[str, str]:
    """Target → tier from a YAML file with lists of targets under `tiers`; raises ValueError."""
    data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    groups = data.get("tiers") if isinstance(data, dict) else None
    if not isinstance(groups, dict):
        raise ValueError(
            f"{path} must hold `tiers:` with lists of targets under {', '.join(TIERS)}."
        )
    tiers: dict[str, str] = {}
    for tier, targets in groups.items():
        require(tier in TIERS, f"tiers of {path} must be among {', '.join(TIERS)}", tier)
        for target in targets or []:
            if target in tiers:
                raise ValueError(
                    f"{path}: {target} must be in one tier. Got {tiers[target]} and {tier}."
                )
            tiers[str(target)] = tier
    return tiers


def found_targets(logits: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """(N, M, 3) logits to (N, M) bool: which member says target. By the largest of the three
    logits, or, with a `threshold`, by the target's probability."""
    logits = np.asarray(logits)
    if threshold is None:
        return np.asarray(logits.argmax(axis=-1) == TARGET)
    return softmax(logits)[..., TARGET] >= threshold


def film_tiers(
    logits: np.ndarray,
    targets: Sequence[str],
    tiers: Mapping[str, str],
    threshold: float | None = None,
) -> list[str]:
    """The most pressing tier among the targets found on each of N films; "" where none was. A
    target that no tier names counts as `untiered`."""
    ranks = np.array([TIERS.index(tiers.get(t, "untiered")) for t in targets], dtype=int)
    found = found_targets(logits, threshold)
    return [TIERS[ranks[row].min()] if row.any() else "" for row in found]


def risk_table(
    logits: np.ndarray,
    is_kept: np.ndarray,
    diseases: Sequence[frozenset[str]],
    targets: Sequence[str],
    tiers: Mapping[str, str],
    threshold: float | None = None,
) -> list[RiskRow]:
    """The thesis' table: a row for each tier, then for each of its diseases. `logits` (N, M, 3) are
    those of the M members, in the order of `targets`; `is_kept` (N,) says which films the screener
    kept for reading; `diseases` are the true ones of each film, which counts in the most pressing
    tier it has. `threshold`: as in `found_targets`."""
    kept = np.asarray(is_kept, dtype=bool)
    found = found_targets(logits, threshold)
    rank = {t: TIERS.index(tiers.get(t, "untiered")) for t in targets}
    worst = [min((rank[d] for d in film if d in rank), default=-1) for film in diseases]
    rows: list[RiskRow] = []
    for number, tier in enumerate(TIERS):
        members = [i for i, t in enumerate(targets) if rank[t] == number]
        if not members:
            continue
        here = np.array([w == number for w in worst], dtype=bool)
        kinds = [("", here, found[:, members].any(axis=1))]
        for i in members:
            has = np.array([targets[i] in film for film in diseases], dtype=bool)
            kinds.append((targets[i], has, found[:, i]))
        rows += [
            RiskRow(tier, disease, int(has.sum()), int((has & kept).sum()), int((has & said).sum()))
            for disease, has, said in kinds
        ]
    return rows
