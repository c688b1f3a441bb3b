"""python -m detect.view train | evaluate"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxr.cli import Command, as_command, run_command

PROG = "python -m detect.view"
COMMANDS = {
    "train": Command(
        "detect.view.head:ViewTrainConfig",
        f"{PROG} train --config configs/detect/view.yaml",
        run="detect.view.head:train",
    ),
    "evaluate": Command(
        "detect.view.head:ViewEvaluateConfig",
        f"{PROG} evaluate --folds runs/view/folds.json --out runs/view_evaluate",
        run="detect.view.head:evaluate",
    ),
}


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command with its two words."""
    return run_command(COMMANDS, argv, PROG, "Tell upright frontal chest films from all else.")


if __name__ == "__main__":
    sys.exit(main())
