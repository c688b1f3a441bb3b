"""annotate.py demo: a session on drawn chests and a real sample film, for a first look."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxr.draw import encode_png
from cxr.intensity import to_uint16
from cxr.workdir import write_atomic
from labelling import start
from labelling.phantom import draw_chest
from labelling.rule_pictures import write_rule_pictures

SIZES_HW = ((1000, 900), (900, 1100), (1200, 1000), (800, 800), (1000, 760), (900, 1000))
SAMPLE = "RG1_UNCI.dcm"  # of pydicom-data: a real chest, 15 bits, MONOCHROME1


@dataclass(frozen=True)
class DemoConfig:
    """Make a session of drawn 16-bit chests, and of a real sample film where pydicom-data is
    installed, with pre-labels, and open labelme on it.

    Args:
        out: folder for the films and the session.
        open: open labelme; with false the session is only prepared.
        rule: only draw the two pictures of the rule of the box, into this folder.
    """

    out: str = "runs/annotate_demo"
    open: bool = True
    rule: str = ""


def run(config: DemoConfig) -> int:
    """Write the films, start the session, say what can be tried next; 0 when that went well."""
    if config.rule:
        write_rule_pictures(Path(config.rule))
        return 0
    from detect.predict import DEFAULT_WEIGHTS  # late: the pictures of the rule need no torch

    out = Path(config.out)
    write_films(out / "films")
    session = out / "session"
    prelabel = str(DEFAULT_WEIGHTS) if DEFAULT_WEIGHTS.exists() else ""
    code = start.run(
        start.StartConfig(
            (str(out / "films"),), str(session), "demo", prelabel=prelabel, open=config.open
        )
    )
    print(
        "\nWhat to try next:\n"
        f"  python tools/annotate.py review {session}                  all boxes on a sheet\n"
        f"  python tools/annotate.py review {session} --accept 1-3     accept what you saw there\n"
        f"  python tools/annotate.py status {session}\n"
        f"  python tools/annotate.py check {session}\n"
        f"  python tools/annotate.py merge {session} --into {out / 'thorax.json'}"
    )
    return code


def write_films(folder: Path) -> list[Path]:
    """Six drawn chests as 16-bit PNG, and the real sample film; those that are there stay."""
    paths = []
    for seed, (height, width) in enumerate(SIZES_HW):
        path = folder / f"drawn{seed}.png"
        if not path.exists():
            pixels, _ = draw_chest(height, width, seed)
            write_atomic(path, encode_png(to_uint16(pixels.astype(np.float32))))
        paths.append(path)
    sample = _sample_film()
    if sample:
        path = folder / SAMPLE
        if not path.exists():
            write_atomic(path, sample.read_bytes())
        paths.append(path)
    else:
        print("no real sample film: pip install -e .[samples] brings one", file=sys.stderr)
    return paths


def _sample_film() -> Path | None:
    from pydicom.data import get_testdata_file

    found = get_testdata_file(SAMPLE, download=False)
    return Path(found) if isinstance(found, str) else None
