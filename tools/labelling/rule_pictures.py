"""The two pictures of annotations/README.md that show where a thorax box lies, on drawn chests."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cxr import draw
from cxr.workdir import write_atomic
from labelling.phantom import draw_chest

_SEED = 5  # a chest with a little of everything: even lungs, arms in sight, no tilt
_SIDE = 800
_GROUND, _INK = (24, 24, 24), (235, 235, 235)


def draw_rule() -> dict[str, np.ndarray]:
    """File name → picture, uint8 RGB: the right box with its edges named, and six cases."""
    return {"rule_box.png": _draw_right_box(), "rule_cases.png": _draw_cases()}


def write_rule_pictures(folder: str | Path) -> list[Path]:
    """Write the pictures of `draw_rule` into `folder`; returns their paths."""
    return [
        write_atomic(Path(folder) / name, _encode_palette(image))
        for name, image in draw_rule().items()
    ]


def _chest(*, opaque: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The film of all pictures as RGB, and its box in px. Smooth, so that a PNG stays small."""
    pixels, box = draw_chest(_SIDE, _SIDE, _SEED, opaque=opaque, letter=True, grain=0.0)
    return draw.to_rgb(pixels), box


def _draw_right_box() -> np.ndarray:
    film, (x0, y0, x1, y1) = _chest()
    film = _outline(film, (x0, y0, x1, y1), draw.GREEN, 5)
    side, head = 268, 84
    canvas = np.full((_SIDE + head + 16, _SIDE + 2 * side, 3), _GROUND, np.uint8)
    canvas[head : head + _SIDE, side : side + _SIDE] = film
    down = (y0 + y1) / 2
    # Each edge: its words' upper left corner, where the pointer starts and which point of the
    # lungs it names, both in film px.
    apex = x0 + (x1 - x0) * 0.31
    edges = [
        (
            ("top: the lung apices,", "just above the clavicles"),
            (apex - 60, 8 - head),
            (apex, 70 - head),
            (apex, y0),
        ),
        (
            ("left: inner side", "of the outermost", "ribs, where the", "lung ends"),
            (14 - side, down + 26),
            (-36, down + 88),
            (x0, down + 88),
        ),
        (
            ("right: the same", "on the other side"),
            (_SIDE + 28, down + 58),
            (_SIDE + 18, down + 88),
            (x1, down + 88),
        ),
        (
            ("bottom: the lowest", "costophrenic angle"),
            (_SIDE + 28, y1 - 30),
            (_SIDE + 18, y1),
            (x1, y1),
        ),
    ]
    for lines, (x, y), start, end in edges:
        canvas = _point_at(canvas, start, end, (side, head))
        for row, line in enumerate(lines):
            at = (round(side + x), round(head + y) + 30 * row)
            canvas = draw.draw_text(canvas, line, at, _INK, 26)
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
    cases = [
        (
            film[cut:],
            box - [0, cut, 0, cut],
            None,
            "RIGHT: the apices are cut off,\nthe box ends at the film's edge",
        ),
        (white, box, None, "RIGHT: a white lung counts as\nif it were aired"),
        (_leg(), None, None, "RIGHT: no chest, no box"),
        (film, box, loose, "WRONG: too loose, it takes in\nneck, arms and abdomen"),
        (film, box, tight, "WRONG: too tight, it cuts the\ncostophrenic angles and one side"),
        (white, box, aired, "WRONG: it leaves out the\nwhite part of the lung"),
    ]
    tiles = []
    for picture, right, wrong, _ in cases:
        if right is not None:
            picture = _outline(picture, right, draw.GREEN, 7 if wrong is None else 3)
        if wrong is not None:
            picture = _outline(picture, wrong, draw.RED, 7)
        tiles.append(_mark(picture, wrong is None))
    return draw.sheet(
        tiles,
        [words for *_, words in cases],
        columns=3,
        tile=400,
        title="thick green: right, red: wrong, thin green: where the right box lies",
    )


def _outline(image: np.ndarray, xyxy: object, colour: draw.Colour, thick: int) -> np.ndarray:
    """The box' line, drawn inwards so that it is seen at the film's edge too."""
    out = image.copy()
    x0, y0, x1, y1 = (round(float(v)) for v in np.asarray(xyxy).ravel())
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, out.shape[1]), min(y1, out.shape[0])
    for rows, columns in (
        ((y0, y0 + thick), (x0, x1)),
        ((y1 - thick, y1), (x0, x1)),
        ((y0, y1), (x0, x0 + thick)),
        ((y0, y1), (x1 - thick, x1)),
    ):
        out[slice(*rows), slice(*columns)] = colour
    return out


def _point_at(
    image: np.ndarray, start: tuple[float, float], end: tuple[float, float], shift: tuple[int, int]
) -> np.ndarray:
    out = image.copy()
    (ax, ay), (bx, by) = ((round(x + shift[0]), round(y + shift[1])) for x, y in (start, end))
    cv2.line(out, (ax, ay), (bx, by), _INK, 2, cv2.LINE_AA)
    cv2.circle(out, (bx, by), 9, _INK, -1, cv2.LINE_AA)
    cv2.circle(out, (bx, by), 6, draw.GREEN, -1, cv2.LINE_AA)
    return out


def _mark(image: np.ndarray, right: bool) -> np.ndarray:
    """A tick or a cross in the upper right corner: the colours alone must not tell."""
    out = image.copy()
    x, y, size = image.shape[1] - 84, 24, 60
    colour = draw.GREEN if right else draw.RED
    strokes = (
        [((0.05, 0.55), (0.38, 0.9)), ((0.38, 0.9), (0.95, 0.12))]
        if right
        else [((0.1, 0.1), (0.9, 0.9)), ((0.9, 0.1), (0.1, 0.9))]
    )
    for ink, thick in (((0, 0, 0), 20), (colour, 12)):
        for a, b in strokes:
            ends = [(round(x + size * u), round(y + size * v)) for u, v in (a, b)]
            cv2.line(out, ends[0], ends[1], ink, thick, cv2.LINE_AA)
    return out


def _leg() -> np.ndarray:
    """A knee: what a folder of chest films may hold as well."""
    parts = [
        ((0.5, -0.2), (0.48, 1.2), 300),
        ((0.5, -0.2), (0.5, 0.42), 96),
        ((0.455, 0.4), (0.545, 0.4), 124),
        ((0.5, 0.3), (0.5, 0.4), 130),
        ((0.45, 0.56), (0.55, 0.56), 112),
        ((0.5, 0.56), (0.49, 0.68), 120),
        ((0.5, 0.56), (0.48, 1.2), 88),
        ((0.6, 0.6), (0.585, 1.2), 40),
    ]
    planes = []
    for a, b, thick in parts:
        part = np.zeros((_SIDE, _SIDE), np.uint8)
        ends = [(round(_SIDE * u), round(_SIDE * v)) for u, v in (a, b)]
        cv2.line(part, ends[0], ends[1], 255, thick)
        depth = cv2.distanceTransform(part, cv2.DIST_L2, 5)
        planes.append(1 - np.exp(-depth / (0.1 * thick)))
    leg = 0.4 * planes[0] + 0.45 * np.max(planes[1:], axis=0)
    return draw.to_rgb(cv2.GaussianBlur(leg.astype(np.float32), (0, 0), 4))


def _encode_palette(image: np.ndarray) -> bytes:
    """PNG with 128 colours: a third of the bytes, and nobody sees the difference."""
    file = io.BytesIO()
    quantised = Image.fromarray(image).quantize(128, dither=Image.Dither.NONE)
    quantised.save(file, "PNG", optimize=True)
    return file.getvalue()
