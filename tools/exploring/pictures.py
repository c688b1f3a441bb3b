"""Mean films, what tells two means apart, and how much the films of a class vary: as data URIs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import cv2
import numpy as np

from cxr.draw import encode_jpeg, to_data_uri
from exploring.entries import FilmClass
from exploring.gather import Moments

QUALITY = 88
# Okabe and Ito's blue and vermilion: told apart by colour-blind readers, and of one lightness
FIRST, SECOND = np.array([213.0, 94.0, 0.0]), np.array([0.0, 114.0, 178.0])


@dataclass(frozen=True)
class ClassPictures:
    """The mean and the variance of one class."""

    film_class: FilmClass
    n: int
    mean: str
    variance: str


@dataclass(frozen=True)
class Difference:
    """Two classes' means held against each other; `most` is the largest difference in [0, 1]."""

    source: str
    first: str
    second: str
    n: tuple[int, int]
    most: float
    mean: float
    picture: str


def class_pictures(moments: Mapping[FilmClass, Moments]) -> tuple[list[ClassPictures], float]:
    """Mean and variance pictures of all classes that have films, and the variance that is drawn
    brightest: one scale for all, so that classes can be compared."""
    some = {c: m for c, m in moments.items() if m.n}
    top = max((float(m.variance.max()) for m in some.values()), default=0.0)
    return [
        ClassPictures(c, m.n, grey_uri(m.mean), heat_uri(m.variance, top)) for c, m in some.items()
    ], top


def differences(moments: Mapping[FilmClass, Moments]) -> tuple[list[Difference], float]:
    """Means against each other inside each source, label against label and part against part of a
    label; and the difference that is drawn in full colour, one scale for all."""
    found: list[tuple[str, str, str, Moments, Moments]] = []
    for source in dict.fromkeys(c.source for c in moments):
        own = {c: m for c, m in moments.items() if c.source == source and m.n}
        labels = list(dict.fromkeys(c.label for c in own))
        groups = {
            label or "no label": _sum(m for c, m in own.items() if c.label == label)
            for label in labels
        }
        found += _pairs(source, groups)
        for label in labels:
            found += _pairs(
                source, {c.kind: m for c, m in own.items() if c.label == label and c.kind}
            )
    planes = [b.mean - a.mean for _, _, _, a, b in found]
    top = max((float(np.abs(p).max()) for p in planes), default=0.0)
    out = []
    for (source, first, second, a, b), p in zip(found, planes, strict=True):
        most, mean = float(np.abs(p).max()), float(np.abs(p).mean())
        out.append(Difference(source, first, second, (a.n, b.n), most, mean, signed_uri(p, top)))
    return out, top


def grey_uri(plane: np.ndarray) -> str:
    """(H, W) in [0, 1] as a grey picture."""
    return to_data_uri(encode_jpeg(np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8), QUALITY))


def heat_uri(plane: np.ndarray, top: float) -> str:
    """(H, W) ≥ 0 in inferno colours, `top` the brightest."""
    share = np.clip(plane / top, 0, 1) if top > 0 else np.zeros_like(plane)
    bgr = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return to_data_uri(encode_jpeg(np.ascontiguousarray(bgr[..., ::-1]), QUALITY))


def signed_uri(plane: np.ndarray, top: float) -> str:
    """(H, W) with sign: white is 0, full blue +`top`, full vermilion −`top`."""
    return to_data_uri(encode_jpeg(to_colours(plane, top), QUALITY))


def to_colours(plane: np.ndarray, top: float) -> np.ndarray:
    """`signed_uri`'s uint8 RGB (H, W, 3)."""
    share = np.clip(plane / top, -1, 1)[..., None] if top > 0 else np.zeros((*plane.shape, 1))
    colour = np.where(share > 0, SECOND, FIRST)
    return np.rint(255 + np.abs(share) * (colour - 255)).astype(np.uint8)


def _pairs(
    source: str, groups: Mapping[str, Moments]
) -> list[tuple[str, str, str, Moments, Moments]]:
    names = list(groups)
    return [
        (source, a, b, groups[a], groups[b]) for i, a in enumerate(names) for b in names[i + 1 :]
    ]


def _sum(moments: Iterable[Moments]) -> Moments:
    return reduce(add, moments, Moments())
