"""SCXNN member: one encoder that tells normal / target / others and restores the diseased region.

After the Strictly Chest X-ray Normal Network of Kim's thesis (University of Ulsan, 2024): a 3-way
head on the encoder, and a U-Net decoder that restores only the target's region, so that the
features must know where it is.
"""

from __future__ import annotations

import re

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from classify.models.backbones import PartlyFrozen, load_body, load_start_weights
from classify.models.settings import MemberConfig
from cxr.bundle import imagenet_lite_state_dict, is_lite
from cxr.rules import require

# Where an encoder's stages begin, by the start of its name: the stem, then stage 1, 2, ...
STAGES: dict[str, tuple[str, ...]] = {
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


class SCXNN(PartlyFrozen):
    """Encoder, global average pooling, linear head (closed-form CAM holds), U-Net decoder.
    `decode=False` leaves the decoder out, as in shipped bundles. Inputs are normalised films (N, 3,
    side, side), side a multiple of 32. One network may answer for several `targets`: its logits are
    then those of the first target, of the second, …, and so are the regions."""

    def __init__(
        self, config: MemberConfig, decode: bool = True, classes: int = 3, targets: int = 1
    ) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        self.encoder = _build_encoder(config.encoder)
        channels: list[int] = list(self.encoder.out_channels)  # type: ignore[arg-type]
        width = config.neck_channels or channels[-1]
        self.neck: nn.Module = nn.Identity()
        if config.neck_channels:  # TensorFlow's eps, with which Lite's weights were made
            norm = nn.BatchNorm2d(width, eps=1e-3)
            narrow = nn.Conv2d(channels[-1], width, 1, bias=False)
            self.neck = nn.Sequential(narrow, norm, nn.ReLU6())
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(width, classes * targets)
        self.decoder: nn.Module | None = None
        if decode:
            self.decoder = UnetDecoder(
                channels, config.decoder_channels, n_blocks=len(config.decoder_channels)
            )
            self.restorer = nn.Conv2d(config.decoder_channels[-1], targets, 3, padding=1)
            nn.init.constant_(self.restorer.bias, -3.0)  # type: ignore[arg-type] # most is empty
        self._frozen = []
        self.freeze_first()

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, h, w) normalised to (N, targets × classes) logits; of three classes in the order
        NORMAL, TARGET, OTHERS."""
        return self._head(self.encoder(x)[-1])

    def restore(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, targets × classes) logits and the restored diseased regions (N, targets, h', w') in
        [0, 1]. h' is h with five decoder blocks, h / 2 with four."""
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

    @property
    def entered(self) -> nn.Module:
        """The layer behind the encoder, whose maps (N, C, h/32, w/32) say what kind of film it is:
        see `classify.saliency.hooks.watching`."""
        return self.neck

    def _head(self, last: Tensor) -> Tensor:
        return self.fc(self.dropout(self.neck(last).mean((2, 3))))

    def freeze_first(self) -> None:
        """Phase `hard`: everything is trained but what the configuration freezes."""
        self.requires_grad_(True)
        frozen = _first_parameters(self.encoder, self.config)
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

    def shipped_tensors(self, decoder: bool) -> dict[str, Tensor]:
        """Weights for a bundle: encoder, neck and head, the decoder only when asked for. Of each
        target the logits then add up to nothing, which changes no probability: what all classes
        share decides nothing, and would only be seen in the maps of each."""
        leave = () if decoder else ("decoder.", "restorer.")
        kept = {k: v for k, v in self.state_dict().items() if not k.startswith(leave or ("\0",))}
        for name in ("fc.weight", "fc.bias"):
            by_target = kept[name].unflatten(0, (-1, self.classes))
            kept[name] = (by_target - by_target.mean(1, keepdim=True)).flatten(0, 1)
        return kept


def build_member(
    config: MemberConfig, decode: bool = True, classes: int = 3, targets: int = 1
) -> SCXNN:
    """A network with its initial weights; errors (ValueError, OSError) name the remedy."""
    model = SCXNN(config, decode, classes, targets)
    if config.weights == "imagenet":
        _load_imagenet(model, config)
    else:
        state = load_start_weights(model.encoder, config.encoder, "", config.weights)
        # a member's own file has a neck, too; of another width it is left
        theirs = {k.removeprefix("neck."): v for k, v in state.items() if k.startswith("neck.")}
        ours = model.neck.state_dict()
        if {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}:
            model.neck.load_state_dict(theirs)
    return model.to(memory_format=torch.channels_last)


def _build_encoder(name: str) -> nn.Module:
    try:
        return smp.encoders.get_encoder(name, in_channels=3, depth=5, weights=None)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            "encoder must be a name of segmentation-models-pytorch (densenet121, resnet34, ...) or "
            f"tu-NAME for one of timm's. Got {name!r} instead: {error}"
        ) from error


def _first_parameters(encoder: nn.Module, config: MemberConfig) -> set[str]:
    """Names of the encoder's parameters that `freeze_stages` freezes."""
    stages = next((s for start, s in STAGES.items() if config.encoder.startswith(start)), ())
    require(
        config.freeze_stages < max(1, len(stages)),
        f"freeze_stages must lie below {len(stages)} for the encoder {config.encoder} "
        f"(known families: {', '.join(STAGES)})",
        config.freeze_stages,
    )
    pattern = re.compile("|".join(stages[: config.freeze_stages + 1]))
    named = [name for name, _ in encoder.named_parameters()] if config.freeze_stages else []
    return {name for name in named if pattern.match(name)}


def _load_imagenet(model: SCXNN, config: MemberConfig) -> None:
    if config.encoder.startswith("tu-") and is_lite(config.encoder):
        theirs = imagenet_lite_state_dict(config.encoder)
        load_body(model.encoder, theirs, "the package")
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
            f"({str(error)[:120]}). Without a network: fetch the ImageNet "
            "weights of this encoder on another machine (torchvision's densenet121-a639ec97.pth "
            "for densenet121; timm's model.safetensors for a tu- encoder), and give the file as "
            "weights: FILE, or train with weights: none."
        ) from error
    model.encoder.load_state_dict(encoder.state_dict())
