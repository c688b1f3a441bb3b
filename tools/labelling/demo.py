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

SIZES_HW = ((1000, 900), (900, 1100), (1200, 1000), (800, 800), (1000, 760), (900, 1000))
SAMPLE = "RG1_UNCI.dcm"  # of pydicom-data: a real chest, 15 bits, MONOCHROME1
_SEED = 5  # a chest with a little of everything: even lungs, arms in sight, no tilt
_SIDE = 800
_GROUND, _INK = (24, 24, 24), (235, 235, 235)
# Thickness of the bones of a knee in px, and their ends as shares of the film; the leg comes first.
_LEG = (
    (300, (0.5, -0.2), (0.48, 1.2)),
    (96, (0.5, -0.2), (0.5, 0.42)),
    (124, (0.455, 0.4), (0.545, 0.4)),
    (130, (0.5, 0.3), (0.5, 0.4)),
    (112, (0.45, 0.56), (0.55, 0.56)),
    (120, (0.5, 0.56), (0.49, 0.68)),
    (88, (0.5, 0.56), (0.48, 1.2)),
    (40, (0.6, 0.6), (0.585, 1.2)),
)
_TICK = ((0.05, 0.55), (0.38, 0.9)), ((0.38, 0.9), (0.95, 0.12))
_CROSS = ((0.1, 0.1), (0.9, 0.9)), ((0.9, 0.1), (0.1, 0.9))


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


