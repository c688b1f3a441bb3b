"""labelling.review and its sheets: what stands on a sheet, what each action does to a film."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from labelling_sessions import make_session

from cxr import draw
from labelling import Answer, Session, to_shape
from labelling.overview import draw_tile, join_numbers, write_caption
from labelling.review import ReviewConfig, choose_films, parse_numbers, run

FILM = np.full((200, 100), 0.3, np.float32)  # 100 wide, 200 high; views are 64 × 128
BOX = (10.0, 40.0, 90.0, 180.0)
NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png")
EDGES = "left=.1,top=.2,right=.9,bottom=.8"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Five films; the first four with the same pre-label, e.png without a box."""
    films = [(name, FILM) for name in NAMES]
    return make_session(tmp_path / "s", films, dict.fromkeys(NAMES[:4], BOX))


@pytest.fixture
def drawn(session: Session) -> Session:
    """The same, all of it on a sheet."""
    review(session)
    return session


def review(session: Session, **options: Any) -> int:
    options.setdefault("tile", 120)
    return run(ReviewConfig((str(session.path),), **options))


def answer_of(session: Session, number: int) -> Answer:
    return Session.open(session.path).answer(session.films[number - 1])


def states(session: Session) -> list[str]:
    return [answer.state for _, answer in Session.open(session.path).answers()]


def box_of(session: Session, number: int) -> list[float] | None:
    box = answer_of(session, number).box
    return [round(v, 2) for v in box.xyxy] if box else None


def history(session: Session) -> bytes:
    path = session.path / "history.jsonl"
    return path.read_bytes() if path.exists() else b""


# The words of the command line


def test_numbers_are_read_as_spans_and_joined_again() -> None:
    assert parse_numbers("accept", "1-24, 30") == ((1, 24), (30, 30))
    assert parse_numbers("accept", " ") == ()
    assert join_numbers([7, 1, 2, 3]) == "1-3,7"
    assert join_numbers([]) == ""


@pytest.mark.parametrize("text", ["x", "1-", "-3", "1,,2", "1-2-3", "1.5", "²"])
def test_what_is_no_number_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"accept must be films' numbers such as 1-24,30"):
        parse_numbers("accept", text)


