"""A small training on so many processes: python tests/ddp_training.py PROCESSES FOLDER"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cxr.training.learner import Learner, fit, load_best
from cxr.training.recipe import OptimConfig

FILMS = 48


class SmallNet(nn.Module):
    """Its encoder and its head, no normalisation: that would see each process' films alone."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).tanh())


class SmallLearner(Learner):
    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        logits = self.model(batch["x"])
        return {"loss": nn.functional.cross_entropy(logits, batch["label"])}, logits


def main(processes: int, folder: Path) -> None:
    """Leaves FOLDER/found.json: the history and the sum of the weights."""
    torch.manual_seed(0)
    x = torch.randn(FILMS, 6)
    films = [{"x": one, "label": (one[:3].argmax())} for one in x]
    optim = OptimConfig(optimizer="sgd", rate=0.5, schedule="constant", epochs=6, warmup_epochs=0)
    learner = SmallLearner(SmallNet(), optim, choose="val_loss")
    # a step an epoch: Lightning deals films out to the processes in an order of its own
    loaders = [DataLoader(films, FILMS // processes) for _ in range(2)]
    how = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    fit(learner, "small", folder, *loaders, device="cpu", **how)
    if learner.global_rank == 0:
        load_best(learner, folder)
        weights = [float(p.sum()) for p in learner.model.parameters()]
        kept = [{k: row[k] for k in ("train_loss", "val_loss")} for row in learner.history]
        (folder / "found.json").write_text(json.dumps({"history": kept, "weights": weights}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
