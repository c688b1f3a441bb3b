"""The head that tells views apart, on the features of the lung field's network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class ViewHead(nn.Module):
    """(N, C, G, G) features to (N, classes + 1) logits: one for each class, the last for mirrored.

    Two halvings by depthwise convolutions, then mean and maximum over the picture.
    """

    def __init__(self, channels: int, classes: int, width: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *_halve(width, 2 * width),
            *_halve(2 * width, 2 * width),
        )
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(4 * width, classes + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.last(self.dropout(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)))


def _halve(channels: int, wider: int) -> list[nn.Module]:
    spread = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
    return [spread, nn.Conv2d(channels, wider, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]


def answer(head: nn.Module, features: np.ndarray) -> np.ndarray:
    """(N, C, G, G) features to (N, classes + 1) logits."""
    with torch.inference_mode():
        return head(torch.from_numpy(features).float()).numpy()
