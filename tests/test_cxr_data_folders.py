"""cxr.data_folders: several folders read as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cxr.data_folders import DataFolders


def test_each_file_lies_in_its_own_folder(phantom_folders: list[str], phantom_folder: Path) -> None:
    both = DataFolders(phantom_folders)
    rows = both.rows()
    assert [r.image for r in rows] == [f"images/film{n:02d}.png" for n in range(48)]
    assert [both / r.mask for r in rows[::47]] == [
        Path(phantom_folders[0]) / rows[0].mask,
        Path(phantom_folders[1]) / rows[47].mask,
    ]
    one = DataFolders(phantom_folder)
    assert one.rows() == rows[:24]
    assert one / "nowhere" == phantom_folder / "nowhere" == both / "nowhere"


def test_a_film_in_both_folders_is_one_and_another_of_its_name_is_refused(
    phantom_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_folder, tmp_path / "copy")
    both = DataFolders([phantom_folder, tmp_path / "copy"])
    assert both.rows() == DataFolders(phantom_folder).rows()
    for name in ("masks/film07.png", "images/film03.png"):
        (tmp_path / "copy" / name).write_bytes(b"another")
        with pytest.raises(ValueError, match=rf"{phantom_folder / name} and .*copy/{name} differ"):
            both.rows()
    (tmp_path / "copy/images/film03.png").unlink()  # which row is that of the one that is left?
    with pytest.raises(ValueError, match="or one is missing"):
        both.rows()


def test_a_folder_that_is_none_is_named(phantom_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folders that exist\. Got .*nowhere"):
        DataFolders([phantom_folder, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="data must name a folder"):
        DataFolders([])
    (tmp_path / "bare").mkdir()
    both = DataFolders([phantom_folder, tmp_path / "bare"])
    with pytest.raises(ValueError, match=r"bare/films\.csv does not exist"):
        both.rows()
    assert len(both.rows(unlisted=True)) == 24
