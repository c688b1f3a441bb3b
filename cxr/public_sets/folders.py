"""Looking about in folders: pictures, parts of a set, what lies there in a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif"})
_WIDEST = 40  # subfolders looked into; a set's parts are few, its patients are not


def is_picture_name(name: str) -> bool:
    """Whether a file is called like a picture and is no hidden copy (`._a.jpeg` of macOS)."""
    return not name.startswith(".") and Path(name).suffix.lower() in PICTURES


def list_pictures(folder: Path) -> list[str]:
    """Names of the pictures right inside `folder`, sorted; empty where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if is_picture_name(e.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_folders(folder: Path) -> list[Path]:
    """Subfolders, sorted, without hidden ones and `__MACOSX`."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and e.name[0] not in "._")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [folder / name for name in names]


def levels(path: Path, deepest: int = 2) -> Iterator[list[Path]]:
    """The folder itself, then its subfolders, then theirs: archives are often packed twice."""
    level = [path]
    for _ in range(deepest + 1):
        yield level
        level = [child for folder in level for child in list_folders(folder)[:_WIDEST]]


def describe(path: Path, most: int = 6) -> str:
    """What lies in a folder, for an error message."""
    if not path.exists():
        return "no such folder"
    if not path.is_dir():
        return "a file, not a folder"
    folders = [f.name + "/" for f in list_folders(path)]
    with os.scandir(path) as entries:
        files = sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    if not folders and not files:
        return "an empty folder"
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:most])}{', …' if len(names) > most else ''})"
        for names, what in ((folders, "folders"), (files, "files"))
        if names
    )


def index_pictures(root: Path, folders: Iterable[Path]) -> dict[str, str]:
    """Name of each picture in `folders` → its path relative to `root`; the first of a name wins."""
    index: dict[str, str] = {}
    for folder in folders:
        prefix = folder.relative_to(root).as_posix()
        for name in list_pictures(folder):
            index.setdefault(name, f"{prefix}/{name}" if prefix != "." else name)
    return index
