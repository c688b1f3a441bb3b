"""python -m detect.train --config configs/detect/thorax_lite0.yaml; and what the lung field's
`python -m detect.lungfield train` does.

A quick look on any machine:  python -m detect.train --config configs/detect/mobilenet_v3.yaml
--epochs 1 --data.max_films 40 --model.side 128
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr.boxes import Frame
from cxr.cli import as_command, parse_config, to_plain
from cxr.rules import refusing
from cxr.split import Split
from cxr.training.recipe import disk_need, keep_to_recipe, require_writable
from cxr.workdir import Workdir, console, log, provenance, seed_everything, write_json
from detect.data import require_boxes, select_films, select_rows
from detect.predict import to_input
from detect.settings import FieldTrainConfig, LoopConfig, TrainConfig

if TYPE_CHECKING:  # what trains is imported where training begins
    from torch import Tensor, nn

    from detect.dataset import DetectorModule, ReadFilms, ThoraxDataset

SURE = 0.9
LICENCE = "weights: Apache-2.0; see the model card for the films' licences"


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """Parse and train; 2 for wrong settings or data."""
    example = (
        "python -m detect.train --config configs/detect/mobilenet_v3.yaml --out runs/mobilenet"
    )
    config = parse_config(TrainConfig, argv, example)
    best = train(config)
    bundle = Path(config.out) / "thorax.safetensors"
    console.print(f"best validation IoU {best['val_iou']:.4f}; wrote {bundle}")
    return 0


def train(config: TrainConfig, film_classes: bool = False) -> dict[str, float]:
    """Read films, fit, choose thresholds, write the bundle into `config.out`; returns the kept
    epoch's row: with `film_classes` that which tells the films' classes best, not the best boxes.
    Raises RefusedError for wrong settings, for data that are missing or do not fit together, and
    for a folder that was begun with other settings."""
    workdir, root, side = Workdir(config.out), config.data.data, config.model.side
    with refusing():
        parts = select_films(config.data, config.seed, config.model.classes)
        from detect.dataset import (
            DetectorModule,
            FilmClassModule,
            ThoraxDataset,
            box_tile,
            build_augmentation,
            collate,
        )
        from detect.model import build_detector

        seed_everything(config.seed)  # the first weights hang on it, too
        model, augment = build_detector(config.model), build_augmentation(config.augment)
        optim = config.to_optim()
        _begin(config, workdir, model, parts.made)
        films, masks = parts.films, parts.masks
        learnt = ThoraxDataset(films["train"], root, side, augment, config.negatives, masks)
        val = ThoraxDataset(films["val"], root, side)
        require_boxes({"train": learnt.films, "val": val.films})
    import torch

    log.info("%d films to train, %d to validate", len(learnt), len(val))
    kind = FilmClassModule if film_classes else DetectorModule
    module = kind(model.to(memory_format=torch.channels_last), optim, config.patience)
    picture = (workdir / "val_boxes.png", config.picture_every, box_tile)
    best = fit(config, workdir, module, learnt, val, picture, collate)
    thresholds = choose_thresholds(module.model, val)
    write_json(workdir / "thresholds.json", thresholds)
    write_bundle(
        config,
        workdir / "thorax.safetensors",
        module,
        learnt,
        val,
        model={**to_plain(config.model), "weights": "none"},  # rebuilt without any download
        operating_point=thresholds,
        metrics={
            **{k: v for k, v in best.items() if k.startswith("val_")},
            "where": "validation films, best epoch",
        },
    )
    return best


def train_field(config: FieldTrainConfig) -> int:
    """Read films and masks, fit, write the lung field's bundle; RefusedError when data, weights or
    an earlier run do not fit."""
    workdir, root, side = Workdir(config.out), config.data.data, config.model.side
    with refusing():
        rows, val_rows, made = select_rows(config.data, config.seed)
        from detect.lungfield.dataset import FieldAugment, FieldDataset, FieldModule, field_tile
        from detect.lungfield.net import build_field_net

        seed_everything(config.seed)  # the first weights hang on it, too
        model, optim = build_field_net(config.model), config.to_optim()
        _begin(config, workdir, model, made)
        films = FieldDataset(rows, root, side, FieldAugment(config.crops), config.negatives)
        val = FieldDataset(val_rows, root, side)
    counts = len(films.items), len(val.items)
    log.info("%d films to train, %d to validate, each whole and as a crop", *counts)
    module = FieldModule(model, optim, config.patience)
    picture = (workdir / "val_fields.png", config.fields_every, field_tile)
    best = fit(config, workdir, module, films, val, picture)
    bundle = workdir / "lungfield.safetensors"
    write_bundle(
        config,
        bundle,
        module,
        films,
        val,
        # rebuilt without any download, and not to be trained on
        model={**to_plain(config.model), "weights": "none", "freeze_stages": 0},
        preprocessing="letterbox padded right and below, 0.5 / 99.5 percentile stretch to 8 bits",
        operating_point={"threshold": 0.5},
        metrics={
            **{k: v for k, v in best.items() if k.startswith("val")},
            "where": "validation films, whole and as crops, best epoch",
        },
    )
    console.print(f"best validation IoU {best['val_iou']:.4f}; wrote {bundle}")
    return 0


def _begin(config: LoopConfig, workdir: Workdir, model: nn.Module, made: Split | None) -> None:
    """Note with which settings and split the training was begun, where it will find its place."""
    require_writable(workdir.path, disk_need(model))
    keep_to_recipe(workdir.path, config, config.restart)
    if made:
        made.save(workdir / "split.json")
    workdir.start(to_plain(config), config.seed)


def fit(
    config: LoopConfig,
    workdir: Workdir,
    module: DetectorModule,
    learnt: ReadFilms[Any],
    val: ReadFilms[Any],
    picture: tuple[Path, int, Callable[..., Any]],
    collate: Callable[..., Any] | None = None,
) -> dict[str, float]:
    """The loop with resume; leaves the best weights in the module and returns that epoch's row.
    `picture` is the file of validation films, the epochs between two of them, and what draws
    one."""
    from torch.utils.data import DataLoader

    from cxr.training import learner as loop

    path, every, tile = picture
    shown = tuple(dict.fromkeys(("loss", "val_iou", module.monitor)))
    watching: list[Any] = [loop.HistoryFile(workdir.path, shown)]
    if every:
        watching.append(loop.ValidationPicture(path, val, every, tile))
    loader: dict[str, Any] = {
        "batch_size": config.batch,
        "collate_fn": collate,
        "num_workers": config.workers,
        "persistent_workers": config.workers > 0,
    }
    many = len(learnt) > config.batch
    loop.fit(
        module,
        workdir.path.name,
        workdir / "checkpoints",
        DataLoader(learnt, shuffle=True, drop_last=many, **loader),
        DataLoader(val, **loader),
        config.accelerator,
        config.precision,
        devices=config.devices,
        strategy=config.strategy,
        restart=config.restart,
        events=workdir.path,
        callbacks=watching,
    )
    loop.load_best(module, workdir / "checkpoints")
    return loop.rounded(module.history)[loop.best_epoch(module.history, module.monitor)]


def write_bundle(
    config: Any,
    path: Path,
    module: DetectorModule,
    learnt: ReadFilms[Any],
    val: ReadFilms[Any],
    **meta: Any,
) -> None:
    """The best weights with all that is needed to use them; the bundle's kind is its name."""
    from cxr.bundle import save_bundle

    save_bundle(
        path,
        path.stem,
        module.model.state_dict(),
        half=config.half,
        trained_on={
            "films": len(learnt.films),
            "patients": len({f.patient_id for f in learnt.films}),
            "sources": sorted({f.source for f in learnt.films} - {""}),
            "val_films": len(val.films),
            "split": config.data.split,
            "publishable_only": config.data.publishable_only,
        },
        licence=LICENCE,
        provenance=provenance(),
        **meta,
    )


