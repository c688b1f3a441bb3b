"""A real kill, in the way of tests/kills.py; each command's own tests have it with stand-ins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_a_killed_command_loses_nothing(root: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        "data_store", reason="the sample film is missing: pip install -e .[samples]"
    )
    command = [sys.executable, "-W", "ignore", "tests/kills.py", "--times", "2"]
    done = subprocess.run(
        [*command, "--commands", "merge", "--out", str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills, 0 faults" in done.stdout
