"""The networks that `classify.foreign` names: of torchxrayvision, timm and torchvision with a file
of weights, an ONNX file, or code of the user's own.

Files hold tensors: what would run code when it is read is refused.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classify.foreign import IMAGENET, ModelSpec
from classify.models.start_weights import load_body, read_state
from cxr.engines import onnx_session
from cxr.rules import require
from cxr.workdir import log, sha256_file

_UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_XRV = {"mean": (0.5,) * 3, "std": (1 / 2048,) * 3}  # [0, 1] becomes [-1024, 1024]


@dataclass(frozen=True, eq=False)
class Built:
    """A network, the SHA-256 of its weights, what its library knows of its settings, and what turns
    pictures (N, 1, side, side) in [0, 1] into its input, where that is code of its own."""

    net: nn.Module
    sha256: str
    known: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Tensor], Tensor] | None = None


class OnnxModule(nn.Module):
    """An ONNX file as a module without parameters: films (N, C, h, w) to its first output."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self.session = onnx_session(path)
        except Exception as error:  # ONNX Runtime has errors of its own
            raise ValueError(f"{path} must be an ONNX file. ONNX Runtime says: {error}") from error
        (given, *more), (found, *_) = self.session.get_inputs(), self.session.get_outputs()
        sizes = given.shape
        rule = f"{path} must take one input (N, C, h, w)"
        require(not more and len(sizes) == 4, rule, [i.shape for i in (given, *more)])
        films, self.channels, self.side = sizes[0], sizes[1], sizes[2]
        self.films = films if isinstance(films, int) else 0
        self.given, self.found = given.name, found.name
        self.dtype = np.float16 if "float16" in given.type else np.float32

    def forward(self, x: Tensor) -> Tensor:
        """A file made for N films is given so many at a time."""
        films = x.detach().cpu().numpy().astype(self.dtype)
        size = self.films or max(1, len(films))
        parts = []
        for start in range(0, len(films), size):
            part = films[start : start + size]
            lacking = size - len(part) if self.films else 0
            full = np.pad(part, ((0, lacking), (0, 0), (0, 0), (0, 0)), mode="edge")
            parts.append(self.session.run([self.found], {self.given: full})[0][: len(part)])
        return torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(x.device)


# --- each kind's network


def _of_onnx(spec: ModelSpec) -> Built:
    path = _existing(spec)
    net = OnnxModule(path)
    known: dict[str, Any] = {}
    if isinstance(net.channels, int):
        known["channels"] = net.channels
    known["preprocessing"] = dict(IMAGENET if net.channels != 1 else _UNIT)
    if isinstance(net.side, int):
        known["preprocessing"]["side"] = net.side
    return Built(net, _sha256_with_data(path), known)


def _sha256_with_data(path: Path) -> str:
    """Of an ONNX file, and of the files beside it that hold its weights (net.onnx.data)."""
    parts = [path, *sorted(p for p in path.parent.glob(f"{escape(path.name)}[._]*") if p.is_file())]
    digests = [sha256_file(part) for part in parts]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _of_torchvision(spec: ModelSpec) -> Built:
    import torchvision

    models = torchvision.models
    rule = "--model torchvision:NAME must name one of its classifiers"
    require(spec.name in models.list_models(module=models), rule, spec.name)

    def make(classes: int, _channels: int) -> nn.Module:
        return models.get_model(spec.name, weights=None, num_classes=classes)

    return _from_library(spec, make, {"channels": 3, "preprocessing": dict(IMAGENET)})


def _of_timm(spec: ModelSpec) -> Built:
    import timm

    require(timm.is_model(spec.name), "--model timm:NAME must be one of timm's", spec.name)

    def make(classes: int, channels: int) -> nn.Module:
        return timm.create_model(spec.name, num_classes=classes, in_chans=channels)

    about = timm.get_pretrained_cfg(spec.name.partition(".")[0])
    seen = {"mean": about.mean, "std": about.std, "side": about.input_size[-1]} if about else {}
    return _from_library(spec, make, {"preprocessing": {**IMAGENET, **seen}})


