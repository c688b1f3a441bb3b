"""The films on which features are chosen and judged: their pooled maps, labels and patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from classify.features.iscore import MOST_FEATURES, SPLITS
from classify.models.backbones import Backbone
from classify.saliency.hooks import left_as_found, on_device_of

Array = np.ndarray


@dataclass(frozen=True)
class SelectConfig:
    """How features are chosen.

    Args:
        split: median, or kmeans (two clusters): where a feature is cut in two.
        start: features of a random starting set. Its 2^start cells should hold films still: 8 for
            700 films.
        subsets: random starting sets. Two of F features stand together in one of them with
            probability start · (start − 1) / (F · (F − 1)), so that few sets miss interactions.
        counts: numbers of kept features to try; empty doubles from 1 on, up to all.
        penalty: inverse strength C of the regression's L2 penalty, on standardised features.
        permutations: times that labels are dealt out anew among patients, to learn which scores
            chance gives; 0 goes without.
        draws: bootstrap draws of patients.
        seed: of sets, permutations, draws and the random order.
    """

    split: str = "median"
    start: int = 8
    subsets: int = 4000
    counts: tuple[int, ...] = ()
    penalty: float = 1.0
    permutations: int = 20
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}. Got {self.split!r}.")
        if not 2 <= self.start <= MOST_FEATURES:
            raise ValueError(f"start must lie between 2 and {MOST_FEATURES}. Got {self.start}.")
        if min(self.subsets, self.draws, *self.counts) < 1 or self.permutations < 0:
            raise ValueError(
                "subsets, draws and counts must be at least 1, permutations at least "
                f"0. Got {self.subsets}, {self.draws}, {self.counts} and "
                f"{self.permutations} instead."
            )
        if not self.penalty > 0:
            raise ValueError(f"penalty must be above 0. Got {self.penalty} instead.")


@dataclass(frozen=True, eq=False)
class Part:
    """Films of one part: features (N, F), class numbers (N,), and N patients."""

    features: Array
    labels: Array
    patients: tuple[str, ...]

    def __post_init__(self) -> None:
        if (
            self.features.ndim != 2
            or len({len(self.features), len(self.labels), len(self.patients)}) != 1
        ):
            raise ValueError(
                "features must be (N, F), with a label and a patient a film. Got "
                f"{self.features.shape}, {len(self.labels)} labels and "
                f"{len(self.patients)} patients instead."
            )

    @classmethod
    def of(
        cls, net: Backbone, batches: Iterable[torch.Tensor], labels: Any, patients: Sequence[str]
    ) -> Self:
        """The pooled maps of films in the network's own normalisation."""
        return cls(pooled_features(net, batches), np.asarray(labels, dtype=int), tuple(patients))


def pooled_features(net: Backbone, batches: Iterable[torch.Tensor]) -> Array:
    """(N, C) float32 means of the last maps, as the network's own head gets them; the network is
    left as it was found. Batches are (n, 3, h, w) in its normalisation."""
    with left_as_found(net), torch.inference_mode():
        pooled = [net.maps(on_device_of(net, b)).mean((2, 3)).float().cpu() for b in batches]
    if not pooled:
        raise ValueError("batches must hold at least one film. Got none.")
    return torch.cat(pooled).numpy()


def check_parts(parts: Mapping[str, Part], classes: int) -> None:
    """Raises ValueError for parts that do not fit each other, share a patient, or where training
    lacks one of the classes."""
    width = parts["train"].features.shape[1]
    for name, part in parts.items():
        if not len(part.labels) or part.features.shape[1] != width:
            raise ValueError(
                f"{name} must hold films with {width} features. Got {part.features.shape} instead."
            )
        if not 0 <= part.labels.min() <= part.labels.max() < classes:
            raise ValueError(
                f"labels of {name} must lie in 0 … {classes - 1}. "
                f"Got {sorted(set(part.labels.tolist()))} instead."
            )
    missing = set(range(classes)) - set(parts["train"].labels.tolist())
    if missing:
        raise ValueError(f"train must hold films of every class. Got none of {sorted(missing)}.")
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = set(parts[one].patients) & set(parts[other].patients)
            if shared:
                raise ValueError(
                    f"{one} and {other} must share no patient. Got "
                    f"{len(shared)} in both, such as {min(shared)}."
                )
