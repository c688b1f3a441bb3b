"""Faster R-CNN sized for one large object, on torchvision's classes.

Ren et al. 2015 (arXiv 1506.01497) with a feature pyramid (Lin et al. 2017). Torchvision's COCO
defaults look for hundreds of objects of all sizes: 2,000 proposals a film, 512 regions in the
loss, anchors from 32 px on every level. A film holds one thorax that fills most of it. So here
the proposals come from the coarsest level alone, a few survive, and the box head sees the finer
levels: `python tools/benchmark.py` measures what that saves.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops import boxes as box_ops

from detect.settings import DetectorConfig
from detect.start_weights import TORCHVISION_BACKBONES, load_start_weights


class TimmFPN(nn.Module):
    """Any timm encoder with a feature pyramid on its levels of stride 8, 16 and 32."""

    def __init__(self, name: str, out_channels: int) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise ValueError(
                f"model.backbone must be one of {', '.join(TORCHVISION_BACKBONES)} or a timm "
                f"encoder. Got {name!r} instead; python -c 'import timm; print(timm.list_models())'"
                " lists them."
            )
        self.body = timm.create_model(name, features_only=True, out_indices=(2, 3, 4))
        info: Any = self.body.feature_info
        channels = info.channels()
        self.fpn = FeaturePyramidNetwork(channels, out_channels)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        levels: OrderedDict[str, Tensor] = OrderedDict(
            (str(i), level) for i, level in enumerate(self.body(x))
        )
        return self.fpn(levels)


class CoarseRPN(RegionProposalNetwork):
    """Proposes from the coarsest level alone: there is one object, and it is large."""

    def forward(
        self,
        images: Any,
        features: dict[str, Tensor],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        last = next(reversed(features))
        return super().forward(images, {last: features[last]}, targets)


class RefiningRoIHeads(RoIHeads):
    """In prediction the box head looks again at the boxes it gave, `refine` times.

    Iterative box regression (Gidaris & Komodakis 2015, arXiv 1505.01749): the second look pools
    from a box that already fits, so its correction is finer.
    """

    refine = 0

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training:
            for _ in range(self.refine):
                proposals = self._look_again(features, proposals, image_shapes)
        return super().forward(features, proposals, image_shapes, targets)

    def _look_again(
        self, features: dict[str, Tensor], proposals: list[Tensor], shapes: list[tuple[int, int]]
    ) -> list[Tensor]:
        pooled = self.box_head(self.box_roi_pool(features, proposals, shapes))
        logits, offsets = self.box_predictor(pooled)
        decoded = self.box_coder.decode(offsets, proposals)  # (R, classes, 4)
        best = logits[:, 1:].argmax(1) + 1  # 0 is background
        boxes = decoded[torch.arange(len(best), device=best.device), best]
        split = boxes.split([len(p) for p in proposals])
        return [box_ops.clip_boxes_to_image(b, s) for b, s in zip(split, shapes, strict=True)]


class ThoraxRCNN(FasterRCNN):
    """torchvision's Faster R-CNN whose frozen parts stay frozen in train mode."""

    frozen_batchnorm = False

    def train(self, mode: bool = True) -> ThoraxRCNN:
        super().train(mode)
        if mode and self.frozen_batchnorm:
            for module in self.backbone.body.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def build_detector(config: DetectorConfig) -> nn.Module:
    """The network of a configuration.

    Called like torchvision's detectors: in train mode `(images, targets) → losses`, in eval mode
    `(images) → [{boxes (N, 4) xyxy, scores (N,), labels (N,) from 1}]`, both in letterbox pixels.
    Raises ValueError for unknown names, ConnectionError where weights cannot be fetched,
    ImportError where the backend or a weights package is missing.
    """
    if config.backend == "detectron2":
        from detect.backends.detectron2 import build_detectron2

        return build_detectron2(config)
    backbone = _build_backbone(config)
    model = _assemble(config, backbone)
    load_start_weights(model, config.backbone, config.weights)
    freeze_stages(model, config.freeze_stages)
    model.frozen_batchnorm = config.frozen_batchnorm
    return model


