"""Sizes from headers, films that cannot be read, and the words that sets share."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from public_worlds import film, kermany, kinds, load

from cxr.film import read_film
from cxr.public_sets.records import frontal_view, label_of_finding, years_of
from cxr.public_sets.registry import read_size


@pytest.mark.parametrize("name", ["a.png", "a.jpeg"])
def test_a_size_is_width_then_height(tmp_path: Path, name: str) -> None:
    assert read_size(film(tmp_path / name, 5, 7)) == (5, 7)


def test_a_film_cut_after_its_header_still_has_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((64, 48), 50).save(path)
    path.write_bytes(path.read_bytes()[:200])  # so nothing was decoded
    assert read_size(path) == (64, 48)


def test_the_size_is_that_of_the_film_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpeg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((80, 70), 50).save(path, exif=exif)
    height, width = read_film(path).pixels.shape
    assert read_size(path) == (width, height) == (70, 80)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"<html>no such file</html>"])
def test_a_file_that_is_no_picture_is_reported(tmp_path: Path, content: bytes) -> None:
    root = kermany(tmp_path)
    (root / "train" / "NORMAL" / "IM-0009-0001.jpeg").write_bytes(content)
    loaded = load("kermany", root)
    assert kinds(loaded) == ["unreadable"]
    assert loaded.problems[0].where == "train/NORMAL/IM-0009-0001.jpeg"
    assert len(loaded.rows) == 6


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        ("Pneumonia/Viral/COVID-19", ("covid", "COVID-19")),
        ("COVID-19, ARDS", ("covid", "COVID-19, ARDS")),
        ("SARS", ("pneumonia", "viral/SARS")),
        ("Pneumonia/Viral/Influenza/H1N1", ("pneumonia", "viral/Influenza/H1N1")),
        ("Mycoplasma Bacterial Pneumonia", ("pneumonia", "bacterial/Mycoplasma")),
        ("Pneumonia", ("pneumonia", "unspecified")),
        ("Pneumonia/Lipoid", ("pneumonia", "lipoid")),
        ("No finding", ("normal", "No finding")),
        ("Tuberculosis", ("other", "Tuberculosis")),
        ("todo", ("unknown", "no label")),
        ("Gout", None),
        ("/", None),
    ],
)
def test_a_finding_gives_label_and_sublabel(finding: str, expected: tuple[str, str] | None) -> None:
    assert label_of_finding(finding) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("PA", ("PA", "")),
        ("ap", ("AP", "")),
        ("AP Supine", ("AP_Supine", "")),
        ("AP erect", ("AP_erect", "")),
        ("L", ("", "lateral")),
        ("Coronal", ("", "CT")),
        ("", ("unknown", "")),
        ("PAL", ("unknown", "")),
    ],
)
def test_a_view_is_frontal_or_has_a_reason(word: str, expected: tuple[str, str]) -> None:
    assert frontal_view(word) == expected


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        ("58", "58"),
        ("058Y", "58"),
        ("018M", "1"),
        ("012D", "0"),
        ("", ""),
        ("414", None),
        ("sixty", None),
    ],
)
def test_an_age_is_whole_years(age: str, expected: str | None) -> None:
    assert years_of(age) == expected
