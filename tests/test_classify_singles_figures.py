"""classify/tasks/single.py and cxr/draw.py: figures from a table of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from classify.tasks.settings import SingleConfig
from classify.tasks.single import report_of, write_report
from cxr.draw import draw_confusion
from cxr.ledger import Answer, read_answers

# normal films answered right and wrong, pneumonia films both right
ANSWERS = [
    Answer(f"{i}.png", f"p{i}", "s", truth, (score, 1 - score))
    for i, (truth, score) in enumerate(
        (("normal", 1.0), ("normal", 0.25), ("pneumonia", 0.0), ("pneumonia", 0.3))
    )
]


def test_figures_are_those_of_the_highest_score() -> None:
    report = report_of(("normal", "pneumonia"), ANSWERS, draws=20)
    assert report.confusion == [[1, 1], [0, 2]]
    assert report.accuracy.value == 0.75
    # pneumonia scores: normal 0 and 0.75, pneumonia 1 and 0.7: 3 of 4 pairs in order
    assert report.auc["pneumonia"].value == pytest.approx(0.75)
    assert (report.films, report.patients) == (4, 4)


def test_a_report_becomes_a_picture(tmp_path: Path) -> None:
    config = SingleConfig(draws=5)
    figures = write_report(config, ANSWERS, tmp_path / "answers.csv", tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert read_answers(tmp_path / "answers.csv") == (config.classes, ANSWERS)
    assert figures == report_of(config.classes, ANSWERS, draws=5).to_dict()


def test_a_matrix_of_another_form_is_refused(tmp_path: Path) -> None:
    draw_confusion([[1, 2, 0], [0, 0, 0]], ("a", "b"), ("a", "b", "none"), tmp_path / "c.png", "x")
    with pytest.raises(ValueError, match=r"counts must be \(2, 2\)"):
        draw_confusion([[1, 2, 0]], ("a", "b"), ("a", "b"), tmp_path / "d.png", "x")
    assert not (tmp_path / "d.png").exists()
