"""Films or crops with a label for one target, decoded once into a cache that all members share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from classify.augment import Augment, centre, dilate
from classify.films import Case
from classify.labels import TARGET
from classify.preprocess import PreprocessConfig, preprocess
from classify.regions import RegionConfig, RegionFinder
from cxr.boxes import Frame, expand_xyxy
from cxr.film import read_film
from cxr.intensity import to_uint8
from cxr.workdir import console, log, write_atomic


@dataclass(frozen=True)
class PixelCache:
    """Decoded films (N, S, S) uint8, and for each the number of its region or -1.

    `regions` (M, S, S) is 0 / 255; both arrays are memory-mapped, so RAM does not grow with N.
    """

    images: np.ndarray
    regions: np.ndarray
    region_of: np.ndarray


def build_cache(
    cases: Sequence[Case],
    config: PreprocessConfig,
    region: RegionConfig,
    folder: Path,
    side: int,
    box_jitter: float = 0.0,
    target: str = "",
) -> PixelCache:
    """Decode each film once into `folder`, or open what an earlier run decoded.

    `side` is that of the cached pictures, `box_jitter` how far a crop is widened (by fraction of
    its side, to both sides). `target` matters for lesion_masks and finding_boxes only.
    """
    finder = RegionFinder(region, target)
    name = _fingerprint(cases, config, region, side, box_jitter, finder.target)
    done = folder / f"{name}.json"
    files = [folder / f"{name}.{kind}.npy" for kind in ("images", "regions")]
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):  # trainings side by side share a cache
            if not done.exists():
                _decode_all(cases, config, finder, folder, name, side, box_jitter)
    region_of = np.asarray(json.loads(done.read_text())["region_of"], dtype=np.int64)
    images, regions = (np.load(f, mmap_mode="r") for f in files)
    return PixelCache(images, regions, region_of)


def _decode_all(
    cases: Sequence[Case],
    config: PreprocessConfig,
    finder: RegionFinder,
    folder: Path,
    name: str,
    side: int,
    box_jitter: float,
) -> None:
    shape = (len(cases), side, side)
    images = np.lib.format.open_memmap(
        folder / f"{name}.images.npy", mode="w+", dtype=np.uint8, shape=shape
    )
    regions: list[np.ndarray] = []
    region_of = []
    for i, case in enumerate(track(cases, "decoding films", console=console, transient=True)):
        pixels, cut = _pixels_of(case, box_jitter)
        images[i] = to_uint8(preprocess(pixels, config, side))
        mask = finder.mask_of(case)
        region_of.append(-1 if mask is None else len(regions))
        if mask is not None:
            mask = mask if cut is None else cut.apply(mask, nearest=True)
            letterbox = Frame.letterbox(mask.shape, side, centre=True)
            regions.append(letterbox.apply(mask, nearest=True))
    images.flush()
    np.save(
        folder / f"{name}.regions.npy",
        np.stack(regions) if regions else np.zeros((0, side, side), np.uint8),
    )
    write_atomic(folder / f"{name}.json", json.dumps({"region_of": region_of}))  # marks it whole
    log.info("decoded %d films to %d px, %d with a region", len(cases), side, len(regions))


def _pixels_of(case: Case, box_jitter: float) -> tuple[np.ndarray, Frame | None]:
    """A film's or crop's pixels, and how they were cut from the film."""
    if case.crop is None or case.crop_row is None:
        return read_film(case.film).pixels, None
    frame = case.crop_row.to_frame()
    if not box_jitter:
        return read_film(case.crop).pixels, frame
    wide = Frame.cut(expand_xyxy(frame.source_xyxy, box_jitter))
    return wide.apply(read_film(case.film).pixels), wide


def _fingerprint(
    cases: Sequence[Case],
    config: PreprocessConfig,
    region: RegionConfig,
    side: int,
    box_jitter: float,
    target: str,
) -> str:
    """Changes with anything that changes the cached pixels, the files' sizes and dates too."""
    content = replace(config, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).to_dict()
    parts = [
        json.dumps(content),
        str((region.kind, region.path)),
        str(side),
        str(box_jitter),
        target,
    ]
    for case in cases:
        stat = (case.crop or case.film).stat()
        box = case.crop_row.crop_xyxy if case.crop_row else None
        parts.append(f"{case.row.image} {case.row.mask} {box} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class MemberDataset(Dataset[dict[str, Tensor]]):
    """Pictures, labels and reconstruction targets of one member.

    An item: `image` (1, side, side) float32 in [0, 1], `label`, `goal` (1, side, side): the image
    inside the dilated region (with `masks` the region itself) where the target is present, else 0;
    `known`: 1.0 where that goal is known (the target is absent, or its region was drawn), else 0.0;
    `index` into the cases.
    """

    def __init__(
        self,
        cache: PixelCache,
        labels: Sequence[int],
        indices: Sequence[int],
        side: int,
        dilation: int = 0,
        augment: Augment | None = None,
        masks: bool = False,
    ) -> None:
        self.cache, self.labels, self.indices = cache, labels, list(indices)
        self.side, self.dilation, self.augment = side, dilation, augment
        self.masks = masks

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        index = self.indices[item]
        image = np.asarray(self.cache.images[index])
        number = int(self.cache.region_of[index])
        mask = np.zeros_like(image) if number < 0 else np.asarray(self.cache.regions[number])
        if self.augment is not None:
            image, mask = self.augment(image, mask)
        else:
            image, mask = centre(image, self.side), centre(mask, self.side)
        label = self.labels[index]
        pixels = torch.from_numpy(image.astype(np.float32) / 255)[None]
        goal = torch.zeros_like(pixels)
        if label == TARGET and number >= 0:
            region = torch.from_numpy(dilate(mask, self.dilation) > 127)[None]
            goal = region.float() if self.masks else pixels * region
        known = float(label != TARGET or number >= 0)
        return {
            "image": pixels,
            "goal": goal,
            "label": torch.tensor(label),
            "known": torch.tensor(known),
            "index": torch.tensor(index),
        }


def class_weights(labels: Sequence[int], classes: int = 3) -> Tensor:
    """Balanced weights n / (classes present × n of the class); 0 for a class without films."""
    counts = np.bincount(np.asarray(labels), minlength=classes).astype(float)
    present = int((counts > 0).sum())
    weights = np.divide(counts.sum(), present * counts, out=np.zeros(classes), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)
