"""Distorted films, and the training that restores them, as Lightning wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from classify.genesis import GenesisConfig, distort, draw_kinds
from classify.models.unet_cbam import UnetCbam
from classify.ssim import ssim
from cxr.training.learner import Batch, Learner
from cxr.training.optim import OptimConfig

Key = tuple[int, int]  # epoch, and the film's number among the cached ones


class EpochOrder(Sampler[Key]):
    """The training films in another order in each epoch, which Lightning tells by `set_epoch`.

    The epoch goes along with each film, so that its distortion hangs on seed, epoch and film alone:
    a training that was killed goes on as if it had not been, with any number of workers.
    """

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices, self.seed, self.epoch = list(indices), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.indices))
        return iter([(self.epoch, self.indices[i]) for i in order])


class DistortedFilms(Dataset[Batch]):
    """Cached films (N, S, S) uint8 by Key → {"film", "seen"}, each (1, S, S) float32 in [0, 1].

    `kinds` distorts each film in these ways; None draws them as in training.
    """

    def __init__(
        self,
        images: np.ndarray,
        config: GenesisConfig,
        seed: int,
        kinds: Sequence[str] | None = None,
    ) -> None:
        self.images, self.config, self.seed, self.kinds = images, config, seed, kinds

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Batch:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        film = np.asarray(self.images[index]).astype(np.float32) / 255
        drawn = draw_kinds(self.config, rng)
        seen = distort(film, drawn if self.kinds is None else self.kinds, self.config, rng)
        return {"film": torch.from_numpy(film)[None], "seen": torch.from_numpy(seen)[None]}


class PretrainModule(Learner):
    """Loss 1 − SSIM between restored and original film.

    A row of `history` has train_loss, val_loss, the mean absolute differences train_mae and
    val_mae, and val_untouched, the loss of the distorted films themselves (what a network has to
    beat).
    """

    def __init__(self, net: UnetCbam, optim: OptimConfig) -> None:
        super().__init__(net, optim, "val_loss")

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The loss and what is watched beside it, and the restored films (N, 1, S, S)."""
        restored = self.model(batch["seen"]).float()
        likeness = ssim(restored, batch["film"]).mean()
        mae = F.l1_loss(restored, batch["film"])
        return {"loss": 1 - likeness, "mae": mae}, restored

    def validation_step(self, batch: Batch, _: int) -> None:
        """Adds up the losses until the epoch's end."""
        terms, _restored = self.losses(batch)
        terms["untouched"] = 1 - ssim(batch["seen"], batch["film"]).mean()
        self._add("val", terms, len(batch["film"]))

    def line(self) -> str:
        """The newest epoch in words, for the log."""
        row = self.history[-1]
        return (
            f"loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f} (distorted films as "
            f"they are: {row['val_untouched']:.4f}), rate {row['rate']:.2g}, "
            f"{row['seconds']:.0f} s"
        )
