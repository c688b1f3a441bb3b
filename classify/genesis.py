"""The four distortions of Models Genesis in 2D, from which a network learns to restore a film.

    kinds = draw_kinds(config, rng)             # at most three of the four
    seen = distort(film, kinds, config, rng)    # (H, W) float32 in [0, 1] → the same

Written from the paper (Zhou et al. 2019, "Models Genesis: Generic Autodidactic Models for 3D
Medical Image Analysis", arXiv 1908.06912), whose patches are 3D. All functions are pure: they copy,
and all chance comes from the generator that is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cxr.intensity import check_pixels
from cxr.rules import require, require_at_least, require_one_of, require_share

_POINTS = 512  # of the intensity curve: finer than the 256 greys of a film


@dataclass(frozen=True)
class GenesisConfig:
    """How often and how strongly films are distorted; probabilities and limits are the paper's.

    Args:
        intensity: probability of the non-linear intensity curve.
        reverse: probability that this curve falls (white becomes black).
        shuffle: probability of local pixel shuffling.
        shuffle_windows: windows in each of which the pixels are shuffled, one after the other. Of
            sides up to a tenth, 300 cover a film about once, as the paper's cover its 3D patches.
        shuffle_side: longest side of these windows as a fraction of the film's side.
        paint: probability of in-painting or out-painting (never both).
        inpaint_share: share of in-painting among them; out-painting takes the rest.
        windows: in- and out-painting lay at most so many windows over each other.
        inpaint_sides: shortest and longest side of a painted window, as fractions of the side.
        outpaint_sides: of a window that is kept.
        most_painted: largest share of the film that may be painted over.
        fill: constant (one random grey for all that is painted) or noise (one for each pixel).
    """

    intensity: float = 0.9
    reverse: float = 0.5
    shuffle: float = 0.5
    shuffle_windows: int = 300
    shuffle_side: float = 0.1
    paint: float = 0.9
    inpaint_share: float = 0.2
    windows: int = 10
    inpaint_sides: tuple[float, float] = (1 / 6, 1 / 3)
    outpaint_sides: tuple[float, float] = (0.5, 0.9)
    most_painted: float = 0.25
    fill: str = "constant"

    def __post_init__(self) -> None:
        require_share(self, "intensity", "reverse", "shuffle", "paint")
        require_share(self, "inpaint_share", "most_painted")
        for name in ("inpaint_sides", "outpaint_sides"):
            low, high = getattr(self, name)
            rule = f"{name} must be two fractions in (0, 1], the shorter first"
            require(0 < low <= high <= 1, rule, (low, high))
        require(0 < self.shuffle_side <= 1, "shuffle_side must lie in (0, 1]", self.shuffle_side)
        require_at_least(self, shuffle_windows=0, windows=1)
        require_one_of(self, fill=("constant", "noise"))


def draw_kinds(config: GenesisConfig, rng: np.random.Generator) -> tuple[str, ...]:
    """The names of the distortions of one film, in the order in which they are made.

    In- and out-painting exclude each other, so there are at most three, and seldom none.
    """
    chances = rng.random(4)  # always four, so that one probability never shifts another's draws
    kinds = []
    if chances[0] < config.intensity:
        kinds.append("intensity")
    if chances[1] < config.shuffle:
        kinds.append("shuffle")
    if chances[2] < config.paint:
        kinds.append("inpaint" if chances[3] < config.inpaint_share else "outpaint")
    return tuple(kinds)


def distort(
    film: np.ndarray, kinds: Sequence[str], config: GenesisConfig, rng: np.random.Generator
) -> np.ndarray:
    """These distortions of TRANSFORMS, one after the other."""
    check_pixels(film, "distort")
    seen = film.astype(np.float32)
    for kind in kinds:
        seen = TRANSFORMS[kind](seen, config, rng)
    return seen


def change_intensity(
    film: np.ndarray, config: GenesisConfig, rng: np.random.Generator
) -> np.ndarray:
    """Every grey through a random monotone curve, which falls with the probability `reverse`.

    To undo it, the network must know how dense each organ is.
    """
    reverse = rng.random() < config.reverse
    x, y = bezier_curve(rng.random((2, 2)), reverse)
    return np.interp(film, x, y).astype(np.float32)


def bezier_curve(controls: np.ndarray, reverse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A cubic Bézier curve from (0, 0) to (1, 1), or from (0, 1) to (1, 0) with `reverse`.

    `controls` (2, 2) holds the two inner points (x, y) in [0, 1]: inside the unit square both
    coordinates of such a curve are monotone, so it is a function of x. Returns x (rising) and y.
    """
    ends = np.array([[0.0, 1.0], [1.0, 0.0]] if reverse else [[0.0, 0.0], [1.0, 1.0]])
    points = np.stack([ends[0], *controls, ends[1]])
    t = np.linspace(0.0, 1.0, _POINTS)
    weights = np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1)
    x, y = np.clip(weights @ points, 0.0, 1.0).T  # rounding alone leaves [0, 1]
    return np.maximum.accumulate(x), y


