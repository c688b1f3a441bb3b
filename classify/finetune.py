"""Pretrains a network without labels, then trains it for K classes: one file, one command.

python -m classify.finetune --config configs/classify/unet_cbam.yaml
python -m classify.finetune --config configs/classify/unet_cbam.yaml --start own  # from scratch

The pretraining (classify.pretrain) is done in `pretraining.out`, once for all networks that start
from it; what follows is classify.single with the pretrained encoder as its first weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from classify.pretrain import BUNDLE, pretrain
from classify.pretrain_config import PretrainConfig
from classify.singles.config import SingleConfig
from classify.singles.fit import train_single
from cxr.cli import parse_config
from cxr.training.learner import NonFiniteLossError
from cxr.workdir import log

EXAMPLE = "python -m classify.finetune --config configs/classify/unet_cbam.yaml"
STARTS = ("pretrained", "own")
# How films are prepared must be the same before and after; mean and std are the networks' own.
_OWN = ("mean", "std")


@dataclass(frozen=True)
class FinetuneConfig(SingleConfig):
    """Train one network for K classes from an encoder that has learnt films without labels.

    A finished folder is loaded and not trained again, and so is a finished pretraining.

    Args:
        start: pretrained (the encoder of `pretraining`) or own (backbone.weights as they are): the
            two ends of a comparison.
        pretraining: settings of classify.pretrain. Its data, crops, split, device and workers are
            those of this training, so that no tested film is pretrained on.
    """

    start: str = "pretrained"
    pretraining: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise ValueError(f"start must be {' or '.join(STARTS)}. Got {self.start!r} instead.")
        if self.start == "pretrained":
            self._check_pretrained()

    def _check_pretrained(self) -> None:
        if self.kind != "backbone" or self.backbone.name != self.pretraining.net.name:
            raise ValueError(
                "kind must be backbone and backbone.name the network that is "
                f"pretrained, {self.pretraining.net.name}. Got {self.kind} and "
                f"{self.backbone.name} instead."
            )
        if self.protocol.kind != "file":
            raise ValueError(
                "protocol.kind must be file: the pretraining leaves out the patients "
                "that its split tests, so both must have the same one. "
                f"Got {self.protocol.kind!r} instead."
            )
        before, after = (p.to_dict() for p in (self.pretraining.preprocess, self.preprocess))
        differs = [k for k in after if k not in _OWN and before[k] != after[k]]
        if differs:
            raise ValueError(
                "preprocess must be that of pretraining.preprocess. Got others of "
                f"{', '.join(differs)} instead."
            )

    def to_pretraining(self) -> PretrainConfig:
        """The pretraining with this training's films, split and machine."""
        return replace(
            self.pretraining,
            data=self.data,
            crops=self.crops,
            cache=self.cache,
            split=self.protocol.split,
            device=self.device,
            workers=self.workers,
        )

    def to_single(self, weights: str | Path = "") -> SingleConfig:
        """What follows the pretraining; `weights` are the pretrained ones."""
        own = {name: getattr(self, name) for name in SingleConfig.__dataclass_fields__}
        if weights:
            own["backbone"] = replace(self.backbone, weights=str(weights))
        return SingleConfig(**own)


def finetune(config: FinetuneConfig) -> Path:
    """Pretrain where wanted and not done yet, then train; returns `config.out`.

    Raises ValueError, OSError or ImportError for what a user can mend, and NonFiniteLossError.
    """
    if config.start == "own":
        return train_single(config.to_single())
    folder = pretrain(config.to_pretraining())
    return train_single(config.to_single(folder / BUNDLE))


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not finished yet; 2 for settings or files that do not fit."""
    config = parse_config(FinetuneConfig, argv, prog="python -m classify.finetune", example=EXAMPLE)
    try:
        folder = finetune(config)
    except (ValueError, OSError, ImportError, NonFiniteLossError) as error:
        log.error("%s", error)
        return 2
    log.info("answers, figures and pictures: %s", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
