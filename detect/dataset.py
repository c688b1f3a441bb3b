"""What the detector learns from (films and boxes, decoded once and kept small in memory,
augmented, and pictures without a thorax), and it in training: losses, and validation by IoU.

The presets `none`, `affine` and `rotate` are those of the two-stage report; `strong` is what the
shipped detector was trained with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cxr import draw
from cxr.boxes import Frame, iou_xyxy, mask_box_xyxy
from cxr.coco import CocoFilm
from cxr.data_folders import Data, DataFolders
from cxr.film import Film, FilmError, read_film
from cxr.films_table import FilmRow
from cxr.rules import require
from cxr.training.learner import Learner, cosine_factor
from cxr.training.recipe import OptimConfig
from cxr.workdir import counting, log
from detect.film_class_answers import class_scores
from detect.predict import prepare_film, to_input

Row = TypeVar("Row", CocoFilm, FilmRow)
Item = tuple[np.ndarray, np.ndarray, tuple[int, ...], np.ndarray | None]


class ReadFilms(Dataset[tuple[Tensor, dict[str, Tensor]]], Generic[Row]):
    """Films that are decoded once; `films` and `items` are those that could be read, the others are
    left out with a warning. Raises ValueError when no film can be read, or one does not fit what is
    known of it."""

    def __init__(
        self,
        films: Sequence[Row],
        root: Data,
        side: int,
        augment: Any = None,
        negatives: float = 0.0,
    ) -> None:
        self.root, self.side = DataFolders(root), side
        self.augment, self.negatives = augment, negatives
        with ThreadPoolExecutor(2) as pool:
            read = list(counting(pool.map(self._read, films), "reading films", len(films)))
        self.films: list[Row] = [f for f, item in zip(films, read, strict=True) if item is not None]
        self.items: list[Any] = [item for item in read if item is not None]
        if not self.items:
            raise ValueError(
                f"films must hold at least one readable film. Got {len(films)} under "
                f"{self.root}, none readable."
            )

    def _read(self, film: Row) -> Any | None:
        name = film.file_name if isinstance(film, CocoFilm) else film.image
        try:
            read = read_film(self.root / name)
        except FilmError as error:
            log.warning("%s left out: %s", name, error.sentence)
            return None
        return self.prepare(film, read)

    def prepare(self, film: Row, read: Film) -> Any:
        """What is kept of a film."""
        raise NotImplementedError

    def rng(self) -> np.random.Generator:
        """Of one picture: torch's generator differs in each worker and epoch, and the run seeds
        it."""
        return np.random.default_rng(int(torch.randint(2**31, (1,))))

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
        root: Data,
        side: int,
        augment: A.Compose | None = None,
        negatives: float = 0.0,
        masks: dict[str, str] | None = None,
        cache: float = 1.25,
    ) -> None:
        self._cache = max(1.0, cache if augment else 1.0)
        self._masks = (masks or {}) if augment else {}
        super().__init__(films, root, side, augment, negatives)

    def prepare(self, film: CocoFilm, read: Film) -> Item:
        """The letterbox without its padding, boxes and mask in its pixels."""
        pixels, (height, width) = read.pixels, read.pixels.shape
        side = min(int(self.side * self._cache), max(height, width))
        boxes = film.resized((height, width), read.stored_hw).boxes_xyxy
        canvas, frame = prepare_film(pixels, side)
        h, w = frame.content_hw
        mask = None
        if film.file_name in self._masks:
            raw = cv2.imread(str(self.root / self._masks[film.file_name]), cv2.IMREAD_GRAYSCALE)
            if raw is not None:
                if read.stored_hw == raw.shape:
                    raw = cv2.resize(raw, (width, height), interpolation=cv2.INTER_NEAREST)
                mask = frame.apply(raw, nearest=True)[:h, :w]
        return canvas[:h, :w].copy(), frame.to_model_xyxy(boxes), film.labels, mask

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, boxes, labels, mask = self.items[index]
        if self.augment is not None:
            rng = self.rng()
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


PRESETS = ("none", "affine", "rotate", "strong")


def build_augmentation(preset: str) -> A.Compose | None:
    """Geometry and intensity of a preset for uint8 (H, W) films with xyxy boxes; None for `none`.

    A turned box has to be boxed again: with a lung mask the caller does that exactly; without one
    the ellipse in the box is turned, because lungs fill a box like an ellipse and its corners are
    empty (`rotate_method`). Boxes are cut where a film cuts them, as the rule of the box has it.
    Raises ValueError for an unknown preset.
    """
    require(preset in PRESETS, f"augment must be one of {', '.join(PRESETS)}", preset)
    if preset == "none":
        return None
    if preset == "affine":
        steps = [_affine(rotate=20, shift=0.15, scale=(0.8, 1.2), p=0.9)]
    elif preset == "rotate":
        steps = [_affine(rotate=30, shift=0.0, scale=(1.0, 1.0), p=0.9)]
    else:
        steps = [
            A.HorizontalFlip(p=0.5),
            _affine(rotate=10, shift=0.12, scale=(0.7, 1.3), p=0.95, keep_ratio=False),
            A.RandomGamma((60, 160), p=0.5),
            A.RandomBrightnessContrast(0.2, 0.3, p=0.5),
            A.CLAHE(clip_limit=3.0, p=0.15),
            A.OneOf([A.GaussianBlur((3, 5)), A.GaussNoise((0.02, 0.08)), A.Sharpen()], p=0.25),
            A.CoarseDropout((1, 4), (0.03, 0.15), (0.03, 0.15), fill="random_uniform", p=0.25),
            A.InvertImg(p=0.04),  # films whose header lies about MONOCHROME1 exist
        ]
    boxes = A.BboxParams(
        "pascal_voc", label_fields=["labels"], clip=True, filter_invalid_bboxes=True
    )
    return A.Compose(steps, bbox_params=boxes)


def _affine(
    rotate: float, shift: float, scale: tuple[float, float], p: float, keep_ratio: bool = True
) -> A.Affine:
    return A.Affine(
        rotate=(-rotate, rotate),
        translate_percent=(-shift, shift),
        scale=scale,
        keep_ratio=keep_ratio,
        balanced_scale=scale[0] != scale[1],
        rotate_method="ellipse",
        p=p,
    )


def make_negative(film: np.ndarray, box_xyxy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A uint8 picture without a thorax, from a film (H, W) and its box, or drawn. Shoulders and
    abdomens cut out beside the box, films shuffled in tiles, limbs drawn as bright shafts, and
    empty plates: what else lands in a folder of chest films. Without such pictures a detector that
    has only ever seen chests finds one on a hip."""
    kind = rng.random()
    if kind < 0.45:
        patch = _outside_patch(film, box_xyxy, rng)
        if patch is not None:
            return patch
    if kind < 0.65:
        return _shuffled(film, rng)
    if kind < 0.92:
        return _limb(rng)
    level = int(rng.integers(0, 256))
    noise = rng.normal(level, rng.uniform(0, 12), (256, 256))
    return np.clip(noise, 0, 255).astype(np.uint8)


