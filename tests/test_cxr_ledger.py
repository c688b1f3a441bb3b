"""films.jsonl: records by film, replaced, continued, and cut off by a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr.ledger import FilmRecords


def names(book: FilmRecords) -> list[str]:
    return [record["film"] for record in book.records()]


def test_records_come_back_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    with FilmRecords(tmp_path / "new" / "films.jsonl") as book:
        for name in ("c.png", "a.png", "b.png"):
            book.add({"film": name, "size": [3, 4]})
        assert names(book) == ["c.png", "a.png", "b.png"] and len(book) == 3
        assert next(book.records())["size"] == [3, 4]


def test_a_film_added_again_is_replaced_in_its_place(tmp_path: Path) -> None:
    with FilmRecords(tmp_path / "films.jsonl") as book:
        book.add({"film": "a.png", "lift": 1})
        book.add({"film": "b.png", "lift": 1})
        book.add({"film": "a.png", "lift": 2})
        assert [(r["film"], r["lift"]) for r in book.records()] == [("a.png", 2), ("b.png", 1)]


def test_a_replaced_film_stays_replaced_when_the_file_is_continued(tmp_path: Path) -> None:
    with FilmRecords(tmp_path / "films.jsonl") as book:
        for lift in (1, 2):
            book.add({"film": "ü<&>.png", "lift": lift})
    with FilmRecords(tmp_path / "films.jsonl") as book:
        book.add({"film": "b.png", "lift": 3})
        assert [(r["film"], r["lift"]) for r in book.records()] == [("ü<&>.png", 2), ("b.png", 3)]


def test_a_torn_last_line_is_dropped_and_its_film_can_be_added_again(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    with FilmRecords(path) as book:
        book.add({"film": "a.png", "lift": 1})
        book.add({"film": "b.png", "lift": 2})
    path.write_bytes(path.read_bytes()[:-5])
    with FilmRecords(path) as book:
        assert "a.png" in book and "b.png" not in book
        book.add({"film": "b.png", "lift": 3})
        assert [(r["film"], r["lift"]) for r in book.records()] == [("a.png", 1), ("b.png", 3)]


def test_only_the_films_that_are_named_are_given(tmp_path: Path) -> None:
    with FilmRecords(tmp_path / "films.jsonl") as book:
        for name in ("a.png", "b.png", "c.png"):
            book.add({"film": name})
        assert [r["film"] for r in book.records({"c.png", "a.png", "z.png"})] == ["a.png", "c.png"]


@pytest.mark.parametrize("line", ["no json", "[1]", '{"lift": 1}'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "films.jsonl"
    path.write_text('{"film": "a.png"}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2 must be the record of a film"):
        FilmRecords(path)
