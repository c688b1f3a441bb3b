"""Training pictures of the single networks: the papers' geometric changes, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import albumentations as A
import numpy as np

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Geometry:
    """How far a picture may be changed.

    Attributes:
        rotate: degrees, to both sides.
        shift_x: fraction of the width.
        shift_y: fraction of the height.
        zoom: fraction, in and out; the aspect ratio stays.
        mirror: probability of exchanging left and right.
    """

    rotate: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    zoom: float = 0.0
    mirror: float = 0.0


# affine and rotate are the two-stage report's. The deck names its four changes but no strengths:
# those of `geometric` are a moderate choice.
AUGMENTS: dict[str, Geometry | None] = {
    "none": None,
    "affine": Geometry(rotate=20, shift_x=0.15, shift_y=0.20),
    "rotate": Geometry(rotate=30),
    "geometric": Geometry(rotate=10, shift_x=0.1, shift_y=0.1, zoom=0.1, mirror=0.5),
}


def build_change(name: str, seed: int = 0) -> Change | None:
    """A function of a picture (S, S) uint8 to a changed one of the same size, with black where
    nothing was; None for `none`."""
    geometry = AUGMENTS[name]
    if geometry is None:
        return None
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
    return lambda picture: steps(image=picture)["image"]
