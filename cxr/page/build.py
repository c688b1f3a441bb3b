"""A page as one HTML file that needs no other file and no network: its parts (charts with words
and tables, small pictures), the HTML, the PDF.

Pictures are data URIs; style and script are inline and named by hash in a Content-Security-Policy
that allows nothing else. Every text is escaped, and control characters are spelt out.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from markupsafe import Markup
from PIL import Image

from cxr.boxes import as_boxes
from cxr.draw import encode_jpeg, encode_png, fit, to_data_uri
from cxr.intensity import to_uint8
from cxr.page import DECISIONS, in_unit, name_of, printable
from cxr.workdir import log, replacing

if TYPE_CHECKING:
    from jinja2 import Template

HERE = Path(__file__).resolve().parent


def write_page(path: str | Path, template: Path, **values: Any) -> Path:
    """Put a page together piece by piece, so that what `values` generate need not be in memory at
    once, and move it into place whole."""
    with replacing(path) as file:
        for piece in page_template(template).generate(**values):
            file.write(piece.encode("utf-8"))
    return Path(path)


def page_text(template: Path, **values: Any) -> str:
    """The whole page."""
    return page_template(template).render(**values)


@cache
def page_template(path: Path) -> Template:
    """A page's template, which may use `base.html` and `parts.html` of this folder. It is given its
    style, that of all pages and then NAME.css beside it, and its script NAME.js, if it has one."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([path.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters.update(csp_hash=csp_hash, in_unit=in_unit, name_of=name_of)
    environment.globals.update(
        decisions=DECISIONS,
        style=_asset(HERE / "page.css") + _asset(path.with_suffix(".css")),
        script=_asset(path.with_suffix(".js")),
    )
    return environment.get_template(path.name)


def _asset(path: Path) -> Markup:
    return Markup(path.read_text(encoding="utf-8") if path.exists() else "")  # noqa: S704 - our own


def csp_hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy allows one inline block."""
    return f"sha256-{base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()}"


def to_json(values: Any) -> Markup:
    """JSON that may stand inside <script>: plain ASCII, in which no tag or comment can begin."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))  # ASCII: no U+2028 either
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - that is what this function is for


_BROWSERS = ("chromium", "google-chrome", "chromium-browser", "google-chrome-stable")
_SECONDS = 180
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --no-pdf-header-footer"
)


def write_pdf(html: Path, pdf: Path, seconds: float = _SECONDS) -> bool:
    """The page as printed by Chromium, without the browser's header and footer, which would show
    the file's path. False, with a line in the log, where no Chromium is or it fails."""
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        log.warning(
            "No %s: Chromium or Chrome is not installed. The page prints from any browser.",
            Path(pdf).name,
        )
        return False
    pdf = Path(pdf).resolve()
    with tempfile.TemporaryDirectory(prefix="audit-pdf-") as folder:
        made = Path(folder) / "page.pdf"
        paths = (f"--user-data-dir={folder}/profile", f"--print-to-pdf={made}")
        command = [browser, *_FLAGS.split(), *paths, Path(html).resolve().as_uri()]
        why = _run_to_end(command, seconds)
        if why is None and (not made.exists() or made.stat().st_size == 0):
            why = "it wrote nothing"
        if why is not None:
            log.warning("No %s: %s failed, %s.", pdf.name, Path(browser).name, why)
            return False
        pdf.parent.mkdir(parents=True, exist_ok=True)
        beside = pdf.with_name(f".{pdf.name}.part")
        shutil.copyfile(made, beside)  # the temporary folder may lie on another disk
        beside.replace(pdf)
    return True


