"""The COVID-19 collections with a metadata.csv, and the Radiography Database."""

from __future__ import annotations

from pathlib import Path

import pytest
from public_worlds import actualmed, figure1, film, ieee8023, kinds, load, radiography, table


def test_ieee8023_gives_label_view_and_licence_by_film(tmp_path: Path) -> None:
    first, second = load("ieee8023", ieee8023(tmp_path)).rows
    assert (first.image, first.patient_id) == ("images/a.jpg", "ieee8023-2")
    assert (first.label, first.sublabel, first.licence) == ("covid", "COVID-19", "CC BY-NC-SA")
    assert (second.label, second.sublabel) == ("pneumonia", "bacterial/Streptococcus")
    assert (second.view, second.licence) == ("AP_Supine", "not stated")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3,,F,40,COVID-19,,Axial,CT,b.png,,", "modality CT"),
        ("3,,F,40,COVID-19,,L,X-ray,b.png,,", "view L (lateral)"),
        ("3,,F,40,COVID-19,,CT,,b.png,,", "view CT (CT)"),
    ],
)
def test_ieee8023_leaves_out_and_counts_what_is_no_frontal_film(
    tmp_path: Path, line: str, reason: str
) -> None:
    good = "2,0,M,65,COVID-19,Y,PA,X-ray,a.jpg,,"
    loaded = load("ieee8023", ieee8023(tmp_path, good, line))
    assert (len(loaded.rows), loaded.left_out) == (1, {reason: 1})
    assert loaded.problems == []


def test_ieee8023_of_the_first_weeks_has_other_columns(tmp_path: Path) -> None:
    film(tmp_path / "images" / "a.jpg")
    table(
        tmp_path / "metadata.csv",
        "Patientid,offset,sex,age,finding,view,filename,doi, url",
        "5,,,,ARDS,PA,a.jpg,,",
    )
    (row,) = load("ieee8023", tmp_path).rows
    assert (row.patient_id, row.label, row.sublabel) == ("ieee8023-5", "other", "ARDS")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("3,,F,40,Gout,,PA,X-ray,b.png,,", "unknown_label"),
        ("3,,F,40,COVID-19,,upside down,X-ray,b.png,,", "odd_value"),
        (",,F,40,COVID-19,,PA,X-ray,b.png,,", "no_patient"),
        ("3,,F,40,COVID-19,,PA,X-ray,c.png,,", "missing_file"),
        ("3,,F,40,COVID-19,,PA,X-ray,,,", "bad_line"),
    ],
)
def test_ieee8023_reports_a_bad_line_and_reads_the_rest(
    tmp_path: Path, line: str, kind: str
) -> None:
    loaded = load("ieee8023", ieee8023(tmp_path, "2,,M,65,COVID-19,,PA,X-ray,a.jpg,,", line))
    assert kind in kinds(loaded)
    assert loaded.rows[0].image == "images/a.jpg"


@pytest.mark.parametrize(
    ("name", "kind"), [("../../secret.png", "odd_name"), ("/etc/secret.png", "missing_file")]
)
def test_a_name_that_leads_out_of_the_set_is_left_out(tmp_path: Path, name: str, kind: str) -> None:
    film(tmp_path / "secret.png")
    good, line = ("2,,M,65,COVID-19,,PA,X-ray,a.jpg,,", f"3,,F,40,COVID-19,,PA,X-ray,{name},,")
    loaded = load("ieee8023", ieee8023(tmp_path / "set", good, line))
    assert [row.image for row in loaded.rows] == ["images/a.jpg"]
    assert sorted(kinds(loaded)) == sorted([kind, "unlisted_file"])


def test_notes_that_are_no_utf8_do_not_stop_the_reading(tmp_path: Path) -> None:
    path = ieee8023(tmp_path) / "metadata.csv"
    path.write_bytes(path.read_bytes().replace(b"CC BY-NC-SA,", b"CC BY-NC-SA,Universit\xe9"))
    assert len(load("ieee8023", tmp_path).rows) == 2


def test_a_note_over_several_lines_is_one_line_of_the_table(tmp_path: Path) -> None:
    ieee8023(
        tmp_path,
        '2,,M,65,COVID-19,,PA,X-ray,a.jpg,,"a note\nof two lines"',
        "3,,F,40,No Finding,,PA,X-ray,b.png,,",
    )
    loaded = load("ieee8023", tmp_path)
    assert [row.label for row in loaded.rows] == ["covid", "normal"]
    assert loaded.problems == []


def test_actualmed_groups_by_its_patients(tmp_path: Path) -> None:
    rows = load("actualmed", actualmed(tmp_path)).rows
    assert [row.label for row in rows] == ["covid", "normal"]
    assert {row.patient_id for row in rows} == {"actualmed-ANON1"}
    assert not rows[0].publishable


def test_actualmed_says_inconclusive_in_its_notes(tmp_path: Path) -> None:
    line = 'ANON1,,,,,PA,X-ray,a.png,"Inconclusive, date taken (YYYYMMDD): 20200313"'
    row = load("actualmed", actualmed(tmp_path, line)).rows[0]
    assert (row.label, row.sublabel) == ("unknown", "inconclusive")


def test_figure1_names_films_by_patient_and_letters_are_one_patient(tmp_path: Path) -> None:
    rows = load("figure1", figure1(tmp_path)).rows
    assert [row.patient_id for row in rows] == ["figure1-COVID-00003"] * 2 + ["figure1-COVID-00004"]
    assert rows[2].image == "images/COVID-00004.png"
    assert (rows[0].view, rows[0].label, rows[2].age) == ("AP_erect", "unknown", "50+")


def test_figure1_reports_a_patient_without_a_film(tmp_path: Path) -> None:
    lines = ["COVID-00003a,,,,,PA,X-ray,,", "COVID-00009,,,,,PA,X-ray,,"]
    loaded = load("figure1", figure1(tmp_path, *lines))
    assert ("missing_file", "images/COVID-00009") in {(p.kind, p.where) for p in loaded.problems}


def test_radiography_takes_films_and_no_masks(tmp_path: Path) -> None:
    rows = load("radiography", radiography(tmp_path)).rows
    assert {(row.label, row.sublabel) for row in rows} == {
        ("covid", "COVID-19"),
        ("normal", "No Finding"),
        ("other", "Lung_Opacity"),
        ("pneumonia", "viral"),
    }
    assert all("/images/" in row.image and row.mask == "" for row in rows)


def test_radiography_of_the_first_release_has_files_right_in_the_class(tmp_path: Path) -> None:
    film(tmp_path / "COVID-19" / "COVID-19 (1).png")
    film(tmp_path / "NORMAL" / "NORMAL (1).png")
    film(tmp_path / "Viral Pneumonia" / "Viral Pneumonia (1).png")
    loaded = load("radiography", tmp_path)
    assert [row.label for row in loaded.rows] == ["covid", "normal", "pneumonia"]
    assert kinds(loaded) == ["no_patient"]


def test_radiography_says_that_it_names_no_patients(tmp_path: Path) -> None:
    loaded = load("radiography", radiography(tmp_path))
    assert kinds(loaded) == ["no_patient"]
    assert len({row.patient_id for row in loaded.rows}) == len(loaded.rows)


def test_radiography_reports_a_class_that_is_not_there(tmp_path: Path) -> None:
    radiography(tmp_path)
    (tmp_path / "Normal").rename(tmp_path / "elsewhere")
    problems = load("radiography", tmp_path).problems
    assert ("missing_folder", "No Finding") in {(p.kind, p.where) for p in problems}
