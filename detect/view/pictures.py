"""Which pictures teach and measure the view, and the training views made of them: films moved, lit
and marked anew; collages, screenshots and trunks made of films; CT slices and pages of text, drawn.

Pictures are uint8 (H, W); everything random comes from the generator that is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

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
from detect.view import CLASSES

Rng = np.random.Generator
Array = np.ndarray
_SIDE = 384  # px a film is kept at: half as much again as the network sees
_SHARES = {"frontal": 0.46, "turned": 0.15, "lateral": 0.15, "other": 0.12, "many": 0.12}
_WORDS = "L R LT RT PA AP PORTABLE SUPINE ERECT 1 (a) Fig.1"


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
    `also`), and the other pictures that may, none of a patient of another part than train. Raises
    ValueError where there is nothing to train or to validate on."""
    part_of = Split.load(split).part_of
    parts: dict[str, list[FilmRow]] = {"train": [], "val": []}
    for row in read_films(data):
        if row.publishable or row.source in also:
            parts.setdefault(part_of.get(row.patient_id, ""), []).append(row)
    require_both(parts)
    others = [r for r in read_negatives(negatives) if r.publishable or r.source in also]
    return parts, [r for r in others if part_of.get(r.patient_id, "train") == "train"]


def read_grey(row: FilmRow) -> Array:
    """uint8 (H, W), at most 384 px; raises FilmError."""
    pixels = to_uint8(read_film(row.image).pixels)
    return fit(pixels, _SIDE) if max(pixels.shape) > _SIDE else pixels


class ViewMaker:
    """Training views: the i-th is the same for the same seed and rows. `others` are the pictures
    that can be read; `fold_of` is each one's fold by patient."""

    def __init__(
        self, films: Sequence[FilmRow], others: Sequence[FilmRow], folds: int, seed: int
    ) -> None:
        self.films, self.masked, self.seed = films, [r for r in films if r.mask], seed
        self._kept: dict[str, Array] = {}
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

    def read(self, row: FilmRow) -> Array:
        """`read_grey`, once."""
        if row.image not in self._kept:
            self._kept[row.image] = read_grey(row)
        return self._kept[row.image]

    def make(self, i: int) -> tuple[Array, tuple[int, int, int]]:
        """A view uint8 (H, W), and what is to be learnt of it: number of its class; mirrored 0 or
        1, -1 where it is not asked; fold of the real picture in it, -1 without."""
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

    def _film(self, rng: Rng) -> Array:
        return self.read(self.films[int(rng.integers(len(self.films)))])

    def _real(self, kind: str, rng: Rng, fold: int | None = None) -> tuple[Array, int]:
        """A real picture, mirrored or not, of one fold where that is asked; else a drawn one."""
        rows = [r for r in self._of[kind] if fold in (None, self.fold_of[r.image])]
        if not rows:
            return self._drawn(rng), -1
        row = rows[int(rng.integers(len(rows)))]
        return self.read(row)[:, :: 1 - 2 * int(rng.integers(2))], self.fold_of[row.image]

    def _other(self, kind: str, rng: Rng) -> tuple[Array, int]:
        if rng.random() < {"lateral": 1.0, "other": 0.7, "many": 0.15}[kind]:
            return self._real(kind, rng)
        if kind == "other":
            return self._drawn(rng), -1
        beside, fold = self._real("other", rng)
        draw = rng.random()
        if draw < 0.2:
            below, fold = self._real("below", rng)
            return trunk(self._film(rng), below, rng), fold
        if draw < 0.4:
            return screenshot(self._film(rng), rng), -1
        if draw < 0.5:
            return screenshot(beside, rng), fold
        lateral, _ = self._real("lateral", rng, fold)
        n, chests = int(rng.choice([2, 2, 2, 3, 4, 6, 9, 12])), rng.random() < 0.5
        tiles = [
            self._film(rng) if chests or p < 0.6 else lateral if p < 0.8 else beside
            for p in rng.random(n)
        ]
        return collage([vary(t, rng) for t in tiles], rng), -1 if chests else fold

    def _drawn(self, rng: Rng) -> Array:
        from detect.dataset import make_negative

        draw = rng.random()
        if draw < 0.4 or not self.masked:
            return ct_axial(rng) if draw < 0.3 else text_page(rng)
        row = self.masked[int(rng.integers(len(self.masked)))]
        film, mask = self.read(row), cv2.imread(row.mask, cv2.IMREAD_GRAYSCALE)
        mask = np.zeros_like(film) if mask is None else cv2.resize(mask, film.shape[::-1])
        box = mask_box_xyxy(mask > 127)
        if box is None:
            return text_page(rng)
        return ct_coronal(mask, rng) if draw < 0.6 else make_negative(film, box, rng)


