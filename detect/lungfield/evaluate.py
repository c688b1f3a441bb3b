"""How good the lung fields are on patients never trained on.

    python -m detect.lungfield evaluate --part test --out runs/lungfield_test

Each film is measured whole and as a thorax crop, against its human mask; the field's box against
the thorax box, drawn by a person and found by the detector. Writes metrics.json, films.csv,
table.md, worst_film.png and worst_crop.png, and prints the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from cxr.boxes import Frame, clip_xyxy, expand_xyxy, iou_xyxy, mask_box_xyxy, union_xyxy
from cxr.cli import to_plain
from cxr.coco import read_coco
from cxr.draw import ORANGE, draw_contour, encode_png, sheet, to_rgb
from cxr.film import FilmError, read_film
from cxr.films_table import FilmRow
from cxr.split import Split
from cxr.workdir import Workdir, console, log, write_atomic
from detect.lungfield.data import CROP_MARGIN, VIEWS, masked_rows, read_mask
from detect.lungfield.field import (
    LungField,
    Overlap,
    cut_edges,
    disagreement,
    field_box_xyxy,
    overlap,
)
from detect.lungfield.tables import print_tables, write_tables
from detect.predict import ThoraxDetector

_GRID = 64  # the constant field's cells a side


@dataclass(frozen=True)
class FieldEvaluateConfig:
    """Measure the lung fields against human masks: Dice, IoU, coverage, boxes, cut edges.

    Args:
        weights: the network's bundle; empty takes the one that comes with lungfirst.
        device: auto, cpu, or cuda.
        data: folder with films.csv, which names each film's mask.
        annotations: COCO file in `data` with the thorax boxes that people drew.
        split: split of the patients, as `python -m cxr.split` saves it.
        part: part of the split to measure on, or all; the constant field comes from part train.
        sources: only films of these sources; empty takes all.
        publishable_only: leave out films whose licence forbids publishing a model, so that part
            train is what was trained on.
        detector: compare with the shipped detector's boxes too.
        max_films: stop after so many films; 0 takes all.
        worst: films on each sheet of the worst.
        seed: of the bootstrap.
        out: folder for the results.
    """

    weights: str = ""
    device: str = "auto"
    data: str = "../shared/data"
    annotations: str = "thorax.json"
    split: str = "configs/split_seed0.json"
    part: str = "test"
    sources: list[str] = field(default_factory=list)
    publishable_only: bool = False
    detector: bool = True
    max_films: int = 0
    worst: int = 24
    seed: int = 0
    out: str = "runs/lungfield_evaluate"


@dataclass(frozen=True)
class FieldResult:
    """One film in one view (film or crop); NaN where there is nothing to compare with.

    `found` and `constant` are the network's field and the constant field against the human mask;
    `box_iou` is the field's box against the human box; `human` and `detector` are the disagreement
    of the found field with that thorax box. Edges and boxes of whole films only.
    """

    row: FilmRow
    view: str
    found: Overlap
    constant: Overlap
    box_iou: float = math.nan
    human: float = math.nan
    detector: float = math.nan
    edges: tuple[str, ...] = ()
    true_edges: tuple[str, ...] = ()

    @property
    def missed(self) -> bool:
        """Nothing of the field was found."""
        return not self.found.dice > 0


@dataclass(frozen=True)
class Look:
    """What one film shows in one view: pixels (h, w), its true mask and the found one (bool)."""

    pixels: np.ndarray
    truth: np.ndarray
    found: np.ndarray


class FieldMeter:
    """Measures films with one network, human boxes, the detector, and a constant field."""

    def __init__(
        self,
        net: LungField,
        data: Path,
        boxes: dict[str, np.ndarray],
        constant: dict[str, np.ndarray],
        detector: ThoraxDetector | None = None,
    ) -> None:
        self.net, self.data, self.boxes = net, data, boxes
        self.constant, self.detector = constant, detector

    def look(self, row: FilmRow, view: str) -> Look:
        """Read a film, cut its crop for view `crop`, and segment it.

        Raises FilmError or ValueError for a film or mask that cannot be read.
        """
        pixels = read_film(self.data / row.image).pixels
        truth = read_mask(self.data / row.mask, (pixels.shape[0], pixels.shape[1]))
        if view == "crop":
            frame = crop_frame(truth, self.boxes.get(row.image))
            truth = frame.apply(truth.astype(np.uint8)) > 0
            pixels = frame.apply(pixels)
        return Look(pixels, truth, self.net.segment([pixels])[0] > self.net.threshold)

    def measure(self, row: FilmRow) -> list[FieldResult]:
        """The film's result whole and as a crop; raises like `look`."""
        return [self._measure_view(row, view) for view in VIEWS]

    def _measure_view(self, row: FilmRow, view: str) -> FieldResult:
        seen = self.look(row, view)
        fixed = spread(self.constant[view], (seen.truth.shape[0], seen.truth.shape[1]))
        scores = overlap(seen.found, seen.truth), overlap(fixed, seen.truth)
        if view == "crop":
            return FieldResult(row, view, *scores)
        human, own = self.boxes.get(row.image), field_box_xyxy(seen.found)
        found = self.detector.predict([seen.pixels])[0] if self.detector else None
        usable = found is not None and found.status == "ok" and found.xyxy is not None
        return FieldResult(
            row,
            view,
            *scores,
            box_iou=math.nan
            if human is None
            else 0.0
            if own is None
            else float(iou_xyxy(own, human)[0, 0]),
            human=math.nan if human is None else disagreement(seen.found, human),
            detector=disagreement(seen.found, found.xyxy) if usable else math.nan,  # type: ignore[union-attr, arg-type]
            edges=cut_edges(seen.found),
            true_edges=cut_edges(seen.truth),
        )


