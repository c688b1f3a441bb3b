"""All settings of a pretraining: one file makes it again."""

from __future__ import annotations

from dataclasses import dataclass, field

from classify.genesis import GenesisConfig
from classify.models.settings import UnetCbamConfig
from classify.preprocess import PreprocessConfig
from cxr.training.optim import OptimConfig


@dataclass(frozen=True)
class PretrainConfig:
    """Teach a network radiographs without labels: it restores films that were distorted.

    A finished folder is left as it is and a killed training goes on from its last epoch, so the
    same command is given again after a stop.

    Args:
        data: folder with films.csv and its images.
        crops: folder of python -m detect.crop; empty trains on whole films.
        out: folder for the bundle, history, curves, pictures and checkpoints.
        cache: folder of decoded films, which many trainings share; empty takes one in `out`.
        split: file of cxr.split with the parts train and val; films of its other parts are not
            touched, so that no film is pretrained on which is tested later.
        sources: sources of films.csv to take; empty takes all.
        publishable_only: take only films whose licence lets the weights be published.
        max_films: take at most this many films of each part (for a trial); 0 takes all.
        preprocess: from pixels to input; stored in the bundle.
        genesis: the distortions.
        net: the network.
        optim: optimiser, schedule and stop rule; plateau and patience go by the validation loss.
        batch: films a step.
        workers: processes that make training pictures; 0 makes them in this one.
        device: auto, cpu or gpu.
        precision: of Lightning: 32-true, bf16-mixed or 16-mixed.
        half: store the bundle's weights as fp16.
        seed: of initial weights, order and distortions.
    """

    data: str = "../shared/data"
    crops: str = ""
    out: str = "runs/pretrain"
    cache: str = ""
    split: str = "configs/split_seed0.json"
    sources: tuple[str, ...] = ()
    publishable_only: bool = True
    max_films: int = 0
    preprocess: PreprocessConfig = field(
        default_factory=lambda: PreprocessConfig(side=128, mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    genesis: GenesisConfig = field(default_factory=GenesisConfig)
    net: UnetCbamConfig = field(default_factory=UnetCbamConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            "adamw",
            1e-3,
            weight_decay=1e-4,
            schedule="cosine",
            epochs=100,
            warmup_epochs=1,
            patience=0,
            clip_norm=1.0,
        )
    )
    batch: int = 8
    workers: int = 0
    device: str = "auto"
    precision: str = "32-true"
    half: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1. Got {self.batch} instead.")
        for name in ("workers", "max_films"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative. Got {getattr(self, name)} instead.")
        if self.optim.encoder_rate != 1:
            raise ValueError(
                "optim.encoder_rate must be 1: no part of the network is trained yet. "
                f"Got {self.optim.encoder_rate} instead."
            )
        least = 2 ** (len(self.net.stage_widths) - 1)
        if self.preprocess.side < least:
            raise ValueError(
                f"preprocess.side must be at least {least} px for the stages of the "
                f"network. Got {self.preprocess.side} instead."
            )
