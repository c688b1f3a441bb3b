"""Films → crops of the thorax at full resolution and bit depth, with a manifest.

    python -m detect.crop FILMS --out runs/crops
    python -m detect.crop ../shared/data/images --boxes ../shared/data/thorax.json --out runs/human

A run that was stopped goes on where it was; a film that cannot be read, or shows no chest, gets a
row with its reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from cxr.boxes import (
    Frame,
    area_xyxy,
    as_xyxy,
    clip_xyxy,
    expand_xyxy,
    square_xyxy,
    turn_xyxy,
    union_xyxy,
)
from cxr.cli import as_command, parse_config, to_plain
from cxr.coco import CocoFilm, read_coco
from cxr.draw import encode_png
from cxr.engines import ENGINES, PRECISIONS
from cxr.film import Film, list_films
from cxr.intensity import to_uint8, to_uint16
from cxr.manifest import STATUSES, CropRow, ManifestWriter
from cxr.notes import count_notes
from cxr.rules import refusing, require, require_between, require_one_of
from cxr.stream import LOCAL, Unread, batched, check_workers, default_jobs, read_ahead, spread
from cxr.workdir import Workdir, console, counting, log, provenance, sha256_file, write_atomic
from detect.finder import BOXES, TURNED, ThoraxFinder
from detect.predict import ThoraxBox


class HumanBoxes:
    """Boxes of a COCO file in the detector's place. A film is the entry whose `file_name` ends its
    path; a scaled copy of the film that was boxed gets its boxes scaled, one of another shape none.
    """

    def __init__(self, path: str | Path) -> None:
        self.weights = {Path(path).name: sha256_file(path)}
        self._films = {f.file_name: f for f in read_coco(path).films}

    def box_film(self, film: Film) -> ThoraxBox:
        """The union of the film's boxes, or `no_thorax` with the reason."""
        entry = self._find(film.path)
        if entry is None:
            return _no_thorax("the boxes' file does not list this film")
        if not len(entry.boxes_xyxy):
            return _no_thorax("the boxes' file has no box for this film")
        if not len(entry.counted.boxes_xyxy):
            return _no_thorax("the boxes' file marks all boxes of this film as not to count")
        size_hw = (film.pixels.shape[0], film.pixels.shape[1])
        try:
            entry = entry.counted.resized(size_hw, film.stored_hw)
        except ValueError:
            sizes = [f"{w} x {h} px" for h, w in (film.stored_hw or size_hw, entry.size_hw)]
            return _no_thorax(f"the film has {sizes[0]}, in the boxes' file it has {sizes[1]}")
        drawn = as_xyxy(clip_xyxy(union_xyxy(entry.boxes_xyxy), entry.size_hw)[0])
        return ThoraxBox(drawn, 1.0, "ok", "")

    def _find(self, path: str) -> CocoFilm | None:
        parts = Path(path).resolve().parts
        names = ("/".join(parts[start:]) for start in range(1, len(parts)))  # the longest first
        return next((self._films[name] for name in names if name in self._films), None)


def _no_thorax(reason: str) -> ThoraxBox:
    return ThoraxBox(None, 0.0, "no_thorax", reason)


class Crop(NamedTuple):
    """(h, w) float32 in [0, 1], and the Frame back to the film."""

    pixels: np.ndarray
    frame: Frame


@dataclass(frozen=True)
class CropConfig:
    """Cut the thorax out of chest films: crops at full resolution, and manifest.jsonl.

    Args:
        films: files and folders of films (DICOM, PNG, JPEG, TIFF).
        out: folder for the crops and their manifest; a stopped run goes on there.
        weights: the detector's bundle; empty takes the one that comes with lungfirst.
        field: the lung field's bundle, likewise.
        box: whose box is taken: both (the detector's and the lung field's together, refused or
            flagged where they differ), detector or field.
        turned: a film that lies on its side or upside down is turned upright first (mend), or
            refused (refuse).
        device: auto, cpu, or cuda.
        engine: what runs the networks: auto, onnx, openvino or torch. auto is torch on a GPU, else
            ONNX Runtime where an exported network lies beside each bundle (tools/export.py).
        precision: fp32, or bf16 (openvino and torch): faster where the processor has it, and
            answers differ, also some decisions (docs/speed.md).
        margin: added on each side of the thorax box, as a fraction of the box's side.
        square: make the crops square; what lies beyond the film is black.
        jobs: processes that read films; -1 takes up to four, and none for a few films.
        batch: films the detector sees at a time.
        workers: local; or ray:N, ray:HOST:PORT or ray://HOST:PORT: workers of a Ray cluster, one a
            processor (pip install -e '.[ray]'; see docs/speed.md).
        restart: forget an earlier run in this folder and make all crops anew.
        boxes: a COCO file with boxes to take in the detector's place.
        for_processing: take films that are FOR PROCESSING (raw detector data) too.
    """

    films: tuple[str, ...] = ()
    out: str = "runs/crops"
    weights: str = ""
    field: str = ""
    box: str = "both"
    turned: str = "mend"
    device: str = "auto"
    engine: str = "auto"
    precision: str = "fp32"
    margin: float = 0.05
    square: bool = False
    jobs: int = -1
    batch: int = 8
    workers: str = LOCAL
    restart: bool = False
    boxes: str = ""
    for_processing: bool = False

    def __post_init__(self) -> None:
        require_between(self, batch=(1, 1024), jobs=(-1, 256), margin=(0, 1))
        require_one_of(self, box=BOXES, turned=TURNED)
        require_one_of(self, engine=ENGINES, precision=PRECISIONS)
        check_workers(self.workers)


