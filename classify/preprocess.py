"""From a film's or crop's pixels to what a member sees: one function for training and prediction.

The steps of SCXNN (Kim's thesis): percentile clip, min-max, zero-pad to a square, CLAHE, resize.
The settings belong to the weights, so they are stored in each member's bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from cxr import intensity
from cxr.boxes import Frame
from cxr.rules import require, require_one_of

Array = np.ndarray
FITS = ("pad", "stretch")
CONTRASTS = ("clahe", "hist-equalization", "none")


@dataclass(frozen=True)
class PreprocessConfig:
    """How pixels become a member's input.

    Args:
        side: side of the square input in px.
        clip: percentile clip before min-max; false takes the intensities as they are.
        low_percentile: what lies below this percentile of the film becomes 0.
        high_percentile: what lies above this percentile becomes 1.
        contrast: clahe, hist-equalization or none (the arms of the paper's ablation).
        clahe_clip: clip limit of CLAHE.
        clahe_tiles: CLAHE works in this many tiles along each side.
        work_side: films longer than this many px are shrunk before all else, so that contrast
            steps see films of one scale whatever their resolution; 0 keeps full resolution.
        mean: subtracted from the pixels, which lie in [0, 1], before the network.
        std: divides them afterwards. The encoder's own values: 0.498 and 0.502 for Lite0.
    """

    side: int = 224
    clip: bool = True
    low_percentile: float = 0.5
    high_percentile: float = 99.5
    contrast: str = "none"
    clahe_clip: float = 2.0
    clahe_tiles: int = 8
    work_side: int = 512
    mean: tuple[float, float, float] = (0.498, 0.498, 0.498)
    std: tuple[float, float, float] = (0.502, 0.502, 0.502)

    def __post_init__(self) -> None:
        require_one_of(self, contrast=CONTRASTS)
        require(self.side >= 32, "side must be at least 32 px", self.side)
        require(
            0 <= self.low_percentile < self.high_percentile <= 100,
            "low_percentile must lie below high_percentile, both in [0, 100]",
            (self.low_percentile, self.high_percentile),
        )
        require(min(self.std) > 0, "std must be positive", self.std)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From a bundle's metadata; keys that a newer version added are an error."""
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - names)
        if unknown:
            raise ValueError(
                f"preprocessing holds unknown keys {unknown}: the bundle was made by "
                "another version."
            )
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ForeignPreprocess(PreprocessConfig):
    """That of a classifier which was trained elsewhere.

    Args:
        fit: pad keeps the aspect ratio and pads to the square, as trainings here do; stretch does
            not, as plain resizing to a square.
    """

    fit: str = "pad"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of(self, fit=FITS)


def _stretches(config: PreprocessConfig) -> bool:
    return getattr(config, "fit", "pad") == "stretch"


def frame_of(size_hw: tuple[int, int], config: PreprocessConfig, side: int = 0) -> Frame:
    """The Frame of `preprocess` for pixels of (height, width): maps a saliency map back."""
    side = side or config.side
    if _stretches(config):
        height, width = size_hw
        return Frame((0, 0, width, height), (side, side), (side, side))
    return Frame.letterbox(size_hw, side, centre=True)


def preprocess(pixels: Array, config: PreprocessConfig, side: int = 0) -> Array:
    """(H, W) float32 in [0, 1] to (side, side) float32 in [0, 1], aspect ratio kept, padded with 0.
    `side` overrides the configuration's (the training cache is a little larger than the input).
    Raises ValueError for pixels that are not a finite (H, W) array in [0, 1]: a wrong range would
    give a wrong answer without a word."""
    intensity.check_pixels(pixels, "preprocess")
    ready, long_side = pixels, max(pixels.shape)
    if config.work_side and long_side > config.work_side:
        height, width = (max(1, round(n * config.work_side / long_side)) for n in pixels.shape)
        ready = intensity.resize(pixels, (height, width))
    if config.clip:
        ready = intensity.percentile_clip(ready, config.low_percentile, config.high_percentile)
        ready = intensity.min_max(ready)
    target = side or config.side
    if config.contrast == "none":
        letterbox = frame_of((ready.shape[0], ready.shape[1]), config, target)
        return np.clip(letterbox.apply(ready), 0.0, 1.0)
    # contrast is taken on the padded square, as in the thesis, so the air beside counts as black
    square = ready if _stretches(config) else intensity.pad_square(ready)
    if config.contrast == "clahe":
        square = intensity.clahe(square, config.clahe_clip, config.clahe_tiles)
    else:
        square = intensity.equalize(square)
    return intensity.resize(square, (target, target))


def preprocess_all(pixels: Sequence[Array], config: PreprocessConfig) -> tuple[Array, list[Frame]]:
    """N films or crops (H, W) to (N, 1, side, side) float32 in [0, 1], and the Frames that lead
    from it back to each film's or crop's pixels."""
    images = np.zeros((len(pixels), 1, config.side, config.side), np.float32)
    for n, own in enumerate(pixels):
        images[n, 0] = preprocess(own, config)
    return images, [frame_of((p.shape[0], p.shape[1]), config) for p in pixels]


def to_input(images: Any, config: PreprocessConfig) -> Any:
    """Tensors (N, 1, side, side) in [0, 1] to the encoder's normalised (N, 3, side, side)."""
    import torch  # late: settings and `preprocess` need none of it

    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))
    ready = (images.expand(-1, 3, -1, -1) - mean) / std
    return ready.contiguous(memory_format=torch.channels_last)


def from_input(batch: Any, config: PreprocessConfig) -> Any:
    """`to_input` undone: (N, 3, side, side) to (N, 1, side, side) in [0, 1]."""
    return (batch[:, :1] * config.std[0] + config.mean[0]).clamp(0, 1)
