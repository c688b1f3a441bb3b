"""YOLO label files: how they are written, and how they find their films."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelling_labels import make_set, save, write_film

from labelling.exchange import FORMATS, ExportConfig, run_export
from labelling.label_files import ReadRules


def test_yolo_writes_fractions_of_width_and_height(tmp_path):
    source = make_set(tmp_path / "f", {"a/x.png": ((100, 200), [(20, 10, 60, 90)])})
    [path] = FORMATS["yolo"].write(source, tmp_path / "out")
    assert path == tmp_path / "out/labels/a/x.txt"
    assert path.read_text() == "0 0.20000000 0.50000000 0.20000000 0.80000000\n"
    assert (tmp_path / "out/classes.txt").read_text() == "thorax\n"
    assert "0: thorax" in (tmp_path / "out/data.yaml").read_text()


def test_yolo_refuses_two_films_that_would_share_a_file(tmp_path, capsys):
    source = make_set(tmp_path / "f", {"a.png": ((40, 60), []), "a.jpg": ((40, 60), [])})
    code = run_export(ExportConfig((str(save(tmp_path, source)),), "yolo", str(tmp_path / "out")))
    assert code == 1
    assert not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert "a.png" in error and "a.jpg" in error


def read_yolo(tmp_path: Path, text: str, name: str = "a", **rules):
    path = tmp_path / "set/labels" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if not (tmp_path / "set/data.yaml").exists():
        (tmp_path / "set/data.yaml").write_text("names: [thorax]\n")
    return FORMATS["yolo"].read(tmp_path / "set", tmp_path / "films", ReadRules(**rules))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 0.5 0.5 0.5", "line 1 must be class cx cy w h"),
        ("\n0 0.5 0.5 0.5 0.5 0.9", "line 2 must be class cx cy w h"),
        ("0.5 0.5 0.5 0.5 0.5", "must be numbers"),
        ("1 0.5 0.5 0.5 0.5", "class 1 is none of 0 to 0"),
        ("-1 0.5 0.5 0.5 0.5", "class -1"),
        ("0 0.5 0.5 inf 0.5", "finite"),
        ("0 30 20 10 10", "not pixels"),
        ("0 0.5 0.5 0.5 0", "width and a height"),
        ("0 0.9 0.5 0.5 0.5", "reaches out of the film"),
        ("0 0.1 0.1 0.5 0.1 0.3 0.5", "polygon"),
    ],
)
def test_yolo_names_why_a_file_is_unusable(text, reason, tmp_path):
    write_film(tmp_path / "films/a.png", (40, 60))
    coco, [unusable] = read_yolo(tmp_path, text)
    assert not coco.films
    assert unusable.where == "a.txt"
    assert reason in unusable.reason


def test_yolo_takes_the_hull_of_a_polygon(tmp_path):
    write_film(tmp_path / "films/a.png", (40, 60))
    coco, _ = read_yolo(tmp_path, "0 0.1 0.1 0.5 0.2 0.3 0.5", hull=True)
    assert coco.films[0].boxes_xyxy.tolist() == [[6, 4, 30, 20]]


def test_yolo_stem_of_two_films_is_ambiguous(tmp_path):
    for folder in ("b", "c"):
        write_film(tmp_path / f"films/{folder}/a.png", (40, 60))
    _, [unusable] = read_yolo(tmp_path, "")
    assert "b/a.png or c/a.png" in unusable.reason


def test_yolo_label_beside_its_film_goes_before_a_stem(tmp_path):
    write_film(tmp_path / "films/b/a.png", (40, 60))
    read_yolo(tmp_path, "", name="b/a")
    coco, [unusable] = read_yolo(tmp_path, "0 0.5 0.5 0.5 0.5", name="a")
    assert len(coco.films[0].boxes_xyxy) == 0
    assert unusable.where == "a.txt"
    assert "has labels in b/a.txt already" in unusable.reason


@pytest.mark.parametrize("label", ["labels/train/a.txt", "train/labels/a.txt"])
@pytest.mark.parametrize("film", ["images/train/a.png", "train/images/a.png", "train/a.png"])
def test_yolo_finds_films_in_the_usual_folders(label, film, tmp_path):
    write_film(tmp_path / "films" / film, (40, 60))
    write_film(tmp_path / "films" / "other/a.png", (40, 60))
    path = tmp_path / "set" / label
    path.parent.mkdir(parents=True)
    path.write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "set/data.yaml").write_text("names: {0: thorax}\n")
    (tmp_path / "set/README.dataset.txt").write_text("about")
    coco, unusable = FORMATS["yolo"].read(tmp_path / "set", tmp_path / "films")
    assert not unusable
    assert coco.films[0].file_name == film


@pytest.mark.parametrize("names", ["[thorax, lung]", "{1: lung, 0: thorax}"])
def test_yolo_reads_the_names_of_a_data_yaml(names, tmp_path):
    write_film(tmp_path / "films/a.png", (40, 60))
    read_yolo(tmp_path, "")
    (tmp_path / "set/data.yaml").write_text(f"names: {names}\n")
    coco, _ = read_yolo(tmp_path, "1 0.5 0.5 0.5 0.5")
    assert coco.classes == ("thorax", "lung")
    assert coco.films[0].labels == (1,)


def test_yolo_without_names_needs_classes(tmp_path):
    write_film(tmp_path / "films/a.png", (40, 60))
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/a.txt").write_text("0 0.5 0.5 0.5 0.5")
    with pytest.raises(ValueError, match="--classes"):
        FORMATS["yolo"].read(tmp_path / "flat", tmp_path / "films")
    coco, _ = FORMATS["yolo"].read(
        tmp_path / "flat/a.txt", tmp_path / "films", ReadRules(("thorax",))
    )
    assert coco.films[0].file_name == "a.png"
