"""python tools/compare_explanations.py COMMAND: which of two explanations is better?

maps      the maps of one method over films, in one file
ssim      how alike the maps of several methods are
page      a page on which readers choose between two methods, not knowing which is which
read      what readers preferred, from the files that the page saved
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from comparing import likeness, maps, page, readers
from cxr.cli import Command, parse_command
from cxr.page.words import printable
from cxr.workdir import log

PROG = "python tools/compare_explanations.py"
ABOUT = (
    "Hold explanations of the same films against each other: maps makes those of one method, ssim "
    "says how alike two are, page asks readers which is better, read counts their choices."
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
    "maps": _job(
        maps.MapsConfig,
        maps.run,
        "maps --crops runs/crops --method grad_cam --data ../shared/data --showing "
        "--out runs/maps/grad_cam.safetensors",
        ("films",),
    ),
    "ssim": _job(
        likeness.SsimConfig,
        likeness.run,
        "ssim runs/maps/grad_cam.safetensors runs/maps/layercam.safetensors",
        ("maps",),
    ),
    "page": _job(
        page.PageConfig,
        page.run,
        "page runs/maps/grad_cam.safetensors runs/maps/layercam.safetensors --out runs/ask.html",
        ("maps",),
    ),
    "read": _job(
        readers.ReadConfig,
        readers.run,
        "read choices_mk.json choices_ab.csv --key runs/ask.key.json",
        ("choices",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 for files that do not fit, 2 for arguments."""
    config = parse_command({w: job.command for w, job in JOBS.items()}, argv, PROG, ABOUT)
    for job in JOBS.values():
        if isinstance(config, job.command.config_class):
            try:
                return job.run(config)
            except (ValueError, OSError) as error:
                log.error("%s", printable(str(error)))
                return 1
    raise AssertionError(f"no command for {config!r}")


if __name__ == "__main__":
    sys.exit(main())
