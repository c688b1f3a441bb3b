"""report.html: one page for a run, with every film's box, crop, members, decision and saliency.

The page needs no other file and no network: pictures are data URIs, style and script are inline
and named by hash in a Content-Security-Policy. Films are kept in report.jsonl, a line each, as
they finish; the page is put together from it piece by piece, so memory holds one film at a time.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from classify.screening.tiers import TIERS
from cxr.boxes import as_boxes
from cxr.draw import encode_jpeg, fit, to_data_uri
from cxr.intensity import to_uint8
from cxr.ledger import FilmRecords
from cxr.workdir import replacing

SIDE, QUALITY, MAP_SIDE = 360, 72, 64  # 1,000 films stay below 60 MB
_DECISIONS = ("read", "not_read_by_model", "definitely_normal")


@dataclass(frozen=True)
class MemberBar:
    """One member's softmax probabilities for a film."""

    target: str
    normal: float
    found: float
    others: float


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI; boxes are xyxy in its pixels."""

    uri: str
    width: int
    height: int
    thorax: tuple[float, float, float, float] | None = None
    cut: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class FilmCard:
    """What the page says of one film; pictures are None where there is nothing to show."""

    film: str
    status: str
    reason: str
    decision: str
    tier: str = ""
    abnormal_score: float | None = None
    members: tuple[MemberBar, ...] = ()
    facts: tuple[str, ...] = ()
    picture: Picture | None = None
    crop: Picture | None = None
    saliency: Picture | None = None
    saliency_of: str = ""


@dataclass(frozen=True)
class ReportSummary:
    """What the page says of the whole run."""

    title: str
    made: str
    guarantee: str
    proven: bool
    threshold_id: str
    cropped: bool
    targets: tuple[str, ...]
    cautions: tuple[str, ...] = ()
    passed_over: tuple[tuple[str, int], ...] = ()
    complete: bool = True


class ReportBook(FilmRecords):
    """report.jsonl: a line a film; memory holds how urgent each is."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, _urgency)

    def add(self, card: FilmCard) -> None:  # type: ignore[override]
        """Write one film's card; a film that stands there already is replaced by the new one."""
        super().add(asdict(card))

    @property
    def counts(self) -> Counter[str]:
        """How many films have each decision."""
        return Counter(_DECISIONS[urgency[0]] for urgency in self.kept())

    def cards(self) -> Iterator[dict[str, Any]]:
        """The films as plain values, those to be read first, each read from disk when asked for."""
        for number, card in enumerate(self.records(ranked=True), 1):
            yield {"number": number, **card}


def make_picture(
    pixels: np.ndarray, thorax_xyxy: Any = None, cut_xyxy: Any = None, side: int = SIDE
) -> Picture:
    """A film or crop (H, W) float32 in [0, 1] as a thumbnail of at most `side` px; boxes are in
    its own pixels."""
    small = fit(pixels, min(side, max(pixels.shape)))
    height, width = small.shape
    scale = width / pixels.shape[1]
    boxes = [None if b is None else _scaled(b, scale) for b in (thorax_xyxy, cut_xyxy)]
    return Picture(
        to_data_uri(encode_jpeg(to_uint8(small), QUALITY)), width, height, boxes[0], boxes[1]
    )


def make_saliency_picture(saliency: np.ndarray, side: int = MAP_SIDE) -> Picture:
    """A map (H, W) ≥ 0 as a small see-through PNG to be laid over its crop.

    Inferno colours; the value is the opacity too, so that the crop is seen where nothing is
    salient. Scaled by its maximum: an all-zero map is fully transparent.
    """
    small = np.maximum(fit(saliency.astype(np.float32), min(side, max(saliency.shape))), 0)
    share = small / small.max() if small.max() > 0 else np.zeros_like(small)
    bgr = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    alpha = np.rint(share * 0.7 * 255).astype(np.uint8)
    raw = io.BytesIO()
    Image.fromarray(np.dstack([bgr[..., ::-1], alpha])).save(raw, "PNG", optimize=True)
    return Picture(to_data_uri(raw.getvalue()), small.shape[1], small.shape[0])


def printable(text: str) -> str:
    """Text with control, direction and undecodable characters spelt out: they can deceive a reader
    or break a file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_report(path: str | Path, summary: ReportSummary, book: ReportBook) -> Path:
    """Put the page together from the book, one film at a time, and move it into place whole."""
    path, counts = Path(path), book.counts
    shown = {
        "summary": summary,
        "cards": book.cards,
        "films": len(book),
        "counts": {d: counts[d] for d in _DECISIONS},
    }
    with replacing(path) as file:
        for piece in _template().generate(**shown):
            file.write(piece.encode("utf-8"))
    return path


def csp_hash(text: str) -> str:
    """The source expression by which a Content-Security-Policy allows one inline block."""
    return f"sha256-{base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()}"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("classify", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(csp_hash=csp_hash, printable=printable, name_of=_name_of)
    return environment.get_template("report.html")


def _name_of(film: str) -> str:
    return film.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or film


def _urgency(card: Mapping[str, Any]) -> tuple[Any, ...]:
    """Films to be read come first, then refused ones; pressing tiers and high scores before."""
    tier = TIERS.index(card["tier"]) if card["tier"] in TIERS else len(TIERS)
    score = card["abnormal_score"]
    return _DECISIONS.index(card["decision"]), tier, -(score if score is not None else 2.0)


def _scaled(box_xyxy: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (round(float(v) * scale, 1) for v in as_boxes(box_xyxy)[0])
    return x0, y0, x1, y1
