"""annotate.py demo: a session on drawn chests and a real sample film, for a first look; and the
two pictures of annotations/README.md that show where a thorax box lies."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from cxr import draw
from cxr.intensity import to_uint16
from cxr.workdir import write_atomic

Array = np.ndarray
SIZES_HW = ((1000, 900), (900, 1100), (1200, 1000), (800, 800), (1000, 760), (900, 1000))
SAMPLE = "RG1_UNCI.dcm"  # of pydicom-data: a real chest, 15 bits, MONOCHROME1
_SEED = 5  # a chest with a little of everything: even lungs, arms in sight, no tilt
_SIDE = 800
_GROUND, _INK = (24, 24, 24), (235, 235, 235)
# A knee: thickness of the leg and of its bones in px, and their ends in hundredths of the film.
_LEG = (
    *((300, 50, -20, 48, 120), (96, 50, -20, 50, 42), (126, 45, 39, 55, 39)),
    *((130, 45, 57, 55, 57), (88, 50, 56, 48, 120), (40, 60, 60, 58, 120)),
)


@dataclass(frozen=True)
class DemoConfig:
    """Make a session of drawn 16-bit chests, and of a real sample film where pydicom-data is
    installed, with pre-labels, and open labelme on it.

    Args:
        out: folder for the films and the session.
        open: open labelme; with false the session is only prepared.
        rule: only draw the two pictures of the rule of the box, into this folder.
    """

    out: str = "runs/annotate_demo"
    open: bool = True
    rule: str = ""


def run(config: DemoConfig) -> int:
    """Write the films, start the session, say what can be tried next; 0 when that went well."""
    if config.rule:
        write_rule_pictures(Path(config.rule))
        return 0
    from detect.predict import DEFAULT_WEIGHTS  # late: the pictures of the rule need no torch
    from labelling import start

    out = Path(config.out)
    write_films(out / "films")
    session = out / "session"
    prelabel = str(DEFAULT_WEIGHTS) if DEFAULT_WEIGHTS.exists() else ""
    films = (str(out / "films"),)
    settings = start.StartConfig(films, str(session), "demo", prelabel=prelabel, open=config.open)
    code = start.run(settings)
    print(
        "\nWhat to try next:\n"
        f"  python tools/annotate.py review {session}                  all boxes on a sheet\n"
        f"  python tools/annotate.py review {session} --accept 1-3     accept what you saw there\n"
        f"  python tools/annotate.py status {session}\n"
        f"  python tools/annotate.py check {session}\n"
        f"  python tools/annotate.py merge {session} --into {out / 'thorax.json'}"
    )
    return code


def write_films(folder: Path) -> None:
    """Six drawn chests as 16-bit PNG, and the real sample film; those that are there stay."""
    for seed, size_hw in enumerate(SIZES_HW):
        path = folder / f"drawn{seed}.png"
        if not path.exists():
            pixels, _ = draw_chest(*size_hw, seed)
            write_atomic(path, draw.encode_png(to_uint16(pixels)))
    from pydicom.data import get_testdata_file

    sample = get_testdata_file(SAMPLE, download=False)
    if not isinstance(sample, str):
        print("no real sample film: pip install -e .[samples] brings one", file=sys.stderr)
    elif not (folder / SAMPLE).exists():
        write_atomic(folder / SAMPLE, Path(sample).read_bytes())


def write_rule_pictures(folder: Path) -> list[Path]:
    """Draw rule_box.png, the right box with its edges named, and rule_cases.png, six cases."""
    paths = []
    for name, image in (("rule_box.png", _draw_right_box()), ("rule_cases.png", _draw_cases())):
        # 128 colours: a third of the bytes, and nobody sees the difference
        quantised = Image.fromarray(image).quantize(128, dither=Image.Dither.NONE)
        file = io.BytesIO()
        quantised.save(file, "PNG", optimize=True)
        paths.append(write_atomic(folder / name, file.getvalue()))
    return paths


def _chest(opaque: bool = False) -> tuple[Array, Array]:
    """The film of all pictures as RGB, and its box in px. Smooth, so that a PNG stays small."""
    pixels, box = draw_chest(_SIDE, _SIDE, _SEED, opaque=opaque, letter=True, grain=0.0)
    return draw.to_rgb(pixels), box


def _draw_right_box() -> Array:
    film, (x0, y0, x1, y1) = _chest()
    side, head = 268, 84
    canvas = np.full((_SIDE + head + 16, _SIDE + 2 * side, 3), _GROUND, np.uint8)
    canvas[head : head + _SIDE, side : side + _SIDE] = _outline(film, (x0, y0, x1, y1), 5)
    apex, lower, beside = x0 + (x1 - x0) * 0.31, (y0 + y1) / 2 + 88, _SIDE + 18
    top = "top: the lung apices,\njust above the clavicles"
    right, bottom = "right: the same\non the other side", "bottom: the lowest\ncostophrenic angle"
    left = "left: inner side\nof the outermost\nribs, where the\nlung ends"
    # Each edge: words and their upper left corner, where the pointer starts and which point of the
    # lungs it names, all in film px.
    for words, at, start, end in (
        (top, (apex - 60, 8 - head), (apex, 70 - head), (apex, y0)),
        (left, (14 - side, lower - 62), (-36, lower), (x0, lower)),
        (right, (beside + 10, lower - 30), (beside, lower), (x1, lower)),
        (bottom, (beside + 10, y1 - 30), (beside, y1), (x1, y1)),
    ):
        (x, y), tail, tip = ((round(u + side), round(v + head)) for u, v in (at, start, end))
        cv2.line(canvas, tail, tip, _INK, 2, cv2.LINE_AA)
        cv2.circle(canvas, tip, 8, draw.GREEN, -1, cv2.LINE_AA)
        for row, line in enumerate(words.split("\n")):
            canvas = draw.draw_text(canvas, line, (x, y + 30 * row), _INK, 26)
    return canvas


def _draw_cases() -> Array:
    (film, box), (white, _) = _chest(), _chest(opaque=True)
    x0, y0, x1, y1 = box
    wide, tall = x1 - x0, y1 - y0
    cut = round(y0 + 0.16 * tall)  # the film begins below the apices
    high = box - [0, cut, 0, cut]
    loose = (x0 - 0.27 * wide, y0 - 0.24 * tall, x1 + 0.27 * wide, y1 + 0.16 * tall)
    tight = (x0 + 0.07 * wide, y0, x1, y1 - 0.13 * tall)
    aired = (x0, y0, x0 + 0.8 * wide, y1)
    cases: dict[str, tuple[Array, Any, Any]] = {  # words: film, right box, wrong box
        "RIGHT: the apices are cut off,\nthe box ends at the film's edge": (film[cut:], high, None),
        "RIGHT: a white lung counts as\nif it were aired": (white, box, None),
        "RIGHT: no chest, no box": (_draw_leg(), None, None),
        "WRONG: too loose, it takes in\nneck, arms and abdomen": (film, box, loose),
        "WRONG: too tight, it cuts the\ncostophrenic angles and one side": (film, box, tight),
        "WRONG: it leaves out the\nwhite part of the lung": (white, box, aired),
    }
    tiles = []
    for picture, right, wrong in cases.values():
        if right is not None:
            picture = _outline(picture, right, 7 if wrong is None else 3)
        tiles.append(picture if wrong is None else _outline(picture, wrong, 7, draw.RED))
    title = "thick green: right, red: wrong, thin green: where the right box lies"
    return draw.sheet(tiles, list(cases), columns=3, tile=400, title=title)


def _outline(image: Array, xyxy: Any, thick: int, colour: draw.Colour = draw.GREEN) -> Array:
    """The box' line, drawn inwards so that it is seen at the film's edge too."""
    out, half = image.copy(), thick // 2
    height, width = image.shape[:2]
    x0, y0, x1, y1 = np.clip(np.rint(xyxy), 0, (width, height, width, height)).astype(int).tolist()
    cv2.rectangle(out, (x0 + half, y0 + half), (x1 - 1 - half, y1 - 1 - half), colour, thick)
    return out


def _draw_leg() -> Array:
    """A knee: what a folder of chest films may hold as well."""
    planes = []
    for thick, *ends in _LEG:
        part = np.zeros((_SIDE, _SIDE), np.uint8)
        x0, y0, x1, y1 = (_SIDE * end // 100 for end in ends)
        cv2.line(part, (x0, y0), (x1, y1), 255, thick)
        planes.append(1 - np.exp(-cv2.distanceTransform(part, cv2.DIST_L2, 5) / (0.1 * thick)))
    leg = 0.4 * planes[0] + 0.45 * np.max(planes[1:], axis=0)
    return draw.to_rgb(cv2.GaussianBlur(leg.astype(np.float32), (0, 0), 4))


# The drawn chest. Its coordinates: x outward from the midline, 1 at the outermost rib; y down from
# the apices, 1 at the costophrenic angles; in hundredths here. The corners are rounded.
_RIGHT = (
    *((17, 86), (24, 70), (19, 50), (13, 34), (13, 16), (22, -1), (40, -3), (60, 7), (78, 24)),
    *((92, 48), (99, 72), (101, 104), (88, 90), (68, 81), (44, 78)),
)
_LEFT = (
    *((52, 88), (55, 78), (40, 60), (24, 48), (19, 36), (14, 16), (23, -1), (40, -3), (60, 7)),
    *((78, 24), (92, 48), (99, 72), (101, 104), (86, 90), (68, 84)),
)
_HEART = ((-15, 20), (14, 20), (24, 30), (36, 52), (56, 74), (56, 100), (-20, 100), (-26, 74))
_TORSO = (
    *((27, -160), (27, -45), (34, -28), (85, -12), (128, -5), (144, 10), (134, 30), (114, 66)),
    *((112, 100), (114, 140), (120, 260), (-10, 260), (-10, -160)),
)
_CAGE = ([0.0, 0.2, 0.45, 0.7, 0.9], [0.5, 0.76, 0.92, 1.0, 1.03])  # x of the ribs' ends by y


@dataclass(frozen=True)
class _Place:
    """Where the chest lies on the film: draws planes (H, W) in chest coordinates."""

    centre_x: float
    top: float
    half: float  # px of one unit of x
    tall: float  # px of one unit of y
    size_hw: tuple[int, int]

    def _to_px(self, x: Any, y: Any) -> Array:
        at = np.multiply(x, self.half) + self.centre_x, np.multiply(y, self.tall) + self.top
        return np.rint(np.stack(at, axis=-1) * 16).astype(np.int32)  # OpenCV's fixed point

    def fill(self, points: Any, wide: float = 1.0, tall: float = 1.0) -> Array:
        """A closed outline in hundredths, stretched by these factors, as a float32 mask."""
        x, y = np.transpose(points) / 100
        mask = np.zeros(self.size_hw, np.float32)
        cv2.fillPoly(mask, [self._to_px(x * wide, y * tall)], 1.0, cv2.LINE_8, 4)
        return (self.blur(mask, 0.018) > 0.5).astype(np.float32)

    def line(self, x: Any, y: Any, thick: float) -> Array:
        """An open curve as a mask; `thick` in units of y, at least 1 px."""
        plane, px = np.zeros(self.size_hw, np.float32), max(1, round(thick * self.tall))
        cv2.polylines(plane, [self._to_px(x, y)], False, 1.0, px, cv2.LINE_8, 4)
        return plane

    def bone(self, x: Any, y: Any, thick: float) -> Array:
        """A long bone: the rim of a tube absorbs more than its middle."""
        return self.line(x, y, thick) - 0.4 * self.line(x, y, thick / 2)

    def blur(self, plane: Array, sigma: float) -> Array:
        """Gaussian blur, `sigma` in units of y."""
        return cv2.GaussianBlur(plane, (0, 0), max(0.4, sigma * self.tall))

    def depth(self, mask: Array, scale: float) -> Array:
        """0 at the mask's edge, near 1 deep inside; `scale` in units of y. A body does not end at
        the film's edge, so the film is continued there first."""
        pad = round(0.3 * self.tall)
        wide = cv2.copyMakeBorder(mask, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        far = cv2.distanceTransform((wide > 0).astype(np.uint8), cv2.DIST_L2, 5)
        return np.asarray(1 - np.exp(-far[pad:-pad, pad:-pad] / (scale * self.tall)))


def draw_chest(
    height: int,
    width: int,
    seed: int = 0,
    *,
    opaque: bool = False,
    letter: bool | None = None,
    grain: float = 1.0,
) -> tuple[Array, Array]:
    """A schematic frontal chest film, drawn from nothing but a seed.

    Args:
        height, width: of the film in px, at least 64 each; the chest keeps its proportions.
        seed: shape, place, brightness, noise and the letter vary with it; same seed, same film.
        opaque: make the lower two thirds of the patient's left lung white (the box stays).
        letter: with or without the letter R; None leaves it to the seed.
        grain: of the film, 0 for a smooth picture.

    Returns:
        Pixels (H, W) float32 in [0, 1], dense = white, and the box (4,) float64 xyxy, the tight
        union of both lungs in film px.
    Raises ValueError for a film smaller than 64 px.
    """
    if height < 64 or width < 64:
        rule = "height and width of draw_chest must be at least 64 px"
        raise ValueError(f"{rule}. Got {height} × {width} instead.")
    rng = np.random.default_rng(seed)
    aspect = rng.uniform(1.06, 1.22)  # width of both lungs against their height
    tall = min(height * rng.uniform(0.6, 0.7), width * rng.uniform(0.68, 0.76) / aspect)
    top, centre = (height - tall) * rng.uniform(0.42, 0.55), width * rng.uniform(0.475, 0.525)
    place = _Place(centre, top, tall * aspect / 2, tall, (height, width))
    wide, high = 1 + rng.uniform(-0.03, 0.03, 2)
    left = place.fill(_LEFT)
    right = place.fill(_RIGHT, -wide, high)
    lungs, heart = np.maximum(left, right), place.fill(_HEART)
    film = _draw_soft_tissue(place, lungs, left * opaque, heart)
    film += _draw_vessels(place, rng) * lungs * (1 - heart) + _draw_bones(place)
    low, high = np.percentile(film, [1, 99.9])
    film = np.clip((film - low) / (high - low), 0, 1) ** rng.uniform(0.85, 1.1)
    film = film * rng.uniform(0.86, 0.96) + 0.02
    coarse = rng.normal(0, 0.02, (5, 5)).astype(np.float32)  # unevenness as wide as a hand
    fine = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 0.8)
    uneven = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    film += grain * (uneven + 0.011 * fine)
    wants_letter, share = rng.random() < 0.6, rng.uniform((0.03, 0.1), (0.06, 0.18))
    if wants_letter if letter is None else letter:  # R beside the patient's right shoulder
        mask, scale = np.zeros(film.shape, np.uint8), max(0.4, max(film.shape) / 420)
        at, thick = [round(width * share[0]), round(height * share[1])], max(1, round(scale * 2))
        cv2.putText(mask, "R", at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
        film += (0.98 - film) * (mask / 255.0)
    rows, columns = np.flatnonzero(lungs.any(1)), np.flatnonzero(lungs.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    return np.clip(film, 0, 1).astype(np.float32), box


def _draw_soft_tissue(place: _Place, lungs: Array, opaque: Array, heart: Array) -> Array:
    """Body, arms, heart and abdomen, thinner towards the skin, with the air of the lungs out;
    `opaque` is the lung that is white below, fading out towards the apex."""
    solid = np.maximum(place.fill(_TORSO), place.fill(_TORSO, -1))
    for side in (-1, 1):
        solid = np.maximum(solid, place.line([1.35 * side, 1.8 * side], [0.08, 1.6], 0.25))
    thick = place.depth(solid, 0.1) * place.blur(solid, 0.004)
    down = (np.arange(len(lungs), dtype=np.float32)[:, None] - place.top) / place.tall
    wide = cv2.dilate(opaque, np.ones((3, 3)), iterations=round(0.02 * place.tall))
    white = place.blur(wide * np.clip((down - 0.28) / 0.16, 0, 1), 0.01)
    aired = lungs * (1 - heart)
    air = place.blur(aired, 0.005) * (0.62 + 0.38 * place.depth(aired, 0.08)) * (1 - white)
    # Heart, abdomen and a white lung are as dense as each other: no edge is seen between them.
    below = np.maximum.accumulate(lungs, axis=0) * (1 - lungs)
    below = np.maximum(below, np.clip((down - 0.98) * 20, 0, 1))
    dense = np.maximum.reduce([heart, below, 0.9 * white])
    film = thick * (0.62 - 0.45 * air + 0.19 * place.blur(dense, 0.006))
    return film + 0.1 * place.blur(place.line([0, 0], [-0.3, 2.4], 0.3), 0.03)


def _draw_vessels(place: _Place, rng: np.random.Generator) -> Array:
    """They branch from the hila, and thin out."""
    plane = np.zeros(place.size_hw, np.float32)
    for side in (-1, 1):
        for heading in np.linspace(-1.35, 1.35, 11) + rng.normal(0, 0.06, 11):
            at = np.array([side * 0.24, 0.46])
            for step in range(5):
                heading += rng.normal(0, 0.16)
                to = at + np.array([side * np.cos(heading) * 1.3, np.sin(heading)]) * 0.085
                vessel = place.line([at[0], to[0]], [at[1], to[1]], 0.022 * 0.72**step)
                plane = np.maximum(plane, (0.11 - 0.014 * step) * vessel)
                at = to
    return place.blur(plane, 0.005)


def _draw_bones(place: _Place) -> Array:
    """Ribs, clavicles and upper arms, each with a denser rim, and the vertebrae."""
    plane, t = np.zeros(place.size_hw, np.float32), np.linspace(0, 1, 24)
    for side in (-1, 1):
        for number in range(9):
            y, drop = 0.095 * number, 0.16 + 0.012 * number
            reach = float(np.interp(y + drop, *_CAGE)) - 0.1
            x, down = 0.1 + reach * np.sin(t * np.pi / 2), drop * t**2 - 0.04 * np.sin(np.pi * t)
            plane += 0.11 * place.bone(side * x, y + down, 0.042)
        plane += 0.18 * place.bone(side * (0.11 + 1.06 * t), 0.16 - 0.17 * np.sqrt(t), 0.048)
        plane += 0.18 * place.bone([1.38 * side, 1.8 * side], [0.1, 1.6], 0.08)
    for y in np.arange(-0.5, 1.6, 0.085):  # vertebrae, with gaps of the discs between
        plane += 0.1 * place.line([-0.08, 0.08], [y, y], 0.068)
    return place.blur(plane, 0.005)
