"""The detector in training: losses, what spares weights and warms up, validation by IoU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cxr import draw
from cxr.boxes import iou_xyxy
from cxr.training.learner import Learner, cosine_factor
from cxr.training.recipe import OptimConfig
from detect.film_class_answers import class_scores

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class DetectorModule(Learner):
    """Trains what `build_detector` gives. Validation logs `val_iou`: the mean IoU of the best box
    with misses as 0, in letterbox pixels (a similarity of the film: the IoU is the film's).

    `monitor` names the validation figure whose highest value picks the epoch that is kept. What is
    seen of each validation film is collected in `seen` until the epoch's end.
    """

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
    still moves where so few films make every accuracy alike, and the accuracy itself.
    """

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
