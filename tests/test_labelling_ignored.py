"""Boxes marked not to count: kept on every way through the labelling tools, and never counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelling_labels import by_name, export_and_import, make_set, read_voc, save, voc_text
from labelling_merging import BOX_A, do_merge, into, locks, session_of
from labelling_sessions import make_session

from cxr.coco import CocoFilm, CocoSet, read_coco, write_coco
from labelling import Session
from labelling.check import check_file, check_session
from labelling.exchange import ExportConfig, ImportConfig, run_export, run_import
from labelling.labelme import Shape
from labelling.readers import read_side
from labelling.review import parse_numbers, plan_changes

__all__ = ["into", "locks", "session_of"]

REAL, REGION = (10.0, 5.0, 50.0, 35.0), (0.0, 0.0, 60.0, 40.0)


def marked_set(folder: Path, **mark: object) -> CocoSet:
    """a.png with a real box and a marked region, only.png with a marked region alone."""
    plain = make_set(
        folder, {"a.png": ((40, 60), [REAL, REGION]), "only.png": ((40, 60), [REGION])}
    )
    notes = {"a.png": ({}, mark), "only.png": (mark,)}
    films = [
        CocoFilm(f.file_name, f.size_hw, f.boxes_xyxy, f.labels, notes=notes[f.file_name])
        for f in plain.films
    ]
    return CocoSet(films, plain.classes)


@pytest.mark.parametrize("mark", ["iscrowd", "ignore", "difficult"])
@pytest.mark.parametrize("there", ["coco", "voc", "labelme"])
@pytest.mark.parametrize("back", ["coco", "voc", "labelme"])
def test_marks_survive_every_pair_of_formats(mark, there, back, tmp_path):
    source = save(tmp_path, marked_set(tmp_path / "films", **{mark: 1}))
    films = tmp_path / "films"
    write_coco(tmp_path / "one.json", export_and_import(tmp_path, source, there, films))
    (tmp_path / "two").mkdir()
    got = by_name(export_and_import(tmp_path / "two", tmp_path / "one.json", back, films))
    assert got["a.png"].ignored.tolist() == [False, True]
    assert got["a.png"].boxes_xyxy.tolist() == [list(REAL), list(REGION)]
    assert got["only.png"].ignored.tolist() == [True]


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_a_mark_of_another_format_is_a_crowd_to_other_trainers(kind, tmp_path):
    source = save(tmp_path, marked_set(tmp_path / "films", difficult=1))
    export_and_import(tmp_path, source, kind, tmp_path / "films")
    notes = json.loads((tmp_path / f"back_{kind}.json").read_text())["annotations"]
    assert [n["iscrowd"] for n in notes] == [0, 1, 1]


def test_yolo_leaves_marked_boxes_behind_and_counts_them(tmp_path, capsys):
    source = save(tmp_path, marked_set(tmp_path / "films", iscrowd=1))
    assert run_export(ExportConfig((str(source),), "yolo", str(tmp_path / "out"))) == 0
    assert "boxes marked not to count stay behind, for YOLO cannot mark them: 2" in (
        capsys.readouterr().out
    )
    # an empty file for only.png would say that it shows nothing
    assert [p.name for p in (tmp_path / "out/labels").iterdir()] == ["a.txt"]
    assert len((tmp_path / "out/labels/a.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize(("said", "marked"), [("1", 1), (" true\n", 1), ("0", 0), ("", 0)])
def test_voc_difficult_is_read_however_it_is_written(said, marked, tmp_path):
    text = voc_text(box="1 2 9 8").replace("<bndbox>", f"<difficult>{said}</difficult><bndbox>")
    coco, unusable = read_voc(tmp_path, text)
    assert not unusable
    assert coco.films[0].ignored.tolist() == [bool(marked)]


def test_voc_difficult_that_is_neither_is_no_object(tmp_path):
    text = voc_text(box="1 2 9 8").replace("<bndbox>", "<difficult>maybe</difficult><bndbox>")
    coco, [unusable] = read_voc(tmp_path, text)
    assert not coco.films
    assert "difficult of object 1 must be 0 or 1. Got 'maybe'" in unusable.reason


def test_labelme_keeps_its_group(tmp_path):
    plain = make_set(tmp_path / "f", {"a.png": ((40, 60), [REAL])})
    film = CocoFilm("a.png", (40, 60), plain.films[0].boxes_xyxy, (0,), notes=({"group_id": 7},))
    source = save(tmp_path, CocoSet([film], plain.classes))
    back = export_and_import(tmp_path, source, "labelme", tmp_path / "f")
    assert back.films[0].notes[0]["group_id"] == 7


# In a session


def add_region(session: Session, number: int = 1, flag: str = "ignore") -> None:
    """Draw a region on a film as labelme writes it, with its own flag ticked."""
    path = session.label_path(session.films[number - 1])
    data = json.loads(path.read_text())
    region = {"label": "thorax", "points": [[1, 1], [20, 20]], "shape_type": "rectangle"}
    data["shapes"].append({**region, "flags": {flag: True}, "group_id": None})
    path.write_text(json.dumps(data))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    ramp = np.tile(np.linspace(0, 1, 100), (60, 1))
    made = make_session(tmp_path / "s", [("a.png", ramp)], {"a.png": (10, 10, 90, 55)})
    add_region(made, flag="Ignore")
    return made


def test_a_marked_shape_is_no_answer(session):
    answer = session.answer(session.films[0])
    assert (answer.state, len(answer.boxes), len(answer.ignored)) == ("todo", 1, 1)
    assert check_session(session)[0] == []
    seen = {1: {"boxes": [{"label": "thorax", "xyxy": (10, 10, 90, 55)}], "doubtful": False}}
    orders = {name: [] for name in ("set", "skip", "flag", "doubtful", "but")}
    orders["accept"] = [(parse_numbers("accept", "1"), None)]
    [change] = plan_changes(orders, session, seen)
    assert change.did == ("accepted",)


def test_a_marked_shape_stays_when_the_box_is_set_accepted_or_restored(session):
    film = session.films[0]
    for said in ({"flags": ["accepted"]}, {"xyxy": (20, 12, 80, 50)}):
        answer = session.set_answer(film, **said)
        assert (len(answer.boxes), len(answer.ignored)) == (1, 1)
    before = answer.ignored[0].xyxy
    session.label_path(film).unlink()
    again = Session.open(session.path)
    assert again.restore_lost() == [film]
    answer = again.answer(film)
    assert answer.ignored[0].xyxy == pytest.approx(before, abs=0.01)
    assert answer.ignored[0].marks == {"ignore"}
    assert again.note_changes() == 0


@pytest.mark.parametrize("kind", ["coco", "voc", "labelme"])
def test_a_marked_shape_goes_out_of_a_session_and_into_another(kind, session, tmp_path):
    session.set_answer(session.films[0], flags=["accepted"])
    out = tmp_path / "out"
    assert run_export(ExportConfig((str(session.path),), kind, str(out))) == 0
    ramp = np.tile(np.linspace(0, 1, 100), (60, 1))
    other = make_session(tmp_path / "t", [("a.png", ramp)])
    config = ImportConfig((str(out),), kind, session=str(other.path), annotator="a")
    assert run_import(config) == 0
    answer = other.answer(other.films[0])
    assert (answer.state, len(answer.human), len(answer.ignored)) == ("drawn", 1, 1)
    was = session.answer(session.films[0]).ignored[0].xyxy
    assert answer.ignored[0].xyxy == pytest.approx(was, abs=0.6)


def test_a_marked_shape_of_any_kind_is_kept_as_its_hull_on_the_film(session, tmp_path):
    session.set_answer(session.films[0], flags=["accepted"])
    path = session.label_path(session.films[0])
    data = json.loads(path.read_text())
    data["shapes"][1] |= {"shape_type": "polygon", "points": [[-9, 2], [30, 5], [12, 900]]}
    data["shapes"].append({**data["shapes"][1], "points": [[3, 3], [3, 9]]})  # it has no width
    path.write_text(json.dumps(data))
    [region] = session.answer(session.films[0]).ignored
    assert (region.shape_type, region.xyxy[0], region.xyxy[3]) == ("rectangle", 0, 60)
    out = tmp_path / "out.json"
    assert run_export(ExportConfig((str(session.path),), "coco", str(out))) == 0
    assert read_coco(out).films[0].ignored.tolist() == [False, True]


def test_merge_keeps_marked_boxes_once_and_counts_one(into, session_of):
    anna = session_of("anna", {"1.png": BOX_A})
    add_region(anna, flag="difficult")
    assert do_merge(into, anna) == 0
    box, region = json.loads(into.read_text())["annotations"]
    assert (box["iscrowd"], region["iscrowd"], region["difficult"]) == (0, 1, 1)
    assert len({box["id"], region["id"]}) == 2
    assert [len(f.counted.labels) for f in read_coco(into).films] == [1]
    before = into.read_bytes()
    assert do_merge(into, anna) == 0
    assert into.read_bytes() == before
    assert check_file(into)[0] == []
    [mark] = read_side(into).readers["thorax"]
    assert mark.xyxy == BOX_A


def test_merge_adds_a_box_to_a_file_that_has_marked_ones(into, session_of):
    anna = session_of("anna", {"1.png": BOX_A})
    assert do_merge(into, anna) == 0
    data = json.loads(into.read_text())
    region = {"id": 9, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "iscrowd": 1}
    data["annotations"].insert(0, region)
    into.write_text(json.dumps(data))
    anna.set_answer(anna.films[0], xyxy=(22, 30, 80, 110))
    assert do_merge(into, anna, policy="newest") == 0
    kept, box = json.loads(into.read_text())["annotations"]
    assert kept == region
    assert box["bbox"] == [22.0, 30.0, 58.0, 80.0]


def test_marks_are_those_of_coco_alone():
    shape = Shape("thorax", ((0, 0), (1, 1)), flags=frozenset({"prelabelled", "iscrowd", "odd"}))
    assert shape.marks == {"iscrowd"}