def _outside_patch(
    film: np.ndarray, box_xyxy: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """The largest strip beside the thorax box on a random side, if it is worth having."""
    height, width = film.shape
    x0, y0, x1, y1 = box_xyxy.astype(int)
    into = 0.06 * min(x1 - x0, y1 - y0)  # a little of the ribs may show
    strips = [
        film[: max(0, int(y0 + into))],
        film[min(height, int(y1 - into)) :],
        film[:, : max(0, int(x0 + into))],
        film[:, min(width, int(x1 - into)) :],
    ]
    wide = [s for s in strips if min(s.shape) >= 48]
    if not wide:
        return None
    strip = wide[int(rng.integers(len(wide)))]
    long, short = max(strip.shape), min(strip.shape)
    if long > 2 * short:  # plates are not that thin: take a piece of it
        start = int(rng.integers(0, long - 2 * short + 1))
        piece = slice(start, start + 2 * short)
        strip = strip[piece] if strip.shape[0] == long else strip[:, piece]
    return np.ascontiguousarray(np.rot90(strip, int(rng.integers(4))))


def _shuffled(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The film in 4 × 4 tiles, laid anew and turned: the same grey values, no anatomy."""
    side = 64
    small = cv2.resize(film, (4 * side, 4 * side), interpolation=cv2.INTER_AREA)
    tiles = [
        small[r : r + side, c : c + side] for r in range(0, 256, side) for c in range(0, 256, side)
    ]
    order = rng.permutation(16)
    turned = [np.rot90(tiles[i], int(rng.integers(4))) for i in order]
    rows = [np.concatenate(turned[r * 4 : r * 4 + 4], axis=1) for r in range(4)]
    return np.concatenate(rows, axis=0)


def _limb(rng: np.random.Generator) -> np.ndarray:
    """One to three bones with bright cortex in soft tissue: a schematic limb, or a hip's shafts."""
    height, width = (int(v) for v in rng.integers(200, 420, 2))
    plate = np.full((height, width), float(rng.uniform(0, 40)), np.float32)
    centre = (int(width * rng.uniform(0.3, 0.7)), int(height * rng.uniform(0.3, 0.7)))
    angle = float(rng.uniform(0, 180))
    tissue = (int(height * rng.uniform(0.5, 0.9)), int(width * rng.uniform(0.15, 0.4)))
    cv2.ellipse(plate, centre, tissue, angle, 0, 360, float(rng.uniform(60, 130)), -1)
    direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    for _ in range(int(rng.integers(1, 4))):
        shift = rng.uniform(-0.5, 0.5) * tissue[1] * np.array([-direction[1], direction[0]])
        start = (np.array(centre) + shift - direction * height * 0.6).astype(int).tolist()
        end = (np.array(centre) + shift + direction * height * 0.6).astype(int).tolist()
        thick = int(rng.integers(14, 46))
        cv2.line(plate, start, end, float(rng.uniform(200, 250)), thick)
        cv2.line(plate, start, end, float(rng.uniform(120, 180)), max(2, int(thick * 0.55)))
        if rng.random() < 0.6:  # the head of a bone
            cv2.circle(plate, end, thick, float(rng.uniform(150, 230)), -1)
    blurred = cv2.GaussianBlur(plate, (0, 0), float(rng.uniform(1, 4)))
    return np.clip(blurred + rng.normal(0, 4, plate.shape), 0, 255).astype(np.uint8)


Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class DetectorModule(Learner):
    """Trains what `build_detector` gives. Validation logs `val_iou`: the mean IoU of the best box
    with misses as 0, in letterbox pixels (a similarity of the film: the IoU is the film's).
    `monitor` names the validation figure whose highest value picks the epoch that is kept. What is
    seen of each validation film is collected in `seen` until the epoch's end."""

    monitor = "val_iou"
    nesterov = False
    least_gain = 1e-4
    advice = "lower --optimiser.rate, or look at the boxes of this batch"

    def __init__(self, model: nn.Module, optim: OptimConfig, stop_after: int = 0) -> None:
        super().__init__(model, optim, self.monitor, stop_after)
        self.seen: dict[str, list[float]] = defaultdict(list)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], None]:
        """The network's own losses and their sum."""
        losses = self.model(*batch)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}, None

    def on_validation_epoch_start(self) -> None:
        """Forget the films of the epoch before."""
        self.seen.clear()

    def validation_step(self, batch: Batch, _: int) -> None:
        """Each film's boxes against its own."""
        images, targets = batch
        for found, target in zip(self.model(images), targets, strict=True):
            self.measure(found, target)

    def measure(self, found: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        """Take one validation film's boxes into the epoch's figures."""
        truth = target["boxes"].double().cpu().numpy()
        if not len(truth):
            return
        best = found["boxes"][found["scores"].argsort(descending=True)[:1]]
        iou = iou_xyxy(best.double().cpu().numpy(), truth)
        self.seen["iou"].append(float(iou.max()) if iou.size else 0.0)

    def seen_figures(self) -> dict[str, float]:
        """The figures of the validation films."""
        ious = np.array(self.seen["iou"] or [0.0])
        return {
            "val_iou": float(ious.mean()),
            "val/share_09": float((ious >= 0.9).mean()),
            "val/misses": float((ious == 0).mean()),
        }

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        """The epoch's row of history.json."""
        terms = {f"train/{k.removeprefix('train_')}": v for k, v in means.items()}
        watched = self.trainer.callback_metrics.items()
        rates = {k: float(v) for k, v in watched if k.startswith("lr-")}
        loss = terms.pop("train/loss")
        return {"epoch": self.current_epoch, **rates, **self.seen_figures(), "loss": loss, **terms}

    def line(self) -> str:
        """The newest epoch in words, for the log."""
        row = self.history[-1]
        shown = {k: v for k, v in row.items() if k == "loss" or k.startswith("val")}
        return ", ".join(f"{k} {v:.4f}" for k, v in shown.items()) + f", rate {self._rate():.2g}"

    def plateau_loss(self, row: Mapping[str, float]) -> float:
        """The plateau waits for what picks the epoch."""
        return -row[self.choose]

    def groups(self) -> list[dict[str, Any]]:
        """Weights with decay; norms and biases without."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        thin = [p for p in trained if p.ndim <= 1]
        return [
            {"params": [p for p in trained if p.ndim > 1], "factor": 1.0},
            {"params": thin, "factor": 1.0, "weight_decay": 0.0},
        ]

    def rate_factor(self, step: int, steps: int) -> float:
        """A line up over the warm-up's whole epochs, then as the schedule goes."""
        warm = int(self.optim.warmup_epochs * max(1, steps // self.optim.epochs))
        if step < warm:
            return (step + 1) / (warm + 1)
        constant = self.optim.schedule == "constant"
        return 1.0 if constant else cosine_factor(step, steps, warm)


class FilmClassModule(DetectorModule):
    """Keeps the epoch that tells the films' classes best, which need not be that of the best boxes.
    Validation also logs `val_share`: the mean score of the true class (0 without a box), which
    still moves where so few films make every accuracy alike, and the accuracy itself."""

    monitor = "val_share"

    def measure(self, found: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        """The box's class, too."""
        super().measure(found, target)
        if not len(target["labels"]):
            return
        scores, labels = found["scores"].cpu().numpy(), found["labels"].cpu().numpy() - 1
        truth = int(target["labels"][0]) - 1
        shares = class_scores(scores, labels, max(truth, int(labels.max(initial=0))) + 1)
        self.seen["share"].append(float(shares[truth]))
        self.seen["right"].append(bool(len(scores)) and int(labels[scores.argmax()]) == truth)

    def seen_figures(self) -> dict[str, float]:
        """The classes' figures, too."""
        share, right = (float(np.mean(self.seen[k] or [0.0])) for k in ("share", "right"))
        return {**super().seen_figures(), "val_share": share, "val/accuracy": right}


def box_tile(model: Any, image: Tensor, target: dict[str, Tensor]) -> tuple[np.ndarray, str]:
    """A validation film: its boxes in white, the best found one in colour."""
    found = model([image.to(next(model.parameters()).device)])[0]
    picture = draw.to_rgb(image[0].numpy())
    truth, boxes = target["boxes"].numpy(), found["boxes"].cpu().numpy()[:1]
    for box in truth:
        picture = draw.draw_box(picture, box, (255, 255, 255))
    for box in boxes:
        picture = draw.draw_box(picture, box, (255, 176, 0))
    iou = iou_xyxy(boxes, truth)
    score = float(found["scores"][0]) if len(boxes) else 0.0
    return picture, f"IoU {iou.max() if iou.size else 0:.3f}, score {score:.2f}"
