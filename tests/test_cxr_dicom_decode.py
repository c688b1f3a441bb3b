"""One film in every transfer syntax, whole, cut and damaged."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_films import (
    BASELINE,
    BIG,
    CAPTURE,
    DEFLATED,
    EXPLICIT,
    EXTENDED,
    IMPLICIT,
    J2K_LOSSY,
    JLS_NEAR,
    LOSSLESS,
    LOSSLESS_SV1,
    RLE,
    H,
    W,
    by_pydicom,
    codes,
    compressed,
    film,
    jpeg,
    packed,
    ramp,
    refused,
    written,
)
from pydicom.data import get_testdata_file

from cxr.dicom import read_dicom
from cxr.notes import FilmError


def every_syntax() -> dict[str, tuple[bytes, float]]:
    """Name → file of the 12-bit (JPEG baseline: 8-bit) ramp, and the largest error allowed."""
    twelve, eight = ramp(), ramp(8)
    lossless = {"lossless": True, "bitspersample": 12}
    near = imagecodecs.jpegls_encode(twelve, level=2)
    lossy = imagecodecs.jpeg2k_encode(twelve, level=70, bitspersample=12, codecformat="j2k")
    return {
        "implicit": (written(film(twelve), IMPLICIT), 0),
        "explicit": (written(film(twelve), EXPLICIT), 0),
        "big endian": (written(film(twelve), BIG), 0),
        "deflated": (written(film(twelve), DEFLATED), 0),
        "rle": (by_pydicom(film(twelve), RLE), 0),
        "jpeg-ls": (packed(film(twelve), twelve, "jpeg-ls"), 0),
        "jpeg-ls near": (compressed(film(twelve), near, JLS_NEAR), 2e-3),
        "jpeg 2000": (packed(film(twelve), twelve, "jpeg 2000"), 0),
        "jpeg 2000 lossy": (compressed(film(twelve), lossy, J2K_LOSSY), 0.02),
        "baseline": (compressed(film(eight, 8), jpeg(eight), BASELINE), 0.02),
        "extended": (
            compressed(
                film(twelve), imagecodecs.jpeg_encode(twelve, level=98, bitspersample=12), EXTENDED
            ),
            0.02,
        ),
        "lossless": (
            compressed(
                film(twelve), imagecodecs.jpeg_encode(twelve, predictor=4, **lossless), LOSSLESS
            ),
            0,
        ),
        "lossless sv1": (
            compressed(
                film(twelve), imagecodecs.jpeg_encode(twelve, predictor=1, **lossless), LOSSLESS_SV1
            ),
            0,
        ),
    }


SYNTAXES = every_syntax()


@pytest.mark.parametrize("name", list(SYNTAXES))
def test_each_transfer_syntax_gives_the_same_film(name):
    data, tolerance = SYNTAXES[name]
    got = read_dicom(data)
    assert got.pixels.shape == (H, W)
    assert got.pixels.dtype == np.float32
    assert np.abs(got.pixels - ramp() / 4095).max() <= tolerance + 1e-6


@pytest.mark.parametrize("name", [n for n in SYNTAXES if n != "deflated"])
def test_a_file_cut_anywhere_is_refused(name):
    data = SYNTAXES[name][0]
    cuts = [*range(150, len(data), len(data) // 12), len(data) - 9, len(data) - 1]
    assert {refused(data[:cut]) for cut in cuts} <= {"truncated", "no_pixels"}
    assert refused(data[: len(data) - 9]) == "truncated"


@pytest.mark.parametrize("name", list(SYNTAXES))
def test_damaged_bytes_give_a_film_error_or_pixels_in_range(name):
    data, rng = SYNTAXES[name][0], np.random.default_rng(5)
    for _ in range(25):
        broken = bytearray(data)
        for at in rng.integers(132, len(data), 4):
            broken[at] = rng.integers(256)
        try:
            pixels = read_dicom(bytes(broken)).pixels
        except FilmError:
            continue
        assert 0 <= pixels.min() <= pixels.max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_every_depth_and_sign_spans_zero_to_one(bits, signed):
    stored = ramp(bits).astype(np.int32)
    if signed:
        stored = stored - 2 ** (bits - 1)
    kind = ("int" if signed else "uint") + ("8" if bits == 8 else "16")
    got = read_dicom(written(film(stored.astype(kind), bits)))
    assert np.abs(got.pixels - ramp(bits) / (2**bits - 1)).max() < 1e-6
    assert got.bits == bits


def test_lossless_jpeg_keeps_the_sign():
    stored = (ramp().astype(np.int32) - 2048).astype(np.int16)
    words = (stored.view(np.uint16) & 0xFFF).astype(np.uint16)
    stream = imagecodecs.jpeg_encode(words, lossless=True, bitspersample=12)
    got = read_dicom(compressed(film(stored), stream, LOSSLESS_SV1))
    assert np.abs(got.pixels - ramp() / 4095).max() < 1e-6


def test_bits_above_the_stored_ones_are_ignored():
    stored = ramp()
    stored[::2] |= 0x8000
    assert np.allclose(read_dicom(written(film(stored))).pixels, ramp() / 4095, atol=1e-6)


@pytest.mark.parametrize("shift", [0, 4])
def test_values_at_the_top_of_their_word_are_found(shift):
    ds = film(ramp() << shift, HighBit=15)
    assert np.allclose(read_dicom(written(ds)).pixels, ramp() / 4095, atol=1e-6)


def test_a_colour_capture_becomes_grey():
    rgb = np.dstack([ramp(8), np.zeros((H, W), np.uint8), np.zeros((H, W), np.uint8)])
    ds = film(rgb, 8, SOPClassUID=CAPTURE, Modality="OT")
    got = read_dicom(written(ds))
    assert np.allclose(got.pixels, 0.299 * ramp(8) / 255, atol=1e-6), "its own range, not stretched"
    assert "colour" in codes(got.notes)


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "SC_rgb_dcmtk_+eb+cy+n2.dcm"])
def test_real_colour_captures_agree_with_their_uncompressed_form(name):
    """pydicom's own samples: JPEG lossless RGB and JPEG baseline YBR of one test card."""
    got = read_dicom(Path(str(get_testdata_file(name, download=False))).read_bytes()).pixels
    plain = get_testdata_file("SC_rgb_rle.dcm", download=False)
    want = read_dicom(Path(str(plain)).read_bytes()).pixels
    assert np.abs(got - want).mean() < 0.02


