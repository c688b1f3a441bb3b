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

import torch
from torch import Tensor, nn

from classify.models.backbones import build_backbone
from classify.models.settings import FEATURES, FusionConfig
from classify.saliency.hooks import saliency_layer

HIDDEN = 64


class FusionNet(nn.Module):
    """Networks by name, each (N, 3, h, w) → (N, outputs) with a `saliency_layer`, and the head."""

    def __init__(
        self, nets: Mapping[str, nn.Module], head: str, classes: int, hidden_relu: bool = True
    ) -> None:
        super().__init__()
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
    def saliency_layers(self) -> dict[str, nn.Module]:
        """The layer whose output each network pools: for the map of each and the fused."""
        return {name: saliency_layer(net) for name, net in self.nets.items()}


def build_fusion(config: FusionConfig) -> FusionNet:
    """A fusion network with its initial weights; errors as of `build_backbone`."""
    nets = {name: build_backbone(part) for name, part in config.parts().items()}
    return FusionNet(nets, config.head, config.classes, config.hidden_relu)
