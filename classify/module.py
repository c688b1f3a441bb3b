"""One phase of a member's training as a LightningModule."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from classify.models.multitask import SCXNN
from classify.preprocess import PreprocessConfig, to_input
from cxr.training.learner import Batch, Learner
from cxr.training.optim import OptimConfig


def restoration_loss(restored: Tensor, goal: Tensor, known: Tensor) -> Tensor:
    """Mean squared error over the films whose goal is known; 0 when none is.

    `restored` is (N, 1, h', w'), `goal` (N, 1, h, w) is averaged down to its size, `known` is (N,)
    of 0 or 1.
    """
    if goal.shape != restored.shape:
        goal = F.adaptive_avg_pool2d(goal, (restored.shape[-2], restored.shape[-1]))
    each = F.mse_loss(restored.float(), goal.float(), reduction="none").mean((1, 2, 3))
    return (each * known).sum() / known.sum().clamp(min=1)


class MemberModule(Learner):
    """Loss CE + weight × MSE in phase `hard`, CE of the last layer alone in phase `weak`."""

    def __init__(
        self,
        model: SCXNN,
        preprocessing: PreprocessConfig,
        optim: OptimConfig,
        phase: str,
        class_weights: Tensor,
        restore_weight: float = 0.8,
    ) -> None:
        super().__init__(model, optim)
        if phase not in ("hard", "weak"):
            raise ValueError(f"phase must be hard or weak. Got {phase!r} instead.")
        self.preprocessing, self.phase = preprocessing, phase
        self.restore_weight = restore_weight if model.decoder is not None else 0.0
        self.register_buffer("class_weights", class_weights, persistent=False)
        (model.freeze_first if phase == "hard" else model.freeze_all_but_fc)()

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The loss and its terms, and the logits (N, 3), of one batch."""
        x = to_input(batch["image"], self.preprocessing)
        if self.phase == "hard" and self.restore_weight:
            logits, restored = self.model.restore(x)
            mse = restoration_loss(restored, batch["goal"], batch["known"])
        else:
            logits = self.model(x)
            mse = logits.new_zeros(())
        ce = F.cross_entropy(logits.float(), batch["label"], self.class_weights)  # type: ignore[arg-type]
        return {"loss": ce + self.restore_weight * mse, "ce": ce, "mse": mse}, logits
