"""Films or crops with their labels, decoded once into a cache that trainings share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from filelock import FileLock
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from classify.augment import Augment, centre, dilate
from classify.films import DRAWN, Case, Films, RegionConfig, part_in_path, select_cases
from classify.labels import TARGET
from classify.preprocess import PreprocessConfig, preprocess, to_input
from classify.tasks.settings import SingleConfig, TrainingConfig
from cxr.boxes import Frame, expand_xyxy
from cxr.cli import as_list
from cxr.data_folders import DataFolders
from cxr.devices import pick_device
from cxr.film import read_film
from cxr.films_table import (
    class_of,
    film_stem,
    is_among,
    label_word,
    read_finding_boxes,
    take_films,
    tell_unknown,
)
from cxr.intensity import to_uint8
from cxr.notes import FilmError
from cxr.training.recipe import require_writable
from cxr.workdir import console, log, write_atomic

NO_REGION = RegionConfig("none")


@dataclass(frozen=True)
class PixelCache:
    """Decoded films (N, S, S) uint8, and for each the number of its region or -1.

    `regions` (M, S, S) is 0 / 255; both arrays are memory-mapped, so RAM does not grow with N.
    """

    images: np.ndarray
    regions: np.ndarray
    region_of: np.ndarray


def cases_of(config: TrainingConfig, unlabelled: bool = False) -> tuple[list[Case], dict[str, int]]:
    """`select_cases` for a training; raises ValueError where its table is missing."""
    data = DataFolders(config.data)
    rows = data.rows()
    if not unlabelled:
        mine = [row for row in rows if not config.sources or is_among(row.source, config.sources)]
        tell_unknown(mine, data.named("films.csv"), config.words)
    taken = (config.sources, config.publishable_only, config.crops, unlabelled, config.words)
    return select_cases(rows, data, *taken)


def load_films(config: SingleConfig) -> Films:
    """The films of a single network's training and their classes; raises ValueError when there are
    none of a class, or a file is missing."""
    cases, left_out = cases_of(config)
    counted = Counter(left_out)
    known = [(case, class_of(case.row, config.classes)) for case in cases]
    counted.update(f"no class: {case.row.label}" for case, label in known if label is None)
    kept = [(case, label) for case, label in known if label is not None]
    labels = [label for _, label in kept]
    lacking = [name for k, name in enumerate(config.classes) if k not in labels]
    if lacking:
        raise ValueError(
            "classes must be labels or sublabels of the films that are taken. Got "
            f"{', '.join(lacking)}, which no film has."
        )
    strata = [(label, part_in_path(case.row.image)) for case, label in kept]
    patients = [case.patient for case, _ in kept]
    chosen = take_films(patients, strata, config.max_films, config.seed)
    if len(chosen) < len(kept):
        counted["over max_films"] += len(kept) - len(chosen)
    return Films([kept[i][0] for i in chosen], [labels[i] for i in chosen], dict(counted))


def cache_of(config: TrainingConfig) -> Path:
    """Where a training's films are decoded to."""
    return Path(config.cache) if config.cache else Path(config.out) / "cache"


def drop_cache(config: TrainingConfig) -> None:
    """Remove the decoded films of a finished training, unless `cache` keeps them."""
    if not config.cache:
        shutil.rmtree(cache_of(config), ignore_errors=True)


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
    require_films(cases)
    finder = RegionFinder(region, target)
    name = _fingerprint(cases, config, finder, side, box_jitter)
    done = folder / f"{name}.json"
    files = [folder / f"{name}.{kind}.npy" for kind in ("images", "regions")]
    if not done.exists():
        need = 2 * len(cases) * side**2  # a byte a pixel, of a region too
        require_writable(folder, need, "--cache or --out")
        with FileLock(folder / f"{name}.lock"):  # trainings side by side share a cache
            if not done.exists():
                numbers = _decode_all(cases, config, finder, files, side, box_jitter)
                write_atomic(done, json.dumps({"region_of": numbers}))  # marks it whole
    region_of = np.asarray(json.loads(done.read_text())["region_of"], dtype=np.int64)
    images, regions = (np.load(f, mmap_mode="r") for f in files)
    return PixelCache(images, regions, region_of)


def require_films(cases: Sequence[Case]) -> None:
    """Raise ValueError where a film's file is missing: which, and how many are."""
    files = [case.crop or case.film for case in cases]
    if lost := [path for path in files if not path.is_file()]:
        raise ValueError(
            f"data and crops must hold the files of all films. {len(lost)} of {len(files)} are "
            f"missing, such as {lost[0]}: give the folder that holds them, or remove their rows."
        )