def _chest(opaque: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The film of all pictures as RGB, and its box in px. Smooth, so that a PNG stays small."""
    pixels, box = draw_chest(_SIDE, _SIDE, _SEED, opaque=opaque, letter=True, grain=0.0)
    return draw.to_rgb(pixels), box


def _draw_right_box() -> np.ndarray:
    film, (x0, y0, x1, y1) = _chest()
    film = _outline(film, (x0, y0, x1, y1), draw.GREEN, 5)
    side, head = 268, 84
    canvas = np.full((_SIDE + head + 16, _SIDE + 2 * side, 3), _GROUND, np.uint8)
    canvas[head : head + _SIDE, side : side + _SIDE] = film
    apex, down = x0 + (x1 - x0) * 0.31, (y0 + y1) / 2
    beside, lower = _SIDE + 18, down + 88
    left = "left: inner side\nof the outermost\nribs, where the\nlung ends"
    # Each edge: words and their upper left corner, where the pointer starts and which point of the
    # lungs it names, all in film px.
    top, right = (
        "top: the lung apices,\njust above the clavicles",
        "right: the same\non the other side",
    )
    bottom = "bottom: the lowest\ncostophrenic angle"
    for words, at, start, end in (
        (top, (apex - 60, 8 - head), (apex, 70 - head), (apex, y0)),
        (left, (14 - side, down + 26), (-36, lower), (x0, lower)),
        (right, (beside + 10, down + 58), (beside, lower), (x1, lower)),
        (bottom, (beside + 10, y1 - 30), (beside, y1), (x1, y1)),
    ):
        (x, y), tail, tip = ((round(u + side), round(v + head)) for u, v in (at, start, end))
        cv2.line(canvas, tail, tip, _INK, 2, cv2.LINE_AA)
        cv2.circle(canvas, tip, 9, _INK, -1, cv2.LINE_AA)
        cv2.circle(canvas, tip, 6, draw.GREEN, -1, cv2.LINE_AA)
        for row, line in enumerate(words.split("\n")):
            canvas = draw.draw_text(canvas, line, (x, y + 30 * row), _INK, 26)
    return canvas


def _draw_cases() -> np.ndarray:
    film, box = _chest()
    white, _ = _chest(opaque=True)
    x0, y0, x1, y1 = box
    wide, tall = x1 - x0, y1 - y0
    cut = round(y0 + 0.16 * tall)  # the film begins below the apices
    high = box - [0, cut, 0, cut]
    loose = (x0 - 0.27 * wide, y0 - 0.24 * tall, x1 + 0.27 * wide, y1 + 0.16 * tall)
    tight = (x0 + 0.07 * wide, y0, x1, y1 - 0.13 * tall)
    aired = (x0, y0, x0 + 0.8 * wide, y1)
    cases: dict[str, tuple[np.ndarray, Any, Any]] = {  # words: film, right box, wrong box
        "RIGHT: the apices are cut off,\nthe box ends at the film's edge": (film[cut:], high, None),
        "RIGHT: a white lung counts as\nif it were aired": (white, box, None),
        "RIGHT: no chest, no box": (_leg(), None, None),
        "WRONG: too loose, it takes in\nneck, arms and abdomen": (film, box, loose),
        "WRONG: too tight, it cuts the\ncostophrenic angles and one side": (film, box, tight),
        "WRONG: it leaves out the\nwhite part of the lung": (white, box, aired),
    }
    tiles = []
    for picture, right, wrong in cases.values():
        if right is not None:
            picture = _outline(picture, right, draw.GREEN, 7 if wrong is None else 3)
        if wrong is not None:
            picture = _outline(picture, wrong, draw.RED, 7)
        tiles.append(_mark(picture, wrong is None))
    title = "thick green: right, red: wrong, thin green: where the right box lies"
    return draw.sheet(tiles, list(cases), columns=3, tile=400, title=title)


def _outline(image: np.ndarray, xyxy: Any, colour: draw.Colour, thick: int) -> np.ndarray:
    """The box' line, drawn inwards so that it is seen at the film's edge too."""
    out = image.copy()
    x0, y0, x1, y1 = (round(float(v)) for v in xyxy)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, out.shape[1]), min(y1, out.shape[0])
    out[y0:y1, x0:x1] = colour
    inside = np.s_[y0 + thick : y1 - thick, x0 + thick : x1 - thick]
    out[inside] = image[inside]
    return out


def _mark(image: np.ndarray, right: bool) -> np.ndarray:
    """A tick or a cross in the upper right corner: the colours alone must not tell."""
    out = image.copy()
    corner, size = (image.shape[1] - 84, 24), 60
    for ink, thick in (((0, 0, 0), 20), (draw.GREEN if right else draw.RED, 12)):
        for stroke in _TICK if right else _CROSS:
            a, b = ([round(c + size * u) for c, u in zip(corner, p, strict=True)] for p in stroke)
            cv2.line(out, a, b, ink, thick, cv2.LINE_AA)
    return out


def _leg() -> np.ndarray:
    """A knee: what a folder of chest films may hold as well."""
    planes = []
    for thick, *ends in _LEG:
        part = np.zeros((_SIDE, _SIDE), np.uint8)
        a, b = ([round(_SIDE * u) for u in end] for end in ends)
        cv2.line(part, a, b, 255, thick)
        depth = cv2.distanceTransform(part, cv2.DIST_L2, 5)
        planes.append(1 - np.exp(-depth / (0.1 * thick)))
    leg = 0.4 * planes[0] + 0.45 * np.max(planes[1:], axis=0)
    return draw.to_rgb(cv2.GaussianBlur(leg.astype(np.float32), (0, 0), 4))


def _points(text: str) -> np.ndarray:
    """`x,y x,y …` as (N, 2)."""
    return np.array([[float(v) for v in point.split(",")] for point in text.split()])


# Outlines of one lung, x outward from the midline: from the heart up over the apex and down the
# ribs to the costophrenic angle, and from there back along the diaphragm. Two curves, because the
# angle between them is sharp.
_RIGHT_WALL = _points("""
    0.17,0.84 0.25,0.7 0.2,0.5 0.15,0.34 0.15,0.16 0.24,0.03 0.38,0 0.56,0.06 0.74,0.21 0.88,0.43
    0.96,0.68 1,0.88 0.985,1
""")
_RIGHT_DOME = _points("0.985,1 0.86,0.9 0.66,0.82 0.42,0.79 0.17,0.84")
_LEFT_WALL = _points("""
    0.52,0.87 0.55,0.78 0.42,0.62 0.26,0.5 0.19,0.38 0.22,0.28 0.16,0.16 0.25,0.04 0.38,0.01
    0.56,0.07 0.74,0.22 0.88,0.44 0.96,0.68 1,0.88 0.985,0.99
""")
_LEFT_DOME = _points("0.985,0.99 0.88,0.92 0.72,0.86 0.52,0.87")
_TORSO = _points("""
    0.27,-1.6 0.27,-0.5 0.3,-0.32 0.46,-0.2 0.85,-0.11 1.25,-0.05 1.42,0.08 1.36,0.3 1.2,0.5
    1.13,0.75 1.12,1 1.14,1.4 1.2,2.4
""")
_HEART = _points("""
    -0.15,0.2 0.12,0.2 0.25,0.28 0.21,0.37 0.32,0.5 0.48,0.66 0.58,0.82 0.5,1 -0.2,1 -0.265,0.74
    -0.22,0.52
""")
_BLADE = _points("1.26,0.03 1.02,0.1 0.98,0.3 1.05,0.52 1.12,0.3")
_ARM = _points("1.35,0.08 1.68,0.7 1.78,1.1 1.8,2.4")
_COLUMN = _points("-0.15,-0.3 0.15,-0.3 0.17,2.4 -0.17,2.4")
_CAGE = ([0.0, 0.2, 0.45, 0.7, 0.9], [0.5, 0.76, 0.92, 1.0, 1.03])  # x of the ribs' ends by y
_STEPS = 16  # points of a curve for each point that it is drawn through
_SHIFT = 4  # OpenCV's fixed-point bits: outlines fall on sixteenths of a pixel


@dataclass(frozen=True)
class _Place:
    """Where the chest lies on the film: chest coordinates to pixels."""

    centre_x: float
    top: float
    half: float  # px of one unit of x
    tall: float  # px of one unit of y
    height: int
    width: int

    def empty(self) -> np.ndarray:
        """A plane (H, W) of zeros."""
        return np.zeros((self.height, self.width), np.float32)

    def to_px(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) chest coordinates to (N, 2) OpenCV's fixed-point pixels of the film."""
        px = points * [self.half, self.tall] + [self.centre_x, self.top]
        return np.rint(px * 2**_SHIFT).astype(np.int32)

    def fill(self, points: np.ndarray) -> np.ndarray:
        """A closed outline in chest coordinates as a float32 mask (H, W)."""
        mask = self.empty()
        cv2.fillPoly(mask, [self.to_px(points)], 1.0, cv2.LINE_8, _SHIFT)
        return mask

    def line(self, plane: np.ndarray, points: np.ndarray, value: float, thick: float) -> None:
        """Draw an open curve on `plane`; `thick` in units of y, at least 1 px."""
        px = max(1, round(thick * self.tall))
        cv2.polylines(plane, [self.to_px(points)], False, value, px, cv2.LINE_8, _SHIFT)

    def bone(self, plane: np.ndarray, points: np.ndarray, value: float, thick: float) -> None:
        """Add a long bone to `plane`: the rim of a tube absorbs more than its middle."""
        bone = self.empty()
        self.line(bone, points, value, thick)
        self.line(bone, points, value * 0.6, thick * 0.5)
        plane += bone

    def disc(self, x: float, y: float, wide: float, tall: float) -> np.ndarray:
        """A filled ellipse at chest coordinates, its half axes in units of y, as a mask (H, W)."""
        turn = np.linspace(0, 2 * np.pi, 64)
        across = wide * self.tall / self.half
        return self.fill(np.stack([x + across * np.cos(turn), y + tall * np.sin(turn)], axis=1))

    def blur(self, plane: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur, `sigma` in units of y."""
        return cv2.GaussianBlur(plane, (0, 0), max(0.4, sigma * self.tall))

    def depth(self, mask: np.ndarray) -> np.ndarray:
        """Distance from the mask's edge inwards, in units of y."""
        plane = cv2.distanceTransform((mask > 0).astype(np.uint8), cv2.DIST_L2, 5)
        return np.asarray(plane / self.tall)


def _curve(points: Any, closed: bool = False) -> np.ndarray:
    """A Catmull-Rom curve through the points, (N, 2): smooth, and it passes through each one."""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    t = np.linspace(0, 1, _STEPS, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        square, cube = 2 * a - 5 * b + 4 * c - d, 3 * b - a - 3 * c + d
        parts.append(0.5 * (2 * b + (c - a) * t + square * t**2 + cube * t**3))
    return np.concatenate([*parts, p[-2:-1]])


def draw_chest(
    height: int,
    width: int,
    seed: int = 0,
    *,
    opaque: bool = False,
    letter: bool | None = None,
    grain: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
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

    Raises:
        ValueError: for a film smaller than 64 px.
    """
    if height < 64 or width < 64:
        rule = "height and width of draw_chest must be at least 64 px"
        raise ValueError(f"{rule}. Got {height} × {width} instead.")
    rng = np.random.default_rng(seed)
    place = _lay_out(height, width, rng)
    wobble = 1 + rng.uniform(-0.03, 0.03, 4)
    right = _lung(_RIGHT_WALL, _RIGHT_DOME, -1, wobble[0], wobble[1])
    left = _lung(_LEFT_WALL, _LEFT_DOME, 1, wobble[2], wobble[3])
    heart = place.fill(_curve(_HEART, closed=True))
    lungs = np.maximum(place.fill(right), place.fill(left))
    film = _soft_tissue(place, rng, right, left, heart, opaque)
    film += _lung_markings(place, rng, lungs * (1 - heart))
    film += _bones(place, rng)
    low, high = np.percentile(film, [1, 99.9])
    film = np.clip((film - low) / (high - low), 0, 1) ** rng.uniform(0.85, 1.1)
    film = film * rng.uniform(0.86, 0.96) + 0.02
    film += grain * _grain((height, width), rng)
    wants_letter = rng.random() < 0.6
    if wants_letter if letter is None else letter:
        _stamp_letter(film, rng)
    rows, columns = np.flatnonzero(lungs.any(1)), np.flatnonzero(lungs.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    return np.clip(film, 0, 1).astype(np.float32), box


def _lay_out(height: int, width: int, rng: np.random.Generator) -> _Place:
    """The chest as large as its proportions allow, with room for neck and abdomen."""
    aspect = rng.uniform(1.06, 1.22)  # width of both lungs against their height
    tall = min(height * rng.uniform(0.6, 0.7), width * rng.uniform(0.68, 0.76) / aspect)
    top = (height - tall) * rng.uniform(0.42, 0.55)
    centre = width * (0.5 + rng.uniform(-0.025, 0.025))
    return _Place(centre, top, tall * aspect / 2, tall, height, width)


def _lung(wall: np.ndarray, dome: np.ndarray, side: int, wide: float, arch: float) -> np.ndarray:
    """One lung's closed outline; `side` −1 is the patient's right, on the film's left."""
    outer, base = _curve(wall), _curve(dome)
    base[:, 1] = outer[-1, 1] + (base[:, 1] - outer[-1, 1]) * arch
    outline = np.concatenate([outer, base])
    inner = np.minimum(1.0, np.abs(outline[:, 0]))
    outline[:, 0] = inner ** (1 / wide) * side  # the outermost edge stays where it is
    return outline


def _soft_tissue(
    place: _Place,
    rng: np.random.Generator,
    right: np.ndarray,
    left: np.ndarray,
    heart: np.ndarray,
    opaque: bool,
) -> np.ndarray:
    """Body, arms, heart and abdomen, thinner towards the skin, with the air of the lungs out."""
    torso = _curve(_TORSO)
    solid = place.fill(np.concatenate([torso, (torso * [-1, 1])[::-1]]))
    for side in (-1, 1):
        place.line(solid, _ARM * [side, 1], 1.0, 0.25)
    thick = _thickness(place, solid)
    lungs = np.maximum(place.fill(right), place.fill(left)) * (1 - heart)
    air = place.blur(lungs, 0.005) * (0.62 + 0.38 * np.clip(place.depth(lungs) / 0.12, 0, 1))
    white = place.empty()
    if opaque:  # dense below, fading out towards the apex
        yy = (np.arange(place.height, dtype=np.float32)[:, None] - place.top) / place.tall
        wide = cv2.dilate(place.fill(left), np.ones((3, 3)), iterations=round(0.02 * place.tall))
        white = place.blur(wide * np.clip((yy - 0.28) / 0.16, 0, 1), 0.01)
    film = 0.62 * thick * (1 - 0.72 * air * (1 - white))
    # Heart, abdomen and a white lung are as dense as each other: no edge is seen between them.
    domes = [right[_dome(_RIGHT_WALL) :], left[_dome(_LEFT_WALL) :][::-1]]
    sides = _points("-1.6,2.6 -1.2,1.06"), _points("1.2,1.06 1.6,2.6")
    belly = place.fill(np.concatenate([sides[0], *domes, sides[1]]))
    film += 0.19 * place.blur(np.maximum(np.maximum(belly, heart), 0.9 * white), 0.006) * thick
    film += 0.1 * place.blur(place.fill(_COLUMN), 0.03)
    film += 0.2 * place.blur(place.disc(0, -0.82, 0.3, 0.48), 0.012)  # the head, when in sight
    trachea = place.empty()
    place.line(trachea, _points("0,-0.4 -0.02,0.32"), 0.1, 0.06)
    bubble = place.disc(rng.uniform(0.45, 0.6), 1.05, 0.1, 0.05)
    return film - place.blur(trachea, 0.012) - 0.16 * place.blur(bubble, 0.012)


def _dome(wall: np.ndarray) -> int:
    """Where the diaphragm begins in the outline of a lung with that wall."""
    return _STEPS * (len(wall) - 1) + 1


def _thickness(place: _Place, solid: np.ndarray) -> np.ndarray:
    """How much tissue the rays cross: 0 at the skin, near 1 deep inside. A body does not end at
    the film's edge, so the film is continued there first."""
    pad = round(0.3 * place.tall)
    wide = cv2.copyMakeBorder(solid, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    depth = place.depth(wide)[pad:-pad, pad:-pad]
    return np.asarray((1 - np.exp(-depth / 0.1)) * place.blur(solid, 0.004))


def _lung_markings(place: _Place, rng: np.random.Generator, lungs: np.ndarray) -> np.ndarray:
    """Vessels that branch from the hila and thin out, and the hila themselves."""
    plane = place.empty()
    for side in (-1, 1):
        for angle in np.linspace(-1.35, 1.35, 11) + rng.normal(0, 0.06, 11):
            at, heading, thick = np.array([side * 0.24, 0.46]), angle, 0.022
            for step in range(5):
                heading += rng.normal(0, 0.16)
                to = at + np.array([side * np.cos(heading) * 1.3, np.sin(heading)]) * 0.085
                place.line(plane, np.array([at, to]), 0.11 - 0.014 * step, thick)
                fork = to + np.array([side * np.cos(heading + 0.6), np.sin(heading + 0.6)]) * 0.07
                place.line(plane, np.array([to, fork]), 0.06 - 0.008 * step, thick * 0.5)
                at, thick = to, thick * 0.72
        plane += 0.1 * place.blur(place.disc(side * 0.25, 0.46, 0.06, 0.06), 0.025)
    return place.blur(plane, 0.005) * lungs


def _bones(place: _Place, rng: np.random.Generator) -> np.ndarray:
    """Ribs, spine, clavicles, shoulder blades and upper arms, each with a denser rim."""
    plane = place.empty()
    tilt = rng.uniform(-0.02, 0.02)
    collar = [(0.11, 0.15), (0.3, 0.1), (0.55, 0.06 + tilt), (0.85, tilt - 0.02), (1.17, 0.0)]
    for side in (-1, 1):
        for number in range(9):
            y, drop = 0.095 * number, 0.16 + 0.012 * number
            reach = float(np.interp(y + drop, *_CAGE))
            end, tip = (reach, y + drop), (reach * 0.99, y + drop + 0.07)
            back = _curve([(0.1, y), (0.32, y - 0.02), (reach * 0.72, y + drop * 0.3), end, tip])
            place.bone(plane, back * [side, 1], 0.11, 0.042)
            if 0 < number < 5:  # the front parts, fainter, down towards the breastbone
                front = _curve([back[-1], (reach * 0.8, y + drop + 0.17), (0.45, y + drop + 0.2)])
                place.bone(plane, front * [side, 1], 0.045, 0.045)
        place.bone(plane, _curve(collar) * [side, 1], 0.18, 0.048)
        plane += 0.07 * place.fill(_curve(_BLADE, closed=True) * [side, 1])
        place.bone(plane, _ARM * [side, 1], 0.18, 0.08)
        plane += 0.12 * place.disc(side * 1.34, 0.06, 0.065, 0.065)
    for y in np.arange(-0.5, 1.6, 0.085):  # vertebrae, with gaps of the discs between
        body = np.array([(-0.12, y), (0.12, y), (0.12, y + 0.068), (-0.12, y + 0.068)])
        plane += 0.1 * place.fill(body)
    return place.blur(plane, 0.005)


def _grain(size_hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Fine grain, and unevenness as wide as a hand."""
    height, width = size_hw
    coarse = rng.normal(0, 0.02, (5, 5)).astype(np.float32)
    wide = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    fine = rng.normal(0, 1, size_hw).astype(np.float32)
    return wide + 0.011 * cv2.GaussianBlur(fine, (0, 0), 0.8)


def _stamp_letter(film: np.ndarray, rng: np.random.Generator) -> None:
    """The side marker R beside the patient's right shoulder, in place."""
    mask = np.zeros(film.shape, np.uint8)
    scale = max(0.4, max(film.shape) / 420)
    share = rng.uniform((0.03, 0.1), (0.06, 0.18))
    at = [round(film.shape[1] * share[0]), round(film.shape[0] * share[1])]
    thick = max(1, round(scale * 2))
    cv2.putText(mask, "R", at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    film += (0.98 - film) * (mask / 255.0)
