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
from labelling.phantom import draw_chest

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
    code = start.run(
        start.StartConfig(films, str(session), "demo", prelabel=prelabel, open=config.open)
    )
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
    for words, at, start, end in (
        (
            "top: the lung apices,\njust above the clavicles",
            (apex - 60, 8 - head),
            (apex, 70 - head),
            (apex, y0),
        ),
        (left, (14 - side, down + 26), (-36, lower), (x0, lower)),
        (
            "right: the same\non the other side",
            (beside + 10, down + 58),
            (beside, lower),
            (x1, lower),
        ),
        ("bottom: the lowest\ncostophrenic angle", (beside + 10, y1 - 30), (beside, y1), (x1, y1)),
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
    loose = (x0 - 0.27 * wide, y0 - 0.24 * tall, x1 + 0.27 * wide, y1 + 0.16 * tall)
    tight = (x0 + 0.07 * wide, y0, x1, y1 - 0.13 * tall)
    aired = (x0, y0, x0 + 0.8 * wide, y1)
    cases: dict[str, tuple[np.ndarray, Any, Any]] = {  # words: film, right box, wrong box
        "RIGHT: the apices are cut off,\nthe box ends at the film's edge": (
            film[cut:],
            box - [0, cut, 0, cut],
            None,
        ),
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
