"""How good the thorax boxes are on films that were never trained on.

    python -m detect.evaluate --part test --out runs/evaluate
    python -m detect.evaluate --data FOLDER --annotations boxes.json --part all --out runs/own

Writes metrics.json, films.csv, table.md, worst.png and, where the detector's bundle has a rule
that knows it, quality.png; and prints the table.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr.boxes import iou_xyxy, stretch_xyxy, union_xyxy
from cxr.cli import as_command, parse_config, to_plain
from cxr.coco import CocoFilm
from cxr.data_folders import Data, DataFolders
from cxr.draw import (
    BLUE,
    COLOURS,
    GREEN,
    ORANGE,
    RED,
    WHITE,
    draw_box,
    new_figure,
    to_rgb,
    write_figure,
    write_sheet,
)
from cxr.film import Film
from cxr.rules import refusing, require_between, require_one_of
from cxr.stats import bootstrap_mean, in_words
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import Workdir, console, counting, log, to_json, write_atomic, write_json
from detect.data import MeasureConfig, choose_part, read_annotations, read_mask, with_class
from detect.finder import Look, ThoraxFinder
from detect.metrics import (
    BASELINES,
    BY_CLASS,
    METHODS,
    SIDES,
    Evaluation,
    FilmResult,
    Line,
    Promised,
    compare,
    constant_box,
    measure_quality,
    number,
    print_table,
    scale_box,
    score_film,
    to_csv,
    to_markdown,
)
from detect.predict import Detections, ThoraxBox

WHOLE_FILM = (0.0, 0.0, 1.0, 1.0)
# What the terminal shows, and under which name: intervals stand below their values there.
_SHORT = {
    "mean IoU [95 %]": "IoU",
    "median": "med.",
    "IoU≥.9 [95 %]": "IoU≥.9",
    "IoU≥.75": "≥.75",
    "coverage": "cov.",
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "edge": "edge",
    "misses": "miss",
    "doubles": "dbl",
}


@dataclass(frozen=True)
class EvaluateConfig(MeasureConfig):
    """Measure the thorax boxes: IoU, coverage, edges, misses, AP, beside trivial baselines.

    Args:
        box: both measures the box that detect.crop takes, beside the detector's and the lung
            field's; detector measures the detector's alone.
        field: the lung field's bundle; empty takes the one that comes with lungfirst.
        flips: average the boxes of a film and its mirror image; empty does as the bundle says.
        class_from: take each film's true class from this key of its entry, such as label.
        double_score: a further box with at least this score makes a film a double.
        batch: films the detector sees at a time.
        jobs: processes that read films; -1 takes up to four, and none for a few films.
    """

    box: str = "both"
    field: str = ""
    flips: bool | None = None
    class_from: str = ""
    double_score: float = 0.5
    batch: int = 8
    jobs: int = 0

    def __post_init__(self) -> None:
        require_between(
            self, batch=(1, 1024), jobs=(-1, 256), max_films=(0, 10**9), double_score=(0, 1)
        )
        require_one_of(self, box=tuple(METHODS))


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when it measured, 1 when no film could be read, 2 for wrong arguments."""
    example = "python -m detect.evaluate --part test --sources '[kermany]' --out runs/kermany"
    config = parse_config(EvaluateConfig, argv, example)
    with refusing():
        bundles = config.weights or None, config.field or None
        finder = ThoraxFinder.load(*bundles, config.device, config.box)
        detector = finder.detector
        if config.flips is not None:
            detector.flips = config.flips
        films, constant = select_films(config, detector.config.classes)
    workdir = Workdir(config.out)
    workdir.start(to_plain(config), config.seed, finder.weights)
    # Where the truth names no classes, a box is right whatever class the detector gives it.
    named = {label for film in films for label in film.labels} - {0} or config.class_from
    classes = len(detector.config.classes) if named else 1
    evaluation = evaluate(finder, films, constant, config, classes)
    write_evaluation(evaluation, workdir)
    draw_worst(evaluation, DataFolders(config.data), workdir / "worst.png")
    print_tables(evaluation)
    console.print(
        f"metrics.json, films.csv, table.md and pictures: {workdir.path}", highlight=False
    )
    return 0 if any(r.status != "unreadable" for r in evaluation.results) else 1