def _from_library(
    spec: ModelSpec, make: Callable[[int, int], nn.Module], known: dict[str, Any]
) -> Built:
    """The network with the file's weights. How many classes and channels it has, the file knows:
    its tensors are those that change with them."""
    path = _existing(spec)
    state = _tensors_of(_read(path))
    with torch.device("meta"):
        ours = {at: make(*at).state_dict() for at in ((11, 3), (13, 3), (11, 1))}

    def size_of(at: tuple[int, int], axis: int, usual: int) -> int:
        plain, other = ours[11, 3], ours[at]
        for name, tensor in plain.items():
            found = _tail(state, name)
            if tensor.shape != other[name].shape and found is not None and found.ndim > axis:
                return int(found.shape[axis])
        return usual

    classes, channels = size_of((13, 3), 0, 1000), size_of((11, 1), 1, 3)
    net = make(classes, channels)
    load_body(net, state, path.as_posix(), whole=True)
    return Built(net, sha256_file(path), {"channels": channels, **known})


def _tail(state: Mapping[str, Tensor], name: str) -> Tensor | None:
    """The tensor of that name, whatever stands before it in the file."""
    return next((t for n, t in state.items() if n == name or n.endswith(f".{name}")), None)


def _of_torchxrayvision(spec: ModelSpec) -> Built:
    try:
        with warnings.catch_warnings():  # on import it silences those of all others
            from torchxrayvision import models as theirs
            from torchxrayvision.utils import get_cache_dir
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name}: pip install -e '.[torchxrayvision]'") from error
    names = sorted(n for n in theirs.model_urls if n.startswith(("densenet", "resnet")))
    require(
        spec.name in names, f"--model torchxrayvision:NAME must be of {', '.join(names)}", spec.name
    )
    about = theirs.model_urls[spec.name]
    file = PurePosixPath(about["weights_url"]).name
    path = Path(spec.file) if spec.file else Path(get_cache_dir()) / file
    if not spec.file and path.with_suffix(".safetensors").is_file():
        path = path.with_suffix(".safetensors")
    if not path.is_file():
        fetch = f"from torchxrayvision.models import get_weights; get_weights({spec.name!r})"
        raise FileNotFoundError(
            f"{path}: no such weights. torchxrayvision keeps those of {spec.name} there. Where "
            f'there is a network: python -c "{fetch}". Else copy the file there, or name another: '
            f"--model torchxrayvision:{spec.name}@FILE"
        )
    labels = list(about["labels"])
    if spec.name.startswith("densenet"):
        net = _pooled(theirs.DenseNet(num_classes=len(labels), weights=None))
    else:
        import torchvision

        net = getattr(torchvision.models, spec.name.partition("-")[0])(num_classes=len(labels))
        net.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    try:
        found = _read(path, _xrv_classes(theirs))
    except ValueError as error:
        make = f"x.models.{'DenseNet' if spec.name.startswith('d') else 'ResNet'}"
        raise ValueError(
            f"{error} For torchxrayvision's own file: python -c \"import torchxrayvision as x, "
            f"safetensors.torch as s; s.save_file({make}(weights={spec.name!r}).state_dict(), "
            f'{path.with_suffix(".safetensors").as_posix()!r})", which is found there from then on.'
        ) from error
    load_body(net, _tensors_of(found), path.as_posix(), whole=True)
    bars = zip(labels, about.get("op_threshs", ()), strict=False)
    known = {
        "findings": labels,
        "answers": "sigmoid",
        "words": {"Effusion": "pleural effusion"} if "Effusion" in labels else {},
        "thresholds": {name: float(bar) for name, bar in bars if name and 0 < bar < 1},
        "channels": 1,
        "preprocessing": {**_XRV, "side": about["input_resolution"]},
    }
    return Built(net, sha256_file(path), known)


