"""python -m detect.lungfield train | evaluate | predict"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxr.cli import Command, parse_command


def main(argv: Sequence[str] | None = None) -> int:
    """The command with its three words."""
    # late: an audit that segments pays for neither trainer nor tables
    from detect.lungfield.evaluate import FieldEvaluateConfig, evaluate
    from detect.lungfield.predict import FieldPredictConfig, predict
    from detect.lungfield.train import FieldTrainConfig, train

    run = "python -m detect.lungfield"
    commands = {
        "train": Command(FieldTrainConfig, f"{run} train --config configs/detect/lungfield.yaml"),
        "evaluate": Command(FieldEvaluateConfig, f"{run} evaluate --part test --out runs/test"),
        "predict": Command(
            FieldPredictConfig, f"{run} predict ../shared/data/dicom --out runs/fields", ("films",)
        ),
    }
    config = parse_command(commands, argv, run, "Segment the lung field of chest films.")
    if isinstance(config, FieldTrainConfig):
        return train(config)
    return evaluate(config) if isinstance(config, FieldEvaluateConfig) else predict(config)


if __name__ == "__main__":
    sys.exit(main())
