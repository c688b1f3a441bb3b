"""A runner that trains nothing, for the tests of tools/reproduce.py; other processes import it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from cxr.ledger import Answer, write_answers
from reproducing.runners import Runner

CLASSES = ("normal", "pneumonia")
# truth, and the answer right or wrong: 3 of 4 right, F1 of pneumonia 2 * 2 / (2 * 2 + 1) = 0.8
FILMS = (("normal", True), ("normal", False), ("pneumonia", True), ("pneumonia", True))


@dataclass(frozen=True)
class Split:
    """As of classify.single."""

    kind: str = "pooled"


@dataclass(frozen=True)
class Net:
    """A network's name and first weights."""

    name: str = "resnet50"
    weights: str = "imagenet"


@dataclass(frozen=True)
class ToyConfig:
    """What the toy takes; `fault` is raised, `secs` slept."""

    data: str = ""
    crops: str = ""
    out: str = ""
    cache: str = ""
    seed: int = 0
    sources: tuple[str, ...] = ()
    rate: float = 0.1
    epochs: int = 30
    side: int = 299
    backbone: Net = field(default_factory=Net)
    protocol: Split = field(default_factory=Split)
    fault: str = ""
    secs: float = 0.0

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate must be positive. Got {self.rate} instead.")


def train_toy(config: ToyConfig) -> Path:
    """Answer four films; a line in OUT/../../trained.log for each training."""
    out = Path(config.out)
    with (out.parent.parent / "trained.log").open("a") as log:
        log.write(f"{config.rate} {config.epochs}\n")
    time.sleep(config.secs)
    if config.fault == "stop":
        raise KeyboardInterrupt
    if config.fault:
        raise ValueError(config.fault)
    rows = []
    for n, (truth, right) in enumerate(FILMS):
        says_normal = (truth == "normal") == right
        scores = (0.9, 0.1) if says_normal else (0.1, 0.9)
        rows.append(Answer(f"images/{n}.png", f"p{n}", "toy", truth, scores))
    write_answers(out / "answers.csv", CLASSES, rows)
    return out


TOY = Runner(
    "reproduce_toy:ToyConfig",
    "reproduce_toy:train_toy",
    {n: n for n in ("data", "crops", "out", "cache", "seed")},
    protocol="protocol.kind",
)