def test_edges_are_read_for_several_films() -> None:
    config = ReviewConfig(("s",), set="7:left=0.10,bottom=0.93; 9,11:top=.05")
    assert config.orders["set"] == [
        (((7, 7),), {"left": 0.1, "bottom": 0.93}),
        (((9, 9), (11, 11)), {"top": 0.05}),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"accept": "9-3"}, "lower number first. Got 9-3"),
        ({"set": "7:bottom=93"}, "bottom as a fraction of the film's width or height, 0 to 1"),
        ({"set": "7:bottom=nan"}, "as a fraction"),
        ({"set": "7:low=0.9"}, "set must name left, top, right, bottom or label. Got 'low=0.9'"),
        ({"set": "7:top=0.1,top=0.2"}, "each edge once. Got top twice"),
        ({"set": "7"}, "set must look like"),
        ({"skip": "7"}, "skip must look like"),
        ({"skip": "7=ugly"}, "skip must give one of: unreadable, not frontal. Got 'ugly'"),
        ({"flag": "7=doubtful"}, "flag must give one of: apices cut off. Got 'doubtful'"),
        ({"but": "3"}, "but takes films out of accept"),
        ({"session": ()}, "session must name one session folder. Got none"),
        ({"session": ("a", "b")}, "Got a, b instead"),
        ({"per_sheet": 0}, "per_sheet must lie in 1 to 200. Got 0"),
        ({"tile": 20}, "tile must lie in 120 to 2000"),
    ],
)
def test_wrong_arguments_are_named(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReviewConfig(**{"session": ("s",), **words})


# Sheets


def test_sheets_hold_so_many_films_each(session: Session, capsys: pytest.CaptureFixture) -> None:
    assert review(session, per_sheet=2, columns=2) == 0
    names = sorted(p.name for p in (session.path / "review").glob("*.png"))
    assert names == ["sheet_001.png", "sheet_002.png", "sheet_003.png"]
    assert cv2.imread(str(session.path / "review" / "sheet_001.png")).shape[1] == 2 * 124 + 4
    out = capsys.readouterr().out
    assert "5 films on 3 sheets" in out
    assert "--accept 1-2 --but 2" in out


def test_the_record_holds_the_boxes_in_film_pixels(drawn: Session) -> None:
    record = json.loads((drawn.path / "review" / "sheets.json").read_text())
    assert record["drawn"]["1"]["boxes"][0]["xyxy"] == pytest.approx(BOX, abs=0.01)
    assert record["drawn"]["5"] == {"sheet": "sheet_001.png", "boxes": [], "doubtful": False}


def test_old_sheets_go_away_and_other_files_stay(session: Session) -> None:
    folder = session.path / "review"
    review(session, per_sheet=1)
    (folder / "sheet_009.png").write_bytes(b"mine")
    (folder / "note.txt").write_text("mine")
    review(session)
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["note.txt", "sheet_001.png", "sheet_009.png", "sheets.json"]


def test_a_mangled_record_is_no_record_and_deletes_no_other_file(drawn: Session) -> None:
    path = drawn.path / "review" / "sheets.json"
    record = json.loads(path.read_text())
    for broken in (
        "[",
        "[]",
        json.dumps({**record, "drawn": {"1": {"boxes": 3}}}),
        json.dumps({**record, "sheets": ["../session.json", 3], "drawn": {}}),
    ):
        path.write_text(broken)
        assert review(drawn, accept="1") == 1
    assert review(drawn) == 0
    assert (drawn.path / "session.json").exists()


def test_each_kind_of_sheet_shows_its_films(drawn: Session) -> None:
    review(drawn, accept="1", doubtful="2", skip="3=unreadable")
    answers = Session.open(drawn.path).answers()
    shown = {
        kind: [film.number for film, _ in choose_films(answers, kind)]
        for kind in ("todo", "doubtful", "done", "all")
    }
    assert shown == {"todo": [4, 5], "doubtful": [2], "done": [1, 3], "all": [1, 2, 3, 4, 5]}


def test_a_box_stands_on_the_tile_where_it_lies_on_the_film(session: Session) -> None:
    film = session.films[0]
    tile, seen = draw_tile(session, film, session.answer(film), tile=315)
    margin = 315 // 15  # 21: the picture is 147 × 294 px
    assert seen
    assert tile.shape == (294 + 21, 147 + 21, 3)
    orange = (tile == draw.ORANGE).all(-1)
    rows, columns = np.flatnonzero(orange.sum(1) > 80), np.flatnonzero(orange.sum(0) > 80)
    # 0.1 and 0.9 of 147, 0.2 and 0.9 of 294; the line is two pixels wide, outwards
    assert (columns[0], columns[-1]) == pytest.approx((margin + 14.7, margin + 132.3), abs=2)
    assert (rows[0], rows[-1]) == pytest.approx((margin + 58.8, margin + 264.6), abs=2)


def test_a_human_box_is_blue(session: Session) -> None:
    film = session.films[0]
    session.set_answer(film, xyxy=(10, 40, 90, 170))
    tile, _ = draw_tile(session, film, session.answer(film), tile=300)
    assert (tile == draw.BLUE).all(-1).sum() > 400
    assert not (tile == draw.ORANGE).all(-1).any()


def test_rulers_tick_at_tenths_of_the_film_and_a_grid_goes_on_from_there(session: Session) -> None:
    film = session.films[4]
    plain, _ = draw_tile(session, film, session.answer(film), tile=315)
    ticks = np.flatnonzero((plain[21 - 2, 21:] == 190).all(-1))
    assert list(ticks) == [round(147 * t / 10) for t in range(1, 10)]
    grid, _ = draw_tile(session, film, session.answer(film), tile=315, grid=True)
    row = 21 + 147  # the middle
    assert grid[row, 30].mean() > plain[row, 30].mean() + 20


def test_the_caption_gives_edges_score_or_state_and_name(session: Session) -> None:
    film = session.films[0]
    lines = write_caption(film, session.answer(film)).split("\n")
    assert lines == ["L .10  T .20  R .90  B .90", "score 0.90  uncertain 0.10", "a.png"]
    answer = session.set_answer(film, flags={"accepted", "apices cut off"})
    assert write_caption(film, answer).split("\n")[1] == "accepted, apices cut off"
    assert write_caption(film, Answer("todo")).split("\n")[0] == "no box"


# What is done


def test_accept_takes_all_but_the_named(drawn: Session, capsys: Any) -> None:
    assert review(drawn, accept="1-4", but="3") == 0
    assert states(drawn) == ["accepted", "accepted", "todo", "accepted", "todo"]
    assert answer_of(drawn, 1).via == "review"
    out = capsys.readouterr().out
    assert "3 accepted" in out
    assert "3 of 5 films done, 2 to do." in out
    assert f"Next:  python tools/annotate.py review {drawn.path}" in out


def test_a_sheet_of_another_session_counts_for_nothing(session: Session, tmp_path: Path) -> None:
    films = [(name, FILM) for name in NAMES]
    other = make_session(tmp_path / "o", films, dict.fromkeys(NAMES, BOX), annotator="b")
    assert review(other, out=str(tmp_path / "sheets")) == 0
    assert review(session, accept="1", out=str(tmp_path / "sheets")) == 1
    assert review(other, accept="1", out=str(tmp_path / "sheets")) == 0


def test_a_doubtful_film_can_be_accepted_from_its_own_sheet(drawn: Session) -> None:
    review(drawn, accept="2")
    review(drawn, doubtful="2")  # sends an accepted film back, too
    assert (answer_of(drawn, 2).state, answer_of(drawn, 2).flags) == ("todo", {"doubtful"})
    review(drawn, show="doubtful")
    assert review(drawn, accept="2") == 0
    assert (answer_of(drawn, 2).state, answer_of(drawn, 2).flags) == ("accepted", {"accepted"})


def test_what_a_human_has_answered_stays_as_it_is(drawn: Session, capsys: Any) -> None:
    drawn.set_answer(drawn.films[1], xyxy=(5, 40, 90, 180), via="import")
    review(drawn, skip="3=not frontal")
    assert review(drawn, accept="1-4") == 0
    assert states(drawn)[:4] == ["accepted", "corrected", "skipped", "accepted"]
    assert (box_of(drawn, 2), answer_of(drawn, 2).via) == ([5, 40, 90, 180], "import")
    out = capsys.readouterr().out
    assert "with a human's box already: 2" in out
    assert "skipped already: 3" in out
    before = history(drawn)
    assert review(drawn, accept="1-4") == 0  # and once more
    assert history(drawn) == before


def test_set_moves_the_named_edges_only(drawn: Session) -> None:
    assert review(drawn, set="1:bottom=0.95; 2:left=0,right=1") == 0
    assert box_of(drawn, 1) == pytest.approx([10, 40, 90, 190], abs=0.01)
    assert box_of(drawn, 2) == pytest.approx([0, 40, 100, 180], abs=0.01)
    assert states(drawn)[:2] == ["corrected", "corrected"]


def test_set_draws_a_box_from_four_edges_unseen(session: Session) -> None:
    assert review(session, set=f"5:{EDGES}; 1:left=.1,top=.2,right=.9,bottom=.95") == 0
    assert box_of(session, 5) == pytest.approx([10, 40, 90, 160], abs=0.01)
    assert states(session)[4] == "drawn"
    assert review(session, set="1:top=.1") == 0  # the human's own box by now
    assert box_of(session, 1) == pytest.approx([10, 20, 90, 190], abs=0.01)


def test_a_box_that_was_set_needs_no_accept_and_ends_a_doubt(drawn: Session, capsys: Any) -> None:
    review(drawn, doubtful="1")
    assert review(drawn, set="1:bottom=0.95", accept="1-2") == 0
    assert states(drawn)[:2] == ["corrected", "accepted"]
    assert "1 set, 1 accepted" in capsys.readouterr().out


def test_set_gives_a_label_and_a_new_box_of_two_classes_needs_one(
    tmp_path: Path, capsys: Any
) -> None:
    films = [("a.png", FILM), ("b.png", FILM)]
    own = make_session(tmp_path / "two", films, {"a.png": BOX}, classes=("normal", "pneumonia"))
    review(own)
    assert review(own, set="1:label=pneumonia") == 0
    assert answer_of(own, 1).box.label == "pneumonia"
    assert review(own, set=f"2:{EDGES}") == 1
    assert "no box whose label could be kept: add label=" in capsys.readouterr().err
    assert review(own, set=f"2:{EDGES},label=normal") == 0


def test_skip_and_flag_keep_the_other_flags(drawn: Session) -> None:
    assert review(drawn, flag="1,2=apices cut off", skip="1=not frontal", accept="2") == 0
    flags = [answer_of(drawn, number).flags for number in (1, 2)]
    assert flags == [{"not frontal", "apices cut off"}, {"accepted", "apices cut off"}]


# What is refused, all or nothing


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"accept": "1-5"}, "film 5 (e.png) has no box"),
        ({"accept": "1,6"}, "accept 6: the session's films are numbered 1 to 5"),
        ({"accept": "1,0"}, "accept 0: the session's films are numbered 1 to 5"),
        ({"accept": "1,3-99999999999"}, "accept 3-99999999999: the session's films are numbered 1"),
        (
            {"accept": "1", "set": "5:left=.1,top=.2,right=.9"},
            "film 5 (e.png) has no box: give all four edges (bottom missing)",
        ),
        ({"set": "1:top=0.95"}, "top edge at 0.95, not before its bottom one at 0.90"),
        ({"set": "1:label=hand"}, "must get a label of thorax. Got 'hand'"),
        ({"accept": "1-4", "doubtful": "3"}, "film 3 stands in doubtful and in accept: take it"),
        ({"accept": "1-4", "skip": "3=unreadable"}, "film 3 stands in skip and in accept"),
        ({"set": "3:top=0", "skip": "3=unreadable"}, "film 3 stands in set and in skip"),
        ({"doubtful": "3", "skip": "3=unreadable"}, "film 3 stands in skip and in doubtful"),
        ({"skip": "3=unreadable; 3=not frontal"}, "skip names film 3 twice"),
        ({"accept": "1-2", "but": "3"}, "but takes out film 3, which accept does not name"),
    ],
)
def test_one_wrong_number_stops_everything(
    drawn: Session, actions: dict[str, str], message: str, capsys: Any
) -> None:
    assert review(drawn, **actions) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Nothing was written." in error
    assert states(drawn) == ["todo"] * 5


