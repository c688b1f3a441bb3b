"""Where a network runs, in one vocabulary (auto, cpu or cuda; other words are aliases), and loading
networks without torch's compiler, which takes as long as torch itself: nothing is compiled here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the first GPU, or the CPU where there is none; `gpu` is cuda, and torch's own
    words (cuda:1, mps) are taken. Raises ValueError for any other."""
    import torch  # late: settings and --help must not pay for it

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device("cuda" if device == "gpu" else device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be auto, cpu, gpu or a name of torch. Got {device!r}."
        ) from error


@contextmanager
def inferring(device: torch.device, precision: str) -> Iterator[None]:
    """Without gradients, and in bf16 where that was asked for."""
    import torch

    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), half:
        yield


_NAME = "torch._dynamo"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import torchvision and timm in here: a stand-in takes the compiler's place meanwhile, whose
    `disable` leaves functions as they are. Afterwards it can be imported as ever; where it is
    loaded already, nothing is done."""
    if _NAME in sys.modules:
        yield
        return
    compiler: Any = ModuleType(_NAME)
    utils: Any = ModuleType(f"{_NAME}.utils")
    compiler.utils, compiler.disable = utils, _leave
    utils.is_compile_supported = lambda _device: False
    for module in (compiler, utils):
        module.__getattr__ = partial(_of_the_compiler, module.__name__)
    sys.modules |= {_NAME: compiler, utils.__name__: utils}
    try:
        yield
    finally:
        _drop_stand_in()


def _drop_stand_in() -> None:
    if not hasattr(sys.modules.get(_NAME), "__file__"):
        for name in (_NAME, f"{_NAME}.utils"):
            sys.modules.pop(name, None)


def _of_the_compiler(module: str, name: str) -> Any:
    """What the stand-in has not is the compiler's own: it is loaded then, after all."""
    if name.startswith("__"):
        raise AttributeError(name)
    _drop_stand_in()
    return getattr(importlib.import_module(module), name)


def _leave(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """As a decorator, with or without arguments."""
    return (lambda given: given) if function is None else function
