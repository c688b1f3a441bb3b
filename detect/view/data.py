"""Which pictures teach and measure the view, and the training views made of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from cxr.boxes import mask_box_xyxy
from cxr.cli import Several
from cxr.data_folders import DataFolders
from cxr.draw import fit
from cxr.film import FilmError, read_film
from cxr.films_table import FilmRow, table_rows
from cxr.intensity import to_uint8
from cxr.split import Split, make_split
from cxr.workdir import log
from detect.data import require_both
from detect.view.view import CLASSES

_SIDE = 384  # px a film is kept at: half as much again as the network sees
_SHARES = {"frontal": 0.46, "turned": 0.15, "lateral": 0.15, "other": 0.12, "many": 0.12}


def read_films(folders: Several) -> list[FilmRow]:
    """Frontal films of all folders, `image` and `mask` as paths."""
    data = DataFolders(folders)
    return [
        replace(r, image=str(data / r.image), mask=str(data / r.mask) if r.mask else "")
        for r in data.rows()
    ]


def read_negatives(path: str | Path) -> list[FilmRow]:
    """Pictures that are no upright frontal film: the kind as label, the note as sublabel, `image`
    as a path; raises ValueError for a table without these columns."""
    rows = []
    for _, c in table_rows(path, ("image", "kind", "source", "patient_id", "licence", "note")):
        patient = c["patient_id"] or c["image"]  # where nobody knows it, each picture is its own
        image = (Path(path).parent / c["image"]).as_posix()
        rows.append(FilmRow(image, "", c["source"], patient, c["kind"], c["note"], c["licence"]))
    return rows


def class_of_negative(row: FilmRow) -> str:
    """One of CLASSES for a row of `read_negatives`."""
    if row.label == "rotated90":
        return "turned 270"
    whole = "whole-spine" in row.sublabel or "babygram" in row.sublabel
    if whole or row.label in ("collage", "screenshot"):
        return "many"
    lateral = row.label == "lateral" or row.sublabel.startswith("paediatric lateral")
    return "lateral" if lateral else "other"


def choose_rows(
    data: Several, negatives: str, split: str, also: Sequence[str]
) -> tuple[dict[str, list[FilmRow]], list[FilmRow]]:
    """Part → frontal films that may train what is published (by their licence, or of a source in
    `also`), and the other pictures that may, none of a patient of another part than train.

    Raises ValueError where there is nothing to train or to validate on.
    """
    part_of = Split.load(split).part_of
    parts: dict[str, list[FilmRow]] = {"train": [], "val": []}
    for row in read_films(data):
        if row.publishable or row.source in also:
            parts.setdefault(part_of.get(row.patient_id, ""), []).append(row)
    require_both(parts)
    others = [r for r in read_negatives(negatives) if r.publishable or r.source in also]
    return parts, [r for r in others if part_of.get(r.patient_id, "train") == "train"]


def read_grey(row: FilmRow) -> np.ndarray:
    """uint8 (H, W), at most 384 px; raises FilmError."""
    pixels = to_uint8(read_film(row.image).pixels)
    return fit(pixels, _SIDE) if max(pixels.shape) > _SIDE else pixels


class ViewMaker:
    """Training views: the i-th is the same for the same seed and rows.

    `others` are the pictures that can be read; `fold_of` is each one's fold by patient.
    """

    def __init__(
        self, films: Sequence[FilmRow], others: Sequence[FilmRow], folds: int, seed: int
    ) -> None:
        self.films, self.masked, self.seed = films, [r for r in films if r.mask], seed
        self._kept: dict[str, np.ndarray] = {}
        self.others = [row for row in others if self._readable(row)]
        kinds = [class_of_negative(row) for row in self.others]
        shares = {str(i): 1 / max(1, folds) for i in range(max(1, folds))}
        split = make_split([r.patient_id for r in self.others], kinds, shares, seed)
        self.fold_of = {r.image: int(split.part_of[r.patient_id]) for r in self.others}
        self._of = defaultdict[str, list[FilmRow]](list)
        for row, kind in zip(self.others, kinds, strict=True):
            self._of[kind].append(row)
            if row.label in ("abdomen", "pelvis"):
                self._of["below"].append(row)

    def _readable(self, row: FilmRow) -> bool:
        try:
            return self.read(row).size > 0
        except FilmError as error:
            log.warning("%s left out: %s", row.image, error.sentence)
            return False

    def read(self, row: FilmRow) -> np.ndarray:
        """`read_grey`, once."""
        if row.image not in self._kept:
            self._kept[row.image] = read_grey(row)
        return self._kept[row.image]

    def make(self, i: int) -> tuple[np.ndarray, tuple[int, int, int]]:
        """A view uint8 (H, W), and what is to be learnt of it: number of its class; mirrored 0 or
        1, -1 where it is not asked; fold of the real picture in it, -1 without."""
        from detect.view.pictures import mark, vary

        rng = np.random.default_rng([self.seed, i])
        kind = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
        if kind in ("lateral", "other", "many"):
            picture, fold = self._other(kind, rng)
            turns = int(rng.integers(4)) if kind != "many" and rng.random() < 0.4 else 0
            view = mark(np.rot90(vary(picture, rng, 0.08), turns), rng)
            return view, (CLASSES.index(kind), -1, fold)
        turns, flipped = int(rng.integers(1, 4)) if kind == "turned" else 0, rng.random() < 0.5
        film = vary(self._film(rng)[:, :: -1 if flipped else 1], rng)
        if rng.random() < 0.5:  # marked before it is turned, or after
            view = np.ascontiguousarray(np.rot90(mark(film, rng), -turns))
        else:
            view = mark(np.rot90(film, -turns), rng)
        return view, (turns, -1 if turns else int(flipped), -1)

    def _film(self, rng: np.random.Generator) -> np.ndarray:
        return self.read(self.films[int(rng.integers(len(self.films)))])

    def _real(
        self, kind: str, rng: np.random.Generator, fold: int | None = None
    ) -> tuple[np.ndarray, int]:
        """A real picture, mirrored or not, of one fold where that is asked; else a drawn one."""
        rows = [r for r in self._of[kind] if fold in (None, self.fold_of[r.image])]
        if not rows:
            return self._drawn(rng), -1
        row = rows[int(rng.integers(len(rows)))]
        return self.read(row)[:, :: 1 - 2 * int(rng.integers(2))], self.fold_of[row.image]

    def _other(self, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        from detect.view import pictures as made

        if rng.random() < {"lateral": 1.0, "other": 0.7, "many": 0.15}[kind]:
            return self._real(kind, rng)
        if kind == "other":
            return self._drawn(rng), -1
        beside, fold = self._real("other", rng)
        draw = rng.random()
        if draw < 0.2:
            below, fold = self._real("below", rng)
            return made.trunk(self._film(rng), below, rng), fold
        if draw < 0.4:
            return made.screenshot(self._film(rng), rng), -1
        if draw < 0.5:
            return made.screenshot(beside, rng), fold
        lateral, _ = self._real("lateral", rng, fold)
        n, chests = int(rng.choice([2, 2, 2, 3, 4, 6, 9, 12])), rng.random() < 0.5
        tiles = [
            self._film(rng) if chests or p < 0.6 else lateral if p < 0.8 else beside
            for p in rng.random(n)
        ]
        return made.collage([made.vary(t, rng) for t in tiles], rng), -1 if chests else fold

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        from detect.dataset import make_negative
        from detect.view import pictures as made

        draw = rng.random()
        if draw < 0.4 or not self.masked:
            return made.ct_axial(rng) if draw < 0.3 else made.text_page(rng)
        row = self.masked[int(rng.integers(len(self.masked)))]
        film, mask = self.read(row), cv2.imread(row.mask, cv2.IMREAD_GRAYSCALE)
        mask = np.zeros_like(film) if mask is None else cv2.resize(mask, film.shape[::-1])
        box = mask_box_xyxy(mask > 127)
        if box is None:
            return made.text_page(rng)
        return made.ct_coronal(mask, rng) if draw < 0.6 else make_negative(film, box, rng)
