"""Pictures of a pretraining: its curves, and films distorted and restored."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from classify.genesis import NAMES, TRANSFORMS, GenesisConfig, distort
from classify.models.unet_cbam import UnetCbam
from classify.ssim import ssim
from cxr import draw
from cxr.workdir import write_atomic

# What the panels show: each distortion alone, then all four at once (more than training ever does).
PANELS: dict[str, tuple[str, ...]] = {
    **{name: (kind,) for kind, name in NAMES.items()},
    "all four": tuple(TRANSFORMS),
}


def draw_losses(history: Sequence[dict[str, float]], path: Path) -> Path:
    """The loss of each epoch, and as a dashed line that of the distorted films themselves."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    epochs = [int(r["epoch"]) + 1 for r in history]
    for key, name in (("train_loss", "training"), ("val_loss", "validation")):
        axis.plot(epochs, [r.get(key, np.nan) for r in history], marker=".", label=name)
    axis.plot(
        epochs,
        [r["val_untouched"] for r in history],
        color="grey",
        linestyle="--",
        label="distorted films as they are",
    )
    axis.set(xlabel="epoch", ylabel="1 − SSIM", ylim=(0, None))
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    FigureCanvasAgg(figure)  # drawn without pyplot: no global state, no window
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return write_atomic(path, buffer.getvalue())


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
