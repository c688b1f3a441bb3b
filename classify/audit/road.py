"""Deletion and insertion after ROAD: does the answer hang on the pixels that the map points at?

Remove and Debias (Rong et al. 2022, arXiv 2202.00449): a share of a film's pixels is taken away by
noisy linear imputation (classify.audit.impute), the most relevant first (MoRF) or the least
relevant first (LeRF), and the member answers again. Where the map tells the truth, the
probability of the explained class falls faster for MoRF than for random pixels, and slower for
LeRF. What is taken away is measured, so the film left is no film of a patient: read the curves
beside each other, never one alone.

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

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from classify.audit.impute import NOISE, impute
from classify.saliency.hooks import check_classes, check_logits, left_as_found, on_device_of
from cxr.stats import Figure, mean_figure

PERCENTILES = (20, 40, 60, 80)
ORDERS = ("morf", "lerf", "random")
_REACH = 3  # cells beyond the map, so that its edge is as any other place


@dataclass(frozen=True)
class RoadPoint:
    """Mean probabilities with `percentile` % of the pixels taken away, over n films.

    `morf`, `lerf` and `random` are the probabilities that are left, as the audit page draws them;
    the `_fall`s are those from `before`, the mean probability of the same films as they are. None
    without films. `flat` films are left out: their map is the same everywhere.
    """

    percentile: float
    morf: float | None
    lerf: float | None
    random: float | None
    before: float | None
    n: int
    flat: int

    @property
    def morf_fall(self) -> float | None:
        """Mean fall of the probability, the most relevant pixels gone."""
        return _fall(self.before, self.morf)

    @property
    def lerf_fall(self) -> float | None:
        """The least relevant pixels gone."""
        return _fall(self.before, self.lerf)

    @property
    def random_fall(self) -> float | None:
        """The pixels gone that a random map points at."""
        return _fall(self.before, self.random)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON and the audit page."""
        falls = {f"{name}_fall": getattr(self, f"{name}_fall") for name in ORDERS}
        return {**asdict(self), **falls}


@dataclass(frozen=True, eq=False)
class RoadFilms:
    """Probabilities film by film: `before` (N,) as they are, `left` by order (P, N) float64, NaN
    for films with a flat map."""

    percentiles: tuple[float, ...]
    before: np.ndarray
    left: dict[str, np.ndarray]

    @property
    def flat(self) -> np.ndarray:
        """(N,) bool: films whose map orders nothing."""
        return np.isnan(self.left["morf"][0])

    def points(self) -> list[RoadPoint]:
        """The curves, one point a percentile."""
        used = ~self.flat
        n, flat = int(used.sum()), int((~used).sum())
        if not n:
            return [RoadPoint(p, None, None, None, None, 0, flat) for p in self.percentiles]
        before = float(self.before[used].mean())
        means = {name: left[:, used].mean(1).tolist() for name, left in self.left.items()}
        return [
            RoadPoint(p, means["morf"][k], means["lerf"][k], means["random"][k], before, n, flat)
            for k, p in enumerate(self.percentiles)
        ]

    def area(
        self,
        patients: Sequence[str],
        upper: str = "lerf",
        lower: str = "morf",
        draws: int = 2000,
        seed: int = 0,
    ) -> Figure:
        """Mean area between two curves with its 95 % interval by patient.

        In units of probability: the mean difference over the share of pixels taken away, by the
        trapezoid rule from 0 to 100 %, where both curves meet: nothing, and everything, is gone in
        any order. Above 0 the map is faithful. `upper="random"` or `lower="random"` gives that
        half of it which one end of the map is worth. Flat films are left out of its n.
        """
        if len(patients) != len(self.before):
            raise ValueError(
                f"patients must name one for each of the {len(self.before)} films. "
                f"Got {len(patients)} instead."
            )
        unknown = [name for name in (upper, lower) if name not in ORDERS]
        if unknown:
            raise ValueError(
                f"upper and lower must be of {', '.join(ORDERS)}. Got {unknown[0]!r} instead."
            )
        share = np.array([0, *self.percentiles, 100]) / 100
        gap = np.pad(self.left[upper] - self.left[lower], ((1, 1), (0, 0)))
        gap[:, self.flat] = np.nan
        return mean_figure(np.trapezoid(gap, share, axis=0), patients, draws, seed)


