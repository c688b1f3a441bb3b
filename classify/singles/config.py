"""All settings of a single network's training: one file makes it again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from classify.augment import AUGMENTS
from classify.models.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneConfig,
    CXRNetConfig,
    FusionConfig,
    known,
)
from classify.preprocess import PreprocessConfig
from cxr.training.optim import CHOICES, OptimConfig

PARTS = ("train", "val", "test")
PROTOCOLS = ("pooled", "official", "folds", "file")
KINDS = ("backbone", "fusion", "cxrnet")
NetworkConfig = BackboneConfig | FusionConfig | CXRNetConfig
BALANCES = ("none", "weights", "oversample", "undersample")


@dataclass(frozen=True)
class ProtocolConfig:
    """Which films are trained on, chosen by and tested on. Patients never stand on two sides.

    Args:
        kind: pooled (all films, shared anew by `parts`), official (the test films are those of
            the set's published test folder), folds (cross-validation: each film is tested once)
            or file (a split of python -m cxr.split).
        parts: shares of train, val and test; of official, only that of val beside train counts.
        folds: number of folds, 3 at least: one tests, the next validates, the rest trains.
        split: the file of kind file.
        learn: share of the training part's patients that is learnt from, of each class alike, as
            for learning curves; a smaller share is part of a larger one. All test alike.
        seed: of the shuffle.
    """

    kind: str = "pooled"
    parts: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1})
    folds: int = 5
    split: str = ""
    learn: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in PROTOCOLS:
            raise ValueError(
                f"protocol.kind must be one of {', '.join(PROTOCOLS)}. Got {self.kind!r} instead."
            )
        shares = list(self.parts.values())
        if set(self.parts) != set(PARTS) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                "protocol.parts must be positive shares of train, val and test that "
                f"sum to 1. Got {self.parts} instead."
            )
        if self.folds < 3:
            raise ValueError(
                f"protocol.folds must be at least 3 (train, val, test). Got {self.folds} instead."
            )
        if not 0 < self.learn <= 1:
            raise ValueError(f"protocol.learn must lie in (0, 1]. Got {self.learn} instead.")
        if (self.kind == "file") != bool(self.split):
            raise ValueError(
                "protocol.split must name a split of cxr.split for kind file, and be "
                f"empty for the others. Got {self.split!r} instead."
            )


@dataclass(frozen=True)
class SingleConfig:
    """Train one network for K classes and answer the films of the test part.

    A finished folder is loaded and not trained again; a killed training goes on from its last
    epoch. So the same command is given again after a stop.

    Args:
        classes: the answers. A film's class is its sublabel's first word if that is among them,
            else its label; films of no class are left out.
        data: folder with films.csv and its images.
        crops: folder of python -m detect.crop; empty trains on whole films.
        out: folder for answers, figures, pictures and the bundle.
        cache: folder of decoded films, which many trainings share; empty takes one in `out`.
        sources: sources of films.csv to take; empty takes all.
        publishable_only: take only films whose licence lets the weights be published.
        max_films: take at most this many films (whole patients, classes as they are); 0 takes all.
        protocol: which films are trained on and which are tested.
        kind: backbone, fusion or cxrnet: which of the three below is trained.
        backbone: one network; its `classes` and `side` follow from the settings here.
        fusion: networks that answer together; `classes` and `side` as above.
        cxrnet: a network that draws what it looks at; `classes` and `side` as above.
        preprocess: from pixels to input, with ImageNet's mean and std; stored in the bundle.
        augment: none, affine (±20°, shift 0.15 across and 0.20 along), rotate (±30°) or geometric
            (rotation, shift, zoom, mirror).
        copies: each training film stands so often in an epoch, once as it is and the others
            changed; with 1 it is changed each time.
        balance: none, weights (of the classes in the loss), oversample (films of the rarer
            classes again) or undersample (only as many films as the rarest class has).
        optim: optimiser, schedule and stop rule.
        batch: films a step, 2 at least.
        choose: val_loss keeps the epoch of the lowest validation loss, val_auc that of the highest
            macro AUC.
        bundle: write the network as single.safetensors.
        workers: processes that make training pictures; 0 makes them in this one.
        device: auto, cpu or gpu.
        precision: of Lightning: 32-true, bf16-mixed or 16-mixed.
        seed: of initial weights, order and augmentation.
        draws: bootstrap draws of the intervals.
    """

    classes: tuple[str, ...] = ("normal", "pneumonia")
    data: str = "../shared/data"
    crops: str = ""
    out: str = "runs/single"
    cache: str = ""
    sources: tuple[str, ...] = ("kermany",)
    publishable_only: bool = False
    max_films: int = 0
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    kind: str = "backbone"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    cxrnet: CXRNetConfig = field(default_factory=CXRNetConfig)
    preprocess: PreprocessConfig = field(
        default_factory=lambda: PreprocessConfig(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    )
    augment: str = "none"
    copies: int = 1
    balance: str = "none"
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            rate=1e-4, weight_decay=0.0, schedule="constant", epochs=30, patience=0
        )
    )
    batch: int = 16
    choose: str = "val_loss"
    bundle: bool = True
    workers: int = 0
    device: str = "auto"
    precision: str = "32-true"
    seed: int = 0
    draws: int = 1000

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(
                f"classes must name at least two answers, each once. Got {self.classes} instead."
            )
        words = {"kind": KINDS, "augment": tuple(AUGMENTS), "balance": BALANCES, "choose": CHOICES}
        for name, choices in words.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}. "
                    f"Got {getattr(self, name)!r} instead."
                )
        self._check_numbers()
        self._check_input()
        self.network()

    def _check_numbers(self) -> None:
        if self.batch < 2:
            raise ValueError(
                f"batch must be at least 2 (BatchNorm cannot learn from one film). "
                f"Got {self.batch} instead."
            )
        if self.copies < 1 or (self.copies > 1 and self.augment == "none"):
            raise ValueError(
                "copies must be at least 1, and 1 without augment: the copies would "
                f"all be alike. Got {self.copies} instead."
            )
        for name in ("workers", "max_films", "draws"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative. Got {getattr(self, name)} instead.")

    def _check_input(self) -> None:
        side, names = self.preprocess.side, self.nets
        if self.kind == "cxrnet":
            least = self.cxrnet.least_side
        else:
            least = max(known(name).least_side for name in names)
        if side < least:
            raise ValueError(
                f"preprocess.side must be at least {least} px for {', '.join(names)}. "
                f"Got {side} instead."
            )
        if (self.preprocess.mean, self.preprocess.std) != (IMAGENET_MEAN, IMAGENET_STD):
            raise ValueError(
                f"preprocess.mean and std must be ImageNet's, {IMAGENET_MEAN} and {IMAGENET_STD}: "
                "networks with other ones rescale what they get. Got "
                f"{self.preprocess.mean} and {self.preprocess.std} instead."
            )

    @property
    def nets(self) -> tuple[str, ...]:
        """Names of the networks that are trained."""
        own = {"backbone": (self.backbone.name,), "cxrnet": ("cxrnet",)}
        return own.get(self.kind, self.fusion.nets)

    def network(self) -> NetworkConfig:
        """The network's configuration with the classes and the side of this training."""
        chosen: NetworkConfig = getattr(self, self.kind)
        return replace(chosen, classes=len(self.classes), side=self.preprocess.side)
