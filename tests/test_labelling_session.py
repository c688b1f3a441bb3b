"""labelling.session: states of a film, history, restoring, locking."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelling_sessions import make_session

from labelling.labelme_file import Shape, read_label_file
from labelling.session import PRELABELLED, Session, to_shape

FILM = np.zeros((200, 100), np.float32)  # a view of 128 × 64: scale 0.64
BOX = (10.0, 20.0, 90.0, 180.0)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return make_session(tmp_path / "s", [("a.png", FILM), ("b.png", FILM)], {"a.png": BOX})


def edit(session: Session, number: int, change: dict) -> None:
    """Change the label file as labelme would: the JSON's own keys, other keys kept."""
    path = session.label_path(session.films[number - 1])
    data = json.loads(path.read_text())
    data.update(change)
    path.write_text(json.dumps(data))


def draw(session: Session, number: int, *points: list[float], kind: str = "rectangle") -> None:
    """A label file as labelme makes it for a film without a pre-label."""
    film = session.films[number - 1]
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


def test_an_untouched_prelabel_is_still_to_do(session: Session) -> None:
    answer = session.answer(session.films[0])
    assert (answer.state, answer.box, answer.boxes[0].prelabelled) == ("todo", None, True)


def test_a_moved_prelabel_is_corrected_in_film_pixels(session: Session) -> None:
    shapes = json.loads(session.label_path(session.films[0]).read_text())["shapes"]
    shapes[0]["points"] = [[6.4, 6.4], [57.6, 115.2]]  # view pixels: 0.64 of the film's
    edit(session, 1, {"shapes": shapes})
    answer = session.answer(session.films[0])
    assert answer.state == "corrected"
    assert answer.box.xyxy == pytest.approx((10, 10, 90, 180))


def test_ticking_accepted_accepts_the_box(session: Session) -> None:
    edit(session, 1, {"flags": {"accepted": True, "doubtful": False}})
    answer = session.answer(session.films[0])
    assert answer.state == "accepted"
    assert answer.box.xyxy == pytest.approx(BOX, abs=0.01)


def test_unticking_prelabelled_accepts_the_box(session: Session) -> None:
    shapes = json.loads(session.label_path(session.films[0]).read_text())["shapes"]
    shapes[0]["flags"] = {PRELABELLED: False}
    edit(session, 1, {"shapes": shapes})
    assert session.answer(session.films[0]).state == "accepted"


def test_a_box_drawn_from_the_lower_right_corner_is_drawn(session: Session) -> None:
    draw(session, 2, [57.6, 115.2], [6.4, 12.8])
    answer = session.answer(session.films[1])
    assert answer.state == "drawn"
    assert answer.box.xyxy == pytest.approx(BOX)


def test_a_polygon_is_no_box(session: Session) -> None:
    draw(session, 2, [6, 6], [50, 6], [50, 60], kind="polygon")
    answer = session.answer(session.films[1])
    assert (answer.state, answer.boxes[0].shape_type) == ("todo", "polygon")


def test_a_bow_tie_has_crossed_edges() -> None:
    bow_tie = ((0.0, 0.0), (10.0, 10.0), (10.0, 0.0), (0.0, 10.0))
    square = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
    assert Shape("thorax", bow_tie, "polygon", frozenset()).crossed
    assert not Shape("thorax", square, "polygon", frozenset()).crossed


@pytest.mark.parametrize("flag", ["unreadable", "not frontal"])
def test_a_flagged_film_is_skipped(session: Session, flag: str) -> None:
    edit(session, 1, {"flags": {flag: True}})
    assert session.answer(session.films[0]).state == "skipped"


def test_doubtful_sends_an_accepted_box_back(session: Session) -> None:
    session.set_answer(session.films[0], flags=["accepted"])
    session.set_answer(session.films[0], flags=["doubtful"])
    assert session.answer(session.films[0]).state == "todo"


def test_a_label_file_of_another_film_is_refused(session: Session) -> None:
    session.label_path(session.films[1]).write_text(
        session.label_path(session.films[0]).read_text()
    )
    answer = session.answer(session.films[1])
    assert answer.state == "todo"
    assert answer.fault.startswith("belongs to another film")


def test_a_torn_label_file_is_a_fault_not_a_crash(session: Session) -> None:
    path = session.label_path(session.films[0])
    path.write_text(path.read_text()[:40])
    assert session.answer(session.films[0]).fault.startswith("not JSON")


def test_set_answer_writes_what_labelme_reads(session: Session) -> None:
    film = session.films[1]
    session.set_answer(film, xyxy=BOX)
    file = read_label_file(session.label_path(film))
    assert file.image_path == Path(film.view).name
    assert file.shapes[0].xyxy == pytest.approx((6.4, 12.8, 57.6, 115.2))
    assert session.answer(film).state == "drawn"


@pytest.mark.parametrize("box", [(-5, 0, 50, 50), (0, 0, 101, 50), (50, 0, 20, 50)])
def test_a_box_outside_the_film_is_refused(session: Session, box: tuple) -> None:
    with pytest.raises(ValueError, match="must lie on the film of 100 × 200 px"):
        session.set_answer(session.films[0], xyxy=box)


def test_each_change_is_noted_once(session: Session) -> None:
    session.set_answer(session.films[0], flags=["accepted"])
    assert session.note_changes() == 0
    entry = session.history()[-1]
    assert (entry["number"], entry["state"], entry["via"]) == (1, "accepted", "review")
    assert entry["xyxy"] == pytest.approx(BOX, abs=0.01)


def test_untouched_films_are_not_noted(session: Session) -> None:
    assert session.note_changes() == 0
    assert session.history() == []


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
