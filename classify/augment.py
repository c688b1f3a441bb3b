"""How pictures are changed for training: the thesis' changes for members (shift, rotation, gamma,
sharpening, blur, noise); the geometric ones of the papers' single networks, by name; distortions to
be restored; and the surroundings of another film.

A cached film is a little larger than the input when the thorax box is jittered (`box_jitter`): the
middle of the cache is the crop itself, so a shift shows what really lies beside it, not black.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from cxr.intensity import check_pixels
from cxr.rules import require, require_at_least, require_not_negative, require_one_of, require_share

_POINTS = 512  # of the intensity curve: finer than the 256 greys of a film
_OF = 224  # px of the square input that the two figures below are for
_RIM, _SOFT = 9, 3.0  # px: the lung's rim counts as lung; how softly a picture is joined
Array = np.ndarray
Rng = np.random.Generator
Augment = Callable[[Array, Array], tuple[Array, Array]]


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
    (side, side). Geometric steps are the same for all; masks are resampled by nearest neighbour."""
    import albumentations as A  # late: settings need none of it

    jitter = config.box_jitter if crops else 0.0
    shift, scale = config.shift + jitter, config.scale + jitter
    aspect, bright = config.aspect + jitter, config.brightness
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
            A.RandomBrightnessContrast(bright, bright, p=0.5 if bright else 0.0),
            A.Sharpen(alpha=(0.1, 0.4), p=config.sharpen),
            A.GaussianBlur(blur_limit=(3, 5), p=config.blur),
            A.GaussNoise(std_range=(0.0, config.noise_std), p=config.noise),
        ],
        seed=seed,
    )

    return _of_both(steps)


def _of_both(steps: Any) -> Augment:
    def change(image: Array, masks: Array) -> tuple[Array, Array]:
        out = steps(image=image, mask=masks)
        return out["image"], out["mask"]

    return change


