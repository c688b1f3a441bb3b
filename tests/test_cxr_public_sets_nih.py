"""ChestX-ray14: the table of films, the boxes, and what is wrong in either."""

from __future__ import annotations

from pathlib import Path

import pytest
from public_worlds import film, kinds, load, nih, table

from cxr.films_table import NIH_TERMS as LICENCE
from cxr.films_table import read_films_table
from cxr.public_sets.records import label_of_findings

BOX_HEAD = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
GOOD = "00000001_000.png,No Finding,0,1,58,M,PA,2682,2749,0.143,0.143,"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("No Finding", "normal"),
        ("Pneumonia", "pneumonia"),
        ("Edema|Pneumonia", "pneumonia"),
        ("Edema|Mass", "other"),
        ("", "unknown"),
        ("No Finding|Mass", "other"),
    ],
)
def test_findings_give_one_label(text: str, label: str) -> None:
    assert label_of_findings(text) == (label, [])


def test_real_findings_give_the_labels_of_the_shared_table(shared_data: Path) -> None:
    rows = [r for r in read_films_table(shared_data / "films.csv") if r.source == "nih"]
    assert len(rows) > 500
    assert all(label_of_findings(row.sublabel) == (row.label, []) for row in rows)
    assert all(row.publishable and LICENCE in row.licence for row in rows)


def test_an_unknown_finding_is_named() -> None:
    assert label_of_findings("Pneumonia|Covid") == ("pneumonia", ["Covid"])


def test_a_film_of_the_published_layout_gets_its_whole_row(tmp_path: Path) -> None:
    row = load("nih", nih(tmp_path)).rows[1]
    assert row.image == "images_002/images/00000013_005.png"
    assert (row.patient_id, row.view, row.age, row.sex) == ("nih-00013", "AP", "61", "F")
    assert (row.label, row.sublabel) == ("pneumonia", "Infiltration|Pneumonia")
    assert row.publishable


def test_the_table_of_2020_names_the_sex_otherwise(tmp_path: Path) -> None:
    nih(tmp_path)
    (tmp_path / "Data_Entry_2017.csv").unlink()
    table(
        tmp_path / "Data_Entry_2017_v2020.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position",
        "00000001_000.png,No Finding,0,1,57,F,PA",
    )
    assert load("nih", tmp_path).rows[0].sex == "F"


def test_of_two_tables_the_newer_counts(tmp_path: Path) -> None:
    nih(tmp_path)
    head = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Sex,View Position"
    table(tmp_path / "Data_Entry_2017_v2020.csv", head, "00000001_000.png,Mass,1,57,F,PA")
    loaded = load("nih", tmp_path)
    assert [row.label for row in loaded.rows] == ["other"]
    assert "two_tables" in kinds(loaded)


def test_images_right_in_one_folder_are_found_too(tmp_path: Path) -> None:
    film(tmp_path / "images" / "00000001_000.png")
    table(
        tmp_path / "Data_Entry_2017.csv",
        "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position",
        "00000001_000.png,No Finding,1,57,F,PA",
    )
    assert load("nih", tmp_path).rows[0].image == "images/00000001_000.png"


def test_a_listed_film_that_is_not_there_is_reported(tmp_path: Path) -> None:
    nih(tmp_path, GOOD, "00000002_000.png,Mass,0,2,58,M,PA,1,1,1,1,")
    loaded = load("nih", tmp_path)
    assert [row.patient_id for row in loaded.rows] == ["nih-00001"]
    assert ("missing_file", "00000002_000.png") in {(p.kind, p.where) for p in loaded.problems}


def test_pictures_that_no_line_names_are_reported_together(tmp_path: Path) -> None:
    loaded = load("nih", nih(tmp_path, GOOD))
    assert [(p.kind, p.where) for p in loaded.problems] == [("unlisted_file", "00000013_005.png")]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("00000013_005.png,Covid,5,13,61,F,AP", "unknown_label"),
        ("00000013_005.png,,5,13,61,F,AP", "unknown_label"),
        ("00000013_005.png,No Finding|Mass,5,13,61,F,AP", "unknown_label"),
        ("00000013_005.png,Mass,5,13,414,F,AP", "odd_value"),
        ("00000013_005.png,Mass,5,13,61,F,LL", "odd_value"),
        ("00000013_005.png,Mass,5,14,61,F,AP", "odd_name"),
        ("00000013_005.png,Mass,5,,61,F,AP", "no_patient"),
        ("00000013_005.png", "unknown_label"),
        (",Mass,5,13,61,F,AP", "bad_line"),
        (GOOD, "duplicate"),
    ],
)
def test_one_bad_line_is_reported_and_the_rest_is_read(
    tmp_path: Path, line: str, kind: str
) -> None:
    loaded = load("nih", nih(tmp_path, GOOD, line))
    assert kind in kinds(loaded)
    assert loaded.rows[0].patient_id == "nih-00001"


def test_an_age_that_cannot_be_is_left_empty(tmp_path: Path) -> None:
    loaded = load("nih", nih(tmp_path, GOOD, "00000013_005.png,Mass,5,13,414,F,AP"))
    assert [row.age for row in loaded.rows] == ["58", ""]


def test_boxes_come_in_pixels_of_the_film(tmp_path: Path) -> None:
    nih(tmp_path)  # films of 8 px, the boxes drawn on 1024
    table(
        tmp_path / "BBox_List_2017.csv", BOX_HEAD, "00000013_005.png,Pneumonia,128,256,512,384,,,"
    )
    (box,) = load("nih", tmp_path).finding_boxes
    assert box.image == "images_002/images/00000013_005.png"
    assert (box.finding, box.x, box.y, box.w, box.h) == ("Pneumonia", 1.0, 2.0, 4.0, 3.0)


@pytest.mark.parametrize(
    ("line", "kind", "kept"),
    [
        ("00000013_005.png,Mass,128,256,wide,384,,,", "bad_box", 0),
        ("00000013_005.png,Mass,128,256,0,384,,,", "bad_box", 0),
        ("00000013_005.png,Mass,nan,256,512,384,,,", "bad_box", 0),
        ("00000013_005.png,Mass,640,256,1024,384,,,", "bad_box", 1),
        ("00000099_000.png,Mass,128,256,512,384,,,", "box_without_film", 0),
    ],
)
def test_a_bad_box_is_reported(tmp_path: Path, line: str, kind: str, kept: int) -> None:
    table(nih(tmp_path) / "BBox_List_2017.csv", BOX_HEAD, line)
    loaded = load("nih", tmp_path)
    assert kinds(loaded) == [kind]
    assert len(loaded.finding_boxes) == kept


def test_without_a_table_of_boxes_there_are_none(tmp_path: Path) -> None:
    assert load("nih", nih(tmp_path)).finding_boxes == []
