"""Sessions of several annotators and a file to merge them into, for the tests of merge."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from labelling_sessions import make_session

from labelling import Session
from labelling.merge import MergeConfig, run

BOX_A, BOX_B = (20.0, 30.0, 80.0, 110.0), (24.0, 34.0, 90.0, 100.0)
MEAN = [22.0, 32.0, 63.0, 73.0]  # edges 22, 32, 85, 105
DATE_A, DATE_B = "2025-03-01T10:00:00+00:00", "2025-03-02T09:00:00+00:00"


def film(number: int) -> np.ndarray:
    """(160, 120) film; each number has other pixels, and so another file."""
    return np.full((160, 120), 0.1 + 0.01 * number, np.float32)


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of this test's files, which merge leaves with the temporary files."""
    (tmp_path / "locks").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "locks"))  # for the processes that are killed
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "locks"))


@pytest.fixture
def into(tmp_path: Path, locks: None) -> Path:
    """The file to merge into; there is none yet."""
    return tmp_path / "annotations/thorax.json"


@pytest.fixture
def session_of(tmp_path: Path) -> Callable[..., Session]:
    """A session of one annotator on films of these names, whose boxes are answered."""

    def build(
        annotator: str, boxes: dict[str, tuple[float, ...] | None], date: str = DATE_A, **options
    ) -> Session:
        films = [(name, film(int("".join(filter(str.isdigit, name))))) for name in boxes]
        session = make_session(tmp_path / annotator, films, annotator=annotator, **options)
        for entry in session.films:
            if boxes[entry.film]:
                draw(session, entry.number, boxes[entry.film], date)
        return session

    return build


def draw(session: Session, number: int, box: tuple[float, ...] | None, date: str) -> None:
    """Answer for a film at a given time."""
    entry = session.films[number - 1]
    session.set_answer(entry, xyxy=box)
    history = session.path / "history.jsonl"
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    lines[-1]["time"] = date
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))


def do_merge(into: Path, *sessions: Session, **options: str) -> int:
    return run(MergeConfig(tuple(str(s.path) for s in sessions), str(into), **options))


def only_note(into: Path) -> dict:
    (note,) = json.loads(into.read_text())["annotations"]
    return note


HAND_MADE = {
    "info": {"description": "by hand", "version": 3},
    "licenses": [{"id": 1, "name": "CC BY"}],
    "categories": [{"id": 7, "name": "thorax", "supercategory": "chest"}],
    "images": [
        {"id": 40, "file_name": "1.png", "width": 120, "height": 160, "annotator": "old hand"},
        {"id": 12, "file_name": "leg.png", "width": 50, "height": 60, "note": "no thorax"},
    ],
    "annotations": [
        {
            "id": 90,
            "image_id": 40,
            "category_id": 7,
            "bbox": [20, 30, 60, 80],
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        }
    ],
}


@pytest.fixture
def hand_made(into: Path) -> Path:
    """HAND_MADE as the file to merge into."""
    into.parent.mkdir()
    into.write_text(json.dumps(HAND_MADE))
    return into
