"""A U-Net with attention (CBAM) in its skip paths, which restores distorted films.

    net = UnetCbam(UnetCbamConfig())
    restored = net(films)  # (N, 1, H, W) in [0, 1] → the same shape, in (0, 1)

Its encoder is a body of `classify.models.backbones` (`unet_cbam`, `unet_cbam_small`): what it has
learnt by restoring becomes the start of a classifier.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classify.models.cbam import CBAM

# The encoders that classifiers know by name. The small one is a quarter of the work.
WIDTHS: dict[str, tuple[int, ...]] = {
    "unet_cbam": (32, 64, 128, 256, 512),
    "unet_cbam_small": (16, 32, 64, 128, 256),
}
NORMS = ("group", "batch")
_GROUPS = 8


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
        if not self.widths and self.name not in WIDTHS:
            raise ValueError(
                f"name must be {' or '.join(WIDTHS)}, or widths be given. "
                f"Got {self.name!r} instead."
            )
        if self.norm not in NORMS:
            raise ValueError(f"norm must be {' or '.join(NORMS)}. Got {self.norm!r} instead.")
        if len(self.stage_widths) < 2 or min(self.stage_widths) < 1:
            raise ValueError(f"widths must be two or more positive numbers. Got {self.widths}.")
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1. Got {self.reduction} instead.")

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of each stage of the encoder."""
        return self.widths or WIDTHS[self.name]


class UnetCbam(nn.Module):
    """Encoder; CBAM on each skip; decoder with bilinear steps; sigmoid."""

    def __init__(self, config: UnetCbamConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.stage_widths
        self.encoder = build_encoder(widths, config.norm)
        self.skips = nn.ModuleList(
            CBAM(w, config.reduction, config.kernel) if config.attention else nn.Identity()
            for w in widths[:-1]
        )
        # narrowed before it is enlarged, where that costs a quarter
        self.narrow = nn.ModuleList(
            nn.Conv2d(deep, shallow, 1) for shallow, deep in itertools.pairwise(widths)
        )
        self.decoder = nn.ModuleList(_two_convs(2 * w, w, config.norm) for w in widths[:-1])
        self.last = nn.Conv2d(widths[0], 1, 1)

    def forward(self, films: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to (N, 1, H, W) in (0, 1); H and W at least 2 ^ (stages − 1)."""
        maps = (films.expand(-1, 3, -1, -1) - 0.5) / 0.5
        seen = []
        for stage in self.encoder:
            maps = stage(maps)
            seen.append(maps)
        for level in reversed(range(len(self.skips))):
            skip = self.skips[level](seen[level])
            maps = F.interpolate(
                self.narrow[level](maps), size=skip.shape[-2:], mode="bilinear", align_corners=False
            )
            maps = self.decoder[level](torch.cat([maps, skip], 1))
        return torch.sigmoid(self.last(maps))


def build_encoder(widths: tuple[int, ...], norm: str = "group") -> nn.Sequential:
    """(N, 3, H, W) to (N, widths[-1], H / 2 ^ (n − 1), …), in the stages stage1 to stage n."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inner, outer) in enumerate(itertools.pairwise((3, *widths)), 1):
        stage = _two_convs(inner, outer, norm)
        stages[f"stage{number}"] = (
            stage if number == 1 else nn.Sequential(nn.MaxPool2d(2), *stage.children())
        )
    return nn.Sequential(stages)


def _two_convs(inner: int, outer: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inner, outer):
        conv = nn.Conv2d(channels, outer, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, _norm(outer, norm), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _norm(channels: int, norm: str) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = next(g for g in range(min(_GROUPS, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)
