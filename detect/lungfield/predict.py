"""Lung fields of a folder of films: `python -m detect.lungfield predict FILMS --out DIR`

DIR holds one PNG a film (0 / 255, the film's own pixels), manifest.jsonl with a row for each film,
unreadable ones with their reason, and sheet.png. A run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr.cli import to_plain
from cxr.draw import BLUE, draw_contour, encode_png, fit, to_rgb, write_sheet
from cxr.engines import ENGINES, PRECISIONS
from cxr.film import Film, list_films
from cxr.ledger import RowLedger
from cxr.rules import refusing, require_between, require_one_of
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import Workdir, console, counting, log, provenance, write_atomic
from detect.crop import crop_name
from detect.lungfield.field import MIN_COMPONENT, LungField, cut_edges, field_box_xyxy

SCHEMA, VERSION = "lungfirst.fields", 1
STATUSES = ("ok", "no_field", "unreadable")
_TILE = 256


@dataclass(frozen=True)
class FieldPredictConfig:
    """Segment the lung field of chest films: one mask a film, and manifest.jsonl.

    Args:
        films: files and folders of films (DICOM, PNG, JPEG, TIFF).
        out: folder for the masks and their manifest; a stopped run goes on there.
        weights: the network's bundle; empty takes the one that comes with lungfirst.
        device: auto, cpu, or cuda.
        engine: what runs the networks: auto, onnx, openvino or torch. auto is torch on a GPU, else
            ONNX Runtime where an exported network lies beside each bundle (tools/export.py).
        precision: fp32, or bf16 (openvino and torch): faster where the processor has it, and
            the field differs a little (docs/speed.md).
        jobs: processes that read films; -1 takes up to four, and none for a few films.
        batch: films the network sees at a time.
        tiles: films on sheet.png, spread evenly over this run's; 0 for no sheet.
        restart: forget an earlier run in this folder.
        for_processing: take films that are FOR PROCESSING (raw detector data) too.
    """

    films: tuple[str, ...] = ()
    out: str = "runs/fields"
    weights: str = ""
    device: str = "auto"
    engine: str = "auto"
    precision: str = "fp32"
    jobs: int = -1
    batch: int = 8
    tiles: int = 24
    restart: bool = False
    for_processing: bool = False

    def __post_init__(self) -> None:
        require_between(self, batch=(1, 1024), jobs=(-1, 256), tiles=(0, 200))
        require_one_of(self, engine=ENGINES, precision=PRECISIONS)


@dataclass(frozen=True)
class FieldRow:
    """One film. `size_hw`, `field_xyxy` and the mask are in the film's pixels as they are stored;
    `mask` is relative to the manifest; `field_share` is the field's share of the film; `cut_edges`
    are where the film cuts it off."""

    film: str
    sha256: str
    status: str
    reason: str = ""
    patient: str = ""
    study: str = ""
    size_hw: tuple[int, int] | None = None
    field_share: float | None = None
    field_xyxy: tuple[float, float, float, float] | None = None
    cut_edges: tuple[str, ...] = ()
    mask: str | None = None

    def __post_init__(self) -> None:
        require_one_of(self, status=STATUSES)
        done = self.status == "ok"
        if done != (self.mask is not None) or done == bool(self.reason):
            raise ValueError(
                f"{self.film}: status ok needs a mask and no reason, any other "
                "a reason and no mask."
            )


def to_row(path: Path, film: Film, mask: np.ndarray, name: str) -> FieldRow:
    """The manifest's row of a film that was read, with its mask (H, W) bool in film pixels."""
    share, box = round(float(mask.mean()), 5), field_box_xyxy(mask)
    known: dict[str, Any] = {
        "patient": film.patient,
        "study": film.study,
        "field_share": share,
        "size_hw": film.stored_hw or (film.pixels.shape[0], film.pixels.shape[1]),
    }
    if box is None:
        status = "no_field"
        known["reason"] = (
            f"no lung field found: {share:.1%} of the film is marked, and no part of it covers "
            f"{MIN_COMPONENT:.0%}"
        )
    else:
        status, place = "ok", tuple(film.to_stored(box).tolist())
        known |= {"field_xyxy": place, "cut_edges": cut_edges(mask), "mask": name}
    return FieldRow(path.as_posix(), film.sha256, status, **known)


