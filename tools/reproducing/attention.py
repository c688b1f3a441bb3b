"""Where a trained network looked on its tested films: lift of its maps in the lungs.

    found = attention_of("runs/tables/cells/3f…", data, crops)
    found.figure  # mean lift over area, 95 % interval by patient
    found.nets["resnet18"]  # the same of one net's own map, for a fusion net

Maps are Grad-CAM of the answered class; lift is the share of the energy inside the lungs over the
lungs' share of what the network saw (classify.audits.metrics): 1 is chance.
"""  # fmt: skip

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from classify.metrics import Figure
from detect.lungfield import DEFAULT_WEIGHTS

RESULT = "attention.json"  # in the training's folder


@dataclass(frozen=True)
class AttentionConfig:
    """How attention is measured.

    Args:
        max_films: measure the first films of the tested ones, in the order of a hash of their
            names; 0 measures all.
        field: bundle of the lung-field network, for films without a human mask.
        draws: bootstrap draws of patients.
        seed: of the bootstrap.
        batch: films at a time.
        device: auto, cpu or cuda.
    """

    max_films: int = 0
    field: str = str(DEFAULT_WEIGHTS)
    draws: int = 1000
    seed: int = 0
    batch: int = 16
    device: str = "auto"


@dataclass(frozen=True)
class Attention:
    """Mean lift over area of the maps of one training.

    Attributes:
        figure: of the network's map (for a fusion net, the fused one); `n` films have a lift.
        nets: the same of each net's own map by its name; empty for a single network.
        films: films that were looked at.
        empty: of these, those whose map is 0 everywhere, which has no lift.
        left_out: films of the table that could not be measured, by reason.
        lung_by: films by who drew the lungs: human or lungfield.
    """

    figure: Figure
    nets: dict[str, Figure]
    films: int
    empty: int
    left_out: dict[str, int]
    lung_by: dict[str, int]


def attention_of(
    folder: str | Path, data: str | Path, crops: str | Path = "",
    config: AttentionConfig = AttentionConfig(),
) -> Attention:  # fmt: skip
    """Attention of the trained network of `folder` on the films of its answers.csv.

    The result is kept in FOLDER/attention.json, and taken from there as long as the weights, the
    answers, the films and the settings are the same.

    Args:
        folder: of classify.single: single.safetensors and answers.csv; with folds fold0/, fold1/ …
            of the same form, each network looked at on the films that it was tested on.
        data: folder with films.csv, the films and, where there are any, human lung masks.
        crops: folder of detect.crop, for a network that was trained on crops.
        config: settings.

    Raises OSError or ValueError for what does not fit together, such as crops for a network that
    was trained on whole films.
    """
    raise NotImplementedError