def _decode_all(
    cases: Sequence[Case],
    config: PreprocessConfig,
    finder: RegionFinder,
    files: Sequence[Path],
    side: int,
    box_jitter: float,
) -> list[int]:
    """Writes images and regions; the number of each film's region or -1. Raises ValueError for
    films that cannot be read, when all have been tried."""
    shape = (len(cases), side, side)
    images = np.lib.format.open_memmap(files[0], mode="w+", dtype=np.uint8, shape=shape)
    regions: list[np.ndarray] = []
    region_of: list[int] = []
    unread: list[FilmError] = []
    for i, case in enumerate(track(cases, "decoding films", console=console, transient=True)):
        try:
            pixels, cut = _pixels_of(case, box_jitter)
        except FilmError as error:
            unread.append(error)
            continue
        images[i] = to_uint8(preprocess(pixels, config, side))
        mask = finder.mask_of(case)
        region_of.append(-1 if mask is None else len(regions))
        if mask is not None:
            mask = mask if cut is None else cut.apply(mask, nearest=True)
            letterbox = Frame.letterbox(mask.shape, side, centre=True)
            regions.append(letterbox.apply(mask, nearest=True))
    if unread:
        raise ValueError(
            f"data and crops must hold films that can be read. {len(unread)} of {len(cases)} "
            f"cannot, such as {unread[0]}. Replace the files, or remove their rows."
        )
    images.flush()
    np.save(files[1], np.stack(regions) if regions else np.zeros((0, side, side), np.uint8))
    log.info("decoded %d films to %d px, %d with a region", len(cases), side, len(regions))
    return region_of


def _pixels_of(case: Case, box_jitter: float) -> tuple[np.ndarray, Frame | None]:
    """A film's or crop's pixels, and how they were cut from the film."""
    if case.crop is None or case.crop_row is None:
        return read_film(case.film).pixels, None
    frame = case.crop_row.to_frame()
    if not box_jitter:
        return read_film(case.crop).pixels, frame
    wider = Frame.cut(expand_xyxy(frame.source_xyxy, box_jitter))
    wide = replace(wider, turned=frame.turned, film_hw=frame.film_hw)
    return wide.apply(read_film(case.film).pixels), wide


