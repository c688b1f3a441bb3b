"""The shipped weights on real films: chests are boxed, a hip and a leg are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr.bundle import load_bundle
from cxr.film import read_film
from detect.finder import ThoraxFinder
from detect.predict import DEFAULT_WEIGHTS, ThoraxBox

CHESTS = (
    "nih_dx_pa_nofinding.dcm",
    "nih_dx_no_bodypart_no_view.dcm",
    "siim_cr_pa_jpeg.dcm",
    "barre_cr_mono1_10bit_chest.dcm",
)


@pytest.fixture(scope="module")
def detector() -> ThoraxFinder:
    return ThoraxFinder.load(device="cpu")


def box_of(detector: ThoraxFinder, path: Path) -> ThoraxBox:
    return detector.predict([read_film(path).pixels])[0]


def sample(name: str) -> Path:
    from pydicom.data import get_testdata_file

    found = get_testdata_file(name, download=False)
    if not isinstance(found, str):
        pytest.skip(f"{name} is missing: pip install -e .[samples]")
    return Path(found)


@pytest.mark.parametrize("name", CHESTS)
def test_real_chests_are_boxed(detector: ThoraxFinder, shared_data: Path, name: str) -> None:
    box = box_of(detector, shared_data / "dicom" / name)
    assert box.status == "ok" and box.xyxy is not None, box.reason
    height, width = read_film(shared_data / "dicom" / name).pixels.shape
    share = (box.xyxy[2] - box.xyxy[0]) * (box.xyxy[3] - box.xyxy[1]) / (height * width)
    assert 0.25 < share < 0.95


@pytest.mark.parametrize("name", ["RG1_UNCI.dcm", "RG1_J2KI.dcm", "RG1_J2KR.dcm"])
def test_the_sample_chest_is_boxed(detector: ThoraxFinder, name: str) -> None:
    assert box_of(detector, sample(name)).status == "ok"


def test_a_hip_is_refused(detector: ThoraxFinder, shared_data: Path) -> None:
    box = box_of(detector, shared_data / "dicom" / "nema_rg2_cr_hip_negative.dcm")
    assert box.status == "no_thorax" and box.xyxy is None and box.reason


@pytest.mark.parametrize("name", ["RG3_UNCI.dcm", "RG3_J2KI.dcm"])
def test_a_leg_is_refused(detector: ThoraxFinder, name: str) -> None:
    assert box_of(detector, sample(name)).status == "no_thorax"


def test_shipped_files_are_small_and_say_what_they_are(root: Path) -> None:
    files = [p for p in (root / "weights").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 90 * 2**20
    assert all(p.stat().st_size <= 16 * 2**20 for p in files)
    meta = load_bundle(DEFAULT_WEIGHTS, "thorax").meta
    assert meta["trained_on"]["publishable_only"] is True
    assert meta["operating_point"]["chosen_on"]["validation_films"] > 50
