"""All settings of an ensemble's training: one file makes it again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from classify.augment import AugmentConfig
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig
from classify.regions import RegionConfig
from cxr.cli import to_plain
from cxr.training.optim import OptimConfig

DECODERS = ("none", "segmentation", "reconstruction")
CLASSES = ("three", "normal", "target")
# What may change between a stop and the next start of the same training.
_FREE = (
    "out",
    "cache",
    "workers",
    "device",
    "evaluate",
    "draws",
    "targets",
    "data",
    "crops",
    "split",
)


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of training.

    Args:
        name: hard (everything learns, CE + restore_weight × MSE) or weak (everything is frozen,
            BatchNorm statistics too, but the last linear layer; CE).
        films: all, or with_region: those whose restoration goal is known, because the target is
            absent or its region was drawn (the thesis' hard labels).
        optim: optimiser, schedule and stop rule.
    """

    name: str = "hard"
    films: str = "all"
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        if self.name not in ("hard", "weak"):
            raise ValueError(f"phase name must be hard or weak. Got {self.name!r} instead.")
        if self.films not in ("all", "with_region"):
            raise ValueError(f"films must be all or with_region. Got {self.films!r} instead.")


@dataclass(frozen=True)
class TrainConfig:
    """Train an ensemble: one member (normal / target / others) for each target disease.

    Finished members are skipped and a killed one goes on from its last epoch, so the same command
    is given again after a stop.

    Args:
        targets: the diseases, one member each, by their label or sublabel in films.csv.
        data: folder with films.csv, its images and masks.
        crops: folder of python -m detect.crop; empty trains on whole films.
        out: folder for the members' bundles, metrics, curves and checkpoints.
        cache: folder of decoded films, which trainings may share; empty takes OUT/cache.
        split: file of cxr.split with the parts train, val, calibration and test.
        sources: sources of films.csv to take; empty takes all.
        publishable_only: take only films whose licence lets the weights be published.
        max_films: take at most this many films (for a trial); 0 takes all.
        max_epochs: end each phase after at most this many epochs (for a trial); 0 for its own.
        unseen: diseases (label or sublabel) that no training or validation film may have; their
            films stay in the other parts, where they show what an unknown disease is taken for.
        evaluate: parts of the split that metrics.json reports when a member is finished.
        preprocess: from pixels to input; stored in the bundles.
        augment: strengths of the training pictures' changes.
        region: what the decoder restores.
        member: the network.
        decoder: none (classification alone), segmentation (the region's mask is restored) or
            reconstruction (the film inside the region is).
        classes: three (normal / target / others), or two: normal (against all else) or target
            (against all else). Screening needs three. Class 1 is the one whose region is restored.
        restore_weight: weight of the restoration's MSE beside the cross-entropy.
        balance_classes: weigh classes by the inverse of their number of training films.
        phases: hard, then weak where wanted.
        ship_decoder: put the decoder into the bundles, too.
        batch: films a step.
        workers: processes that make training pictures; 0 makes them in this one.
        device: auto, cpu or gpu.
        precision: of Lightning: 32-true, bf16-mixed or 16-mixed.
        seed: of initial weights, order and augmentation.
        draws: bootstrap draws of the intervals.
    """

    targets: tuple[str, ...] = ("bacterial", "viral")
    data: str = "../shared/data"
    crops: str = ""
    out: str = "runs/classify"
    cache: str = ""
    split: str = "configs/split_seed0.json"
    sources: tuple[str, ...] = ("kermany",)
    publishable_only: bool = True
    max_films: int = 0
    max_epochs: int = 0
    unseen: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ("val",)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    region: RegionConfig = field(default_factory=RegionConfig)
    member: MemberConfig = field(default_factory=MemberConfig)
    decoder: str = "reconstruction"
    classes: str = "three"
    restore_weight: float = 0.8
    balance_classes: bool = True
    phases: tuple[PhaseConfig, ...] = (PhaseConfig(),)
    ship_decoder: bool = False
    batch: int = 4
    workers: int = 0
    device: str = "auto"
    precision: str = "32-true"
    seed: int = 0
    draws: int = 1000

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets must name each disease once. Got {self.targets} instead.")
        bad = [t for t in self.targets if not t.replace("_", "").replace("-", "").isalnum()]
        if bad:
            raise ValueError(f"targets name files: letters, digits, - and _ only. Got {bad[0]!r}.")
        for name, known in (("decoder", DECODERS), ("classes", CLASSES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}. "
                    f"Got {getattr(self, name)!r} instead."
                )
        both = [t for t in self.targets if t in self.unseen]
        if both:
            raise ValueError(f"unseen must not name a target, which is learnt. Got {both[0]}.")
        if not self.phases:
            raise ValueError("phases must hold at least one phase.")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1. Got {self.batch} instead.")
        for name in ("workers", "max_films", "max_epochs", "draws"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative. Got {getattr(self, name)} instead.")
        if self.preprocess.side % 32:
            raise ValueError(
                "preprocess.side must be a multiple of 32 px (five halvings of the "
                f"encoder). Got {self.preprocess.side} instead."
            )
        if self.restore_weight < 0:
            raise ValueError(f"restore_weight must not be negative. Got {self.restore_weight}.")

    def class_names(self, target: str) -> tuple[str, ...]:
        """What a member answers, in the order of its logits."""
        return {
            "three": ("normal", target, "others"),
            "normal": ("normal", "abnormal"),
            "target": ("rest", target),
        }[self.classes]

    def recipe(self) -> dict[str, Any]:
        """All that a member hangs on but its films, as plain values.

        Settings that came later are left out at their defaults, so that a training begun before
        them goes on.
        """
        plain: dict[str, Any] = {k: v for k, v in to_plain(self).items() if k not in _FREE}
        if plain["decoder"] != "segmentation":
            plain["decode"] = plain.pop("decoder") == "reconstruction"
        late = {"classes": "three", "unseen": []}
        return {k: v for k, v in plain.items() if k not in late or v != late[k]}

    def phases_to_run(self) -> tuple[PhaseConfig, ...]:
        """The phases, shortened to `max_epochs`."""
        if not self.max_epochs:
            return self.phases
        return tuple(
            replace(p, optim=replace(p.optim, epochs=min(p.optim.epochs, self.max_epochs)))
            for p in self.phases
        )
