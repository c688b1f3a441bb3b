"""`read_film` from disk, and `list_films` over folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_phantom
from dicom_films import EXPLICIT, codes, film, ramp, written
from PIL import Image
from pydicom.data import get_testdata_file

from cxr.film import FilmError, list_films, looks_inverted, read_film


def dicom() -> bytes:
    return written(film(ramp(), ViewPosition="PA", PixelSpacing=[0.2, 0.1]), EXPLICIT)


def refused(path: Path) -> str:
    with pytest.raises(FilmError) as caught:
        read_film(path)
    assert caught.value.path == str(path)
    return caught.value.reason


def test_a_dicom_film_keeps_what_is_known_of_it(tmp_path):
    path = tmp_path / "film"
    path.write_bytes(dicom())
    got = read_film(str(path))
    assert got.pixels.shape == (192, 72) and got.pixels.dtype == np.float32
    assert (got.view, got.spacing_mm, got.bits) == ("PA", (0.1, 0.1), 12)
    assert got.stored_hw == (96, 72) and "not_square" in codes(got.notes)
    assert np.allclose(got.to_stored(np.array([[8, 20, 30, 40]])), [[8, 10, 30, 20]])
    assert got.path == str(path)
    assert got.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "Doe" not in repr(got) and "4711" not in repr(got)


def test_a_picture_is_read_by_content_not_by_name(tmp_path):
    path = tmp_path / "film.dcm"
    Image.fromarray(ramp(8)).save(path, "PNG")
    got = read_film(path)
    assert np.allclose(got.pixels, ramp(8) / 255)
    assert (got.view, got.patient, got.spacing_mm) == ("unknown", "", None)


def test_a_dicom_whose_preamble_poses_as_tiff_is_a_dicom(tmp_path):
    path = tmp_path / "film.dcm"
    path.write_bytes(b"II*\0" + dicom()[4:])
    assert read_film(path).view == "PA"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"name,age\n" * 30, "not_an_image"),
        (b"PK\x03\x04\x14\0\0\0" + bytes(60), "not_an_image"),
        (b"PK\x03\x04\x14\0\x01\0" + bytes(60), "encrypted"),
        (b"-----BEGIN PGP MESSAGE-----\n", "encrypted"),
        (bytes.fromhex("3082ffff06092a864886f70d010703") + bytes(90), "encrypted"),
        (b"GIF89a" + bytes(90), "unsupported_syntax"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (bytes(128) + b"DICM", "truncated"),
        (bytes(5000), "not_an_image"),
    ],
)
def test_other_files_are_refused_with_their_reason(tmp_path, content, reason):
    path = tmp_path / "film.dcm"
    path.write_bytes(content)
    assert refused(path) == reason


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert refused(tmp_path / "none.png") == "not_found"
    assert refused(tmp_path) == "not_an_image"


def test_a_film_that_looks_inverted_is_noted_and_left_as_it_is(tmp_path):
    chest, _ = draw_phantom()
    for name, pixels in (("right.png", chest), ("turned.png", 1 - chest)):
        stored = np.rint(pixels * 255).astype(np.uint8)
        Image.fromarray(stored).save(tmp_path / name)
        got = read_film(tmp_path / name)
        assert np.allclose(got.pixels, stored / 255, atol=1e-6)
        assert ("inverted" in codes(got.notes)) == (name == "turned.png")


def test_folders_are_walked_sorted_and_what_is_passed_over_is_counted(tmp_path):
    inner = tmp_path / "study" / "series"
    inner.mkdir(parents=True)
    for name in ("b.PNG", "a.jpg", "c.tiff"):
        (inner / name).write_bytes(b"x")
    (tmp_path / "IM0001").write_bytes(dicom())
    (tmp_path / "bare").write_bytes(dicom()[132:])
    for name in ("picture", "1.2.840.4", "photo.nef"):
        Image.fromarray(ramp(8)).save(tmp_path / name, "TIFF")
    (tmp_path / "DICOMDIR").write_bytes(dicom())
    (tmp_path / "films.zip").write_bytes(b"PK")
    (tmp_path / "films.csv").write_bytes(b"a,b\n")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"x")
    found = list_films([tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in found.films]
    series = "study/series/"
    assert names == [
        "1.2.840.4",
        "IM0001",
        "bare",
        "picture",
        *(series + n for n in ("a.jpg", "b.PNG", "c.tiff")),
    ]
    assert found.passed_over == {"archive": 1, "dicomdir": 1, "hidden": 2, "no film": 2}


def test_no_link_leads_out_of_the_folder(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "secret.png").write_bytes(b"x")
    (inside / "film.png").write_bytes(b"x")
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "again.png").symlink_to(inside / "film.png")
    (inside / "folder").symlink_to(outside)
    (inside / "broken.png").symlink_to(inside / "none.png")
    found = list_films([inside])
    assert len(found.films) == 1
    assert found.passed_over == {
        "duplicate": 1,
        "link out of the folder": 1,
        "link to a folder": 1,
        "not a file": 1,
    }


def test_a_named_file_is_listed_whatever_it_is(tmp_path):
    table = tmp_path / "films.csv"
    table.write_bytes(b"a,b\n")
    missing = tmp_path / "none.dcm"
    found = list_films([table, missing, str(table)])
    assert found.films == [table, missing]
    assert found.passed_over == {"duplicate": 1}


def test_a_file_named_and_found_is_listed_once(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    assert list_films([tmp_path, path]).films == [path]


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="'paths' of list_films"):
        list_films([tmp_path / "none"])


def test_one_path_alone_is_not_taken_for_letters(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert len(list_films(str(tmp_path)).films) == 1


def test_an_empty_folder_gives_an_empty_list(tmp_path):
    found = list_films([tmp_path])
    assert (found.films, found.passed_over) == ([], {})


def test_real_films_show_bone_white(shared_data):
    names = ["barre_cr_mono1_10bit_chest", "nih_dx_pa_nofinding", "siim_cr_pa_jpeg"]
    for name in names:
        got = read_film(shared_data / "dicom" / f"{name}.dcm")
        assert not looks_inverted(got.pixels)
    wrong_tag = read_film(shared_data / "dicom" / "siim_cr_pa_fake_monochrome1.dcm")
    assert {"inverted", "monochrome1"} <= codes(wrong_tag.notes)


@pytest.mark.parametrize("kind", ["UNCI", "J2KI", "UNCR", "J2KR"])
def test_the_chest_of_pydicom_data_is_read_alike_in_each_coding(kind):
    path = get_testdata_file(f"RG1_{kind}.dcm", download=False)
    if path is None:
        pytest.skip("pydicom-data is not installed")
    got = read_film(str(path))
    assert got.pixels.shape == (1955, 1841)
    assert (got.view, got.bits, got.spacing_mm) == ("PA", 15, None)
    assert got.pixels.mean() == pytest.approx(0.754, abs=0.002)
    assert not looks_inverted(got.pixels)
