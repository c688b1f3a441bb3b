"""What is exported of each kind of network: a graph, an example of its input, and the names of its
outputs. What stands before and behind it is NumPy's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classify.ensemble import load_single, member_of
from classify.models.multitask import SCXNN
from classify.preprocess import PreprocessConfig, to_input
from classify.saliency.hooks import (
    backbone_layers,
    logits_and_maps,
    pooled_layers,
    run_recorded,
    saliency_layer,
    watching,
)
from cxr.bundle import bundle_kind, load_bundle
from cxr.rules import require
from detect.lungfield.net import build_field_net
from detect.model import build_detector
from detect.predict import load_net
from detect.settings import DetectorConfig, FieldNetConfig
from detect.view.net import ViewHead

Graph = tuple[nn.Module, Tensor, list[str]]


def _pixels(films: Tensor) -> Tensor:
    """uint8 letterboxes (N, side, side) to (N, 3, side, side) in [0, 1]."""
    return films.float().unsqueeze(1).div(255.0).expand(-1, 3, -1, -1)


class _Dense(nn.Module):
    """A detector's pyramid, and what the RPN says of the levels that propose."""

    def __init__(self, net: Any, config: DetectorConfig) -> None:
        super().__init__()
        self.net, self.coarse = net, config.coarse_rpn
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))

    def forward(self, films: Tensor) -> tuple[Tensor, ...]:
        levels = list(self.net.backbone((_pixels(films) - self.mean) / self.std).values())
        scores, steps = self.net.rpn.head(levels[-1:] if self.coarse else levels)
        return (*levels, *scores, *steps)


def detector_graph(bundle: Path) -> Graph:
    """uint8 letterboxes to the dense parts of a detector of torchvision's kind: `detect.decode`
    goes on from there. Raises ValueError for another kind."""
    net, config, _, _ = load_net(bundle, "thorax", DetectorConfig, build_detector, fold=False)
    rule = "an exported detector must be of the backend torchvision, its side a multiple of 32 px"
    fits = config.backend == "torchvision" and config.side % 32 == 0
    require(fits, rule, f"{config.backend}, {config.side} px")
    graph, example = _Dense(net, config), torch.zeros(2, config.side, config.side).byte()
    with torch.no_grad():
        count = len(graph(example))
    proposing = 1 if config.coarse_rpn else count // 3
    names = [f"level{k}" for k in range(count - 2 * proposing)]
    names += [f"{what}{k}" for what in ("score", "step") for k in range(proposing)]
    return graph, example, names


class _Field(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, films: Tensor) -> tuple[Tensor, Tensor]:
        logits, seen = self.net.look(_pixels(films))
        return logits[:, 0].sigmoid(), seen


def field_graph(bundle: Path) -> Graph:
    """uint8 letterboxes to the field (N, side, side) and what `detect.view` judges (N, C, G, G)."""
    net, config, _, _ = load_net(bundle, "lungfield", FieldNetConfig, build_field_net, fold=False)
    return _Field(net), torch.zeros(2, config.side, config.side).byte(), ["field", "seen"]


def view_graph(bundle: Path) -> Graph:
    """What the lung field's network sees (N, C, G, G) to logits (N, classes + 1)."""
    found = load_bundle(bundle, "view")
    head = ViewHead(**found.meta["model"])
    head.load_state_dict(found.tensors)
    return head, torch.zeros(2, found.meta["model"]["channels"], 8, 8), ["logits"]


class _Members(nn.Module):
    """A classifier from pixels on; `head` (K, C) weighs the maps that it pools, where
    its head is linear."""

    def __init__(self, net: Any, settings: PreprocessConfig, head: Tensor | None) -> None:
        super().__init__()
        self.net, self.settings = net, settings
        self.register_buffer("head", head)

    def forward(self, films: Tensor) -> tuple[Tensor, ...]:
        layers = [saliency_layer(self.net)] if self.head is not None else []
        with watching(self.net) as seen:
            logits, maps = run_recorded(self.net, layers, to_input(films, self.settings))
        planes = [torch.einsum("nchw,kc->nkhw", maps[0], self.head)] if maps else []
        return (logits, *planes, *([torch.cat(seen, 1)] if seen else []))


def member_graph(bundle: Path) -> Graph:
    """Prepared films (N, 1, side, side) in [0, 1] to logits (N, K), the plane of each logit where
    its head has a closed form (N, K, h, w), and what a guard knows films by (N, F)."""
    net, settings = _classifier(bundle)
    net = net.eval().to(memory_format=torch.contiguous_format)
    example = torch.rand(2, 1, settings.side, settings.side)
    layers = pooled_layers(net)
    closed = bool(layers) and not backbone_layers(net)
    head = logits_and_maps(net, to_input(example, settings)).head if closed else None
    names = ["logits", *["planes"] * (head is not None), *["seen"] * bool(layers)]
    return _Members(net, settings, head.weight.clone() if head else None), example, names


def _classifier(bundle: Path) -> tuple[Any, PreprocessConfig]:
    if bundle_kind(bundle) == "single":
        single = load_single(bundle)
        return single.net, single.settings
    found = load_bundle(bundle, "member")
    net: SCXNN = member_of(found)
    return net, PreprocessConfig.from_dict(found.meta["preprocessing"])


GRAPHS: dict[str, Callable[[Path], Graph]] = {
    "thorax": detector_graph,
    "lungfield": field_graph,
    "view": view_graph,
    "member": member_graph,
    "single": member_graph,
}
