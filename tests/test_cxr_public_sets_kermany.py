"""Kermany's folders: labels by folder, causes and patients by file name."""

from __future__ import annotations

from pathlib import Path

import pytest
from public_worlds import film, kermany, kinds, load

from cxr.films_table import read_films_table
from cxr.public_sets.registry import name_of_film


@pytest.mark.parametrize(
    ("stem", "patient", "cause"),
    [
        ("person1_bacteria_1", "person1", "bacterial"),
        ("person1_virus_6", "person1", "viral"),
        ("IM-0117-0001", "IM-0117", ""),
        ("IM-0187-0001-0002", "IM-0187", ""),
        ("NORMAL2-IM-0117-0001", "IM-0117", ""),
        ("BACTERIA-1008087-0001", "1008087", "bacterial"),
        ("NORMAL-1003233-0001", "1003233", ""),
    ],
)
def test_a_name_gives_patient_and_cause(stem: str, patient: str, cause: str) -> None:
    assert name_of_film(stem) == (patient, cause)


def test_real_names_give_the_patients_and_causes_of_the_shared_table(shared_data: Path) -> None:
    rows = [r for r in read_films_table(shared_data / "films.csv") if r.source == "kermany"]
    assert len(rows) > 800
    for row in rows:
        patient, cause = name_of_film(Path(row.image).stem) or ("", "")
        assert (f"kermany-{patient}", cause or "No Finding") == (row.patient_id, row.sublabel)


def test_a_film_of_the_published_layout_gets_its_whole_row(tmp_path: Path) -> None:
    kermany(tmp_path)
    row = load("kermany", tmp_path).rows[1]
    assert row.image == "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg"
    assert (row.source, row.patient_id, row.view) == ("kermany", "kermany-person1", "AP")
    assert (row.label, row.sublabel, row.licence) == ("pneumonia", "bacterial", "CC BY 4.0")
    assert (row.width, row.height, row.orig_width, row.orig_height) == (4, 6, 4, 6)
    assert row.publishable


def test_a_set_as_published_has_no_problems(tmp_path: Path) -> None:
    loaded = load("kermany", kermany(tmp_path))
    assert len(loaded.rows) == 6
    assert loaded.problems == []


def test_names_are_relative_to_the_folder_given(tmp_path: Path) -> None:
    assert load("kermany", kermany(tmp_path)).rows[0].image == "train/NORMAL/IM-0001-0001.jpeg"


def test_patients_named_the_same_in_two_parts_are_one_and_reported(tmp_path: Path) -> None:
    root = kermany(tmp_path)
    film(root / "test" / "PNEUMONIA" / "person1_virus_9.jpeg")
    loaded = load("kermany", root)
    assert sum(row.patient_id == "kermany-person1" for row in loaded.rows) == 2
    assert kinds(loaded) == ["patient_in_two_parts"]
    assert loaded.problems[0].where == "kermany-person1"


def test_an_odd_name_is_kept_and_reported(tmp_path: Path) -> None:
    root = kermany(tmp_path)
    film(root / "train" / "NORMAL" / "scan7.jpeg")
    loaded = load("kermany", root)
    assert kinds(loaded) == ["odd_name"]
    assert "kermany-scan7" in {row.patient_id for row in loaded.rows}


def test_a_name_against_its_folder_is_reported_and_the_folder_counts(tmp_path: Path) -> None:
    root = kermany(tmp_path)
    film(root / "train" / "NORMAL" / "person9_virus_9.jpeg")
    loaded = load("kermany", root)
    assert kinds(loaded) == ["odd_name"]
    (row,) = (r for r in loaded.rows if r.patient_id == "kermany-person9")
    assert (row.label, row.sublabel) == ("normal", "No Finding")


def test_hidden_copies_of_macos_are_no_films(tmp_path: Path) -> None:
    root = kermany(tmp_path)
    (root / "train" / "NORMAL" / "._IM-0001-0001.jpeg").write_bytes(b"\0\5\x16\7")
    film(tmp_path / "__MACOSX" / "chest_xray" / "train" / "NORMAL" / "IM-0001-0001.jpeg")
    assert len(load("kermany", tmp_path).rows) == 6


def test_a_part_that_is_not_there_is_reported(tmp_path: Path) -> None:
    root = kermany(tmp_path)
    (root / "val").rename(root / "elsewhere")
    loaded = load("kermany", root)
    assert [(p.kind, p.where) for p in loaded.problems] == [("missing_folder", "val")]
    assert len(loaded.rows) == 4


def test_a_folder_of_another_class_is_reported(tmp_path: Path) -> None:
    root = kermany(tmp_path)
    film(root / "train" / "TUBERCULOSIS" / "tb1.jpeg")
    assert kinds(load("kermany", root)) == ["odd_name"]