def road_curves(
    model: nn.Module,
    batch: torch.Tensor,
    maps: np.ndarray,
    classes: Sequence[int],
    percentiles: Sequence[float] = PERCENTILES,
    seed: int = 0,
    batch_size: int = 16,
    **options: Any,
) -> list[RoadPoint]:
    """The points of `road_films`, which takes the same arguments."""
    return road_films(
        model, batch, maps, classes, percentiles, seed, batch_size, **options
    ).points()


def road_films(
    model: nn.Module,
    batch: torch.Tensor,
    maps: np.ndarray,
    classes: Sequence[int],
    percentiles: Sequence[float] = PERCENTILES,
    seed: int = 0,
    batch_size: int = 16,
    films: Sequence[str] | None = None,
    within: np.ndarray | None = None,
    cam_hw: tuple[int, int] = (7, 7),
    noise: float = NOISE,
) -> RoadFilms:
    """Probabilities of each film's class as its pixels are taken away.

    Args:
        model: gives logits (N, K); left as it was found, also after an error.
        batch: (N, 3, h, w), prepared for the model. Not changed.
        maps: (N, h, w) at that size; only the order of their values counts.
        classes: N indices of logits.
        percentiles: shares of the pixels to take away, in per cent.
        seed: with a film's name it seeds its random map and its noise. Global random numbers are
            neither used nor touched.
        batch_size: films a forward pass.
        films: their names; their places where it is None.
        within: (N, h, w) bool, the pixels that belong to the film, such as
            `frame.apply(np.ones(size_hw, np.float32)) > 0.5`; only these are taken away, and shares
            are of them. None for all: LeRF may then begin with padding, which costs nothing.
        cam_hw: resolution at which the maps were made, and the random ones are.
        noise: standard deviation of what is added to imputed pixels.

    Raises ValueError for arguments that do not fit, IndexError for a class without a logit.
    """
    percentiles = tuple(float(p) for p in percentiles)
    names = [str(n) for n in range(len(batch))] if films is None else list(films)
    within = np.ones(np.shape(maps), bool) if within is None else within
    _check(batch, maps, classes, percentiles, names, within)
    before = np.full(len(batch), np.nan)
    left = {name: np.full((len(percentiles), len(batch)), np.nan) for name in ORDERS}
    with left_as_found(model), torch.inference_mode():
        for start in range(0, len(batch), batch_size):
            chunk = range(len(batch))[start : start + batch_size]
            inputs = batch[start : start + batch_size]
            before[chunk.start : chunk.stop] = _probabilities(
                model, inputs, [int(classes[i]) for i in chunk]
            )
            used = [i for i in chunk if not _is_flat(maps[i], within[i])]
            images = inputs.detach().cpu().numpy()
            ordered = [
                _Film(images[i - start], maps[i], within[i], names[i], seed, cam_hw, noise)
                for i in used
            ]
            for name, k, inputs in _perturbed(ordered, percentiles):
                left[name][k, used] = _probabilities(model, inputs, [int(classes[i]) for i in used])
    return RoadFilms(percentiles, before, left)


def join(parts: Sequence[RoadFilms]) -> RoadFilms:
    """Films of several batches as one; raises ValueError where their percentiles differ."""
    found = sorted({p.percentiles for p in parts})
    if len(found) != 1:
        raise ValueError(
            f"parts must be at least one, with the same percentiles. Got {found or 'none'} instead."
        )
    left = {name: np.concatenate([p.left[name] for p in parts], axis=1) for name in ORDERS}
    return RoadFilms(parts[0].percentiles, np.concatenate([p.before for p in parts]), left)


