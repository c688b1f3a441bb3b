"""Films or crops with their labels, decoded once into a cache that trainings share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from filelock import FileLock
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from classify.augment import Augment, GuideConfig, centre, dilate, swap_surroundings
from classify.films import DRAWN, Case, Films, RegionConfig, part_in_path, select_cases
from classify.members import TARGET
from classify.preprocess import PreprocessConfig, preprocess, to_input
from classify.tasks.settings import SingleConfig, TrainingConfig
from cxr.boxes import Frame, expand_xyxy
from cxr.cli import as_list
from cxr.data_folders import DataFolders
from cxr.engines import pick_device
from cxr.film import read_film
from cxr.films_table import (
    class_of,
    film_stem,
    is_among,
    label_word,
    names_of,
    read_finding_boxes,
    take_films,
    tell_unknown,
)
from cxr.intensity import to_uint8
from cxr.notes import FilmError
from cxr.training.recipe import require_writable
from cxr.workdir import console, log, sha256_file, write_atomic
from detect.lungfield.field import DEFAULT_WEIGHTS, LungField

NO_REGION = RegionConfig("none")


@dataclass(frozen=True)
class PixelCache:
    """Decoded films (N, S, S) uint8, and for each the number of its region of each target, or -1:
    `region_of` (N, targets). `regions` (M, S, S), and `lungs` (N, S, S) of a guided training, are 0
    / 255; the arrays are memory-mapped, so RAM does not grow with N."""

    images: np.ndarray
    regions: np.ndarray
    region_of: np.ndarray
    lungs: np.ndarray | None = None


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
    targets: Sequence[str] = ("",),
    guide: GuideConfig | None = None,
) -> PixelCache:
    """Decode each film once into `folder`, or open what an earlier run decoded. `side` is that of
    the cached pictures, `box_jitter` how far a crop is widened (by fraction of its side, to both
    sides). `targets` matter for lesion_masks and finding_boxes only. With a `guide` that is on, the
    films' lung fields are kept too."""
    paths = [case.crop or case.film for case in cases]
    if lost := [path for path in paths if not path.is_file()]:
        raise ValueError(
            f"data and crops must hold the files of all films. {len(lost)} of {len(paths)} are "
            f"missing, such as {lost[0]}: give the folder that holds them, or remove their rows."
        )
    finders = [RegionFinder(region, target) for target in targets]
    field = LungFinder(guide.field) if guide and guide.on else None
    decoder = _Decoder(cases, config, finders, side, box_jitter, field)
    name = decoder.mark()
    done = folder / f"{name}.json"
    kinds = ("images", "regions", *(["lungs"] if field else []))
    files = [folder / f"{name}.{kind}.npy" for kind in kinds]
    if not done.exists():
        need = len(kinds) * len(cases) * side**2  # a byte a pixel, of a region too
        require_writable(folder, need, "--cache or --out")
        with FileLock(folder / f"{name}.lock"):  # trainings side by side share a cache
            if not done.exists():
                numbers = decoder.write(files)
                write_atomic(done, json.dumps({"region_of": numbers}))  # marks it whole
    region_of = np.asarray(json.loads(done.read_text())["region_of"], np.int64)
    region_of = region_of.reshape(len(cases), -1)
    images, regions, *lungs = (np.load(f, mmap_mode="r") for f in files)
    return PixelCache(images, regions, region_of, *lungs)


@dataclass(frozen=True)
class _Decoder:
    """Makes the cache of these films."""

    cases: Sequence[Case]
    config: PreprocessConfig
    finders: Sequence[RegionFinder]
    side: int
    box_jitter: float
    field: LungFinder | None

    def mark(self) -> str:
        """Changes with anything that changes the cached pixels, the files' sizes and dates too."""
        content = replace(self.config, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).to_dict()
        region = str((self.finders[0].config.kind, self.finders[0].config.path))
        targets = ",".join(finder.target for finder in self.finders)
        parts = [json.dumps(content), region, str(self.side), str(self.box_jitter), targets]
        parts += [self.field.sha256] if self.field else []
        for case in self.cases:
            stat = (case.crop or case.film).stat()
            box = case.crop_row.crop_xyxy if case.crop_row else None
            told = f"{case.row.image} {case.row.mask} {box} {stat.st_size} {stat.st_mtime_ns}"
            parts.append(told)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def write(self, files: Sequence[Path]) -> list[list[int]]:
        """Writes images, regions and lungs; the number of each film's regions or -1. Raises
        ValueError for films that cannot be read, when all have been tried."""
        side, cases = self.side, self.cases
        shape = (len(cases), side, side)
        kept = [
            np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
            for file in (files[0], *files[2:])
        ]
        regions: list[np.ndarray] = []
        region_of: list[list[int]] = []
        unread: list[FilmError] = []

        def fit(mask: np.ndarray, cut: Frame | None) -> np.ndarray:
            mask = mask if cut is None else cut.apply(mask, nearest=True)
            return Frame.letterbox(mask.shape, side, centre=True).apply(mask, nearest=True)

        for i, case in enumerate(track(cases, "decoding films", console=console, transient=True)):
            try:
                pixels, cut = _pixels_of(case, self.box_jitter)
                masks = [self.field.mask_of(case)] if self.field else []
            except FilmError as error:
                unread.append(error)
                continue
            picture = to_uint8(preprocess(pixels, self.config, side))
            for plane, found in zip(kept, [picture, *(fit(m, cut) for m in masks)], strict=True):
                plane[i] = found
            numbers: list[int] = []
            for finder in self.finders:
                if numbers and not finder.target:  # the same region for all
                    numbers.append(numbers[0])
                    continue
                mask = finder.mask_of(case)
                numbers.append(-1 if mask is None else len(regions))
                if mask is not None:
                    regions.append(fit(mask, cut))
            region_of.append(numbers)
        if unread:
            raise ValueError(
                f"data and crops must hold films that can be read. {len(unread)} of {len(cases)} "
                f"cannot, such as {unread[0]}. Replace the files, or remove their rows."
            )
        for plane in kept:
            plane.flush()
        np.save(files[1], np.stack(regions) if regions else np.zeros((0, side, side), np.uint8))
        log.info("decoded %d films to %d px, %d regions", len(cases), side, len(regions))
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