def crop_film(film: Film, box: ThoraxBox, margin: float = 0.05, square: bool = False) -> Crop:
    """Cut the thorax out of a film at its full resolution, by a box in the film's pixels.

    `margin` is added on each side, as a fraction of the box's; with status `fallback` the whole
    film is taken without one. With `square` the shorter sides grow about the centre, and what lies
    beyond the film is 0; otherwise the crop ends at the film's edge. Raises ValueError for a film
    without a thorax, and for a box that does not touch the film.
    """
    film_hw = height, width = film.pixels.shape
    if box.status == "fallback":
        wanted = np.array([0.0, 0.0, width, height])
    elif box.xyxy is None:
        raise ValueError(f"box of crop_film must have a place. Got {box.status}: {box.reason}.")
    else:
        wanted = clip_xyxy(expand_xyxy(box.xyxy, margin), film_hw)[0]
    rule = f"box of crop_film must touch the film of {width} x {height} px"
    require(area_xyxy(wanted)[0] > 0, rule, box.xyxy)
    frame = Frame.cut(turn_xyxy(wanted, film_hw, box.turned))
    if square:  # from whole pixels, or rounding makes it one pixel too long
        side = max(frame.content_hw)
        x0, y0 = (int(v) for v in np.floor(square_xyxy(frame.source_xyxy)[:2]))
        frame = Frame.cut((x0, y0, x0 + side, y0 + side))
    rows, columns = film.stored_hw or film_hw
    frame = replace(frame, stored_xy=(columns / width, rows / height))
    if box.turned:
        frame = replace(frame, turned=box.turned, film_hw=film_hw)
    return Crop(frame.apply(film.pixels), frame)


def crop_name(path: str | Path, sha256: str) -> str:
    """A file name that two films never share and that says nothing of the patient."""
    place = Path(path).resolve().as_posix()
    return hashlib.sha256(f"{place}\0{sha256}".encode(errors="surrogatepass")).hexdigest()[:16]


def iter_crops(
    paths: Sequence[Path], finder: ThoraxFinder | HumanBoxes, config: CropConfig
) -> Iterator[tuple[CropRow, Film | None, Crop | None]]:
    """Read, box and cut films in batches, in the order of `paths`; each crop is on disk before its
    row is given. Film is None for an unreadable one, Crop is None where nothing was cut. At most a
    batch and `2 * jobs` films are held at a time."""
    jobs = default_jobs(len(paths), config.jobs)
    reads = read_ahead(paths, jobs, for_processing=config.for_processing)
    with ThreadPoolExecutor(2) as writers:
        for batch in batched(reads, config.batch):
            yield from _crop_batch(batch, finder, config, writers)


def _crop_batch(
    batch: list[tuple[Path, Film | Unread]],
    finder: ThoraxFinder | HumanBoxes,
    config: CropConfig,
    writers: ThreadPoolExecutor,
) -> Iterator[tuple[CropRow, Film | None, Crop | None]]:
    films = [film for _, film in batch if isinstance(film, Film)]
    if isinstance(finder, HumanBoxes):
        boxes = [finder.box_film(film) for film in films]
    else:
        boxes = finder.predict([film.pixels for film in films])
    crops = [
        None if box.status == "no_thorax" else crop_film(film, box, config.margin, config.square)
        for film, box in zip(films, boxes, strict=True)
    ]
    # PNG takes as long as the box: both writers work on it without Python's lock
    saved = [
        writers.submit(save_crop, crop, film, Path(config.out)) if crop else None
        for crop, film in zip(crops, films, strict=True)
    ]
    made = zip(boxes, crops, saved, strict=True)
    for path, film in batch:
        if isinstance(film, Unread):
            yield CropRow(path.as_posix(), film.sha256, "unreadable", str(film)), None, None
        else:
            box, crop, file = next(made)
            yield to_row(path, film, box, crop, file.result() if file else None), film, crop


def save_crop(crop: Crop, film: Film, folder: Path) -> str:
    """Write the crop as PNG, 16 bits deep when the film has more than 8; returns its name."""
    name = f"{crop_name(film.path, film.sha256)}.png"
    stored = to_uint16(crop.pixels) if film.bits > 8 else to_uint8(crop.pixels)
    write_atomic(folder / name, encode_png(stored))
    return name


