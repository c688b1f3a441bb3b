"""How good the lung fields are on patients never trained on.

    python -m detect.lungfield evaluate --part test --out runs/lungfield_test

Each film is measured whole and as a thorax crop, against its human mask; the field's box against
the thorax box, drawn by a person and found by the detector. Writes metrics.json, films.csv,
table.md, worst_film.png and worst_crop.png, and prints the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr.boxes import Frame, clip_xyxy, expand_xyxy, iou_xyxy, mask_box_xyxy, union_xyxy
from cxr.cli import Several, as_list, to_plain
from cxr.data_folders import DataFolders
from cxr.draw import ORANGE, draw_contour, fit, to_rgb, write_sheet
from cxr.film import FilmError, read_film
from cxr.films_table import FilmRow
from cxr.rules import refusing
from cxr.stats import Interval, bootstrap_mean, in_words
from cxr.workdir import Workdir, console, counting, log, to_json, write_atomic, write_json
from detect.data import MeasureConfig, choose_part, masked_rows, read_annotations, read_mask
from detect.lungfield.field import (
    CROP_MARGIN,
    VIEWS,
    LungField,
    Overlap,
    cut_edges,
    disagreement,
    field_box_xyxy,
    overlap,
)
from detect.metrics import SIDES, by_source, number, print_table, to_csv, to_markdown
from detect.predict import ThoraxDetector

METHODS = ("network", "constant field")
PERCENTILES = (50, 90, 95, 99)
_GRID = 64  # the constant field's cells a side
_SHARES = ("iou", "coverage", "precision")
_COLUMNS = {  # of the table: name → key of a line
    "films": "films",
    "patients": "patients",
    "Dice [95 %]": "dice",
    "median": "median_dice",
    "p5": "low_dice",
    "Dice≥.95 [95 %]": "share_95",
    "IoU [95 %]": "iou",
    "coverage [95 %]": "coverage",
    "precision [95 %]": "precision",
    "box IoU [95 %]": "box_iou",
    "misses": "misses",
}
_TILE = 320  # px of a picture on the sheet of the worst


@dataclass(frozen=True)
class FieldEvaluateConfig(MeasureConfig):
    """Measure the lung fields against human masks: Dice, IoU, coverage, boxes, cut edges.

    Args:
        publishable_only: leave out films whose licence forbids publishing a model, so that part
            train is what was trained on.
        detector: compare with the shipped detector's boxes too.
        worst: films on each sheet of the worst.
    """

    publishable_only: bool = False
    detector: bool = True
    worst: int = 24
    out: str = "runs/lungfield_evaluate"


@dataclass(frozen=True)
class FieldResult:
    """One film in one view (film or crop); NaN where there is nothing to compare with. `found` and
    `constant` are the network's field and the constant field against the human mask; `box_iou` is
    the field's box against the human box; `human` and `detector` are the disagreement of the found
    field with that thorax box. Edges and boxes of whole films only."""

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
    def source(self) -> str:
        """Where the film comes from."""
        return self.row.source

    @property
    def missed(self) -> bool:
        """Nothing of the field was found."""
        return not self.found.dice > 0


@dataclass
class FieldMeter:
    """Measures films with one network, human boxes, the detector, and a constant field; of each
    view it has the `worst` films, so many as it shall `keep`: Dice, picture and caption."""

    net: LungField
    data: DataFolders
    boxes: dict[str, np.ndarray]
    constant: dict[str, np.ndarray]
    detector: ThoraxDetector | None = None
    keep: int = 0
    worst: dict[str, list[tuple[float, np.ndarray, str]]] = field(
        default_factory=lambda: {view: [] for view in VIEWS}
    )

    def measure(self, row: FilmRow) -> list[FieldResult]:
        """The film's result whole and as a crop; raises FilmError or ValueError for a film or mask
        that cannot be read."""
        film = read_film(self.data / row.image)
        pixels, truth = film.pixels, read_mask(self.data / row.mask, film)
        frame = crop_frame(truth, self.boxes.get(row.image))
        cut = frame.apply(pixels), frame.apply(truth.astype(np.uint8)) > 0
        return [
            self._measure_view(row, view, *seen)
            for view, seen in zip(VIEWS, ((pixels, truth), cut), strict=True)
        ]

    def _measure_view(
        self, row: FilmRow, view: str, pixels: np.ndarray, truth: np.ndarray
    ) -> FieldResult:
        mask = self.net.segment([pixels])[0] > self.net.threshold
        fixed = spread(self.constant[view], (truth.shape[0], truth.shape[1]))
        scores = overlap(mask, truth), overlap(fixed, truth)
        self._look(row, view, scores[0].dice, (pixels, truth, mask))
        if view == "crop":
            return FieldResult(row, view, *scores)
        box_iou = human_apart = apart = math.nan
        human, own = self.boxes.get(row.image), field_box_xyxy(mask)
        if human is not None:
            box_iou = 0.0 if own is None else float(iou_xyxy(own, human)[0, 0])
            human_apart = disagreement(mask, human)
        found = self.detector.predict([pixels])[0].used_xyxy if self.detector else None
        if found is not None:
            apart = disagreement(mask, found)
        edges, true_edges = cut_edges(mask), cut_edges(truth)
        return FieldResult(row, view, *scores, box_iou, human_apart, apart, edges, true_edges)

    def _look(
        self, row: FilmRow, view: str, dice: float, seen: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> None:
        """Keep the film's picture while it is among the worst: human mask white, found orange."""
        worst = self.worst[view]
        if self.keep < 1 or (len(worst) == self.keep and dice >= worst[-1][0]):
            return
        pixels, truth, mask = seen
        picture = draw_contour(to_rgb(pixels), truth, (255, 255, 255))
        picture = fit(draw_contour(picture, mask, ORANGE), _TILE)
        caption = f"Dice {dice:.3f}  {row.source}\n{Path(row.image).name}"
        worst.append((dice, picture, caption))
        worst.sort(key=lambda kept: kept[0])  # stable: the first of equals stays before
        del worst[self.keep :]


