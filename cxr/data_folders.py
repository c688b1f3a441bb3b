"""The folders that a command takes its films from: one, or several that read as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from cxr.cli import Several
from cxr.films_table import FilmRow, read_films_table
from cxr.rules import require
from cxr.workdir import sha256_file

TABLE = "films.csv"
Listed = TypeVar("Listed")


class DataFolders:
    """`data / name` is the file of a film, mask or table: of several folders in the one that holds
    it, in the first where none does. Raises ValueError for no folder, and for a name that two of
    them have for different files."""

    def __init__(self, folders: Data) -> None:
        several = [folders] if isinstance(folders, str | Path) else folders
        self._folders = [Path(folder) for folder in several]
        require(bool(self._folders), "data must name a folder", folders)
        lost = [str(folder) for folder in self if not folder.is_dir()]
        require(not lost or len(self._folders) == 1, "data must name folders that exist", lost)

    def __iter__(self) -> Iterator[Path]:
        return iter(self._folders)

    def __truediv__(self, name: str) -> Path:
        paths = [folder / name for folder in self]
        if len(paths) == 1:
            return paths[0]
        first, *others = [path for path in paths if path.exists()] or paths[:1]
        for other in others:
            _require_same(first, other)
        return first

    def __str__(self) -> str:
        return ", ".join(map(str, self))

    def named(self, name: str) -> str:
        """Where a table of this name would lie, for a message."""
        return ", ".join(str(folder / name) for folder in self)

    def files(self, name: str) -> dict[Path, DataFolders]:
        """The tables of this name, and the folders that the films of each lie in: its own, or all
        for a path of its own."""
        found: dict[Path, list[Path]] = defaultdict(list)
        for folder in self:
            if (folder / name).is_file():
                found[folder / name].append(folder)
        return {path: DataFolders(folders) for path, folders in found.items()}

    def tables(self) -> dict[Path, DataFolders]:
        """films.csv of each folder, as `files`; raises ValueError where one has none."""
        found = self.files(TABLE)
        if lost := [folder / TABLE for folder in self if folder / TABLE not in found]:
            raise ValueError(f"data must be a folder with {TABLE}. {lost[0]} does not exist.")
        return found

    def rows(self, unlisted: bool = False) -> list[FilmRow]:
        """films.csv of all folders; with `unlisted` one may have none. Raises ValueError."""
        rows = self.rows_of(self.files(TABLE) if unlisted else self.tables())
        for row in rows if len(self._folders) > 1 else ():
            if row.mask:
                self / row.mask  # raises for two masks of one name
        return rows

    def rows_of(self, tables: Iterable[Path]) -> list[FilmRow]:
        """The rows of tables that lie in these folders."""
        return self.join(
            ((DataFolders(path.parent), read_films_table(path)) for path in tables),
            lambda row: row.image,
        )

    def join(
        self, tables: Iterable[tuple[DataFolders, Iterable[Listed]]], name: Callable[[Listed], str]
    ) -> list[Listed]:
        """The films of all tables, each with the folders that its names lie in; a film that two
        tables list is taken once. Raises ValueError where that is not the same film."""
        films: list[Listed] = []
        listed: dict[str, DataFolders] = {}
        for own, entries in tables:
            for film in entries:
                first = listed.setdefault(name(film), own)
                if first is own:
                    self / name(film)  # raises for two films of one name
                    films.append(film)
                else:
                    _require_same(first / name(film), own / name(film))
        return films


Data = Several | Path | Sequence[Path] | DataFolders


def _require_same(first: Path, other: Path) -> None:
    if not same_bytes(first, other):
        raise ValueError(
            f"data must not have two films of one name. {first} and {other} differ, or one is "
            "missing: rename one, in its tables too."
        )


def same_bytes(first: Path, other: Path) -> bool:
    """Whether both exist and hold the same; a path is the same as itself."""
    if first == other:
        return True
    if not (first.is_file() and other.is_file()) or first.stat().st_size != other.stat().st_size:
        return False
    return sha256_file(first) == sha256_file(other)
