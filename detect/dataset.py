"""Films and boxes for the detector, decoded once and kept small in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from cxr.boxes import Frame, union_xyxy
from cxr.coco import CocoFilm
from cxr.errors import FilmError
from cxr.film import read_film
from cxr.intensity import to_uint8
from cxr.workdir import console, log
from detect.augment import make_negative


def prepare_film(pixels: np.ndarray, side: int) -> tuple[np.ndarray, Frame]:
    """A film (H, W) float32 in [0, 1] as the detector sees it: uint8 letterbox and its Frame.

    uint8 because that is what most training films are: what is learnt on 8 bits must not meet
    another quantisation in use. Contrast is stretched between the 0.5 and 99.5 percentile, so
    that narrow and wide exposures look alike.
    """
    frame = Frame.letterbox((pixels.shape[0], pixels.shape[1]), side)
    canvas = frame.apply(pixels)
    h, w = frame.content_hw
    inner = canvas[:h, :w]
    low, high = np.percentile(inner[:: max(1, h // 128), :: max(1, w // 128)], (0.5, 99.5))
    if high > low:
        inner[:] = np.clip((inner - low) / (high - low), 0.0, 1.0)
    return to_uint8(canvas), frame


def to_input(canvas: np.ndarray) -> Tensor:
    """uint8 (S, S) to the network's float (3, S, S) in [0, 1]; it normalises by itself."""
    return torch.from_numpy(canvas).float().div_(255.0).expand(3, -1, -1)


class ThoraxDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Letterboxed films with torchvision's targets (boxes xyxy in letterbox px, labels from 1).

    Films are read once, at a long side of `cache` × `side`, and augmented from there. A film
    without a box has boxes of shape (0, 4). With `negatives` that share of the pictures is
    replaced by ones without a thorax. With `masks` (film name → mask file) an augmented box is
    the exact box of the turned lungs. Films that cannot be read are left out, with a warning; a
    film that is a scaled copy of the one its annotation lists has its boxes scaled.

    Raises:
        ValueError: when no film can be read, or one has another aspect ratio than its annotation.
    """

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
        self.side, self.augment, self.negatives = side, augment, negatives
        self._root, self._cache = Path(root), max(1.0, cache if augment else 1.0)
        self._masks = (masks or {}) if augment else {}
        with ThreadPoolExecutor(2) as pool:
            steps = track(
                pool.map(self._read, films),
                "reading films",
                len(films),
                console=console,
                transient=True,
            )
            read = list(steps)
        self.items = [item for item in read if item is not None]
        self.films = [f for f, item in zip(films, read, strict=True) if item is not None]
        if not self.items:
            raise ValueError(
                f"films must hold at least one readable film. Got {len(films)} under "
                f"{root}, none readable."
            )

    def _read(
        self, film: CocoFilm
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], np.ndarray | None] | None:
        try:
            pixels = read_film(self._root / film.file_name).pixels
        except FilmError as error:
            log.warning("%s left out: %s", film.file_name, error.sentence)
            return None
        side = min(int(self.side * self._cache), max(pixels.shape))
        boxes = film.resized((pixels.shape[0], pixels.shape[1])).boxes_xyxy
        canvas, frame = prepare_film(pixels, side)
        h, w = frame.content_hw
        mask = None
        if film.file_name in self._masks:
            raw = cv2.imread(str(self._root / self._masks[film.file_name]), cv2.IMREAD_GRAYSCALE)
            if raw is not None:
                mask = frame.apply(raw, nearest=True)[:h, :w]
        return canvas[:h, :w].copy(), frame.to_model_xyxy(boxes), film.labels, mask

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, boxes, labels, mask = self.items[index]
        if self.augment is not None:
            # torch's generator differs in each worker and epoch, and is seeded by the run
            rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
            if len(boxes) == 1 and rng.random() < self.negatives:
                image = make_negative(image, boxes[0], rng)
                boxes, labels, mask = np.zeros((0, 4)), (), None
            image, boxes, labels = _augmented(self.augment, image, boxes, labels, mask)
        frame = Frame.letterbox((image.shape[0], image.shape[1]), self.side)
        boxes = frame.to_model_xyxy(boxes)
        target = {
            "boxes": torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.as_tensor(labels, dtype=torch.int64) + 1,  # 0 is background
        }
        return to_input(frame.apply(image)), target


def _augmented(
    augment: Callable[..., dict[str, object]],
    image: np.ndarray,
    boxes: np.ndarray,
    labels: tuple[int, ...],
    mask: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    extra = {} if mask is None else {"mask": mask}
    out = augment(image=image, bboxes=boxes, labels=list(labels), **extra)
    new_boxes = np.asarray(out["bboxes"], dtype=np.float64).reshape(-1, 4)
    new_labels = tuple(int(v) for v in out["labels"])  # type: ignore[attr-defined]
    if mask is not None and len(new_boxes) == 1:
        exact = mask_box_xyxy(np.asarray(out["mask"]))
        new_boxes = exact[None] if exact is not None else new_boxes
    sides = new_boxes[:, 2:] - new_boxes[:, :2]
    keep = [bool((side >= 8).all()) for side in sides]  # a sliver left by a shift is no thorax
    return (
        np.asarray(out["image"]),
        new_boxes[keep],
        tuple(v for v, k in zip(new_labels, keep, strict=True) if k),
    )


def mask_box_xyxy(mask: np.ndarray) -> np.ndarray | None:
    """(4,) tight xyxy box of a mask's pixels above 0; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def thorax_truth_xyxy(film: CocoFilm) -> np.ndarray | None:
    """(4,) the film's thorax: its box, or the union of both lungs' boxes; None without one."""
    return union_xyxy(film.boxes_xyxy) if len(film.boxes_xyxy) else None


def collate(
    batch: list[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Lists, as torchvision's detectors want them."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
