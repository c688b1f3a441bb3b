"""Files of one row a film. Append-only ones: what is finished is on disk at once, so that a killed
run loses no film. And answers.csv: what a trained system answered for each film that it was tested
on, the one table that every system leaves, so that all of them are measured by the same figures."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar

from cxr.rules import require, require_same_settings
from cxr.workdir import TEXT, claim, write_atomic

Row = TypeVar("Row")
ODD = "surrogateescape"  # names that are no UTF-8, as the file system gives them


def drop_torn_line(path: str | Path) -> None:
    """Cut off a last line without its end, as a killed writer leaves it; its item is done again."""
    path = Path(path)
    raw = path.read_bytes() if path.exists() else b""
    if raw and not raw.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(raw.rfind(b"\n") + 1)


def append_line(file: IO[bytes], line: bytes) -> None:
    """Write to the disk itself, not only to the system's cache: all of the line, or nothing of it.
    Raises OSError where the disk is full, or where the file is gone, which a write would not
    show."""
    end = file.seek(0, os.SEEK_END)
    try:
        if not os.fstat(file.fileno()).st_nlink:
            raise OSError(errno.ESTALE, "The file is gone, or its folder")
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            file.truncate(end)
        error.filename = str(file.name)
        raise


class _Appender:
    """A file that is continued, without a torn last line; the end of a with block closes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._claim = claim(self.path.parent)
        drop_torn_line(self.path)
        self._file: IO[bytes] = self.path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._claim = None
        self._file.close()


class Ledger(_Appender, Generic[Row]):
    """A file with a header and what belongs to each film, once; `done` holds it by film. `read`
    gives what an earlier run left and raises ValueError where that does not fit; `lines` are the
    text of one film's row."""

    def __init__(
        self,
        path: str | Path,
        header: str,
        read: Callable[[Path], dict[str, Row]],
        lines: Callable[[Row], str],
    ) -> None:
        super().__init__(path)
        self._lines = lines
        begun = self.path.stat().st_size > 0
        try:
            self.done: dict[str, Row] = read(self.path) if begun else {}
        except BaseException:
            self._file.close()
            raise
        if not begun:
            append_line(self._file, header.encode("utf-8", ODD))

    def put(self, film: str, row: Row) -> None:
        """Write what belongs to one film; raises ValueError when that stands there already."""
        if film in self.done:
            raise ValueError(f"{film} stands in {self.path} already.")
        append_line(self._file, self._lines(row).encode("utf-8", ODD))
        self.done[film] = row

    def drop(self, films: Collection[str]) -> None:
        """Take these films out, atomically, so that they can be made anew."""
        if not films:
            return
        self.done = {film: row for film, row in self.done.items() if film not in films}
        self._file.close()
        with self.path.open("rb") as file:
            header = file.readline()
        text = "".join(self._lines(row) for row in self.done.values())
        write_atomic(self.path, header + text.encode("utf-8", ODD))
        self._file = self.path.open("ab", buffering=0)


class FilmRecords(_Appender):
    """A JSON line a film, each with its `film`; memory holds where it begins, and what `keep` takes
    from it. A film that is added again is replaced. Raises ValueError for a file of another
    kind."""

    def __init__(
        self, path: str | Path, keep: Callable[[Mapping[str, Any]], Any] | None = None
    ) -> None:
        super().__init__(path)
        self._keep = keep
        self._places: dict[str, tuple[Any, int]] = {}
        place = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    self._note(json.loads(line), place)
                except (ValueError, KeyError, TypeError) as error:
                    self._file.close()
                    raise ValueError(
                        f"{self.path} line {number} must be the record of a film: remove the file, "
                        "or give --restart."
                    ) from error
                place += len(line)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write one film's record."""
        line = json.dumps(record, allow_nan=False, separators=(",", ":"))
        place = self._file.tell()
        append_line(self._file, line.encode() + b"\n")
        self._note(record, place)

    def records(
        self, films: Collection[str] | None = None, ranked: bool = False, part: slice = slice(None)
    ) -> Iterator[dict[str, Any]]:
        """The films, or those of them that are named, each read when it is asked for: in the order
        in which they came first, or ranked by what is kept of them; and of these a `part`."""
        places = [place for film, place in self._places.items() if films is None or film in films]
        with self.path.open("rb") as file:
            for _, place in (sorted(places) if ranked else places)[part]:
                file.seek(place)
                yield json.loads(file.readline())

    def kept(self) -> list[Any]:
        """What memory holds of each film."""
        return [kept for kept, _ in self._places.values()]

    def _note(self, record: Mapping[str, Any], place: int) -> None:
        kept = self._keep(record) if self._keep else None
        self._places[record["film"]] = (kept, place)

    def __contains__(self, film: str) -> bool:
        return film in self._places

    def __len__(self) -> int:
        return len(self._places)


