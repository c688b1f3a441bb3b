"""cxr/engines.py: no compiler is loaded with torchvision, timm and the networks, and later it is
the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from cxr.engines import without_compiler
with without_compiler():
    import timm, torchvision
    from classify.models.multitask import build_member
    from classify.models.settings import MemberConfig
    build_member(MemberConfig("tu-test_efficientnet", "none", 16), decode=False)
assert not [m for m in sys.modules if m.startswith("torch._dynamo")]
with without_compiler():
    import importlib
    stand_in = importlib.import_module("torch._dynamo")
    assert not hasattr(stand_in, "__file__") and callable(stand_in.optimize)  # what it has not
    assert sys.modules["torch._dynamo"].__file__  # is the compiler's own
import torch, torch._dynamo
assert torch._dynamo.__file__ and torch._dynamo.utils.is_compile_supported
with without_compiler():
    assert torch._dynamo.__file__ and sys.modules["torch._dynamo"] is torch._dynamo
"""


def test_the_compiler_is_loaded_when_it_is_asked_for_and_not_before(root: Path) -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
