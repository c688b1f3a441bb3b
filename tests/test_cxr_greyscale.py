"""The grey-value chain, with values worked out from the standard."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_films import BIG, EXPLICIT, codes, film, ramp, written
from pydicom.dataset import Dataset

from cxr.dicom import read_dicom


def test_a_window_maps_to_zero_and_one_as_the_standard_says():
    """Centre 1000, width 401: black to 799.5, white from 1199.5, 0.5 at 999.5."""
    stored = ramp()
    got = read_dicom(written(film(stored, WindowCenter=1000, WindowWidth=401))).pixels
    assert np.allclose(got, np.clip((stored - 999.5) / 400 + 0.5, 0, 1), atol=1e-6)
    assert got[0, 0] == 0 and got[-1, -1] == 1


def test_the_first_of_several_windows_is_used():
    one = read_dicom(written(film(ramp(), WindowCenter=1000, WindowWidth=401))).pixels
    ds = film(ramp(), WindowCenter=[1000, 3000], WindowWidth=[401, 50])
    assert np.array_equal(read_dicom(written(ds)).pixels, one)


def test_monochrome1_is_inverted_after_the_window():
    """The window lies off the middle, so that turning first would give another picture."""
    header = {"WindowCenter": 1000, "WindowWidth": 401}
    plain = read_dicom(written(film(ramp(), **header))).pixels
    turned = read_dicom(written(film(ramp(), PhotometricInterpretation="MONOCHROME1", **header)))
    assert np.allclose(turned.pixels, 1 - plain, atol=1e-6)
    first = 4095 - ramp().astype(np.float64)
    assert not np.allclose(turned.pixels, np.clip((first - 999.5) / 400 + 0.5, 0, 1), atol=0.1)
    assert "monochrome1" in codes(turned.notes)


@pytest.mark.parametrize(
    ("photometric", "shape", "turned"),
    [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
    ],
)
def test_presentation_lut_shape_and_monochrome1_never_turn_twice(photometric, shape, turned):
    ds = film(ramp(), PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    want = ramp() / 4095
    assert np.allclose(read_dicom(written(ds)).pixels, 1 - want if turned else want, atol=1e-6)


def test_rescale_comes_before_the_window():
    ds = film(ramp(), RescaleSlope="0.5", RescaleIntercept="-100")
    ds.WindowCenter, ds.WindowWidth = "400", "201"
    want = np.clip((ramp() * 0.5 - 100 - 399.5) / 200 + 0.5, 0, 1)
    assert np.allclose(read_dicom(written(ds)).pixels, want, atol=1e-6)


def test_a_falling_rescale_slope_turns_the_film():
    got = read_dicom(written(film(ramp(), RescaleSlope="-1", RescaleIntercept="4095"))).pixels
    assert np.allclose(got, 1 - ramp() / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "at_centre", "at_low_edge"),
    [("LINEAR_EXACT", 0.5, 0.0), ("SIGMOID", 0.5, 1 / (1 + np.exp(2)))],
)
def test_voi_functions_other_than_linear(function, at_centre, at_low_edge):
    stored = ramp()
    stored[0, 0], stored[0, 1] = 1000, 800
    ds = film(stored, WindowCenter=1000, WindowWidth=400, VOILUTFunction=function)
    got = read_dicom(written(ds)).pixels
    assert got[0, 0] == pytest.approx(at_centre)
    assert got[0, 1] == pytest.approx(at_low_edge, abs=1e-6)


@pytest.mark.parametrize("width", [0, -5])
def test_an_unusable_window_falls_back_to_min_max_and_says_so(width):
    got = read_dicom(written(film(ramp(), WindowCenter=100, WindowWidth=width)))
    assert "window_unusable" in codes(got.notes)
    assert got.pixels.max() == 1


def test_a_window_beside_all_pixels_falls_back_to_min_max_and_says_so():
    got = read_dicom(written(film(ramp(), WindowCenter=30000, WindowWidth=100)))
    assert "window_empty" in codes(got.notes)
    assert np.allclose(got.pixels, ramp() / 4095, atol=1e-6)


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("syntax", [EXPLICIT, BIG])
def test_lookup_tables_are_applied(keyword, syntax):
    """A table of 1,024 entries from value 1,000 on that falls from 4,095 to 0."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [1024, 1000, 12])
    item.add_new("LUTData", "US", [4095 - 4095 * i // 1023 for i in range(1024)])
    item.ModalityLUTType = "US"
    ds = film(ramp())
    setattr(ds, keyword, [item])
    want = 1 - np.clip((ramp().astype(np.float64) - 1000) / 1023, 0, 1)
    assert np.allclose(read_dicom(written(ds, syntax)).pixels, want, atol=1e-3)


def test_padding_is_left_out_of_the_scale_and_becomes_black():
    stored = ramp() // 2 + 1000
    stored[:, :5] = 4000
    ds = film(stored, PixelPaddingValue=4000, PhotometricInterpretation="MONOCHROME1")
    got = read_dicom(written(ds))
    assert (got.pixels[:, :5] == 0).all()
    assert got.pixels[:, 5:].max() == 1 and got.pixels[:, 5:].min() == 0
    assert "padding" in codes(got.notes)


def test_a_padding_range_is_black_as_a_whole():
    stored = ramp() // 2 + 1000
    stored[:2], stored[2:4] = 3900, 4000
    ds = film(stored, PixelPaddingValue=4000, PixelPaddingRangeLimit=3900)
    got = read_dicom(written(ds)).pixels
    assert (got[:4] == 0).all() and got[4:].max() == 1


def test_signed_padding_is_recognised():
    stored = ramp().astype(np.int16)
    stored[:3] = -2000
    ds = film(stored, 16)
    ds.add_new("PixelPaddingValue", "SS", -2000)
    got = read_dicom(written(ds)).pixels
    assert (got[:3] == 0).all()
    assert got[3, 0] == 0 and got[4, 0] > 0
