"""Training pictures: the thesis' changes for members (shift, rotation, gamma, sharpening, blur,
noise), and the geometric ones of the papers' single networks, by name.

A cached film is a little larger than the input when the thorax box is jittered (`box_jitter`): the
middle of the cache is the crop itself, so a shift shows what really lies beside it, not black.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from cxr.rules import require_share

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
        require_share(self, "flip", "sharpen", "blur", "noise")
        fractions = ("shift", "scale", "aspect", "gamma", "brightness", "box_jitter")
        require_share(self, *fractions, below=0.5)


class Geometry(NamedTuple):
    """How far a picture may be changed: degrees to both sides, fractions of width and height, zoom
    in and out (the aspect ratio stays), and the probability of exchanging left and right."""

    rotate: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    zoom: float = 0.0
    mirror: float = 0.0


# affine and rotate are the two-stage report's. The dataset deck says «geometric transforms» alone:
# those of `geometric` and their strengths are a moderate choice.
AUGMENTS: dict[str, Geometry | None] = {
    "none": None,
    "affine": Geometry(rotate=20, shift_x=0.15, shift_y=0.20),
    "rotate": Geometry(rotate=30),
    "geometric": Geometry(rotate=10, shift_x=0.1, shift_y=0.1, zoom=0.1, mirror=0.5),
}


def cache_side(side: int, config: AugmentConfig, crops: bool) -> int:
    """Side of a cached training picture whose middle is the input: room for the box jitter."""
    return round(side * (1 + 2 * config.box_jitter)) if crops else side


def build_augment(config: AugmentConfig, side: int, crops: bool, seed: int = 0) -> Augment:
    """A function of a cached picture (S, S) and its masks (S, S) or (S, S, n), uint8, to both at
    (side, side).

    The geometric steps are the same for all; masks are resampled by nearest neighbour.
    """
    import albumentations as A  # late: settings need none of it

    jitter = config.box_jitter if crops else 0.0
    shift, scale = config.shift + jitter, config.scale + jitter
    aspect = config.aspect + jitter
    gamma = round(100 / (1 + config.gamma)), round(100 * (1 + config.gamma))
    steps = A.Compose(
        [
            A.Affine(
                scale={axis: (1 - aspect / 2, 1 + aspect / 2) for axis in "xy"},
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
            A.RandomGamma(gamma, p=0.5 if config.gamma else 0.0),
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
    top, left = ((n - side) // 2 for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def dilate(mask: np.ndarray, kernel: int) -> np.ndarray:
    """A mask grown by an elliptic kernel of that many px, as SCXNN does; 0 leaves it."""
    if not kernel:
        return mask
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (kernel, kernel))
    return cv2.dilate(mask, ellipse)


def build_change(name: str, seed: int = 0) -> Augment | None:
    """A function of a picture (S, S) uint8 and its masks to both changed alike, of the same size,
    with black where nothing was; None for `none`."""
    geometry = AUGMENTS[name]
    if geometry is None:
        return None
    import albumentations as A

    affine = A.Affine(
        rotate=(-geometry.rotate, geometry.rotate),
        translate_percent={
            "x": (-geometry.shift_x, geometry.shift_x),
            "y": (-geometry.shift_y, geometry.shift_y),
        },
        scale=(1 - geometry.zoom, 1 + geometry.zoom),
        keep_ratio=True,
        p=1.0,
    )
    steps = A.Compose([affine, A.HorizontalFlip(p=geometry.mirror)], seed=seed)

    def change(picture: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = steps(image=picture, mask=masks)
        return out["image"], out["mask"]

    return change
