"""The films of a run where nobody gave any: drawn ones for smoke, and crops by our detector."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from cxr.coco import CocoFilm, CocoSet, write_coco
from cxr.draw import encode_png
from cxr.films_table import read_films_table
from cxr.intensity import to_uint8
from cxr.split import make_split
from cxr.workdir import log, write_atomic
from labelling.phantom import draw_chest
from reproducing.cells import DRAWN, SPLIT, Place
from reproducing.experiment import BUDGETS, Experiment, flatten
from reproducing.runners import find_runner

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
_COLUMNS = (
    "image",
    "mask",
    "source",
    "patient_id",
    "view",
    "label",
    "sublabel",
    "licence",
    "width",
    "height",
)


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
            pixels, box = draw_chest(
                *_SIZE_HW,
                seed,
                opaque=sublabel in ("bacterial", "COVID-19"),
                grain=2.0 if kind > 1 else 1.0,
            )
            image = f"images/{DRAWN}/{seed:03}.png"
            write_atomic(folder / image, encode_png(to_uint8(pixels)))
            known = {"source": DRAWN, "patient_id": f"drawn-{seed // 2}", "label": label}
            rows.append(
                {
                    **known,
                    "image": image,
                    "mask": "",
                    "view": "PA",
                    "sublabel": sublabel,
                    "licence": "CC BY 4.0",
                    "width": _SIZE_HW[1],
                    "height": _SIZE_HW[0],
                }
            )
            if label in _BOXED:
                films.append(
                    CocoFilm(image, _SIZE_HW, np.asarray(box, float).reshape(1, 4), (0,), known)
                )
    split = make_split([r["patient_id"] for r in rows], [r["sublabel"] for r in rows], _PARTS)
    split.save(folder / SPLIT)
    write_coco(folder / "thorax.json", CocoSet(films, ("thorax",)))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "films.csv", buffer.getvalue())  # last: it marks the folder as whole
    return folder


def find_crops(experiment: Experiment, place: Place) -> Path:
    """OUT/crops with the thorax of every film that the table takes, cut by the detector that comes
    with lungfirst; films that are there already are not cut again. Raises ValueError."""
    from detect.crop import main as crop

    runner = find_runner(experiment.runner)
    if "crops" not in runner.keys:
        raise ValueError(
            f"input must be films for {experiment.name}: its detector looks at whole "
            "films. Got crops instead."
        )
    wanted = set(place.sources)
    if not wanted:
        settings = [
            flatten(experiment.settings(b, row, column))
            for b in BUDGETS
            for row, column in experiment.cells()
        ]
        wanted = {source for known in settings for source in known.get(runner.sources) or ()}
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
