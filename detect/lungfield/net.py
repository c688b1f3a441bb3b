"""The lung-field network: a truncated mobile encoder and a small U-Net decoder."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from cxr.bundle import LITE_MEAN, LITE_STD, imagenet_lite_state_dict, load_bundle, rebuilding
from cxr.rules import require
from detect.settings import FieldNetConfig


class FieldNet(nn.Module):
    """(N, 3, S, S) films in [0, 1] to (N, 1, S, S) logits of «lung field»; it normalises itself.
    After Ronneberger et al. 2015 (U-Net)."""

    def __init__(self, config: FieldNetConfig) -> None:
        super().__init__()
        self.encoder = _cut_encoder(config)
        widths = config.decoder_channels
        channels: list[int] = list(self.encoder.out_channels)
        self.decoder = UnetDecoder(channels, widths, n_blocks=len(widths))
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self._frozen: list[nn.Module] = []

    def forward(self, x: Tensor) -> Tensor:
        return self._logits(x)[0]

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and (N, C, G, G): the encoder's last two levels and the field, averaged on a
        grid half as fine as the last level's (8 × 8 for films of 256 px)."""
        logits, levels = self._logits(x)
        height, width = levels[-1].shape[2:]
        seen = (levels[-1], levels[-2], torch.sigmoid(logits))
        cells = (height // 2, width // 2)
        return logits, torch.cat([F.adaptive_avg_pool2d(t, cells) for t in seen], 1)

    def _logits(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        levels = self.encoder((x - LITE_MEAN) / LITE_STD)
        logits = self.head(self.decoder(levels))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False), levels

    def freeze(self, stages: int) -> None:
        """Stem and first stages stay as they are, BatchNorm included: they see edges, not lungs,
        and at the finest resolution they cost most of the training time."""
        body = self.encoder.model
        self._frozen = [body.conv_stem, body.bn1, *body.blocks[:stages]]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> FieldNet:
        """As usual, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def build_field_net(config: FieldNetConfig) -> FieldNet:
    """A network with its initial weights. Raises ValueError for an unknown encoder or weights of
    another network, FileNotFoundError or ImportError where the weights are missing."""
    net = FieldNet(config)
    if config.weights == "imagenet":
        theirs = imagenet_lite_state_dict(config.encoder)
        ours = net.encoder.state_dict()
        # the package holds the whole encoder: what was cut off, and its classifier, are left
        net.encoder.load_state_dict({k: theirs[k.removeprefix("model.")] for k in ours})
    elif config.weights != "none":
        with rebuilding(config.weights):
            net.load_state_dict(load_bundle(config.weights, "lungfield").tensors)
    if config.freeze_stages:
        net.freeze(config.freeze_stages)
    return net.to(memory_format=torch.channels_last)


def _cut_encoder(config: FieldNetConfig) -> Any:
    try:
        encoder = smp.encoders.get_encoder(
            config.encoder, in_channels=3, depth=config.depth, weights=None
        )
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            "model.encoder must be a name of segmentation-models-pytorch or tu-NAME for one of "
            f"timm's. Got {config.encoder!r} instead: {error}"
        ) from error
    body: Any = getattr(encoder, "model", None)
    if hasattr(body, "feature_info") and hasattr(body, "blocks"):
        # timm keeps, and runs, the stages after the last one that is asked for
        last = int(body.feature_info.module_name()[-1].split(".")[1])
        body.blocks = body.blocks[: last + 1]
    else:
        rule = "model.freeze_stages must be 0 for an encoder that is not timm's EfficientNet"
        require(not config.freeze_stages, rule, config.freeze_stages)
    return encoder
