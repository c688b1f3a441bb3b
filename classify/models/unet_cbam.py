"""A U-Net with attention (CBAM) in its skip paths, which restores distorted films.

    net = UnetCbam(UnetCbamConfig())
    restored = net(films)  # (N, 1, H, W) in [0, 1] → the same shape, in (0, 1)

Its encoder is a body of `classify.models.backbones` (`unet_cbam`, `unet_cbam_small`): what it has
learnt by restoring becomes the start of a classifier. CBAM tells which channels, then which places
of a network's maps matter (Woo et al. 2018, "CBAM: Convolutional Block Attention Module", arXiv
1807.06521).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classify.models.settings import UnetCbamConfig
from cxr.rules import require

_GROUPS = 8


class ChannelAttention(nn.Module):
    """One weight a channel: a small network, shared by the mean and the maximum over all places.

    Args:
        channels: C of the maps.
        reduction: its hidden layer has C / reduction units, 16 in the paper, but at least 4: of
            one or two ReLUs in a narrow net all can fall silent for good.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to weights (N, C, 1, 1) in (0, 1)."""
        both = self.mlp(maps.mean((2, 3))) + self.mlp(maps.amax((2, 3)))
        return torch.sigmoid(both)[:, :, None, None]


class SpatialAttention(nn.Module):
    """One weight a place: a convolution over the mean and the maximum of all channels."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        require(kernel > 0 and kernel % 2 == 1, "kernel must be odd and positive", kernel)
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to weights (N, 1, h, w) in (0, 1)."""
        both = torch.cat([maps.mean(1, keepdim=True), maps.amax(1, keepdim=True)], 1)
        return torch.sigmoid(self.conv(both))


class CBAM(nn.Module):
    """Maps times their channel weights, then times the place weights of the result."""

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention(kernel)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape, nowhere larger in size than before."""
        maps = maps * self.channel(maps)
        return maps * self.spatial(maps)


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
        groups = next(g for g in range(min(_GROUPS, outer), 0, -1) if outer % g == 0)
        scaled = nn.BatchNorm2d(outer) if norm == "batch" else nn.GroupNorm(groups, outer)
        layers += [conv, scaled, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
