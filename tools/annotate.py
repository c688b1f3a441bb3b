"""python tools/annotate.py COMMAND: boxes drawn by hand, from the first film to the merged file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.cli import Command, parse_command
from labelling import start
from labelling.start import StartConfig

PROG = "python tools/annotate.py"
COMMANDS: dict[str, tuple[Command, Callable[[Any], int]]] = {
    "start": (
        Command(
            StartConfig,
            f"{PROG} start films/ --session sessions/first --annotator mk "
            "--prelabel weights/thorax_lite0.safetensors",
            ("films",),
        ),
        start.run,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 for trouble with files or faults, 2 for arguments."""
    commands = {word: command for word, (command, _) in COMMANDS.items()}
    about = "Box the thorax by hand in labelme, check the boxes, compare readers, merge into COCO."
    config = parse_command(commands, argv, PROG, about)
    for command, run in COMMANDS.values():
        if isinstance(config, command.config_class):
            return run(config)
    raise AssertionError(f"no command for {config!r}")


if __name__ == "__main__":
    sys.exit(main())
