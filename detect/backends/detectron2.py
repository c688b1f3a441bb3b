"""The second backend: detectron2's Faster R-CNN behind the calling convention of torchvision's.

Training, evaluation, bundles and prediction never see which library answers them. The library is
imported inside the functions: this module can be read, and its message shown, without it.
Its `model_zoo` is never imported: that needs pkg_resources, gone since setuptools 81. So the
configuration is built in code.

Its own weights (`detectron2://ImageNetPretrained/MSRA/R-50.pkl`,
`detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl`) are
pickles: whoever wrote or swapped one can run anything on the reader's machine. They are never
opened here. `imagenet` and `coco` are torchvision's weights of the same networks instead, plain
tensors that are read with `weights_only` and renamed as detectron2's
tools/convert-torchvision-to-d2.py does.
"""

from __future__ import annotations

import importlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import detection as tv_detection

from cxr.workdir import log
from detect.settings import DetectorConfig
from detect.start_weights import fetch, load_matching

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

    Anchors, proposals and regions are counted as in `detect.model` (pyramid of stride 8, 16 and
    32, proposals from the coarsest level). `freeze_stages` is detectron2's FREEZE_AT: 1 the stem,
    2 the first residual stage too. Raises ValueError for a backbone that this backend lacks.
    """
    from detectron2.config import get_cfg

    if config.backbone not in DEPTHS:
        raise ValueError(
            "model.backbone must be one of " + ", ".join(DEPTHS) + " with backend "
            f"detectron2. Got {config.backbone!r} instead."
        )
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
    _set_proposals(cfg, config)
    _set_box_head(cfg, config)
    return cfg


def _set_proposals(cfg: Any, config: DetectorConfig) -> None:
    rpn, anchors = cfg.MODEL.RPN, cfg.MODEL.ANCHOR_GENERATOR
    anchors.SIZES = [[float(int(f * config.side)) for f in config.anchor_sizes]]
    anchors.ASPECT_RATIOS = [list(config.anchor_aspects)]
    rpn.IN_FEATURES = ["p5"] if config.coarse_rpn else ["p3", "p4", "p5"]
    rpn.IOU_THRESHOLDS = [0.3, 0.6]
    rpn.BATCH_SIZE_PER_IMAGE = 64
    rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST = 2 * config.rpn_pre_nms, config.rpn_pre_nms
    rpn.POST_NMS_TOPK_TRAIN = config.proposals_train
    rpn.POST_NMS_TOPK_TEST = config.proposals_test


def _set_box_head(cfg: Any, config: DetectorConfig) -> None:
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
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


def build_detectron2(config: DetectorConfig) -> Detectron2Adapter:
    """The network of a configuration with `backend: detectron2`, start weights loaded.

    Raises BackendMissingError without the library, ValueError for a backbone or weights it cannot
    take, ConnectionError where weights cannot be fetched.
    """
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
        """The box head's own boxes as proposals, as in `detect.model.RefiningRoIHeads`."""
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
    if len(labels) and not (int(labels.min()) >= 1 and int(labels.max()) <= classes):
        raise ValueError(
            f"labels of a target must be 1 to {classes} (0 is background). "
            f"Got {labels.tolist()} instead."
        )
    boxes = target["boxes"].to(device=device, dtype=torch.float32).reshape(-1, 4)
    return Instances(size_hw, gt_boxes=Boxes(boxes), gt_classes=labels - 1)


_ENCODER = "backbone.bottom_up."
_MSRA_FILES = (
    "detectron2's own weights (detectron2://ImageNetPretrained/MSRA/R-50.pkl and "
    "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl, which "
    "stand for https://dl.fbaipublicfiles.com/detectron2/…) are pickles"
)
_WHY_NO_PICKLE = (
    "a pickle can run any code when it is opened, so none is opened here. Where you trust its "
    'maker, convert it once, by hand: python -c "import pickle, torch; m = pickle.load(open('
    "'model.pkl', 'rb'), encoding='latin1')['model']; torch.save({k: torch.as_tensor(v) for k, v "
    "in m.items()}, 'model.pth')\". Then give that .pth with model.backbone resnet50_msra and, as "
    "it expects BGR of 0 to 255, mean [0.406, 0.456, 0.485] and std [0.003922, 0.003922, 0.003922]"
)