def read_rows(
    path: Path, kind: type[Row], schema: str, version: int
) -> tuple[dict[str, Any], dict[str, Row]]:
    """Header and rows by film of a file of JSON lines; raises ValueError with the line that is
    wrong. The header names schema and version, and `kind` is the dataclass of a row."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    header: dict[str, Any] = {}
    rows: dict[str, Row] = {}
    with path.open("rb") as file:  # as bytes, so that a line that is no text is named too
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                if number == 1:
                    if not isinstance(data, dict) or data.get("schema") != schema:
                        raise ValueError(f"the first line must be a header with schema {schema!r}")
                    if data.get("version") != version:
                        found = data.get("version")
                        raise ValueError(f"version must be {version}. Got {found!r} instead")
                    header = data
                    continue
                if not isinstance(data, dict):
                    raise ValueError("a row must be a JSON object")
                if unknown := set(data) - names:
                    raise ValueError(f"unknown keys {sorted(unknown)}")
                if not isinstance(data.get("film"), str):
                    raise ValueError(f"film must be a text. Got {data.get('film')!r}")
                row = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
                if data["film"] in rows:
                    raise ValueError(f"{data['film']} stands there twice")
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{path} line {number}: {error}") from error
            rows[data["film"]] = row
    if not header:
        raise ValueError(f"{path} is empty: its first line must be the header.")
    return header, rows


class RowLedger(Ledger[Row]):
    """A ledger of JSON lines: a header with schema, version and provenance, then a row a film, a
    dataclass without what is None. Raises ValueError when it was begun with other settings than it
    would be continued with."""

    def __init__(
        self,
        path: str | Path,
        kind: type[Row],
        schema: str,
        version: int,
        provenance: Mapping[str, Any],
        restart: bool = False,
    ) -> None:
        def line(row: Any) -> str:
            known = {k: v for k, v in asdict(row).items() if v is not None}
            return json.dumps(known, allow_nan=False) + "\n"

        def read(path: Path) -> dict[str, Row]:
            header, rows = read_rows(path, kind, schema, version)
            now = provenance.get("settings") or {}
            require_same_settings(path, header.get("settings") or {}, now)
            return rows

        self._claim = claim(Path(path).parent)
        if restart:
            Path(path).unlink(missing_ok=True)
        header = {"schema": schema, "version": version, **provenance}
        super().__init__(path, json.dumps(header, allow_nan=False) + "\n", read, line)

    def pending(self, films: Iterable[Path], made: str) -> list[Path]:
        """The films that are to be done. One is done when its bytes are those of its row and what
        was made of it, the file beside this one that the row's `made` names, is there; a row that
        does not hold is dropped."""
        from cxr.stream import hash_film  # late: who keeps other rows must not pay for OpenCV

        pending, stale = [], []
        for film in films:
            row: Any = self.done.get(film.as_posix())
            if row is not None:
                name = getattr(row, made)
                kept = name is None or (self.path.parent / name).is_file()
                if kept and row.sha256 == hash_film(film):
                    continue
                stale.append(row.film)
            pending.append(film)
        self.drop(stale)
        return pending

    def add(self, row: Row) -> None:
        """Write one film's row; raises ValueError when the film has one already."""
        self.put(row.film, row)  # type: ignore[attr-defined]


# --- CSV ---


