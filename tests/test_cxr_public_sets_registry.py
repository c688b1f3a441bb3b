"""The sets by name: which a folder is, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import public_worlds
import pytest
from public_worlds import kermany, load, nih

from cxr.public_sets.records import LayoutError
from cxr.public_sets.registry import SETS


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_known_by_its_folder(tmp_path: Path, name: str) -> None:
    other = next(n for n in SETS if n != name)
    with pytest.raises(LayoutError, match=f"It looks like {name}: use --source {name}."):
        load(other, getattr(public_worlds, name)(tmp_path))


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_found_in_a_folder_of_a_folder(tmp_path: Path, name: str) -> None:
    getattr(public_worlds, name)(tmp_path / "archive")
    loaded = load(name, tmp_path)
    assert loaded.rows[0].image.startswith("archive/")
    assert loaded.source == name


@pytest.mark.parametrize("name", SETS)
def test_each_set_says_its_layout_licence_and_citation(name: str) -> None:
    loader = SETS[name]
    assert loader.name == name
    assert all((loader.title, loader.layout, loader.licence, loader.citation))


def test_a_folder_of_another_set_is_named_with_the_layout_that_was_expected(tmp_path: Path) -> None:
    with pytest.raises(LayoutError) as error:
        load("chexpert", nih(tmp_path))
    message = str(error.value)
    assert SETS["chexpert"].layout in message
    assert "2 folders (images_001/, images_002/); 1 files (Data_Entry_2017.csv)" in message
    assert message.endswith("It looks like nih: use --source nih.")


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="Found: an empty folder"):
        load("kermany", tmp_path)


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="Found: no such folder"):
        load("kermany", tmp_path / "nowhere")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"source must be one of kermany, nih.*Got 'padchest'"):
        load("padchest", Path())


def test_one_set_that_lies_there_twice_must_be_told_apart(tmp_path: Path) -> None:
    kermany(tmp_path / "first")
    kermany(tmp_path / "second")
    with pytest.raises(LayoutError, match=r"kermany once\. Got 2"):
        load("kermany", tmp_path)


def test_a_set_packed_twice_into_itself_is_read_once(tmp_path: Path) -> None:
    kermany(kermany(tmp_path))
    assert len(load("kermany", tmp_path).rows) == 6
