"""SCXNN member: one encoder that tells normal / target / others and restores the diseased region.

After the self-explainable chest X-ray network: a 3-way head on the encoder, and a U-Net decoder
that restores only the target's region, so that the features must know where it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from cxr.pretrained import imagenet_lite_state_dict, is_lite

NORMAL, TARGET, OTHERS = 0, 1, 2

# Where an encoder's stages begin, by the start of its name: the stem, then stage 1, 2, ...
_STAGES: dict[str, tuple[str, ...]] = {
    "tu-tf_efficientnet": (
        r"model\.(conv_stem|bn1)\.",
        *(rf"model\.blocks\.{i}\." for i in range(7)),
    ),
    "densenet": (
        r"features\.(conv0|norm0)\.",
        *(rf"features\.(denseblock{i}|transition{i})\." for i in (1, 2, 3)),
        r"features\.(denseblock4|norm5)\.",
    ),
    "resnet": (r"(conv1|bn1)\.", *(rf"layer{i}\." for i in (1, 2, 3, 4))),
}


@dataclass(frozen=True)
class MemberConfig:
    """The network of one member.

    Args:
        encoder: any encoder of segmentation-models-pytorch, or `tu-NAME` for one of timm's.
        weights: imagenet, none, or a file of weights (.safetensors, or .pth of tensors only).
        neck_channels: a 1x1 convolution to this many channels between encoder and pooling; 0 for
            none. 1280 takes the ImageNet-trained one of EfficientNet-Lite along.
        dropout: before the last linear layer.
        decoder_channels: widths of the decoder blocks, coarse to fine. Five restore the film at the
            input's resolution; four at half of it, for about half of the decoder's time.
        freeze_stages: the stem and this many stages stay at their initial weights, BatchNorm
            statistics included; 0 trains everything. Halves the time of training on a CPU.
        frozen_batchnorm: BatchNorm of the encoder keeps its initial statistics.
    """

    encoder: str = "densenet121"
    weights: str = "imagenet"
    neck_channels: int = 0
    dropout: float = 0.2
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    freeze_stages: int = 0
    frozen_batchnorm: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1). Got {self.dropout} instead.")
        if not 1 <= len(self.decoder_channels) <= 5 or min(self.decoder_channels) < 1:
            raise ValueError(
                "decoder_channels must be one to five positive widths. "
                f"Got {self.decoder_channels} instead."
            )
        if self.freeze_stages and self.weights == "none":
            raise ValueError(
                "freeze_stages must be 0 with weights: none (frozen noise learns "
                f"nothing). Got {self.freeze_stages} instead."
            )


class SCXNN(nn.Module):
    """Encoder, global average pooling, linear head (closed-form CAM holds), U-Net decoder.

    `decode=False` leaves the decoder out, as in shipped bundles. Inputs are normalised films
    (N, 3, side, side), side a multiple of 32.
    """

    def __init__(self, config: MemberConfig, decode: bool = True, classes: int = 3) -> None:
        super().__init__()
        self.config = config
        self.encoder = _build_encoder(config.encoder)
        channels: list[int] = list(self.encoder.out_channels)  # type: ignore[arg-type]
        width = config.neck_channels or channels[-1]
        self.neck = _neck(channels[-1], width) if config.neck_channels else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(width, classes)
        self.decoder: nn.Module | None = None
        if decode:
            self.decoder = UnetDecoder(
                channels, config.decoder_channels, n_blocks=len(config.decoder_channels)
            )
            self.restorer = nn.Conv2d(config.decoder_channels[-1], 1, 3, padding=1)
            nn.init.constant_(self.restorer.bias, -3.0)  # type: ignore[arg-type] # most is empty
        self._frozen: list[nn.Module] = []
        self.freeze_first()

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, h, w) normalised to (N, classes) logits; of three in the order NORMAL, TARGET,
        OTHERS."""
        return self._head(self.encoder(x)[-1])

    def restore(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, classes) logits and the restored diseased region (N, 1, h', w') in [0, 1].

        h' is h with five decoder blocks, h / 2 with four.
        """
        if self.decoder is None:
            raise ValueError("this member has no decoder: it was built (or shipped) without one.")
        features = self.encoder(x)
        restored = torch.sigmoid(self.restorer(self.decoder(features)))
        return self._head(features[-1]), restored

    def maps(self, x: Tensor) -> Tensor:
        """(N, C, h/32, w/32): what the head pools. CAM of class k is the maps weighted by
        `fc.weight[k]` (Zhou et al. 2016)."""
        return self.neck(self.encoder(x)[-1])

    @property
    def saliency_layer(self) -> nn.Module:
        """The layer whose output (N, C, h/32, w/32) is pooled: for Grad-CAM's hooks."""
        return self.neck

    def _head(self, last: Tensor) -> Tensor:
        return self.fc(self.dropout(self.neck(last).mean((2, 3))))

    def freeze_first(self) -> None:
        """Phase `hard`: everything is trained but what the configuration freezes."""
        self.requires_grad_(True)
        frozen = set(_first_parameters(self.encoder, self.config))
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(name not in frozen)
        kept = self.config.frozen_batchnorm
        norms = [(n, m) for n, m in self.encoder.named_modules() if isinstance(m, nn.BatchNorm2d)]
        self._frozen = [m for name, m in norms if kept or f"{name}.weight" in frozen]
        if kept:
            self._frozen += [m for m in self.neck.modules() if isinstance(m, nn.BatchNorm2d)]
        self.train(self.training)

    def freeze_all_but_fc(self) -> None:
        """Phase `weak`: only the last linear layer learns; BatchNorm statistics stay too."""
        self.requires_grad_(False)
        self.fc.requires_grad_(True)
        self._frozen = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        self.train(self.training)

    def train(self, mode: bool = True) -> SCXNN:
        """As usual, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def shipped_tensors(self, decoder: bool) -> dict[str, Tensor]:
        """Weights for a bundle: encoder, neck and head, the decoder only when asked for."""
        leave = () if decoder else ("decoder.", "restorer.")
        return {k: v for k, v in self.state_dict().items() if not k.startswith(leave or ("\0",))}


def build_member(config: MemberConfig, decode: bool = True, classes: int = 3) -> SCXNN:
    """A network with its initial weights; errors (ValueError, OSError) name the remedy."""
    model = SCXNN(config, decode, classes)
    if config.weights == "imagenet":
        _load_imagenet(model, config)
    elif config.weights != "none":
        _load_file(model.encoder, Path(config.weights), config.encoder)
    return model.to(memory_format=torch.channels_last)


def _build_encoder(name: str) -> nn.Module:
    try:
        return smp.encoders.get_encoder(name, in_channels=3, depth=5, weights=None)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            "encoder must be a name of segmentation-models-pytorch (densenet121, resnet34, ...) or "
            f"tu-NAME for one of timm's. Got {name!r} instead: {error}"
        ) from error


def _neck(inner: int, outer: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(outer, eps=1e-3)  # TensorFlow's eps, with which Lite's weights were made
    return nn.Sequential(nn.Conv2d(inner, outer, 1, bias=False), norm, nn.ReLU6())


def _first_parameters(encoder: nn.Module, config: MemberConfig) -> Iterator[str]:
    if not config.freeze_stages:
        return
    stages = next((s for start, s in _STAGES.items() if config.encoder.startswith(start)), ())
    if config.freeze_stages >= len(stages):
        raise ValueError(
            f"freeze_stages must lie below {len(stages)} for the encoder {config.encoder} "
            f"(known families: {', '.join(_STAGES)}). Got {config.freeze_stages} instead."
        )
    pattern = re.compile("|".join(stages[: config.freeze_stages + 1]))
    yield from (name for name, _ in encoder.named_parameters() if pattern.match(name))


def _load_imagenet(model: SCXNN, config: MemberConfig) -> None:
    if config.encoder.startswith("tu-") and is_lite(config.encoder):
        theirs = imagenet_lite_state_dict(config.encoder)
        _load_exactly(model.encoder, {f"model.{k}": v for k, v in theirs.items()}, "the package")
        if config.neck_channels == theirs["conv_head.weight"].shape[0]:
            neck = {f"0.{k[10:]}": v for k, v in theirs.items() if k.startswith("conv_head.")}
            neck |= {f"1.{k[4:]}": v for k, v in theirs.items() if k.startswith("bn2.")}
            model.neck.load_state_dict(neck)
        return
    try:
        encoder = smp.encoders.get_encoder(config.encoder, depth=5, weights="imagenet")
    except Exception as error:  # each hub fails in its own way: name the way out instead
        raise ValueError(
            f"weights: imagenet of {config.encoder} could not be fetched "
            f"({type(error).__name__}: {str(error)[:120]}). Without a network: fetch the ImageNet "
            "weights of this encoder on another machine (torchvision's densenet121-a639ec97.pth "
            "for densenet121; timm's model.safetensors for a tu- encoder), and give the file as "
            "weights: FILE, or train with weights: none."
        ) from error
    model.encoder.load_state_dict(encoder.state_dict())


def _load_file(encoder: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"weights must be imagenet, none or a file. {path} is no file: check the path."
        )
    if path.suffix == ".safetensors":
        state: dict[str, Any] = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    if name.startswith("densenet"):  # torchvision's file has norm.1 where its network has norm1
        state = {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", k): v for k, v in state.items()}
    ours = encoder.state_dict()
    starts = ("", "model.", "encoder.")  # timm's own names, smp's names, a whole member's
    tries = [{s + k: v for k, v in state.items()} for s in starts[:2]]
    tries.append({k.removeprefix("encoder."): v for k, v in state.items()})
    best = max(tries, key=lambda t: len(set(t) & set(ours)))
    _load_exactly(encoder, best, f"{path} for the encoder {name}")


def _load_exactly(encoder: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """All of the encoder's tensors; what the file has beyond them (its classifier) is left."""
    ours = encoder.state_dict()
    missing = [k for k in ours if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in ours if k in state and state[k].shape != ours[k].shape]
    if missing or wrong:
        raise ValueError(
            f"weights must hold every tensor of the encoder. {source}: {len(missing)} missing, "
            f"{len(wrong)} of another shape, such as {(missing + wrong)[0]}."
        )
    encoder.load_state_dict({k: state.get(k, v) for k, v in ours.items()})
