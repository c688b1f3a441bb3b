"""Trains an ensemble of SCXNN members on crops or on whole films.

python -m classify.train --config configs/classify/kermany_crops.yaml --crops runs/crops_data
python -m classify.train --config configs/classify/kermany_films.yaml --max_films 60

The other trainings are commands of their own, which start here too: classify.single,
classify.crossfit, classify.finetune, classify.pretrain and classify.iscore_train.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from classify.tasks import settings
from cxr.cli import as_command, load_named, parse_config
from cxr.rules import refusing
from cxr.training.recipe import require_writable
from cxr.workdir import log


@dataclass(frozen=True)
class Task:
    """What one command trains: its settings, the function that does it (imported when the work
    begins, since it loads torch), an example, and what is said in the end."""

    config_class: type[Any]
    train: str
    example: str
    says: str = ""


_FILES = "answers, figures and pictures: %s"
TASKS = {
    "train": Task(
        settings.TrainConfig, "member:train_ensemble", "kermany_crops.yaml --max_films 60"
    ),
    "crossfit": Task(
        settings.CrossfitConfig,
        "member:crossfit",
        "kermany_crops.yaml --crops runs/crops_data",
        "answers and the screener's split: %s",
    ),
    "single": Task(settings.SingleConfig, "single:train_single", "fusion.yaml", _FILES),
    "finetune": Task(settings.FinetuneConfig, "single:finetune", "unet_cbam.yaml", _FILES),
    "pretrain": Task(settings.PretrainConfig, "restore:pretrain", "pretrain_unet_cbam.yaml"),
    "iscore_train": Task(
        settings.IscoreConfig, "select:train_iscore", "iscore.yaml", "answers and figures: %s"
    ),
}


def run_task(name: str, argv: Sequence[str] | None = None) -> int:
    """Train what is not finished yet; 2 for settings, files or a loss that do not fit."""
    return as_command(partial(_run, name))(argv)


def _run(name: str, argv: Sequence[str] | None) -> int:
    task, command = TASKS[name], f"python -m classify.{name}"
    example = f"{command} --config configs/classify/{task.example}"
    config = parse_config(task.config_class, argv, example)
    with refusing():
        if not (Path(config.out) / "done.json").exists():  # a finished one may be read-only
            require_writable(config.out)
        made: Path = load_named(f"classify.tasks.{task.train}")(config)
    if task.says:
        log.info(task.says, made)
    return 0


# what each command runs, in the order of TASKS
main, crossfit, single, finetune, pretrain, iscore_train = (partial(run_task, n) for n in TASKS)


if __name__ == "__main__":
    sys.exit(main())
