"""Films and boxes for the detector, decoded once and kept small in memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import albumentations as A
import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from cxr.boxes import Frame, mask_box_xyxy
from cxr.coco import CocoFilm
from cxr.errors import FilmError
from cxr.film import read_film
from cxr.films_table import FilmRow
from cxr.workdir import console, log
from detect.augment import make_negative
from detect.predict import prepare_film, to_input

Row = TypeVar("Row", CocoFilm, FilmRow)
Item = tuple[np.ndarray, np.ndarray, tuple[int, ...], np.ndarray | None]


class ReadFilms(Dataset[tuple[Tensor, dict[str, Tensor]]], Generic[Row]):
    """Films that are decoded once; `films` and `items` are those that could be read, the others are
    left out with a warning.

    Raises ValueError when no film can be read, or one does not fit what is known of it.
    """

    def __init__(self, films: Sequence[Row], root: str | Path, side: int) -> None:
        self.root, self.side = Path(root), side
        with ThreadPoolExecutor(2) as pool:
            steps = pool.map(self._read, films)
            bar = track(steps, "reading films", len(films), console=console, transient=True)
            read = list(bar)
        self.films: list[Row] = [f for f, item in zip(films, read, strict=True) if item is not None]
        self.items: list[Any] = [item for item in read if item is not None]
        if not self.items:
            raise ValueError(
                f"films must hold at least one readable film. Got {len(films)} under "
                f"{root}, none readable."
            )

    def _read(self, film: Row) -> Any | None:
        name = film.file_name if isinstance(film, CocoFilm) else film.image
        try:
            pixels = read_film(self.root / name).pixels
        except FilmError as error:
            log.warning("%s left out: %s", name, error.sentence)
            return None
        return self.prepare(film, pixels)

    def prepare(self, film: Row, pixels: np.ndarray) -> Any:
        """What is kept of a film (H, W)."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.items)


class ThoraxDataset(ReadFilms[CocoFilm]):
    """Letterboxed films with torchvision's targets (boxes xyxy in letterbox px, labels from 1).

    Films are kept at a long side of `cache` × `side`, and augmented from there. A film without a
    box has boxes of shape (0, 4). With `negatives` that share of the pictures is replaced by ones
    without a thorax. With `masks` (film name → mask file) an augmented box is the exact box of the
    turned lungs. A film that is a scaled copy of the one its annotation lists has its boxes scaled;
    one of another aspect ratio is a ValueError.
    """

    items: list[Item]

    def __init__(
        self,
        films: Sequence[CocoFilm],
        root: str | Path,
        side: int,
        augment: A.Compose | None = None,
        negatives: float = 0.0,
        masks: dict[str, str] | None = None,
        cache: float = 1.25,
    ) -> None:
        self.augment, self.negatives = augment, negatives
        self._cache = max(1.0, cache if augment else 1.0)
        self._masks = (masks or {}) if augment else {}
        super().__init__(films, root, side)

    def prepare(self, film: CocoFilm, pixels: np.ndarray) -> Item:
        """The letterbox without its padding, boxes and mask in its pixels."""
        side = min(int(self.side * self._cache), max(pixels.shape))
        boxes = film.resized((pixels.shape[0], pixels.shape[1])).boxes_xyxy
        canvas, frame = prepare_film(pixels, side)
        h, w = frame.content_hw
        mask = None
        if film.file_name in self._masks:
            raw = cv2.imread(str(self.root / self._masks[film.file_name]), cv2.IMREAD_GRAYSCALE)
            if raw is not None:
                mask = frame.apply(raw, nearest=True)[:h, :w]
        return canvas[:h, :w].copy(), frame.to_model_xyxy(boxes), film.labels, mask

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, boxes, labels, mask = self.items[index]
        if self.augment is not None:
            # torch's generator differs in each worker and epoch, and is seeded by the run
            rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
            if len(boxes) == 1 and rng.random() < self.negatives:
                image = make_negative(image, boxes[0], rng)
                boxes, labels, mask = np.zeros((0, 4)), (), None
            self.augment.set_random_seed(int(rng.integers(2**31)))
            image, boxes, labels = _augmented(self.augment, image, boxes, labels, mask)
        frame = Frame.letterbox((image.shape[0], image.shape[1]), self.side)
        target = {
            "boxes": torch.as_tensor(frame.to_model_xyxy(boxes), dtype=torch.float32).reshape(
                -1, 4
            ),
            "labels": torch.as_tensor(labels, dtype=torch.int64) + 1,  # 0 is background
        }
        return to_input(frame.apply(image)), target


def _augmented(
    augment: A.Compose,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: tuple[int, ...],
    mask: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    extra = {} if mask is None else {"mask": mask}
    out = augment(image=image, bboxes=boxes, labels=list(labels), **extra)
    new_boxes = np.asarray(out["bboxes"], dtype=np.float64).reshape(-1, 4)
    new_labels = np.asarray(out["labels"], dtype=np.int64)
    if mask is not None and len(new_boxes) == 1:
        exact = mask_box_xyxy(np.asarray(out["mask"]))
        new_boxes = exact[None] if exact is not None else new_boxes
    sides = new_boxes[:, 2:] - new_boxes[:, :2]
    keep = (sides >= 8).all(axis=1)  # a sliver left by a shift is no thorax
    return np.asarray(out["image"]), new_boxes[keep], tuple(new_labels[keep].tolist())


def collate(
    batch: list[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Lists, as torchvision's detectors want them."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