def to_row(path: Path, film: Film, box: ThoraxBox, crop: Crop | None, name: str | None) -> CropRow:
    """The manifest's row of a film that was read."""
    return CropRow(
        film=path.as_posix(),
        sha256=film.sha256,
        status=box.status,
        reason=box.reason or ("no thorax was found" if crop is None else ""),
        patient=film.patient,
        study=film.study,
        size_hw=film.stored_hw or (film.pixels.shape[0], film.pixels.shape[1]),
        thorax_xyxy=None if box.xyxy is None else tuple(film.to_stored(box.xyxy).tolist()),
        score=float(box.score),
        crop_xyxy=crop.frame.original_xyxy if crop else None,
        frame=crop.frame.to_dict() if crop else None,
        crop=name,
        notes=(*film.notes, *box.notes),
        apart=box.apart,
        quality=box.quality,
    )


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 also with films refused, 1 when none could be read, 2 for bad arguments."""
    example = "python -m detect.crop ../shared/data/dicom --out runs/crops"
    config = parse_config(CropConfig, argv, example, ("films",))
    with refusing():
        if not config.films:
            raise ValueError("FILMS must name a file or a folder. Got none; see --help.")
        found = list_films(config.films)
        finder = open_finder(config)
        workdir, weights = Workdir(config.out), dict(finder.weights)
        header = {**provenance(weights), "settings": settings_of(config, weights)}
        book = ManifestWriter(workdir / "manifest.jsonl", header, config.restart)
        workdir.start(to_plain(config), weights=weights)
    with book:
        rows = crop_films(found.films, finder, config, book)
    console.print(_status_table(rows, found.passed_over))
    console.print(f"crops and manifest: {config.out}", highlight=False)
    return 0 if any(row.status != "unreadable" for row in rows) else 1


def open_finder(config: CropConfig) -> ThoraxFinder | HumanBoxes:
    """What gives the boxes: the networks, or people; raises as either does."""
    return HumanBoxes(config.boxes) if config.boxes else load_finder(config)


def load_finder(config: CropConfig) -> ThoraxFinder:
    """The networks that `config` names; raises as `ThoraxFinder.load` does."""
    bundles, how = (config.weights or None, config.field or None), (config.box, config.turned)
    return ThoraxFinder.load(*bundles, config.device, *how, config.engine, config.precision)


def settings_of(config: CropConfig, weights: Mapping[str, str]) -> dict[str, Any]:
    """What the crops of one manifest have in common."""
    settings = {"margin": config.margin, "square": config.square, "boxes_from": dict(weights)}
    if not config.boxes:
        settings |= {"box": config.box, "turned": config.turned}
    settings |= {"for_processing": True} if config.for_processing else {}
    return settings | ({"precision": config.precision} if config.precision != "fp32" else {})


def crop_films(
    films: Sequence[Path],
    finder: ThoraxFinder | HumanBoxes,
    config: CropConfig,
    book: ManifestWriter,
) -> list[CropRow]:
    """Crop what an earlier run has not, with a progress bar; returns the row of each film."""
    pending = book.pending(films, "crop")
    if len(pending) < len(films):
        log.info("%d of %d films are done already", len(films) - len(pending), len(films))
    cut = (
        _rows_of(config, finder, pending)
        if config.workers == LOCAL
        else spread(config.workers, partial(_on_worker, config), pending, config.batch, _lost)
    )
    for row in counting(cut, "cropping", len(pending)):
        book.add(row)
        if row.reason:
            log.warning("%s: %s (%s)", row.film, row.status, row.reason)
    return [book.done[film.as_posix()] for film in films]


def _rows_of(
    config: CropConfig, finder: ThoraxFinder | HumanBoxes, paths: Iterable[Path]
) -> Iterator[CropRow]:
    return (row for row, _, _ in iter_crops(list(paths), finder, config))


def _on_worker(config: CropConfig) -> Callable[[Iterable[Path]], Iterator[CropRow]]:
    """A worker of one core, which reads by itself."""
    alone = replace(config, jobs=0)
    return partial(_rows_of, alone, open_finder(alone))


def _lost(path: Path, why: str) -> CropRow:
    return CropRow(path.as_posix(), "", "unreadable", f"worker_crashed: {why}.")


def _status_table(rows: Sequence[CropRow], passed_over: Mapping[str, int]) -> Table:
    counts = Counter(row.status for row in rows)
    table = Table("status", "films", title="crops")
    for status in STATUSES:
        table.add_row(status, str(counts[status]))
    for reason, number in passed_over.items():
        table.add_row(f"passed over: {reason}", str(number))
    for code, number in count_notes(row.notes for row in rows).items():
        table.add_row(f"noted: {code}", str(number))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