@cache
def _changes() -> tuple[Any, Any]:
    """What moves a film, and what lights it anew."""
    import albumentations as A  # late: it takes seconds

    move = A.Compose(
        [
            A.Affine(rotate=(-12, 12), translate_percent=(-0.08, 0.08), scale=(0.75, 1.3), p=0.7),
            A.Affine(scale={"x": (0.85, 1.15), "y": (0.85, 1.15)}, keep_ratio=False, p=0.3),
        ]
    )
    light = A.Compose(
        [
            A.RandomGamma((50, 180), p=0.6),
            A.RandomBrightnessContrast(0.25, 0.35, p=0.5),
            A.CLAHE(clip_limit=3.0, p=0.12),
            A.OneOf([A.GaussianBlur((3, 9)), A.GaussNoise((0.02, 0.08)), A.Sharpen()], p=0.35),
            A.Downscale((0.12, 0.5), p=0.15),  # small must not mean no
            A.CoarseDropout((1, 4), (0.03, 0.15), (0.03, 0.15), fill="random_uniform", p=0.15),
        ]
    )
    return move, light


def vary(picture: Array, rng: Rng, invert: float = 0.03) -> Array:
    """The same subject on another film: moved, cut off at the edges, lit otherwise."""
    move, light = _changes()
    move.set_random_seed(int(rng.integers(2**31)))
    light.set_random_seed(int(rng.integers(2**31)))
    out = np.ascontiguousarray(picture)
    out = move(image=out)["image"] if rng.random() < 0.85 else out
    if rng.random() < 0.35:
        (h, w), (a, b, c, d) = out.shape, rng.uniform(0, 0.12, 4)
        out = np.ascontiguousarray(out[int(a * h) : h - int(b * h), int(c * w) : w - int(d * w)])
    out = light(image=out)["image"]
    return 255 - out if rng.random() < invert else out


def mark(picture: Array, rng: Rng) -> Array:
    """Borders, letters and an archive's mark, as they lie on films of all kinds."""
    out: Array = np.array(picture, order="C")
    if rng.random() < 0.35:
        wide = rng.random() < 0.4
        edges = rng.uniform(-0.5, 1, (2, 2)).clip(0) * (0.3 if wide else 0.05) * max(out.shape)
        level = 0 if wide or rng.random() < 0.75 else int(rng.integers(256))
        out = np.pad(out, edges.astype(int), constant_values=level)
    h, w = out.shape
    if rng.random() < 0.15:  # the edge of the plate
        x = int(w * rng.choice([0.02, 0.05, 0.95, 0.98]))
        cv2.line(out, (x, 0), (x + int(rng.integers(-9, 9)), h), 255, max(1, w // 90))
    if rng.random() < 0.3:
        size = rng.uniform(0.5, 1.1) * w / 512
        spot = int(w - 130 * size), int(h * 0.015 + 24 * size)
        write(out, "MedPix", spot, size, rng, int(rng.integers(120, 256)))
    for word in rng.choice(_WORDS.split(), int(rng.integers(0, 4))):
        spot = int(w * rng.choice([0.03, 0.85])), int(h * rng.uniform(0.04, 0.95))
        write(out, str(word), spot, rng.uniform(0.4, 1.3) * w / 512, rng)
    if rng.random() < 0.08:
        write_lines(out, (0.03, 0.9), 2, rng, 255)
    return out


def write(
    page: Array, text: str, xy: tuple[int, int], size: float, rng: Rng, ink: int = 255
) -> None:
    """A word into the page, its lower left corner at `xy`."""
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX]))
    thick = max(1, round(size * rng.uniform(0.8, 2.5)))
    cv2.putText(page, text, xy, font, max(0.25, size), ink, thick, cv2.LINE_AA)


