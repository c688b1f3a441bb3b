"""labelling.overview: counts, pace and changes by hand-worked numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelling_sessions import make_session
from rich.console import Console

from labelling import Session
from labelling.overview import (
    StatusConfig,
    compare_boxes,
    measure_pace,
    name_bin,
    run,
    say_duration,
    shift_percent,
    show,
    summarise,
)

FILM = np.zeros((200, 100), np.float32)
BOX = (10.0, 20.0, 90.0, 180.0)  # 80 × 160
NAMES = ("a.png", "b.png", "c.png", "d.png")


def make(path: Path, prelabelled: tuple[str, ...] = NAMES[:3], **more: Any) -> Session:
    films = [(name, FILM) for name in NAMES]
    return make_session(path, films, dict.fromkeys(prelabelled, BOX), **more)


def events(*seconds: float, via: str = "labelme", state: str = "accepted") -> list[dict[str, Any]]:
    """A history: film 1 at the first time after nine o'clock, film 2 at the second …"""
    return [
        {
            "time": f"2025-05-01T{9 + int(s) // 3600:02d}:{int(s) % 3600 // 60:02d}:"
            f"{int(s) % 60:02d}+00:00",
            "number": number,
            "state": state,
            "via": via,
        }
        for number, s in enumerate(seconds, start=1)
    ]


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ((), 0),
        ((0, 10, 40), 40),
        ((40, 0, 10), 40),  # in any order
        ((0, 300), 300),  # five minutes are work, more is a break
        ((0, 60, 361, 371), 60 + 10),
    ],
)
def test_working_time_is_the_sum_of_the_gaps(times: tuple[float, ...], seconds: float) -> None:
    assert measure_pace(events(*times)).working_s == seconds


def test_the_first_film_has_no_known_time() -> None:
    pace = measure_pace(events(0, 20, 40, 60))
    assert (pace.finished, pace.working_s) == (4, 60)
    assert pace.films_per_hour == pytest.approx(3 / 60 * 3600)


def test_lunch_does_not_slow_the_pace() -> None:
    pace = measure_pace(events(0, 20, 40, 4000, 4020))
    assert pace.working_s == 60
    assert pace.films_per_hour == pytest.approx(180)  # 3 timed films in a minute


def test_a_sheet_accepted_at_one_stroke_counts_once_its_time_is_known() -> None:
    pace = measure_pace(events(0, 0, 0, 1, 121, 121, 121, 121, via="review"))
    assert pace.working_s == 121
    assert pace.films_per_hour == pytest.approx(4 / 121 * 3600)


def test_films_imported_are_no_work() -> None:
    pace = measure_pace(events(0, 20, 40, 60, via="import"))
    assert (pace.finished, pace.films_per_hour) == (0, None)


def test_a_film_answered_twice_is_finished_once() -> None:
    history = events(0, 20, 40)
    history.append({**history[0], "time": "2025-05-01T09:01:00+00:00", "state": "corrected"})
    pace = measure_pace(history)
    assert (pace.finished, pace.working_s) == (3, 60)
    assert pace.films_per_hour == pytest.approx(2 / 60 * 3600)


def test_a_film_sent_back_is_work_but_not_finished() -> None:
    history = events(0, 20, 40)
    history.append(
        {**history[0], "number": 4, "time": "2025-05-01T09:01:20+00:00", "state": "todo"}
    )
    pace = measure_pace(history)
    assert (pace.finished, pace.working_s) == (3, 80)


@pytest.mark.parametrize(
    "times", [(), (0,), (0, 20), (0, 0, 0), (0, 1000, 2000), (0, 0, 0, 3, 3, 3, 7, 7)]
)
def test_too_few_films_give_no_rate(times: tuple[float, ...]) -> None:
    pace = measure_pace(events(*times))
    assert pace.films_per_hour is None


def test_an_edited_line_of_the_history_is_passed_over() -> None:
    history = [{"number": 9, "time": "lunch", "state": "drawn"}, {"number": None}, *events(0, 9)]
    assert measure_pace(history).finished == 2


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (20, "less than a minute"),
        (250, "about 4 min"),
        (4800, "about 1 h 20 min"),
        (4700, "about 1 h 20 min"),
        (3600, "about 1 h"),
        (7150, "about 2 h"),
    ],
)
def test_times_are_said_as_people_do(seconds: float, said: str) -> None:
    assert say_duration(seconds) == said


def test_states_are_counted(tmp_path: Path) -> None:
    session = make(tmp_path / "s")
    a, b, c, d = session.films
    session.set_answer(a, flags=["accepted"])
    session.set_answer(b, xyxy=(10, 20, 90, 170))
    session.set_answer(c, flags=["doubtful"])
    session.set_answer(d, xyxy=BOX)
    counts = summarise(session)["counts"]
    assert counts == {
        **{"accepted": 1, "corrected": 1, "drawn": 1, "skipped": 0},
        **{"todo": 1, "doubtful": 1, "unreadable": 0, "done": 3, "films": 4},
    }


def test_a_film_without_a_view_is_unreadable_and_not_to_do(tmp_path: Path) -> None:
    session = make(tmp_path / "s")
    lines = (session.path / "films.jsonl").read_text().splitlines()
    lost = {**json.loads(lines[3]), "view": "", "frame": None, "reason": "empty"}
    lines[3] = json.dumps(lost)
    (session.path / "films.jsonl").write_text("\n".join(lines))
    status = summarise(Session.open(session.path))
    assert (status["counts"]["unreadable"], status["counts"]["todo"]) == (1, 3)
    assert status["unusable_label_files"] == 0


