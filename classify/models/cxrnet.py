"""CXRNet: encoder, decoder, encoder: the class, and a map in pixels of what it was read from.

    net = build_cxrnet(CXRNetConfig(classes=3))
    logits, extra = net.terms(films, labels)  # one pass
    loss = F.cross_entropy(logits, labels) + extra
    maps = net.explain(films)  # (N, 1, H, W) in [0, 1]

Zhang, Han, Sobeih et al., "CXR-Net: an encoder-decoder-encoder multitask deep neural network for
explainable and accurate diagnosis of COVID-19 pneumonia" (arXiv 2110.10813; IEEE J Biomed Health
Inform 27, 2023). Only its abstracts were at hand.

From them: encoder, decoder and encoder in this order; the second encoder is there so that encoder
and decoder learn from the films' classes alone, without drawn masks; one network classifies and
explains; the explanation has the film's own resolution and is finer than a CAM.

Guessed: everything else. The decoder draws one map m in (0, 1), and the second encoder is given the
film times m, so it cannot answer from what the map hides (0 is ImageNet's mean grey); the map's
shape could still tell something. The loss, beside cross-entropy of the answer: `first` ×
cross-entropy of the first encoder's own answer, `area` × mean of m, so that no more is shown than
is needed, and `smooth` × total variation of m, so that what is shown hangs together.

What it cannot do: m says what is shown, whatever the class. In short trials on synthetic films (120
steps) m was no brighter on the sought patch than elsewhere, while the answers were all right: judge
m by the audit's lift before reading it. `explanations` of `classify.saliency.maps` also weighs it
by one class's gradient, and there the patch had about ten times its share.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classify.models.settings import CXRNetConfig

_OPEN = 2.0  # the map starts at 0.88: the second encoder must first see films to learn from


class CXRNet(nn.Module):
    """Films (N, 3, H, W), normalised by ImageNet's mean and std, to logits, through a map."""

    def __init__(self, config: CXRNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.first = Encoder(widths)
        self.first_head = _head(config)
        self.decoder = Decoder(widths)
        self.explainer = nn.Sequential(nn.Conv2d(widths[0], 1, 1), nn.Sigmoid())
        nn.init.constant_(self.explainer[0].bias, _OPEN)  # type: ignore[arg-type]
        self.second = nn.Sequential(Encoder(widths), Last())
        self.head = _head(config)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes) logits: the second encoder's answer."""
        return self.head(self.maps(x).mean((2, 3)))

    def maps(self, x: Tensor) -> Tensor:
        """(N, C, h', w'): what the second encoder's head pools."""
        return self.second(x * self._explained(self.first(x)))

    def explain(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to the map (N, 1, H, W) in [0, 1]: the share of each pixel that the second
        encoder is shown."""
        return self._explained(self.first(x))

    def terms(
        self, x: Tensor, labels: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and the extra loss, a scalar, from one forward pass; `weight` of the
        classes (classes,) multiplies each film's cross-entropy."""
        config, features = self.config, self.first(x)
        shown = self._explained(features)
        logits = self.head(self.second(x * shown).mean((2, 3)))
        own = self.first_head(features[-1].mean((2, 3)))
        # the mean over films, as for the answer: it does not hang on how films make batches
        first = F.cross_entropy(own, labels, weight, reduction="none").mean()
        extra = config.first * first + config.area * shown.mean()
        return logits, extra + config.smooth * total_variation(shown)

    @property
    def encoder(self) -> nn.Module:
        """The first encoder, which may learn at a rate of its own."""
        return self.first

    @property
    def saliency_layer(self) -> nn.Module:
        """The second encoder, whose output (N, C, h', w') is pooled: its CAMs are as coarse as
        those of any network."""
        return self.second

    @property
    def explanation_layer(self) -> nn.Module:
        """The module whose output (N, 1, H, W) is the map."""
        return self.explainer

    @property
    def no_way_to_logits(self) -> tuple[str, ...]:
        """Parts whose weights move neither answer nor map."""
        return ("first_head",)

    def _explained(self, features: list[Tensor]) -> Tensor:
        return self.explainer(self.decoder(features))


class Encoder(nn.Module):
    """(N, 3, H, W) to the features of each stage, fine to coarse; H and W halve after each."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(*_convolution(a, b), *(_convolution(b, b) if stage else ()))
            for stage, (a, b) in enumerate(pairwise((3, *widths)))
        )  # one convolution at full resolution, where they cost most

    def forward(self, x: Tensor) -> list[Tensor]:
        """One tensor a stage."""
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(F.max_pool2d(x, 2) if features else x)
            features.append(x)
        return features


class Last(nn.Module):
    """The coarsest of an encoder's features (N, C, h, w)."""

    def forward(self, features: list[Tensor]) -> Tensor:
        """The last of the list."""
        return features[-1]


class Decoder(nn.Module):
    """Features, fine to coarse, to (N, width, H, W): scaled up, and the finer ones added."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.blocks = nn.ModuleList(nn.Sequential(*_convolution(a, a)) for a, _ in pairs)

    def forward(self, features: list[Tensor]) -> Tensor:
        """One tensor at the resolution of the first."""
        x = features[-1]
        steps = list(zip(self.narrow, self.blocks, features[:-1], strict=True))
        for narrow, block, finer in reversed(steps):
            up = F.interpolate(narrow(x), finer.shape[-2:], mode="bilinear", align_corners=False)
            x = block(up + finer)
        return x


def build_cxrnet(config: CXRNetConfig) -> CXRNet:
    """A network with random weights."""
    return CXRNet(config).to(memory_format=torch.channels_last)


def total_variation(maps: Tensor) -> Tensor:
    """Mean absolute step to the pixel below plus that to the pixel on the right of (N, 1, H, W)."""
    down, across = maps.diff(dim=2).abs(), maps.diff(dim=3).abs()
    return down.mean() + across.mean()


def _convolution(inner: int, outer: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)


def _head(config: CXRNetConfig) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.widths[-1], config.classes))
