"""The bodies of the networks that `backbones` builds: from the pixels to the last maps, by name."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import timm
import torchvision.models as tv
from torch import nn

from classify.models.unet_cbam import WIDTHS, build_encoder

_RESNET = {"stem": "conv1", **{f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}}
_DENSENET = {"stem": "conv0", **{f"denseblock{i}": f"denseblock{i}" for i in (1, 2, 3, 4)}}
_BASELINE_WIDTHS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Known:
    """A network: its name in a library, the channels of its last maps, its stages (name → the part
    of the body with which the stage begins, in order), and what it was trained on."""

    library: str
    name: str
    width: int
    stages: dict[str, str]
    side: int = 224
    least_side: int = 32
    mean: float | None = None  # of the pixels it was trained on; None for ImageNet's three
    std: float = 0.5


def _blocks(*starts: int) -> dict[str, str]:
    return {f"block{i}": str(start) for i, start in enumerate(starts, 1)}


KNOWN: dict[str, Known] = {
    "baseline_cnn": Known("own", "", 256, _blocks(0, 1, 2, 3)),
    # pretrained by classify.pretrain only; their pixels come as there, from −1 to 1
    **{
        name: Known(
            "own", "", widths[-1], {f"stage{i}": f"stage{i}" for i in range(1, 6)}, 128, mean=0.5
        )
        for name, widths in WIDTHS.items()
    },
    "vgg16": Known("torchvision", "vgg16", 512, _blocks(0, 5, 10, 17, 24)),
    "vgg19": Known("torchvision", "vgg19", 512, _blocks(0, 5, 10, 19, 28)),
    "googlenet": Known(
        "torchvision",
        "googlenet",
        1024,
        {"stem": "conv1", **{f"inception{i}": f"inception{i}a" for i in (3, 4, 5)}},
        mean=0.5,
    ),
    "resnet18": Known("torchvision", "resnet18", 512, _RESNET),
    "resnet50": Known("torchvision", "resnet50", 2048, _RESNET),
    "densenet121": Known("torchvision", "densenet121", 1024, _DENSENET),
    "densenet169": Known("torchvision", "densenet169", 1664, _DENSENET),
    "densenet201": Known("torchvision", "densenet201", 1920, _DENSENET),
    "efficientnet_b2": Known(
        "torchvision",
        "efficientnet_b2",
        1408,
        {"stem": "0", **{f"stage{i}": str(i) for i in range(1, 8)}, "top": "8"},
        288,
    ),
    "efficientnet_lite0": Known(
        "timm",
        "tf_efficientnet_lite0",
        1280,
        {
            "stem": "conv_stem",
            **{f"stage{i + 1}": f"blocks.{i}" for i in range(7)},
            "top": "conv_head",
        },
        mean=0.498,
        std=0.502,
    ),
    "mobilenet": Known(
        "timm",
        "mobilenetv1_100",
        1024,
        {"stem": "conv_stem", **{f"stage{i + 1}": f"blocks.{i}" for i in range(5)}},
        mean=0.5,
    ),
    "mobilenet_v2": Known(
        "torchvision",
        "mobilenet_v2",
        1280,
        {"stem": "0", "stage1": "2", "stage2": "4", "stage3": "7", "stage4": "14", "top": "18"},
    ),
    "inception_v3": Known(
        "torchvision",
        "inception_v3",
        2048,
        {"stem": "Conv2d_1a_3x3", "mixed5": "Mixed_5b", "mixed6": "Mixed_6a", "mixed7": "Mixed_7a"},
        299,
        75,
        0.5,
    ),
    "xception": Known(
        "timm",
        "legacy_xception",
        2048,
        {"stem": "conv1", "entry": "block1", "middle": "block4", "exit": "block12"},
        299,
        71,
        0.5,
    ),
    "inception_resnet_v2": Known(
        "timm",
        "inception_resnet_v2",
        1536,
        {
            "stem": "conv2d_1a",
            "block35": "mixed_5b",
            "block17": "mixed_6a",
            "block8": "mixed_7a",
            "top": "conv2d_7b",
        },
        299,
        75,
        0.5,
    ),
}


def known(name: str) -> Known:
    """What is known of a network; raises ValueError, with the names there are, for another."""
    if name not in KNOWN:
        raise ValueError(f"name must be one of {', '.join(KNOWN)}. Got {name!r} instead.")
    return KNOWN[name]


def build_body(name: str) -> nn.Sequential:
    """Everything from the pixels to the last maps, under the library's own names."""
    kind = known(name)
    if name == "baseline_cnn":
        widths = (3, *_BASELINE_WIDTHS)
        return nn.Sequential(*(_block(a, b) for a, b in itertools.pairwise(widths)))
    if name in WIDTHS:
        return build_encoder(WIDTHS[name])
    if name.startswith("vgg"):  # without the 120 million weights behind the maps
        layers = tv.vgg.make_layers(tv.vgg.cfgs["D" if name == "vgg16" else "E"])
        for module in layers:
            if isinstance(module, nn.Conv2d):  # as torchvision's VGG does
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        return layers
    if kind.library == "timm":
        return _chain(
            timm.create_model(kind.name, num_classes=0).named_children(),
            ("global_pool", "head_drop", "classif", "classifier", "fc"),
        )
    plain: dict[str, object] = (
        {"aux_logits": False, "init_weights": True}
        if "inception" in name or name == "googlenet"
        else {}
    )
    net = tv.get_model(kind.name, weights=None, **plain)
    if name.startswith("densenet"):
        return _chain([*net.features.named_children(), ("relu5", nn.ReLU(inplace=True))])
    if hasattr(net, "features"):
        return net.features
    return _chain(net.named_children(), ("avgpool", "dropout", "fc", "AuxLogits", "aux1", "aux2"))


def _chain(parts: Iterable[tuple[str, nn.Module]], leave: tuple[str, ...] = ()) -> nn.Sequential:
    """Parts one after the other, which is how these networks run."""
    kept = [(name, part) for name, part in parts if name not in leave]
    return nn.Sequential(OrderedDict(kept))


def _block(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


def parts_to(body: nn.Module, stages: dict[str, str], last: str) -> list[str]:
    """Dotted names of the body's parts up to the end of the stage `last`."""
    parts = []
    for name, part in body.named_children():
        inner = [f"{name}.{k}" for k, _ in part.named_children()] if name == "blocks" else [name]
        parts += inner
    names = list(stages)
    if last not in names:
        raise ValueError(f"stage must be one of {', '.join(names)}. Got {last!r} instead.")
    after = names.index(last) + 1
    return parts if after == len(names) else parts[: parts.index(stages[names[after]])]
