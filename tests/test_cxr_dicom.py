"""What is kept of a DICOM header, and every refusal."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from dicom_films import DEFLATED, EXPLICIT, IMPLICIT, H, W, codes, film, ramp, refused, written
from pydicom.dataset import Dataset

from cxr.dicom import hash_id, read_dicom
from cxr.film import looks_like_dicom
from cxr.notes import FilmError


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_a_file_without_preamble_and_meta_is_read_and_noted(syntax):
    whole = written(film(ramp()), syntax)
    bare = whole[whole.index(b"\x08\x00\x16\x00", 132) :]
    got = read_dicom(bare)
    assert np.allclose(got.pixels, ramp() / 4095, atol=1e-6)
    assert {"preamble_missing", "meta_missing"} <= codes(got.notes)


def test_a_file_with_meta_but_without_preamble_is_read():
    whole = written(film(ramp()))
    for data in (whole[128:], whole[132:]):
        assert looks_like_dicom(data)
        assert np.allclose(read_dicom(data).pixels, ramp() / 4095, atol=1e-6)


def test_pixel_spacing_wins_over_the_detectors():
    ds = film(ramp(), PixelSpacing=[0.2, 0.1], ImagerPixelSpacing=[0.3, 0.3])
    assert read_dicom(written(ds)).spacing_mm == (0.1, 0.1)
    del ds.PixelSpacing
    got = read_dicom(written(ds))
    assert got.spacing_mm == (0.3, 0.3)
    assert "spacing_detector" in codes(got.notes)


@pytest.mark.parametrize("spacing", [None, [0, 0], [-1, 1], [0.1]])
def test_a_spacing_that_cannot_be_is_none(spacing):
    ds = film(ramp())
    ds.PixelSpacing = spacing
    assert read_dicom(written(ds)).spacing_mm is None


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PA", "PA"),
        ("ap", "AP"),
        ("LL", "LATERAL"),
        ("RL", "LATERAL"),
        ("", "unknown"),
        ("XX", "unknown"),
    ],
)
def test_views_are_normalised(text, view):
    assert read_dicom(written(film(ramp(), ViewPosition=text))).view == view


def test_the_view_code_stands_in_for_a_missing_view():
    item = Dataset()
    item.CodeMeaning = "postero-anterior"
    assert read_dicom(written(film(ramp(), ViewCodeSequence=[item]))).view == "PA"


def test_laterality_is_kept():
    assert read_dicom(written(film(ramp(), ImageLaterality="L"))).laterality == "L"


def test_no_name_and_no_clear_id_leaves_the_reader():
    got = read_dicom(written(film(ramp())))
    for secret in ("Doe", "Jane", "4711", "1.2.3.4"):
        assert secret not in repr(got)
    assert len(got.patient) == 16 and len(got.study) == 16


def test_ids_hash_alike_for_one_patient_and_differ_by_kind_and_key(monkeypatch):
    monkeypatch.delenv("LUNGFIRST_HASH_KEY", raising=False)
    plain = hash_id("MRN-4711", "patient")
    assert plain == hash_id(" MRN-4711\0", "patient")
    assert plain != hash_id("MRN-4712", "patient")
    assert plain != hash_id("MRN-4711", "study")
    monkeypatch.setenv("LUNGFIRST_HASH_KEY", "x" * 200)
    assert hash_id("MRN-4711", "patient") != plain
    assert hash_id("", "patient") == ""


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "MG", "NM", "PT", "SR", "RF", "XA"])
def test_other_modalities_are_refused(modality):
    assert refused(written(film(ramp(), Modality=modality))) == "wrong_modality"


def test_a_ct_without_modality_is_refused_by_its_class():
    ds = film(ramp(), Modality=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    assert refused(written(ds)) == "wrong_modality"


def encrypted_item() -> list[Dataset]:
    item = Dataset()
    item.EncryptedContentTransferSyntaxUID = EXPLICIT
    item.EncryptedContent = b"0000"
    return [item]


REFUSALS = {
    "no pixels": (lambda: film(ramp(), PixelData=None), "no_pixels"),
    "empty pixels": (lambda: film(ramp(), PixelData=b""), "no_pixels"),
    "two frames": (lambda: film(ramp(), NumberOfFrames=2), "multi_frame"),
    "encrypted": (lambda: film(ramp(), EncryptedAttributesSequence=encrypted_item()), "encrypted"),
    "small": (lambda: film(ramp()[:63, :63]), "too_small"),
    "blank": (lambda: film(np.full((H, W), 7, np.uint16)), "blank"),
    "all padding": (lambda: film(np.full((H, W), 7, np.uint16), PixelPaddingValue=7), "blank"),
    "more bits stored than allocated": (lambda: film(ramp(), BitsStored=17), "bad_pixels"),
    "32 bits": (lambda: film(ramp().astype(np.uint32)), "bad_pixels"),
    "no bits stored": (lambda: film(ramp(), BitsStored=0), "bad_pixels"),
    "fewer pixels than announced": (lambda: film(ramp(), Rows=200), "bad_pixels"),
    "a bomb": (lambda: film(ramp(), Rows=65535, Columns=65535), "bad_pixels"),
    "no rows": (lambda: film(ramp(), Rows=None), "bad_pixels"),
    "four samples": (lambda: film(ramp(), SamplesPerPixel=4), "bad_pixels"),
    "a slope of zero": (lambda: film(ramp(), RescaleSlope="0", RescaleIntercept="0"), "bad_pixels"),
    "directory": (lambda: film(ramp(), SOPClassUID="1.2.840.10008.1.3.10"), "no_pixels"),
}


@pytest.mark.parametrize("name", list(REFUSALS))
def test_what_is_no_film_is_refused_with_its_reason(name):
    build, reason = REFUSALS[name]
    assert refused(written(build())) == reason


def test_a_deflated_bomb_is_refused(monkeypatch):
    monkeypatch.setattr("cxr.dicom.MAX_PIXELS", 1_000_000)
    ds = film(ramp())
    ds.PixelData = bytes(20_000_000)
    assert refused(written(ds, DEFLATED)) == "bad_pixels"


def test_missing_bits_stored_is_assumed_and_noted():
    got = read_dicom(written(film(ramp(16), 16, BitsStored=None, HighBit=None)))
    assert "assumed: The header has no BitsStored: 16 assumed." in got.notes


def test_a_film_error_travels_between_processes():
    error = FilmError("blank", "All alike.", "a.dcm")
    back = pickle.loads(pickle.dumps(error))
    assert (back.reason, back.sentence, back.path) == ("blank", "All alike.", "a.dcm")
    assert str(back) == "a.dcm: All alike. [blank]"


def test_errors_hold_no_text_of_the_header():
    for name in ("DOE^JANE", "JANE"):
        with pytest.raises(FilmError) as caught:
            read_dicom(written(film(ramp(), Modality=name)))
        assert "JANE" not in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"0" * 200, b"a,b\n1,2\n" * 99]
)
def test_other_bytes_do_not_look_like_dicom(text):
    assert not looks_like_dicom(text)


def test_a_real_monochrome1_film_without_meta_has_bright_mediastinum(shared_data):
    got = read_dicom((shared_data / "dicom" / "barre_cr_mono1_10bit_chest.dcm").read_bytes())
    lung, spine = got.pixels[180:220, 90:150].mean(), got.pixels[300:340, 200:230].mean()
    assert spine > lung + 0.2
    assert got.view == "PA" and got.bits == 10
