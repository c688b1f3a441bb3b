"""Deletion and insertion after ROAD: does the answer hang on the pixels that the map points at?

Remove and Debias (Rong et al. 2022, arXiv 2202.00449): a share of a film's pixels is taken away by
noisy linear imputation, the most relevant first (MoRF) or the least relevant first (LeRF), and the
member answers again. Where the map tells the truth, the probability of the explained class falls
faster for MoRF than for random pixels, and slower for LeRF. What is taken away is measured, so the
film left is no film of a patient: read the curves beside each other, never one alone.

The probability is the softmax of the member's own logits, as decisions are made of it. Where it
is near 0 it cannot fall: `before` stands beside each point, and films that show the class, or the
classes answered, are the ones to give.

Three things differ from `pytorch_grad_cam.metrics.road`. A percentile is the share of pixels taken
away, as in the paper; the library's is the share that stays. Exactly that share goes: the library
cuts at a value, and of a CAM with half its pixels at 0, LeRF at "20 %" takes away that half. And
the random map is as coarse as the map that is judged: single random pixels are filled in from
their neighbours without a loss, and any blob would look faithful beside them. It also settles which
of equal pixels go first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from classify.audit.metrics import coarse_noise, film_seed
from classify.audit.rows import Row
from classify.saliency.hooks import check_classes, check_logits, left_as_found, on_device_of
from cxr.stats import Figure, mean_figure

PERCENTILES = (20.0, 40.0, 60.0, 80.0)
ORDERS = ("morf", "lerf", "random")
NOISE = 0.01  # standard deviation, in the unit of the prepared input; the library's
_AT_A_TIME = 16  # films a forward pass

_NEIGHBOURS = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]], np.float32) / 12
_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 8
_SUPPORT = np.ones((5, 5), np.uint8)  # what one coarse pixel reaches
_TOLERANCE = 1e-5  # of the right hand side's norm
_STEPS = 500  # far more than the forty or so it takes


@dataclass(frozen=True, eq=False)
class RoadFilms:
    """Probabilities `before` (N,), and `left` by order (P, N) float64, NaN for flat maps."""

    percentiles: tuple[float, ...]
    before: np.ndarray
    left: dict[str, np.ndarray]

    @property
    def flat(self) -> np.ndarray:
        """(N,) bool: films whose map orders nothing."""
        return np.isnan(self.left["morf"][0])

    def points(self) -> list[Row]:
        """The curves, one row a percentile. `morf`, `lerf` and `random` are the mean probabilities
        that are left over n films, each `…_fall` that from `before`, the mean probability of the
        same films as they are; None without films. `flat` films are left out."""
        used = ~self.flat
        counts = {"n": int(used.sum()), "flat": int(self.flat.sum())}
        if not used.any():
            names = (*ORDERS, "before", *(f"{name}_fall" for name in ORDERS))
            return [{"percentile": p, **dict.fromkeys(names), **counts} for p in self.percentiles]
        before = float(self.before[used].mean())
        rows: list[Row] = []
        for k, percentile in enumerate(self.percentiles):
            left = {name: float(self.left[name][k, used].mean()) for name in ORDERS}
            falls = {f"{name}_fall": before - value for name, value in left.items()}
            rows.append({"percentile": percentile, **left, "before": before, **counts, **falls})
        return rows

    def area(
        self,
        patients: Sequence[str],
        upper: str = "lerf",
        lower: str = "morf",
        draws: int = 2000,
        seed: int = 0,
    ) -> Figure:
        """Mean area between two curves of ORDERS with its 95 % interval by patient. In units of
        probability: the mean difference over the share of pixels taken away, by the trapezoid rule
        from 0 to 100 %, where both curves meet. Above 0 the map is faithful. With one of the two
        "random", that half of it which one end of the map is worth. Flat films are left out of its
        n."""
        share = np.array([0, *self.percentiles, 100]) / 100
        gap = np.pad(self.left[upper] - self.left[lower], ((1, 1), (0, 0)))
        gap[:, self.flat] = np.nan
        return mean_figure(np.trapezoid(gap, share, axis=0), patients, draws, seed)


def road_films(
    model: nn.Module,
    batch: Tensor,
    maps: np.ndarray,
    classes: Sequence[int],
    percentiles: Sequence[float] = PERCENTILES,
    seed: int = 0,
    films: Sequence[str] | None = None,
    within: np.ndarray | None = None,
    cam_hw: tuple[int, int] = (7, 7),
    noise: float = NOISE,
) -> RoadFilms:
    """Probabilities of each film's class, of N indices of logits, as its pixels are taken away.

    `model` gives logits (N, K) for `batch` (N, 3, h, w) and is left as it was found; of the `maps`
    (N, h, w), finite, only the order of the values counts. `percentiles` are the shares of the
    pixels to take away, in per cent, of those `within` (N, h, w) bool that belong to the film (None
    for all: LeRF may then begin with padding, which costs nothing). `seed` with a film's name (its
    place without one) seeds its random map, as coarse as `cam_hw`, and its `noise`, of that
    standard deviation; global random numbers are not touched. Raises ValueError unless there is a
    class a film, IndexError for a class without a logit."""
    names = [str(n) for n in range(len(batch))] if films is None else list(films)
    within = np.ones(np.shape(maps), bool) if within is None else within
    check_classes(classes, len(batch))
    before = np.full(len(batch), np.nan)
    left = {name: np.full((len(percentiles), len(batch)), np.nan) for name in ORDERS}
    with left_as_found(model), torch.inference_mode():
        for start in range(0, len(batch), _AT_A_TIME):
            places = range(len(batch))[start : start + _AT_A_TIME]
            wanted = [int(classes[i]) for i in places]
            before[places] = _probabilities(model, batch[places.start : places.stop], wanted)
            used = [i for i in places if within[i].any() and np.ptp(maps[i][within[i]]) > 0]
            if not used:
                continue
            images = batch[used].detach().cpu().numpy().astype(np.float32)
            asked = [int(classes[i]) for i in used]
            drawn = [_orders(maps[i], within[i], film_seed(names[i], seed), cam_hw) for i in used]
            noises = [noise * rng.standard_normal(images.shape[1:], np.float32) for _, rng in drawn]
            for name in ORDERS:
                for k, percentile in enumerate(percentiles):
                    changed = [
                        impute(image, _gone(orders[name], percentile, image.shape[1:]), added)
                        for image, (orders, _), added in zip(images, drawn, noises, strict=True)
                    ]
                    inputs = torch.from_numpy(np.stack(changed))
                    left[name][k, used] = _probabilities(model, inputs, asked)
    return RoadFilms(tuple(float(p) for p in percentiles), before, left)


def _orders(
    plane: np.ndarray, within: np.ndarray, seed: int, cam_hw: tuple[int, int]
) -> tuple[dict[str, np.ndarray], np.random.Generator]:
    """The orders in which a film's pixels go, and the numbers for its noise: the same for every
    order and share, so that curves differ by what is taken away alone. The random map is that of
    the audit, scaled up but not cut at 0: it has to order every pixel."""
    rng = np.random.default_rng(seed)
    cells = coarse_noise(rng, 1, cam_hw)[0]
    coarse = cv2.resize(cells, plane.shape[::-1], interpolation=cv2.INTER_LINEAR)
    pixels = np.flatnonzero(within)
    chance, relevance = coarse.ravel()[pixels], np.asarray(plane, float).ravel()[pixels]
    orders = {
        "morf": pixels[np.lexsort((chance, -relevance))],
        "lerf": pixels[np.lexsort((chance, relevance))],
        "random": pixels[np.argsort(chance)],
    }
    return orders, rng


def _gone(order: np.ndarray, percentile: float, size_hw: tuple[int, ...]) -> np.ndarray:
    """(h, w) bool: the first so many per cent of the pixels."""
    gone = np.zeros(size_hw, bool)
    gone.ravel()[order[: max(1, round(len(order) * percentile / 100))]] = True
    return gone


def _probabilities(model: nn.Module, inputs: Tensor, classes: Sequence[int]) -> np.ndarray:
    logits = model(on_device_of(model, inputs)).double()
    check_logits(classes, logits)
    chosen = torch.as_tensor(list(classes), device=logits.device)[:, None]
    return torch.softmax(logits, 1).gather(1, chosen)[:, 0].cpu().numpy()


# --- noisy linear imputation: not even the outline of what was taken away may tell where it was


def impute(image: np.ndarray, gone: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """A copy of `image` (C, h, w) float32 with the pixels `gone` (h, w) bool imputed.

    A pixel that is taken away becomes the weighted mean of its eight neighbours (sides 1/6, corners
    1/12), those taken away too included; so all of them are the solution of one linear system.
    Pixels merely blacked out would leave the shape of the map, which can give the class away.

    `pytorch_grad_cam.metrics.road.NoisyLinearImputer` factorises that system. Here conjugate
    gradients solve the same system, preconditioned by the sum of coarser and coarser scales
    (Bramble, Pasciak and Xu 1990): eight to ten times as fast at 224 px, and within 1e-3 of the
    library's pixels, a tenth of the noise.

    `noise` (C, h, w) is added to what is imputed. Channels that are equal, as those of a film are,
    are solved once. A pixel must be left to impute from."""
    out = np.array(image, np.float32)
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

    def precondition(rest: np.ndarray) -> np.ndarray:
        fine = rest / weights
        return (fine + _coarse(rest, scales) if scales else fine) * hole

    x, rest = np.zeros_like(right), right.copy()
    direction = precondition(rest)
    product = _dot(rest, direction)
    enough = _TOLERANCE**2 * _dot(right, right)
    for _ in range(_STEPS):
        if _dot(rest, rest) <= enough:
            return x + middle
        image = (weights * direction - _neighbours(direction)) * hole
        step = product / _dot(direction, image)
        x += step * direction
        rest -= step * image
        z = precondition(rest)
        before, product = product, _dot(rest, z)
        direction = z + product / before * direction
    return _direct(plane, gone)


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
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    known = torch.from_numpy((~gone).astype(np.float32))
    return NoisyLinearImputer(noise=0.0)(torch.from_numpy(plane[None]), known)[0].numpy()


def _neighbours(plane: np.ndarray) -> np.ndarray:
    return cv2.filter2D(plane, -1, _NEIGHBOURS, borderType=cv2.BORDER_CONSTANT)


def _blur(plane: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(plane, -1, _BINOMIAL, _BINOMIAL, borderType=cv2.BORDER_CONSTANT)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b))
