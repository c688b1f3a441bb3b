"""Which name of a film is which: by folder and file, and by more where that is not enough."""

from __future__ import annotations

from cxr.film_names import FilmNames

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