def csv_line(cells: Sequence[str]) -> str:
    """One line of a CSV file, always one: a line break inside a cell would look like a torn row.
    Only what ends a line of a file is taken out: str.splitlines breaks at more, and would change
    the films' names."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([re.sub(r"[\r\n]+", " ", c) for c in cells])
    return buffer.getvalue()


def read_csv(
    path: Path,
    reader_of: Callable[[tuple[str, ...]], Callable[[list[str]], Row]],
    errors: str = "strict",
) -> list[Row]:
    """Rows of a CSV file; raises ValueError naming the line that is wrong. `reader_of` is given the
    header, raises ValueError where that is wrong, and returns what makes a row of a line's
    cells."""
    with path.open(newline="", encoding=TEXT, errors=errors) as file:
        lines = csv.reader(file)
        read = reader_of(tuple(map(str.strip, next(lines, []))))
        rows = []
        for cells in lines:
            try:
                rows += [read(cells)] if "".join(cells).strip() else []
            except ValueError as error:
                raise ValueError(f"{path} line {lines.line_num}: {error}") from error
    return rows


# --- answers.csv ---

_BEFORE = ("film", "patient", "source", "truth")
_SCORE = "score."


@dataclass(frozen=True)
class Answer:
    """One tested film: its true class, and a score for each class (not negative, sum 1)."""

    film: str
    patient: str
    source: str
    truth: str
    scores: tuple[float, ...]


def write_answers(path: str | Path, classes: Sequence[str], answers: Sequence[Answer]) -> None:
    """All answers at once, atomically; raises ValueError for what `read_answers` would refuse."""
    classes = tuple(classes)
    _check_classes(classes)
    films: set[str] = set()
    lines = [csv_line(columns_of(classes))]
    for answer in answers:
        _check(answer, classes, films)
        scores = [repr(float(score)) for score in answer.scores]
        lines.append(csv_line([answer.film, answer.patient, answer.source, answer.truth, *scores]))
    write_atomic(path, "".join(lines))


def read_answers(path: str | Path) -> tuple[tuple[str, ...], list[Answer]]:
    """Classes and answers of an answers.csv; raises ValueError naming the line that is wrong."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} must be an answers.csv. It does not exist: train the system "
            "first, or give its folder's answers.csv."
        )
    classes: tuple[str, ...] = ()
    films: set[str] = set()

    def reader_of(header: tuple[str, ...]) -> Callable[[list[str]], Answer]:
        nonlocal classes
        classes = tuple(c.removeprefix(_SCORE) for c in header if c.startswith(_SCORE))
        if not classes or header != columns_of(classes):
            wanted = ", ".join((*_BEFORE, f"{_SCORE}CLASS"))
            raise ValueError(
                f"{path} must have the columns {wanted} (one a class). "
                f"Got {', '.join(header) or 'none'} instead."
            )
        try:
            _check_classes(classes)
        except ValueError as error:
            raise ValueError(f"{path} line 1: {error}") from error
        return read

    def read(cells: list[str]) -> Answer:
        width = len(_BEFORE) + len(classes)
        require(len(cells) == width, f"a row must have {width} cells", len(cells))
        film, patient, source, truth, *scores = cells
        answer = Answer(film, patient, source, truth, tuple(map(float, scores)))
        _check(answer, classes, films)
        return answer

    answers = read_csv(path, reader_of)
    return classes, answers


def columns_of(classes: Sequence[str]) -> tuple[str, ...]:
    """The columns of an answers.csv for these classes."""
    return (*_BEFORE, *(f"{_SCORE}{name}" for name in classes))


def _check_classes(classes: tuple[str, ...]) -> None:
    if len(classes) < 2 or len(set(classes)) != len(classes) or "" in classes:
        raise ValueError(
            "classes must name at least two answers, each once. "
            f"Got {', '.join(classes) or 'none'} instead."
        )


def _check(answer: Answer, classes: tuple[str, ...], films: set[str]) -> None:
    if not answer.film or answer.film in films:
        raise ValueError(f"film must be named, and stand there once. Got {answer.film!r}.")
    films.add(answer.film)
    rule = f"truth of {answer.film} must be one of {', '.join(classes)}"
    require(answer.truth in classes, rule, answer.truth)
    good = all(math.isfinite(score) and score >= 0 for score in answer.scores)
    near_one = abs(sum(answer.scores) - 1) < 1e-3  # half-precision networks are a little off
    rule = f"scores of {answer.film} must be {len(classes)} numbers, none negative, with the sum 1"
    holds = len(answer.scores) == len(classes) and good and near_one
    require(holds, rule, list(answer.scores))
