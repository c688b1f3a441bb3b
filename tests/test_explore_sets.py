"""Writing a public set as the tables that this project reads."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from explore import convert, describe_set
from public_worlds import WORLDS, film, kermany, nih, table

from cxr.films_table import read_films_table
from cxr.public_sets.records import COLUMNS


def test_the_table_has_the_columns_of_films_csv_and_reads_back(tmp_path: Path) -> None:
    out = convert("kermany", kermany(tmp_path), tmp_path / "out")
    with (out / "films.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    rows = read_films_table(out / "films.csv")
    assert rows[1].patient_id == "kermany-person1"


def test_the_columns_are_those_of_the_shared_data(shared_data: Path) -> None:
    with (shared_data / "films.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_films_inside_the_folder_keep_their_short_names(tmp_path: Path) -> None:
    out = convert("kermany", kermany(tmp_path), tmp_path)
    images = [row.image for row in read_films_table(out / "films.csv")]
    assert images[0] == "chest_xray/train/NORMAL/IM-0001-0001.jpeg"


def test_a_link_keeps_the_name_that_was_published(tmp_path: Path) -> None:
    top = kermany(tmp_path)
    blob = (top / "train/NORMAL/IM-0001-0001.jpeg").rename(tmp_path / "0a1b2c")
    (top / "train/NORMAL/IM-0001-0001.jpeg").symlink_to(blob)
    out = convert("kermany", top, tmp_path / "out")
    assert read_films_table(out / "films.csv")[0].image.endswith("train/NORMAL/IM-0001-0001.jpeg")


def test_a_table_that_no_conversion_wrote_is_not_overwritten(tmp_path: Path) -> None:
    top, out = kermany(tmp_path), tmp_path / "out"
    convert("kermany", top, out)
    convert("kermany", top, out)  # its own may be written anew
    (out / "set.json").write_text('{"schema": "other"}')
    with pytest.raises(ValueError, match=r"films\.csv of other origin, which would be lost"):
        convert("kermany", top, out)


def test_what_may_train_a_published_model_is_said(tmp_path: Path) -> None:
    said = {}
    for name, make in WORLDS.items():
        out = convert(name, make(tmp_path / name), tmp_path / f"{name}.out")
        said[name] = [s for s in describe_set(out) if s.startswith(("Publishable", "No film's"))]
    every = "Publishable: by their licence {0} of {0} films may train a published model"
    none = "No film's licence allows to publish a model trained on it: publishable_only=false"
    assert said["kermany"] == [every.format(6)] and said["nih"] == [every.format(2)]
    for name in ("radiography", "actualmed", "figure1", "chexpert", "mimic", "ieee8023"):
        assert said[name] == [none], name


def test_boxes_are_written_as_the_shared_data_have_them(tmp_path: Path) -> None:
    table(
        nih(tmp_path / "nih") / "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h]",
        "00000013_005.png,Pneumonia,128,256,512,384",
    )
    out = convert("nih", tmp_path / "nih", tmp_path / "out")
    assert (out / "finding_boxes.csv").read_text().splitlines() == [
        "image,finding,x,y,w,h",
        f"{tmp_path}/nih/images_002/images/00000013_005.png,Pneumonia,1.0,2.0,4.0,3.0",
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


def test_a_name_of_other_bytes_than_utf8_is_left_out_and_spelt(tmp_path: Path) -> None:
    top = kermany(tmp_path)
    try:
        film(top / "train" / "NORMAL" / os.fsdecode(b"IM-\xe9.jpeg"))
    except OSError:
        pytest.skip("this disk takes no such names")
    out = convert("kermany", top, tmp_path / "out")
    assert len(read_films_table(out / "films.csv")) == 6
    assert (
        "train/NORMAL/IM-\\udce9.jpeg,The name is no UTF-8 text"
        in (out / "problems.csv").read_text()
    )
