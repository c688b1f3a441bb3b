"""What can be set of each network; light, so that a command checks its arguments without torch."""

from __future__ import annotations

from dataclasses import dataclass

from cxr.rules import require, require_at_least, require_not_negative, require_one_of, require_share

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMS = ("group", "batch")
HEADS = ("1fc", "2fc")
FEATURES = 128  # that a network of a 2fc fusion gives to the head
_WIDEST = 8  # times CXRNet's `width`: deeper stages stay at that

# The U-Net encoders that classifiers know by name. The small one is a quarter of the work.
UNET_WIDTHS: dict[str, tuple[int, ...]] = {
    "unet_cbam": (32, 64, 128, 256, 512),
    "unet_cbam_small": (16, 32, 64, 128, 256),
}


@dataclass(frozen=True)
class Known:
    """A network: the channels of its last maps, its stages (name → the part of the body with which
    the stage begins, in order), its library and name there, and what it was trained on."""

    width: int
    stages: dict[str, str]
    library: str = "torchvision"
    name: str = ""
    side: int = 224
    least_side: int = 32
    mean: float | None = None  # of the pixels it was trained on; None for ImageNet's three
    std: float = 0.5


def _at(stages: str) -> dict[str, str]:
    """Stages as `name:part`, or a name that is also the part's."""
    return {s.partition(":")[0]: s.rpartition(":")[2] for s in stages.split()}


_LAYERS = _at("stem:conv1 layer1 layer2 layer3 layer4")
# the Keras report also freezes half of a stage: the first three of its six blocks
_RESNET50 = _at("stem:conv1 layer1 layer2 layer3_half:layer3.0 layer3:layer3.3 layer4")
_DENSE = _at("stem:conv0 denseblock1 denseblock2 denseblock3 denseblock4")
_UNET = _at("stage1 stage2 stage3 stage4 stage5")
_GOOGLE = _at("stem:conv1 inception3:inception3a inception4:inception4a inception5:inception5a")
_B2 = {"stem": "0", **{f"stage{i}": str(i) for i in range(1, 8)}, "top": "8"}
_BLOCKS = {"stem": "conv_stem", **{f"stage{i + 1}": f"blocks.{i}" for i in range(7)}}
_MOBILE_V2 = _at("stem:0 stage1:2 stage2:4 stage3:7 stage4:14 top:18")
_INCEPTION = _at("stem:Conv2d_1a_3x3 mixed5:Mixed_5b mixed6:Mixed_6a mixed7:Mixed_7a")
_XCEPTION = _at("stem:conv1 entry:block1 middle:block4 exit:block12")
_INCEPTION_RESNET = _at(
    "stem:conv2d_1a block35:mixed_5b block17:mixed_6a block8:mixed_7a top:conv2d_7b"
)
_LITE = {**_BLOCKS, "top": "conv_head"}
_MOBILE = dict(list(_BLOCKS.items())[:6])
KNOWN: dict[str, Known] = {
    "baseline_cnn": Known(256, _at("block1:0 block2:1 block3:2 block4:3"), "own"),
    # pretrained by classify.pretrain only; their pixels come as there, from −1 to 1
    **{name: Known(w[-1], _UNET, "own", "", 128, 32, 0.5) for name, w in UNET_WIDTHS.items()},
    "vgg16": Known(512, _at("block1:0 block2:5 block3:10 block4:17 block5:24")),
    "vgg19": Known(512, _at("block1:0 block2:5 block3:10 block4:19 block5:28")),
    "googlenet": Known(1024, _GOOGLE, mean=0.5),
    "resnet18": Known(512, _LAYERS),
    "resnet50": Known(2048, _RESNET50),
    "densenet121": Known(1024, _DENSE),
    "densenet169": Known(1664, _DENSE),
    "densenet201": Known(1920, _DENSE),
    "efficientnet_b2": Known(1408, _B2, side=288),
    "efficientnet_lite0": Known(
        1280, _LITE, "timm", "tf_efficientnet_lite0", mean=0.498, std=0.502
    ),
    "mobilenet": Known(1024, _MOBILE, "timm", "mobilenetv1_100", mean=0.5),
    "mobilenet_v2": Known(1280, _MOBILE_V2),
    "inception_v3": Known(2048, _INCEPTION, "torchvision", "", 299, 75, 0.5),
    "xception": Known(2048, _XCEPTION, "timm", "legacy_xception", 299, 71, 0.5),
    "inception_resnet_v2": Known(
        1536, _INCEPTION_RESNET, "timm", "inception_resnet_v2", 299, 75, 0.5
    ),
}


