"""Training of the view's head: `python -m detect.view train --config configs/detect/view.yaml`

Views of films are made once, pass the lung field's network, and what it sees of them is kept in
the run's folder, from which a stopped run goes on; the head then trains on that within a minute.
"""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr.cli import Several, to_plain
from cxr.rules import refusing, require
from cxr.training.recipe import free, keep_to_recipe, recipe_of, require_writable
from cxr.workdir import Workdir, console, counting, log, provenance, write_atomic, write_json
from detect.lungfield.field import LungField
from detect.predict import prepare_film
from detect.train import LICENCE
from detect.view import CLASSES, shares_of
from detect.view.pictures import ViewMaker, choose_rows, class_of_negative, read_grey

_CHUNK, _BATCH = 256, 8  # views a file; pictures in one forward pass
Views = tuple[np.ndarray, np.ndarray]  # (N, C, G, G) features, (N, 3) what is to be learnt of them
SURE = 0.75  # no more is asked of a frontal film: above, validation films hardly differ


@dataclass(frozen=True)
class ViewTrainConfig:
    """Train what tells an upright frontal chest film from all else, and write it as one bundle.

    The run's folder holds run.json, run.log, features/ (until the end), folds.json with what heads
    that never saw a picture's patient answer of the real pictures, and view.safetensors.

    Args:
        data: folder with films.csv, or several of them (the flag again for each).
        negatives: table of pictures that are no upright frontal film, with the columns image,
            kind, source, patient_id, licence, note.
        also: sources that may train what is published although the words of their licence are not
            among those that are known.
        split: a split saved by `python -m cxr.split`: train trains, val chooses thresholds.
        field: the lung field's bundle; empty takes the one that comes with lungfirst.
        out: the run's folder.
        views: training views that are made.
        epochs: over all views.
        batch: views a step.
        rate: learning rate at its height.
        folds: heads trained without a share of the real pictures' patients, to measure; 0 for none.
        lost: share of the validation films that the threshold may lose.
        seed: of everything random.
        restart: begin anew.
        half: store the bundle's weights as fp16.
    """

    data: Several = "../shared/data"
    negatives: str = "../shared/more/negatives.csv"
    also: tuple[str, ...] = ()
    split: str = "configs/split_seed0.json"
    field: str = free("")
    out: str = free("runs/view")
    views: int = 6144
    epochs: int = 10
    batch: int = 64
    rate: float = 2e-3
    folds: int = 5
    lost: float = 0.003
    seed: int = 0
    restart: bool = free(False)
    half: bool = True

    def __post_init__(self) -> None:
        require(self.views >= self.batch, "--views must be at least --batch", self.views)
        require(self.folds == 0 or self.folds > 1, "--folds must be 0, or 2 or more", self.folds)