def crop_frame(mask: np.ndarray, box_xyxy: np.ndarray | None) -> Frame:
    """The cut that `detect.crop` makes of a film with this thorax box; the mask's own without."""
    box = mask_box_xyxy(mask) if box_xyxy is None else box_xyxy
    size_hw = (mask.shape[0], mask.shape[1])
    if box is None:
        return Frame.cut((0, 0, size_hw[1], size_hw[0]))
    return Frame.cut(clip_xyxy(expand_xyxy(box, CROP_MARGIN), size_hw))


def constant_fields(
    rows: Sequence[FilmRow], data: DataFolders, boxes: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """View → (64, 64) bool: where more than half of these films have their lungs, in fractions;
    what a network that never looks at the film would answer."""
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
    """The command; 0 when it measured, 1 when no film could be read."""
    with refusing():
        data = DataFolders(config.data)
        net = LungField.load(config.weights or None, config.device)
        every = masked_rows(data, config.sources, config.publishable_only)
        rows, train = choose_part(every, config)
        boxes = _read_boxes(data, config.annotations)
        detector = ThoraxDetector.load(device=config.device) if config.detector else None
        constant = constant_fields(train or rows, data, boxes)
        meter = FieldMeter(net, data, boxes, constant, detector, config.worst)
    workdir = Workdir(config.out)
    workdir.start(to_plain(config), config.seed, net.weights)
    results: list[FieldResult] = []
    for row in counting(rows, "measuring", len(rows)):
        try:
            results += meter.measure(row)
        except (FilmError, ValueError) as error:
            log.warning("%s left out: %s", row.image, error)
    if not results:
        log.error("no film of part %s could be read", config.part)
        return 1
    tables = tabulate(results, config.part, config.seed)
    write_json(workdir / "metrics.json", to_json(tables))
    write_atomic(workdir / "films.csv", films_csv(results))
    write_atomic(workdir / "table.md", table_markdown(tables))
    for view, worst in meter.worst.items():
        films = sum(r.view == view for r in results)
        title = f"the {len(worst)} worst of {films}: human white, found orange"
        path, pictures = workdir / f"worst_{view}.png", [picture for _, picture, _ in worst]
        write_sheet(path, pictures, [caption for *_, caption in worst], _TILE, title)
    print_tables(tables)
    console.print(f"metrics.json, films.csv, table.md and sheets: {workdir.path}", highlight=False)
    return 0


def _read_boxes(data: DataFolders, annotations: Several) -> dict[str, np.ndarray]:
    """Film name → its thorax box (4,) xyxy; empty without such a file."""
    names = as_list(annotations)
    if not any(data.files(name) or Path(name).exists() for name in names):
        where = ", ".join(map(data.named, names))
        log.warning("no %s: fields are not compared with human boxes", where)
        return {}
    films = read_annotations(data, annotations)
    return {f.file_name: union_xyxy(f.boxes_xyxy) for f in films if len(f.boxes_xyxy)}


def tabulate(results: Sequence[FieldResult], part: str, seed: int) -> dict[str, Any]:
    """What metrics.json holds: `part`; `lines`, block (all, or a source) → view → method → figures
    with intervals by patient; `disagreement`, block → box → percentiles; and `edges`, edge → films
    whose field is cut there by the network, by the human mask, and by both."""
    lines, apart = {}, {}
    for name, group in by_source(results).items():
        views = {view: [r for r in group if r.view == view] for view in VIEWS}
        lines[name] = {
            view: {method: _line(found, method, seed) for method in METHODS}
            for view, found in views.items()
            if found
        }
        apart[name] = {
            "human box": percentiles([r.human for r in views["film"]]),
            "detector's box": percentiles([r.detector for r in views["film"]]),
        }
    edges = count_edges([r for r in results if r.view == "film"])
    return {"part": part, "lines": lines, "disagreement": apart, "edges": edges}


def _line(results: Sequence[FieldResult], method: str, seed: int) -> dict[str, Any]:
    network = method == "network"
    patients = [r.row.patient_id for r in results]
    scores = [r.found if network else r.constant for r in results]

    def mean(values: Sequence[float]) -> Interval:
        return bootstrap_mean(values, patients, seed=seed)

    dice = np.array([s.dice for s in scores])
    return {
        "films": len(results),
        "patients": len(set(patients)),
        "dice": mean(dice.tolist()),
        "median_dice": float(np.median(dice)),
        "low_dice": float(np.percentile(dice, 5)),
        "share_95": mean((dice >= 0.95).astype(float).tolist()),
        **{name: mean([getattr(s, name) for s in scores]) for name in _SHARES},
        "box_iou": mean([r.box_iou if network else math.nan for r in results]),
        "misses": sum(r.missed for r in results) if network else 0,
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Percentiles of the known values, and how many there are; empty without one."""
    known = np.array([v for v in values if not math.isnan(v)])
    if not len(known):
        return {}
    found = {f"p{p}": float(np.percentile(known, p)) for p in PERCENTILES}
    return {"films": float(len(known)), **found, "max": float(known.max())}


def count_edges(results: Sequence[FieldResult]) -> dict[str, dict[str, int]]:
    """For each edge of the film: fields cut there as found, as drawn by a person, and as both."""
    return {
        edge: {
            "found": sum(edge in r.edges for r in results),
            "human": sum(edge in r.true_edges for r in results),
            "both": sum(edge in r.edges and edge in r.true_edges for r in results),
        }
        for edge in SIDES
    }


def films_csv(results: Sequence[FieldResult]) -> str:
    """A row a film and view; empty cells where there is nothing to measure."""
    head = (
        "film view source patient label dice iou coverage precision constant_dice box_iou "
        "disagreement_human disagreement_detector cut_edges human_cut_edges"
    )
    rows: list[list[Any]] = [head.split()]
    for r in results:
        f = r.found
        values = [f.dice, f.iou, f.coverage, f.precision, r.constant.dice]
        rows.append(
            [r.row.image, r.view, r.row.source, r.row.patient_id, r.row.label]
            + [number(v, 4, "") for v in (*values, r.box_iou, r.human, r.detector)]
            + [" ".join(r.edges), " ".join(r.true_edges)]
        )
    return to_csv(rows)


def table_rows(tables: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the main table, as text."""
    rows = [
        [block, view, method, *(_cell(line[key]) for key in _COLUMNS.values())]
        for block, views in tables["lines"].items()
        for view, methods in views.items()
        for method, line in methods.items()
    ]
    return ["films of", "seen", "field", *_COLUMNS], rows


def _cell(value: Interval | float) -> str:
    if isinstance(value, Interval):
        return in_words(value)
    return str(value) if isinstance(value, int) else number(value)


def table_markdown(tables: Mapping[str, Any]) -> str:
    """The main table, then disagreement and cut edges."""
    lines = to_markdown(*table_rows(tables))
    lines += ["", f"Part {tables['part']}; means with intervals by bootstrap over patients.", ""]
    names = ["films", *(f"p{p}" for p in PERCENTILES), "max"]
    apart = [
        [block, box, *(number(found[n], 0 if n == "films" else 3) for n in names)]
        for block, boxes in tables["disagreement"].items()
        for box, found in boxes.items()
        if found
    ]
    lines += to_markdown(["films of", "disagreement with", *names], apart)
    edges = [[edge, *map(str, counts.values())] for edge, counts in tables["edges"].items()]
    lines += ["", *to_markdown(["edge", "cut as found", "as drawn", "both"], edges)]
    return "\n".join(lines) + "\n"


def print_tables(tables: Mapping[str, Any]) -> None:
    """The main table, narrow enough for a terminal; table.md holds all of it."""
    head, rows = table_rows(tables)
    wanted = {"films of", "seen", "field", "films", "Dice", "IoU", "coverage", "box IoU"}
    chosen = [i for i, name in enumerate(head) if name.split(" [")[0] in wanted]
    cells = [[row[i].replace(" [", "\n[") for i in chosen] for row in rows]
    print_table([head[i] for i in chosen], cells, 3, title=f"lung fields, part {tables['part']}")