@pytest.mark.parametrize("actions", [{"accept": "1"}, {"set": "1:bottom=0.95"}])
def test_nothing_unseen_is_accepted_or_kept(
    session: Session, actions: dict[str, str], capsys: Any
) -> None:
    assert review(session, **actions) == 1
    assert "stands on no drawn sheet; run review again" in capsys.readouterr().err
    session.view_path(session.films[0]).unlink()  # nor what the sheet could not show
    review(session)
    assert review(session, **actions) == 1
    assert "film 1 (a.png) stands on no drawn sheet" in capsys.readouterr().err


def test_a_box_that_changed_since_is_refused(drawn: Session, capsys: Any) -> None:
    film = drawn.films[1]
    moved = to_shape(film, (12, 40, 90, 180), "thorax", prelabelled=True)
    drawn.write_shapes(film, [moved], {"doubtful"})  # a human's move, not yet an answer
    before = history(drawn)
    assert review(drawn, accept="1-4") == 1
    error = capsys.readouterr().err
    assert "film 2 (b.png) has changed since the sheet was drawn; run review again" in error
    assert states(drawn)[0] == "todo"
    assert history(drawn) == before


def test_a_film_sent_to_labelme_since_is_refused(drawn: Session, capsys: Any) -> None:
    review(drawn, doubtful="2")
    assert review(drawn, accept="1-4") == 1
    assert "film 2 (b.png) was marked doubtful since" in capsys.readouterr().err