def known(name: str) -> Known:
    """What is known of a network; raises ValueError, with the names there are, for another."""
    require(name in KNOWN, f"name must be one of {', '.join(KNOWN)}", name)
    return KNOWN[name]


@dataclass(frozen=True)
class BackboneConfig:
    """One classifying network.

    Args:
        name: one of KNOWN.
        classes: number of logits.
        weights: imagenet, none, or a file of weights (.safetensors, or .pth of tensors only).
        freeze_to: this stage and all before it keep their initial weights, BatchNorm statistics
            included; empty trains everything. `known(name).stages` holds them.
        extra_fc: width of one more linear layer (with ReLU) before the last; 0 for none.
        dropout: before each linear layer.
        side: side of the square input in px; 0 takes the network's published one.
    """

    name: str = "resnet50"
    classes: int = 2
    weights: str = "imagenet"
    freeze_to: str = ""
    extra_fc: int = 0
    dropout: float = 0.0
    side: int = 0

    def __post_init__(self) -> None:
        kind = known(self.name)
        require_at_least(self, classes=1, extra_fc=0)
        require_share(self, "dropout", below=1)
        stage, names = self.freeze_to, ", ".join(kind.stages)
        rule = f"freeze_to of {self.name} must be one of {names}, or empty"
        require(not stage or stage in kind.stages, rule, stage)
        rule = "freeze_to must be empty with weights: none (frozen noise learns nothing)"
        require(not stage or self.weights != "none", rule, stage)
        rule = f"weights must be none or a file for {self.name}, which nobody trained on ImageNet"
        require(kind.library != "own" or self.weights != "imagenet", rule, self.weights)
        rule = f"side must be at least {kind.least_side} px for {self.name}"
        require(not self.side or self.side >= kind.least_side, rule, self.side)

    @property
    def input_side(self) -> int:
        """Side of the square input in px."""
        return self.side or known(self.name).side


@dataclass(frozen=True)
class FusionConfig:
    """A fusion network; the defaults are the report's best.

    Args:
        head: 1fc or 2fc.
        nets: names of the networks, each one once.
        classes: number of logits.
        weights: imagenet or none, for all networks; or one of each network's own, by its name:
            imagenet, none, or a file of weights (.safetensors, or .pth of tensors only).
        freeze_to: of some networks, by name, the stage up to which they keep their initial weights,
            BatchNorm statistics included; empty trains everything. One stage without a name is
            that of all networks.
        dropout: before the last layer of each network.
        hidden_relu: a ReLU between the two layers of 2fc.
        side: side of the square input in px, the same for all networks.
    """

    head: str = "2fc"
    nets: tuple[str, ...] = ("resnet18", "densenet121", "inception_v3")
    classes: int = 2
    weights: str | dict[str, str] = "imagenet"
    freeze_to: str | dict[str, str] = ""
    dropout: float = 0.0
    hidden_relu: bool = True
    side: int = 299

    def __post_init__(self) -> None:
        require_one_of(self, head=HEADS)
        names = ", ".join(self.nets)
        rule = "nets must be different names, one at least"
        require(0 < len(self.nets) == len(set(self.nets)), rule, self.nets)
        if isinstance(self.weights, str):
            rule = "weights must be imagenet or none, or name → imagenet, none or a file"
            require(self.weights in ("imagenet", "none"), rule, self.weights)
        else:
            rule, given = f"weights by name must be for each of {names}", ", ".join(self.weights)
            require(set(self.weights) == set(self.nets), rule, given or "none")
        odd = set(self.freeze_to) - set(self.nets) if isinstance(self.freeze_to, dict) else set()
        require(not odd, f"freeze_to by name must be of {names}", ", ".join(sorted(odd)))
        least = max(known(name).least_side for name in self.nets)
        require(self.side >= least, f"side must be at least {least} px for {names}", self.side)
        require_at_least(self, classes=1)
        self.parts()  # what one of them refuses is said before a film is read

    def parts(self) -> dict[str, BackboneConfig]:
        """The configuration of each network, by its name."""
        start, stage = self.weights, self.freeze_to
        return {
            name: BackboneConfig(
                name,
                self.outputs,
                start if isinstance(start, str) else start[name],
                stage if isinstance(stage, str) else stage.get(name, ""),
                dropout=self.dropout,
            )
            for name in self.nets
        }

    @property
    def input_side(self) -> int:
        """Side of the square input in px."""
        return self.side

    @property
    def outputs(self) -> int:
        """What each network gives to the head."""
        return self.classes if self.head == "1fc" else FEATURES


