"""Trains one network for K classes, as the papers do: a backbone, or the fusion of three.

python -m classify.single --config configs/classify/fusion.yaml
python -m classify.single --config configs/classify/backbone.yaml --max_films 60 --optim.epochs 1
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from classify.singles.config import SingleConfig
from classify.singles.fit import train_single
from cxr.cli import parse_config
from cxr.training.learner import NonFiniteLossError
from cxr.workdir import log

EXAMPLE = "python -m classify.single --config configs/classify/fusion.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not finished yet; 2 for settings or files that do not fit."""
    config = parse_config(SingleConfig, argv, prog="python -m classify.single", example=EXAMPLE)
    try:
        folder = train_single(config)
    except (ValueError, OSError, ImportError, NonFiniteLossError) as error:
        log.error("%s", error)
        return 2
    log.info("answers, figures and pictures: %s", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