def choose_thresholds(model: Any, val: ThoraxDataset, batch: int = 8) -> dict[str, Any]:
    """`ok_score` and `reject_score`, and the range of boxes that is plausible. A film whose best
    box scores below `reject_score` is refused (no thorax), below `ok_score` it falls back to the
    whole film. Both come from the validation films and from pictures without a thorax made of
    them."""
    from detect.dataset import make_negative

    chests = _best_scores(model, [val[i][0] for i in range(len(val))], batch)
    rng = np.random.default_rng(0)
    empty = []
    for image, boxes, _, _ in val.items:
        if len(boxes):
            picture = make_negative(image, boxes[0], rng)
            frame = Frame.letterbox((picture.shape[0], picture.shape[1]), val.side)
            empty.append(to_input(frame.apply(picture)))
    others = _best_scores(model, empty, batch)
    reject, ok = pick_scores(chests, others)
    boxes = np.concatenate([item[1] for item in val.items if len(item[1])])
    sides = boxes[:, 2:] - boxes[:, :2]
    aspects = sides[:, 1] / sides[:, 0]
    shares = np.concatenate(
        [(b[:, 2:] - b[:, :2]).prod(axis=1) / image.size for image, b, _, _ in val.items]
    )
    return {
        "reject_score": reject,
        "ok_score": ok,
        # well outside what validation films show: a limb's box is far thinner
        "aspect_range": [round(float(v), 3) for v in (aspects.min() / 1.5, aspects.max() * 1.5)],
        "min_area_share": round(float(shares.min() / 3), 3),
        "chosen_on": {
            "validation_films": len(chests),
            "films_without_thorax": len(others),
            "chests_refused": int((chests < reject).sum()),
            "chests_below_ok": int((chests < ok).sum()),
            "films_without_thorax_accepted": int((others >= reject).sum()),
        },
    }


def pick_scores(chests: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """(reject, ok) scores from best scores of films with a thorax and of pictures without.

    `reject` lies midway between the two groups where they part; where they overlap it is the
    value that gets most films right, each group counting the same, and never above the 2nd
    percentile of the chests: a chest that is refused is worse than a limb that is looked at.
    `ok` is the 2nd percentile of the chests, but at most SURE, because where every chest scores
    above that the percentile parts nothing but rounding; or `reject` if that is higher.
    """
    low = float(np.percentile(chests, 2))
    if not len(others):
        reject = low / 2
    elif others.max() < chests.min():
        reject = float((others.max() + chests.min()) / 2)
    else:
        candidates = np.unique(np.concatenate([chests, others, [low]]))
        candidates = candidates[candidates <= low]
        right = [(chests >= c).mean() + (others < c).mean() for c in candidates]
        reject = float(candidates[int(np.argmax(right))])
    return round(reject, 4), round(max(min(low, SURE), reject), 4)


def _best_scores(model: Any, images: Sequence[Tensor], batch: int) -> np.ndarray:
    import torch

    model.eval()
    best = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            for found in model(list(images[start : start + batch])):
                best.append(float(found["scores"].max()) if len(found["scores"]) else 0.0)
    return np.asarray(best)


if __name__ == "__main__":
    sys.exit(main())
