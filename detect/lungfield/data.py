"""Films with lung masks as the lung-field network trains on them: whole films and thorax crops."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cxr.boxes import Frame, clip_xyxy, expand_xyxy
from cxr.film import FilmError, read_film
from cxr.films_table import FilmRow, read_films_table
from cxr.intensity import to_uint8
from cxr.split import Split, make_split
from cxr.workdir import Workdir, log
from detect.augment import make_negative
from detect.dataset import mask_box_xyxy, prepare_film, to_input

VIEWS = ("film", "crop")
CROP_MARGIN = 0.05  # detect.crop's own


@dataclass(frozen=True)
class FieldDataConfig:
    """Films and masks.

    Args:
        data: folder with films.csv, which names each film's mask.
        split: a split saved by `python -m cxr.split`; empty: made anew by patient (0.8 / 0.2).
        sources: keep these sources only; empty keeps all.
        publishable_only: leave out films whose licence forbids publishing a model.
        max_films: keep at most so many films of each part, for a quick look; 0 keeps all.
    """

    data: str = "../shared/data"
    split: str = ""
    sources: list[str] = field(default_factory=list)
    publishable_only: bool = True
    max_films: int = 0


def masked_rows(data: str | Path, sources: Sequence[str] = ()) -> list[FilmRow]:
    """Rows of films.csv that have a mask; raises ValueError when there is none."""
    path = Path(data) / "films.csv"
    if not path.is_file():
        raise ValueError(f"data must be a folder with films.csv. {path} does not exist.")
    rows = [r for r in read_films_table(path) if r.mask]
    rows = [r for r in rows if not sources or r.source in sources]
    if not rows:
        raise ValueError(
            f"{path} must name at least one mask (of the sources asked for). Got none."
        )
    return rows


def select_rows(
    config: FieldDataConfig, seed: int, workdir: Workdir | None = None
) -> tuple[list[FilmRow], list[FilmRow]]:
    """Rows to train and to validate on; raises ValueError or OSError for what does not fit."""
    rows = masked_rows(config.data, config.sources)
    rows = [r for r in rows if r.publishable or not config.publishable_only]
    patients = [r.patient_id for r in rows]
    if config.split:
        split = Split.load(config.split)
    else:
        strata = [(r.source, r.label) for r in rows]
        split = make_split(patients, strata, {"train": 0.8, "val": 0.2}, seed)
        if workdir is not None:
            split.save(workdir / "split.json")
    parts = [[rows[i] for i in split.select(patients, part)] for part in ("train", "val")]
    if config.max_films:
        parts = [part[: config.max_films] for part in parts]
    if not all(parts):
        raise ValueError(
            "the split must leave films to train and to validate. Got "
            f"{len(parts[0])} and {len(parts[1])} instead."
        )
    return parts[0], parts[1]


def read_mask(path: str | Path, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of a mask file; raises ValueError when it cannot be read or is of another size
    than its film."""
    raw = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if raw is None or raw.shape != size_hw:
        got = "no picture" if raw is None else f"{raw.shape[1]} × {raw.shape[0]} px"
        raise ValueError(
            f"{path} must be a mask of its film's {size_hw[1]} × {size_hw[0]} px. Got {got}."
        )
    return raw > 127