def _pooled(dense: Any) -> nn.Module:
    """torchxrayvision's DenseNet with its ReLU and its pooling as modules, so that the layer whose
    maps are pooled is one: Grad-CAM of all findings comes from one forward pass then."""
    parts = {"features": dense.features, "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1)}
    net = nn.Sequential()
    for name, part in {**parts, "flat": nn.Flatten(), "classifier": dense.classifier}.items():
        net.add_module(name, part)
    return net


def _xrv_classes(theirs: Any) -> list[Any]:
    """What a whole network of torchxrayvision, as its files hold one, is made of."""
    from torchvision.models import densenet

    names = ("DenseNet", "_DenseLayer", "_DenseBlock", "_Transition")
    parts = [nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d]
    own = [getattr(module, name) for module in (theirs, densenet) for name in names]
    return [*parts, nn.Linear, *own]


def _of_python(spec: ModelSpec) -> Built:
    module, _, name = spec.name.partition(":")
    log.info("--model %s runs code: %s() of the module %s", spec, name, module)
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--model {spec}: {error}. The module must lie in this folder or on PYTHONPATH."
        ) from error
    made = make()
    net, prepare = made if isinstance(made, tuple) else (made, None)
    if not isinstance(net, nn.Module):
        raise ValueError(f"--model {spec} must give an nn.Module. Got {type(net).__name__}.")
    digest = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    known: dict[str, Any] = {"preprocessing": dict(IMAGENET)}
    stem = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    if stem is not None and stem.in_channels == 1:
        known["channels"] = 1
    if callable(prepare):
        known["preprocessing"] = dict(_UNIT)
    elif prepare is not None:
        known["preprocessing"] |= dict(prepare)
    return Built(net, digest.hexdigest(), known, prepare if callable(prepare) else None)


def build(spec: ModelSpec) -> Built:
    """The network that is named; raises OSError, ImportError or ValueError."""
    return _BUILDERS[spec.kind](spec)


_BUILDERS = {
    "torchxrayvision": _of_torchxrayvision,
    "timm": _of_timm,
    "torchvision": _of_torchvision,
    "onnx": _of_onnx,
    "python": _of_python,
}

# --- files of weights


def _existing(spec: ModelSpec) -> Path:
    path = Path(spec.file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. It is named by --model {spec}.")
    return path


def _read(path: Path, classes: list[Any] | None = None) -> Any:
    """What a file holds: tensors, or objects of these classes, and nothing else; raises ValueError
    for anything that would have to be trusted."""
    try:
        with torch.serialization.safe_globals(classes or []):
            return read_state(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError) as error:
        why = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
        why = why.partition("\n")[0].partition(" Please use")[0]
        raise ValueError(
            f"{path} must hold tensors by name and nothing that runs code. {why[:200]} If you "
            "trust it, save its state_dict() once as safetensors: safetensors.torch.save_file("
            f"net.state_dict(), {path.with_suffix('.safetensors').name!r})"
        ) from error
    except Exception as error:  # safetensors has an error of its own
        raise ValueError(f"{path} must be a file of weights. {error}") from error


def _tensors_of(found: Any) -> dict[str, Tensor]:
    """Tensors by name, of a network that was saved whole or of a training's checkpoint too."""
    if isinstance(found, nn.Module):
        return dict(_walk(found, ""))
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise ValueError(f"weights must hold tensors by name. Got {type(found).__name__}.")
    return {str(k): v for k, v in found.items() if isinstance(v, Tensor)}


def _walk(module: nn.Module, before: str) -> Any:
    """Its tensors by name, without asking it: its methods are not trusted either."""
    known = vars(module)
    for kind in ("_parameters", "_buffers"):
        yield from ((before + k, t) for k, t in known.get(kind, {}).items() if t is not None)
    for name, child in known.get("_modules", {}).items():
        if child is not None:
            yield from _walk(child, f"{before}{name}.")
