"""Training of the lung field's network: `python -m detect.lungfield train --config …`"""

from __future__ import annotations

from dataclasses import dataclass, field

from cxr.cli import to_plain
from cxr.rules import refusing, require
from cxr.training.recipe import disk_need, free, keep_to_recipe, require_writable
from cxr.workdir import Workdir, console, log, seed_everything
from detect.data import FieldDataConfig, select_rows
from detect.settings import FieldNetConfig, LoopConfig
from detect.train import fit, write_bundle

BUNDLE = "lungfield.safetensors"


@dataclass(frozen=True)
class FieldTrainConfig(LoopConfig):
    """Train the lung-field network and write it as one bundle.

    The run's folder holds run.json, run.log, checkpoints/, TensorBoard events, history.json,
    curves.png, val_fields.png and, at the end, lungfield.safetensors with the best epoch's
    weights. A killed run goes on where its last checkpoint stands.

    Args:
        data: films, masks and their split.
        model: the network.
        crops: share of the training pictures that are random crops about the lungs.
        negatives: share of the training pictures replaced by ones without lungs.
        fields_every: epochs between two pictures of validation fields; 0 for none.
    """

    out: str = free("runs/lungfield")
    data: FieldDataConfig = field(default_factory=FieldDataConfig)
    model: FieldNetConfig = field(default_factory=FieldNetConfig)
    crops: float = 0.4
    negatives: float = 0.06
    batch: int = 8
    ema: float = 0.99
    fields_every: int = free(5)

    def __post_init__(self) -> None:
        for name in ("crops", "negatives"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"--{name} must lie in [0, 1]", value)


def train(config: FieldTrainConfig) -> int:
    """Read films, fit, write the bundle; RefusedError when data, weights or an earlier run do not
    fit."""
    workdir, root, side = Workdir(config.out), config.data.data, config.model.side
    with refusing():
        rows, val_rows, made = select_rows(config.data, config.seed)
        from detect.lungfield.dataset import FieldAugment, FieldDataset, FieldModule, field_tile
        from detect.lungfield.net import build_field_net

        seed_everything(config.seed)  # the first weights hang on it, too
        model, optim = build_field_net(config.model), config.to_optim()
        require_writable(workdir.path, disk_need(model))
        keep_to_recipe(workdir.path, config, config.restart)
        if made:
            made.save(workdir / "split.json")
        workdir.start(to_plain(config), config.seed)
        films = FieldDataset(rows, root, side, FieldAugment(config.crops), config.negatives)
        val = FieldDataset(val_rows, root, side)
    counts = len(films.items), len(val.items)
    log.info("%d films to train, %d to validate, each whole and as a crop", *counts)
    module = FieldModule(model, optim, config.patience)
    picture = (workdir / "val_fields.png", config.fields_every, field_tile)
    best = fit(config, workdir, module, films, val, picture)
    write_bundle(
        config,
        workdir / BUNDLE,
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
    console.print(f"best validation IoU {best['val_iou']:.4f}; wrote {workdir / BUNDLE}")
    return 0
