"""python -m detect.lungfield train | evaluate | predict"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxr.cli import Command, as_command, run_command

PROG = "python -m detect.lungfield"
ROOM = "detect.lungfield"
COMMANDS = {
    "train": Command(
        "detect.settings:FieldTrainConfig",
        f"{PROG} train --config configs/detect/lungfield.yaml",
        run="detect.train:train_field",
    ),
    "evaluate": Command(
        f"{ROOM}.evaluate:FieldEvaluateConfig",
        f"{PROG} evaluate --part test --out runs/test",
        run=f"{ROOM}.evaluate:evaluate",
    ),
    "predict": Command(
        f"{ROOM}.predict:FieldPredictConfig",
        f"{PROG} predict ../shared/data/dicom --out runs/fields",
        ("films",),
        f"{ROOM}.predict:predict",
    ),
}


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command with its three words."""
    return run_command(COMMANDS, argv, PROG, "Segment the lung field of chest films.")


if __name__ == "__main__":
    sys.exit(main())