def crop_frame(mask: np.ndarray, box_xyxy: np.ndarray | None) -> Frame:
    """The cut that `detect.crop` makes of a film with this thorax box; the mask's own without."""
    box = mask_box_xyxy(mask) if box_xyxy is None else box_xyxy
    size_hw = (mask.shape[0], mask.shape[1])
    if box is None:
        return Frame.cut((0, 0, size_hw[1], size_hw[0]))
    return Frame.cut(clip_xyxy(expand_xyxy(box, CROP_MARGIN), size_hw))


def constant_fields(
    rows: Sequence[FilmRow], data: Path, boxes: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """View → (64, 64) bool: where more than half of these films have their lungs, in fractions.

    What a network that never looks at the film would answer.
    """
    sums = {view: np.zeros((_GRID, _GRID)) for view in VIEWS}
    for row in rows:
        raw = cv2.imread(str(data / row.mask), cv2.IMREAD_GRAYSCALE)
        if raw is None:
            continue
        cuts = {"film": raw, "crop": crop_frame(raw > 127, boxes.get(row.image)).apply(raw)}
        for view, part in cuts.items():
            sums[view] += cv2.resize(part, (_GRID, _GRID), interpolation=cv2.INTER_AREA) / 255
    return {view: total > len(rows) / 2 for view, total in sums.items()}


def spread(grid: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """A constant field (h, w) bool over a film of (height, width)."""
    height, width = size_hw
    return cv2.resize(grid.astype(np.float32), (width, height)) > 0.5


def evaluate(config: FieldEvaluateConfig) -> int:
    """The command; 0 when it measured, 1 when no film could be read, 2 for wrong arguments."""
    data = Path(config.data)
    try:
        net = LungField.load(config.weights or None, config.device)
        rows, train = _choose_rows(config)
        boxes = _read_boxes(data / config.annotations)
        detector = ThoraxDetector.load(device=config.device) if config.detector else None
        meter = FieldMeter(net, data, boxes, constant_fields(train, data, boxes), detector)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 2
    workdir = Workdir(config.out)
    workdir.start(to_plain(config), config.seed, net.weights)
    results = []
    for row in track(rows, "measuring", console=console, transient=True):
        try:
            results += meter.measure(row)
        except (FilmError, ValueError) as error:
            log.warning("%s left out: %s", row.image, error)
    if not results:
        log.error("no film of part %s could be read", config.part)
        return 1
    tables = write_tables(results, config.part, workdir, config.seed)
    for view in VIEWS:
        draw_worst(
            meter,
            [r for r in results if r.view == view],
            config.worst,
            workdir / f"worst_{view}.png",
        )
    print_tables(tables)
    console.print(f"metrics.json, films.csv, table.md and sheets: {workdir.path}", highlight=False)
    return 0


def _choose_rows(config: FieldEvaluateConfig) -> tuple[list[FilmRow], list[FilmRow]]:
    """Rows to measure, and rows for the constant field."""
    rows = masked_rows(config.data, config.sources)
    rows = [r for r in rows if r.publishable or not config.publishable_only]
    if config.part == "all":
        chosen = train = rows  # a constant field fitted on its own test: a stronger baseline
    else:
        split, patients = Split.load(config.split), [r.patient_id for r in rows]
        chosen = [rows[i] for i in split.select(patients, config.part)]
        train = [rows[i] for i in split.select(patients, "train")]
    if config.max_films:
        chosen = chosen[: config.max_films]
    if not chosen:
        raise ValueError(
            f"part must name a part of the split with films. Got {config.part!r}, "
            "which leaves none."
        )
    return chosen, train or chosen


def _read_boxes(path: Path) -> dict[str, np.ndarray]:
    """Film name → its thorax box (4,) xyxy; empty without the file."""
    if not path.is_file():
        log.warning("no %s: fields are not compared with human boxes", path)
        return {}
    films = read_coco(path).films
    return {f.file_name: union_xyxy(f.boxes_xyxy) for f in films if len(f.boxes_xyxy)}


def draw_worst(meter: FieldMeter, results: Sequence[FieldResult], number: int, path: Path) -> None:
    """A sheet of the lowest Dice: the human mask in white, the found field in orange."""
    worst = sorted(results, key=lambda r: r.found.dice)[:number]
    pictures, captions = [], []
    for result in worst:
        seen = meter.look(result.row, result.view)
        picture = draw_contour(to_rgb(seen.pixels), seen.truth, (255, 255, 255))
        pictures.append(draw_contour(picture, seen.found, ORANGE))
        captions.append(
            f"Dice {result.found.dice:.3f}  {result.row.source}\n{Path(result.row.image).name}"
        )
    title = f"the {len(worst)} worst of {len(results)}: human white, found orange"
    write_atomic(path, encode_png(sheet(pictures, captions, columns=6, tile=320, title=title)))
