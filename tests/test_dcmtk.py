"""Every film as DCMTK shows it: an independent reading of the standard, where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from dicom_films import JLS, JLS_NEAR, codes

from cxr.film import Film, read_film
from cxr.intensity import resize
from cxr.notes import FilmError

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
OWN_RANGE = {"no_window", "window_unusable", "window_empty"}

pytestmark = pytest.mark.skipif(not shutil.which("dcmj2pnm"), reason="DCMTK is not installed")


def films() -> list[Path]:
    folders = [
        Path(pydicom.__file__).parent / "data/test_files",
        *(SHARED / part for part in ("data/dicom", "more/dicom")),
        *(SHARED / "faults" / part for part in ("failing", "passing")),
    ]
    return sorted({path for folder in folders for path in folder.glob("*.dcm")})


def by_dcmtk(path: Path, film: Film, target: Path) -> np.ndarray | None:
    """(H, W) in [0, 1] by the window that the film was shown with; None where DCMTK gives none."""
    header, noted = pydicom.dcmread(path, force=True, stop_before_pixels=True), codes(film.notes)
    by_table = "VOILUTSequence" in header and "lut_ignored" not in noted
    window = ["+Wl" if by_table else "+Wi", "1"]
    if header.get("SamplesPerPixel") == 3:
        window = []
    elif noted & OWN_RANGE:
        window = ["+Wm"]
    syntax = str(header.file_meta.get("TransferSyntaxUID"))
    command = "dcml2pnm" if syntax in (JLS, JLS_NEAR) else "dcmj2pnm"
    order = [command, "-q", "-O", "+on2", *window, str(path), str(target)]
    if subprocess.run(order, capture_output=True).returncode or not target.exists():
        return None
    shown = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
    target.unlink()
    shown = shown.astype(np.float64) / np.iinfo(shown.dtype).max
    if shown.ndim == 3:
        shown = shown[..., ::-1] @ (0.299, 0.587, 0.114)
    return resize(shown.astype(np.float32), film.pixels.shape) if film.stored_hw else shown


@pytest.mark.filterwarnings("ignore")
def test_films_agree_with_dcmtk_but_for_those_that_the_page_lists(tmp_path):
    compared, apart = 0, {}
    for path in films():
        try:
            film = read_film(path, for_processing=True)
        except FilmError:
            continue
        shown = by_dcmtk(path, film, tmp_path / "shown.png")
        if shown is not None:
            compared += 1
            worst = float(np.abs(shown - film.pixels).max())
            apart |= {path.name: worst} if worst > 0.01 else {}
    page = (ROOT / "docs/reading.md").read_text(encoding="utf-8").partition("## Against DCMTK")[2]
    listed = set(re.findall(r"^\| `(\S+\.dcm)`", page, re.MULTILINE))
    here = {path.name for path in films()}
    assert compared > (30 if SHARED.exists() else 10)
    assert set(apart) == listed & here, apart
