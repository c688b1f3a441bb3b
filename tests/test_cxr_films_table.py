"""films.csv: tables as spreadsheets leave them, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cxr.films_table import FilmRow, read_films_table, take_films

HEAD = "image,mask,source,patient_id,label,sublabel,licence\n"


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "films.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_a_spreadsheets_mark_before_the_table_is_no_part_of_it(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + "a.png,,s,p,normal,,CC BY\n", "utf-8-sig")
    assert [row.image for row in read_films_table(path)] == ["a.png"]


def test_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + "a.png,,é,p,normal,,CC BY\n", "latin-1")
    with pytest.raises(ValueError, match=r"films\.csv must be UTF-8"):
        read_films_table(path)


def test_a_line_that_ends_early_is_refused_with_its_number(tmp_path: Path) -> None:
    path = table(tmp_path, HEAD + "a.png,,s,p,normal,,CC BY\nb.png,,s,p\n")
    with pytest.raises(ValueError, match=r"films\.csv line 3 must have a cell for each column"):
        read_films_table(path)


@pytest.mark.parametrize(
    ("source", "licence", "may"),
    [
        ("nih", "NIH Clinical Center: free use with attribution", True),
        ("nih", "not restated; NIH Clinical Center: free use with attribution (CC0)", True),
        ("other", "NIH Clinical Center: free use with attribution", False),
        ("nih", "not stated", False),
        ("any", "CC BY 4.0", True),
        ("any", "CC BY-NC 4.0", False),
    ],
)
def test_a_licence_says_whether_a_model_may_be_published(
    source: str, licence: str, may: bool
) -> None:
    assert FilmRow("a.png", "", source, "p", "normal", "", licence).publishable is may


def test_max_films_never_takes_more_and_keeps_the_shares() -> None:
    patients = [f"p{i // 2}" for i in range(40)]
    strata = ["a"] * 30 + ["b"] * 10
    for most in (7, 12, 20):
        chosen = take_films(patients, strata, most)
        taken = Counter(strata[i] for i in chosen)
        assert most - 2 <= len(chosen) <= most
        assert taken["a"] == pytest.approx(0.75 * most, abs=2)
        assert set(Counter(patients[i] for i in chosen).values()) == {2}
    assert take_films(patients, strata, 0) == take_films(patients, strata, 99) == list(range(40))
    assert take_films(patients, strata, 12, seed=1) != take_films(patients, strata, 12, seed=2)