def load_detectron2_weights(adapter: nn.Module, backbone: str, weights: str) -> None:
    """Fill a Detectron2Adapter from coco, imagenet, none or a FILE (.safetensors or .pth).

    A FILE may be a bundle of ours, a checkpoint in detectron2's layout, or a ResNet or Faster
    R-CNN of torchvision. Tensors that do not fit (another number of classes or channels) are
    passed over; how many fitted is logged. Raises ValueError for what cannot be used,
    ConnectionError where weights cannot be fetched.
    """
    if weights == "none":
        return
    if weights in ("coco", "imagenet"):
        state = _torchvision_state(backbone, weights)
    else:
        state = read_checkpoint(weights)
    ready = {f"network.{k}": v for k, v in to_detectron2_names(state).items()}
    fitted = load_matching(adapter, ready)
    log.info(
        "%d of the network's %d tensors start from weights %s",
        fitted,
        len(adapter.state_dict()),
        weights,
    )


def _torchvision_state(backbone: str, weights: str) -> dict[str, Tensor]:
    if backbone == "resnet50_msra":
        raise ValueError(
            f"model.weights {weights} must not be asked for backbone resnet50_msra: {_MSRA_FILES}; "
            f"{_WHY_NO_PICKLE}. Or take backbone resnet50."
        )
    if weights == "coco" and backbone != "resnet50":
        raise ValueError(
            "model.weights coco exists for backbone resnet50 of the detectron2 "
            f"backend. Got backbone {backbone!r} instead: take imagenet."
        )
    if weights == "coco":
        choice: Any = tv_detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    else:
        choice = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"]
    return fetch(choice, "--model.weights FILE", f". ({_MSRA_FILES} and are not used.)")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a .pth of tensors alone; {"model": tensors},
    as detectron2 saves while training, is understood. Raises ValueError with the remedy."""
    path = Path(path)
    if path.suffix in (".pkl", ".pickle"):
        raise ValueError(
            f"model.weights must be .safetensors or .pth. Got {path.name}: {_WHY_NO_PICKLE}."
        )
    if not path.is_file():
        raise ValueError(
            "model.weights must be coco, imagenet, none or a file that exists. "
            f"Got {str(path)!r} instead."
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} must be a safetensors file. {error}") from error
    if path.suffix != ".pth":
        raise ValueError(f"model.weights must be .safetensors or .pth. Got {path.name} instead.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} must hold tensors alone; anything else is not opened, as it could run code. "
            "Save it anew: torch.save(model.state_dict(), 'model.pth')."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    tensors = (
        {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    )
    if not tensors:
        raise ValueError(f"{path} must hold tensors by name, or those under the key 'model'.")
    return tensors


def to_detectron2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a bundle of ours, of detectron2, or of a torchvision ResNet or Faster R-CNN, all
    under the names of detectron2's GeneralizedRCNN."""
    if any(k.startswith("backbone.body.") for k in state):
        return _from_torchvision_detector(state)
    if any(re.match(r"layer\d\.", k) for k in state):
        encoder = {k: v for k, v in state.items() if not k.startswith("fc.")}
        return {_ENCODER + _encoder_name(k): v for k, v in encoder.items()}
    return {k.removeprefix("network."): v for k, v in state.items()}


def _encoder_name(name: str) -> str:
    """A name of torchvision's ResNet as detectron2 has it."""
    if not name.startswith("layer"):
        name = f"stem.{name}"
    name = re.sub(r"layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def _from_torchvision_detector(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # torchvision names the pyramid's levels from 0, up to the stage of stride 32: there, res5
    found = [m for m in (re.match(r"backbone\.fpn\.inner_blocks\.(\d+)", k) for k in state) if m]
    first = 5 - max((int(m[1]) for m in found), default=3)
    renames = (
        (r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?", "lateral"),
        (r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?", "output"),
    )
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("backbone.body."):
            out[_ENCODER + _encoder_name(name.removeprefix("backbone.body."))] = tensor
        for pattern, role in renames:
            if match := re.match(pattern, name):
                level = first + int(match[1])
                out[f"backbone.fpn_{role}{level}{name[match.end() :]}"] = tensor
        # the RPN's last layers are left: its anchors are ordered otherwise there
        if match := re.match(r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)$", name):
            out[f"proposal_generator.rpn_head.conv.{match[1]}"] = tensor
        if match := re.match(r"roi_heads\.box_head\.fc([67])\.", name):
            out[f"roi_heads.box_head.fc{int(match[1]) - 5}.{name[match.end() :]}"] = tensor
        if name.startswith("roi_heads.box_predictor.cls_score."):
            out[name] = torch.cat([tensor[1:], tensor[:1]])  # background is first there, last here
        if name.startswith("roi_heads.box_predictor.bbox_pred."):
            out[name] = tensor[4:]  # the background's box, which is never used
    return out
