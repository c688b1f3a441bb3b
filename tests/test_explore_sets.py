"""Writing a public set as the tables that this project reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from explore_sets import convert, describe_set, films_folder
from public_worlds import film, kermany, nih, table

from cxr.films_table import read_films_table
from cxr.public_sets import COLUMNS


def test_the_table_has_the_columns_of_films_csv_and_reads_back(tmp_path: Path) -> None:
    out = convert("kermany", kermany(tmp_path), tmp_path / "out")
    with (out / "films.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    rows = read_films_table(out / "films.csv")
    assert rows[1].patient_id == "kermany-person1"


def test_the_columns_are_those_of_the_shared_data(shared_data: Path) -> None:
    with (shared_data / "films.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_every_image_lies_where_the_record_says(tmp_path: Path) -> None:
    out = convert("kermany", kermany(tmp_path), tmp_path / "out")
    top = films_folder(out)
    assert all((top / row.image).exists() for row in read_films_table(out / "films.csv"))


def test_a_folder_without_a_record_holds_its_own_films(tmp_path: Path) -> None:
    assert films_folder(tmp_path) == tmp_path


def test_a_record_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text('{"schema": "other"}')
    with pytest.raises(ValueError, match=r"schema lungfirst\.public_set"):
        films_folder(tmp_path)


def test_boxes_are_written_as_the_shared_data_have_them(tmp_path: Path) -> None:
    table(nih(tmp_path / "nih") / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h]",
          "00000013_005.png,Pneumonia,128,256,512,384")  # fmt: skip
    out = convert("nih", tmp_path / "nih", tmp_path / "out")
    assert (out / "finding_boxes.csv").read_text().splitlines() == [
        "image,finding,x,y,w,h",
        "images_002/images/00000013_005.png,Pneumonia,1.0,2.0,4.0,3.0",
    ]


def test_problems_are_written_and_counted(tmp_path: Path) -> None:
    film(kermany(tmp_path) / "train" / "NORMAL" / "scan7.jpeg")
    out = convert("kermany", tmp_path / "chest_xray", tmp_path / "out")
    assert "odd_name,train/NORMAL/scan7.jpeg," in (out / "problems.csv").read_text()
    assert json.loads((out / "set.json").read_text())["problems"] == {"odd_name": 1}
    assert "Problems: odd_name 1 (problems.csv)" in describe_set(out)


def test_a_set_without_any_film_writes_nothing(tmp_path: Path) -> None:
    top = tmp_path / "nih"
    table(top / "Data_Entry_2017.csv", "Image Index,Finding Labels", "00000001_000.png,Mass")
    with pytest.raises(ValueError, match="holds no film of nih"):
        convert("nih", top, tmp_path / "out")
    assert not (tmp_path / "out").exists()