def shuffle_pixels(film: np.ndarray, config: GenesisConfig, rng: np.random.Generator) -> np.ndarray:
    """The pixels of many small windows, each shuffled inside its window: texture goes, shape stays.

    To undo it, the network must know edges and texture.
    """
    out = film.copy()
    most = [max(1, round(n * config.shuffle_side)) for n in film.shape]
    sides = rng.integers(1, [m + 1 for m in most], (config.shuffle_windows, 2))
    corners = rng.integers(0, np.array(film.shape) - sides + 1)
    for (top, left), (height, width) in zip(corners.tolist(), sides.tolist(), strict=True):
        window = out[top : top + height, left : left + width]
        pixels = window.ravel()  # a copy, or all of the window where it is one row
        rng.shuffle(pixels)
        window[:] = pixels.reshape(height, width)
    return out


def paint_inside(film: np.ndarray, config: GenesisConfig, rng: np.random.Generator) -> np.ndarray:
    """Some windows painted over: the network must continue what stands round them."""
    painted = np.zeros(film.shape, bool)
    limit = config.most_painted * film.size
    for _ in range(int(rng.integers(1, config.windows + 1))):
        more = painted.copy()
        more[_draw_window(film.shape, config.inpaint_sides, rng)] = True
        if more.sum() > limit:
            break
        painted = more
    return _fill(film, painted, config, rng)


def paint_outside(film: np.ndarray, config: GenesisConfig, rng: np.random.Generator) -> np.ndarray:
    """All but some windows painted over: the network must know the body beyond what it sees."""
    kept = np.zeros(film.shape, bool)
    wanted = int(rng.integers(1, config.windows + 1))
    least = (1 - config.most_painted) * film.size
    for number in range(config.windows):
        kept[_draw_window(film.shape, config.outpaint_sides, rng)] = True
        if number + 1 >= wanted and kept.sum() >= least:
            break
    if kept.sum() < least:  # the windows were too small: a last one that is large enough
        side = float(np.sqrt(1 - config.most_painted))
        kept[_draw_window(film.shape, (side, side), rng)] = True
    return _fill(film, ~kept, config, rng)


def _draw_window(
    shape: tuple[int, ...], sides: tuple[float, float], rng: np.random.Generator
) -> tuple[slice, slice]:
    """A window whose height and width are drawn apart, anywhere on the film."""
    fractions = rng.uniform(*sides, 2)
    height, width = (
        min(n, max(1, int(np.ceil(f * n)))) for f, n in zip(fractions, shape, strict=True)
    )
    top, left = int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def _fill(
    film: np.ndarray, painted: np.ndarray, config: GenesisConfig, rng: np.random.Generator
) -> np.ndarray:
    """Random grey where `painted`."""
    grey = rng.random(film.shape if config.fill == "noise" else (), dtype=np.float32)
    return np.where(painted, grey, film).astype(np.float32)


Transform = Callable[[np.ndarray, GenesisConfig, np.random.Generator], np.ndarray]
TRANSFORMS: dict[str, Transform] = {
    "intensity": change_intensity,
    "shuffle": shuffle_pixels,
    "inpaint": paint_inside,
    "outpaint": paint_outside,
}
NAMES = {
    "intensity": "intensity curve",
    "shuffle": "local shuffling",
    "inpaint": "in-painting",
    "outpaint": "out-painting",
}