class FieldAugment:
    """Where a training picture looks, and how it is lit. Albumentations, seeded by the caller.

    A crop ends up to 12 % inside the lungs' box or 25 % beyond it, each side by itself: the
    audit segments crops, and films cut off the lungs. No inversion: films are dense-is-white here.
    """

    def __init__(self, crops: float = 0.4) -> None:
        self.crops = crops
        self.geometry = A.Compose(
            [
                A.HorizontalFlip(p=0.5),
                A.Affine(
                    rotate=(-15, 15),
                    translate_percent=(-0.1, 0.1),
                    scale=(0.7, 1.4),
                    balanced_scale=True,
                    p=0.8,
                ),
            ]
        )
        self.light = A.Compose(
            [
                A.RandomGamma((60, 160), p=0.5),
                A.RandomBrightnessContrast(0.2, 0.3, p=0.4),
                A.CLAHE(clip_limit=3.0, p=0.1),
                A.OneOf([A.GaussianBlur((3, 7)), A.GaussNoise((0.02, 0.08)), A.Sharpen()], p=0.3),
                # the field goes on behind a device: its mask is not cut
                A.CoarseDropout((1, 4), (0.03, 0.15), (0.03, 0.15), fill="random_uniform", p=0.2),
            ]
        )

    def seed(self, seed: int) -> None:
        """Seed both chains."""
        self.geometry.set_random_seed(seed)
        self.light.set_random_seed(seed + 1)

    def region(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """(4,) xyxy of a random crop about the lungs, or None for the whole film."""
        box = mask_box_xyxy(mask)
        if box is None or rng.random() >= self.crops:
            return None
        width, height = box[2] - box[0], box[3] - box[1]
        grow = rng.uniform(-0.12, 0.25, 4) * [-width, -height, width, height]
        return clip_xyxy(box + grow, (mask.shape[0], mask.shape[1]))[0]


class FieldItem(NamedTuple):
    """One film as it is kept: uint8 (H, W), its mask 0 / 255, and its row."""

    film: np.ndarray
    mask: np.ndarray
    row: FilmRow


class FieldDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Letterboxed films (3, S, S) in [0, 1] with `{"mask": (S, S)}`, the field's share of a pixel.

    Films and masks are decoded once. With `augment` an item is a random view of its film; without
    one the items are each film whole and, behind them, each film's thorax crop as `detect.crop`
    cuts it, so that both are validated. `negatives` is the share of pictures replaced by ones
    without lungs, whose mask is empty. Films that cannot be read are left out, with a warning.

    Raises:
        ValueError: when no film can be read, or a mask does not fit its film.
    """

    def __init__(
        self,
        rows: Sequence[FilmRow],
        root: str | Path,
        side: int,
        augment: FieldAugment | None = None,
        negatives: float = 0.0,
    ) -> None:
        self.side, self.augment, self.negatives = side, augment, negatives
        self._root = Path(root)
        with ThreadPoolExecutor(2) as pool:
            read = list(pool.map(self._read, rows))
        self.items = [item for item in read if item is not None]
        if not self.items:
            raise ValueError(
                f"rows must hold at least one readable film. Got {len(rows)} under "
                f"{root}, none readable."
            )

    @property
    def rows(self) -> list[FilmRow]:
        """The rows of the films that could be read."""
        return [item.row for item in self.items]

    def _read(self, row: FilmRow) -> FieldItem | None:
        try:
            pixels = read_film(self._root / row.image).pixels
        except FilmError as error:
            log.warning("%s left out: %s", row.image, error.sentence)
            return None
        size_hw = (pixels.shape[0], pixels.shape[1])
        mask = to_uint8(read_mask(self._root / row.mask, size_hw).astype(np.float32))
        long = 2 * self.side  # finer than a crop is ever shown
        if max(size_hw) > long:
            frame = Frame.letterbox(size_hw, long)
            h, w = frame.content_hw
            pixels, mask = frame.apply(pixels)[:h, :w], frame.apply(mask)[:h, :w]
        return FieldItem(to_uint8(pixels), mask, row)

    def __len__(self) -> int:
        return len(self.items) * (1 if self.augment else len(VIEWS))

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        film, mask, _ = self.items[index % len(self.items)]
        if self.augment is None:
            return self._picture(*self._view(film, mask, VIEWS[index // len(self.items)]))
        # torch's generator differs in each worker and epoch, and is seeded by the run
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        self.augment.seed(int(rng.integers(2**31)))
        film, mask = self._random_view(film, mask, rng)
        turned = self.augment.geometry(image=film, mask=mask)
        return self._picture(turned["image"], turned["mask"])

    def _random_view(
        self, film: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self.augment is not None
        if rng.random() < self.negatives:
            box = mask_box_xyxy(mask)
            whole = np.array([0.0, 0, film.shape[1], film.shape[0]])
            # grown, so that the strips beside it hold no lung: their mask is empty
            away = whole if box is None else expand_xyxy(box, 0.08)
            picture = make_negative(film, away, rng)
            return picture, np.zeros(picture.shape, np.uint8)
        region = self.augment.region(mask, rng)
        return (film, mask) if region is None else cut(film, mask, region)

    def _view(self, film: np.ndarray, mask: np.ndarray, view: str) -> tuple[np.ndarray, np.ndarray]:
        box = mask_box_xyxy(mask)
        if view == "film" or box is None:
            return film, mask
        return cut(film, mask, expand_xyxy(box, CROP_MARGIN))

    def _picture(self, film: np.ndarray, mask: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        canvas, frame = prepare_film(film.astype(np.float32) / 255, self.side)
        if self.augment is not None:
            h, w = frame.content_hw  # the padding stays black, as in use
            canvas[:h, :w] = self.augment.light(image=np.ascontiguousarray(canvas[:h, :w]))["image"]
        share = frame.apply(mask).astype(np.float32) / 255
        return to_input(canvas), {"mask": torch.from_numpy(share)}


def cut(
    film: np.ndarray, mask: np.ndarray, region_xyxy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Film and mask (H, W) cut at a region, which ends at the film's edge."""
    frame = Frame.cut(clip_xyxy(region_xyxy, (film.shape[0], film.shape[1])))
    return frame.apply(film), frame.apply(mask)
