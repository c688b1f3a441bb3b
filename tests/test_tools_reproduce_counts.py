"""tools/reproducing/making.py: how many films a table has, as its paper counts them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from reproduce_toy import TOY
from test_tools_reproduce import RECIPE

from reproducing.cells import Cell, ReproduceConfig
from reproducing.experiment import Films, read_experiment
from reproducing.making import count_films
from reproducing.runners import RUNNERS, SplitOf

SPLIT = SplitOf(
    ("normal", "viral"),
    {"images/a/1.png": "normal", "images/a/2.png": "viral", "images/b/3.png": "viral"},
    [],
    {},
    {"train": ["images/a/1.png", "images/b/3.png"], "test": ["images/a/2.png"]},
)


def counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Films, settings: dict[str, Any]
) -> dict[str, dict[str, tuple[int | None, int | None]]]:
    monkeypatch.setitem(RUNNERS, "toy", TOY)
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(RECIPE))
    experiment = replace(read_experiment(tmp_path / "rates.yaml"), films=[asked])
    cell = Cell("rates", "low", "", "toy", "", tmp_path, settings, {})
    config = ReproduceConfig(("rates",), data=str(tmp_path))
    return {row.row: row.counts for row in count_films(experiment, cell, SPLIT, config)}


def test_films_are_counted_by_class_and_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"viral": {"total": 30, "train": 20}, "all": {"train": 60}, "bacterial": {"train": 7}}
    assert counted(tmp_path, monkeypatch, Films("Table 1", "part", figures), {}) == {
        "viral": {"train": (20, 1), "total": (30, 2)},
        "all": {"train": (60, 2), "total": (None, 3)},
        "bacterial": {"train": (7, None), "total": (None, None)},
    }


def test_films_are_counted_by_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Films("Films", "source", {"viral": {"a": 5, "b": 6, "c": 7}})
    found = counted(tmp_path, monkeypatch, asked, {})
    assert found == {"viral": {"a": (5, 1), "b": (6, 1), "c": (7, None)}}


def test_films_with_a_box_are_hard_labels_and_the_others_weak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films.csv").write_text(
        "image,mask,source,patient_id,label,sublabel,licence\n"
        "images/1.png,,nih,p1,other,Effusion|Nodule,CC0\n"
        "images/2.png,,nih,p2,other,Effusion,CC0\n"
        "images/3.png,,nih,p3,normal,No Finding,CC0\n"
        "images/4.png,,jsrt,p4,other,Nodule,CC0\n"
    )
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(
        "image,finding,x,y,w,h\nimages/1.png,Effusion,1,1,2,2\nimages/1.png,Effusion,5,5,2,2\n"
    )
    region = {"kind": "finding_boxes", "path": str(boxes)}
    figures = {"pleural_effusion": {"hard": 9}, "nodule": {"weak": 9}, "normal": {"total": 9}}
    asked = Films("Table 1", "label", figures)
    found = counted(tmp_path, monkeypatch, asked, {"region": region, "sources": ["nih"]})
    assert {row: {c: ours for c, (_, ours) in counts.items()} for row, counts in found.items()} == {
        "pleural_effusion": {"hard": 1, "weak": 1, "total": 2},
        "nodule": {"hard": 0, "weak": 1, "total": 1},
        "normal": {"hard": None, "weak": None, "total": 1},
    }