def see(field: LungField, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(N, C, G, G) float16: what the lung field's network sees of uint8 pictures."""
    canvases = [prepare_film(p.astype(np.float32) / 255, field.side)[0] for p in pictures]
    starts = range(0, len(canvases), _BATCH)
    seen = [field.look(canvases[start : start + _BATCH])[1] for start in starts]
    return np.concatenate(seen).astype(np.float16)


def see_views(maker: ViewMaker, field: LungField, views: int, folder: Path) -> Views:
    """The training views; those of a stopped run are in `folder`."""
    features, truth = [], []
    for start in counting(range(0, views, _CHUNK), "looking at views", -(-views // _CHUNK)):
        path = folder / f"{start:06d}.npz"
        if not path.exists():
            made = [maker.make(i) for i in range(start, min(views, start + _CHUNK))]
            pictures, told = zip(*made, strict=True)
            np.savez(data := io.BytesIO(), seen=see(field, pictures), told=np.array(told))
            write_atomic(path, data.getvalue())
        with np.load(path) as stored:
            features.append(stored["seen"])
            truth.append(stored["told"])
    return np.concatenate(features), np.concatenate(truth)


def fit_head(features: np.ndarray, told: np.ndarray, config: ViewTrainConfig, seed: int) -> Any:
    """A head trained on these views: cross-entropy of the class, and of mirrored where it is asked
    (AdamW, one cycle)."""
    import torch
    from torch.nn import functional as F

    from detect.view.net import ViewHead

    torch.manual_seed(seed)
    head = ViewHead(features.shape[1], len(CLASSES)).train()
    optimiser = torch.optim.AdamW(head.parameters(), config.rate, weight_decay=0.02)
    steps = range(0, len(features) - config.batch + 1, config.batch)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.rate, config.epochs * len(steps))
    for epoch in range(config.epochs):
        order, losses = torch.randperm(len(features)).numpy(), []
        for start in steps:
            chosen = order[start : start + config.batch]
            logits = head(torch.from_numpy(features[chosen]).float())
            kind, side, _ = torch.from_numpy(told[chosen]).T
            loss = F.cross_entropy(logits[:, :-1], kind, label_smoothing=0.02)
            if (asked := side >= 0).any():
                flag = F.binary_cross_entropy_with_logits(logits[asked, -1], side[asked].float())
                loss = loss + 0.3 * flag
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            cycle.step()
            losses.append(float(loss.detach()))
        log.info("epoch %d of %d: loss %.4f", epoch + 1, config.epochs, np.mean(losses))
    return head.eval()


def answer_folds(
    maker: ViewMaker, field: LungField, views: Views, config: ViewTrainConfig
) -> dict[str, list[float]]:
    """Real picture → (8,) probabilities of CLASSES and of mirrored, from a head that learnt of no
    view with a picture of its fold."""
    from detect.view.net import answer

    found, (features, told) = dict[str, list[float]](), views
    for fold in range(config.folds):
        own = [r for r in maker.others if maker.fold_of[r.image] == fold]
        log.info("fold %d of %d: %d pictures", fold + 1, config.folds, len(own))
        learnt = told[:, 2] != fold
        head = fit_head(features[learnt], told[learnt], config, config.seed + 1 + fold)
        shares = np.column_stack(shares_of(answer(head, see(field, [maker.read(r) for r in own]))))
        found |= {r.image: np.round(s, 5).tolist() for r, s in zip(own, shares, strict=True)}
    return found


def choose_point(frontal: np.ndarray, mirrored: np.ndarray, lost: float) -> dict[str, float]:
    """The least probability of a frontal film, at most SURE, and that of a mirrored one, at least a
    half, which lose or flag at most the share `lost` of (N,) validation films."""
    most = int(lost * len(frontal))
    low, high = np.sort(frontal)[most], np.sort(mirrored)[-1 - most]
    return {
        "frontal": round(min(SURE, float(low) - 1e-4), 4),
        "mirrored": round(max(0.5, float(high) + 1e-4), 4),
    }


def train(config: ViewTrainConfig) -> int:
    """Make views, fit, choose thresholds, write the bundle; RefusedError when films, weights or an
    earlier run do not fit."""
    workdir = Workdir(config.out)
    cache = workdir / "features"
    with refusing():
        from cxr.bundle import save_bundle
        from detect.view.net import answer

        parts, others = choose_rows(config.data, config.negatives, config.split, config.also)
        field = LungField.load(config.field or None)
        (sha256,) = field.weights.values()
        require_writable(workdir.path, config.views * 30_000)
        keep_to_recipe(workdir.path, {**recipe_of(config), "field": sha256}, config.restart)
        workdir.start(to_plain(config), config.seed, field.weights)
        maker = ViewMaker(parts["train"], others, config.folds, config.seed)
    if config.restart:
        shutil.rmtree(cache, ignore_errors=True)
    films, val = parts["train"], parts["val"]
    log.info("%d films and %d other pictures train", len(films), len(maker.others))
    views = see_views(maker, field, config.views, cache)
    write_json(workdir / "folds.json", answer_folds(maker, field, views, config))
    head = fit_head(*views, config, config.seed)
    shares, mirrored = shares_of(answer(head, see(field, [read_grey(r) for r in val])))
    point = choose_point(shares[:, 0], mirrored, config.lost)
    save_bundle(
        workdir / "view.safetensors",
        "view",
        head.state_dict(),
        half=config.half,
        model={"channels": views[0].shape[1], "classes": len(CLASSES)},
        classes=CLASSES,
        field_sha256=sha256,
        operating_point=point,
        metrics={
            "lost": int((shares[:, 0] < point["frontal"]).sum()),
            "taken_for_mirrored": int((mirrored >= point["mirrored"]).sum()),
            "where": f"{len(val)} validation films, which chose the thresholds",
        },
        trained_on={
            "films": len(films),
            "patients": len({r.patient_id for r in films}),
            "sources": sorted({r.source for r in [*films, *maker.others]}),
            "others": Counter(map(class_of_negative, maker.others)),
            "views": config.views,
            "split": config.split,
            "also": config.also,
        },
        licence=LICENCE,
        provenance=provenance(field.weights),
    )
    shutil.rmtree(cache)
    console.print(f"thresholds {point}; wrote {workdir / 'view.safetensors'}", highlight=False)
    return 0
