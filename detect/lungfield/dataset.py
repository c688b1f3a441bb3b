"""Films with lung masks as the network trains on them: whole films and thorax crops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from cxr.boxes import Frame, clip_xyxy, expand_xyxy, mask_box_xyxy
from cxr.films_table import FilmRow
from cxr.intensity import to_uint8
from detect.augment import make_negative
from detect.dataset import ReadFilms
from detect.lungfield.data import CROP_MARGIN, VIEWS, read_mask
from detect.predict import prepare_film, to_input


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
    """One film as it is kept: uint8 (H, W), and its mask 0 / 255."""

    film: np.ndarray
    mask: np.ndarray


class FieldDataset(ReadFilms[FilmRow]):
    """Letterboxed films (3, S, S) in [0, 1] with `{"mask": (S, S)}`, the field's share of a pixel.

    With `augment` an item is a random view of its film; without one the items are each film whole
    and, behind them, each film's thorax crop as `detect.crop` cuts it, so that both are validated.
    `negatives` is the share of pictures replaced by ones without lungs, whose mask is empty. A mask
    that does not fit its film is a ValueError.
    """

    items: list[FieldItem]

    def __init__(
        self,
        rows: Sequence[FilmRow],
        root: str | Path,
        side: int,
        augment: FieldAugment | None = None,
        negatives: float = 0.0,
    ) -> None:
        self.augment, self.negatives = augment, negatives
        super().__init__(rows, root, side)

    def prepare(self, film: FilmRow, pixels: np.ndarray) -> FieldItem:
        """Film and mask, finer than a crop is ever shown."""
        size_hw = (pixels.shape[0], pixels.shape[1])
        mask = to_uint8(read_mask(self.root / film.mask, size_hw).astype(np.float32))
        if max(size_hw) > 2 * self.side:
            frame = Frame.letterbox(size_hw, 2 * self.side)
            h, w = frame.content_hw
            pixels, mask = frame.apply(pixels)[:h, :w], frame.apply(mask)[:h, :w]
        return FieldItem(to_uint8(pixels), mask)

    def __len__(self) -> int:
        return len(self.items) * (1 if self.augment else len(VIEWS))

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        film, mask = self.items[index % len(self.items)]
        if self.augment is None:
            box = mask_box_xyxy(mask)
            if VIEWS[index // len(self.items)] == "crop" and box is not None:
                film, mask = cut(film, mask, expand_xyxy(box, CROP_MARGIN))
            return self._picture(film, mask)
        # torch's generator differs in each worker and epoch, and is seeded by the run
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        self.augment.seed(int(rng.integers(2**31)))
        film, mask = self._random_view(self.augment, film, mask, rng)
        turned = self.augment.geometry(image=film, mask=mask)
        return self._picture(turned["image"], turned["mask"])

    def _random_view(
        self, augment: FieldAugment, film: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        if rng.random() < self.negatives:
            box = mask_box_xyxy(mask)
            whole = np.array([0.0, 0, film.shape[1], film.shape[0]])
            # grown, so that the strips beside it hold no lung: their mask is empty
            away = whole if box is None else expand_xyxy(box, 0.08)
            picture = make_negative(film, away, rng)
            return picture, np.zeros(picture.shape, np.uint8)
        region = augment.region(mask, rng)
        return (film, mask) if region is None else cut(film, mask, region)

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
