"""Films with lung masks as the network trains on them (whole films and thorax crops), and it
in training: loss and validation."""

from __future__ import annotations

from typing import Any, NamedTuple

import albumentations as A
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cxr import draw
from cxr.boxes import Frame, clip_xyxy, expand_xyxy, mask_box_xyxy
from cxr.film import Film
from cxr.films_table import FilmRow
from cxr.intensity import to_uint8
from detect.data import read_mask
from detect.dataset import DetectorModule, ReadFilms, make_negative
from detect.lungfield.field import CROP_MARGIN, VIEWS, overlap
from detect.predict import prepare_film, to_input


class FieldAugment:
    """Where a training picture looks, and how it is lit. Albumentations, seeded by the caller. A
    crop ends up to 12 % inside the lungs' box or 25 % beyond it, each side by itself: the audit
    segments crops, and films cut off the lungs. No inversion: films are dense-is-white here."""

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

    def prepare(self, film: FilmRow, read: Film) -> FieldItem:
        """Film and mask, finer than a crop is ever shown."""
        pixels, size_hw = read.pixels, (read.pixels.shape[0], read.pixels.shape[1])
        mask = to_uint8(read_mask(self.root / film.mask, read).astype(np.float32))
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
        rng = self.rng()
        self.augment.seed(int(rng.integers(2**31)))
        film, mask = self._random_view(film, mask, rng)
        turned = self.augment.geometry(image=film, mask=mask)
        return self._picture(turned["image"], turned["mask"])

    def _random_view(
        self, film: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        if rng.random() < self.negatives:
            box = mask_box_xyxy(mask)
            whole = np.array([0.0, 0, film.shape[1], film.shape[0]])
            # grown, so that the strips beside it hold no lung: their mask is empty
            away = whole if box is None else expand_xyxy(box, 0.08)
            picture = make_negative(film, away, rng)
            return picture, np.zeros(picture.shape, np.uint8)
        region = self.augment.region(mask, rng)
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


def field_loss(logits: Tensor, share: Tensor) -> dict[str, Tensor]:
    """BCE over all pixels and 1 − soft Dice over the pictures that show lungs, of logits (N, S, S)
    and the field's share of each pixel, in [0, 1]. A picture without lungs has no Dice: there BCE
    alone teaches that nothing is to be marked."""
    losses = {"loss_bce": F.binary_cross_entropy_with_logits(logits, share)}
    shown = share.amax((1, 2)) > 0
    if shown.any():
        p, t = torch.sigmoid(logits[shown]), share[shown]
        dice = (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
        losses["loss_dice"] = 1 - dice.mean()
    return losses


class FieldModule(DetectorModule):
    """The detector's module with another loss and measure; optimiser and schedule are its.
    Validation logs `val_iou` (mean over whole films and crops, which selects the epoch) and Dice of
    both, at 0.5, in letterbox pixels; a batch is (N, 3, S, S) with {"mask": (N, S, S)}."""

    advice = "lower --optimiser.rate"

    def losses(self, batch: Any) -> tuple[dict[str, Tensor], None]:
        """BCE and Dice, and their sum."""
        losses = field_loss(self._logits(batch), batch[1]["mask"])
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}, None

    def _logits(self, batch: Any) -> Tensor:
        return self.model(batch[0].contiguous(memory_format=torch.channels_last))[:, 0]

    def validation_step(self, batch: Any, _: int) -> None:
        """Each picture's field against its mask."""
        found = (self._logits(batch) > 0).cpu().numpy()
        for mask, truth in zip(found, (batch[1]["mask"] > 0.5).cpu().numpy(), strict=True):
            measured = overlap(mask, truth)
            self.seen["iou"].append(measured.iou)
            self.seen["dice"].append(measured.dice)

    def seen_figures(self) -> dict[str, float]:
        """IoU of all, Dice of whole films and of crops."""
        dice = np.array_split(np.array(self.seen["dice"]), len(VIEWS))  # whole films, then crops
        by_view = zip(VIEWS, dice, strict=True)
        return {
            "val_iou": float(np.mean(self.seen["iou"] or [0.0])),
            **{f"val/dice_{view}": float(v.mean()) for view, v in by_view if len(v)},
        }


def field_tile(model: Any, image: Tensor, target: dict[str, Tensor]) -> tuple[np.ndarray, str]:
    """A validation picture: the true field in white, the found one in orange."""
    on = next(model.parameters()).device
    found = (model(image[None].to(on))[0, 0] > 0).cpu().numpy()
    truth = target["mask"].numpy() > 0.5
    picture = draw.draw_contour(draw.to_rgb(image[0].numpy()), truth, (255, 255, 255))
    picture = draw.draw_contour(picture, found, draw.ORANGE)
    return picture, f"Dice {overlap(found, truth).dice:.3f}"
