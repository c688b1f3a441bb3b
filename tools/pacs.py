"""python tools/pacs.py COMMAND: films from the hospital's PACS in, results back as DICOM."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.cli import Command, as_command, run_command

PROG = "python tools/pacs.py"
ABOUT = (
    "Work beside a PACS: results writes a finished run's films as DICOM objects into a folder. "
    "For research only; nothing here is for clinical use."
)


def _command(module: str, example: str = "", *positionals: str) -> Command:
    """`hospital.MODULE` holds the word's configuration, MODULE + Config, and `run`."""
    config_class = f"hospital.{module}:{module.capitalize()}Config"
    words = f"{PROG} {module} {example}".strip()
    return Command(config_class, words, positionals, f"hospital.{module}:run")


COMMANDS = {
    "results": _command("results", "runs/first --out results", "runs"),
}


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 for trouble with files, 2 for arguments."""
    return run_command(COMMANDS, argv, PROG, ABOUT)


if __name__ == "__main__":
    sys.exit(main())
