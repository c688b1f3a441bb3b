"""The lung field's network in training: its loss, and its validation on films and crops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cxr import draw
from detect.lungfield.data import VIEWS
from detect.lungfield.field import overlap
from detect.module import DetectorModule


def field_loss(logits: Tensor, share: Tensor) -> dict[str, Tensor]:
    """BCE over all pixels and 1 − soft Dice over the pictures that show lungs.

    Args:
        logits: (N, S, S).
        share: (N, S, S), the field's share of each pixel, in [0, 1].

    A picture without lungs has no Dice: there BCE alone teaches that nothing is to be marked.
    """
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
    both, at 0.5, in letterbox pixels; a batch is (N, 3, S, S) with {"mask": (N, S, S)}.
    """

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
