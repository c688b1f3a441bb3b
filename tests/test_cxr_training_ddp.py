"""Two processes learn what one does: Lightning's DDP over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ddp_training.py")


def test_two_processes_have_the_losses_and_the_weights_of_one(tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        command = [sys.executable, str(SCRIPT), str(processes), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(json.loads((folder / "found.json").read_text()))
    one, two = found
    assert len(one["history"]) == 6
    assert one["history"][-1]["train_loss"] < 0.9 * one["history"][0]["train_loss"]
    for row, other in zip(one["history"], two["history"], strict=True):
        assert other == pytest.approx(row, abs=1e-6)
    assert two["weights"] == pytest.approx(one["weights"], abs=1e-5)