def test_a_real_12_bit_extended_jpeg_is_decoded():
    """pydicom's sample is nuclear medicine; it is turned into a film to reach its pixels."""
    data = Path(str(get_testdata_file("JPGExtended.dcm", download=False))).read_bytes()
    got = read_dicom(data.replace(b"CS\x02\x00NM", b"CS\x02\x00DX"))
    assert got.pixels.shape == (1024, 256)
    assert got.pixels.mean() * 264 == pytest.approx(14.37, abs=0.01)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.92"])
def test_other_transfer_syntaxes_are_refused(syntax):
    assert refused(compressed(film(ramp()), b"\0" * 64, syntax)) == "unsupported_syntax"


def test_an_empty_compressed_image_is_refused():
    ds = film(ramp(8), 8, PixelData=b"\xfe\xff\x00\xe0\0\0\0\0" * 2)
    ds["PixelData"].is_undefined_length = True
    assert refused(written(ds, BASELINE)) == "no_pixels"


def test_a_stream_larger_than_its_header_is_refused_before_it_is_decoded(monkeypatch):
    calls = []
    monkeypatch.setattr("imagecodecs.jpeg_decode", lambda *a, **k: calls.append(a))
    large = jpeg(np.tile(ramp(8), (8, 8)))
    assert refused(compressed(film(ramp(8), 8), large, BASELINE)) == "bad_pixels"
    assert calls == []
