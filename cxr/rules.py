"""What the fields of settings must keep; each raises ValueError: the name, the rule, the value.
And RefusedError, by which a command ends in words."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

FULL = {errno.ENOSPC, errno.EDQUOT}
GONE = {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT}
# where the disk, and no fault of ours, ends the work
DISK = {*FULL, *GONE, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}

# what trains and explains, and what a run does without: the extra `train` of pyproject.toml
_TRAINING = (
    "torch torchvision lightning timm segmentation_models_pytorch albumentations pycocotools "
    "pytorch_grad_cam tensorboard matplotlib"
)
TRAINING = frozenset(_TRAINING.split())


class RefusedError(ValueError):
    """Arguments, data or a folder do not allow the work; the message is for the user."""


@contextmanager
def refusing() -> Iterator[None]:
    """Where a command opens what it was given: what is wrong there becomes a RefusedError; what the
    disk does not take stays an OSError, for `cxr.cli.as_command` to tell."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if isinstance(error, OSError) and error.errno in DISK:
            raise
        raise RefusedError(in_words(error)) from error


def in_words(error: Exception) -> str:
    """What an error says, without the number that Python puts before the words of a disk; and of
    a library that is not installed how to install it."""
    if isinstance(error, ModuleNotFoundError) and lacks_training(error):
        return f"{error.name} is not installed, which this needs: pip install -e '.[train]'"
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    place = error.filename2 or error.filename  # the second is where a copy was to go
    return f"{place}: {error.strerror}" if place else error.strerror


def lacks_training(error: ModuleNotFoundError) -> bool:
    """Whether what is missing is of the extra `train`."""
    return (error.name or "").partition(".")[0] in TRAINING


def require(holds: bool, rule: str, got: Any) -> None:
    """`rule` is a sentence without its stop, such as "side must be at least 32 px"."""
    if not holds:
        raise ValueError(f"{rule}. Got {got!r} instead.")


def require_one_of(config: Any, **known: Collection[str]) -> None:
    """Each field named here must be one of these words."""
    for name, words in known.items():
        got = getattr(config, name)
        require(got in words, f"{name} must be one of {', '.join(words)}", got)


def require_not_negative(config: Any, *names: str) -> None:
    """Fields that are counts or sizes."""
    for name in names:
        require(getattr(config, name) >= 0, f"{name} must not be negative", getattr(config, name))


def require_between(config: Any, **limits: tuple[float, float]) -> None:
    """Each field named here must lie between its two ends."""
    for name, (low, high) in limits.items():
        got = getattr(config, name)
        if not low <= got <= high:
            raise ValueError(f"--{name} must lie between {low} and {high}. Got {got}.")


def require_at_least(config: Any, **least: float) -> None:
    """Each field named here must be at least so large."""
    for name, low in least.items():
        got = getattr(config, name)
        require(got >= low, f"{name} must be at least {low}", got)


def require_share(config: Any, *names: str, below: float | None = None) -> None:
    """Fields that lie in [0, 1], or in [0, below)."""
    end = "1]" if below is None else f"{below})"
    for name in names:
        got = getattr(config, name)
        holds = 0 <= got <= 1 if below is None else 0 <= got < below
        require(holds, f"{name} must lie in [0, {end}", got)


def require_same_settings(
    place: Any,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    way: str = "--restart to begin anew",
) -> None:
    """Work that was begun goes on with the settings, by name, that it was begun with."""
    if differs := sorted(k for k in {*before, *now} if before.get(k) != now.get(k)):
        raise ValueError(
            f"{place} was begun with other settings ({', '.join(differs)}). "
            f"Give another --out, or {way}."
        )
