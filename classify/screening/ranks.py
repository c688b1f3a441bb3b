"""Scores of several networks on one scale: the share of normal films that look more normal.

Each network that is trained has a scale of its own, so that a threshold on the scores of one says
little about another's, even where both were trained alike. The rank among normal films which the
network was not trained on means the same for all of them: a rule «clear what looks more normal than
all but a third of normal films» can be tried on the folds of `classify.crossfit`, network by
network, and then be laid on the scale of the ensemble that is shipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxr.rules import require

FEWEST = 30  # normal films that a scale is made of


def rank(scores: np.ndarray, normal_scores: np.ndarray) -> np.ndarray:
    """(N,) the share of the normal films' scores (M,) that lie below each of the scores (N,)."""
    return np.searchsorted(np.sort(normal_scores), scores, side="left") / len(normal_scores)


def rank_by_network(scores: np.ndarray, networks: Sequence[str], normal: np.ndarray) -> np.ndarray:
    """(N,) each film's rank among the normal films that the same network answered.

    Args:
        scores: (N,) abnormal scores.
        networks: N names: which network answered.
        normal: (N,) bool: the films that make the scales.

    Raises ValueError for a network with fewer than 30 normal films.
    """
    by, out = np.array(networks, dtype=object), np.zeros(len(scores))
    for name in dict.fromkeys(networks):
        own = by == name
        _require_normals(int((own & normal).sum()), f"the network {name}")
        out[own] = rank(scores[own], scores[own & normal])
    return out


def lay_on(threshold: float, normal_scores: np.ndarray) -> float:
    """The score below which a film has a rank below `threshold` among normal films (M,) of another
    network; raises ValueError for fewer than 30."""
    _require_normals(len(normal_scores), "the ensemble itself")
    most = int(np.ceil(threshold * len(normal_scores) - 1e-9)) - 1  # so many may lie below it
    return float(np.sort(normal_scores)[min(max(most, 0), len(normal_scores) - 1)])


def _require_normals(films: int, whose: str) -> None:
    rule = f"normal calibration films that {whose} was not trained on must be {FEWEST} at least"
    require(films >= FEWEST, rule, films)