def centre(image: Array, side: int) -> Array:
    """The middle (side, side) of a cached picture: what it is without augmentation."""
    top, left = ((n - side) // 2 for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def dilate(mask: Array, kernel: int) -> Array:
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
    return _of_both(A.Compose([affine, A.HorizontalFlip(p=geometry.mirror)], seed=seed))


# --- the four distortions of Models Genesis in 2D, from which a network learns to restore a film:
# written from the paper (Zhou et al. 2019, "Models Genesis: Generic Autodidactic Models for 3D
# Medical Image Analysis", arXiv 1908.06912), whose patches are 3D. All functions are pure: they
# copy, and all chance comes from the generator that is given.


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


def draw_kinds(config: GenesisConfig, rng: Rng) -> tuple[str, ...]:
    """The names of the distortions of one film, in the order in which they are made. In- and
    out-painting exclude each other, so there are at most three, and seldom none."""
    chances = rng.random(4)  # always four, so that one probability never shifts another's draws
    kinds = []
    if chances[0] < config.intensity:
        kinds.append("intensity")
    if chances[1] < config.shuffle:
        kinds.append("shuffle")
    if chances[2] < config.paint:
        kinds.append("inpaint" if chances[3] < config.inpaint_share else "outpaint")
    return tuple(kinds)


def distort(film: Array, kinds: Sequence[str], config: GenesisConfig, rng: Rng) -> Array:
    """These distortions of TRANSFORMS, one after the other."""
    check_pixels(film, "distort")
    seen = film.astype(np.float32)
    for kind in kinds:
        seen = TRANSFORMS[kind](seen, config, rng)
    return seen


def change_intensity(film: Array, config: GenesisConfig, rng: Rng) -> Array:
    """Every grey through a random monotone curve, which falls with the probability `reverse`. To
    undo it, the network must know how dense each organ is."""
    reverse = rng.random() < config.reverse
    x, y = bezier_curve(rng.random((2, 2)), reverse)
    return np.interp(film, x, y).astype(np.float32)


def bezier_curve(controls: Array, reverse: bool = False) -> tuple[Array, Array]:
    """A cubic Bézier curve from (0, 0) to (1, 1), or from (0, 1) to (1, 0) with `reverse`.
    `controls` (2, 2) holds the two inner points (x, y) in [0, 1]: inside the unit square both
    coordinates of such a curve are monotone, so it is a function of x. Returns x (rising) and y."""
    ends = np.array([[0.0, 1.0], [1.0, 0.0]] if reverse else [[0.0, 0.0], [1.0, 1.0]])
    points = np.stack([ends[0], *controls, ends[1]])
    t = np.linspace(0.0, 1.0, _POINTS)
    weights = np.stack([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1)
    x, y = np.clip(weights @ points, 0.0, 1.0).T  # rounding alone leaves [0, 1]
    return np.maximum.accumulate(x), y


def shuffle_pixels(film: Array, config: GenesisConfig, rng: Rng) -> Array:
    """The pixels of many small windows, each shuffled inside its window: texture goes, shape stays.
    To undo it, the network must know edges and texture."""
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


def paint_inside(film: Array, config: GenesisConfig, rng: Rng) -> Array:
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


def paint_outside(film: Array, config: GenesisConfig, rng: Rng) -> Array:
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
    shape: tuple[int, ...], sides: tuple[float, float], rng: Rng
) -> tuple[slice, slice]:
    """A window whose height and width are drawn apart, anywhere on the film."""
    fractions = rng.uniform(*sides, 2)
    height, width = (
        min(n, max(1, int(np.ceil(f * n)))) for f, n in zip(fractions, shape, strict=True)
    )
    top, left = int(rng.integers(shape[0] - height + 1)), int(rng.integers(shape[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def _fill(film: Array, painted: Array, config: GenesisConfig, rng: Rng) -> Array:
    """Random grey where `painted`."""
    grey = rng.random(film.shape if config.fill == "noise" else (), dtype=np.float32)
    return np.where(painted, grey, film).astype(np.float32)


Transform = Callable[[Array, GenesisConfig, Rng], Array]
TRANSFORMS: dict[str, Transform] = {
    "intensity": change_intensity,
    "shuffle": shuffle_pixels,
    "inpaint": paint_inside,
    "outpaint": paint_outside,
}
TRANSFORM_NAMES = {
    "intensity": "intensity curve",
    "shuffle": "local shuffling",
    "inpaint": "in-painting",
    "outpaint": "out-painting",
}


# --- lung-guided training: a network that has its answer from the lungs, and none without them.
# Three means, each with its own weight, that any training of a classifier takes as `guide:`.
# 1. Surroundings: all outside the lung field is taken from another film, whose own lungs are
#    painted over, so that letters, shoulders and framing say nothing of the film.
# 2. Maps: the share of the true class' map that lies outside the lung field is a loss (Ross et al.
#    2017, arXiv 1703.03717, of the input's gradient; here of what the head pools).
# 3. Blanks: to pictures without lungs every class shall be as likely as any other (blank), and what
#    is pooled of them shall be nothing (silence): an answer that is merely near «any» still ranks
#    films by their outlines.
# What came of each is in docs/guide.md.


@dataclass(frozen=True)
class GuideConfig:
    """How a training is held to the lungs; nothing is, with all at 0.

    Args:
        swap: share of the training pictures whose surroundings are another film's.
        maps: weight of the share of the true class' map that lies outside the lung field.
        blank: weight of how far the answer to a picture without lungs is from «any class as
            likely».
        silence: weight of what the head pools of a picture without lungs, as a share of what it
            pools of a film.
        blank_share: so many more pictures without lungs, as a share of a batch.
        gradient: weight of the input's gradient outside the lung field, for networks of any head;
            doubles the time.
        field: bundle of the lung-field network, for films without a mask that a person drew; empty
            takes the one that comes with lungfirst.
    """

    swap: float = 0.0
    maps: float = 0.0
    blank: float = 0.0
    silence: float = 0.0
    blank_share: float = 0.25
    gradient: float = 0.0
    field: str = ""

    def __post_init__(self) -> None:
        require_share(self, "swap", "blank_share")
        require_not_negative(self, "maps", "blank", "silence", "gradient")

    @property
    def on(self) -> bool:
        """Is anything guided?"""
        return any((self.swap, self.maps, self.blank, self.silence, self.gradient))


def rim_of(side: int) -> int:
    """Width in px, odd, of the kernel by which a lung field grows to take its rim in."""
    return 2 * round(_RIM * side / _OF / 2) + 1


def soft_field(lung: Array) -> Array:
    """A lung field (S, S) of 0 / 255 with its rim, (S, S) float32 in [0, 1], soft at its edge."""
    side = lung.shape[0]
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (rim_of(side),) * 2)
    grown = cv2.dilate((lung > 127).astype(np.float32), ellipse)
    return cv2.GaussianBlur(grown, (0, 0), _SOFT * side / _OF)


def swap_surroundings(
    image: Array, lung: Array, other: Array, other_lung: Array, rng: Rng
) -> Array:
    """The lungs of one film in the surroundings of another: all (S, S) uint8. Where the other
    film's lungs were lies the mean of its surroundings with a smooth noise."""
    own, hidden = soft_field(lung), soft_field(other_lung)
    rest = 1 - hidden
    mean = float((other * rest).sum() / max(float(rest.sum()), 1.0))
    coarse = rng.uniform(-38, 38, (7, 7)).astype(np.float32)
    noise = cv2.resize(coarse, image.shape, interpolation=cv2.INTER_CUBIC)
    around = other * rest + (mean + noise) * hidden
    return np.rint(np.clip(image * own + around * (1 - own), 0, 255)).astype(np.uint8)
