"""The resume rule of all trainings: a folder goes on with the settings it was begun with.

A setting may change between a stop and the next start where its field is `free`: it says where,
how fast, or what is told, and leaves what is learnt as it is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from cxr.cli import to_plain
from cxr.rules import require, require_same_settings, require_share
from cxr.workdir import read_json, write_json

CHOICES = ("val_loss", "val_auc")  # what the kept epoch is chosen by


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule of one phase. The defaults are the thesis'.

    Args:
        optimizer: adam, adamw or sgd.
        rate: learning rate at its highest.
        encoder_rate: factor on the rate for the pretrained encoder.
        weight_decay: of all weights that are trained.
        schedule: plateau (the thesis), cosine, onecycle or constant.
        epochs: at most this many.
        warmup_epochs: cosine only: the rate rises from 0 over these epochs (fractions count).
        patience: plateau: epochs without gain of the validation loss before the rate is cut;
            the others: epochs without gain in what the best epoch is chosen by (members: macro
            AUC) before the end, 0 for never.
        factor: plateau: the cut.
        floor_rate: plateau: below this rate, `patience` epochs without gain end the training.
        clip_norm: largest norm of the gradient; 0 for none.
        ema_decay: moving average of the weights over steps, which is what is validated and kept;
            0 for none.
    """

    optimizer: str = "adam"
    rate: float = 1e-3
    encoder_rate: float = 1.0
    weight_decay: float = 5e-4
    schedule: str = "plateau"
    epochs: int = 300
    warmup_epochs: float = 0.0
    patience: int = 50
    factor: float = 0.5
    floor_rate: float = 1e-4
    clip_norm: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "adamw", "sgd"):
            raise ValueError(f"optimizer must be adam, adamw or sgd. Got {self.optimizer!r}.")
        known = self.schedule in ("plateau", "cosine", "onecycle", "constant")
        require(known, "schedule must be plateau, cosine, onecycle or constant", self.schedule)
        if self.rate <= 0 or self.epochs < 1 or not 0 < self.factor < 1:
            raise ValueError(
                "rate must be positive, epochs at least 1, factor in (0, 1). Got "
                f"{self.rate}, {self.epochs}, {self.factor} instead."
            )
        require_share(self, "ema_decay", below=1)


def free(default: Any) -> Any:
    """A field of a settings dataclass that a resumed training may have otherwise."""
    return field(default=default, metadata={"free": True})


def recipe_of(config: Any) -> dict[str, Any]:
    """All settings of a dataclass but its free ones, nested ones too, as plain values."""
    return {
        f.name: recipe_of(value) if is_dataclass(value) else to_plain(value)
        for f in fields(config)
        if not f.metadata.get("free")
        for value in [getattr(config, f.name)]
    }


def check_recipe(folder: str | Path, settings: Any, restart: bool | None = None) -> None:
    """Raise ValueError, naming what differs, where the work in `folder` was begun with other
    settings than it would go on with, and is not to `restart` (None: the command has no such flag).
    Of `settings` that are a dataclass the free fields do not count; of plain values all do. A
    folder from before there were recipes is known by the settings in its run.json."""
    path, run = Path(folder) / "recipe.json", Path(folder) / "run.json"
    after, before = flatten(_plain(settings)), None
    if path.exists():
        before = flatten(read_json(path)["settings"])
    elif run.exists():
        begun = flatten(read_json(run).get("config", {}))
        if after.keys() <= begun.keys():  # else it is another command's
            before = {name: begun[name] for name in after}
    if before is not None and not restart:
        way = ["remove that folder"] * (restart is None)
        require_same_settings(folder, before, after, *way)


def keep_to_recipe(folder: str | Path, settings: Any, restart: bool | None = None) -> None:
    """`check_recipe`, then note in recipe.json with which settings the work was begun."""
    check_recipe(folder, settings, restart)
    path = Path(folder) / "recipe.json"
    if restart or not path.exists():
        require_writable(folder)
        plain = _plain(settings)
        mark = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
        write_json(path, {"sha256": mark, "settings": plain})


def require_writable(folder: str | Path, needed_bytes: int = 0, name: str = "--out") -> None:
    """Make the folder of a run and see, before hours of work, that its results will find a place.
    Raises ValueError where nothing can be written there, or less than `needed_bytes` (see
    `disk_need`) is free."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise ValueError(
            f"{name} must be a folder that can be written. Got {folder}: {error.strerror}. Give "
            "another one, or the right to write there."
        ) from error
    if free_bytes < needed_bytes:
        raise ValueError(
            f"{name} must lie where {needed_bytes / 1e9:.1f} GB are free, for what is written "
            f"there. {folder} has {free_bytes / 1e9:.1f} GB: free some, or give another folder."
        )


def disk_need(model: Any) -> int:
    """Bytes that a training of a torch network takes on disk at most: its best and last checkpoint
    with Adam's two moments and averaged weights, a third while one is replaced, and the bundle."""
    return 10 * sum(p.numel() * p.element_size() for p in model.parameters()) + (64 << 20)


def _plain(settings: Any) -> dict[str, Any]:
    """As JSON gives them back."""
    plain: dict[str, Any] = recipe_of(settings) if is_dataclass(settings) else settings
    return dict(json.loads(json.dumps(plain)))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        whole = f"{prefix}{name}"
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{whole}.") if nested else {whole: value}
    return flat