def select_films(
    config: EvaluateConfig, classes: Sequence[str] = ("thorax",)
) -> tuple[list[CocoFilm], np.ndarray]:
    """The films to measure on, and the constant box (4,) in fractions. Raises ValueError when
    nothing is left, or when a patient is not in the split."""
    films = read_annotations(config.data, config.annotations)
    if config.class_from:
        films = [with_class(film, config.class_from, classes) for film in films]
    chosen, train = choose_part(films, config)
    with_box = [f for f in train if len(f.boxes_xyxy)]
    return chosen, constant_box([f.boxes_xyxy for f in with_box], [f.size_hw for f in with_box])


def evaluate(
    finder: ThoraxFinder,
    films: Sequence[CocoFilm],
    constant: Any,
    config: EvaluateConfig,
    classes: int = 1,
) -> Evaluation:
    """Run the finder over the films and compare its box with each network's own and with both
    baselines, pooled and by source."""
    results = list(measure_films(finder, films, constant, config))
    return Evaluation(results, compare(results, classes, config.seed), config.part, config.seed)


def measure_films(
    finder: ThoraxFinder, films: Sequence[CocoFilm], constant: Any, config: EvaluateConfig
) -> Iterator[FilmResult]:
    """A FilmResult a film, in order, with a progress bar; pixels are held a batch at a time."""
    data = DataFolders(config.data)
    masks, jobs = find_masks(data), default_jobs(len(films), config.jobs)
    for batch in batched(read_fitted(films, data, jobs), config.batch):
        pixels = [f.pixels for _, f in batch if isinstance(f, Film)]
        looks = finder.look(pixels)
        decided = zip(looks, finder.conclude(looks, pixels), strict=True)
        for truth, film in batch:
            if isinstance(film, Unread):
                missed = dict.fromkeys(METHODS[finder.box], score_film(None, truth.boxes_xyxy))
                yield FilmResult(truth, "unreadable", str(film), None, {}, missed)
            else:
                mask = lungs_of(masks.get(truth.file_name), film)
                yield _measure_film(
                    truth, film, *next(decided), finder, constant, mask, config.double_score
                )


def _measure_film(
    truth: CocoFilm,
    film: Film,
    look: Look,
    box: ThoraxBox,
    finder: ThoraxFinder,
    constant: Any,
    mask: np.ndarray | None,
    double_score: float,
) -> FilmResult:
    """One film's box as it was decided, each network's own, and both baselines', against the truth.
    `fallback` counts as a miss: the whole film is a way on, not a box."""
    found, field, size_hw = look.found, look.field, truth.size_hw
    own = finder.detector.decide(found, size_hw)
    sure = np.count_nonzero(found.scores >= double_score)
    doubled = bool(sure > max(1, len(truth.boxes_xyxy)))  # two lungs boxed apart are no double
    known: dict[str, tuple[Any, Detections]] = {
        "both": (box.used_xyxy, _one(box.seen_xyxy, box.score, box.label)),
        "detector": (own.used_xyxy, found),
        "lung field": (field.xyxy, _one(field.xyxy, 1 - field.soft)) if field else (None, _one()),
    }
    for name, part in (("constant box", constant), ("whole film", WHOLE_FILM)):
        fixed = scale_box(part, size_hw)
        known[name] = fixed, _one(fixed)
    scores = {
        name: score_film(
            known[name][0], truth.boxes_xyxy, mask, film.spacing_mm, doubled and name in BY_CLASS
        )
        for name in METHODS[finder.box]
    }
    seen = {name: known[name][1] for name in scores}
    return FilmResult(truth, box.status, box.reason, box, seen, scores, film.stored_hw)


