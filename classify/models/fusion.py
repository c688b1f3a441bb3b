"""Three networks that answer together (the two-stage report, method 1), with two kinds of head.

| head | each network gives | joined | then |
|---|---|---|---|
| 1fc | K logits | side by side: 3 K | linear 3 K → K |
| 2fc | 128 features | added up: 128 | linear 128 → 64, ReLU, linear 64 → K |

The report gives the widths and no more. Guesses here: the ReLU between the two layers of 2fc (none
with `hidden_relu: false`), the 128 features of a network as one linear layer on its pooled maps,
without a ReLU; biases everywhere; no dropout; ImageNet weights to start from, with nothing frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from classify.models.backbones import BackboneConfig, build_backbone, check_name, least_side
from classify.saliency.hooks import saliency_layer

HEADS = ("1fc", "2fc")
FEATURES, HIDDEN = 128, 64


@dataclass(frozen=True)
class FusionConfig:
    """A fusion network; the defaults are the report's best.

    Args:
        head: 1fc or 2fc.
        nets: names of the networks, each one once.
        classes: number of logits.
        weights: imagenet or none, for all networks; or one of each network's own, by its name:
            imagenet, none, or a file of weights (.safetensors, or .pth of tensors only).
        freeze_to: of some networks, by name, the stage up to which they keep their initial weights,
            BatchNorm statistics included; empty trains everything. One stage without a name is
            that of all networks. `classify.models.backbones.stages_of(name)` lists them.
        dropout: before the last layer of each network.
        hidden_relu: a ReLU between the two layers of 2fc.
        side: side of the square input in px, the same for all networks.
    """

    head: str = "2fc"
    nets: tuple[str, ...] = ("resnet18", "densenet121", "inception_v3")
    classes: int = 2
    weights: str | dict[str, str] = "imagenet"
    freeze_to: str | dict[str, str] = ""
    dropout: float = 0.0
    hidden_relu: bool = True
    side: int = 299

    def __post_init__(self) -> None:
        _check_head(self.head)
        if not self.nets or len(set(self.nets)) != len(self.nets):
            raise ValueError(f"nets must be different names, one at least. Got {self.nets}.")
        for name in self.nets:
            check_name(name)
        self._check_weights()
        least = max(least_side(name) for name in self.nets)
        if self.side < least:
            raise ValueError(
                f"side must be at least {least} px for {', '.join(self.nets)}. "
                f"Got {self.side} instead."
            )
        if self.classes < 1:
            raise ValueError(f"classes must be at least 1. Got {self.classes} instead.")
        self.parts()  # what one of them refuses is said before a film is read

    def _check_weights(self) -> None:
        if isinstance(self.weights, str):
            if self.weights not in ("imagenet", "none"):
                raise ValueError(
                    "weights must be imagenet or none, or name → imagenet, none or a "
                    f"file. Got {self.weights!r} instead."
                )
        elif set(self.weights) != set(self.nets):
            raise ValueError(
                f"weights by name must be for each of {', '.join(self.nets)}. "
                f"Got them for {', '.join(self.weights) or 'none'}."
            )
        if isinstance(self.freeze_to, dict) and (odd := set(self.freeze_to) - set(self.nets)):
            raise ValueError(
                f"freeze_to by name must be of {', '.join(self.nets)}. "
                f"Got {', '.join(sorted(odd))}."
            )

    def parts(self) -> dict[str, BackboneConfig]:
        """The configuration of each network, by its name."""
        start, stage = self.weights, self.freeze_to
        return {
            name: BackboneConfig(
                name,
                self.outputs,
                start if isinstance(start, str) else start[name],
                stage if isinstance(stage, str) else stage.get(name, ""),
                dropout=self.dropout,
            )
            for name in self.nets
        }

    @property
    def input_side(self) -> int:
        """Side of the square input in px."""
        return self.side

    @property
    def outputs(self) -> int:
        """What each network gives to the head."""
        return self.classes if self.head == "1fc" else FEATURES


class FusionNet(nn.Module):
    """Networks by name, each (N, 3, h, w) → (N, outputs) with a `saliency_layer`, and the head."""

    def __init__(
        self, nets: Mapping[str, nn.Module], head: str, classes: int, hidden_relu: bool = True
    ) -> None:
        super().__init__()
        _check_head(head)
        self.nets = nn.ModuleDict(nets)
        self.joined = head
        self.fc: nn.Module
        if head == "1fc":
            self.fc = nn.Linear(len(self.nets) * classes, classes)
        else:
            between = nn.ReLU() if hidden_relu else nn.Identity()
            self.fc = nn.Sequential(
                nn.Linear(FEATURES, HIDDEN), between, nn.Linear(HIDDEN, classes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, h, w), normalised as for ImageNet, to (N, classes) logits."""
        given = [net(x) for net in self.nets.values()]
        joined = torch.cat(given, 1) if self.joined == "1fc" else torch.stack(given).sum(0)
        return self.fc(joined)

    @property
    def encoder(self) -> nn.Module:
        """The networks, whose bodies are pretrained, without the common head."""
        return self.nets

    @property
    def backbones(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        """(network, the layer whose output it pools) by name: for the map of each and the fused."""
        return {name: (net, saliency_layer(net)) for name, net in self.nets.items()}


def build_fusion(config: FusionConfig) -> FusionNet:
    """A fusion network with its initial weights; errors as of `build_backbone`."""
    nets = {name: build_backbone(part) for name, part in config.parts().items()}
    return FusionNet(nets, config.head, config.classes, config.hidden_relu)


def _check_head(head: str) -> None:
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}. Got {head!r} instead.")
