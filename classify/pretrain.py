"""Pretrains a U-Net without labels, by restoring films that were distorted (Models Genesis).

python -m classify.pretrain --config configs/classify/pretrain_unet_cbam.yaml
python -m classify.pretrain --config configs/classify/pretrain_unet_cbam.yaml --max_films 40

Leaves in `out`: pretrained.safetensors (encoder and decoder), history.json, curves.png,
genesis.png (the four distortions on validation films), restored.png and done.json with figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from classify.bundles import load_pretrained, save_pretrained
from classify.dataset import build_cache
from classify.films import Case, part_of, select_cases
from classify.genesis import genesis_sheet
from classify.models.unet_cbam import UnetCbam
from classify.pretrain_config import PretrainConfig
from classify.pretrain_module import DistortedFilms, EpochOrder, PretrainModule
from classify.pretrain_pictures import PANELS, restored_sheet
from classify.regions import RegionConfig
from classify.ssim import ssim
from cxr import draw
from cxr.cli import parse_config, to_plain
from cxr.films_table import read_films_table
from cxr.plots import draw_restoring
from cxr.split import Split
from cxr.training.learner import NonFiniteLossError
from cxr.training.loop import BEST, fit_learner
from cxr.training.recipe import keep_to_recipe
from cxr.workdir import (
    Workdir,
    log,
    provenance,
    seed_everything,
    set_up_logging,
    write_atomic,
    write_json,
)

EXAMPLE = "python -m classify.pretrain --config configs/classify/pretrain_unet_cbam.yaml"
BUNDLE, SHOWN = "pretrained.safetensors", 4
# What may change between a stop and the next start of the same pretraining.
_FREE = ("out", "cache", "workers", "device", "data")


@dataclass(frozen=True)
class Films:
    """The films of a pretraining: cached pictures (N, S, S) uint8 and the indices of each part."""

    cases: list[Case]
    images: np.ndarray
    train: list[int]
    val: list[int]


def main(argv: Sequence[str] | None = None) -> int:
    """Pretrain, or go on, or say that it is finished."""
    config = parse_config(PretrainConfig, argv, "python -m classify.pretrain", EXAMPLE)
    try:
        pretrain(config)
    except (ValueError, OSError, NonFiniteLossError) as error:
        log.error("%s", error)
        return 2
    return 0


def pretrain(config: PretrainConfig) -> Path:
    """Train into `config.out`; returns that folder. A finished one is not trained again."""
    set_up_logging()
    workdir = Workdir(config.out)
    plain = to_plain(config)
    keep_to_recipe(workdir.path, {k: v for k, v in plain.items() if k not in _FREE})
    if (workdir / "done.json").exists() and (workdir / BUNDLE).exists():
        log.info("%s is finished: nothing to do", workdir / BUNDLE)
        return workdir.path
    workdir.start(plain, config.seed)
    films = load_films(config)
    shown = [films.images[i].astype(np.float32) / 255 for i in _spread(films.val, SHOWN)]
    sheet = genesis_sheet(shown, config.genesis, config.seed)
    write_atomic(workdir / "genesis.png", draw.encode_png(sheet))
    module = fit(config, workdir, films)
    net = module.model.eval().cpu()
    picture = restored_sheet(net, shown, config.genesis, config.seed)
    write_atomic(workdir / "restored.png", draw.encode_png(picture))
    figures = measure(net, films, config)
    _save(config, workdir / BUNDLE, net, films, module.history, figures)
    best = min(module.history, key=lambda r: r["val_loss"])
    write_json(
        workdir / "done.json",
        {"epochs": len(module.history), "best": best, "figures": figures, **provenance()},
    )
    log.info(
        "best validation loss %.4f in epoch %d (distorted films as they are: %.4f); wrote %s",
        best["val_loss"],
        int(best["epoch"]) + 1,
        best["val_untouched"],
        workdir / BUNDLE,
    )
    return workdir.path


def load_films(config: PretrainConfig) -> Films:
    """The films of the split's parts train and val, decoded once into the cache.

    Raises ValueError where the table or the split is missing, or a part has no films.
    """
    data = Path(config.data)
    for name, file in (("data", data / "films.csv"), ("split", Path(config.split))):
        if not file.is_file():
            raise ValueError(f"{name} must name a file that exists. {file} does not.")
    cases, left_out = select_cases(
        read_films_table(data / "films.csv"),
        data,
        config.sources,
        config.publishable_only,
        Path(config.crops) if config.crops else None,
        unlabelled=True,
    )
    split = Split.load(config.split)
    chosen: dict[str, list[int]] = {}
    for part in ("train", "val"):
        chosen[part] = _spread(part_of(cases, split, part), config.max_films)
        if not chosen[part]:
            raise ValueError(
                f"the split must have films in its part {part!r}. Got none: check "
                "split, sources and publishable_only."
            )
    kept = [cases[i] for part in chosen.values() for i in part]
    left_out["other parts, or beyond max_films"] = len(cases) - len(kept)
    log.info(
        "%d films to train on, %d to validate, left out: %s",
        len(chosen["train"]),
        len(chosen["val"]),
        ", ".join(f"{k} {n}" for k, n in left_out.items()),
    )
    folder = Path(config.cache) if config.cache else Path(config.out) / "cache"
    cache = build_cache(
        kept, config.preprocess, RegionConfig("none"), folder, config.preprocess.side
    )
    first = len(chosen["train"])
    return Films(kept, cache.images, list(range(first)), list(range(first, len(kept))))


def _spread(indices: Sequence[int], number: int) -> list[int]:
    """So many of them from all over the table, whose rows lie source by source; 0 takes all."""
    if not number or number >= len(indices):
        return list(indices)
    return [indices[i * len(indices) // number] for i in range(number)]


def fit(config: PretrainConfig, workdir: Workdir, films: Films) -> PretrainModule:
    """Train, or go on from the last finished epoch; the module of the best epoch."""
    seed_everything(config.seed)
    module = PretrainModule(UnetCbam(config.net), config.optim)
    data = DistortedFilms(films.images, config.genesis, config.seed)
    train = DataLoader(
        data,
        config.batch,
        sampler=EpochOrder(films.train, config.seed),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    fit_learner(
        module,
        "pretraining",
        workdir.path,
        train,
        _in_order(data, films.val, config.batch),
        config.device,
        config.precision,
    )
    state = torch.load(workdir / BEST, map_location="cpu", weights_only=True)["state_dict"]
    module.load_state_dict(state)
    write_json(workdir / "history.json", module.history)
    draw_restoring(module.history, workdir / "curves.png")
    return module


def _in_order(data: DistortedFilms, indices: Sequence[int], batch: int) -> DataLoader[Any]:
    """Films that are distorted alike each time."""
    return DataLoader(data, batch, sampler=[(0, i) for i in indices])


def measure(net: UnetCbam, films: Films, config: PretrainConfig) -> dict[str, dict[str, float]]:
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
    config: PretrainConfig,
    path: Path,
    net: UnetCbam,
    films: Films,
    history: list[dict[str, float]],
    figures: dict[str, dict[str, float]],
) -> None:
    rows = [films.cases[i].row for i in films.train]
    made = provenance()
    save_pretrained(
        path,
        net,
        config.preprocess,
        config.half,
        genesis=to_plain(config.genesis),
        trained_on="crops" if config.crops else "films",
        training={
            "films": len(rows),
            "val_films": len(films.val),
            "epochs": len(history),
            "patients": len({r.patient_id for r in rows}),
            "seed": config.seed,
            "sources": sorted({r.source for r in rows}),
            "split": Path(config.split).name,
            "publishable_only": config.publishable_only,
            "git_commit": made["git_commit"],
            "versions": made["versions"],
        },
        metrics={
            "command": made["command"],
            "figures": figures,
            "val_loss": min(r["val_loss"] for r in history),
        },
        licence_note="trained on films under: " + "; ".join(sorted({r.licence for r in rows})),
    )
    load_pretrained(path)  # what cannot be read must not be called finished


if __name__ == "__main__":
    raise SystemExit(main())
