"""labelling: states of a film, history, restoring, locking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelling_sessions import make_session

import labelling
from labelling import PRELABELLED, Session, to_shape
from labelling.labelme import Shape, read_label_file

FILM = np.zeros((200, 100), np.float32)  # a view of 128 × 64: scale 0.64
BOX = (10.0, 20.0, 90.0, 180.0)
VIEW_BOX = [[6.4, 12.8], [57.6, 115.2]]  # the same in the view's pixels


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return make_session(tmp_path / "s", [("a.png", FILM), ("b.png", FILM)], {"a.png": BOX})


def edit(session: Session, change: dict[str, Any], **shape: Any) -> None:
    """Change the first film's label file as labelme would: other keys are kept."""
    path = session.label_path(session.films[0])
    data = json.loads(path.read_text())
    data["shapes"][0].update(shape)
    path.write_text(json.dumps({**data, **change}))


def draw(session: Session, *points: list[float], kind: str = "rectangle") -> None:
    """A label file as labelme makes it for a film without a pre-label, the second one."""
    film = session.films[1]
    height, width = film.frame.canvas_hw
    shape = {"label": "thorax", "points": list(points), "shape_type": kind, "flags": {}}
    data = {
        "version": "6.3.1",
        "flags": {"accepted": False},
        "shapes": [shape],
        "imagePath": Path(film.view).name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    session.label_path(film).write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "shape", "state", "box", "prelabelled"),
    [
        ({}, {}, "todo", None, True),
        ({}, {"points": [[6.4, 6.4], [57.6, 115.2]]}, "corrected", (10, 10, 90, 180), False),
        ({"flags": {"accepted": True, "doubtful": False}}, {}, "accepted", BOX, False),
        ({}, {"flags": {PRELABELLED: False}}, "accepted", BOX, False),
        ({"flags": {"unreadable": True}}, {}, "skipped", None, True),
        ({"flags": {"not frontal": True}}, {}, "skipped", None, True),
        ({"flags": {"accepted": True, "doubtful": True}}, {}, "todo", None, False),
    ],
)
def test_a_prelabels_state_is_what_was_done_to_it(
    session: Session, change: dict, shape: dict, state: str, box: Any, prelabelled: bool
) -> None:
    edit(session, change, **shape)
    answer = session.answer(session.films[0])
    assert (answer.state, answer.boxes[0].prelabelled) == (state, prelabelled)
    assert answer.box is None if box is None else answer.box.xyxy == pytest.approx(box, abs=0.01)


def test_a_box_drawn_from_the_lower_right_corner_is_drawn(session: Session) -> None:
    draw(session, VIEW_BOX[1], VIEW_BOX[0])
    answer = session.answer(session.films[1])
    assert answer.state == "drawn"
    assert answer.box.xyxy == pytest.approx(BOX)


def test_a_polygon_is_no_box(session: Session) -> None:
    draw(session, [6, 6], [50, 6], [50, 60], kind="polygon")
    answer = session.answer(session.films[1])
    assert (answer.state, answer.boxes[0].shape_type) == ("todo", "polygon")


def test_a_bow_tie_has_crossed_edges() -> None:
    bow_tie = ((0.0, 0.0), (10.0, 10.0), (10.0, 0.0), (0.0, 10.0))
    square = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
    assert Shape("thorax", bow_tie, "polygon").crossed
    assert not Shape("thorax", square, "polygon").crossed


def test_a_label_file_of_another_film_is_refused(session: Session) -> None:
    other = session.label_path(session.films[0]).read_text()
    session.label_path(session.films[1]).write_text(other)
    answer = session.answer(session.films[1])
    assert answer.state == "todo"
    assert answer.fault.startswith("belongs to another film")


def test_a_torn_label_file_is_a_fault_not_a_crash(session: Session) -> None:
    path = session.label_path(session.films[0])
    path.write_text(path.read_text()[:40])
    assert session.answer(session.films[0]).fault.startswith("not JSON")
    draw(session, [10**400, 0], [1, 1])  # a number beyond all floats
    assert session.answers()[1][1].fault.startswith("points of shape 1 must be pairs")


def test_set_answer_writes_what_labelme_reads(session: Session) -> None:
    film = session.films[1]
    session.set_answer(film, xyxy=BOX)
    file = read_label_file(session.label_path(film))
    assert file.image_path == Path(film.view).name
    assert file.shapes[0].xyxy == pytest.approx((6.4, 12.8, 57.6, 115.2))
    assert session.answer(film).state == "drawn"


