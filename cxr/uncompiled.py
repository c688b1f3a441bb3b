"""torchvision and timm without torch's compiler, which they import to decorate a few functions.

Loading it takes as long as torch itself; nothing is compiled here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

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
    sys.modules |= {_NAME: compiler, utils.__name__: utils}
    try:
        yield
    finally:
        for name in (_NAME, utils.__name__):
            sys.modules.pop(name, None)


def _leave(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """As a decorator, with or without arguments."""
    return (lambda given: given) if function is None else function