def _run_to_end(command: Sequence[str], seconds: float) -> str | None:
    """What went wrong, or None. The browser's children are ended with it."""
    process = subprocess.Popen(  # noqa: S603 - a browser found on PATH, flags and paths of ours
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        code = process.wait(seconds)
        return None if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


Values = Mapping[str, Any]
Cells = tuple[str, ...]
ALL = "all sources"


@dataclass(frozen=True)
class Table:
    """The same figures as text: for a screen reader, and for whoever wants the digits. `words`
    columns from the left hold words, the others figures. Of a `grouped` table the first column
    names groups, which stand above their rows."""

    head: Cells
    rows: Sequence[Cells]
    words: int = 1
    grouped: bool = False

    @property
    def groups(self) -> list[tuple[str, list[Cells]]]:
        """Rows that follow each other under the same first cell, without it."""
        found = groupby(self.rows, key=lambda row: row[0])
        return [(name, [row[1:] for row in rows]) for name, rows in found]


@dataclass(frozen=True)
class Chart:
    """A chart with its name, its sentence and its table, if the section does not hold that."""

    title: str
    means: str
    svg: Markup
    table: Table | None = None


@dataclass(frozen=True)
class Fold:
    """Charts that stand closed under a title, as they matter less."""

    title: str
    charts: list[Chart]
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page; `table` stands below its charts, open, then `notes` and the `fold`."""

    id: str
    title: str
    intro: Cells
    charts: list[Chart] = field(default_factory=list)
    table: Table | None = None
    notes: Cells = ()
    fold: Fold | None = None


def figure_of(
    row: Values, value: str = "value", low: str = "low", high: str = "high"
) -> tuple[float | None, float | None, float | None]:
    """Value and interval out of a row."""
    return row.get(value), row.get(low), row.get(high)


def by_key(rows: Sequence[Values], key: str) -> list[tuple[str, list[Values]]]:
    """Rows by what they hold under a key, in the order in which that comes first."""
    groups: dict[str, list[Values]] = {}
    for row in rows:
        groups.setdefault(str(row.get(key) or ""), []).append(row)
    return list(groups.items())


def by_source(rows: Sequence[Values]) -> list[Values]:
    """All sources together first, then one after the other in the order they come in."""
    order = list(dict.fromkeys([ALL, *map(source_of, rows)]))
    return sorted(rows, key=lambda row: order.index(source_of(row)))


def source_of(row: Values) -> str:
    """The row's source; `all` and none at all mean all of them."""
    source = str(row.get("source") or "all")
    return ALL if source == "all" else source


# --- small pictures and outlines: pages of 1,000 films must stay below 60 MB. All is pure: arrays
# in the film's or the crop's pixels in, data URIs or fractions out.

SIDE, QUALITY, MAP_SIDE = 320, 70, 64
CARD_SIDE, CARD_QUALITY = 360, 72  # of a film's card in a run's report
_SMALLEST, _SLACK = 0.002, 0.004  # of the film's area; of its longer side

Polygon = list[list[float]]


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI; boxes are xyxy in its pixels."""

    uri: str
    width: int
    height: int
    thorax: tuple[float, float, float, float] | None = None
    cut: tuple[float, float, float, float] | None = None


def to_polygons(mask: np.ndarray) -> list[Polygon]:
    """A mask (H, W) to the outlines of its parts, as [x, y] fractions of the film's width, height.
    An outline runs through the middle of the outermost pixels, leaves out corners that matter less
    than 0.4 % of the longer side, and has no holes; parts below 0.2 % of the film are left out. The
    largest part comes first; an empty mask gives []."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(
            f"mask of to_polygons must be (H, W) of bool. Got {mask.dtype} of shape "
            f"{mask.shape} instead: compare with 0.5 first."
        )
    height, width = mask.shape
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    out = []
    for line in sorted(found, key=cv2.contourArea, reverse=True):
        if cv2.contourArea(line) < _SMALLEST * mask.size:
            break
        corners = cv2.approxPolyDP(line, _SLACK * max(mask.shape), True)[:, 0]
        if len(corners) >= 3:
            points = (corners + 0.5) / (width, height)
            out.append([[round(float(x), 4), round(float(y), 4)] for x, y in points])
    return out


def map_uri(saliency: np.ndarray, side: int = MAP_SIDE) -> str:
    """A map (h, w) ≥ 0 over what the member saw to a grey PNG of at most `side` px as a data URI.
    Its highest value becomes 255: the page colours it. An all-zero map stays black."""
    values = np.asarray(saliency, dtype=np.float32)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(
            "saliency of map_uri must be (h, w), finite and at least 0. Got shape "
            f"{values.shape} instead: clip or rectify it first."
        )
    small = np.maximum(fit(values, min(side, max(values.shape))), 0)
    top = float(small.max())
    share = small / top if top > 0 else np.zeros_like(small)
    return to_data_uri(encode_png(np.rint(share * 255).astype(np.uint8)))


def picture_uri(pixels: np.ndarray, side: int = SIDE, quality: int = QUALITY) -> str:
    """A film or crop (H, W) in [0, 1] to a JPEG of at most `side` px as a data URI."""
    if pixels.ndim != 2:
        raise ValueError(f"pixels of picture_uri must be (H, W). Got shape {pixels.shape} instead.")
    small = fit(pixels.astype(np.float32), min(side, max(pixels.shape)))
    return to_data_uri(encode_jpeg(to_uint8(np.clip(small, 0, 1)), quality))


def inferno(steps: int = 17) -> list[tuple[int, int, int]]:
    """RGB of the inferno colours, dark to bright: they rise evenly in lightness, so that no edge is
    seen that the map does not have."""
    ramp = np.linspace(0, 255, steps).round().astype(np.uint8)[None]
    bgr = cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[0]
    return [(int(r), int(g), int(b)) for b, g, r in bgr]


def make_picture(
    pixels: np.ndarray, thorax_xyxy: Any = None, cut_xyxy: Any = None, side: int = CARD_SIDE
) -> Picture:
    """A film or crop (H, W) float32 in [0, 1] as a thumbnail of at most `side` px; boxes are in
    its own pixels."""
    small = fit(pixels, min(side, max(pixels.shape)))
    height, width = small.shape
    scale = width / pixels.shape[1]
    boxes: list[Any] = [
        None if box is None else tuple(round(float(v) * scale, 1) for v in as_boxes(box)[0])
        for box in (thorax_xyxy, cut_xyxy)
    ]
    return Picture(picture_uri(small, side, CARD_QUALITY), width, height, *boxes)


def make_saliency_picture(saliency: np.ndarray, side: int = MAP_SIDE) -> Picture:
    """A map (H, W) ≥ 0 as a small see-through PNG to be laid over its crop. Inferno colours; the
    value is the opacity too, so that the crop is seen where nothing is salient. Scaled by its
    maximum: an all-zero map is fully transparent."""
    small = np.maximum(fit(saliency.astype(np.float32), min(side, max(saliency.shape))), 0)
    share = small / small.max() if small.max() > 0 else np.zeros_like(small)
    bgr = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    alpha = np.rint(share * 0.7 * 255).astype(np.uint8)
    raw = io.BytesIO()
    Image.fromarray(np.dstack([bgr[..., ::-1], alpha])).save(raw, "PNG", optimize=True)
    return Picture(to_data_uri(raw.getvalue()), small.shape[1], small.shape[0])
