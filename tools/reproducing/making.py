"""Makes one table: trains what is not finished, measures, and writes Markdown, HTML and JSON."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from cxr.cli import to_plain
from cxr.coco import CocoFilm, CocoSet, write_coco
from cxr.draw import encode_png
from cxr.films_table import read_films_table
from cxr.intensity import to_uint8
from cxr.split import make_split
from cxr.workdir import git_commit, library_versions, log, write_atomic, write_json
from labelling.demo import draw_chest
from reproducing.cells import Cell, check_input, make_cells
from reproducing.engine import Engine, run_cells
from reproducing.experiment import BUDGETS, Experiment, flatten
from reproducing.layout import Picture, markdown, page_html, pictures_of
from reproducing.place import DRAWN, SPLIT, Place
from reproducing.probe import probe_rows, split_of
from reproducing.runners import find_runner
from reproducing.table import Table, fill_rows, notes_of

_SHOWN = ("python", "torch", "torchvision", "timm", "lightning")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """One table to be made. `command` is what a reader gives to make it again."""

    experiment: Experiment
    budget: str
    place: Place
    engine: Engine
    command: str
    docs: str = ""

    @property
    def stem(self) -> str:
        """Name of the table's files."""
        return f"{self.experiment.name}_{self.budget}_{self.place.input}"


def make_table(order: Order, tell: Tell) -> Table:
    """Train, measure, write; returns the table. Raises ValueError for wrong settings or data."""
    cells = make_cells(order.experiment, order.budget, order.place)
    train_cells(cells, order.engine, tell)
    table = collect(order, cells)
    write_table(order, table, pictures_of(table, cells, order.stem))
    return table


def train_cells(cells: Sequence[Cell], engine: Engine, tell: Tell) -> None:
    """Train what is not finished, with a line a cell and an estimate of what remains, which takes
    the rest to be like the mean so far."""
    pending = {cell.key for cell in cells if not cell.finished}
    of, done = len(pending), len({cell.key for cell in cells}) - len(pending)
    if done:
        tell(f"{done} of {done + of} cells are finished and are not trained again")
    started = time.monotonic()
    for n, outcome in enumerate(run_cells(cells, engine), 1):
        left = (time.monotonic() - started) / n * (of - n)
        how = f"failed: {outcome.reason}" if outcome.reason else f"{outcome.seconds:.0f} s"
        rest = f"; about {left / 60:.1f} min left" if n < of else ""
        tell(f"[{n}/{of}] {outcome.name}: {how}{rest}")


def collect(order: Order, cells: Sequence[Cell]) -> Table:
    """The table from what is finished, whatever that is."""
    experiment, place = order.experiment, order.place
    films = films_words(experiment, cells[0], place)
    # what differs in the films, for every cell; never silent, since the films are never those
    data = f"films: {films} (paper: {experiment.paper_data})"
    rows, legend = fill_rows(experiment, cells, place, order.budget, data)
    split, why = split_of(cells)
    probe, reason = probe_rows(experiment, split, place)
    made = {
        "command": order.command,
        "made": datetime.now(UTC).date().isoformat(),
        "commit": git_commit(),
        "versions": {k: v for k, v in library_versions().items() if k in _SHOWN},
        "seed": place.seed,
        "draws": place.draws,
        "parts": split.parts if split else {},
        "films": films,
    }
    notes = notes_of(experiment, order.budget, cells)
    return Table(
        experiment, order.budget, place.input, rows, legend, probe, why or reason, notes, made
    )


def films_words(experiment: Experiment, cell: Cell, place: Place) -> str:
    """The films that the table's sources hold, such as «kermany, 833 of 500 patients»."""
    wanted = flatten(cell.settings).get(find_runner(experiment.runner).sources)
    patients: dict[str, list[str]] = {}
    for row in read_films_table(Path(place.data) / "films.csv"):
        if not wanted or row.source in wanted:
            patients.setdefault(row.source, []).append(row.patient_id)
    return "; ".join(
        f"{source.replace('_', ' ')}, {len(own)} of {len(set(own))} patients"
        for source, own in sorted(patients.items())
    )


