"""The tables that public sets come with, read line by line, and the tables that we write."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from cxr.public_sets.records import COLUMNS, FindingBox, Item, Problem, PublicFilm
from cxr.workdir import write_atomic


def read_lines(
    path: Path, key: str, read: Callable[[str, dict[str, str]], Iterator[Item]]
) -> Iterator[Item]:
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


def write_films_table(path: str | Path, rows: Iterable[PublicFilm]) -> Path:
    """films.csv as `cxr.films_table.read_films_table` takes it; the whole file or none."""
    return _write(Path(path), COLUMNS, (asdict(row) for row in rows))


def write_finding_boxes(path: str | Path, boxes: Iterable[FindingBox]) -> Path:
    """finding_boxes.csv: image, finding, and x, y, w, h in pixels of the film."""
    columns = ("image", "finding", "x", "y", "w", "h")
    return _write(Path(path), columns, (asdict(box) for box in boxes))


def write_problems(path: str | Path, problems: Iterable[Problem]) -> Path:
    """problems.csv: kind, where, text; bytes of a name that are no UTF-8 are spelt out."""
    rows = ({k: _spelt(v) for k, v in asdict(problem).items()} for problem in problems)
    return _write(Path(path), ("kind", "where", "text"), rows)


def _spelt(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_atomic(path, text.getvalue())