@dataclass(frozen=True)
class CXRNetConfig:
    """A CXRNet, small enough for two cores at 96 to 128 px.

    Args:
        classes: number of logits.
        width: channels at the film's own resolution; each stage doubles them, up to 8 times.
        depth: stages of each encoder; each but the first halves the resolution.
        dropout: before each linear layer.
        first: weight of the first encoder's own cross-entropy.
        area: weight of the map's mean.
        smooth: weight of the map's total variation, in map units a pixel.
        side: side of the square input in px, for those who prepare films; the network takes any.
    """

    classes: int = 2
    width: int = 12
    depth: int = 5
    dropout: float = 0.0
    first: float = 0.5
    area: float = 0.3
    smooth: float = 0.1
    side: int = 128

    def __post_init__(self) -> None:
        require_at_least(self, classes=1, width=1)
        require(2 <= self.depth <= 7, "depth must lie between 2 and 7", self.depth)
        require_share(self, "dropout", below=1)
        require_not_negative(self, "first", "area", "smooth")
        rule = f"side must be at least {self.least_side} px with depth {self.depth}"
        require(self.side >= self.least_side, rule, self.side)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, fine to coarse."""
        return tuple(self.width * min(1 << stage, _WIDEST) for stage in range(self.depth))

    @property
    def least_side(self) -> int:
        """Side in px of the smallest film that leaves the last stage two places a side."""
        return 2 << (self.depth - 1)

    @property
    def input_side(self) -> int:
        """Side of the square input in px."""
        return self.side


NetworkConfig = BackboneConfig | FusionConfig | CXRNetConfig


@dataclass(frozen=True)
class MemberConfig:
    """The network of one member.

    Args:
        encoder: any encoder of segmentation-models-pytorch, or `tu-NAME` for one of timm's.
        weights: imagenet, none, or a file of weights (.safetensors, or .pth of tensors only).
        neck_channels: a 1x1 convolution to this many channels between encoder and pooling; 0 for
            none. 1280 takes the ImageNet-trained one of EfficientNet-Lite along.
        dropout: before the last linear layer.
        decoder_channels: widths of the decoder blocks, coarse to fine. Five restore the film at the
            input's resolution; four at half of it, for about half of the decoder's time.
        freeze_stages: the stem and this many stages stay at their initial weights, BatchNorm
            statistics included; 0 trains everything. Halves the time of training on a CPU.
        frozen_batchnorm: BatchNorm of the encoder keeps its initial statistics.
    """

    encoder: str = "densenet121"
    weights: str = "imagenet"
    neck_channels: int = 0
    dropout: float = 0.2
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    freeze_stages: int = 0
    frozen_batchnorm: bool = False

    def __post_init__(self) -> None:
        require_share(self, "dropout", below=1)
        widths, rule = self.decoder_channels, "decoder_channels must be one to five positive widths"
        require(1 <= len(widths) <= 5 and min(widths) >= 1, rule, widths)
        rule = "freeze_stages must be 0 with weights: none (frozen noise learns nothing)"
        require(not self.freeze_stages or self.weights != "none", rule, self.freeze_stages)


@dataclass(frozen=True)
class UnetCbamConfig:
    """The network that restores.

    Args:
        name: unet_cbam (widths 32 to 512) or unet_cbam_small (16 to 256): the name under which its
            encoder can be fine-tuned; another name needs widths.
        widths: channels of the encoder's stages, each at half the size of the one before; empty
            takes the name's.
        norm: group (Wu & He 2018, arXiv 1803.08494: no statistics of distorted films go along into
            the classifier) or batch; the named encoders of classifiers have group.
        attention: CBAM in the skip paths; false leaves plain skips.
        reduction: of CBAM's hidden layer.
        kernel: side of CBAM's spatial convolution.
    """

    name: str = "unet_cbam"
    widths: tuple[int, ...] = ()
    norm: str = "group"
    attention: bool = True
    reduction: int = 16
    kernel: int = 7

    def __post_init__(self) -> None:
        rule = f"name must be {' or '.join(UNET_WIDTHS)}, or widths be given"
        require(bool(self.widths) or self.name in UNET_WIDTHS, rule, self.name)
        require_one_of(self, norm=NORMS)
        widths, rule = self.stage_widths, "widths must be two or more positive numbers"
        require(len(widths) >= 2 and min(widths) >= 1, rule, self.widths)
        require_at_least(self, reduction=1)

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of each stage of the encoder."""
        return self.widths or UNET_WIDTHS[self.name]
