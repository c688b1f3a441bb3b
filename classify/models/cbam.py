"""CBAM: which channels, then which places of a network's maps matter.

Woo et al. 2018, "CBAM: Convolutional Block Attention Module", arXiv 1807.06521.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and positive. Got {kernel} instead.")
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
