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


# Word: what runs it, an example, and what is given without a flag.
_WORDS: dict[str, tuple[str, ...]] = {
    "start": (
        "start:run",
        "films/ --session sessions/first --annotator mk "
        "--prelabel weights/thorax_lite0.safetensors",
        "films",
    ),
    "review": ("review:run", "sessions/first --accept 1-24 --but 3,7 --doubtful 3", "session"),
    "status": ("overview:run", "sessions/first", "session"),
    "check": ("check:run", "sessions/first", "session"),
    "agree": ("agree:run", "sessions/first sessions/second", "readers"),
    "merge": ("merge:run", "sessions/first --into annotations/thorax.json", "session"),
    "export": ("exchange:run_export", "annotations/thorax.json --format voc --out voc", "source"),
    "import": (
        "exchange:run_import",
        "labels/ --format yolo --films films --into thorax.json",
        "path",
    ),
    "demo": ("demo:run", ""),
}
COMMANDS = {
    word: Command(
        f"labelling.{run.partition(':')[0]}:{word.capitalize()}Config",
        f"{PROG} {word} {example}".strip(),
        positionals,
        f"labelling.{run}",
    )
    for word, (run, example, *positionals) in _WORDS.items()
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 for trouble with files or faults, 2 for arguments."""
    return run_command(COMMANDS, argv, PROG, ABOUT)


if __name__ == "__main__":
    sys.exit(main())