def _one(xyxy: Any = None, score: float = 1.0, label: int = 0) -> Detections:
    """One box as a network would say it; none for None."""
    boxes = np.zeros((0, 4)) if xyxy is None else np.asarray(xyxy, float)[None]
    n = len(boxes)
    return Detections(boxes, np.full(n, score), np.full(n, label))


def read_fitted(
    films: Sequence[CocoFilm], data: DataFolders, jobs: int
) -> Iterator[tuple[CocoFilm, Film | Unread]]:
    """Each film, with its truth in the film's own pixels, also where that is a scaled copy; Unread
    where it is none."""
    reads = zip(films, read_ahead([data / f.file_name for f in films], jobs), strict=True)
    for truth, (_, film) in counting(reads, "boxing", len(films)):
        if isinstance(film, Unread):
            yield truth, film
            continue
        h, w = film.pixels.shape
        try:
            yield truth.resized((h, w), film.stored_hw), film
        except ValueError:
            height, width = truth.size_hw
            sentence = f"the film has {w} x {h} px, its annotation {width} x {height}."
            yield truth, Unread("size_differs", sentence)


def find_masks(data: Data) -> dict[str, Path]:
    """Film → file of its lung mask, from films.csv; empty where there is no such table."""
    data = DataFolders(data)
    return {row.image: data / row.mask for row in data.rows(unlisted=True) if row.mask}


def lungs_of(path: Path | None, film: Film) -> np.ndarray | None:
    """A film's lung mask (H, W), or None where there is none that fits."""
    try:
        return None if path is None else read_mask(path, film)
    except ValueError as error:
        log.warning("lung coverage is left out: %s", error)
        return None


def write_evaluation(evaluation: Evaluation, workdir: Workdir) -> None:
    """metrics.json, films.csv, table.md and, where quality is known, quality.png into the run's
    folder."""
    promised = _promised(evaluation.results)
    if promised:
        draw_quality(promised, workdir / "quality.png", evaluation.seed)
    elif "both" in evaluation.results[0].scores:
        log.warning("no quality.png: the detector's bundle has no rule that knows a quality")
    figures = {
        "part": evaluation.part,
        "statuses": dict(Counter(r.status for r in evaluation.results)),
        "blocks": to_json(evaluation.blocks),
        "quality": to_json(measure_quality(promised, evaluation.seed)) if promised else None,
        **{title.lower(): names for title, names in _lists(evaluation).items()},
        "edges": SIDES,
    }
    write_json(workdir / "metrics.json", figures)
    write_atomic(workdir / "films.csv", films_csv(evaluation.results))
    write_atomic(workdir / "table.md", table_markdown(evaluation))


def _promised(results: Sequence[FilmResult]) -> Promised | None:
    """Of each box with a quality, used or not, on a film with a thorax; None where none has one."""
    known = [
        (box.quality, iou_xyxy(box.seen_xyxy, union_xyxy(film.boxes_xyxy)).item(), film.patient_id)
        for film, box, score in ((r.film, r.box, r.score) for r in results)
        if score.has_truth and box is not None and box.quality is not None
    ]
    return Promised(*map(np.array, zip(*known, strict=True))) if known else None


def _lists(evaluation: Evaluation) -> dict[str, list[str]]:
    """Films with a thorax and no box of status ok, each with its reason; and films with more
    confident boxes than they have."""
    own = [(r, r.score) for r in evaluation.results]
    return {
        "Misses": [f"{r.film.file_name}: {r.status}, {r.reason}" for r, s in own if s.missed],
        "Doubles": [r.film.file_name for r, s in own if s.doubled],
    }


