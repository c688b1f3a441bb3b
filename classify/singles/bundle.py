"""A single network as one safetensors file, with all that is needed to use it rightly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from classify.models.backbones import build_backbone
from classify.models.cxrnet import build_cxrnet
from classify.models.fusion import build_fusion
from classify.models.settings import BackboneConfig, CXRNetConfig, FusionConfig
from classify.preprocess import PreprocessConfig
from classify.singles.config import NetworkConfig, SingleConfig
from cxr.bundle import load_bundle, save_bundle
from cxr.cli import from_plain, to_plain

KIND = "single"


@dataclass(frozen=True)
class Single:
    """A trained network for films or crops: (N, 3, side, side) to (N, K) logits of `classes`."""

    net: nn.Module
    classes: tuple[str, ...]
    settings: PreprocessConfig
    trained_on: str
    sha256: str
    meta: dict[str, Any]


def build_net(config: NetworkConfig) -> nn.Module:
    """The network of a configuration with its initial weights."""
    if isinstance(config, BackboneConfig):
        return build_backbone(config)
    if isinstance(config, CXRNetConfig):
        return build_cxrnet(config)
    return build_fusion(config).to(memory_format=torch.channels_last)


def save_single(path: str | Path, net: nn.Module, config: SingleConfig, **meta: Any) -> Path:
    """Write a trained network; as fp16, unless that cannot hold one of its numbers.

    `meta` is put into the metadata: training, metrics, licence_note.
    """
    tensors = dict(net.state_dict())
    limit = torch.finfo(torch.float16).max
    half = all(t.abs().max() <= limit for t in tensors.values() if t.is_floating_point())
    return save_bundle(
        path,
        KIND,
        tensors,
        half=half,
        family=config.kind,
        network=to_plain(config.network()),
        classes=list(config.classes),
        preprocessing=config.preprocess.to_dict(),
        trained_on="crops" if config.crops else "films",
        **meta,
    )


def load_single(path: str | Path) -> Single:
    """A trained network on the CPU in evaluation mode; raises FileNotFoundError or ValueError."""
    bundle = load_bundle(path, KIND)
    # nothing is fetched, and nothing is frozen: the weights are all in the bundle
    kinds: dict[str, Any] = {
        "backbone": BackboneConfig,
        "fusion": FusionConfig,
        "cxrnet": CXRNetConfig,
    }
    free = {"weights": "none", "freeze_to": ""}
    given = bundle.meta["network"]
    plain = {k: free.get(k, v) for k, v in given.items()}
    network = from_plain(kinds[bundle.meta["family"]], plain)
    net = build_net(network)
    try:
        net.load_state_dict(bundle.tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} must hold the weights of its own network. {error}") from error
    return Single(
        net.eval(),
        tuple(bundle.meta["classes"]),
        PreprocessConfig.from_dict(bundle.meta["preprocessing"]),
        bundle.meta["trained_on"],
        bundle.sha256,
        bundle.meta,
    )
