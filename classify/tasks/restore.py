"""A U-Net that learns films without labels, by restoring distorted ones (Models Genesis).

Leaves in `out`: pretrained.safetensors (encoder and decoder), history.json, curves.png,
genesis.png (the four distortions on validation films), restored.png and done.json with figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from classify.augment import TRANSFORM_NAMES, TRANSFORMS, GenesisConfig, distort, draw_kinds
from classify.dataset import NO_REGION, build_cache, cache_of, cases_of, drop_cache
from classify.ensemble import load_pretrained, save_pretrained
from classify.films import (
    Case,
    licence_note,
    read_split,
    require_part,
    share_cases,
    tell_films,
)
from classify.models.unets import UnetCbam
from classify.saliency.maps import ssim, ssim_loss
from classify.tasks.settings import PretrainConfig
from cxr import draw
from cxr.cli import to_plain
from cxr.draw import draw_restoring
from cxr.training.learner import Batch, Learner, fit, load_best
from cxr.training.recipe import OptimConfig, keep_to_recipe
from cxr.workdir import (
    Workdir,
    log,
    provenance,
    seed_everything,
    set_up_logging,
    write_atomic,
    write_json,
)

BUNDLE, SHOWN = "pretrained.safetensors", 4
# What the panels show: each distortion alone, then all four at once (more than training ever does).
PANELS: dict[str, tuple[str, ...]] = {
    **{name: (kind,) for kind, name in TRANSFORM_NAMES.items()},
    "all four": tuple(TRANSFORMS),
}
Key = tuple[int, int]  # epoch, and the film's number among the cached ones


@dataclass(frozen=True)
class Films:
    """The films of a pretraining: cached pictures (N, S, S) uint8 and the indices of each part."""

    cases: list[Case]
    images: np.ndarray
    train: list[int]
    val: list[int]


def pretrain(config: PretrainConfig) -> Path:
    """Train into `config.out`; returns that folder. A finished one is not trained again. Raises
    ValueError or OSError for what a user can mend, and NonFiniteLossError."""
    set_up_logging()
    workdir = Workdir(config.out)
    keep_to_recipe(workdir.path, config)
    if (workdir / "done.json").exists() and (workdir / BUNDLE).exists():
        log.info("%s is finished: nothing to do", workdir / BUNDLE)
        return workdir.path
    workdir.start(to_plain(config), config.seed)
    films = load_films(config)
    spread = [films.val[i * len(films.val) // SHOWN] for i in range(SHOWN)]  # from all sources
    shown = [films.images[i].astype(np.float32) / 255 for i in dict.fromkeys(spread)]
    sheet = genesis_sheet(shown, config.genesis, config.seed)
    write_atomic(workdir / "genesis.png", draw.encode_png(sheet))
    module = train(config, workdir, films)
    picture = restored_sheet(module.model, shown, config.genesis, config.seed)
    write_atomic(workdir / "restored.png", draw.encode_png(picture))
    best = min(module.history, key=lambda r: r["val_loss"])
    figures = measure(module.model, films, config)
    record = {"epochs": len(module.history), "best": best, "figures": figures, **provenance()}
    _save(config, workdir / BUNDLE, module.model, films, record)
    write_json(workdir / "done.json", record)
    log.info(
        "best validation loss %.4f in epoch %d (distorted films as they are: %.4f); wrote %s",
        best["val_loss"],
        int(best["epoch"]) + 1,
        best["val_untouched"],
        workdir / BUNDLE,
    )
    drop_cache(config)
    return workdir.path


def load_films(config: PretrainConfig) -> Films:
    """The films of the split's parts train and val, decoded once into the cache; raises ValueError
    where the table or the split is missing, or a part has no films."""
    every, left_out = cases_of(config, unlabelled=True)
    split = read_split(config.split)
    cases, parts = share_cases(every, split, ("train", "val"), config.max_films, config.seed)
    require_part(parts, *parts)
    left_out["other parts, or beyond max_films"] = len(every) - len(cases)
    tell_films(parts, left_out)
    side = config.preprocess.side
    cache = build_cache(cases, config.preprocess, NO_REGION, cache_of(config), side)
    return Films(cases, cache.images, parts["train"], parts["val"])


def train(config: PretrainConfig, workdir: Workdir, films: Films) -> PretrainModule:
    """Train, or go on from the last finished epoch; the module of the best epoch."""
    seed_everything(config.seed)
    module = PretrainModule(UnetCbam(config.net), config.optim)
    data = DistortedFilms(films.images, config.genesis, config.seed)
    batches = DataLoader(
        data,
        config.batch,
        sampler=EpochOrder(films.train, config.seed),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    val = _in_order(data, films.val, config.batch)
    fit(module, "pretraining", workdir.path, batches, val, config.device, config.precision)
    load_best(module, workdir.path)
    write_json(workdir / "history.json", module.history)
    draw_restoring(module.history, workdir / "curves.png")
    return module


def _in_order(data: DistortedFilms, indices: Sequence[int], batch: int) -> DataLoader[Any]:
    """Films that are distorted alike each time."""
    return DataLoader(data, batch, sampler=[(0, i) for i in indices])


def measure(net: nn.Module, films: Films, config: PretrainConfig) -> dict[str, dict[str, float]]:
    """Mean 1 − SSIM of the validation films for each panel: as they are distorted (`untouched`),
    and as the net restores them (`restored`)."""
    figures = {}
    for name, kinds in PANELS.items():
        data = DistortedFilms(films.images, config.genesis, config.seed, kinds)
        losses: dict[str, list[float]] = {"untouched": [], "restored": []}
        with torch.inference_mode():
            for batch in _in_order(data, films.val, config.batch):
                losses["untouched"] += (1 - ssim(batch["seen"], batch["film"])).tolist()
                losses["restored"] += (1 - ssim(net(batch["seen"]), batch["film"])).tolist()
        figures[name] = {k: float(np.mean(v)) for k, v in losses.items()}
    return figures


def _save(
    config: PretrainConfig, path: Path, net: UnetCbam, films: Films, record: dict[str, Any]
) -> None:
    rows = [films.cases[i].row for i in films.train]
    save_pretrained(
        path,
        net,
        config.preprocess,
        config.half,
        genesis=to_plain(config.genesis),
        trained_on=config.trained_on,
        training={
            "films": len(rows),
            "val_films": len(films.val),
            "epochs": record["epochs"],
            "patients": len({r.patient_id for r in rows}),
            "seed": config.seed,
            "sources": sorted({r.source for r in rows}),
            "split": Path(config.split).name,
            "publishable_only": config.publishable_only,
            **{k: record[k] for k in ("git_commit", "versions")},
        },
        metrics={
            **{k: record[k] for k in ("command", "figures")},
            "val_loss": record["best"]["val_loss"],
        },
        licence_note=licence_note(rows),
    )
    load_pretrained(path)  # what cannot be read must not be called finished


class EpochOrder(Sampler[Key]):
    """The training films in another order in each epoch, which Lightning tells by `set_epoch`. The
    epoch goes along with each film, so that its distortion hangs on seed, epoch and film alone: a
    training that was killed goes on as if it had not been, with any number of workers."""

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices, self.seed, self.epoch = list(indices), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.indices))
        return ((self.epoch, self.indices[i]) for i in order)


@dataclass(eq=False)
class DistortedFilms(Dataset[Batch]):
    """Cached films (N, S, S) uint8 by Key → {"film", "seen"}, each (1, S, S) float32 in [0, 1].
    `kinds` distorts each film in these ways; None draws them as in training."""

    images: np.ndarray
    config: GenesisConfig
    seed: int
    kinds: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Batch:
        rng = np.random.default_rng([self.seed, *key])
        film = np.asarray(self.images[key[1]]).astype(np.float32) / 255
        drawn = draw_kinds(self.config, rng)
        seen = distort(film, drawn if self.kinds is None else self.kinds, self.config, rng)
        return {"film": torch.from_numpy(film)[None], "seen": torch.from_numpy(seen)[None]}


class PretrainModule(Learner):
    """Loss 1 − SSIM between restored and original film. A row of `history` also has the mean
    absolute differences train_mae and val_mae, and val_untouched, the loss of the distorted films
    themselves (what a network has to beat)."""

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
        terms["untouched"] = ssim_loss(batch["seen"], batch["film"])
        self._add("val", terms, len(batch["film"]))

    def line(self) -> str:
        """The newest epoch in words, for the log."""
        row = self.history[-1]
        return (
            f"loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f} (distorted films as "
            f"they are: {row['val_untouched']:.4f}), rate {row['rate']:.2g}, "
            f"{row['seconds']:.0f} s"
        )


def genesis_sheet(
    films: Sequence[np.ndarray], config: GenesisConfig, seed: int = 0, tile: int = 200
) -> np.ndarray:
    """A picture of each distortion on each film (H, W): uint8 RGB, a row a film."""
    tiles = []
    for number, film in enumerate(films):
        tiles.append(draw.to_rgb(film))
        for kind in TRANSFORMS:
            rng = np.random.default_rng([seed, number])
            tiles.append(draw.to_rgb(distort(film, (kind,), config, rng)))
    captions = ["original", *(TRANSFORM_NAMES[kind] for kind in TRANSFORMS)]
    return draw.sheet(tiles, captions * len(films), columns=len(captions), tile=tile)


def restored_sheet(
    net: nn.Module,
    films: Sequence[np.ndarray],
    config: GenesisConfig,
    seed: int = 0,
    tile: int = 160,
) -> np.ndarray:
    """Films (S, S) float32 in [0, 1], each in two rows: distorted, and under that restored. A
    column stands for a panel of PANELS, before them the film itself and what the net makes of it;
    captions say the SSIM with the original. The net must be in evaluation mode. Returns uint8
    RGB."""
    tiles, captions = [], []
    for number, film in enumerate(films):
        seen = [film]
        for column, kinds in enumerate(PANELS.values()):
            seen.append(distort(film, kinds, config, np.random.default_rng([seed, number, column])))
        batch = torch.from_numpy(np.stack(seen))[:, None]
        with torch.inference_mode():
            restored = net(batch.to(next(net.parameters()).device)).float().cpu()
        truth = batch[:1].expand_as(batch)
        before, after = (ssim(pictures, truth).tolist() for pictures in (batch, restored))
        distorted = zip(PANELS, before[1:], strict=True)
        captions += ["original", *(f"{name}, SSIM {v:.2f}" for name, v in distorted)]
        captions += [f"restored, SSIM {v:.2f}" for v in after]
        tiles += [draw.to_rgb(p[0].numpy()) for p in (*batch, *restored)]
    return draw.sheet(tiles, captions, columns=1 + len(PANELS), tile=tile)
