"""cxr/ledger.py: the table of tested films."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr.ledger import Answer, read_answers, write_answers

CLASSES = ("normal", "pneumonia", "no box")
ANSWERS = [
    Answer("images/a, b.png", "p1", "kermany", "normal", (0.75, 0.25, 0.0)),
    Answer("images/c.png", "p2", "", "pneumonia", (1 / 3, 1 / 3, 1 / 3)),
]
HEAD = "film,patient,source,truth,score.normal,score.pneumonia\n"


def test_answers_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.csv", CLASSES, ANSWERS)
    assert read_answers(tmp_path / "answers.csv") == (CLASSES, ANSWERS)


def test_the_file_has_one_column_a_class(tmp_path: Path) -> None:
    write_answers(
        tmp_path / "answers.csv",
        ("normal", "pneumonia"),
        [Answer("a.png", "p", "s", "normal", (0.75, 0.25))],
    )
    assert (tmp_path / "answers.csv").read_text() == HEAD + "a.png,p,s,normal,0.75,0.25\n"


def test_no_answers_are_a_table_too(tmp_path: Path) -> None:
    write_answers(tmp_path / "answers.csv", CLASSES, [])
    assert read_answers(tmp_path / "answers.csv") == (CLASSES, [])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("a,p,s,normal,1,0\nb,p,s,gout,1,0\n", "line 3: truth of b must be one of normal, pneu"),
        ("a,p,s,normal,1,0\na,p,s,normal,1,0\n", "line 3: film .* once. Got 'a'"),
        ("a,p,s,normal,1.5,-0.5\n", "line 2: scores of a .* none negative"),
        ("a,p,s,normal,0.5,0.6\n", "line 2: scores of a .* sum 1"),
        ("a,p,s,normal,nan,1\n", "line 2: scores of a"),
        ("a,p,s,normal,half,1\n", "line 2: could not convert"),
        ("a,p,s,normal,1\n", "line 2: a row must have 6 cells. Got 5"),
        (",p,s,normal,1,0\n", "line 2: film must be named"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, rows: str, says: str) -> None:
    (tmp_path / "answers.csv").write_text(HEAD + rows)
    with pytest.raises(ValueError, match=says):
        read_answers(tmp_path / "answers.csv")


@pytest.mark.parametrize(
    "head",
    [
        "",
        "film,truth\n",
        "film,patient,source,truth\n",
        "film,patient,source,truth,score.a,other\n",
    ],
)
def test_another_table_is_refused(tmp_path: Path, head: str) -> None:
    (tmp_path / "answers.csv").write_text(head)
    with pytest.raises(ValueError, match="must have the columns film, patient"):
        read_answers(tmp_path / "answers.csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_answers(tmp_path / "answers.csv")


def test_wrong_answers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scores of a"):
        write_answers(tmp_path / "x.csv", CLASSES, [Answer("a", "p", "s", "normal", (1.0, 0.0))])
    with pytest.raises(ValueError, match="each once"):
        write_answers(tmp_path / "x.csv", ("normal", "normal"), [])
    assert not (tmp_path / "x.csv").exists()
