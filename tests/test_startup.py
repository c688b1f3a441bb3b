"""Help and refusals come at once: what answers them loads no heavy library."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "lightning", "timm", "sklearn", "matplotlib", "pytorch_grad_cam")
SCREENER = ["fit", "evaluate"]
GUARD = ["fit", "measure"]
LUNGFIELD = ["train", "evaluate", "predict"]
ANNOTATE = ["start", "review", "status", "check", "agree", "merge", "export", "import", "demo"]
PACS = ["check", "serve", "status", "worklist", "pull", "send", "results"]
EXPLAIN = ["maps", "ssim", "page", "read"]
COMMANDS = [
    *("classify.run", "classify.audit", "classify.evaluate", "classify.train", "classify.single"),
    *(
        "classify.finetune",
        "classify.crossfit",
        "classify.pretrain",
        "classify.iscore_train",
        "classify.restore",
    ),
    *("classify.singles.show", "detect.train", "detect.evaluate", "detect.crop", "cxr.split"),
    *("detect.film_class", *(f"detect.lungfield {word}" for word in LUNGFIELD)),
    *("detect.view train", "detect.view evaluate"),
    "classify.audit compare",
    *(f"classify.screener {word}" for word in SCREENER),
    *(f"classify.guard {word}" for word in GUARD),
    *(f"tools/annotate.py {word}" for word in ANNOTATE),
    *(f"tools/pacs.py {word}" for word in PACS),
    *(f"tools/compare_explanations.py {word}" for word in EXPLAIN),
    *(
        "tools/explore.py",
        "tools/reproduce.py",
        "tools/benchmark.py",
        "tools/demo.py",
        "tools/fuzz.py",
        "tools/export.py",
    ),
]
# One process forks a child for each command, so that the light libraries are read once and no
# command sees what another has loaded.
ASK = """
import contextlib, io, json, os, runpy, sys
import cv2, jsonargparse, numpy, pydicom, rich, yaml

def answer(name, rest):
    sys.argv = [name, *rest]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            run = runpy.run_path if name.endswith(".py") else runpy.run_module
            run(name, run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code or 0
    return code, [h for h in {heavy!r} if h in sys.modules], len(text.getvalue())

for name, *rest in json.loads(sys.stdin.read()):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(answer(name, rest)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        print(file.read(), flush=True)
    os.waitpid(child, 0)
"""


def ask(root: Path, lines: list[list[str]]) -> dict[str, tuple[int, list[str], int]]:
    """What each command line ended with, which heavy libraries it loaded, how much it said."""
    if not hasattr(os, "fork"):
        pytest.skip("the commands are asked in forked processes, which this system has not")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK.format(heavy=HEAVY)],
        input=json.dumps(lines),
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tools'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line or "[null, [], 0]") for line in done.stdout.splitlines()]
    return {" ".join(words): tuple(a) for words, a in zip(lines, answers, strict=True)}


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


def test_a_commands_own_settings_stand_beside_no_imports_for_types(root: Path) -> None:
    """What reads a command's settings runs its file's `if TYPE_CHECKING` for their types: what is
    heavy there is loaded for --help. The forks above do not see it."""
    heavy = [
        path.relative_to(root).as_posix()
        for top in ("cxr", "detect", "classify", "tools")
        for path in (root / top).rglob("*.py")
        for text in [path.read_text(encoding="utf-8")]
        if '__name__ == "__main__"' in text
        and "if TYPE_CHECKING" in text
        and re.search(r"^class \w*Config", text, re.MULTILINE)
    ]
    assert not heavy
