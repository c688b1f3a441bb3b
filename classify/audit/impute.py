"""Noisy linear imputation: pixels taken away so that not even their outline tells where they were.

ROAD (Rong et al. 2022, arXiv 2202.00449): a pixel that is taken away becomes the weighted mean of
its eight neighbours (sides 1/6, corners 1/12), those taken away too included; so all of them are
the solution of one linear system. Pixels merely blacked out would leave the shape of the map, which
can give the class away.

`pytorch_grad_cam.metrics.road.NoisyLinearImputer` factorises that system. Here conjugate gradients
solve the same system, preconditioned by the sum of coarser and coarser scales (Bramble, Pasciak
and Xu 1990): eight to ten times as fast at 224 px, and within 1e-3 of the library's pixels, a
tenth of the noise.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer

NOISE = 0.01  # standard deviation, in the unit of the prepared input; the library's

_NEIGHBOURS = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]], np.float32) / 12
_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 8
_SUPPORT = np.ones((5, 5), np.uint8)  # what one coarse pixel reaches
_TOLERANCE = 1e-5  # of the right hand side's norm
_STEPS = 500  # far more than the forty or so it takes


def impute(image: np.ndarray, gone: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """A copy of `image` (C, h, w) float32 with the pixels `gone` (h, w) bool imputed.

    `noise` (C, h, w) is added to what is imputed. Channels that are equal, as those of a film are,
    are solved once. Raises ValueError for shapes that do not fit, or where every pixel is gone.
    """
    if image.ndim != 3 or gone.shape != image.shape[1:] or gone.dtype != bool:
        raise ValueError(
            "image must be (C, h, w) and gone (h, w) bool. Got "
            f"{image.shape} and {gone.shape} {gone.dtype} instead."
        )
    if gone.all():
        raise ValueError("gone must leave a pixel to impute from. Got all of them.")
    out = np.array(image, np.float32)
    if not gone.any():
        return out
    for channel, plane in enumerate(image):
        if channel and np.array_equal(plane, image[0]):
            out[channel, gone] = out[0, gone]
        else:
            out[channel, gone] = _solve(np.asarray(plane, np.float32), gone)[gone]
    if noise is not None:
        out[:, gone] += noise[:, gone]
    return out


def _solve(plane: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """(h, w) float32; only its pixels under `gone` mean anything."""
    hole = gone.astype(np.float32)
    weights = _neighbours(np.ones_like(plane))  # 1, less at the film's edge
    scales = _scales(gone)
    # about the mean of what is known: a constant is then solved exactly
    middle = np.float32(plane[~gone].mean())
    right = _neighbours((plane - middle) * (1 - hole)) * hole
    x, rest = np.zeros_like(right), right.copy()
    z = _precondition(rest, weights, scales) * hole
    direction, product = z.copy(), _dot(rest, z)
    enough = _TOLERANCE**2 * _dot(right, right)
    for _ in range(_STEPS):
        if _dot(rest, rest) <= enough:
            return x + middle
        image = (weights * direction - _neighbours(direction)) * hole
        step = product / _dot(direction, image)
        x += step * direction
        rest -= step * image
        z = _precondition(rest, weights, scales) * hole
        before, product = product, _dot(rest, z)
        direction = z + product / before * direction
    return _direct(plane, gone)


def _precondition(rest: np.ndarray, weights: np.ndarray, scales: list[np.ndarray]) -> np.ndarray:
    z = rest / weights
    return z + _coarse(rest, scales) if scales else z


def _coarse(rest: np.ndarray, scales: list[np.ndarray]) -> np.ndarray:
    # not cv2.pyrDown and pyrUp: at the film's edge one is not the other's transpose
    small = _blur(rest)[::2, ::2] * scales[0]
    if len(scales) > 1:
        small = small + _coarse(small, scales[1:])
    spread = np.zeros_like(rest)
    spread[::2, ::2] = small * scales[0]
    return _blur(spread)


def _scales(gone: np.ndarray) -> list[np.ndarray]:
    """Masks of the coarse pixels, finest first, whose reach lies wholly in the hole: a coarse
    correction must leave the known pixels as they are."""
    out, hole = [], gone.astype(np.uint8)
    while min(hole.shape) >= 8:
        inner = cv2.erode(hole, _SUPPORT, borderType=cv2.BORDER_CONSTANT, borderValue=1)
        hole = np.ascontiguousarray(inner[::2, ::2])
        if not hole.any():
            break
        out.append(hole.astype(np.float32))
    return out


def _direct(plane: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The library's factorisation, should conjugate gradients not arrive."""
    known = torch.from_numpy((~gone).astype(np.float32))
    return NoisyLinearImputer(noise=0.0)(torch.from_numpy(plane[None]), known)[0].numpy()


def _neighbours(plane: np.ndarray) -> np.ndarray:
    return cv2.filter2D(plane, -1, _NEIGHBOURS, borderType=cv2.BORDER_CONSTANT)


def _blur(plane: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(plane, -1, _BINOMIAL, _BINOMIAL, borderType=cv2.BORDER_CONSTANT)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b))
