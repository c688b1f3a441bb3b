"""python tools/annotate.py COMMAND: boxes drawn by hand, from the first film to the merged file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.cli import Command, parse_command
from labelling import agree, check, demo, exchange, merge, review, start, status

PROG = "python tools/annotate.py"
ABOUT = (
    "Box the thorax by hand: start opens labelme on a folder of films, review accepts many at a "
    "glance, check finds slips, agree compares two readers, merge makes the COCO file that "
    "detect.train reads."
)


class Job(NamedTuple):
    """One word of the command: how it is parsed and what runs it."""

    command: Command
    run: Callable[[Any], int]


def _job(
    config_class: type[Any], run: Callable[[Any], int], example: str, positionals: Sequence[str]
) -> Job:
    return Job(Command(config_class, f"{PROG} {example}", positionals), run)


JOBS = {
    "start": _job(
        start.StartConfig,
        start.run,
        "start films/ --session sessions/first --annotator mk "
        "--prelabel weights/thorax_lite0.safetensors",
        ("films",),
    ),
    "review": _job(
        review.ReviewConfig,
        review.run,
        "review sessions/first --accept 1-24 --but 3,7 --doubtful 3",
        ("session",),
    ),
    "status": _job(status.StatusConfig, status.run, "status sessions/first", ("session",)),
    "check": _job(check.CheckConfig, check.run, "check sessions/first", ("session",)),
    "agree": _job(
        agree.AgreeConfig, agree.run, "agree sessions/first sessions/second", ("readers",)
    ),
    "merge": _job(
        merge.MergeConfig,
        merge.run,
        "merge sessions/first --into annotations/thorax.json",
        ("session",),
    ),
    "export": _job(
        exchange.ExportConfig,
        exchange.run_export,
        "export annotations/thorax.json --format voc --out voc",
        ("source",),
    ),
    "import": _job(
        exchange.ImportConfig,
        exchange.run_import,
        "import labels/ --format yolo --films films --into thorax.json",
        ("path",),
    ),
    "demo": _job(demo.DemoConfig, demo.run, "demo", ()),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 for trouble with files or faults, 2 for arguments."""
    commands = {word: job.command for word, job in JOBS.items()}
    config = parse_command(commands, argv, PROG, ABOUT)
    for job in JOBS.values():
        if isinstance(config, job.command.config_class):
            return job.run(config)
    raise AssertionError(f"no command for {config!r}")


if __name__ == "__main__":
    sys.exit(main())
