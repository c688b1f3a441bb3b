"""cxr.stream: films read ahead, in order, whatever the files are."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import cxr.film
import cxr.stream
from cxr.film import Film
from cxr.stream import (
    Unread,
    ahead,
    default_jobs,
    hash_film,
    read_ahead,
    read_or_say_why,
    written,
)
from cxr.workdir import sha256_file


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    """Six readable films whose width tells them apart, the third broken."""
    paths = []
    for number in range(6):
        path = tmp_path / f"film{number}.png"
        ramp = np.tile(np.arange(70 + number, dtype=np.uint8), (80, 1))
        cv2.imwrite(str(path), ramp)
        paths.append(path)
    paths[2].write_bytes(b"no film at all")
    return paths


def widths(stream) -> list[int | str]:
    return [f.pixels.shape[1] if isinstance(f, Film) else f.reason for _, f in stream]


@pytest.mark.parametrize("jobs", [0, 1])
def test_films_come_in_order_and_bad_ones_as_values(films: list[Path], jobs: int) -> None:
    items = list(read_ahead(films, jobs))
    assert [path for path, _ in items] == films
    assert widths(items) == [70, 71, "not_an_image", 73, 74, 75]


def test_unread_file_keeps_its_hash(films: list[Path]) -> None:
    unread = read_or_say_why(films[2])
    assert isinstance(unread, Unread)
    assert unread.sha256 == sha256_file(films[2])
    assert str(unread).startswith("not_an_image: ")


def test_missing_file_has_no_hash(tmp_path: Path) -> None:
    unread = read_or_say_why(tmp_path / "none.png")
    assert unread == Unread("not_found", unread.sentence, "")


def test_unexpected_error_gives_a_reason_without_its_text(
    films: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, for_processing: bool) -> None:
        raise KeyError("Doe^Jane")

    monkeypatch.setattr(cxr.stream, "read_film", fail)
    unread = read_or_say_why(films[0])
    assert isinstance(unread, Unread) and unread.reason == "unexpected"
    assert "fault" in str(unread) and not re.search("Error|Doe", str(unread))


def test_no_more_films_are_read_than_allowed_ahead(
    films: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, lock = [], threading.Lock()

    def note(path: str, for_processing: bool) -> Unread:
        with lock:
            read.append(path)
        return Unread("empty", "")

    monkeypatch.setattr(cxr.stream, "read_or_say_why", note)
    stream = read_ahead(films, ahead=2)
    next(stream)
    assert len(read) <= 2
    next(stream)
    assert len(read) <= 3
    stream.close()


def test_paths_are_taken_one_by_one(films: list[Path]) -> None:
    taken = []

    def source():
        for path in films:
            taken.append(path)
            yield path

    stream = read_ahead(source(), ahead=2)
    next(stream)
    assert len(taken) == 2
    stream.close()


def crash_on_film3(path: str, for_processing: bool) -> Unread:
    """What a decoder that crashes does: the process is gone, with no exception."""
    if path.endswith("film3.png"):
        os._exit(11)
    return read_or_say_why(path)


def test_crash_of_a_decoder_costs_one_film(
    films: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cxr.stream, "read_or_say_why", crash_on_film3)
    stream = read_ahead(films, jobs=1)
    assert widths(stream) == [70, 71, "not_an_image", "decoder_crashed", 74, 75]


def test_workers_do_not_import_torch(films: list[Path]) -> None:
    from cxr.stream import _pool, _without_main

    with _pool(1) as pool:
        with _without_main():
            future = pool.submit(eval, "'torch' in __import__('sys').modules")
        assert future.result() is False


def test_a_film_that_grows_while_it_is_read_is_not_taken_for_read(
    films: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its row, with the whole file's hash, would stand for what was cut off."""
    whole = films[0].read_bytes()
    films[0].write_bytes(whole[:-20])
    before, real = sha256_file(films[0]), cxr.film._decode

    def decode(*args: object) -> Film:
        films[0].write_bytes(whole)
        return real(*args)

    monkeypatch.setattr(cxr.film, "_decode", decode)
    unread = read_or_say_why(films[0])
    assert isinstance(unread, Unread) and unread.reason == "truncated"
    assert unread.sha256 == before != hash_film(films[0])


def test_what_is_no_film_s_file_is_not_hashed(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    unread = read_or_say_why(tmp_path / "sparse.png")
    assert (unread.reason, unread.sha256) == ("bad_pixels", "")
    names = ("sparse.png", "none.png", "a\0.png", ".")
    assert [hash_film(tmp_path / name) for name in names] == [""] * 4


def test_a_reader_that_is_killed_between_two_films_costs_none(films: list[Path]) -> None:
    stream = read_ahead(films, jobs=1, ahead=1)
    first = next(stream)
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    time.sleep(0.5)  # the pool sees that it is broken
    assert widths([first, *stream]) == [70, 71, "not_an_image", 73, 74, 75]


def lives(pid: str) -> bool:
    """Is it a process that has not ended? One that nobody waits for has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def test_readers_end_with_the_process_that_they_read_for(films: list[Path], root: Path) -> None:
    code = """
import sys, time
from cxr.stream import read_ahead
stream = read_ahead(sys.argv[1:], jobs=2)
next(stream)
print("read", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code, *map(str, films)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"read\n"
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(listed) >= 2
    end = time.monotonic() + 20
    while alive := [pid for pid in listed if lives(pid)]:
        assert time.monotonic() < end, alive
        time.sleep(0.1)


def test_few_films_need_no_processes() -> None:
    assert default_jobs(3) == 0
    assert 1 <= default_jobs(1000) <= 4


def test_negative_jobs_are_refused() -> None:
    with pytest.raises(ValueError, match="jobs of read_ahead must be 0 or more"):
        next(read_ahead([], jobs=-1))


def test_a_name_with_a_zero_byte_is_a_film_that_cannot_be_read() -> None:
    assert read_or_say_why("a\0.png").sha256 == ""


# --- items that are made, and written, while others are worked with


def test_items_are_made_ahead_in_their_order_and_no_further() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for n in range(10):
            made.append(n)
            yield n

    coming = ahead(numbers(), 2)
    assert next(coming) == 0
    time.sleep(0.2)
    assert len(made) <= 4, "one is used, two wait, one is in the maker's hand"
    assert list(coming) == list(range(1, 10))


def test_what_making_raises_is_raised_where_the_items_are_used() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    coming = ahead(numbers(), 3)
    assert next(coming) == 1
    with pytest.raises(ValueError, match="no more"):
        next(coming)


def test_closing_ends_the_maker_and_closes_its_items() -> None:
    closed: list[bool] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    threads = threading.active_count()
    coming = ahead(numbers(), 1)
    assert next(coming) == 0
    coming.close()
    assert closed == [True]
    assert threading.active_count() == threads


def test_items_come_back_once_they_are_written_in_their_order() -> None:
    kept: list[int] = []

    def write(n: int) -> None:
        time.sleep(0.002)
        kept.append(n)

    for n in written(range(30), write, most=4):
        assert n in kept
    assert kept == list(range(30))


def test_what_was_made_is_written_when_making_stops() -> None:
    kept: list[int] = []

    def numbers() -> Iterator[int]:
        yield from range(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(written(numbers(), kept.append))
    assert kept == list(range(5))


def test_what_writing_raises_ends_the_work() -> None:
    def write(n: int) -> None:
        if n == 3:
            raise OSError("the disk is full")

    found = []
    with pytest.raises(OSError, match="disk is full"):
        found.extend(written(range(100), write, most=2))
    assert len(found) <= 3
