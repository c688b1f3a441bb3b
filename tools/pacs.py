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
    "Work beside a PACS: check tries everything on this machine, serve receives films, judges them "
    "and sends the results back, status and worklist tell how far it is, pull asks for films that "
    "were missed, send empties the outbox, results writes a finished run's films as DICOM objects "
    "into a folder. For research only; nothing here is for clinical use."
)


_SITE = "--config configs/pacs.yaml"


def _command(run: str, word: str, example: str = "", *positionals: str) -> Command:
    """`run` is module:function of hospital; its configuration, WORD + Config, stands beside it."""
    config_class = f"hospital.{run.partition(':')[0]}:{word.capitalize()}Config"
    words = f"{PROG} {word} {example}".strip()
    return Command(config_class, words, positionals, f"hospital.{run}")


COMMANDS = {
    "check": _command("check:run", "check"),
    "serve": _command("service:run", "serve", _SITE),
    "status": _command("service:tell", "status", _SITE),
    "worklist": _command("worklist:run", "worklist", f"{_SITE} --page worklist.html"),
    "pull": _command("dicomweb:run", "pull", _SITE),
    "send": _command("outbox:run", "send", f"{_SITE} --again"),
    "results": _command("results:run", "results", "runs/first --out results", "runs"),
}


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 for trouble with files, 2 for arguments."""
    return run_command(COMMANDS, argv, PROG, ABOUT)


if __name__ == "__main__":
    sys.exit(main())
