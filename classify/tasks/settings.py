"""All settings of each training: one file makes it again. Light: nothing here loads torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from classify.augment import AUGMENTS, AugmentConfig, GenesisConfig, GuideConfig
from classify.films import ProtocolConfig, RegionConfig
from classify.models.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneConfig,
    CXRNetConfig,
    FusionConfig,
    MemberConfig,
    NetworkConfig,
    UnetCbamConfig,
    known,
)
from classify.preprocess import PreprocessConfig
from classify.tasks.iscore import SelectConfig
from cxr.cli import Several, to_plain
from cxr.rules import require, require_at_least, require_not_negative, require_one_of
from cxr.training.recipe import CHOICES, OptimConfig, free, recipe_of

DECODERS = ("none", "segmentation", "reconstruction")
CLASSES = ("three", "normal", "target")
KINDS = ("backbone", "fusion", "cxrnet")
BALANCES = ("none", "weights", "oversample", "undersample")
STARTS = ("pretrained", "own")
KEEPS = ("iscore", "all", "head")


@dataclass(frozen=True)
class TrainingConfig:
    """What every training of a classifier takes.

    Args:
        data: folder with films.csv and its images, or several of them (the flag again for each).
        crops: folder of python -m detect.crop, or several; empty trains on whole films.
        out: folder for all that the training leaves: bundles, figures, pictures and checkpoints.
        cache: folder of decoded films, which trainings may share; empty takes OUT/cache, which is
            removed when the training is finished.
        sources: sources of films.csv to take; empty takes all.
        publishable_only: take only films whose licence lets the weights be published.
        max_films: take at most this many films of each part that the split shares them among, drawn
            by the seed (whole patients, classes as they are); 0 takes all.
        preprocess: from pixels to input; stored in the bundles.
        batch: films a step.
        workers: processes that make training pictures; 0 makes them in this one.
        device: auto, cpu or gpu.
        precision: of Lightning: 32-true, bf16-mixed or 16-mixed.
        seed: of initial weights, order, and what is drawn.
    """

    data: Several = free("../shared/data")
    crops: Several = ""
    out: str = free("runs/classify")
    cache: str = free("")
    sources: tuple[str, ...] = ()
    publishable_only: bool = True
    max_films: int = 0
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    batch: int = 4
    workers: int = free(0)
    device: str = free("auto")
    precision: str = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, batch=1)
        require_not_negative(self, "workers", "max_films")

    @property
    def trained_on(self) -> str:
        """For bundles."""
        return "crops" if self.crops else "films"

    @property
    def words(self) -> tuple[str, ...]:
        """Labels of films.csv that this training knows beside the usual ones."""
        return ()


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of training.

    Args:
        name: hard (everything learns, CE + restore_weight × MSE) or weak (everything is frozen,
            BatchNorm statistics too, but the last linear layer; CE).
        films: all, or with_region: those whose restoration goal is known, because the target is
            absent or its region was drawn (the thesis' hard labels).
        optim: optimiser, schedule and stop rule.
        guide: what holds the members to the lungs in this phase; left out, the training's own,
            whose `swap` and `field` make the pictures in any case.
        keep: which epoch: the best, by the macro AUC of the validation films, or the last, for a
            phase that is about what this AUC does not see.
    """

    name: str = "hard"
    films: str = "all"
    optim: OptimConfig = field(default_factory=OptimConfig)
    guide: GuideConfig | None = None
    keep: str = "best"

    def __post_init__(self) -> None:
        require_one_of(self, name=("hard", "weak"), films=("all", "with_region"))
        require_one_of(self, keep=("best", "last"))