def test_labels_are_counted_apart_where_there_are_several(tmp_path: Path) -> None:
    labels = {"a.png": "normal", "b.png": "normal", "c.png": "pneumonia", "d.png": "pneumonia"}
    session = make(tmp_path / "s", labels=labels)
    session.set_answer(session.films[0], flags=["accepted"])
    by_label = summarise(session)["by_label"]
    assert (by_label["normal"]["accepted"], by_label["normal"]["todo"]) == (1, 1)
    assert (by_label["pneumonia"]["accepted"], by_label["pneumonia"]["todo"]) == (0, 2)
    assert summarise(make(tmp_path / "t"))["by_label"] == {}


def test_a_label_file_of_no_use_is_counted(tmp_path: Path) -> None:
    session = make(tmp_path / "s")
    session.label_path(session.films[0]).write_text("{")
    session.label_path(session.films[3]).mkdir()
    status = summarise(session)
    assert (status["unusable_label_files"], status["counts"]["todo"]) == (2, 4)


def test_shifts_outwards_are_positive() -> None:
    after = (2, 28, 102, 178)  # 100 × 150
    assert shift_percent(BOX, after)[0] == pytest.approx([8, -8 / 1.5, 12, -2 / 1.5])


@pytest.mark.parametrize(
    ("iou", "name"),
    [
        (0, "below 0.5"),
        (0.5, "0.5 to 0.6"),
        (0.949, "0.9 to 0.95"),
        (0.95, "0.95 to 0.99"),
        (0.99, "0.99 to 1"),
        (1, "0.99 to 1"),
    ],
)
def test_bins_hold_their_lower_end(iou: float, name: str) -> None:
    assert name_bin(iou) == name


def test_boxes_are_compared_with_their_prelabels(tmp_path: Path) -> None:
    session = make(tmp_path / "s")
    session.set_answer(session.films[0], flags=["accepted"])
    session.set_answer(session.films[1], xyxy=(10, 20, 90, 148))  # 128 of 160 px high: IoU 0.8
    session.set_answer(session.films[2], xyxy=(10, 20, 90, 116))  # 96 of 160 px high: IoU 0.6
    session.set_answer(session.films[3], xyxy=BOX)  # without a pre-label, not compared
    change = compare_boxes(session.answers())
    assert change is not None
    assert change["boxes"] == 3
    assert (change["mean_iou"], change["median_iou"]) == pytest.approx((0.8, 0.8), abs=1e-4)
    seen = {name: count for name, count in change["histogram"].items() if count}
    assert sum(seen.values()) == 3
    assert seen["unchanged"] == 1
    # the lower edges went in by 0, 32 and 64 px on boxes of 160, 128 and 96 px
    bottom = 100 * (0 + 32 / 128 + 64 / 96) / 3
    assert change["shift_percent"]["bottom"] == pytest.approx(-bottom, abs=0.01)
    assert change["distance_percent"]["bottom"] == pytest.approx(bottom, abs=0.01)
    assert change["shift_percent"]["left"] == pytest.approx(0, abs=0.01)


def test_no_final_box_gives_no_comparison(tmp_path: Path) -> None:
    assert summarise(make(tmp_path / "s"))["change"] is None


def test_the_summary_is_written_as_json(tmp_path: Path) -> None:
    sessions = [make(tmp_path / name, annotator=name) for name in ("s", "t")]
    sessions[0].set_answer(sessions[0].films[0], flags=["accepted"])
    out = tmp_path / "deep" / "status.json"
    assert run(StatusConfig(tuple(str(s.path) for s in sessions), json=str(out))) == 0
    first, second = json.loads(out.read_text())["sessions"]
    assert (first["annotator"], first["counts"]["done"], first["counts"]["films"]) == ("s", 1, 4)
    assert first["change"]["histogram"]["unchanged"] == 1
    assert (second["annotator"], second["seconds_left"], second["change"]) == ("t", None, None)


def test_one_session_that_is_none_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = make(tmp_path / "s", annotator="reader")
    assert run(StatusConfig((str(tmp_path / "none"), str(session.path)))) == 1
    said = capsys.readouterr()
    assert "session must be a folder" in said.err
    assert "annotator reader" in said.out


def test_a_session_must_be_named() -> None:
    with pytest.raises(ValueError, match="at least one session folder"):
        StatusConfig()


def render(session: Session, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    show(summarise(session), console)
    return console.export_text()


def test_what_is_shown_fits_a_terminal(tmp_path: Path) -> None:
    labels = dict(zip(NAMES, ("normal", "bacterial pneumonia", "viral", ""), strict=True))
    session = make(tmp_path / "s", labels=labels)
    for film in session.films[:2]:
        session.set_answer(film, flags=["accepted"])
    text = render(session)
    assert "…" not in text
    lines = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert "no label" in text
    assert "unchanged" in text
    assert "█" * 30 in text


def test_the_pace_is_shown_or_why_not(tmp_path: Path) -> None:
    session = make(tmp_path / "s")
    assert "Films an hour: too few films to tell." in render(session)
    lines = events(0, 20, 40, 60)
    (session.path / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    text = render(session)
    assert "Films an hour: 180" in text
    assert "To the end: about 1 min." in text
    assert summarise(session)["seconds_left"] == pytest.approx(4 * 20)


def test_a_name_in_brackets_is_shown_whole(tmp_path: Path) -> None:
    assert "[red]s" in render(make(tmp_path / "[red]s"))
