"""films.csv: tables as spreadsheets leave them, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cxr.films_table import FilmNames, FilmRow, read_films_table, take_films

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


# --- which name is which film

CHEXPERT = [f"/set/train/patient0000{n}/study1/view1_frontal.jpg" for n in (1, 2)]


def test_folder_and_file_are_enough() -> None:
    names = FilmNames(["images/nih/1.png", "images/kermany/1.png"])
    assert names.find("../films/nih/1.png") == "images/nih/1.png"
    assert names.find("nih/1.png") == "images/nih/1.png"
    assert names.find("..\\films\\kermany\\1.png") == "images/kermany/1.png"


def test_another_folder_or_file_is_another_film() -> None:
    names = FilmNames(["images/nih/1.png"])
    assert names.find("images/tbx/1.png") is None
    assert names.find("images/nih/2.png") is None
    assert names.find("1.png") is None


def test_names_that_end_alike_need_more_parts() -> None:
    names = FilmNames(CHEXPERT)
    assert names.find("elsewhere/patient00002/study1/view1_frontal.jpg") == CHEXPERT[1]
    assert names.find("study1/view1_frontal.jpg") is None
    assert names.find("x/patient00009/study1/view1_frontal.jpg") is None


def test_a_lone_name_is_not_taken_for_the_other_films_that_end_like_it() -> None:
    asked = [f"films/{path}" for path in CHEXPERT]
    names = FilmNames(CHEXPERT[:1], asked)
    assert [names.find(path) for path in asked] == [CHEXPERT[0], None]


def test_a_name_that_is_the_end_of_another_is_found_by_the_whole() -> None:
    names = FilmNames(["b/1.png", "a/b/1.png"])
    assert names.find("a/b/1.png") == "a/b/1.png"
    assert names.find("b/1.png") == "b/1.png"


def test_a_name_without_a_folder_is_found_by_itself() -> None:
    names = FilmNames(["1.png"])
    assert names.find("anywhere/1.png") == "1.png"
    assert names.find("1.png") == "1.png"