def write_table(order: Order, table: Table, pictures: Sequence[Picture] = ()) -> None:
    """OUT/<table>_<budget>_<input>.md, .html, .json and pictures; the Markdown and its pictures to
    `docs`, too."""
    out, stem = Path(order.place.out), order.stem
    text = markdown(table, pictures)
    for folder in (out, Path(order.docs)) if order.docs else (out,):
        for picture in pictures:
            write_atomic(folder / picture.name, picture.png)
        write_atomic(folder / f"{stem}.md", text)
    write_atomic(out / f"{stem}.html", page_html(table, pictures))
    head = {
        "schema": "lungfirst.table",
        "version": 1,
        "means_nothing": order.budget == "smoke",
    }
    write_json(out / f"{stem}.json", {**head, **to_plain(table)})


_KINDS = (
    ("normal", "No Finding"),
    ("pneumonia", "bacterial"),
    ("pneumonia", "viral"),
    ("covid", "COVID-19"),
)
_BOXED = ("normal", "pneumonia")  # the classes of detect-and-classify, which takes every box
_PARTS = {"train": 0.5, "val": 0.2, "calibration": 0.1, "test": 0.2}
_EACH = 16  # films of each kind: enough for three folds with every class in each part
_SIZE_HW = (128, 112)


def drawn_films(folder: Path) -> Path:
    """A small folder of drawn chests with films.csv, thorax.json and split.json, the same on each
    machine."""
    if (folder / "films.csv").is_file():
        return folder
    rows: list[dict[str, Any]] = []
    films = []
    for kind, (label, sublabel) in enumerate(_KINDS):
        for n in range(_EACH):
            seed = kind * _EACH + n
            opaque, grain = sublabel in ("bacterial", "COVID-19"), 2.0 if kind > 1 else 1.0
            pixels, box = draw_chest(*_SIZE_HW, seed, opaque=opaque, grain=grain)
            image = f"images/{DRAWN}/{seed:03}.png"
            write_atomic(folder / image, encode_png(to_uint8(pixels)))
            known = {"source": DRAWN, "patient_id": f"drawn-{seed // 2}", "label": label}
            rows.append(
                {
                    "image": image,
                    "mask": "",
                    "source": DRAWN,
                    "patient_id": known["patient_id"],
                    "view": "PA",
                    "label": label,
                    "sublabel": sublabel,
                    "licence": "CC BY 4.0",
                    "width": _SIZE_HW[1],
                    "height": _SIZE_HW[0],
                }
            )
            if label in _BOXED:
                boxes = np.asarray(box, float).reshape(1, 4)
                films.append(CocoFilm(image, _SIZE_HW, boxes, (0,), known))
    split = make_split([r["patient_id"] for r in rows], [r["sublabel"] for r in rows], _PARTS)
    split.save(folder / SPLIT)
    write_coco(folder / "thorax.json", CocoSet(films, ("thorax",)))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "films.csv", buffer.getvalue())  # last: it marks the folder as whole
    return folder


def find_crops(experiment: Experiment, place: Place) -> Path:
    """OUT/crops with the thorax of every film that the table takes, cut by the detector that comes
    with lungfirst; films that are there already are not cut again. Raises ValueError."""
    from detect.crop import main as crop

    runner = find_runner(experiment.runner)
    check_input(runner, experiment, cropped=True)
    wanted = set(place.sources)
    if not wanted:
        for budget, cell in product(BUDGETS, experiment.cells()):
            wanted.update(flatten(experiment.settings(budget, *cell)).get(runner.sources) or ())
    data, out = Path(place.data), Path(place.out) / "crops" / Path(place.data).resolve().name
    films = [
        str(data / row.image)
        for row in read_films_table(data / "films.csv")
        if not wanted or row.source in wanted
    ]
    if not films:
        raise ValueError(
            f"data must hold films of {', '.join(sorted(wanted))}. Got none in "
            f"{data / 'films.csv'}."
        )
    log.info("cutting the thorax out of %d films into %s", len(films), out)
    device = {"gpu": "cuda"}.get(place.device, place.device)
    if crop([*films, "--out", str(out), "--device", device]):
        raise ValueError(f"crops could not be made in {out}: see the messages above.")
    return out
