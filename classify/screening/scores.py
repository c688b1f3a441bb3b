"""Abnormal scores: a calibrated SVM out of its skops file, by NumPy alone, and scores of several
networks on one scale: the share of normal films that look more normal (docs/training.md says why).

Loading the SVM through skops imports all of scikit-learn, which takes longer than a run over ten
films. Only numbers are read from the file: nothing in it can run.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr.rules import require

FEWEST = 30  # normal films that a scale is made of
_STEPS = ("StandardScaler", "SVC")


@dataclass(frozen=True, eq=False)
class CalibratedSvm:
    """Standardise (mean, scale: (F,)), an SVM with an RBF kernel (vectors (S, F), their weights
    (S,), bias, gamma), then a sigmoid of its value: 1 / (1 + exp(slope · value + offset))."""

    mean: np.ndarray
    scale: np.ndarray
    vectors: np.ndarray
    weights: np.ndarray
    bias: float
    gamma: float
    slope: float
    offset: float

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """(N, F) to (N, 2): the probabilities of normal and abnormal, each row by itself."""
        scaled = (np.asarray(features, dtype=np.float64) - self.mean) / self.scale
        distances = np.square(scaled[:, None] - self.vectors).sum(axis=-1)
        values = (np.exp(-self.gamma * distances) * self.weights).sum(axis=-1) + self.bias
        normal = 1 - 1 / (1 + np.exp(self.slope * values + self.offset))
        return np.stack([normal, 1 - normal], axis=1)

    @classmethod
    def read(cls, data: bytes, name: str) -> CalibratedSvm:
        """From the bytes of a skops file; raises ValueError for one that holds anything else than
        scikit-learn's calibrated pipeline of StandardScaler and SVC. `name` is told then."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                schema = json.loads(archive.read("schema.json"))
                kind, model = _Reader(archive).read(schema)
            ((_, calibrated),) = model["calibrated_classifiers_"]
            ((_, sigmoid),) = calibrated["calibrators"]
            kinds, (scaler, svm) = zip(
                *(step for _, step in calibrated["estimator"][1]["steps"]), strict=True
            )
            if kind != "CalibratedClassifierCV" or kinds != _STEPS or svm["kernel"] != "rbf":
                raise ValueError(f"it holds {kind} of {', '.join(kinds)}")
            return cls(
                scaler["mean_"],
                scaler["scale_"],
                svm["support_vectors_"],
                -svm["_dual_coef_"][0],  # of two classes scikit-learn keeps them with libsvm's sign
                float(-svm["_intercept_"][0]),
                float(svm["_gamma"]),
                float(sigmoid["a_"]),
                float(sigmoid["b_"]),
            )
        except (ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{name} must hold a calibrated SVM of python -m classify.screener fit. {error}"
            ) from error


class _Reader:
    """skops' tree of nodes as plain values; an object is its class's name and its attributes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._known: dict[Any, Any] = {}

    def read(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        number, content = node.get("__id__"), node.get("content")
        if node["__loader__"] == "CachedNode":
            return self._known.get(number)
        value = self._value(node, content)
        if number is not None:
            self._known[number] = value
        return value

    def _value(self, node: dict[str, Any], content: Any) -> Any:
        loader = node["__loader__"]
        if loader == "ObjectNode":
            return node["__class__"], self.read(content) or {}
        if loader == "DictNode":
            return {key: self.read(value) for key, value in content.items()}
        if loader in ("ListNode", "TupleNode"):
            return [self.read(value) for value in content]
        if loader == "JsonNode":
            return json.loads(content)
        if loader == "NdArrayNode" and node["type"] == "numpy":
            return np.load(io.BytesIO(self._archive.read(node["file"])), allow_pickle=False)
        return None  # nothing that a prediction needs


def rank(scores: np.ndarray, normal_scores: np.ndarray) -> np.ndarray:
    """(N,) the share of the normal films' scores (M,) that lie below each of the scores (N,)."""
    return np.searchsorted(np.sort(normal_scores), scores, side="left") / len(normal_scores)


def rank_by_network(scores: np.ndarray, networks: Sequence[str], normal: np.ndarray) -> np.ndarray:
    """(N,) each film's rank among the normal films (of `normal`, (N,) bool) that the same network
    answered; `networks` says which that was. Raises ValueError for a network with fewer than 30
    normal films."""
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