@dataclass(frozen=True)
class TrainConfig(TrainingConfig):
    """Train an ensemble: one member (normal / target / others) for each target disease.

    Finished members are skipped and a killed one goes on from its last epoch, so the same command
    is given again after a stop.

    Args:
        targets: the diseases, one member each, by their label or sublabel in films.csv.
        split: file of cxr.split with the parts train, val, calibration and test.
        max_epochs: end each phase after at most this many epochs (for a trial); 0 for its own.
        unseen: diseases (label or sublabel) that no training or validation film may have; their
            films stay in the other parts, where they show what an unknown disease is taken for.
        evaluate: parts of the split that metrics.json reports when a member is finished.
        augment: strengths of the training pictures' changes.
        region: what the decoder restores.
        member: the network.
        decoder: none (classification alone), segmentation (the region's mask is restored) or
            reconstruction (the film inside the region is).
        guide: how the training is held to the lungs.
        shared: one network answers for all targets, which then share all but the last layer.
        classes: three (normal / target / others), or two: normal (against all else) or target
            (against all else). Screening needs three. Class 1 is the one whose region is restored.
        restore_weight: weight of the restoration's MSE beside the cross-entropy.
        balance_classes: weigh classes by the inverse of their number of training films.
        phases: hard, then weak where wanted.
        ship_decoder: put the decoder into the bundles, too.
        draws: bootstrap draws of the intervals.
    """

    targets: tuple[str, ...] = free(("bacterial", "viral"))
    crops: Several = free("")
    split: str = free("configs/split_seed0.json")
    sources: tuple[str, ...] = ("kermany",)
    max_epochs: int = 0
    unseen: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = free(("val",))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    region: RegionConfig = field(default_factory=RegionConfig)
    member: MemberConfig = field(default_factory=MemberConfig)
    guide: GuideConfig = field(default_factory=GuideConfig)
    shared: bool = False
    decoder: str = "reconstruction"
    classes: str = "three"
    restore_weight: float = 0.8
    balance_classes: bool = True
    phases: tuple[PhaseConfig, ...] = (PhaseConfig(),)
    ship_decoder: bool = False
    draws: int = free(1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        once = 0 < len(self.targets) == len(set(self.targets))
        require(once, "targets must name each disease once", self.targets)
        bad = [t for t in self.targets if not t.replace("_", "").replace("-", "").isalnum()]
        require(not bad, "targets name files: letters, digits, - and _ only", *bad[:1] or [""])
        require_one_of(self, decoder=DECODERS, classes=CLASSES)
        both = [t for t in self.targets if t in self.unseen]
        require(not both, "unseen must not name a target, which is learnt", *both[:1] or [""])
        require(bool(self.phases), "phases must hold at least one phase", self.phases)
        require_not_negative(self, "max_epochs", "draws", "restore_weight")
        alone = any(p.guide for p in self.phases) and not self.guide.on
        rule = "guide must hold the training to the lungs where a phase has one of its own"
        require(not alone, rule, "nothing")
        rule = "preprocess.side must be a multiple of 32 px (five halvings of the encoder)"
        require(self.preprocess.side % 32 == 0, rule, self.preprocess.side)

    @property
    def words(self) -> tuple[str, ...]:
        """The diseases that are named here."""
        return (*self.targets, *self.unseen)

    @property
    def networks(self) -> dict[str, tuple[str, ...]]:
        """What is trained: each network's name, and the targets that it answers for."""
        return {"members": self.targets} if self.shared else {t: (t,) for t in self.targets}

    @property
    def class_count(self) -> int:
        """How many answers a member has."""
        return len(self.class_names(""))

    def class_names(self, target: str) -> tuple[str, ...]:
        """What a member answers, in the order of its logits."""
        return {
            "three": ("normal", target, "others"),
            "normal": ("normal", "abnormal"),
            "target": ("rest", target),
        }[self.classes]

    def recipe(self) -> dict[str, Any]:
        """All that a member hangs on but its films, as plain values. Settings that came later are
        left out at their defaults, so that a training begun before them goes on."""
        plain = recipe_of(self)
        if plain["decoder"] != "segmentation":
            plain["decode"] = plain.pop("decoder") == "reconstruction"
        late = {"classes": "three", "unseen": [], "shared": False}
        late["guide"] = recipe_of(GuideConfig())
        return {k: v for k, v in plain.items() if k not in late or v != late[k]}

    def phases_to_run(self) -> tuple[PhaseConfig, ...]:
        """The phases, shortened to `max_epochs`."""
        most = self.max_epochs or max(p.optim.epochs for p in self.phases)
        return tuple(
            replace(p, optim=replace(p.optim, epochs=min(p.optim.epochs, most)))
            for p in self.phases
        )


@dataclass(frozen=True)
class CrossfitConfig(TrainConfig):
    """Answer every patient of several parts by members that never saw the patient.

    OUT/predictions.csv holds the answers, OUT/split.json the parts fit, calibration and test, and
    OUT/folds.json who was answered by which fold: what python -m classify.screener fit takes, with
    --fit_parts '[fit]' --networks OUT/folds.json. A killed run goes on.

    Args:
        pooled: parts of the split whose patients are shared among the folds; never test.
        folds: each is answered by members that were trained on the others.
        fit_share: share of the patients that the screener is fitted on; the others calibrate it.
        always: sources whose films train in every fold and are never answered, as those of
            unknown patients.
    """

    pooled: tuple[str, ...] = ("train", "val", "calibration")
    folds: int = 3
    fit_share: float = 0.3
    always: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, folds=2)
        kept = bool(self.pooled) and "test" not in self.pooled
        require(kept, "pooled must name parts of the split, and not test", self.pooled)
        require(0 < self.fit_share < 1, "fit_share must lie between 0 and 1", self.fit_share)
        require(self.classes == "three", "classes must be three to screen", self.classes)


