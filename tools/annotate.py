"""python tools/annotate.py COMMAND: boxes drawn by hand, from the first film to the merged file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.cli import Command, run_command

PROG = "python tools/annotate.py"
ABOUT = (
    "Box the thorax by hand: start opens labelme on a folder of films, review accepts many at a "
    "glance, check finds slips, agree compares two readers, merge makes the COCO file that "
    "detect.train reads."
)


def _command(run: str, example: str = "", *positionals: str, word: str = "") -> Command:
    """`run` is module:function of labelling; the word is the module's name unless given."""
    module = run.partition(":")[0]
    word = word or module
    config_class = f"labelling.{module}:{word.capitalize()}Config"
    return Command(
        config_class, f"{PROG} {word} {example}".strip(), positionals, f"labelling.{run}"
    )


COMMANDS = {
    "start": _command(
        "start:run",
        "films/ --session sessions/first --annotator mk "
        "--prelabel weights/thorax_lite0.safetensors",
        "films",
    ),
    "review": _command(
        "review:run", "sessions/first --accept 1-24 --but 3,7 --doubtful 3", "session"
    ),
    "status": _command("overview:run", "sessions/first", "session", word="status"),
    "check": _command("check:run", "sessions/first", "session"),
    "agree": _command("agree:run", "sessions/first sessions/second", "readers"),
    "merge": _command("merge:run", "sessions/first --into annotations/thorax.json", "session"),
    "export": _command(
        "exchange:run_export",
        "annotations/thorax.json --format voc --out voc",
        "source",
        word="export",
    ),
    "import": _command(
        "exchange:run_import",
        "labels/ --format yolo --films films --into thorax.json",
        "path",
        word="import",
    ),
    "demo": _command("demo:run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 for trouble with files or faults, 2 for arguments."""
    return run_command(COMMANDS, argv, PROG, ABOUT)


if __name__ == "__main__":
    sys.exit(main())
