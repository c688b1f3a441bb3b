"""cxr.workdir: a run's folder, and writing that never leaves half a file."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress

import cxr.workdir
from cxr.ledger import Ledger
from cxr.rules import RefusedError
from cxr.workdir import (
    Workdir,
    console,
    log,
    provenance,
    set_up_logging,
    sha256_file,
    write_atomic,
    write_json,
)


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    assert write_atomic(path, "first") == path
    write_atomic(path, b"second")
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomic(tmp_path / "a.txt", "old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(cxr.workdir.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_very_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 240 + ".json")
    assert write_atomic(path, "1").read_text() == "1"


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"iou": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a", b"abc")
    assert sha256_file(path) == hashlib.sha256(b"abc").hexdigest()


def test_provenance_names_code_libraries_and_weights() -> None:
    got = provenance({"a.safetensors": "ff"})
    assert got["weights"] == {"a.safetensors": "ff"}
    assert got["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"made", "command", "git_commit"} <= set(got)


def test_start_saves_the_configuration_and_seeds(tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):
        Workdir(tmp_path / "run").start({"side": 320}, seed=5, weights={"a": "b"})
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["config"] == {"side": 320} and record["seed"] == 5
    assert record["weights"] == {"a": "b"}


def test_log_goes_to_the_run_that_was_started_last(tmp_path: Path) -> None:
    log.setLevel(logging.INFO)
    for name in ("first", "second"):
        Workdir(tmp_path / name).start({})
        log.info("hello from %s", name)
    assert "hello from first" in (tmp_path / "first/run.log").read_text()
    assert "second" not in (tmp_path / "first/run.log").read_text()
    assert "hello from second" in (tmp_path / "second/run.log").read_text()


def test_the_log_holds_what_was_said_before_and_printed_after_the_start(tmp_path: Path) -> None:
    set_up_logging()
    log.info("3 files passed over")
    log.debug("not for people")
    Workdir(tmp_path).start({})
    log.info("reading")
    console.print("[bold]page:[/bold] report.html")
    with Progress(console=console) as bar:
        bar.advance(bar.add_task("films", total=1))
    log.warning("stopped")
    lines = (tmp_path / "run.log").read_text().splitlines()
    said = ["3 files passed over", "begun: ", "reading", "page: report.html", "stopped"]
    assert len(lines) == 5 and all(w in line for w, line in zip(said, lines, strict=True))
    set_up_logging()  # the next command
    log.info("another command")
    assert len((tmp_path / "run.log").read_text().splitlines()) == 5


def test_update_adds_fields_and_keeps_the_others(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.start({"side": 320})
    workdir.update(films=7)
    workdir.update(films=8, seconds=1.5)
    record = json.loads((workdir / "run.json").read_text())
    assert (record["config"], record["films"], record["seconds"]) == ({"side": 320}, 8, 1.5)


# --- one run at a time

HOLD = """
import sys, time
from cxr.workdir import Workdir
run = Workdir(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_folder_in_use_is_refused_with_the_others_process_and_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            whose = rf"held by process {other.pid} on {platform.node()}"
            for _ in range(2):  # who was refused leaves the lock and its owner's name alone
                with pytest.raises(RefusedError, match=whose):
                    Workdir(tmp_path / "run")
            with pytest.raises(RefusedError, match=whose):
                Ledger(tmp_path / "run/rows.csv", "a\n", lambda path: {}, str)
            assert not (tmp_path / "run/rows.csv").exists()
        finally:
            other.kill()
    Workdir(tmp_path / "run")  # a killed run holds nothing


def test_one_process_may_ask_for_its_folder_again(tmp_path: Path) -> None:
    first = Workdir(tmp_path)
    assert Workdir(tmp_path / "x" / "..").path.samefile(first.path)


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match="--out must be a folder that can be written"):
        Workdir(tmp_path / "file" / "run")


def test_full_disk_does_not_end_what_is_only_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging()
    Workdir(tmp_path).start({})
    handler = next(h for h in log.handlers if isinstance(h, logging.FileHandler))
    handler.stream.close()
    handler.stream = Path("/dev/full").open("w")  # noqa: SIM115 - the handler closes it
    log.info("told")
    console.print("shown")
    set_up_logging()
    said = capsys.readouterr().err
    assert "told" in said and "shown" in said and "Traceback" not in said