def test_a_film_with_two_boxes_is_refused(session: Session, capsys: Any) -> None:
    film = session.films[0]
    shapes = [to_shape(film, BOX, "thorax"), to_shape(film, (0, 0, 50, 50), "thorax")]
    session.write_shapes(film, shapes, {"doubtful"})
    review(session, show="all")
    assert review(session, accept="1") == 1
    assert "film 1 (a.png) has 2 boxes; leave one of them, in labelme" in capsys.readouterr().err


def test_a_torn_label_file_is_shown_and_refused(session: Session, capsys: Any) -> None:
    session.label_path(session.films[0]).write_text("{")
    assert review(session) == 0
    assert review(session, accept="1") == 1
    assert "film 1 (a.png) has a label file that cannot be used" in capsys.readouterr().err


def test_actions_wait_until_labelme_is_closed(drawn: Session, capsys: Any) -> None:
    with drawn.locked():
        assert review(drawn, accept="1") == 1
    assert "close that first" in capsys.readouterr().err


def test_the_end_points_to_labelme_and_then_to_check(drawn: Session, capsys: Any) -> None:
    review(drawn, accept="1-4", doubtful="5")
    out = capsys.readouterr().out
    assert "4 of 5 films done, 0 to do, and 1 doubtful." in out
    assert f"start --session {drawn.path}" in out
    review(drawn, skip="5=not frontal")
    assert f"check {drawn.path}" in capsys.readouterr().out


def test_no_films_to_show_and_no_session_are_said(
    session: Session, tmp_path: Path, capsys: Any
) -> None:
    assert review(session, show="done") == 0
    assert "No films to show (done)." in capsys.readouterr().out
    assert run(ReviewConfig((str(tmp_path),))) == 1
    assert "session.json" in capsys.readouterr().err
