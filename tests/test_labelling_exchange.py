"""Boxes to and from COCO, Pascal VOC, labelme and YOLO: round trips and the export command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from labelling_labels import by_name, export_and_import, make_set, save, session
from labelling_sessions import make_session

from cxr.cli import Command, parse_command
from cxr.coco import CocoFilm, CocoSet, read_coco
from labelling.exchange import FORMATS, ExportConfig, ImportConfig, run_export, run_import

__all__ = ["session"]

SIZES = [(1422, 1152), (1152, 1422), (361, 373), (97, 640), (640, 97)]  # height, width
ODD_NAMES = [
    "a/film.png",
    "b/film.png",
    "plain.png",
    "with space/film 1.png",
    "dots.v1.2.png",
    "Überblick/胸部 é.png",
    "R&D <1>.png",
    "quote\"'.png",
    "images/inner.png",
    "no%20escape#1.png",
    "classes.png",
]


def boxes_of(height: int, width: int) -> list[tuple[float, float, float, float]]:
    """A whole film, one that touches two edges, fractions, and a sliver thinner than a pixel."""
    return [
        (0.0, 0.0, float(width), float(height)),
        (width - 20.25, 0.0, float(width), 33.375),
        (10.4, 11.6, width * 0.77, height * 0.613),
        (7.6, 20.0, 8.3, 60.5),
    ]


# Round trips


@pytest.mark.parametrize("kind", FORMATS)
def test_coco_comes_back_within_half_a_pixel(kind, tmp_path):
    films = tmp_path / "films"
    source = make_set(films, {f"f{h}x{w}.png": ((h, w), boxes_of(h, w)) for h, w in SIZES})
    back = by_name(export_and_import(tmp_path, save(tmp_path, source), kind, films))
    assert set(back) == {f.file_name for f in source.films}
    for film in source.films:
        got = back[film.file_name]
        assert got.size_hw == film.size_hw
        assert np.abs(got.boxes_xyxy - film.boxes_xyxy).max() <= 0.5


@pytest.mark.parametrize("kind", ["coco", "labelme", "yolo"])
def test_formats_with_decimals_come_back_almost_exactly(kind, tmp_path):
    films = tmp_path / "films"
    source = make_set(films, {"f.png": ((1422, 1152), boxes_of(1422, 1152))})
    back = export_and_import(tmp_path, save(tmp_path, source), kind, films)
    assert np.abs(back.films[0].boxes_xyxy - source.films[0].boxes_xyxy).max() < 0.01


@pytest.mark.parametrize("kind", FORMATS)
def test_a_session_comes_back_within_half_a_pixel(kind, tmp_path):
    boxes = {f"s/f{h}x{w}.png": boxes_of(h, w)[2] for h, w in SIZES}
    pixels = [
        (name, np.tile(np.linspace(0, 1, w), (h, 1)))
        for name, (h, w) in zip(boxes, SIZES, strict=True)
    ]
    session = make_session(tmp_path / "s", pixels, patients={"s/f97x640.png": "p7"})
    for film in session.films:
        session.set_answer(film, xyxy=boxes[film.film])
    back = by_name(export_and_import(tmp_path, session.path, kind, session.root))
    assert set(back) == set(boxes)
    for name, box in boxes.items():
        assert np.abs(back[name].boxes_xyxy - [box]).max() <= 0.5


@pytest.mark.parametrize("kind", FORMATS)
def test_odd_names_survive(kind, tmp_path):
    films = tmp_path / "films"
    source = make_set(
        films, {n: ((30 + i, 50), [(1, 2, 30 + i, 20)]) for i, n in enumerate(ODD_NAMES)}
    )
    back = by_name(export_and_import(tmp_path, save(tmp_path, source), kind, films))
    assert set(back) == set(ODD_NAMES)
    for i, name in enumerate(ODD_NAMES):
        assert back[name].boxes_xyxy[0, 2] == pytest.approx(30 + i)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_film_without_a_box_survives(kind, tmp_path):
    films = tmp_path / "films"
    source = make_set(films, {"leg.png": ((40, 60), []), "chest.png": ((40, 60), [(1, 2, 9, 8)])})
    back = by_name(export_and_import(tmp_path, save(tmp_path, source), kind, films))
    assert back["leg.png"].boxes_xyxy.shape == (0, 4)
    assert len(back["chest.png"].boxes_xyxy) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_labels_of_several_boxes_survive(kind, tmp_path):
    films = tmp_path / "films"
    plain = make_set(films, {"f.png": ((40, 60), [(1, 2, 9, 8), (20, 2, 30, 9)])})
    film = CocoFilm("f.png", (40, 60), plain.films[0].boxes_xyxy, (1, 0))
    source = CocoSet([film], ("normal", "pneumonia"))
    back = export_and_import(tmp_path, save(tmp_path, source), kind, films)
    assert [back.classes[i] for i in back.films[0].labels] == ["pneumonia", "normal"]


@pytest.mark.parametrize("kind", ["coco", "voc", "labelme"])
def test_films_need_not_be_at_hand(kind, tmp_path):
    source = make_set(tmp_path / "f", {"a/x.png": ((40, 60), [(1, 2, 9, 8)])})
    out, into = tmp_path / "out", tmp_path / "back.json"
    assert run_export(ExportConfig((str(save(tmp_path, source)),), kind, str(out))) == 0
    assert run_import(ImportConfig((str(out),), kind, into=str(into))) == 0
    assert read_coco(into).films[0].file_name == "a/x.png"


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_films_that_differ_in_their_suffix_keep_apart(kind, tmp_path):
    films = tmp_path / "films"
    source = make_set(films, {"a.png": ((40, 60), [(1, 2, 9, 8)]), "a.jpg": ((40, 60), [])})
    back = by_name(export_and_import(tmp_path, save(tmp_path, source), kind, films))
    assert len(back["a.png"].boxes_xyxy) == 1
    assert len(back["a.jpg"].boxes_xyxy) == 0


def test_coco_keeps_what_else_an_annotation_says(tmp_path):
    films = tmp_path / "films"
    source = make_set(films, {"f.png": ((40, 60), [(1, 2, 9, 8)])})
    more = {"provenance": [{"annotator": "mk"}], "segmentation": [[1, 2, 9, 8]], "iscrowd": 1}
    film = replace(source.films[0], notes=(more,))
    path = save(tmp_path, CocoSet([film], source.classes))
    back = export_and_import(tmp_path, path, "coco", films)
    assert back.films[0].notes == ({"area": 48.0, **more},)
    [note] = json.loads((tmp_path / "out_coco/coco.json").read_text())["annotations"]
    assert {key: note[key] for key in more} == more


# From a session


@pytest.mark.parametrize("kind", FORMATS)
def test_only_boxes_of_a_human_go_out(kind, session, tmp_path, capsys):
    back = by_name(export_and_import(tmp_path, session.path, kind, session.root))
    assert set(back) == {"accepted.png", "drawn.png"}
    assert "1 skipped, 1 todo" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["coco", "voc", "labelme"])
def test_all_marks_what_no_human_touched(kind, session, tmp_path):
    back = by_name(export_and_import(tmp_path, session.path, kind, session.root, all=True))
    assert set(back) == {"accepted.png", "drawn.png", "todo.png"}
    assert back["todo.png"].extra["prelabelled"] is True
    assert "prelabelled" not in back["accepted.png"].extra
    assert "annotator" not in back["todo.png"].extra


def test_yolo_says_that_it_cannot_mark_pre_labels(session, tmp_path, capsys):
    config = ExportConfig((str(session.path),), "yolo", str(tmp_path / "out"), all=True)
    assert run_export(config) == 0
    assert "YOLO cannot say so: 1" in capsys.readouterr().out


def test_a_film_with_two_drawn_boxes_stays_and_is_named(session, tmp_path, capsys):
    path = session.label_path(session.films[1])
    data = json.loads(path.read_text())
    data["shapes"] *= 2
    path.write_text(json.dumps(data))
    code = run_export(ExportConfig((str(session.path),), "voc", str(tmp_path / "out")))
    assert code == 1
    assert "drawn.png: 2 boxes" in capsys.readouterr().out
    assert (tmp_path / "out/accepted.xml").is_file()


def test_a_torn_label_file_is_named(session, tmp_path, capsys):
    session.label_path(session.films[1]).write_text('{"sha')
    assert run_export(ExportConfig((str(session.path),), "voc", str(tmp_path / "out"))) == 1
    assert "drawn.png: its label file not JSON" in capsys.readouterr().out


def test_names_become_relative_to_films(session, tmp_path):
    config = ExportConfig((str(session.path),), "coco", str(tmp_path / "o.json"), str(tmp_path))
    assert run_export(config) == 0
    names = {f.file_name for f in read_coco(tmp_path / "o.json").films}
    assert names == {"s-films/accepted.png", "s-films/drawn.png"}


def test_a_label_out_of_classes_stays_and_is_named(tmp_path, capsys):
    source = save(
        tmp_path,
        make_set(tmp_path / "f", {"a.png": ((40, 60), [(1, 2, 9, 8)]), "leg.png": ((40, 60), [])}),
    )
    config = ExportConfig((str(source),), "coco", str(tmp_path / "out"), classes=["lung"])
    assert run_export(config) == 1
    assert "a.png: label 'thorax' is not of lung" in capsys.readouterr().out
    assert [f.file_name for f in read_coco(tmp_path / "out/coco.json").films] == ["leg.png"]


def test_nothing_to_export_is_an_error(tmp_path, capsys):
    empty = make_session(tmp_path / "s", [("a.png", np.eye(30))])
    assert run_export(ExportConfig((str(empty.path),), "voc", str(tmp_path / "out"))) == 1
    assert "can go out" in capsys.readouterr().err


def test_export_replaces_files_only_when_told(tmp_path, capsys):
    source = save(tmp_path, make_set(tmp_path / "f", {"a.png": ((40, 60), [(1, 2, 9, 8)])}))
    config = ExportConfig((str(source),), "voc", str(tmp_path / "out"))
    assert [run_export(config), run_export(config)] == [0, 1]
    assert "--overwrite" in capsys.readouterr().err
    assert (
        run_export(ExportConfig((str(source),), "voc", str(tmp_path / "out"), overwrite=True)) == 0
    )


@pytest.mark.parametrize("kind", ["voc", "labelme", "yolo"])
@pytest.mark.parametrize("name", ["../out_of_it.png", "/etc/film.png"])
def test_export_never_writes_outside_of_its_folder(kind, name, tmp_path):
    film = CocoFilm(name, (40, 60), np.zeros((0, 4)), ())
    source = save(tmp_path, CocoSet([film], ("thorax",)))
    before = sorted(tmp_path.rglob("*"))
    assert run_export(ExportConfig((str(source),), kind, str(tmp_path / "out"))) == 1
    assert sorted(tmp_path.rglob("*")) == before


# Arguments


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"path": ()}, "path"),
        ({}, "into or session"),
        ({"into": "a.json", "session": "s"}, "into or session"),
        ({"into": "a.txt"}, "named .json"),
        ({"session": "s"}, "annotator"),
        ({"into": "a.json", "format": "yolo"}, "films"),
        ({"into": "a.json", "format": "csv"}, "format"),
    ],
)
def test_wrong_arguments_of_import(values, word):
    with pytest.raises(ValueError, match=word):
        ImportConfig(**{"path": ("labels",), **values})


@pytest.mark.parametrize("values", [{"source": ()}, {"out": ""}, {"format": "csv"}])
def test_wrong_arguments_of_export(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        ExportConfig(**{"source": ("s",), "out": "o", **values})


@pytest.mark.parametrize("classes", ["normal,pneumonia", "[normal,pneumonia]"])
def test_classes_may_be_written_in_both_ways(classes, tmp_path, capsys):
    commands = {"export": Command(ExportConfig, "", ("source",))}
    words = ["export", "s", "--out", "o", "--format", "voc", "--classes", classes, "--all"]
    config = parse_command(commands, words, "annotate.py", "about")
    source = save(tmp_path, make_set(tmp_path / "f", {"a.png": ((40, 60), [(1, 2, 9, 8)])}))
    run_export(ExportConfig((str(source),), "voc", str(tmp_path / "o"), classes=config.classes))
    assert config.all
    assert "is not of normal, pneumonia" in capsys.readouterr().out