def films_csv(results: Sequence[FilmResult]) -> str:
    """A row a film; empty cells where there is nothing to measure."""
    edges = [f"edge_{side}_{unit}" for unit in ("px", "mm") for side in SIDES]
    head = "film source patient label status reason score second_score iou coverage lung_coverage"
    others = [*results[0].scores][1:]
    more = ["apart", "quality", *(f"iou_{name.replace(' ', '_')}" for name in others)]
    rows: list[list[Any]] = [[*head.split(), *edges, "x0", "y0", "x1", "y1", *more]]
    for r in results:
        score, film = r.score, r.film
        values = [score.iou, score.coverage, score.lung_coverage, *score.edges_px, *score.edges_mm]
        seen = [f"{v:.4f}" for v in r.seen["detector"].scores[:2]] if r.seen else []
        doubt = [None, None] if r.box is None else [r.box.apart, r.box.quality]
        place = None if r.box is None else r.box.xyxy
        if place is not None and r.stored_hw:
            place = stretch_xyxy(place, film.size_hw, r.stored_hw)[0]
        rows.append(
            [film.file_name, r.source, film.patient_id, film.label, r.status, r.reason]
            + [*seen, "", ""][:2]
            + [number(v, 4, "") for v in values]
            + ([""] * 4 if place is None else [f"{v:.1f}" for v in place])
            + ["" if v is None else f"{v:.4f}" for v in doubt]
            + [number(r.scores[name].iou, 4, "") for name in others]
        )
    return to_csv(rows)


def _cells(line: Line) -> dict[str, str]:
    """The columns of the table for one line."""
    s, p = line.summary, line.precision
    return {
        "films": str(s.films),
        "patients": str(s.patients),
        "mean IoU [95 %]": in_words(s.mean_iou),
        "median": number(s.median_iou),
        "IoU≥.9 [95 %]": in_words(s.share_iou_90),
        "IoU≥.75": number(s.share_iou_75.value),
        "coverage": number(s.coverage.value),
        "cov≥.99": number(s.share_covered.value),
        "lungs": number(s.lung_coverage.value),
        "AP": number(p.ap),
        "AP50": number(p.ap50),
        "AP75": number(p.ap75),
        "edge px": number(s.edge_px.value, 1),
        "edge mm": number(s.edge_mm.value, 1),
        "misses": str(s.misses),
        "doubles": str(s.doubles),
        "class": number(line.class_accuracy),
        "false boxes": f"{s.false_boxes} of {s.negatives}",
    }


