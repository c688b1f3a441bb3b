"""python tools/annotate.py COMMAND: boxes drawn by hand, from the first film to the merged file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.cli import Command, parse_command, parse_config

PROG = "python tools/annotate.py"
ABOUT = (
    "Box the thorax by hand: start opens labelme on a folder of films, review accepts many at a "
    "glance, check finds slips, agree compares two readers, merge makes the COCO file that "
    "detect.train reads."
)


# word: what runs it, its positional argument, an example
JOBS = {
    "start": (
        "start.run",
        ("films",),
        "films/ --session sessions/first --annotator mk "
        "--prelabel weights/thorax_lite0.safetensors",
    ),
    "review": ("review.run", ("session",), "sessions/first --accept 1-24 --but 3,7 --doubtful 3"),
    "status": ("status.run", ("session",), "sessions/first"),
    "check": ("check.run", ("session",), "sessions/first"),
    "agree": ("agree.run", ("readers",), "sessions/first sessions/second"),
    "merge": ("merge.run", ("session",), "sessions/first --into annotations/thorax.json"),
    "export": (
        "exchange.run_export",
        ("source",),
        "annotations/thorax.json --format voc --out voc",
    ),
    "import": (
        "exchange.run_import",
        ("path",),
        "labels/ --format yolo --films films --into thorax.json",
    ),
    "demo": ("demo.run", (), ""),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 for trouble with files or faults, 2 for arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    word = words[0] if words else ""
    examples = {name: f"{PROG} {name} {job[2]}".strip() for name, job in JOBS.items()}
    if word not in JOBS:  # the help, or a refusal; both exit
        commands = {name: Command(object, example) for name, example in examples.items()}
        return int(parse_command(commands, words, PROG, ABOUT))
    runner, positionals, _ = JOBS[word]
    module_name, _, function = runner.partition(".")
    module = import_module(f"labelling.{module_name}")  # no command pays for another's libraries
    config_class = getattr(module, f"{word.capitalize()}Config")
    config = parse_config(config_class, words[1:], f"{PROG} {word}", examples[word], positionals)
    return int(getattr(module, function)(config))


if __name__ == "__main__":
    sys.exit(main())