class _Film:
    """One film, the orders in which its pixels go, and its noise: the same for every order and
    share, so that curves differ by what is taken away alone."""

    def __init__(
        self,
        image: np.ndarray,
        plane: np.ndarray,
        within: np.ndarray,
        name: str,
        seed: int,
        cam_hw: tuple[int, int],
        noise: float,
    ) -> None:
        digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        self.image = image.astype(np.float32)
        pixels = np.flatnonzero(within)
        chance = _coarse_noise(rng, cam_hw, plane.shape).ravel()[pixels]
        relevance = np.asarray(plane, float).ravel()[pixels]
        self.orders = {
            "morf": pixels[np.lexsort((chance, -relevance))],
            "lerf": pixels[np.lexsort((chance, relevance))],
            "random": pixels[np.argsort(chance)],
        }
        self.noise = noise * rng.standard_normal(image.shape, np.float32)

    def without(self, order: str, percentile: float) -> np.ndarray:
        pixels = self.orders[order]
        gone = np.zeros(self.image.shape[1:], bool)
        gone.ravel()[pixels[: max(1, round(len(pixels) * percentile / 100))]] = True
        return impute(self.image, gone, self.noise)


def _perturbed(
    films: Sequence[_Film], percentiles: Sequence[float]
) -> Iterator[tuple[str, int, torch.Tensor]]:
    for name in ORDERS if films else ():
        for k, percentile in enumerate(percentiles):
            changed = np.stack([film.without(name, percentile) for film in films])
            yield name, k, torch.from_numpy(changed)


def _probabilities(model: nn.Module, inputs: torch.Tensor, classes: Sequence[int]) -> np.ndarray:
    logits = model(on_device_of(model, inputs)).double()
    check_logits(classes, logits)
    chosen = torch.as_tensor(list(classes), device=logits.device)[:, None]
    return torch.softmax(logits, 1).gather(1, chosen)[:, 0].cpu().numpy()


def _coarse_noise(
    rng: np.random.Generator, cam_hw: tuple[int, int], size_hw: tuple[int, ...]
) -> np.ndarray:
    """(h, w) normal noise blurred by one cell and scaled up, as classify.audit.baselines makes its
    random maps, but not cut at 0: it has to order every pixel."""
    cells = rng.standard_normal((cam_hw[0] + 2 * _REACH, cam_hw[1] + 2 * _REACH))
    blurred = cv2.GaussianBlur(cells, (2 * _REACH + 1, 2 * _REACH + 1), 1.0)
    return cv2.resize(
        blurred[_REACH:-_REACH, _REACH:-_REACH], size_hw[::-1], interpolation=cv2.INTER_LINEAR
    )


def _is_flat(plane: np.ndarray, within: np.ndarray) -> bool:
    values = plane[within]
    return not len(values) or bool(values.min() == values.max())


def _fall(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


def _check(
    batch: torch.Tensor,
    maps: np.ndarray,
    classes: Sequence[int],
    percentiles: Sequence[float],
    names: Sequence[str],
    within: np.ndarray,
) -> None:
    check_classes(classes, len(batch))
    wanted = (len(batch), *batch.shape[2:])
    for name, shape in (("maps", np.shape(maps)), ("within", within.shape)):
        if shape != wanted:
            raise ValueError(
                f"{name} must be (N, h, w) = {wanted}, the input's size. Got {shape} "
                "instead: scale them up first."
            )
    if not np.isfinite(maps).all():
        raise ValueError("maps must be finite. Got NaN or infinity.")
    steps = np.diff([0.0, *percentiles, 100.0])
    if not percentiles or not (steps > 0).all():
        raise ValueError(
            "percentiles must rise, between 0 and 100 without either. Got "
            f"{tuple(percentiles)} instead."
        )
    if len(names) != len(batch):
        raise ValueError(f"films must name each of the {len(batch)} films. Got {len(names)}.")
