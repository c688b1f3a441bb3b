"""Disks that are full or gone, and what killed runs leave: cxr.workdir, cxr.ledger, cxr.cli."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxr.cli import as_command
from cxr.manifest import CropRow, ManifestWriter, read_manifest
from cxr.rules import in_words
from cxr.workdir import Workdir, set_up_logging, write_atomic

HOLD = """
import os, sys, time
from cxr.workdir import Workdir
run = Workdir(sys.argv[1])
if not os.fork():
    time.sleep(20)
print("held", flush=True)
time.sleep(20)
"""


def refused(film: str) -> CropRow:
    return CropRow(film, "0" * 64, "unreadable", "truncated: the file ends early.")


def test_a_killed_run_holds_nothing_though_its_forks_live_and_its_half_files_go(
    tmp_path: Path, root: Path
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        names = ("run.json", ".run.json.ab12cd_9", ".mine")
        for name in names:
            (tmp_path / name).write_text("{}")
        other.kill()
        other.wait()
        run = Workdir(tmp_path)
        assert {p.name for p in run.path.iterdir()} == {"run.json", ".mine", ".in_use"}


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file may grow beyond 50,000 bytes: as on a full disk, a part of a long line is written."""
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_a_row_is_written_whole_or_not_at_all(tmp_path: Path, limited: None) -> None:
    path = tmp_path / "manifest.jsonl"
    with ManifestWriter(path, {}) as book:
        book.add(refused("a.png"))
        before = path.read_bytes()
        with pytest.raises(OSError, match="too large") as caught:
            book.add(refused("b" * 100_000))
        assert caught.value.filename == str(path) and path.read_bytes() == before
        book.add(refused("c.png"))
    assert [row.film for row in read_manifest(path)[1]] == ["a.png", "c.png"]


def test_rows_for_a_file_that_is_gone_are_not_written_to_nowhere(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "run/manifest.jsonl", {}) as book:
        book.add(refused("a.png"))
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(OSError, match=r"file is gone, or its folder.*manifest"):
            book.add(refused("b.png"))


def test_a_full_disk_leaves_the_old_file_and_names_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomic(tmp_path / "a.json", "old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space") as caught:
        write_atomic(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "old"
    assert in_words(caught.value) == f"{path}: No space left on device"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "run.log: No space left on device. Wha",
        ),
        (OSError(errno.ENOSPC, "Full", "/tmp/x", None, "/o/a.ckpt"), "/o/a.ckpt: Full. What"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/o/a"), "/o/a: Disk quota exceeded. What"),
        (OSError(errno.ESTALE, "Stale file handle", "/net/a"), "see to its disk or network"),
        (PermissionError(errno.EACCES, "Permission denied", "/o/a"), "or give another --out"),
    ],
)
def test_a_command_says_which_disk_failed_it(
    error: OSError, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: object) -> int:
        Workdir(tmp_path / "r").start({})
        raise error

    set_up_logging()
    assert as_command(main)([]) == 2
    said = "".join(capsys.readouterr().err.split("\n")).replace("  ", " ")
    assert says.replace(" ", "") in said.replace(" ", "") and "Errno" not in said
