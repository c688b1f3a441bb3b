"""Boxes, contours and saliency over a film, sheets of many films, and figures.

On films all functions are pure: uint8 RGB (H, W, 3) in, a new picture out. Boxes are xyxy in the
pixels of the picture they are drawn on. Figures are by matplotlib, which is loaded when the first
is drawn; never through pyplot, which keeps every figure it ever made.
"""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cxr.boxes import as_boxes
from cxr.rules import require
from cxr.workdir import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[int, int, int]

# Okabe and Ito's palette: told apart by colour-blind readers too, and bright on a dark film.
GREEN: Colour = (0, 200, 140)
ORANGE: Colour = (255, 150, 0)
BLUE: Colour = (86, 180, 233)
RED: Colour = (230, 70, 40)
WHITE: Colour = (255, 255, 255)
_GROUND: Colour = (24, 24, 24)
_INK: Colour = (235, 235, 235)


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W) float in [0, 1] (or uint8) to uint8 RGB; values outside are cut, NaN is black."""
    if pixels.ndim != 2:
        raise ValueError(f"pixels of to_rgb must be (H, W). Got shape {pixels.shape} instead.")
    if pixels.dtype != np.uint8:
        whole = np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        pixels = np.rint(np.clip(whole, 0.0, 1.0) * 255).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2)


def draw_box(
    image: np.ndarray, xyxy: Any, colour: Colour = ORANGE, label: str = "", thin: bool = False
) -> np.ndarray:
    """The outline of one box, its line scaled to the picture, half as wide where it is `thin`;
    `label` inside its upper edge."""
    out = image.copy()
    box = as_boxes(xyxy)[0]
    if not np.isfinite(box).all():
        raise ValueError(f"xyxy of draw_box must be finite. Got {box.tolist()} instead.")
    width = max(1, line_width(image) // (1 + thin))
    # Far-off corners would overflow OpenCV's fixed-point numbers; beyond the edge all look alike.
    limit = [image.shape[1] + width, image.shape[0] + width] * 2
    x0, y0, x1, y1 = (int(v) for v in np.rint(np.clip(box, -width, limit)))
    cv2.rectangle(out, (x0, y0), (x1 - 1, y1 - 1), colour, width)
    if label:
        size = max(12, max(image.shape[:2]) // 28)
        out = draw_text(out, label, (max(x0, 0) + width + 2, max(y0, 0) + width + 1), colour, size)
    return out


def draw_contour(image: np.ndarray, mask: np.ndarray, colour: Colour = BLUE) -> np.ndarray:
    """The outline of a mask (H, W), everything above 0 inside."""
    _check_same_size(image, mask, "mask")
    out = image.copy()
    shapes, _ = cv2.findContours(
        (np.asarray(mask) > 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(out, shapes, -1, colour, line_width(image))
    return out


def overlay_saliency(image: np.ndarray, saliency: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """A saliency map (H, W) ≥ 0 over the film in inferno colours, scaled by its maximum. The map's
    value is its opacity as well, so that the film stays visible where nothing is salient. Inferno
    rises evenly in lightness: no edge is seen that the map does not have. An all-zero map leaves
    the film as it is."""
    _check_same_size(image, saliency, "saliency")
    values = np.asarray(saliency, dtype=np.float64)
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise ValueError("saliency must be finite and at least 0. Clip or rectify it first.")
    top = values.max(initial=0)
    if top <= 0:
        return image.copy()
    share = (values / top).astype(np.float32)
    bgr = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    alpha = (opacity * share)[..., None]
    mixed = image * (1 - alpha) + bgr[..., ::-1] * alpha
    return np.rint(mixed).astype(np.uint8)


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """The picture resized so that its longer side is `side` px, its aspect ratio kept."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image, size, interpolation=how)
    # OpenCV's area mean of ones is 1.0000001: values stay in the picture's own range
    return np.clip(small, image.min(), image.max()) if small.dtype.kind == "f" else small


def write_sheet(
    path: str | Path, images: Sequence[np.ndarray], captions: Sequence[str], tile: int, title: str
) -> None:
    """A `sheet` of six columns as a PNG file."""
    write_atomic(path, encode_png(sheet(images, captions, tile=tile, title=title)))


def sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] = (),
    columns: int = 6,
    tile: int = 256,
    title: str = "",
) -> np.ndarray:
    """Many pictures as one, each fitted into a square of `tile` px with its caption below. A
    caption may hold several lines; a line too long loses its middle, where file names are least
    alike at the ends. Without pictures the sheet says so."""
    if captions and len(captions) != len(images):
        raise ValueError(
            f"captions of sheet must be one for each image. Got {len(captions)} for "
            f"{len(images)} images instead."
        )
    size, gap = max(10, tile // 19), 4
    lines = max((c.count("\n") + 1 for c in captions), default=0)
    cell_h, cell_w = tile + lines * (size + 3) + 2 * gap, tile + gap
    columns = max(1, min(columns, len(images)))
    rows = -(-max(1, len(images)) // columns)
    head = 2 * size + gap if title else 0
    width = max(columns * cell_w + gap, tile + 2 * gap)
    out = np.full((head + rows * cell_h + gap, width, 3), _GROUND, np.uint8)
    labels = [(title, (2 * gap, size // 2))] if title else []
    for number, image in enumerate(images):
        small = fit(image, tile)
        x, y = gap + number % columns * cell_w, head + gap + number // columns * cell_h
        dy, dx = (tile - small.shape[0]) // 2, (tile - small.shape[1]) // 2
        out[y + dy : y + dy + small.shape[0], x + dx : x + dx + small.shape[1]] = small
        for row, line in enumerate(captions[number].split("\n") if captions else ()):
            labels.append((shorten(line, tile, size), (x, y + tile + 2 + row * (size + 3))))
    if not images:
        labels.append(("no films", (2 * gap, head + 2 * gap)))
    return _draw_texts(out, labels, _INK, size)


def draw_text(
    image: np.ndarray, text: str, xy: tuple[int, int], colour: Colour = _INK, size: int = 14
) -> np.ndarray:
    """One line of text, its upper left corner at `xy`, with a dark rim to be read on any film."""
    return _draw_texts(image, [(text, xy)], colour, size, rim=max(1, size // 9))


def shorten(text: str, width: int, size: int) -> str:
    """The text, or as much of its beginning and end as fits `width` px at that size."""
    text = to_ascii(text)
    if _font(size).getlength(text) <= width:
        return text
    for keep in range(len(text) - 1, 1, -1):
        short = text[: (keep + 1) // 2] + "..." + text[len(text) - keep // 2 :]
        if _font(size).getlength(short) <= width:
            return short
    return ""


def to_ascii(text: str) -> str:
    """Text that the font can draw: accents dropped, anything else unknown as '?'."""
    plain = unicodedata.normalize("NFKD", text.translate({0x2265: ">=", 0x2264: "<=", 0xD7: "x"}))
    kept = (c for c in plain if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else "?" for c in kept)


def encode_png(image: np.ndarray) -> bytes:
    """uint8 RGB or grey, or uint16 grey, as PNG, compressed as OpenCV does by itself: films are
    mostly noise, and level 6 takes ten times as long (thirty times with 16 bits) for 6 % less."""
    return _encode(image, ".png", [])


def encode_jpeg(image: np.ndarray, quality: int = 85) -> bytes:
    """uint8 RGB or grey as JPEG."""
    return _encode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def to_data_uri(encoded: bytes) -> str:
    """PNG or JPEG bytes as a data URI for an HTML page that needs no other file."""
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def line_width(image: np.ndarray) -> int:
    """Pixels of a line that is seen at the picture's size: 2 at 512 px."""
    return max(1, round(max(image.shape[:2]) / 256))


def _encode(image: np.ndarray, kind: str, options: list[int]) -> bytes:
    done, raw = cv2.imencode(kind, image[..., ::-1] if image.ndim == 3 else image, options)
    if not done:
        raise ValueError(f"image of shape {image.shape} and {image.dtype} is no {kind} picture.")
    return raw.tobytes()


def _draw_texts(
    image: np.ndarray,
    texts: Sequence[tuple[str, tuple[int, int]]],
    colour: Colour,
    size: int,
    rim: int = 0,
) -> np.ndarray:
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    for text, xy in texts:
        pen.text(xy, to_ascii(text), colour, _font(size), stroke_width=rim, stroke_fill=(0, 0, 0))
    return np.array(canvas)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)  # ships inside Pillow: the same letters on every machine


def _check_same_size(image: np.ndarray, plane: np.ndarray, name: str) -> None:
    if np.shape(plane) != image.shape[:2]:
        raise ValueError(
            f"{name} must be of the image's size {image.shape[:2]}. "
            f"Got shape {np.shape(plane)} instead."
        )


# --- figures by matplotlib ---

# Okabe and Ito's colours, each with a mark and a line style: told apart without colour too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = tuple(zip(COLOURS, ("o-", "s--", "^:", "D-.", "v-", "P--"), strict=True))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def write_figure(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """The figure as PNG, atomically."""
    return write_atomic(path, to_png(figure, dpi))


def draw_confusion(
    counts: np.ndarray | Sequence[Sequence[int]],
    truths: Sequence[str],
    answers: Sequence[str],
    path: str | Path,
    title: str,
) -> Path:
    """(T, A) films as PNG: true classes in rows, answers in columns. The shade is the share of its
    row, so that a rare class is seen as well as a common one."""
    counts = np.asarray(counts)
    wanted = (len(truths), len(answers))
    require(counts.shape == wanted, f"counts must be {wanted}, one row a true class", counts.shape)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows, columns = counts.shape
    figure = new_figure(1.8 + 1.3 * columns, 1.6 + 1.0 * rows)
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    panel.set_xticks(range(columns), answers)
    panel.set_yticks(range(rows), truths)
    panel.set(xlabel="answer", ylabel="truth", title=title)
    for row, column in np.ndindex(rows, columns):
        text = f"{counts[row, column]}\n{100 * shares[row, column]:.0f} %"
        colour = "white" if shares[row, column] > 0.5 else "black"
        panel.text(column, row, text, ha="center", va="center", color=colour)
    return write_figure(figure, path, dpi=130)


History = Sequence[Mapping[str, float]]


def draw_curves(history: History, path: Path, title: str, kept: int | None = None) -> Path:
    """Loss and validation AUC of each epoch; a dashed line where a new phase begins, a dotted one
    at the kept epoch (`kept` counts from 0)."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9, 3.7)
    losses, aucs = figure.subplots(1, 2)
    starts = [
        i for i in range(1, len(history)) if history[i].get("phase") != history[i - 1].get("phase")
    ]
    _lines(losses, history, {"train_loss": "training", "val_loss": "validation"}, starts)
    _lines(aucs, history, {"val_auc": "macro AUC", "val_accuracy": "accuracy"}, starts)
    for axis, name in ((losses, "loss"), (aucs, "of the validation films")):
        for i in starts:
            axis.axvline(i + 0.5, color="grey", linestyle="--", linewidth=1)
        if kept is not None:
            axis.axvline(kept + 1, color="grey", linestyle=":", linewidth=1, label="kept")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="epoch", ylabel=name)
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    return write_figure(figure, path)


def draw_restoring(history: History, path: Path) -> Path:
    """The loss of each epoch of a restoration, and as a dashed line that of the distorted films
    themselves."""
    figure = new_figure(5.5, 3.6)
    axis = figure.subplots()
    _lines(axis, history, {"train_loss": "training", "val_loss": "validation"}, [])
    epochs = [row["epoch"] + 1 for row in history]
    untouched = [row["val_untouched"] for row in history]
    axis.plot(epochs, untouched, color="grey", linestyle="--", label="distorted films as they are")
    axis.set(xlabel="epoch", ylabel="1 − SSIM", ylim=(0, None))
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return write_figure(figure, path)


def draw_history(history: History, names: Sequence[str], path: Path) -> Path:
    """One panel a name over the epochs, as PNG; epochs that have no such value are left out."""
    figure = new_figure(4.5 * len(names), 3.2)
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = [(row["epoch"] + 1, row[name]) for row in history if name in row]
        panel.plot(*zip(*points, strict=True), marker=".") if points else None
        panel.set(xlabel="epoch", title=name.replace("_", " "))
        panel.grid(alpha=0.3)
    return write_figure(figure, path)


def _lines(axis: Axes, history: History, names: Mapping[str, str], starts: list[int]) -> None:
    """A line a key of `names` over the epochs from 1 on, with a gap before each start."""
    xs = np.insert(np.arange(len(history)) + 1.0, starts, np.array(starts) + 0.5)
    for key, label in names.items():
        values = np.array([row.get(key, np.nan) for row in history], float)
        axis.plot(xs, np.insert(values, starts, np.nan), label=label, marker=".")


def draw_panels(
    images: np.ndarray, goals: np.ndarray, restored: np.ndarray, names: Sequence[str], path: Path
) -> Path:
    """Each film in a column: image, target region, restored; all (N, h, w) in [0, 1]."""
    columns = len(images)
    figure = new_figure(1.9 * columns + 0.6, 6.0)
    axes: Any = figure.subplots(3, columns, squeeze=False)
    rows = (("image", images), ("target region", goals), ("restored", restored))
    for row, (label, pictures) in enumerate(rows):
        for column in range(columns):
            axis = axes[row, column]
            axis.imshow(pictures[column], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(names[column], fontsize=9)
        axes[row, 0].set_ylabel(label)
    return write_figure(figure, path)
