"""python tools/demo.py: the main job on real sample films, as `make demo` runs it.

The films come from the PyPI package pydicom-data: a chest with many round masses (uncompressed and
JPEG 2000) and a leg, which must be refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from classify import run
from cxr.cli import parse_config

SAMPLES = ("RG1_UNCI.dcm", "RG1_J2KI.dcm", "RG3_UNCI.dcm")


@dataclass(frozen=True)
class DemoConfig:
    """Box, crop, classify and screen three sample films, and write a page to look at.

    Args:
        out: the run's folder; report.html is the page.
    """

    out: str = "runs/demo"


def sample_films() -> list[Path]:
    """The sample DICOM files of pydicom-data; raises FileNotFoundError with the remedy."""
    from pydicom.data import get_testdata_file

    paths = []
    for name in SAMPLES:
        found = get_testdata_file(name, download=False)
        if not isinstance(found, str):
            raise FileNotFoundError(f"the sample film {name} is missing: pip install -e .[samples]")
        paths.append(Path(found))
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main job on the samples; 0 when it ran."""
    config = parse_config(DemoConfig, argv, "python tools/demo.py", "python tools/demo.py")
    try:
        films = sample_films()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    code = run.main([*map(str, films), "--crops", "--out", config.out, "--restart"])
    print(f"\nOpen {Path(config.out) / 'report.html'} in a browser.")
    return code


if __name__ == "__main__":
    sys.exit(main())
