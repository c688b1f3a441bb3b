"""Real labelme on a virtual screen: the whole way of a box, from a 12-bit DICOM to COCO."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import annotate
import numpy as np
import pytest
from dicom_films import film, written
from labelme_screen import Screen, annotate_start, missing_programs, open_screen, wait_until

from cxr.coco import read_coco
from labelling import Session, write_films

PLATE = (200, 400, 950, 1500)  # x0, y0, x1, y1 of a bright plate on a film of 1100 × 1800 px

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"
)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Five 12-bit DICOM films of 1100 × 1800 px: the first is answered, and the last two have a
    pre-label."""
    folder = tmp_path / "films"
    folder.mkdir()
    x0, y0, x1, y1 = PLATE
    for number in range(5):
        stored = np.full((1800, 1100), 300, np.uint16)
        stored[y0:y1, x0:x1] = 3000 + number
        path = folder / f"film{number}.dcm"
        path.write_bytes(written(film(stored, bits=12, PatientID=f"P{number}")))
    start = ["start", str(folder), "--session", str(tmp_path / "s"), "--annotator", "mk"]
    assert annotate.main([*start, "--open=false"]) == 0
    opened = Session.open(tmp_path / "s")
    seen = [replace(f, prelabel_xyxy=PLATE) if f.number > 3 else f for f in opened.films]
    write_films(opened.path, seen)
    opened.set_answer(opened.films[0], xyxy=PLATE)
    return opened


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    folder = Path(os.environ.get("LABELME_PICTURES") or tmp_path / "screen")
    folder.mkdir(exist_ok=True)
    with open_screen(folder) as opened:
        yield opened


def plate_on(picture: np.ndarray) -> tuple[int, int, int, int]:
    """Where the bright plate lies on the screen: the white block that touches black."""
    grey = picture[110:970, 100:1130].min(axis=2)  # the canvas, without bars and docks
    black_columns = np.flatnonzero((grey < 40).mean(0) > 0.9)
    inside = grey[:, black_columns[0] : black_columns[-1]] > 250
    ys = np.flatnonzero(inside.mean(1) > 0.3)
    xs = np.flatnonzero(inside[ys[0] : ys[-1]].mean(0) > 0.9)
    left = 100 + int(black_columns[0])
    return left + int(xs[0]), 110 + int(ys[0]), left + int(xs[-1]) + 1, 110 + int(ys[-1]) + 1


def draw_plate(screen: Screen, window: str, name: str) -> None:
    """Trace the plate with a rectangle."""
    screen.fill(window)
    x0, y0, x1, y1 = plate_on(screen.picture(f"{name}_before"))
    screen.key("ctrl+r")
    screen.click(x0, y0)
    screen.click(x1, y1)
    screen.xdotool("type", "--delay", "80", "thorax")
    screen.key("Return")
    screen.picture(f"{name}_drawn")


def wait_for_answers(session: Session, number: int) -> None:
    wait_until(lambda: len(Session.open(session.path).history()) == number, "it was not noted")


def test_boxes_drawn_and_accepted_in_labelme_arrive_in_coco(
    session: Session, screen: Screen, root: Path, tmp_path: Path
) -> None:
    with annotate_start(screen, root, session.path) as started:
        window = screen.wait_for_window("0002_film1.jpg")  # the first one without a box
        draw_plate(screen, window, "second")
        wait_for_answers(session, 2)
        started.send_signal(signal.SIGKILL)  # the session ends in the middle
    with annotate_start(screen, root, session.path) as started:
        window = screen.wait_for_window("0003_film2.jpg")  # and goes on where it stopped
        draw_plate(screen, window, "third")
        wait_for_answers(session, 3)
        screen.key("d")
        screen.wait_for_window("0004_film3.jpg")
        screen.picture("prelabel")
        screen.click(1155, 127)  # the first box among the flags: accepted
        screen.key("d")
        screen.wait_for_window("0005_film4.jpg")
        wait_for_answers(session, 4)
        screen.picture("accepted")
        screen.key("ctrl+q")
        wait_until(lambda: started.poll() is not None, "labelme did not close")
    after = Session.open(session.path)
    states = [answer.state for _, answer in after.answers()]
    assert states == ["drawn", "drawn", "drawn", "accepted", "todo"]  # the last one is only seen
    target = tmp_path / "thorax.json"
    assert annotate.main(["merge", str(session.path), "--into", str(target)]) == 0
    films = {f.file_name: f for f in read_coco(target).films}
    assert sorted(films) == [f"film{number}.dcm" for number in range(4)]
    for number, off in ((1, 6), (2, 6), (3, 0.01)):
        found = films[f"film{number}.dcm"]
        assert found.size_hw == (1800, 1100)
        # one pixel of the screen is two of the film; a click lands within two of the screen's
        assert found.boxes_xyxy[0] == pytest.approx(PLATE, abs=off)