def write_lines(
    page: Array, at: tuple[float, float], lines: int, rng: Rng, ink: int, wide: float = 0.9
) -> None:
    """Lines of letters from `at` (x, y as shares of the page) downwards."""
    (h, w), size = page.shape, max(0.3, rng.uniform(0.6, 1.2) * page.shape[0] / 700)
    for i in range(lines):
        text = "".join(rng.choice(list("abcdefgh iklmno rstuv  "), 60))
        letters = max(2, int(w * wide * rng.uniform(0.5, 1) / (19 * size)))
        spot = int(w * at[0]), int(h * at[1] + 34 * i * size)
        write(page, text[:letters], spot, size, rng, ink)


def place(page: Array, picture: Array, x: int, y: int, w: int, h: int) -> None:
    """The picture into the middle of a rectangle of the page, its aspect kept."""
    scale = min(w / picture.shape[1], h / picture.shape[0])
    size = max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale))
    x, y = x + (w - size[0]) // 2, y + (h - size[1]) // 2
    page[y : y + size[1], x : x + size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def collage(pictures: Sequence[Array], rng: Rng) -> Array:
    """The pictures side by side or in rows, with gaps and letters; the last row may lack some."""
    n = len(pictures)
    columns = n if n < 4 and rng.random() < 0.7 else int(rng.integers(1, n + 1))
    cell = int(rng.integers(200, 300) if n < 5 else rng.integers(90, 170))
    tall, gap = int(cell * rng.uniform(0.8, 1.25)), int(cell * rng.choice([0, 0.02, 0.06, 0.2]))
    head = int(cell * rng.choice([0, 0, 0.15]))
    ground = int(rng.choice([0, 255, 255, int(rng.integers(256))]))
    size = -(-n // columns) * (tall + gap + head) + gap, columns * (cell + gap) + gap
    page = np.full(size, ground, np.uint8)
    for i, picture in enumerate(pictures):
        x, y = gap + i % columns * (cell + gap), gap + i // columns * (tall + gap + head)
        whole = picture if gap or rng.random() < 0.3 else cv2.resize(picture, (cell, tall))
        place(page, whole, x, y + head, cell, tall)
        if head or rng.random() < 0.3:
            ink = 0 if head and ground > 127 else 255
            write(page, chr(97 + i), (x + 4, y + max(head - 4, 14)), cell / 300, rng, ink)
    if rng.random() < 0.2:  # the rest of a sheet
        rest = [(0, int(v * rng.uniform(0, 0.5))) for v in size]
        page = np.pad(page, rest, constant_values=ground)
    return page


def screenshot(picture: Array, rng: Rng) -> Array:
    """The picture in a window with bars, text and buttons, or in a figure under its title."""
    if rng.random() < 0.15:
        top, side = (int(v * rng.uniform(0.08, 0.18)) for v in picture.shape)
        page = np.pad(picture, ((top, side // 3), (side, side)), constant_values=255)
        write_lines(page, (rng.uniform(0.1, 0.4), 0.07), 1, rng, 0, rng.uniform(0.1, 0.5))
        return page
    h, w = int(rng.integers(300, 520)), int(rng.integers(360, 640))
    ground = int(rng.choice([255, 255, 245, 0, 30, 60, int(rng.integers(256))]))
    page, ink = np.full((h, w), ground, np.uint8), 0 if ground > 128 else 235
    bar = int(h * rng.uniform(0.05, 0.15))
    if rng.random() < 0.7:
        page[:bar] = np.clip(ground + rng.choice([-60, -25, 25, 60]), 0, 255)
        write_lines(page, (0.02, 0.6 * bar / h), 1, rng, ink, 0.6)
        for i in range(int(rng.integers(0, 6))):
            cv2.circle(page, (w - 12 - 16 * i, bar // 2), 5, int(rng.integers(256)), -1)
    wide, high = int(w * rng.uniform(0.3, 0.75)), int((h - bar) * rng.uniform(0.5, 0.9))
    x, y = int(rng.uniform(0, w - wide)), bar + int(rng.uniform(0.02, 1) * (h - bar - high))
    place(page, picture, x, y, wide, high)
    for start, share in ((0.01, x / w), ((x + wide) / w + 0.01, 1 - (x + wide) / w)):
        if share > 0.15:
            write_lines(page, (start, 0.25), int(rng.integers(2, 14)), rng, ink, share - 0.02)
            for i in range(int(rng.integers(0, 5))):
                a = int(w * start), int(h * (0.5 + 0.1 * i))
                b = a[0] + int(w * share * rng.uniform(0.2, 0.9)), a[1] + int(h * 0.06)
                cv2.rectangle(page, a, b, int(rng.integers(256)), int(rng.choice([-1, 2])))
    return page


def text_page(rng: Rng) -> Array:
    """A page of text, dark or light."""
    page = np.full(rng.integers(250, 520, 2), rng.choice([20, 250]), np.uint8)
    write_lines(page, (0.05, 0.1), int(rng.integers(3, 22)), rng, 250 - int(page[0, 0]))
    return page


def trunk(chest: Array, below: Array, rng: Rng) -> Array:
    """A whole spine or a babygram: a chest above what lies below it, the join blurred."""
    top = cv2.resize(chest, (320, int(rng.integers(190, 320)))).astype(np.float32)
    low = cv2.resize(below, (320, int(rng.integers(190, 400)))).astype(np.float32)
    low = (low * (top[-40:].mean() + 1) / (low[:40].mean() + 1)).clip(0, 255)
    fade = np.linspace(1, 0, 48, dtype=np.float32)[:, None]
    join = top[-48:] * fade + low[:48] * (1 - fade)
    return np.concatenate([top[:-48], join, low[48:]]).astype(np.uint8)


def ct_axial(rng: Rng) -> Array:
    """A drawn axial slice in a lung or soft-tissue window: body, lungs, heart, spine, table."""
    side, lung, tissue = 320, rng.uniform(5, 90), rng.uniform(100, 245)
    plate = np.full((side, side), rng.uniform(0, 20), np.float32)

    def oval(x: float, y: float, a: float, b: float, level: float) -> None:
        centre, axes = (int(side * x), int(side * y)), (int(side * a), int(side * b))
        cv2.ellipse(plate, centre, axes, 0, 0, 360, level, -1)

    if rng.random() < 0.4:
        oval(0.5, 0.5, 0.49, 0.49, rng.uniform(20, 60))
    a, b = rng.uniform(0.36, 0.49), rng.uniform(0.25, 0.38)
    oval(0.5, 0.5, a, b, tissue * 0.75)
    oval(0.5, 0.5, a * 0.9, b * 0.88, tissue)
    if rng.random() < 0.75:
        for s in (-1, 1):
            oval(0.5 + s * a * 0.47, 0.49, a * rng.uniform(0.3, 0.42), b * 0.72, lung)
        oval(0.5 + a * rng.uniform(0, 0.25), 0.45, a * 0.33, b * 0.42, tissue)
    else:
        for x, y in rng.normal(0.5, 0.1, (int(rng.integers(3, 9)), 2)):
            a, b, level = rng.uniform((0.02, 0.02, 0.6 * tissue), (0.12, 0.12, 255))
            oval(x, y, a, b, level)
    oval(0.5, 0.68, 0.06, 0.05, 255)
    plate[(plate == lung) & (_specks(plate.shape, rng) > 0)] = tissue
    if rng.random() < 0.6:
        cv2.ellipse(plate, (160, 192), (144, 96), 0, 20, 160, 200, 2)
    return _grain(plate, rng)


def ct_coronal(mask: Array, rng: Rng) -> Array:
    """A coronal slice in the lung window, drawn round a film's lung mask: lungs with vessels and
    without ribs, everything else nearly white, cut close."""
    lung, tissue = rng.uniform(20, 90), rng.uniform(170, 250)
    inside = (mask > 127).astype(np.float32)
    middle = mask.shape[1] // 2
    inside[:, middle - 18 : middle + 18] *= rng.uniform(0, 0.4)  # the mediastinum
    vessels = _specks(mask.shape, rng) * rng.uniform(0.3, 1)
    plate = tissue + inside * (1 - vessels) * (lung - tissue)
    (y, x), (a, b, c, d) = np.nonzero(inside), (rng.uniform(0, 40, 4)).astype(int)
    near = plate[max(0, y.min() - a) : y.max() + b, max(0, x.min() - c) : x.max() + d]
    return _grain(near, rng)


def _specks(shape: tuple[int, ...], rng: Rng) -> Array:
    return cv2.dilate((rng.random(shape) < 0.01).astype(np.uint8), np.ones((2, 2), np.uint8))


def _grain(plate: Array, rng: Rng) -> Array:
    soft = cv2.GaussianBlur(plate, (0, 0), rng.uniform(0.6, 2)) + rng.normal(0, 6, plate.shape)
    return soft.clip(0, 255).astype(np.uint8)
