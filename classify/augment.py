"""Training pictures: the thesis' shift, rotation, gamma, sharpening, blur and Gaussian noise.

A cached film is a little larger than the input when the thorax box is jittered (`box_jitter`): the
middle of the cache is the crop itself, so a shift shows what really lies beside it, not black.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import albumentations as A
import cv2
import numpy as np

Augment = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths; 0 switches a step off.

    Args:
        shift: largest shift as a fraction of the side.
        scale: largest zoom in and out, as a fraction.
        aspect: largest stretch of one side against the other, as a fraction.
        rotate: largest rotation in degrees.
        flip: probability of mirroring left and right (puts the heart on the wrong side).
        gamma: largest change of gamma, as a fraction.
        brightness: largest change of brightness and contrast, as a fraction.
        sharpen: probability of sharpening.
        blur: probability of a Gaussian blur.
        noise: probability of Gaussian noise.
        noise_std: largest standard deviation of that noise; 1 is the whole intensity range.
        box_jitter: crops only: how far each edge of the thorax box may be off, as a fraction of
            its side, as a detector's is. Adds to shift, scale and aspect, with real surroundings.
    """

    shift: float = 0.05
    scale: float = 0.05
    aspect: float = 0.0
    rotate: float = 10.0
    flip: float = 0.0
    gamma: float = 0.2
    brightness: float = 0.0
    sharpen: float = 0.2
    blur: float = 0.2
    noise: float = 0.3
    noise_std: float = 0.04
    box_jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "sharpen", "blur", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} must be a probability in [0, 1]. Got {getattr(self, name)} instead."
                )
        for name in ("shift", "scale", "aspect", "gamma", "brightness", "box_jitter"):
            if not 0 <= getattr(self, name) < 0.5:
                raise ValueError(
                    f"{name} must be a fraction in [0, 0.5). Got {getattr(self, name)} instead."
                )


def cache_side(side: int, config: AugmentConfig, crops: bool) -> int:
    """Side of a cached training picture whose middle is the input: room for the box jitter."""
    return round(side * (1 + 2 * config.box_jitter)) if crops else side


def build_augment(config: AugmentConfig, side: int, crops: bool, seed: int = 0) -> Augment:
    """A function of a cached picture and its mask, both (S, S) uint8, to both at (side, side).

    The geometric steps are the same for both; the mask is resampled by nearest neighbour.
    """
    jitter = config.box_jitter if crops else 0.0
    shift, scale = config.shift + jitter, config.scale + jitter
    aspect = config.aspect + jitter
    steps = A.Compose(
        [
            A.Affine(
                scale={"x": (1 - aspect / 2, 1 + aspect / 2), "y": (1 - aspect / 2, 1 + aspect / 2)}
                if aspect
                else (1.0, 1.0),
                p=1.0 if aspect else 0.0,
            ),
            A.Affine(
                scale=(1 - scale, 1 + scale),
                translate_percent=(-shift, shift),
                rotate=(-config.rotate, config.rotate),
                p=1.0 if shift or scale or config.rotate else 0.0,
            ),
            A.CenterCrop(side, side),
            A.HorizontalFlip(p=config.flip),
            A.RandomGamma(_percent(config.gamma), p=0.5 if config.gamma else 0.0),
            A.RandomBrightnessContrast(
                config.brightness, config.brightness, p=0.5 if config.brightness else 0.0
            ),
            A.Sharpen(alpha=(0.1, 0.4), p=config.sharpen),
            A.GaussianBlur(blur_limit=(3, 5), p=config.blur),
            A.GaussNoise(std_range=(0.0, config.noise_std), p=config.noise),
        ],
        seed=seed,
    )

    def augment(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = steps(image=image, mask=mask)
        return out["image"], out["mask"]

    return augment


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """The middle (side, side) of a cached picture: what it is without augmentation."""
    top, left = ((n - side) // 2 for n in image.shape)
    return image[top : top + side, left : left + side]


def dilate(mask: np.ndarray, kernel: int) -> np.ndarray:
    """A mask grown by an elliptic kernel of that many px, as SCXNN does; 0 leaves it."""
    if not kernel:
        return mask
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (kernel, kernel))
    return cv2.dilate(mask, ellipse)


def _percent(gamma: float) -> tuple[int, int]:
    return round(100 / (1 + gamma)), round(100 * (1 + gamma))
