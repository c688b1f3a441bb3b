"""The picture of a pretraining: films distorted and restored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from classify.genesis import NAMES, TRANSFORMS, GenesisConfig, distort
from classify.models.unet_cbam import UnetCbam
from classify.ssim import ssim
from cxr import draw

# What the panels show: each distortion alone, then all four at once (more than training ever does).
PANELS: dict[str, tuple[str, ...]] = {
    **{name: (kind,) for kind, name in NAMES.items()},
    "all four": tuple(TRANSFORMS),
}


def restored_sheet(
    net: UnetCbam,
    films: Sequence[np.ndarray],
    config: GenesisConfig,
    seed: int = 0,
    tile: int = 160,
) -> np.ndarray:
    """Films (S, S) float32 in [0, 1], each in two rows: distorted, and under that restored.

    A column a panel of PANELS, before them the film itself and what the net makes of it; captions
    say the SSIM with the original. The net must be in evaluation mode. Returns uint8 RGB.
    """
    tiles, captions = [], []
    for number, film in enumerate(films):
        rngs = [np.random.default_rng([seed, number, column]) for column in range(len(PANELS))]
        seen = [film] + [
            distort(film, kinds, config, rng)
            for kinds, rng in zip(PANELS.values(), rngs, strict=True)
        ]
        batch = torch.from_numpy(np.stack(seen))[:, None]
        truth = torch.from_numpy(film)[None, None].expand_as(batch)
        with torch.inference_mode():
            restored = net(batch.to(next(net.parameters()).device)).float().cpu()
        for row, pictures in (("", batch), ("restored, ", restored)):
            tiles += [draw.to_rgb(p[0].numpy()) for p in pictures]
            likeness = ssim(pictures, truth).tolist()
            heads = [row or f"{name}, " for name in PANELS]
            first = f"restored, SSIM {likeness[0]:.2f}" if row else "original"
            captions += [
                first,
                *(f"{h}SSIM {v:.2f}" for h, v in zip(heads, likeness[1:], strict=True)),
            ]
    return draw.sheet(tiles, captions, columns=1 + len(PANELS), tile=tile)