def iter_fields(
    paths: Sequence[Path], net: LungField, out: Path, config: FieldPredictConfig
) -> Iterator[tuple[FieldRow, Film | None, np.ndarray | None]]:
    """Read and segment films in batches, in the order of `paths`; each mask is on disk before its
    row is given. Film and mask (H, W) bool are None for an unreadable one."""
    jobs = default_jobs(len(paths), config.jobs)
    reads = read_ahead(paths, jobs, for_processing=config.for_processing)
    for waiting in batched(reads, config.batch):
        found = iter(net.segment([film.pixels for _, film in waiting if isinstance(film, Film)]))
        for path, film in waiting:
            if isinstance(film, Unread):
                row = FieldRow(path.as_posix(), film.sha256, "unreadable", str(film))
                yield row, None, None
                continue
            mask = next(found) > net.threshold
            row = to_row(path, film, mask, f"{crop_name(path, film.sha256)}.png")
            if row.mask:
                white: np.ndarray = mask.astype(np.uint8) * 255
                if film.stored_hw:
                    white = cv2.resize(white, film.stored_hw[::-1], interpolation=cv2.INTER_NEAREST)
                write_atomic(out / row.mask, encode_png(white))
            yield row, film, mask


def predict(config: FieldPredictConfig) -> int:
    """The command; 0 also with films refused, 1 when none could be read."""
    with refusing():
        if not config.films:
            raise ValueError("FILMS must name a file or a folder. Got none; see --help.")
        films = list_films(config.films).films
        net = LungField.load(config.weights or None, config.device, config.engine, config.precision)
        workdir, path = Workdir(config.out), Path(config.out) / "manifest.jsonl"
        settings: dict[str, Any] = {"weights": net.weights}
        settings |= {"for_processing": True} if config.for_processing else {}
        settings |= {"precision": config.precision} if config.precision != "fp32" else {}
        header = {**provenance(net.weights), "settings": settings}
        book = RowLedger(path, FieldRow, SCHEMA, VERSION, header, config.restart)
    workdir.start(to_plain(config), weights=net.weights)
    pending = book.pending(films, "mask")
    if len(pending) < len(films):
        log.info("%d of %d films are done already", len(films) - len(pending), len(films))
    with book:
        tiles = _segment_pending(pending, net, config, book)
    if tiles:
        pictures, captions = zip(*tiles, strict=True)
        write_sheet(workdir / "sheet.png", pictures, captions, _TILE, "lung fields")
    rows = [book.done[film.as_posix()] for film in films]
    counts = Counter(row.status for row in rows)
    console.print(", ".join(f"{counts[s]} {s}" for s in STATUSES) + f": {path}", highlight=False)
    return 0 if any(row.status != "unreadable" for row in rows) else 1


def _segment_pending(
    pending: Sequence[Path], net: LungField, config: FieldPredictConfig, book: RowLedger[FieldRow]
) -> list[tuple[np.ndarray, str]]:
    """Append each film's row to the manifest; returns the sheet's tiles."""
    wanted = set(np.linspace(0, max(0, len(pending) - 1), config.tiles, dtype=int).tolist())
    tiles, steps = [], iter_fields(pending, net, book.path.parent, config)
    for number, (row, film, mask) in enumerate(counting(steps, "segmenting", len(pending))):
        book.add(row)
        if row.reason:
            log.warning("%s: %s (%s)", row.film, row.status, row.reason)
        if number in wanted and film is not None and mask is not None:
            tiles.append(_tile(row, film, mask))
    return tiles


def _tile(row: FieldRow, film: Film, mask: np.ndarray) -> tuple[np.ndarray, str]:
    picture = fit(to_rgb(film.pixels), 2 * _TILE)
    small = fit(mask.astype(np.uint8) * 255, 2 * _TILE) > 127
    share = f"{row.field_share or 0:.0%} of the film"
    edges = f", cut {' '.join(row.cut_edges)}" if row.cut_edges else ""
    return draw_contour(picture, small, BLUE), f"{Path(row.film).name}\n{share}{edges}"