def _fingerprint(
    cases: Sequence[Case],
    config: PreprocessConfig,
    finder: RegionFinder,
    side: int,
    box_jitter: float,
) -> str:
    """Changes with anything that changes the cached pixels, the files' sizes and dates too."""
    content = replace(config, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).to_dict()
    region = str((finder.config.kind, finder.config.path))
    parts = [json.dumps(content), region, str(side), str(box_jitter), finder.target]
    for case in cases:
        stat = (case.crop or case.film).stat()
        box = case.crop_row.crop_xyxy if case.crop_row else None
        parts.append(f"{case.row.image} {case.row.mask} {box} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class RegionFinder:
    """Finds a film's region as a mask (H, W) uint8 of 0 / 255 in the film's pixels, or None where
    nobody drew one: then it is unknown, never made up."""

    def __init__(self, config: RegionConfig, target: str) -> None:
        self.config = config
        self.target = target if config.kind in DRAWN else ""
        self._boxes: dict[str, list[tuple[str, Sequence[float]]]] = defaultdict(list)
        if config.kind == "finding_boxes":
            for path in as_list(config.path):
                for image, finding, xywh in read_finding_boxes(path):
                    self._boxes[film_stem(image)].append((label_word(finding), xywh))

    def mask_of(self, case: Case) -> np.ndarray | None:
        """The region of this film, or None."""
        if self.config.kind == "lung_field" and case.row.mask:
            data = Path(str(case.film)[: -len(case.row.image)])
            return _read_mask(data / case.row.mask)
        if self.config.kind == "lesion_masks":
            path = DataFolders(self.config.path) / f"{self.target}/{case.film.stem}.png"
            return _read_mask(path) if path.is_file() else None
        wanted = label_word(self.target)
        found = [b for f, b in self._boxes.get(film_stem(case.row.image), []) if f == wanted]
        if not found:
            return None
        mask = np.zeros(read_film(case.film).pixels.shape, np.uint8)
        for x, y, w, h in found:
            mask[int(y) : int(np.ceil(y + h)), int(x) : int(np.ceil(x + w))] = 255
        return mask


def _read_mask(path: Path) -> np.ndarray:
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise ValueError(f"{path} must be a mask as PNG. It cannot be read: check the file.")
    return (mask > 127).astype(np.uint8) * 255


class FilmDataset(Dataset[dict[str, Tensor]]):
    """Pictures and labels of the films `indices`, each `copies` times; with `goal`, what a member
    restores of them too.

    An item: `image` (1, side, side) float32 in [0, 1], `label`, and `index` of the film. Of a
    film's copies the first is the film as it is and the others are changed; a film that stands
    there once is changed each time. With `goal`, also `goal` (1, side, side): the image inside the
    dilated region (for "mask" the region itself) where the target is present, else 0; and `known`:
    1.0 where that goal is known (the target is absent, or its region was drawn), else 0.0.
    """

    def __init__(
        self,
        cache: PixelCache,
        labels: Sequence[int],
        indices: Sequence[int],
        side: int,
        augment: Augment | None = None,
        copies: int = 1,
        goal: str = "",
        dilation: int = 0,
    ) -> None:
        self.cache, self.labels, self.indices = cache, labels, list(indices)
        self.side, self.augment, self.copies = side, augment, copies
        self.goal, self.dilation = goal, dilation

    def __len__(self) -> int:
        return len(self.indices) * self.copies

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        place, copy = divmod(item, self.copies)
        index = self.indices[place]
        image = np.asarray(self.cache.images[index])
        number = int(self.cache.region_of[index])
        mask = np.zeros_like(image) if number < 0 else np.asarray(self.cache.regions[number])
        if self.augment is not None and (self.copies == 1 or copy):
            image, mask = self.augment(image, mask)
        else:
            image, mask = centre(image, self.side), centre(mask, self.side)
        label = self.labels[index]
        pixels = torch.from_numpy(image.astype(np.float32) / 255)[None]
        found = {"image": pixels, "label": torch.tensor(label), "index": torch.tensor(index)}
        if self.goal:
            goal = torch.zeros_like(pixels)
            if label == TARGET and number >= 0:
                region = torch.from_numpy(dilate(mask, self.dilation) > 127)[None]
                goal = region.float() if self.goal == "mask" else pixels * region
            known = float(label != TARGET or number >= 0)
            found |= {"goal": goal, "known": torch.tensor(known)}
        return found


def train_loader(films: FilmDataset, config: TrainingConfig) -> DataLoader[Any]:
    """An epoch's pictures in random batches; a last batch of one film is left out, since BatchNorm
    cannot learn from it."""
    return DataLoader(
        films,
        config.batch,
        shuffle=True,
        num_workers=config.workers,
        drop_last=len(films) % config.batch == 1,
        persistent_workers=config.workers > 0,
    )


def film_loader(films: FilmDataset, config: TrainingConfig) -> DataLoader[Any]:
    """Films in order."""
    return DataLoader(films, max(config.batch, 16))


def predict(net: nn.Module, films: DataLoader[Any], config: TrainingConfig) -> np.ndarray:
    """(N, K) logits of the films of a loader; the network's mode is evaluation afterwards."""
    device = pick_device(config.device)
    net = net.eval().to(device)
    with torch.inference_mode():
        logits = [
            net(to_input(batch["image"].to(device), config.preprocess)).float().cpu().numpy()
            for batch in films
        ]
    return np.concatenate(logits)


def balance_films(
    labels: Sequence[int], indices: Sequence[int], balance: str, seed: int = 0
) -> list[int]:
    """The films of an epoch: with oversample each class has as many as the commonest (whole
    rounds of its films, then a draw), with undersample as few as the rarest; else `indices`."""
    if balance not in ("oversample", "undersample"):
        return list(indices)
    films_of = [
        [i for i in indices if labels[i] == k] for k in sorted({labels[i] for i in indices})
    ]
    goal = (max if balance == "oversample" else min)(map(len, films_of))
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for films in films_of:
        rounds, more = divmod(goal, len(films))
        drawn = rng.permutation(len(films))[:more]
        chosen += films * rounds + [films[k] for k in sorted(drawn)]
    return chosen


def class_weights(labels: Sequence[int], classes: int = 3) -> Tensor:
    """Balanced weights n / (classes present × n of the class); 0 for a class without films."""
    counts = np.bincount(np.asarray(labels), minlength=classes).astype(float)
    present = int((counts > 0).sum())
    weights = np.divide(counts.sum(), present * counts, out=np.zeros(classes), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)
