"""One factory for the single networks of the papers, all of one form, so that they compare.

    net = build_backbone(BackboneConfig("resnet50", classes=3, freeze_to="layer2"))
    logits = net(films)  # (N, 3, side, side) normalised by IMAGENET_MEAN, IMAGENET_STD → (N, 3)

A network is its body up to the last maps (N, C, h, w), global mean pooling, dropout and linear
layers. So any input size will do, the class activation map has its closed form, and the wide layers
that VGG has behind its maps are left out (as in Keras with include_top=False, pooling="avg"), as
are the auxiliary heads of GoogLeNet and InceptionV3. All networks take the same normalised input:
those that were trained on another range rescale it themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from classify.models.bodies import KNOWN, Known, build_body, known, parts_to
from classify.models.start_weights import load_start_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BACKBONES: tuple[str, ...] = tuple(KNOWN)


@dataclass(frozen=True)
class BackboneConfig:
    """One classifying network.

    Args:
        name: one of BACKBONES.
        classes: number of logits.
        weights: imagenet, none, or a file of weights (.safetensors, or .pth of tensors only).
        freeze_to: this stage and all before it keep their initial weights, BatchNorm statistics
            included; empty trains everything. `stages_of(name)` lists them.
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
        kind, stages = known(self.name), stages_of(self.name)
        if self.classes < 1 or self.extra_fc < 0:
            raise ValueError(
                "classes must be at least 1 and extra_fc not negative. "
                f"Got {self.classes} and {self.extra_fc} instead."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1). Got {self.dropout} instead.")
        if self.freeze_to and self.freeze_to not in stages:
            raise ValueError(
                f"freeze_to of {self.name} must be one of {', '.join(stages)}, or "
                f"empty. Got {self.freeze_to!r} instead."
            )
        if self.freeze_to and self.weights == "none":
            raise ValueError(
                "freeze_to must be empty with weights: none (frozen noise learns "
                f"nothing). Got {self.freeze_to!r} instead."
            )
        if kind.library == "own" and self.weights == "imagenet":
            raise ValueError(
                f"weights must be none or a file for {self.name}, which nobody "
                "trained on ImageNet. Got 'imagenet' instead."
            )
        if self.side and self.side < kind.least_side:
            raise ValueError(
                f"side must be at least {kind.least_side} px for {self.name}. "
                f"Got {self.side} instead."
            )

    @property
    def input_side(self) -> int:
        """Side of the square input in px."""
        return self.side or known(self.name).side


class Backbone(nn.Module):
    """Body, global mean pooling, linear head, with random weights; `build_backbone` loads them."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        kind = known(config.name)
        self.body = build_body(config.name)
        width = kind.width
        self.head = nn.Sequential()
        if config.extra_fc:
            self.head.append(nn.Dropout(config.dropout))
            self.head.append(nn.Linear(width, config.extra_fc)).append(nn.ReLU())
            width = config.extra_fc
        self.head.append(nn.Dropout(config.dropout)).append(nn.Linear(width, config.classes))
        scale, shift = _rescaling(kind)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self._frozen: list[nn.Module] = []
        self.freeze_to(config.freeze_to)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, h, w), normalised by IMAGENET_MEAN and IMAGENET_STD, to (N, classes) logits."""
        return self.head(self.maps(x).mean((2, 3)))

    def maps(self, x: Tensor) -> Tensor:
        """(N, C, h', w'): what the head pools."""
        return self.body(x * self.scale + self.shift)

    @property
    def encoder(self) -> nn.Module:
        """The pretrained part, which may learn at a rate of its own."""
        return self.body

    @property
    def saliency_layer(self) -> nn.Module:
        """The module whose output (N, C, h', w') is pooled."""
        return self.body

    def freeze_to(self, stage: str) -> None:
        """Freeze this stage and all before it, and nothing else; empty frees everything."""
        self.requires_grad_(True)
        parts = parts_to(self.body, known(self.config.name).stages, stage) if stage else []
        self._frozen = [self.body.get_submodule(part) for part in parts]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As usual, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def build_backbone(config: BackboneConfig) -> Backbone:
    """A network with its initial weights; errors (ValueError, ConnectionError, ImportError) name
    the remedy."""
    net = Backbone(config)
    kind = known(config.name)
    load_start_weights(net.body, kind.name or config.name, kind.library, config.weights)
    return net.to(memory_format=torch.channels_last)


def stages_of(name: str) -> tuple[str, ...]:
    """Names of a network's stages from the input on, for `freeze_to`."""
    return tuple(known(name).stages)


def check_name(name: str) -> None:
    """Raises ValueError, with the names there are, for an unknown one."""
    known(name)


def least_side(name: str) -> int:
    """Side in px of the smallest input that leaves a network something to pool."""
    return known(name).least_side


def _rescaling(kind: Known) -> tuple[Tensor, Tensor]:
    """(1, 3, 1, 1) factor and summand from ImageNet's normalisation to the network's own."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    if kind.mean is None:
        return torch.ones_like(mean), torch.zeros_like(mean)
    return std / kind.std, (mean - kind.mean) / kind.std
