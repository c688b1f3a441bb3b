"""Faster R-CNN sized for one large object, on torchvision's classes.

Ren et al. 2015 (arXiv 1506.01497) with a feature pyramid (Lin et al. 2017). Torchvision's COCO
defaults look for hundreds of objects of all sizes: 2,000 proposals a film, 512 regions in the
loss, anchors from 32 px on every level. A film holds one thorax that fills most of it. So here
the proposals come from the coarsest level alone, a few survive, and the box head sees the finer
levels: `python tools/benchmark.py` measures what that saves.

The second backend is detectron2's Faster R-CNN, called like torchvision's: training, evaluation,
bundles and prediction never see which library answers them. It is imported where it is asked for,
and its `model_zoo` never: that needs pkg_resources, gone since setuptools 81. So the configuration
is built in code.
"""

from __future__ import annotations

import importlib
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

from cxr.rules import require
from detect.settings import DetectorConfig
from detect.start_weights import (
    TORCHVISION_BACKBONES,
    load_detectron2_weights,
    load_start_weights,
)

DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet50_msra": 50}

_NEEDED = (
    "detectron2",
    "detectron2.config",
    "detectron2.modeling",
    "detectron2.structures",
    "detectron2.utils.events",
)
_HOW_TO_INSTALL = (
    "It is installed from its own repository, with torch already in the environment and a C++ "
    "compiler at hand:\n"
    "    pip install setuptools wheel ninja\n"
    "    pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git'\n"
    "The package called detectron2 on PyPI is another project. Or take model.backend torchvision."
)


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
    """In prediction the box head looks again at the boxes it gave, `refine` times. Iterative box
    regression (Gidaris & Komodakis 2015, arXiv 1505.01749): the second look pools from a box that
    already fits, so its correction is finer."""

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
    """The network of a configuration. Called like torchvision's detectors: in train mode `(images,
    targets) → losses`, in eval mode `(images) → [{boxes (N, 4) xyxy, scores (N,), labels (N,) from
    1}]`, both in letterbox pixels. Raises ValueError for unknown names, ConnectionError where
    weights cannot be fetched, ImportError where the backend or a weights package is missing."""
    if config.backend == "detectron2":
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


class BackendMissingError(ImportError):
    """The library of a backend is missing, is another project of its name, or does not load."""


def check_library() -> None:
    """Raises BackendMissingError, with the commands that help, where detectron2 cannot be used."""
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            # its compiled part is bound to the torch it was built with
            what = (
                f"the installed detectron2 does not load ({error}). Was torch changed since it "
                "was built? Uninstall it and build it anew."
            )
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                what = f"the installed package detectron2 has no {name}: it is another project."
            if name == "detectron2":
                what = "the library detectron2 is not installed."
            raise BackendMissingError(
                f"model.backend detectron2 cannot be used: {what} {_HOW_TO_INSTALL}"
            ) from error


def build_config(config: DetectorConfig) -> Any:
    """detectron2's CfgNode for our settings: its R-CNN with a feature pyramid, one large object.
    Anchors, proposals and regions are counted as for torchvision (pyramid of stride 8, 16 and 32,
    proposals from the coarsest level). `freeze_stages` is detectron2's FREEZE_AT: 1 the stem, 2 the
    first residual stage too. Raises ValueError for a backbone that this backend lacks."""
    from detectron2.config import get_cfg

    rule = f"model.backbone must be one of {', '.join(DEPTHS)} with backend detectron2"
    require(config.backbone in DEPTHS, rule, config.backbone)
    cfg = get_cfg()
    cfg.VERSION = 2
    cfg.INPUT.MIN_SIZE_TEST = 0  # films are letterboxed before they come here
    model = cfg.MODEL
    model.DEVICE = "cpu"  # whoever asked for the network moves it
    model.PIXEL_MEAN, model.PIXEL_STD = list(config.mean), list(config.std)
    model.BACKBONE.NAME = "build_resnet_fpn_backbone"
    model.BACKBONE.FREEZE_AT = config.freeze_stages
    resnet = model.RESNETS
    resnet.DEPTH = DEPTHS[config.backbone]
    resnet.RES2_OUT_CHANNELS = 64 if resnet.DEPTH < 50 else 256
    resnet.OUT_FEATURES = ["res3", "res4", "res5"]
    resnet.STRIDE_IN_1X1 = config.backbone.endswith("_msra")  # torchvision strides in the 3×3
    resnet.NORM = "FrozenBN" if config.frozen_batchnorm else "BN"
    model.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    model.FPN.OUT_CHANNELS = config.fpn_channels
    rpn, anchors = model.RPN, model.ANCHOR_GENERATOR
    anchors.SIZES = [[float(int(f * config.side)) for f in config.anchor_sizes]]
    anchors.ASPECT_RATIOS = [list(config.anchor_aspects)]
    rpn.IN_FEATURES = ["p5"] if config.coarse_rpn else ["p3", "p4", "p5"]
    rpn.IOU_THRESHOLDS = [0.3, 0.6]
    rpn.BATCH_SIZE_PER_IMAGE = 64
    rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST = 2 * config.rpn_pre_nms, config.rpn_pre_nms
    rpn.POST_NMS_TOPK_TRAIN = config.proposals_train
    rpn.POST_NMS_TOPK_TEST = config.proposals_test
    heads, box = model.ROI_HEADS, model.ROI_BOX_HEAD
    heads.NAME = "StandardROIHeads"
    heads.NUM_CLASSES = len(config.classes)
    heads.IN_FEATURES = ["p3", "p4", "p5"]
    heads.BATCH_SIZE_PER_IMAGE = config.rois_per_film
    heads.POSITIVE_FRACTION = 0.5
    heads.SCORE_THRESH_TEST = 0.01
    heads.NMS_THRESH_TEST = 0.5
    box.NAME = "FastRCNNConvFCHead"
    box.NUM_FC = 2
    box.FC_DIM = config.head_channels
    box.POOLER_RESOLUTION = config.roi_size
    box.POOLER_SAMPLING_RATIO = 2  # its default samples every cell: dear for a film-sized region
    cfg.TEST.DETECTIONS_PER_IMAGE = 4
    return cfg


