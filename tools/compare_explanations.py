"""python tools/compare_explanations.py COMMAND: which of two explanations is better?

maps      the maps of one method over films, in one file
ssim      how alike the maps of several methods are
page      a page on which readers choose between two methods, not knowing which is which
read      what readers preferred, from the files that the page saved
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from cxr.cli import Command, run_command
from cxr.page import printable
from cxr.workdir import log

PROG = "python tools/compare_explanations.py"
ABOUT = (
    "Hold explanations of the same films against each other: maps makes those of one method, ssim "
    "says how alike two are, page asks readers which is better, read counts their choices."
)
_TWO = "runs/maps/grad_cam.safetensors runs/maps/layercam.safetensors"


COMMANDS = {
    "maps": Command(
        "comparing:MapsConfig",
        f"{PROG} maps --crops runs/crops --method grad_cam --data ../shared/data --showing "
        "--out runs/maps/grad_cam.safetensors",
        ("films",),
        "comparing:run_maps",
    ),
    "ssim": Command("comparing:SsimConfig", f"{PROG} ssim {_TWO}", ("maps",), "comparing:run_ssim"),
    "page": Command(
        "comparing.page:PageConfig",
        f"{PROG} page {_TWO} --out runs/ask.html",
        ("maps",),
        "comparing.page:run_page",
    ),
    "read": Command(
        "comparing.page:ReadConfig",
        f"{PROG} read choices_mk.json choices_ab.csv --key runs/ask.key.json",
        ("choices",),
        "comparing.page:run_read",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 for files that do not fit, 2 for arguments."""
    try:
        return run_command(COMMANDS, argv, PROG, ABOUT)
    except (ValueError, OSError) as error:
        log.error("%s", printable(str(error)))
        return 1


if __name__ == "__main__":
    sys.exit(main())
