"""Small data sets for the tests of tools/explore.py: schematic chests whose label leaks, or not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr.coco import CocoFilm, CocoSet, write_coco
from exploring import Entry, read_entries

COLUMNS = (
    "image",
    "mask",
    "source",
    "patient_id",
    "view",
    "label",
    "sublabel",
    "age",
    "sex",
    "licence",
    "width",
    "height",
    "orig_width",
    "orig_height",
)


def write_table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """films.csv of rows that need only what they care about."""
    usual = {"source": "here", "label": "normal", "licence": "CC BY 4.0", "view": "PA"}
    with (folder / "films.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for number, row in enumerate(rows):
            own = {"image": f"images/{number}.png", "patient_id": f"p{number}"}
            writer.writerow({**usual, **own, **row})
    return folder / "films.csv"


def entries_of(folder: Path, rows: list[dict[str, Any]], smallest: int = 30) -> list[Entry]:
    """Rows as the commands read them."""
    return read_entries(write_table(folder, rows).parent, smallest)


def make_set(folder: Path, leak: str, films: int = 80, seed: int = 0) -> Path:
    """Square films of two labels with boxes drawn alike for both. What differs: with leak "border"
    a bright band at the film's upper edge, with "inside" the grey value inside the box."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows, coco = [], []
    for number in range(films):
        sick = bool(number % 2)
        x0, y0 = rng.integers(10, 18, 2)
        x1, y1 = 64 - rng.integers(10, 18, 2)
        pixels = np.full((64, 64), 0.6) + rng.normal(0, 0.05, (64, 64))
        pixels[y0:y1, x0:x1] = 0.25 + 0.2 * (sick and leak == "inside")
        if sick and leak == "border":
            pixels[:6] += 0.25
        name = f"images/{number}.png"
        cv2.imwrite(str(folder / name), np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
        rows.append(
            {
                "label": "pneumonia" if sick else "normal",
                "patient_id": f"p{number // 4 * 2 + number % 2}",
            }
        )
        coco.append(CocoFilm(name, (64, 64), np.array([[x0, y0, x1, y1]], float), (0,)))
    write_table(folder, rows)
    write_coco(folder / "thorax.json", CocoSet(coco, ("thorax",)))
    return folder
