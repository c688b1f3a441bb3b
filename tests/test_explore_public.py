"""tools/explore.py --source on each public layout, and other commands with the folder it wrote."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import explore
import numpy as np
import pytest
from public_worlds import WORLDS

from classify.audit.films import Truths
from classify.films import select_cases
from cxr.boxes import Frame
from cxr.coco import CocoFilm, CocoSet, write_coco
from cxr.film import read_film
from cxr.films_table import FilmRow, read_films_table
from cxr.manifest import CropRow, ManifestWriter
from cxr.public_sets.registry import SETS
from detect.data import DataConfig, read_annotations, select_films

SIZE = (90, 70)  # px, height and width of the films that stand in for the tiny ones
WHOLE = Frame.cut((0, 0, 70, 90)).to_dict()


def explored(name: str, folder: Path, *words: str) -> Path:
    """The public set in `folder` converted and looked at; the folder for --data."""
    top = WORLDS[name](folder / "set")
    enlarge(folder / "set")
    out = folder / "looked"
    assert explore.main(["--source", name, str(top), "--out", str(out), "--jobs", "0", *words]) == 0
    return out


def enlarge(top: Path) -> None:
    """Pictures that are large enough for a film, each another one."""
    for number, path in enumerate(sorted(top.rglob("*.*"))):
        if path.suffix in {".png", ".jpg", ".jpeg"}:
            pixels = np.random.default_rng(number).integers(0, 255, SIZE, np.uint8)
            cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module", params=sorted(SETS))
def looked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explored(request.param, tmp_path_factory.mktemp(request.param))


def box_on(name: str, row: FilmRow) -> CocoFilm:
    return CocoFilm(name, SIZE, np.array([[1.0, 1, 9, 9]]), (0,), {"patient_id": row.patient_id})


def rows_of(out: Path) -> list[FilmRow]:
    return read_films_table(out / "films.csv")


def test_every_film_can_be_read_beside_the_table(looked: Path) -> None:
    rows = rows_of(looked)
    assert rows
    for row in rows:
        assert read_film(looked / row.image).pixels.shape == SIZE


def test_the_page_is_made_of_the_films(looked: Path) -> None:
    found = json.loads((looked / "explore.json").read_text())
    assert found["read"] == found["films"] == len(rows_of(looked)) and not found["unread"]
    assert (looked / "report.html").exists()


def test_classify_finds_the_films_and_their_crops(looked: Path) -> None:
    rows = [replace(row, label="normal") for row in rows_of(looked)]
    cases, _ = select_cases(rows, looked, publishable_only=False)
    assert len(cases) == len(rows) and all(case.film.is_file() for case in cases)
    with ManifestWriter(looked / "crops" / "manifest.jsonl", {}, restart=True) as writer:
        for case in cases:  # named as detect.crop names the films of the set's folder
            writer.add(
                CropRow(str(case.film), "0", "ok", size_hw=SIZE, crop=case.patient, frame=WHOLE)
            )
    cases, _ = select_cases(rows, looked, publishable_only=False, crops=looked / "crops")
    assert [c.crop.name for c in cases if c.crop] == [r.patient_id for r in rows]


def test_the_audit_finds_each_film_again(looked: Path) -> None:
    truths = Truths.load(looked)
    for row in rows_of(looked):
        found = truths.of(str((looked / row.image).resolve())).row
        assert found is not None and found.patient_id == row.patient_id


def test_the_detector_trains_on_boxes_that_name_films_by_the_set(looked: Path) -> None:
    rows = rows_of(looked)
    top = looked.parent / "set"
    films = [box_on(Path(row.image).relative_to(top).as_posix(), row) for row in rows]
    write_coco(looked / "thorax.json", CocoSet(films, ("thorax",)))
    found = read_annotations(looked, "thorax.json")
    assert [f.file_name for f in found] == [r.image for r in rows]


def test_publishable_films_are_those_of_the_table(tmp_path: Path) -> None:
    out = explored("kermany", tmp_path)
    films = [box_on(Path(row.image).name, row) for row in rows_of(out)]  # as in annotations/
    write_coco(out / "thorax.json", CocoSet(films, ("thorax",)))
    config = DataConfig(data=str(out), publishable_only=True, parts={"train": 0.5, "val": 0.5})
    parts = select_films(config, 0).films
    assert len(parts["train"]) + len(parts["val"]) == len(films)


def test_the_published_part_of_a_kermany_film_can_be_read_from_its_name(tmp_path: Path) -> None:
    rows = rows_of(explored("kermany", tmp_path / "test"))  # a folder called like a part
    parts = [Path(row.image).parts[-3] for row in rows]
    assert parts == ["train", "train", "val", "val", "test", "test"]


@pytest.mark.parametrize(
    ("policy", "label"), [("ignore", "unknown"), ("positive", "pneumonia"), ("negative", "other")]
)
def test_uncertain_labels_are_taken_as_asked(tmp_path: Path, policy: str, label: str) -> None:
    out = explored("mimic", tmp_path, "--uncertain", policy)
    with (out / "films.csv").open() as file:
        assert [r["label"] for r in csv.DictReader(file)] == ["normal", label]
    assert json.loads((out / "set.json").read_text())["uncertain"] == policy


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--uncertain", "positive"], "uncertain is for --source chexpert and mimic only"),
        (["--source", "kermany", "--uncertain", "negative"], "Got source 'kermany'"),
        (["--source", "padchest"], "source must be one of kermany, nih"),
    ],
)
def test_a_wrong_source_or_policy_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        explore.main([str(tmp_path), *words])
    assert stop.value.code == 2
    assert why in " ".join(capsys.readouterr().err.split())


def test_another_set_than_asked_for_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    top = WORLDS["kermany"](tmp_path)
    assert explore.main(["--source", "nih", str(top), "--out", str(tmp_path / "out")]) == 1
    assert "It looks like kermany: use --source kermany" in caplog.text
    assert not (tmp_path / "out").exists()
