"""CheXpert and MIMIC-CXR-JPG: fourteen observations, uncertain ones among them."""

from __future__ import annotations

from pathlib import Path

import pytest
from public_worlds import chexpert, film, kinds, load, mimic, observed

from cxr.public_sets.records import Uncertain, label_of_values, read_values

PATH = "CheXpert-v1.0-small/train/patient00001/study1"


@pytest.mark.parametrize(
    ("values", "uncertain", "expected"),
    [
        ({"No Finding": 1}, "ignore", ("normal", "No Finding")),
        (
            {"No Finding": 1, "Support Devices": 1},
            "ignore",
            ("normal", "No Finding|Support Devices"),
        ),
        ({"Pneumonia": 1, "Edema": -1}, "ignore", ("pneumonia", "Edema?|Pneumonia")),
        ({"Pneumonia": -1, "Edema": 1}, "ignore", ("unknown", "Edema|Pneumonia?")),
        ({"Pneumonia": -1, "Edema": 1}, "positive", ("pneumonia", "Edema|Pneumonia")),
        ({"Pneumonia": -1, "Edema": 1}, "negative", ("other", "Edema")),
        ({"Edema": -1}, "ignore", ("unknown", "Edema?")),
        ({"Edema": 0}, "ignore", ("unknown", "no label")),
        ({}, "ignore", ("unknown", "no label")),
    ],
)
def test_observations_give_one_label(
    values: dict[str, int], uncertain: Uncertain, expected: tuple[str, str]
) -> None:
    assert label_of_values(values, uncertain) == expected


def test_a_value_that_is_none_is_named() -> None:
    assert read_values({"pneumonia": "2.0", "edema": "-1.0"}) == (
        {"Edema": -1},
        ["Pneumonia '2.0'"],
    )


def test_chexpert_gives_whole_rows_of_both_tables(tmp_path: Path) -> None:
    loaded = load("chexpert", chexpert(tmp_path))
    assert [row.label for row in loaded.rows] == ["normal", "pneumonia", "other"]
    row = loaded.rows[0]
    assert row.image == "train/patient00001/study1/view1_frontal.jpg"
    assert (row.patient_id, row.view) == ("chexpert-patient00001", "AP")
    assert (row.age, row.sex) == ("68", "F")
    assert loaded.problems == []


def test_chexpert_leaves_lateral_films_out(tmp_path: Path) -> None:
    lateral = f"{PATH}/view2_lateral.jpg,Female,68,Lateral,," + observed(No_Finding="1.0")
    loaded = load("chexpert", chexpert(tmp_path, lateral))
    assert loaded.left_out == {"view lateral": 1}
    assert [row.patient_id for row in loaded.rows] == ["chexpert-patient64541"]


def test_chexpert_takes_the_policy_for_uncertain_labels(tmp_path: Path) -> None:
    line = f"{PATH}/view1_frontal.jpg,Female,68,Frontal,AP," + observed(Pneumonia="-1.0")
    chexpert(tmp_path, line)
    labels = {
        p: load("chexpert", tmp_path, uncertain=p).rows[0].label
        for p in ("ignore", "positive", "negative")
    }
    assert labels == {"ignore": "unknown", "positive": "pneumonia", "negative": "unknown"}


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"uncertain must be one of ignore.*Got 'maybe'"):
        load("chexpert", chexpert(tmp_path), uncertain="maybe")


def test_chexpert_in_batches_is_found_too(tmp_path: Path) -> None:
    line = "CheXpert-v1.0/train/patient00009/study1/view1_frontal.jpg,Male,50,Frontal,AP,"
    chexpert(tmp_path, line + observed(Edema="1.0"))
    batch = "CheXpert-v1.0 batch 2 (train 1)/patient00009/study1/view1_frontal.jpg"
    film(tmp_path / batch)
    assert load("chexpert", tmp_path).rows[0].image == batch


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f"{PATH}/view9_frontal.jpg,Female,68,Frontal,AP,", "missing_file"),
        (f"{PATH}/view1_frontal.jpg,Female,68,Oblique,AP,", "odd_value"),
        (f"{PATH}/view1_frontal.jpg,Female,old,Frontal,AP,", "odd_value"),
        (f"{PATH}/view1_frontal.jpg,Female,68,Frontal,AP,yes", "unknown_label"),
        ("CheXpert-v1.0-small/train/study1/view1_frontal.jpg,Female,68,Frontal,AP,", "odd_name"),
        (",Female,68,Frontal,AP,", "bad_line"),
    ],
)
def test_chexpert_reports_a_bad_line_and_reads_the_rest(
    tmp_path: Path, line: str, kind: str
) -> None:
    loaded = load("chexpert", chexpert(tmp_path, line))
    assert kind in kinds(loaded)
    assert loaded.rows[-1].patient_id == "chexpert-patient64541"


def test_mimic_gives_whole_rows_and_leaves_laterals_out(tmp_path: Path) -> None:
    loaded = load("mimic", mimic(tmp_path))
    first, second = loaded.rows
    assert first.image == "files/p10/p10000032/s50414267/aa-01.jpg"
    assert (first.patient_id, first.view, first.label) == ("mimic-p10000032", "PA", "normal")
    assert (second.view, second.label, second.sublabel) == ("AP", "unknown", "Edema|Pneumonia?")
    assert loaded.left_out == {"view LATERAL": 1}
    assert loaded.problems == []


def test_mimic_reads_unpacked_tables_too(tmp_path: Path) -> None:
    assert len(load("mimic", mimic(tmp_path, ".csv")).rows) == 2


def test_mimic_without_labels_is_reported(tmp_path: Path) -> None:
    mimic(tmp_path)
    (tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    loaded = load("mimic", tmp_path)
    assert kinds(loaded) == ["missing_file"]
    assert {row.label for row in loaded.rows} == {"unknown"}


def test_mimic_reports_a_packed_table_that_ends_early(tmp_path: Path) -> None:
    path = mimic(tmp_path) / "mimic-cxr-2.0.0-chexpert.csv.gz"
    path.write_bytes(path.read_bytes()[:-12])
    loaded = load("mimic", tmp_path)
    assert "bad_line" in kinds(loaded)
    assert len(loaded.rows) == 2
