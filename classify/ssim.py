"""The structural similarity of two pictures, in torch: as a measure and as a loss.

Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity":
luminance, contrast and structure are compared in a Gaussian window (11 × 11, σ 1.5) at every place
where the whole window lies on the picture, and the mean over the places is the figure.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03  # of pixels in [0, 1]


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM of each pair: a, b (N, C, H, W) → (N,), at most 1, and 1 for equal pictures alone.
    Computed in float32 at least: variances are differences of squares, which half precision has not
    the digits for. Raises ValueError for shapes that differ, that are not (N, C, H, W), or that are
    smaller than the window."""
    return ssim_map(a, b).mean((1, 2, 3))


def ssim_of(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two pictures (h, w) in [0, 1], in the precision that they have."""
    return float(ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None]))


def ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 − SSIM, averaged over the batch: a scalar in [0, 2]."""
    return 1 - ssim(a, b).mean()


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM at every place of the window: a, b (N, C, H, W) → (N, C, H − 10, W − 10)."""
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[-2:]) < WINDOW:
        raise ValueError(
            f"a and b must be (N, C, H, W) of one shape, at least {WINDOW} px a side. "
            f"Got {tuple(a.shape)} and {tuple(b.shape)} instead."
        )
    with torch.autocast(a.device.type, enabled=False):
        kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        a, b = a.to(kind), b.to(kind)
        parts = _smooth(torch.stack([a, b, a * a, b * b, a * b]).flatten(0, 2)[:, None])
        mean_a, mean_b, aa, bb, ab = parts.view(5, *a.shape[:2], *parts.shape[-2:]).unbind()
        var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
        c1, c2 = K1**2, K2**2
        light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        return light * (2 * cov + c2) / (var_a + var_b + c2)


def _smooth(planes: Tensor) -> Tensor:
    """(M, 1, H, W) under the Gaussian window, without padding: one axis after the other."""
    places = torch.arange(WINDOW, device=planes.device, dtype=planes.dtype) - WINDOW // 2
    line = torch.exp(-0.5 * (places / SIGMA) ** 2)
    line = line / line.sum()
    return F.conv2d(F.conv2d(planes, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))