def _build_backbone(config: DetectorConfig) -> nn.Module:
    name, channels = config.backbone, config.fpn_channels
    if name not in TORCHVISION_BACKBONES:
        return TimmFPN(name, channels)
    if name.startswith("mobilenet"):
        body = torchvision.models.mobilenet_v3_large(weights=None).features
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):
                # torchvision's 0.01 suits runs of many thousand steps: in a short one from scratch
                # the running statistics trail behind the weights, and evaluation sees another net
                module.momentum = 0.1
        # last block of stride 8, 16 and 32; the 320 variant drops the finest, as torchvision's does
        layers = (
            {"6": 40, "12": 112, "16": 960} if name == "mobilenet_v3" else {"12": 112, "16": 960}
        )
    else:
        body = torchvision.models.resnet50(weights=None)
        layers = {"layer2": 512, "layer3": 1024, "layer4": 2048}
    norm = nn.BatchNorm2d if name == "resnet50_v2" else None
    return BackboneWithFPN(
        body,
        {layer: str(i) for i, layer in enumerate(layers)},
        list(layers.values()),
        channels,
        extra_blocks=_NoExtraBlocks(),
        norm_layer=norm,
    )


class _NoExtraBlocks(torchvision.ops.feature_pyramid_network.ExtraFPNBlock):
    """torchvision adds a level of stride 64 when none is given; one thorax needs none."""

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        return results, names


def _assemble(config: DetectorConfig, backbone: Any) -> ThoraxRCNN:
    levels = 2 if config.backbone == "mobilenet_v3_320" else 3
    sizes = tuple(int(f * config.side) for f in config.anchor_sizes)
    maps = 1 if config.coarse_rpn else levels
    anchors = AnchorGenerator((sizes,) * maps, (tuple(config.anchor_aspects),) * maps)
    channels = backbone.out_channels
    rpn_depth = 2 if config.backbone == "resnet50_v2" else 1
    pool = MultiScaleRoIAlign([str(i) for i in range(levels)], config.roi_size, 2)
    model = ThoraxRCNN(
        backbone,
        min_size=config.side,
        max_size=config.side,
        image_mean=list(config.mean),
        image_std=list(config.std),
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=rpn_depth),
        rpn_pre_nms_top_n_train=config.rpn_pre_nms * 2,
        rpn_pre_nms_top_n_test=config.rpn_pre_nms,
        rpn_post_nms_top_n_train=config.proposals_train,
        rpn_post_nms_top_n_test=config.proposals_test,
        rpn_fg_iou_thresh=0.6,
        rpn_bg_iou_thresh=0.3,
        rpn_batch_size_per_image=64,
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * config.roi_size**2, config.head_channels),
        box_predictor=FastRCNNPredictor(config.head_channels, len(config.classes) + 1),
        box_score_thresh=0.01,
        box_nms_thresh=0.5,
        box_detections_per_img=4,
        box_batch_size_per_image=config.rois_per_film,
        box_positive_fraction=0.5,
        _skip_resize=True,  # films are letterboxed before they come here
    )
    if config.coarse_rpn:
        model.rpn.__class__ = CoarseRPN  # same state, one method differs
    model.roi_heads.__class__ = RefiningRoIHeads
    model.roi_heads.refine = config.refine
    return model


def freeze_stages(model: ThoraxRCNN, stages: int) -> None:
    """Take the gradients from the encoder's stem and first stages: they see edges, not lungs,
    and at the finest resolution they cost most of the training time."""
    children = [c for c in model.backbone.body.children() if any(True for _ in c.parameters())]
    if len(children) and hasattr(model.backbone.body, "blocks"):
        body = model.backbone.body
        stem = [getattr(body, n) for n in ("conv_stem", "bn1") if hasattr(body, n)]
        groups = [nn.ModuleList(stem), *body.blocks]
    else:
        groups = list(children)
    for group in groups[:stages]:
        group.requires_grad_(False)
