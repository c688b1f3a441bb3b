"""Help and refusals come at once: what answers them loads no heavy library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "lightning", "timm", "sklearn", "matplotlib", "pytorch_grad_cam")
SCREENER = ["fit", "evaluate"]
LUNGFIELD = ["train", "evaluate", "predict"]
ANNOTATE = ["start", "review", "status", "check", "agree", "merge", "export", "import", "demo"]
EXPLAIN = ["maps", "ssim", "page", "read"]
COMMANDS = [
    *("classify.run", "classify.audit", "classify.evaluate", "classify.train", "classify.single"),
    *("classify.finetune", "classify.pretrain", "classify.iscore_train", "classify.restore"),
    *("classify.singles.show", "detect.train", "detect.evaluate", "detect.crop", "cxr.split"),
    *("detect.film_class", *(f"detect.lungfield {word}" for word in LUNGFIELD)),
    *(f"classify.screener {word}" for word in SCREENER),
    *(f"tools/annotate.py {word}" for word in ANNOTATE),
    *(f"tools/compare_explanations.py {word}" for word in EXPLAIN),
    *("tools/explore.py", "tools/reproduce.py", "tools/benchmark.py", "tools/demo.py"),
]
# One process asks many commands: each is run as a script would be, and told apart by what is new.
ASK = """
import contextlib, io, json, runpy, sys
heavy = {heavy!r}
found = {{}}
for words in json.loads(sys.stdin.read()):
    name, *rest = words
    sys.argv = [name, *rest]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            if name.endswith(".py"):
                runpy.run_path(name, run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code or 0
    loaded = [h for h in heavy if h in sys.modules]
    found[" ".join(words)] = [code, loaded, len(text.getvalue())]
    for module in [m for m in sys.modules if m.split(".")[0] in loaded]:
        del sys.modules[module]
print(json.dumps(found))
"""


def ask(root: Path, lines: list[list[str]]) -> dict[str, tuple[int, list[str], int]]:
    """What each command line ended with, which heavy libraries it loaded, how much it said."""
    import json

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK.format(heavy=HEAVY)],
        input=json.dumps(lines),
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tools'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return {k: tuple(v) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.fixture(scope="module")
def helped(root: Path) -> dict[str, tuple[int, list[str], int]]:
    return ask(root, [[*command.split(), "--help"] for command in COMMANDS])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(
    helped: dict[str, tuple[int, list[str], int]], command: str
) -> None:
    code, loaded, said = helped[f"{command} --help"]
    assert (code, loaded) == (0, []) and said > 100


@pytest.fixture(scope="module")
def refused(root: Path) -> dict[str, tuple[int, list[str], int]]:
    return ask(root, [[*command.split(), "--no_such_flag", "1"] for command in COMMANDS])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_argument_is_refused_before_anything_heavy_is_loaded(
    refused: dict[str, tuple[int, list[str], int]], command: str
) -> None:
    code, loaded, said = refused[f"{command} --no_such_flag 1"]
    assert (code, loaded) == (2, []) and said > 20