class LungFinder:
    """Finds a film's lung field as a mask (H, W) uint8 of 0 / 255 in the film's pixels: a person's
    where there is one, else the network's."""

    def __init__(self, weights: str) -> None:
        self._path = Path(weights or DEFAULT_WEIGHTS)
        if not self._path.is_file():
            raise ValueError(f"guide.field must be a bundle of a lung field. Got {self._path}.")
        self.sha256 = sha256_file(self._path)

    @cached_property
    def _field(self) -> LungField:
        return LungField.load(self._path)

    def mask_of(self, case: Case) -> np.ndarray:
        """Raises FilmError for a film that cannot be read."""
        if case.row.mask:
            return _read_mask(_root_of(case) / case.row.mask)
        found = self._field.segment([read_film(case.film).pixels])[0]
        return (found > self._field.threshold).astype(np.uint8) * 255


def _root_of(case: Case) -> Path:
    """The folder whose films.csv names the film."""
    return Path(str(case.film)[: -len(case.row.image)])


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
            return _read_mask(_root_of(case) / case.row.mask)
        if self.config.kind == "lesion_masks":
            path = DataFolders(self.config.path) / f"{self.target}/{case.film.stem}.png"
            return _read_mask(path) if path.is_file() else None
        wanted = names_of(self.target)
        found = [b for f, b in self._boxes.get(film_stem(case.row.image), []) if f in wanted]
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
    there once is changed each time. `labels` holds a class a film, or one for each of several
    targets (M): then `label` is (M,).

    With `goal`, also `goal` (M, side, side): the image inside the dilated region (for "mask" the
    region itself) where the target is present, else 0; and `known` (M,): 1.0 where that goal is
    known (the target is absent, or its region was drawn), else 0.0. With a `guide` that is on, also
    `lung` (1, side, side), 1 in the lung field; and training pictures may have the surroundings of
    another film of `indices`."""

    def __init__(
        self,
        cache: PixelCache,
        labels: Sequence[int] | Sequence[Sequence[int]],
        indices: Sequence[int],
        side: int,
        augment: Augment | None = None,
        copies: int = 1,
        goal: str = "",
        dilation: int = 0,
        guide: GuideConfig | None = None,
    ) -> None:
        self.cache, self.labels, self.indices = cache, labels, list(indices)
        self.side, self.augment, self.copies = side, augment, copies
        self.goal, self.dilation = goal, dilation
        self.guide = guide if guide and guide.on else None

    def __len__(self) -> int:
        return len(self.indices) * self.copies

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        place, copy = divmod(item, self.copies)
        index = self.indices[place]
        image, masks = np.asarray(self.cache.images[index]), self._masks(index)
        if self.augment is not None and (self.copies == 1 or copy):
            image, masks = self.augment(self._surrounded(image, index), masks)
        else:
            image, masks = centre(image, self.side), centre(masks, self.side)
        label = torch.as_tensor(self.labels[index])
        pixels = torch.from_numpy(image.astype(np.float32) / 255)[None]
        found = {"image": pixels, "label": label, "index": torch.tensor(index)}
        if self.guide:
            found["lung"] = torch.from_numpy(masks[..., -1] > 127)[None].float()
        if self.goal:
            present = (label == TARGET).reshape(-1)
            drawn = torch.from_numpy(np.asarray(self.cache.region_of[index]) >= 0)
            goal = torch.zeros(len(present), *pixels.shape[1:])
            for m in (present & drawn).nonzero()[:, 0].tolist():
                grown = dilate(np.ascontiguousarray(masks[..., m]), self.dilation)
                region = torch.from_numpy(grown > 127)
                goal[m] = region.float() if self.goal == "mask" else pixels[0] * region
            found |= {"goal": goal, "known": (~present | drawn).float()}
        return found

    def _masks(self, index: int) -> np.ndarray:
        """(S, S, n) uint8: the film's region of each target where something is restored, and its
        lung field where it is guided; black where there is none."""
        black = np.zeros(self.cache.images.shape[1:], np.uint8)
        numbers = self.cache.region_of[index] if self.goal else ()
        planes = [black if n < 0 else np.asarray(self.cache.regions[n]) for n in numbers]
        if self.guide and self.cache.lungs is not None:
            planes.append(np.asarray(self.cache.lungs[index]))
        return np.stack(planes or [black], -1)

    def _surrounded(self, image: np.ndarray, index: int) -> np.ndarray:
        lungs = self.cache.lungs
        drawn = self.guide and lungs is not None and float(torch.rand(1)) < self.guide.swap
        if not drawn or lungs is None or not lungs[index].any():
            return image
        # torch's generator differs in each worker and epoch, and is seeded by the run
        other = self.indices[int(torch.randint(len(self.indices), (1,)))]
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        return swap_surroundings(image, lungs[index], self.cache.images[other], lungs[other], rng)


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
    kinds = sorted({labels[i] for i in indices})
    films_of = [[i for i in indices if labels[i] == k] for k in kinds]
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
