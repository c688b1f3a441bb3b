"""PixelMed's validator of structured reports finds nothing but the faults of its own age.

It takes half a minute a report, so it runs where it is asked for: LUNGFIRST_PIXELMED=1 pytest …
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hospital_world import WHEN, World, world  # noqa: F401 - a fixture

pytest.importorskip("highdicom", reason="the extra pacs is not installed")

from hospital.results import results_of

JAR = Path("/usr/share/java/pixelmed.jar")  # Debian's libpixelmed-java
VALIDATOR = "com.pixelmed.validate.DicomSRValidator"
LIMITS = [f"-Djdk.xml.xpath{limit}=0" for limit in ("TotalOpLimit", "ExprOpLimit", "ExprGrpLimit")]
PROCEDURE = 'Code (399208008,SCT,"Plain chest X-ray") not found in context group 100'  # extensible
REGION = '[Row 5] SCOORD (111030,DCM,"Image Region") Missing conditional content item'
SEGMENT = (
    '[Row 7] IMAGE (121214,DCM,"Referenced Segmentation Frame") Missing conditional content item'
)

pytestmark = [
    pytest.mark.skipif(not os.environ.get("LUNGFIRST_PIXELMED"), reason="LUNGFIRST_PIXELMED=1"),
    pytest.mark.skipif(not shutil.which("java"), reason="Java is not installed"),
    pytest.mark.skipif(not JAR.exists(), reason="libpixelmed-java is not installed"),
]


@pytest.mark.parametrize(
    ("stem", "allowed"), [("latin", {PROCEDURE, REGION, SEGMENT}), ("leg", {PROCEDURE})]
)
def test_pixelmed_complains_of_nothing_new(
    world: World,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stem: str,
    allowed: set[str],
) -> None:
    monkeypatch.chdir(root)
    made = dict(results_of(world.run, None, ("sr",), "comprehensive", WHEN))
    path = tmp_path / "sr.dcm"
    made[world.rows[stem].film][0].save_as(path, enforce_file_format=True)
    command = [
        "java",
        *LIMITS,
        "-cp",
        "/usr/share/java/*",
        "com.pixelmed.validate.DicomSRValidator",
    ]
    told = subprocess.run([*command, path], capture_output=True, text=True, timeout=300)
    lines = (told.stdout + told.stderr).splitlines()
    errors = {short(line) for line in lines if line.startswith("Error")}
    assert errors == allowed


def short(line: str) -> str:
    """An error without the places at which it was found."""
    if code := re.search(r"Code \(.*", line):
        return code[0]
    row = re.search(r"Template 1410.*/(\[Row \d+\] \w+ \([^)]*\))", line)
    return f"{row[1]} {line.rpartition(': ')[2]}" if row else line
