"""One vocabulary for where a network runs: auto, cpu or cuda; other words are aliases."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
