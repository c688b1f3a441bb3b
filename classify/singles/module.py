"""The training of a single network as a LightningModule."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from classify.models.cxrnet import CXRNet
from classify.preprocess import PreprocessConfig, to_input
from cxr.training.learner import Batch, Learner
from cxr.training.optim import OptimConfig


class SingleModule(Learner):
    """Cross-entropy of (N, K) logits, and what a network that draws its own map adds (CXRNet).

    With class weights, each film's loss is multiplied by its class' weight and the mean is over
    the films: so it does not hang on how the films are shared among batches.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: PreprocessConfig,
        optim: OptimConfig,
        choose: str = "val_loss",
        weights: Tensor | None = None,
    ) -> None:
        super().__init__(net, optim, choose)
        self.settings = settings
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The loss and the logits (N, K) of pictures (N, 1, side, side) uint8."""
        x = to_input(batch["image"].float() / 255, self.settings)
        if not isinstance(self.model, CXRNet):
            logits = self.model(x).float()
            return {"loss": self._answer(logits, batch["label"])}, logits
        logits, extra = self.model.terms(x, batch["label"], self.class_weights)
        answer = self._answer(logits.float(), batch["label"])
        return {"loss": answer + extra, "answer": answer, "map": extra}, logits

    def _answer(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, self.class_weights, reduction="none").mean()
