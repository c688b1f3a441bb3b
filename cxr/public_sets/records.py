"""What the loaders of public sets share: the records that they hand on, reading folders and tables,
and the tables that we write."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from cxr.films_table import FilmRow
from cxr.workdir import write_atomic

# What an uncertain mention (-1 of CheXpert's labeller) is taken for.
Uncertain = Literal["ignore", "positive", "negative"]


@dataclass(frozen=True)
class PublicFilm(FilmRow):
    """One row of a films.csv with all its columns; sizes in pixels, 0 as long as unread."""

    age: str = ""
    sex: str = ""
    width: int = 0
    height: int = 0
    orig_width: int = 0
    orig_height: int = 0

    def sized(self, image: str, width: int, height: int) -> PublicFilm:
        """The row under its final name with the size of the file, which is the original's too."""
        return replace(
            self, image=image, width=width, height=height, orig_width=width, orig_height=height
        )


_COLUMNS = "image mask source patient_id view label sublabel age sex licence width height"
COLUMNS = (*_COLUMNS.split(), "orig_width", "orig_height")  # as `read_films_table` takes them


@dataclass(frozen=True)
class Problem:
    """One thing in a set that is not as published.

    Attributes:
        kind: a word to count by, such as `missing_file` or `odd_name`.
        where: the file, or the table and its line.
        text: what is wrong and what was done, in a sentence.
    """

    kind: str
    where: str
    text: str


@dataclass(frozen=True)
class LeftOut:
    """A film that is no frontal radiograph, passed over for a reason that is counted."""

    reason: str


@dataclass(frozen=True)
class FindingBox:
    """A radiologist's box round a finding: left, top, width, height in pixels of the film."""

    image: str
    finding: str
    x: float
    y: float
    w: float
    h: float
    of_width: int = 0  # width of the film that the numbers were drawn on; 0: the file's own


def unlisted(names: Iterable[str], table: str) -> Iterator[Problem]:
    """A problem where there are pictures that the table does not list."""
    if found := sorted(names):
        text = f"{len(found)} pictures are not in {table}; left out."
        yield Problem("unlisted_file", ", ".join(found[:5]), text)


Row = dict[str, str]
OWN = "is taken for a patient of its own"
Item = PublicFilm | Problem | LeftOut | FindingBox


@dataclass(frozen=True)
class LoadedSet:
    """A public set as read; `image` of rows and boxes is relative to the folder that was given.

    `left_out` counts the films that were passed over on purpose (lateral, CT), by reason.
    """

    rows: list[PublicFilm]
    problems: list[Problem]
    finding_boxes: list[FindingBox] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Loader:
    """One public set.

    Attributes:
        name: as in the column `source` and in `--source`.
        title: as its authors call it.
        layout: the published folder layout in a sentence.
        licence: of the set; where it differs by film, says so.
        citation: what its authors ask to cite.
        is_root: whether a folder is the top of this set.
        read: the set's films, problems and boxes; names of images relative to the top.
    """

    name: str
    title: str
    layout: str
    licence: str
    citation: str
    is_root: Callable[[Path], bool]
    read: Callable[[Path, Uncertain], Iterator[Item]]


class LayoutError(ValueError):
    """A folder that is not laid out as the set is published."""


def read_lines(path: Path, key: str, read: Callable[[str, Row], Iterator[Item]]) -> Iterator[Item]:
    """What `read` makes of each line of a CSV file (also .gz), given where it stands and its cells
    by lower-case column; a Problem for a broken line.

    A line without a value in column `key` is broken: nothing can be made of it. Bytes that are no
    UTF-8 are replaced, because some tables hold notes in other encodings.
    """
    with _open(path) as file:
        lines = csv.reader(file)
        try:
            columns = _columns(lines)
        except (EOFError, OSError) as error:
            yield Problem("unreadable", path.name, f"The table cannot be read: {error}.")
            return
        while True:
            try:
                cells = next(lines)
            except StopIteration:
                return
            except (csv.Error, EOFError, OSError) as error:
                where = f"{path.name}:{lines.line_num}"
                yield Problem("bad_line", where, f"Not a line of a table: {error}.")
                if not isinstance(error, csv.Error):
                    return  # the file itself ends early
                continue
            where = f"{path.name}:{lines.line_num}"
            row = dict.fromkeys(columns, "")
            row.update(zip(columns, (cell.strip() for cell in cells), strict=False))
            if row.get(key):
                yield from read(where, row)
            elif any(cell.strip() for cell in cells):
                yield Problem("bad_line", where, f"The column '{key}' is empty; line left out.")


def read_columns(path: Path) -> set[str]:
    """Names of a CSV file's columns in lower case; empty where there is no such file."""
    try:
        with _open(path) as file:
            return set(_columns(csv.reader(file)))
    except (OSError, EOFError):
        return set()


def _columns(reader: Any) -> list[str]:
    try:
        return [name.strip().lower() for name in next(reader, [])]
    except csv.Error:
        return []


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        raw = gzip.open(path, "rb")  # noqa: SIM115 - closed with the text file round it
        return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def write_rows(path: str | Path, columns: Sequence[str], records: Iterable[Any]) -> Path:
    """Dataclasses as a CSV file with these columns; the whole file or none. Bytes of a name that
    are no UTF-8 are spelt out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, records))
    return write_atomic(path, text.getvalue().encode("utf-8", "backslashreplace"))


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