def build_detectron2(config: DetectorConfig) -> Detectron2Adapter:
    """The network of a configuration with `backend: detectron2`, start weights loaded. Raises
    BackendMissingError without the library, ValueError for a backbone or weights it cannot take,
    ConnectionError where weights cannot be fetched."""
    check_library()
    cfg = build_config(config)
    from detectron2.modeling import build_model

    adapter = Detectron2Adapter(build_model(cfg), len(config.classes), config.refine)
    load_detectron2_weights(adapter, config.backbone, config.weights)
    return adapter


class Detectron2Adapter(nn.Module):
    """detectron2's GeneralizedRCNN, called like torchvision's detectors.

    In train mode `(images, targets) → losses`, in eval mode `(images) → [{boxes, scores,
    labels}]`, best first. Images are float (3, h, w) in [0, 1], boxes (N, 4) xyxy in their pixels.
    torchvision counts classes from 1 with background 0, detectron2 from 0 with background last:
    labels are torchvision's here. Films are grey, their channels equal, so the order of channels
    (RGB, or BGR in detectron2's own weights) shows in the mean and std alone: both are given in
    the order of the weights. Sizes are left as they are: films come letterboxed.
    """

    network: Any  # GeneralizedRCNN; its parts are called one by one

    def __init__(self, network: nn.Module, classes: int, refine: int = 0) -> None:
        super().__init__()
        self.network = network
        self.classes = classes
        self.refine = refine

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in train mode, detections in eval mode; raises ValueError for missing targets
        and for labels that are not 1 … number of classes."""
        batch = self.network.preprocess_image([{"image": image} for image in images])
        # float: under mixed precision detectron2 would round regions to half pixels
        features = {k: v.float() for k, v in self.network.backbone(batch.tensor).items()}
        if self.training:
            return self._losses(batch, features, targets)
        proposals, _ = self.network.proposal_generator(batch, features, None)
        for _ in range(self.refine):
            proposals = self._look_again(features, proposals)
        found, _ = self.network.roi_heads(batch, features, proposals, None)
        return [
            {"boxes": f.pred_boxes.tensor, "scores": f.scores, "labels": f.pred_classes + 1}
            for f in found
        ]

    def _losses(
        self, batch: Any, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None
    ) -> dict[str, Tensor]:
        from detectron2.utils.events import EventStorage

        if targets is None:
            raise ValueError("targets must be given in train mode. Got None instead.")
        truth = [
            to_instances(target, size_hw, self.classes, batch.tensor.device)
            for target, size_hw in zip(targets, batch.image_sizes, strict=True)
        ]
        with EventStorage(0):  # detectron2 insists on writing its counts somewhere
            proposals, rpn_losses = self.network.proposal_generator(batch, features, truth)
            _, box_losses = self.network.roi_heads(batch, features, proposals, truth)
        return {**rpn_losses, **box_losses}

    def _look_again(self, features: dict[str, Tensor], proposals: list[Any]) -> list[Any]:
        """The box head's own boxes as proposals, as in `RefiningRoIHeads`."""
        from detectron2.structures import Boxes, Instances

        heads = self.network.roi_heads
        levels = [features[name] for name in heads.box_in_features]
        pooled = heads.box_pooler(levels, [p.proposal_boxes for p in proposals])
        logits, offsets = heads.box_predictor(heads.box_head(pooled))
        best = logits[:, :-1].argmax(1).split([len(p) for p in proposals])  # the last: background
        decoded = heads.box_predictor.predict_boxes((logits, offsets), proposals)
        out = []
        for proposal, boxes, choice in zip(proposals, decoded, best, strict=True):
            each = boxes.view(len(choice), -1, 4)  # (R, classes, 4)
            chosen = Boxes(each[torch.arange(len(choice), device=each.device), choice])
            chosen.clip(proposal.image_size)
            out.append(Instances(proposal.image_size, proposal_boxes=chosen))
        return out


def to_instances(
    target: dict[str, Tensor], size_hw: tuple[int, int], classes: int, device: torch.device
) -> Any:
    """torchvision's target (boxes (N, 4) xyxy, labels (N,) from 1; N may be 0) as Instances."""
    from detectron2.structures import Boxes, Instances

    labels = target["labels"].to(device=device, dtype=torch.int64).reshape(-1)
    rule = f"labels of a target must be 1 to {classes} (0 is background)"
    require(bool(((labels >= 1) & (labels <= classes)).all()), rule, labels.tolist())
    boxes = target["boxes"].to(device=device, dtype=torch.float32).reshape(-1, 4)
    return Instances(size_hw, gt_boxes=Boxes(boxes), gt_classes=labels - 1)
