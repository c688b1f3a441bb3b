"""A pretrained network as one safetensors file: encoder, decoder, and how films must be prepared.

    backbone: {name: unet_cbam_small, weights: runs/pretrain/pretrained.safetensors}

`classify.models.backbones` starts from the encoder in it; `load_pretrained` gives the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classify.models.settings import UnetCbamConfig
from classify.models.unet_cbam import UnetCbam
from classify.preprocess import PreprocessConfig
from cxr.bundle import load_bundle, save_bundle
from cxr.cli import from_plain, to_plain

KIND = "pretrained"


@dataclass(frozen=True)
class Pretrained:
    """The network in evaluation mode on the CPU, what it expects, and all that was noted of it."""

    net: UnetCbam
    settings: PreprocessConfig
    sha256: str
    meta: dict[str, Any]


def save_pretrained(
    path: str | Path, net: UnetCbam, settings: PreprocessConfig, half: bool = True, **meta: Any
) -> Path:
    """Write the network with its configuration and preprocessing; `meta` goes along."""
    return save_bundle(
        path,
        KIND,
        dict(net.state_dict()),
        half=half,
        network=to_plain(net.config),
        preprocessing=settings.to_dict(),
        **meta,
    )


def load_pretrained(path: str | Path) -> Pretrained:
    """Read what `save_pretrained` wrote; raises FileNotFoundError or ValueError."""
    bundle = load_bundle(path, KIND)
    net = UnetCbam(from_plain(UnetCbamConfig, bundle.meta["network"]))
    try:
        net.load_state_dict(bundle.tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} must hold the weights of its own network. {error}") from error
    settings = PreprocessConfig.from_dict(bundle.meta["preprocessing"])
    return Pretrained(net.eval(), settings, bundle.sha256, bundle.meta)
