"""How the learning rate goes and when training ends: the thesis' rule, and cosine with warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

CHOICES = ("val_loss", "val_auc")  # what the kept epoch is chosen by


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule of one phase. The defaults are the thesis'.

    Args:
        optimizer: adam, adamw or sgd.
        rate: learning rate at its highest.
        encoder_rate: factor on the rate for the pretrained encoder.
        weight_decay: of all weights that are trained.
        schedule: plateau (the thesis), cosine, onecycle or constant.
        epochs: at most this many.
        warmup_epochs: cosine only: the rate rises from 0 over these epochs (fractions count).
        patience: plateau: epochs without gain of the validation loss before the rate is cut;
            the others: epochs without gain in what the best epoch is chosen by (members: macro
            AUC) before the end, 0 for never.
        factor: plateau: the cut.
        floor_rate: plateau: below this rate, `patience` epochs without gain end the training.
        clip_norm: largest norm of the gradient; 0 for none.
        ema_decay: moving average of the weights over steps, which is what is validated and kept;
            0 for none.
    """

    optimizer: str = "adam"
    rate: float = 1e-3
    encoder_rate: float = 1.0
    weight_decay: float = 5e-4
    schedule: str = "plateau"
    epochs: int = 300
    warmup_epochs: float = 0.0
    patience: int = 50
    factor: float = 0.5
    floor_rate: float = 1e-4
    clip_norm: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "adamw", "sgd"):
            raise ValueError(f"optimizer must be adam, adamw or sgd. Got {self.optimizer!r}.")
        if self.schedule not in ("plateau", "cosine", "onecycle", "constant"):
            raise ValueError(
                "schedule must be plateau, cosine, onecycle or constant. "
                f"Got {self.schedule!r} instead."
            )
        if self.rate <= 0 or self.epochs < 1 or not 0 < self.factor < 1:
            raise ValueError(
                "rate must be positive, epochs at least 1, factor in (0, 1). Got "
                f"{self.rate}, {self.epochs}, {self.factor} instead."
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1). Got {self.ema_decay} instead.")


class PlateauHalving:
    """The thesis' rule: cut the rate after `patience` epochs without gain; end when it lies below
    `floor_rate` and another `patience` epochs bring no gain. A gain must exceed the share
    `least_gain` of the best loss.
    """

    def __init__(
        self, rate: float, patience: int, factor: float, floor_rate: float, least_gain: float = 0.0
    ) -> None:
        self.rate, self.patience, self.factor = rate, patience, factor
        self.floor_rate, self.least_gain = floor_rate, least_gain
        self.best = math.inf
        self.without_gain = 0
        self.finished = False

    def step(self, loss: float) -> float:
        """Tell it an epoch's validation loss; returns the rate of the next epoch."""
        if math.isinf(self.best) or loss < self.best - self.least_gain * abs(self.best):
            self.best, self.without_gain = loss, 0
            return self.rate
        self.without_gain += 1
        if self.without_gain >= self.patience:
            self.without_gain = 0
            if self.rate < self.floor_rate:
                self.finished = True
            else:
                self.rate *= self.factor
        return self.rate

    def state_dict(self) -> dict[str, float]:
        """For the checkpoint."""
        return {
            "rate": self.rate,
            "best": self.best,
            "without_gain": self.without_gain,
            "finished": self.finished,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """From the checkpoint."""
        self.rate, self.best = float(state["rate"]), float(state["best"])
        self.without_gain, self.finished = int(state["without_gain"]), bool(state["finished"])


def cosine_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Factor on the rate at a step: a line from 0 to 1, then half a cosine down to 0.01."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