@dataclass(frozen=True)
class SingleConfig(TrainingConfig):
    """Train one network for K classes and answer the films of the test part.

    A finished folder is loaded and not trained again; a killed training goes on from its last
    epoch. So the same command is given again after a stop.

    Args:
        classes: the answers. A film's class is its sublabel's first word if that is among them,
            else its label; films of no class are left out.
        max_films: take at most this many films, drawn by the seed (whole patients, classes as they
            are), before the protocol shares them among its parts; 0 takes all.
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
        guide: how the training is held to the lungs; `maps` needs a network that pools maps.
        balance: none, weights (of the classes in the loss), oversample (films of the rarer
            classes again) or undersample (only as many films as the rarest class has).
        optim: optimiser, schedule and stop rule.
        batch: films a step, 2 at least.
        choose: val_loss keeps the epoch of the lowest validation loss, val_auc that of the highest
            macro AUC.
        bundle: write the network as single.safetensors.
        draws: bootstrap draws of the intervals.
    """

    classes: tuple[str, ...] = ("normal", "pneumonia")
    crops: Several = free("")
    out: str = free("runs/single")
    sources: tuple[str, ...] = ("kermany",)
    publishable_only: bool = False
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
    guide: GuideConfig = field(default_factory=GuideConfig)
    balance: str = "none"
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            rate=1e-4, weight_decay=0.0, schedule="constant", epochs=30, patience=0
        )
    )
    batch: int = 16
    choose: str = "val_loss"
    bundle: bool = True
    draws: int = free(1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        once = 2 <= len(self.classes) == len(set(self.classes))
        require(once, "classes must name at least two answers, each once", self.classes)
        require_one_of(self, kind=KINDS, augment=AUGMENTS, balance=BALANCES, choose=CHOICES)
        rule = "batch must be at least 2 (BatchNorm cannot learn from one film)"
        require(self.batch >= 2, rule, self.batch)
        rule = "copies must be at least 1, and 1 without augment: the copies would all be alike"
        alone = self.augment == "none"
        require(self.copies == 1 or (self.copies > 1 and not alone), rule, self.copies)
        require_not_negative(self, "draws")
        side, names = self.preprocess.side, ", ".join(self.nets)
        sides = [known(name).least_side for name in self.nets if name != "cxrnet"]
        least = max(sides, default=self.cxrnet.least_side)
        require(side >= least, f"preprocess.side must be at least {least} px for {names}", side)
        own = (self.preprocess.mean, self.preprocess.std)
        require(
            own == (IMAGENET_MEAN, IMAGENET_STD),
            f"preprocess.mean and std must be ImageNet's, {IMAGENET_MEAN} and {IMAGENET_STD}: "
            "networks with other ones rescale what they get",
            own,
        )
        self.network()

    @property
    def words(self) -> tuple[str, ...]:
        """The answers."""
        return self.classes

    @property
    def nets(self) -> tuple[str, ...]:
        """Names of the networks that are trained."""
        own = {"backbone": (self.backbone.name,), "cxrnet": ("cxrnet",)}
        return own.get(self.kind, self.fusion.nets)

    def network(self) -> NetworkConfig:
        """The network's configuration with the classes and the side of this training."""
        chosen: NetworkConfig = getattr(self, self.kind)
        return replace(chosen, classes=len(self.classes), side=self.preprocess.side)

    def as_single(self, **changes: Any) -> SingleConfig:
        """The training of the network alone, of what a subclass adds to it."""
        own = {f.name: getattr(self, f.name) for f in fields(SingleConfig)}
        return SingleConfig(**{**own, **changes})

    def recipe(self) -> dict[str, Any]:
        """All that the network hangs on but its films, as plain values."""
        plain = {k: v for k, v in recipe_of(self.as_single()).items() if k not in KINDS}
        if not self.guide.on:
            del plain["guide"]  # which came later: a training begun before it goes on
        mine = {"network": to_plain(self.network()), "trained_on": self.trained_on}
        return {**plain, **mine}


@dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """Teach a network radiographs without labels: it restores films that were distorted.

    A finished folder is left as it is and a killed training goes on from its last epoch, so the
    same command is given again after a stop.

    Args:
        split: file of cxr.split with the parts train and val; films of its other parts are not
            touched, so that no film is pretrained on which is tested later.
        genesis: the distortions.
        net: the network.
        optim: optimiser, schedule and stop rule; plateau and patience go by the validation loss.
        half: store the bundle's weights as fp16.
    """

    out: str = free("runs/pretrain")
    split: str = "configs/split_seed0.json"
    preprocess: PreprocessConfig = field(
        default_factory=lambda: PreprocessConfig(side=128, mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    genesis: GenesisConfig = field(default_factory=GenesisConfig)
    net: UnetCbamConfig = field(default_factory=UnetCbamConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            "adamw", 1e-3, 1.0, 1e-4, "cosine", 100, warmup_epochs=1, patience=0, clip_norm=1.0
        )
    )
    batch: int = 8
    half: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "optim.encoder_rate must be 1: no part of the network is trained yet"
        require(self.optim.encoder_rate == 1, rule, self.optim.encoder_rate)
        least = 2 ** (len(self.net.stage_widths) - 1)
        rule = f"preprocess.side must be at least {least} px for the stages of the network"
        require(self.preprocess.side >= least, rule, self.preprocess.side)


@dataclass(frozen=True)
class FinetuneConfig(SingleConfig):
    """Train one network for K classes from an encoder that has learnt films without labels.

    A finished folder is loaded and not trained again, and so is a finished pretraining.

    Args:
        start: pretrained (the encoder of `pretraining`) or own (backbone.weights as they are): the
            two ends of a comparison.
        pretraining: settings of classify.pretrain. Its data, crops, split, device and workers are
            those of this training, so that no tested film is pretrained on.
    """

    start: str = "pretrained"
    pretraining: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, start=STARTS)
        if self.start == "own":
            return
        name = self.pretraining.net.name
        rule = f"kind must be backbone and backbone.name the network that is pretrained, {name}"
        same = self.kind == "backbone" and self.backbone.name == name
        require(same, rule, f"{self.kind} and {self.backbone.name}")
        rule = (
            "protocol.kind must be file: the pretraining leaves out the patients that its split "
            "tests, so both must have the same one"
        )
        require(self.protocol.kind == "file", rule, self.protocol.kind)
        # films must be prepared alike before and after; mean and std are the networks' own
        before, after = (p.to_dict() for p in (self.pretraining.preprocess, self.preprocess))
        differs = [k for k in after if k not in ("mean", "std") and before[k] != after[k]]
        rule = "preprocess must be that of pretraining.preprocess"
        require(not differs, rule, f"others of {', '.join(differs)}")

    def to_pretraining(self) -> PretrainConfig:
        """The pretraining with this training's films, split and machine."""
        shared = ("data", "crops", "cache", "device", "workers")
        own = {name: getattr(self, name) for name in shared}
        return replace(self.pretraining, **own, split=self.protocol.split)

    def to_single(self, weights: str | Path = "") -> SingleConfig:
        """What follows the pretraining; `weights` are the pretrained ones."""
        start = {"backbone": replace(self.backbone, weights=str(weights))} if weights else {}
        return self.as_single(**start)


@dataclass(frozen=True)
class IscoreConfig(SingleConfig):
    """Train one network for K classes and answer with a plain regression on its pooled features.

    A finished network is loaded and not trained again, so that several ways to keep features take
    the same one.

    Args:
        keep: iscore (the features that the I-score keeps), all (every feature) or head (the
            network's own answers, with no regression).
        trained: folder of the network, of classify.single with the same settings; it is trained
            there where it is not yet. Empty takes OUT/network.
        select: how features are chosen; its seed and draws are those of the training.
    """

    keep: str = "iscore"
    trained: str = ""
    select: SelectConfig = field(default_factory=SelectConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, keep=KEEPS)
        rule = "kind must be backbone or cxrnet: a fusion pools the maps of several networks"
        require(self.kind != "fusion", rule, self.kind)
        kind = self.protocol.kind
        rule = "protocol.kind must be pooled, official or file: each fold would keep other features"
        require(kind != "folds", rule, kind)

    def to_single(self) -> SingleConfig:
        """The network's training."""
        return self.as_single(out=self.trained or str(Path(self.out) / "network"), bundle=True)

    def to_select(self) -> SelectConfig:
        """How features are chosen, with this training's seed and draws."""
        return replace(self.select, seed=self.seed, draws=max(1, self.draws))