def table_rows(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text; without the columns in which nothing is known: mm
    without spacing, the class where there is one, false boxes where each film has a thorax."""
    lines = [
        {"films of": block, "box": method, **_cells(line)}
        for block, methods in evaluation.blocks.items()
        for method, line in methods.items()
    ]
    unknown = {"edge mm": "–", "class": "–", "false boxes": "0 of 0"}
    head = [k for k in lines[0] if any(cells[k] != unknown.get(k) for cells in lines)]
    return head, [[cells[name] for name in head] for cells in lines]


def _short_cells(line: Line) -> list[str]:
    """No leading zeros, so that twelve columns fit a terminal."""
    cells = _cells(line)
    mm = "" if cells["edge mm"] == "–" else f"\n{cells['edge mm']}mm"
    short = {
        name: re.sub(r"\b0\.", ".", text.replace(" [", "\n").replace("]", "").replace(", ", "–"))
        for name, text in cells.items()
    }
    return [({**short, "edge": f"{cells['edge px']}px{mm}"})[name] for name in _SHORT]


def table_markdown(evaluation: Evaluation) -> str:
    """The table, then misses and doubles by name."""
    lines = to_markdown(*table_rows(evaluation))
    lines += [
        "",
        "Misses count as IoU 0 and coverage 0; intervals by bootstrap over patients. A "
        "fallback to the whole film is a miss here.",
    ]
    for title, names in _lists(evaluation).items():
        lines += ["", f"{title}: {len(names)}", *(f"- `{name}`" for name in names)]
    return "\n".join(lines) + "\n"


def print_tables(evaluation: Evaluation) -> None:
    """A table a block, narrow enough for a terminal, and the lists; table.md holds all columns."""
    for block, lines in evaluation.blocks.items():
        own = next(iter(lines.values())).summary
        title = f"{block}: {own.films} films of {own.patients} patients, part {evaluation.part}"
        rows = [[method.split()[0], *_short_cells(line)] for method, line in lines.items()]
        head = ["box", *_SHORT.values()]
        print_table(head, rows, 1, no_wrap=True, title=title, title_justify="left")
    for title, names in _lists(evaluation).items():
        console.print(f"{title.lower()}: {len(names)}", highlight=False)
        for name in names:
            console.print(f"  {name}", markup=False, highlight=False)


def draw_worst(evaluation: Evaluation, data: DataFolders, path: Path, number: int = 24) -> None:
    """A sheet of the films with the lowest IoU: truth white, box orange, a box not used red; thin
    and beneath it the detector's blue and the lung field's green where the box is of both."""
    known = [r for r in evaluation.results if r.score.has_truth]
    worst = sorted(known, key=lambda r: r.score.iou)[:number]
    pictures, captions = [], []
    films = read_ahead([data / r.film.file_name for r in worst])
    for result, (_, film) in zip(worst, films, strict=True):
        plane = (
            np.zeros(result.film.size_hw, np.float32) if isinstance(film, Unread) else film.pixels
        )
        picture = to_rgb(plane)
        for box in result.film.boxes_xyxy:
            picture = draw_box(picture, box, WHITE)
        main, *others = [m for m in result.seen if m not in BASELINES] or [""]
        for method, colour in zip(others, (BLUE, GREEN), strict=False):
            for box in result.seen[method].boxes_xyxy[:1]:
                picture = draw_box(picture, box, colour, thin=True)
        if result.status == "ok" and result.box is not None:
            picture = draw_box(picture, result.box.xyxy, ORANGE)
        elif result.seen and len(result.seen[main].boxes_xyxy):
            picture = draw_box(picture, result.seen[main].boxes_xyxy[0], RED)
        pictures.append(picture)
        name = Path(result.film.file_name).name
        captions.append(f"IoU {result.score.iou:.3f}  {result.status}\n{name}")
    title = (
        f"the {len(worst)} worst of {len(known)} films, part {evaluation.part}: truth white, "
        "box orange, unused box red; detector's thin blue, lung field's thin green"
    )
    write_sheet(path, pictures, captions, 320, title)


def draw_quality(promised: Promised, path: Path, seed: int = 0) -> Path:
    """Films in bins of equal number by quality: the bin's mean quality against its mean IoU with
    the 95 % interval by patient; how many films have which quality below."""
    said, iou, owners = promised
    groups = np.array_split(np.argsort(said, kind="stable"), min(10, max(1, len(said) // 20)))
    x = [said[g].mean() for g in groups]
    found = [bootstrap_mean(iou[g], list(owners[g]), seed=seed) for g in groups]
    figure = new_figure(5, 6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    lows = [said.min(), *(f.value for f in found), *(f.low for f in found)]
    ends = float(np.nanmin(lows)) - 0.02, 1.0
    above.plot(ends, ends, color="grey", linestyle=":", label="as promised")
    shown = np.maximum(iou, ends[0])
    above.plot(said, shown, ".", color="silver", clip_on=False, label="a film (lower: on the edge)")
    spread = np.transpose([(f.value - f.low, f.high - f.value) for f in found])
    values = [f.value for f in found]
    above.errorbar(x, values, spread, fmt="o-", color=COLOURS[0], capsize=3, label="bin [95 %]")
    above.set(ylabel="IoU with a person's box", title=f"{len(said)} films", xlim=ends, ylim=ends)
    below.hist(said, bins=np.linspace(*ends, 30), color=COLOURS[0])
    below.set(xlabel="quality: the IoU that is promised", ylabel="films")
    above.grid(alpha=0.3)
    above.legend(frameon=False, loc="upper left")
    return write_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
