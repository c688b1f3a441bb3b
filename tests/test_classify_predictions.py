"""classify/predictions.py: written row by row, read back, continued."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from classify.predictions import (
    PredictionRow,
    PredictionWriter,
    read_predictions,
)

TARGETS = ("bacterial", "viral")
LOGITS = np.array([[0.1, -2.5, 3.25], [1.0, 0.3, -1e-7]])


def table(path: Path, targets: tuple[str, ...], *rows: PredictionRow) -> Path:
    with PredictionWriter(path, targets) as book:
        for one in rows:
            book.add(one)
    return path


def row(film: str = "a.png") -> PredictionRow:
    return PredictionRow(film, "ok", "", LOGITS, 0.75, "read", "urgent", "t1")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    refused = PredictionRow("b.dcm", "no_thorax", 'a leg, "left"\nnot a chest')
    with PredictionWriter(tmp_path / "predictions.csv", TARGETS) as table:
        table.add(row())
        table.add(refused)
    targets, (first, second) = read_predictions(tmp_path / "predictions.csv")
    assert targets == TARGETS
    assert np.array_equal(first.logits, LOGITS)
    assert (first.abnormal_score, first.decision, first.tier) == (0.75, "read", "urgent")
    assert second.logits is None and second.abnormal_score is None
    assert second.reason == 'a leg, "left" not a chest'


def test_the_header_is_that_of_the_contract(tmp_path: Path) -> None:
    table(tmp_path / "p.csv", ("viral",))
    assert (tmp_path / "p.csv").read_text() == (
        "film,status,reason,viral.normal,viral.target,viral.others,"
        "abnormal_score,decision,tier,threshold_id,notes,doubt,ensemble\n"
    )


def test_notes_are_codes_that_can_be_counted(tmp_path: Path) -> None:
    noted = replace(row(), notes=("no_window: The header has no window.", "inverted: It is."))
    path = table(tmp_path / "p.csv", TARGETS, noted, row("b.png"))
    with path.open(newline="") as file:
        assert [r["notes"] for r in csv.DictReader(file)] == ["no_window; inverted", ""]
    found = read_predictions(path)[1]
    assert [r.notes for r in found] == [("no_window", "inverted"), ()]


@pytest.mark.parametrize("lacking", [1, 2, 3])
def test_table_of_an_older_run_is_read_and_goes_on_with_its_columns(
    tmp_path: Path, lacking: int
) -> None:
    path = table(tmp_path / "p.csv", TARGETS, row("a.png"))
    lines = [line.rsplit(",", lacking)[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    with PredictionWriter(path, TARGETS) as book:
        first = book.done["a.png"]
        assert (first.notes, first.doubt, first.ensemble) == ((), "", "")
        noted = ("no_window: It has none.",)
        book.add(replace(row("b.png"), notes=noted, doubt="it lay turned", ensemble="e"))
    assert [r.film for r in read_predictions(path)[1]] == ["a.png", "b.png"]
    kept = ["t1", "no_window", "it lay turned", "e"][: 4 - lacking]
    assert path.read_text().splitlines()[2].endswith("urgent," + ",".join(kept))


def test_why_a_film_is_never_cleared_and_who_judged_it_come_back(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", TARGETS, replace(row(), doubt="it lay turned", ensemble="e"))
    (found,) = read_predictions(path)[1]
    assert (found.doubt, found.ensemble) == ("it lay turned", "e")


def test_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", TARGETS, row("a.png"))
    text = path.read_text().replace("\n", "\r\n") + "\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [r.film for r in read_predictions(path)[1]] == ["a.png"]


def test_a_killed_run_goes_on_without_its_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    with PredictionWriter(path, TARGETS) as table:
        table.add(row("a.png"))
    with path.open("a") as file:
        file.write("b.png,ok,,0.1,0.")
    with PredictionWriter(path, TARGETS) as table:
        assert list(table.done) == ["a.png"]
        table.add(row("b.png"))
    assert [r.film for r in read_predictions(path)[1]] == ["a.png", "b.png"]


def test_members_that_were_not_asked_have_empty_cells(tmp_path: Path) -> None:
    half = replace(row(), logits=np.array([[np.nan] * 3, [1.0, 0.3, -0.5]]))
    path = table(tmp_path / "p.csv", TARGETS, half, row("b.png"))
    assert path.read_text().splitlines()[1].startswith("a.png,ok,,,,,1.0,0.3,-0.5,")
    first, second = read_predictions(path)[1]
    np.testing.assert_array_equal(first.logits, half.logits)
    assert (first.complete, second.complete) == (False, True)


def test_a_film_is_written_once(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "p.csv", TARGETS) as table:
        table.add(row())
        with pytest.raises(ValueError, match="already"):
            table.add(row())


def test_other_members_cannot_continue_a_file(tmp_path: Path) -> None:
    table(tmp_path / "p.csv", TARGETS, row())
    with pytest.raises(ValueError, match="bacterial, viral"):
        PredictionWriter(tmp_path / "p.csv", ("viral",))


def test_logits_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        table(tmp_path / "p.csv", ("viral",), row())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a.png,ok,,1,2,x,,,,,,,", "line 2"),
        ("a.png,ok,,1,2", "cells"),
        ("a.png,ok,,1,2,nan,,,,,,,", "fin"),
        ("a.png,ok,,1,,3,,,,,,,", "all of its logits, or none"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = table(tmp_path / "p.csv", ("viral",))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=says):
        read_predictions(path)


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("image,label\n")
    with pytest.raises(ValueError, match="columns"):
        read_predictions(tmp_path / "p.csv")
    with pytest.raises(ValueError, match="does not exist"):
        read_predictions(tmp_path / "q.csv")