@pytest.mark.parametrize("options", [{"xyxy": (12, 20, 90, 180)}, {"flags": ["accepted"]}])
def test_set_answer_reads_the_label_file_once_and_says_what_is_there(
    session: Session, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(labelling, "read_label_file", lambda path: read.append(path) or known(path))
        known = read_label_file
        answer = session.set_answer(session.films[0], **options)
    assert read == [session.label_path(session.films[0])]
    assert answer == Session.open(session.path).answer(session.films[0])
    assert (answer.done, answer.via) == (True, "review")


@pytest.mark.parametrize("box", [(-5, 0, 50, 50), (0, 0, 101, 50), (50, 0, 20, 50)])
def test_a_box_outside_the_film_is_refused(session: Session, box: tuple) -> None:
    with pytest.raises(ValueError, match="must lie on the film of 100 × 200 px"):
        session.set_answer(session.films[0], xyxy=box)


def test_each_change_is_noted_once(session: Session) -> None:
    assert session.note_changes() == 0  # untouched films are nothing to note
    assert session.history() == []
    session.set_answer(session.films[0], flags=["accepted"])
    assert session.note_changes() == 0
    entry = session.history()[-1]
    assert (entry["number"], entry["state"], entry["via"]) == (1, "accepted", "review")
    assert entry["xyxy"] == pytest.approx(BOX, abs=0.01)
    draw(session, *VIEW_BOX)
    assert session.note_changes() == 1
    assert (session.history()[-1]["number"], session.history()[-1]["via"]) == (2, "labelme")


@pytest.mark.parametrize("damage", ["deleted", "torn"])
def test_a_lost_box_comes_back_from_the_history(session: Session, damage: str) -> None:
    film = session.films[1]
    session.set_answer(film, xyxy=BOX)
    path = session.label_path(film)
    if damage == "deleted":
        path.unlink()
    else:
        path.write_text(path.read_text()[:60])
    assert Session.open(session.path).restore_lost() == [film]
    assert session.answer(film).box.xyxy == pytest.approx(BOX, abs=0.01)


def test_a_torn_history_line_is_left_out(session: Session) -> None:
    session.set_answer(session.films[0], flags=["accepted"])
    with (session.path / "history.jsonl").open("a") as file:
        file.write('{"number": 2, "sta')
    session.set_answer(session.films[1], xyxy=BOX)
    assert [e["number"] for e in Session.open(session.path).history()] == [1, 2]


def test_two_at_once_are_refused(session: Session) -> None:
    again = Session.open(session.path).locked()
    with session.locked(), pytest.raises(ValueError, match="open in labelme"), again:
        pass


def test_a_folder_without_a_session_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"annotate\.py start"):
        Session.open(tmp_path)


def test_a_prelabel_lies_where_the_detector_saw_it(session: Session) -> None:
    shape = to_shape(session.films[0], BOX, "thorax", prelabelled=True)
    assert shape.points == ((6.4, 12.8), (57.6, 115.2))


def test_a_session_keeps_its_format(tmp_path: Path) -> None:
    """The text that version 1 has had from the start: old sessions must open."""
    (tmp_path / "views").mkdir()
    meta = {"schema": "lungfirst.labelling", "version": 1, "session_id": "0123456789abcdef"}
    meta |= {"annotator": "mk", "classes": ["thorax"], "root": "../films", "order": "path"}
    (tmp_path / "session.json").write_text(json.dumps(meta))
    (tmp_path / "films.jsonl").write_text(
        '{"number": 1, "film": "é\u2028.png", "sha256": "ab", "size_hw": [200, 100], '
        '"view": "views/0001_e.jpg", "frame": {"source_xyxy": [0, 0, 100, 200], "content_hw": '
        '[128, 64], "canvas_hw": [128, 64], "pad_x": 0, "pad_y": 0}, "patient_id": "p", '
        '"label": "", "sublabel": "", "source": "", "original_hw": null, "prelabel_xyxy": '
        '[10.0, 20.0, 90.0, 180.0], "prelabel_score": 0.9, "disagreement": 0.01, '
        '"uncertainty": 0.11, "reason": ""}\n'
    )
    (tmp_path / "views/0001_e.json").write_text(
        '{"version": "6.3.1", "flags": {"accepted": true, "doubtful": false}, "shapes": [{"label": '
        '"thorax", "points": [[6.4, 12.8], [57.6, 115.2]], "group_id": null, "description": "", '
        '"shape_type": "rectangle", "flags": {"prelabelled": true}, "mask": null}], "imagePath": '
        '"0001_e.jpg", "imageData": null, "imageHeight": 128, "imageWidth": 64, "lungfirst": '
        '{"film": "é\u2028.png", "sha256": "ab"}}'
    )
    (tmp_path / "history.jsonl").write_text(
        '{"time": "2025-05-01T09:00:00+00:00", "number": 1, "film": "a.png", "state": "accepted", '
        '"label": "thorax", "xyxy": [10.0, 20.0, 90.0, 180.0], "flags": ["accepted"], '
        '"via": "review"}\n'
    )
    session = Session.open(tmp_path)
    [(film, answer)] = session.answers()
    assert (answer.state, answer.via, answer.changed[:10]) == ("accepted", "review", "2025-05-01")
    assert answer.box.xyxy == pytest.approx(BOX)
    assert session.note_changes() == 0
    text = (tmp_path / "films.jsonl").read_text()
    labelling.write_films(tmp_path, session.films)
    again = json.loads((tmp_path / "films.jsonl").read_text())
    own = {"stored_xy": [1, 1], "turned": 0, "film_hw": None}  # of films that are not as they lie
    assert {key: again["frame"].pop(key) for key in own} == own
    assert again == json.loads(text)
    text = (tmp_path / "views/0001_e.json").read_text()
    shapes = read_label_file(session.label_path(film)).shapes
    session.write_shapes(film, shapes, answer.flags)
    before, now = json.loads(text), json.loads((tmp_path / "views/0001_e.json").read_text())
    assert {**now, "flags": before["flags"]} == before
