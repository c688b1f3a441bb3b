"""Training pictures and tested films of a single network, out of one cache of decoded films."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from classify.augment import Change, build_change
from classify.singles.config import SingleConfig


class SingleDataset(Dataset[dict[str, Tensor]]):
    """Pictures and classes of the films `indices`, each `copies` times.

    An item: `image` (1, side, side) uint8, `label`. Of a film's copies the first is the film as it
    is and the others are changed; a film that stands there once is changed each time.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int],
        indices: Sequence[int],
        change: Change | None = None,
        copies: int = 1,
    ) -> None:
        self.images, self.labels, self.indices = images, labels, list(indices)
        self.change, self.copies = change, copies

    def __len__(self) -> int:
        return len(self.indices) * self.copies

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        place, copy = divmod(item, self.copies)
        index = self.indices[place]
        picture = np.array(self.images[index])
        if self.change is not None and (self.copies == 1 or copy):
            picture = self.change(picture)
        return {"image": torch.from_numpy(picture)[None], "label": torch.tensor(self.labels[index])}


def balance_films(
    labels: Sequence[int], indices: Sequence[int], balance: str, seed: int = 0
) -> list[int]:
    """The films of an epoch: with oversample each class has as many as the commonest (whole
    rounds of its films, then a draw), with undersample as few as the rarest; else `indices`."""
    if balance not in ("oversample", "undersample"):
        return list(indices)
    known = sorted({labels[i] for i in indices})
    films_of = [[i for i in indices if labels[i] == k] for k in known]
    sizes = [len(films) for films in films_of]
    goal = max(sizes) if balance == "oversample" else min(sizes)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for films in films_of:
        rounds, more = divmod(goal, len(films))
        drawn = rng.permutation(len(films))[:more]
        chosen += films * rounds + [films[k] for k in sorted(drawn)]
    return chosen


def train_loader(
    config: SingleConfig, images: np.ndarray, labels: Sequence[int], indices: Sequence[int]
) -> DataLoader[Any]:
    """An epoch's pictures in random batches; a last batch of one film is left out, since BatchNorm
    cannot learn from it."""
    change = build_change(config.augment, config.seed)
    films = SingleDataset(images, labels, indices, change, config.copies)
    lonely = len(films) % config.batch == 1
    return DataLoader(
        films,
        config.batch,
        shuffle=True,
        num_workers=config.workers,
        drop_last=lonely,
        persistent_workers=config.workers > 0,
    )


def film_loader(
    config: SingleConfig, images: np.ndarray, labels: Sequence[int], indices: Sequence[int]
) -> DataLoader[Any]:
    """Films as they are, in order."""
    return DataLoader(SingleDataset(images, labels, indices), max(config.batch, 16))
