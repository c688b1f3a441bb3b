"""Trained networks as safetensors files, each with all that is needed to use it rightly.

A member of an ensemble, a single network, or a pretrained encoder and decoder, from which
`classify.models.backbones` starts:

    backbone: {name: unet_cbam_small, weights: runs/pretrain/pretrained.safetensors}
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from classify.inputs import classes_of, targets_of
from classify.models.backbones import build_backbone, build_fusion
from classify.models.multitask import SCXNN, build_member
from classify.models.settings import (
    BackboneConfig,
    CXRNetConfig,
    FusionConfig,
    MemberConfig,
    NetworkConfig,
    UnetCbamConfig,
)
from classify.models.unets import UnetCbam, build_cxrnet
from classify.preprocess import PreprocessConfig
from classify.tasks.settings import SingleConfig
from cxr.bundle import Bundle, load_bundle, rebuilding, save_bundle
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
    with rebuilding(path):
        net = UnetCbam(from_plain(UnetCbamConfig, bundle.meta["network"]))
        net.load_state_dict(bundle.tensors)
        settings = PreprocessConfig.from_dict(bundle.meta["preprocessing"])
    return Pretrained(net.eval(), settings, bundle.sha256, bundle.meta)


def member_of(bundle: Bundle) -> SCXNN:
    """The network of a member's bundle with its weights; raises ValueError."""
    known = {f.name for f in fields(MemberConfig)}
    with rebuilding(bundle.path):
        network = {k: v for k, v in bundle.meta["network"].items() if k in known}
        # nothing is fetched, and nothing is frozen: the weights are all in the bundle
        network |= {"weights": "none", "freeze_stages": 0, "frozen_batchnorm": False}
        decoder = bool(bundle.meta["decoder"])
        shape = (len(classes_of(bundle.meta)), len(targets_of(bundle.meta)))
        net = build_member(from_plain(MemberConfig, network), decoder, *shape)
        net.load_state_dict(bundle.tensors)
    return net


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
        "single",
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
    bundle = load_bundle(path, "single")
    kinds: dict[str, Any] = {
        "backbone": BackboneConfig,
        "fusion": FusionConfig,
        "cxrnet": CXRNetConfig,
    }
    # nothing is fetched, and nothing is frozen: the weights are all in the bundle
    free = {"weights": "none", "freeze_to": ""}
    with rebuilding(path):
        plain = {k: free.get(k, v) for k, v in bundle.meta["network"].items()}
        net = build_net(from_plain(kinds[bundle.meta["family"]], plain))
        net.load_state_dict(bundle.tensors)
        return Single(
            net.eval(),
            tuple(bundle.meta["classes"]),
            PreprocessConfig.from_dict(bundle.meta["preprocessing"]),
            bundle.meta["trained_on"],
            bundle.sha256,
            bundle.meta,
        )
