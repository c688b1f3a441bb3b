"""Networks with an encoder and a decoder: CXRNet, which draws what it reads the class from, and a
U-Net with attention (CBAM) in its skip paths, which restores distorted films.

The U-Net's encoder is a body of `classify.models.backbones` (`unet_cbam`, `unet_cbam_small`): what
it has learnt by restoring becomes the start of a classifier. CBAM tells which channels, then which
places of a network's maps matter (Woo et al. 2018, "CBAM: Convolutional Block Attention Module",
arXiv 1807.06521).

CXRNet is of Zhang, Han, Sobeih et al., "CXR-Net: an encoder-decoder-encoder multitask deep neural
network for explainable and accurate diagnosis of COVID-19 pneumonia" (arXiv 2110.10813; IEEE J
Biomed Health Inform 27, 2023). Only its abstracts were at hand. From them: encoder, decoder and
encoder in this order, so that encoder and decoder learn from the films' classes alone, without
drawn masks; the explanation has the film's own resolution. Guessed: everything else. The decoder
draws one map m in (0, 1), and the second encoder is given the film times m, so it cannot answer
from what the map hides (0 is ImageNet's mean grey); the map's shape could still tell something. The
loss, beside cross-entropy of the answer: `first` × cross-entropy of the first encoder's own answer,
`area` × mean of m, so that no more is shown than is needed, and `smooth` × total variation of m, so
that what is shown hangs together.

What it cannot do: m says what is shown, whatever the class, and may be no brighter on what is
sought: judge m by the audit's lift before reading it (docs/papers.md). `explanations` of
`classify.saliency.maps` also weighs it by one class's gradient.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classify.models.settings import CXRNetConfig, UnetCbamConfig
from cxr.rules import require

_GROUPS = 8
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
            nn.Sequential(*convolution(a, b), *(convolution(b, b) if stage else ()))
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
        self.blocks = nn.ModuleList(nn.Sequential(*convolution(a, a)) for a, _ in pairs)

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


def convolution(inner: int, outer: int) -> tuple[nn.Module, ...]:
    """3 × 3, BatchNorm, ReLU."""
    conv = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)


def _head(config: CXRNetConfig) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.widths[-1], config.classes))


class ChannelAttention(nn.Module):
    """One weight for each of the C `channels`: a small network, shared by the mean and the maximum
    over all places. Its hidden layer has C / `reduction` units, 16 in the paper, but at least 4: of
    one or two ReLUs in a narrow net all can fall silent for good."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to weights (N, C, 1, 1) in (0, 1)."""
        both = self.mlp(maps.mean((2, 3))) + self.mlp(maps.amax((2, 3)))
        return torch.sigmoid(both)[:, :, None, None]


class SpatialAttention(nn.Module):
    """One weight a place: a convolution over the mean and the maximum of all channels."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        require(kernel > 0 and kernel % 2 == 1, "kernel must be odd and positive", kernel)
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to weights (N, 1, h, w) in (0, 1)."""
        both = torch.cat([maps.mean(1, keepdim=True), maps.amax(1, keepdim=True)], 1)
        return torch.sigmoid(self.conv(both))


class CBAM(nn.Module):
    """Maps times their channel weights, then times the place weights of the result."""

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention(kernel)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape, nowhere larger in size than before."""
        maps = maps * self.channel(maps)
        return maps * self.spatial(maps)


class UnetCbam(nn.Module):
    """Encoder; CBAM on each skip; decoder with bilinear steps; sigmoid."""

    def __init__(self, config: UnetCbamConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.stage_widths
        self.encoder = build_encoder(widths, config.norm)
        self.skips = nn.ModuleList(
            CBAM(w, config.reduction, config.kernel) if config.attention else nn.Identity()
            for w in widths[:-1]
        )
        # narrowed before it is enlarged, where that costs a quarter
        self.narrow = nn.ModuleList(
            nn.Conv2d(deep, shallow, 1) for shallow, deep in pairwise(widths)
        )
        self.decoder = nn.ModuleList(_two_convs(2 * w, w, config.norm) for w in widths[:-1])
        self.last = nn.Conv2d(widths[0], 1, 1)

    def forward(self, films: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] to (N, 1, H, W) in (0, 1); H and W at least 2 ^ (stages − 1)."""
        maps = (films.expand(-1, 3, -1, -1) - 0.5) / 0.5
        seen = []
        for stage in self.encoder:
            maps = stage(maps)
            seen.append(maps)
        for level in reversed(range(len(self.skips))):
            skip = self.skips[level](seen[level])
            maps = F.interpolate(
                self.narrow[level](maps), size=skip.shape[-2:], mode="bilinear", align_corners=False
            )
            maps = self.decoder[level](torch.cat([maps, skip], 1))
        return torch.sigmoid(self.last(maps))


def build_encoder(widths: tuple[int, ...], norm: str = "group") -> nn.Sequential:
    """(N, 3, H, W) to (N, widths[-1], H / 2 ^ (n − 1), …), in the stages stage1 to stage n."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inner, outer) in enumerate(pairwise((3, *widths)), 1):
        stage = _two_convs(inner, outer, norm)
        stages[f"stage{number}"] = (
            stage if number == 1 else nn.Sequential(nn.MaxPool2d(2), *stage.children())
        )
    return nn.Sequential(stages)


def _two_convs(inner: int, outer: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inner, outer):
        conv = nn.Conv2d(channels, outer, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        groups = next(g for g in range(min(_GROUPS, outer), 0, -1) if outer % g == 0)
        scaled = nn.BatchNorm2d(outer) if norm == "batch" else nn.GroupNorm(groups, outer)
        layers += [conv, scaled, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
