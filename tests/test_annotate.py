"""tools/annotate.py: its words, and what they load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import annotate
import numpy as np
import pytest
from labelling_sessions import make_session

# Every word's help, then every command that needs no detector, in one process.
_SCRIPT = """
import contextlib, io, sys
import annotate

heavy = "torch torchvision lightning timm sklearn matplotlib albumentations".split()
films, a, b, out = sys.argv[1:]
calls = [[word, "--help"] for word in annotate.COMMANDS]
calls += [["status", a], ["review", a], ["review", a, "--accept", "1-2"], ["check", a]]
calls += [["merge", a, "--into", f"{out}/a.json"], ["check", f"{out}/a.json", "--films", films]]
calls += [["export", a, "--format", "voc", "--out", f"{out}/voc"]]
calls += [["import", f"{out}/voc", "--format", "voc", "--films", films, "--into", f"{out}/b.json"]]
calls += [["start", films, "--session", f"{out}/new", "--annotator", "mk", "--open=false"]]
for words in calls:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        assert annotate.main(words) == 0, (words, said.getvalue())
    assert not set(heavy) & set(sys.modules), (words, set(heavy) & set(sys.modules))
with contextlib.redirect_stdout(io.StringIO()):
    assert annotate.main(["agree", a, b, "--out", f"{out}/agree"]) == 0
assert "torch" not in sys.modules
"""


def test_no_command_without_a_detector_loads_torch(tmp_path: Path, root: Path) -> None:
    ramp = np.tile(np.linspace(0, 1, 120), (80, 1))
    films, box = [("a.png", ramp), ("b.png", 1 - ramp)], (10, 5, 110, 75)
    names = ("one", "two")
    sessions = [
        make_session(tmp_path / n, films, dict.fromkeys(("a.png", "b.png"), box), n) for n in names
    ]
    for film in sessions[1].films:
        sessions[1].set_answer(film, flags=["accepted"])
    words = [tmp_path / "one-films", *(s.path for s in sessions), tmp_path]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tools'}"}
    ask = [sys.executable, "-c", _SCRIPT, *map(str, words)]
    done = subprocess.run(ask, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "start films/ --session sessions/first"),
        ([], 2, "start"),
        (["paint"], 2, "paint"),
        (["status"], 2, "session must name at least one session folder"),
        (["review", "s", "--columns", "0"], 2, "columns must lie in 1 to 20"),
    ],
)
def test_words_that_are_none_are_refused(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        annotate.main(words)
    assert left.value.code == code
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
