"""Networks that were trained elsewhere, as members: built from what `classify.members` names, which
is one of torchxrayvision, of timm or torchvision with a file of weights, an ONNX file, or code of
the user's own.

Each output that has a name becomes a member, and so everything that asks members (runs, audits, the
screener) can ask them.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classify.ensemble import Ensemble, SingleMember, StandIn
from classify.members import FAR_BELOW, IMAGENET, TARGET, ForeignConfig, ModelSpec
from classify.models.backbones import load_body, read_trusted, tensors_of
from classify.preprocess import PreprocessConfig, to_input
from classify.saliency.hooks import left_as_found
from cxr.cli import to_plain
from cxr.engines import onnx_session, pick_device
from cxr.rules import require
from cxr.workdir import log, sha256_file

_UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_XRV = {"mean": (0.5,) * 3, "std": (1 / 2048,) * 3}  # [0, 1] becomes [-1024, 1024]
_SURE = 1e-6  # probabilities are taken as no surer than that: their logit must be finite


def open_foreign(
    spec: ModelSpec, config: ForeignConfig, device: str = "auto", precision: str = "fp32"
) -> Ensemble:
    """The classifier as an ensemble of a member for each finding; its `foreign` says which it is.
    Raises OSError, ImportError or ValueError for what is not there or does not fit."""
    built = _BUILDERS[spec.kind](spec)
    config = config.filled_from(built.known)
    settings = config.settings_from({})
    net = ForeignNet(built.net.eval(), config, built.prepare)
    config = config.checked(spec, net.probe(settings))
    net.find_layer(settings, config.layer)
    net.answers = config.answers
    members: dict[str, nn.Module] = {}
    places = list(config.targets)
    bars = {n: config.thresholds.get(config.findings[n], 0.5) for n in places}
    for place, target in config.targets.items():
        if config.answers == "sigmoid":
            members[target] = SigmoidMember(net, place, bars)
        elif config.normal is not None:
            members[target] = SingleMember(net, config.normal, place)
        else:
            members[target] = ClassMember(net, place)
    weights = dict.fromkeys(members, built.sha256)
    ensemble = Ensemble(members, settings, pick_device(device), weights, "", precision)
    plain = {**to_plain(config), "preprocessing": settings.to_dict(), "layer": net.layer_name}
    ensemble.foreign = {"spec": str(spec), "sha256": built.sha256, **plain}
    return ensemble


class ForeignNet(nn.Module):
    """Somebody's network behind the project's input: (N, 3, side, side) to logits (N, K)."""

    looked_through = True  # the cascade of random weights goes by the parts of what it holds

    def __init__(
        self,
        net: nn.Module,
        config: ForeignConfig,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.prepare = net, prepare
        self.channels, self.gives = config.channels or 3, config.gives
        self.answers, self.layer_name = "", ""
        self._layer: list[nn.Module] = []  # in a list: it is a part of `net` already

    @property
    def saliency_layer(self) -> nn.Module | None:
        """The layer that maps are drawn of; None for a network that only answers."""
        return self._layer[0] if self._layer else None

    def forward(self, x: Tensor) -> Tensor:
        """Logits; of a network that gives probabilities those that they are of."""
        out = self._raw(x)
        if self.gives == "logits":
            return out
        out = out.clamp(_SURE, 1 - _SURE)
        return out.logit() if self.answers == "sigmoid" else out.log()

    def _raw(self, x: Tensor) -> Tensor:
        if self.prepare is not None:
            x = self.prepare(x[:, :1])
        elif self.channels == 1:
            x = x[:, :1]
        out = self.net(x)
        if isinstance(out, tuple | list):
            out = out[0]
        elif isinstance(out, Mapping):
            out = out.get("logits", next(iter(out.values())))
        return out

    def probe(self, settings: PreprocessConfig) -> int:
        """The number of its outputs; raises ValueError for what is no classifier, or gives
        probabilities and is not said to."""
        side = settings.side
        with left_as_found(self), torch.inference_mode():
            try:
                out = self._raw(_noise(settings))
            except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(
                    f"the model must take films of {self.channels} × {side} × {side}. It fails: "
                    f"{str(error)[:300]}. See channels and preprocessing of --model_settings."
                ) from error
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the model must give logits (N, K). Got {got} for N = 2.")
        require(bool(out.isfinite().all()), "the model must give finite logits", out.tolist())
        shares = bool((out >= 0).all() and (out <= 1).all())
        if self.gives == "logits" and shares and out.shape[1] > 1:
            if bool(((out.sum(1) - 1).abs() < 1e-4).all()):
                raise ValueError(
                    "the model gives probabilities that add up to 1, and not logits: give the "
                    "layer before its softmax, or write `gives: probabilities`."
                )
            log.warning("all outputs lie in [0, 1]: if they are probabilities, say so in `gives`")
        return int(out.shape[1])

    def find_layer(self, settings: PreprocessConfig, name: str = "") -> None:
        """Take the layer of that name, or the last one that gives maps (N, C, h, w); raises
        ValueError for a name that is none."""
        inside = {n: m for n, m in self.net.named_modules() if n}
        ran = _run_watched(self, settings)
        if name:
            layer = inside.get(name)
            maps = [n for n, m in inside.items() if ran.get(m, (0, ()))[1]]
            if layer not in (inside[n] for n in maps):
                last = ", ".join(maps[-8:]) or "none"
                raise ValueError(
                    f"layer must be one that gives maps (N, C, h, w). Got {name!r}; the last such "
                    f"are {last}."
                )
            self._layer, self.layer_name = [layer], name  # type: ignore[list-item]
            return
        with_maps = [m for m, (_, square) in ran.items() if square]
        if not with_maps:
            return
        layer = with_maps[-1]
        owners = [m for m in ran if any(True for _ in m.parameters(recurse=False))]
        order = list(ran)
        behind = [m for m in owners if order.index(m) > order.index(layer)]
        if 2 * len(behind) > len(owners):  # as in a transformer, whose only maps are its first
            return
        self._layer = [layer]
        self.layer_name = next(n for n, m in inside.items() if m is layer)


# of attention: what they give may be as square as maps are
_NO_MAPS = (nn.Dropout, nn.Softmax, nn.Identity)


def _run_watched(net: ForeignNet, settings: PreprocessConfig) -> dict[nn.Module, tuple[int, bool]]:
    """Of each part that ran, in the order in which they ended: how often it ran, and whether that
    was once and gave maps (N, C, h, w) as square as the film."""
    ran: dict[nn.Module, tuple[int, bool]] = {}

    def note(module: nn.Module, _inputs: Any, out: Any) -> None:
        maps = isinstance(out, Tensor) and out.ndim == 4 and not isinstance(module, _NO_MAPS)
        square = maps and len(out) == 2 and out.shape[2] == out.shape[3] > 1
        times = ran.pop(module, (0, False))[0] + 1
        ran[module] = (times, square and times == 1)

    with left_as_found(net), torch.inference_mode():
        for name, module in net.net.named_modules():
            if name:
                module.register_forward_hook(note)
        net(_noise(settings))
    return ran


def _noise(settings: PreprocessConfig) -> Tensor:
    """Two pictures as the project prepares them."""
    shape = (2, 1, settings.side, settings.side)
    return to_input(torch.rand(shape, generator=torch.Generator().manual_seed(0)), settings)


class _Finding(StandIn):
    """A member for one output of a network; maps explain its logit."""

    def __init__(self, net: nn.Module, place: int) -> None:
        super().__init__()
        self.net, self.place = net, place

    @property
    def bare_logits(self) -> tuple[nn.Module, dict[int, int]]:
        """The network, and its logit of the finding."""
        return self.net, {TARGET: self.place}


class SigmoidMember(_Finding):
    """A member for one finding of a network that asks each finding by itself.

    Its P(target) is the network's own, moved so that 0.5 is the finding's threshold (`bars`: output
    → threshold, of all findings); what is left is shared between normal and others by the strongest
    of the other findings, so that the target has the largest share where the network says it and
    nowhere else.
    """

    def __init__(self, net: nn.Module, place: int, bars: Mapping[int, float]) -> None:
        super().__init__(net, place)
        self.shifts = {n: math.log(bar / (1 - bar)) for n, bar in bars.items()}

    def rearrange(self, logits: Tensor) -> Tensor:
        """The network's logits (N, K) to the member's (N, 3)."""
        moved = {n: logits[:, n] - shift for n, shift in self.shifts.items()}
        target = moved.pop(self.place)
        rest = [*moved.values()] or [torch.full_like(target, -FAR_BELOW)]
        strongest = torch.stack(rest).amax(0)
        # below its threshold the target must not win by what is left being halved: the larger half
        # of it is larger than P(target), by a little more than rounding
        below = target.clamp(max=-_SURE)
        apart = torch.maximum(strongest.abs(), 0.1 + below - torch.log(-torch.expm1(below)))
        parted = torch.where(strongest < 0, -apart, apart)
        strongest = torch.where(target < 0, parted, strongest)
        # e^normal + e^others = 1, so that the softmax of the three has the sigmoid as P(target)
        return torch.stack([-F.softplus(strongest), target, -F.softplus(-strongest)], dim=1)


class ClassMember(_Finding):
    """A member for one class of a network that has none for normal: all others together are others,
    and normal lies far below."""

    def rearrange(self, logits: Tensor) -> Tensor:
        """The network's logits (N, K) to the member's (N, 3)."""
        rest = [k for k in range(logits.shape[1]) if k != self.place]
        others, lowest = logits[:, rest].logsumexp(1), logits.amin(1) - FAR_BELOW
        return torch.stack([lowest, logits[:, self.place], others], dim=1)


# --- each kind's network


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


def _existing(spec: ModelSpec) -> Path:
    path = Path(spec.file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. It is named by --model {spec}.")
    return path


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
    first, *others = [sha256_file(part) for part in parts]
    return hashlib.sha256("".join([first, *others]).encode()).hexdigest() if others else first


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
    state = tensors_of(read_trusted(path))
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
        found = read_trusted(path, _xrv_classes(theirs))
    except ValueError as error:
        make = f"x.models.{'DenseNet' if spec.name.startswith('d') else 'ResNet'}"
        raise ValueError(
            f"{error} For torchxrayvision's own file: python -c \"import torchxrayvision as x, "
            f"safetensors.torch as s; s.save_file({make}(weights={spec.name!r}).state_dict(), "
            f'{path.with_suffix(".safetensors").as_posix()!r})", which is found there from then on.'
        ) from error
    load_body(net, tensors_of(found), path.as_posix(), whole=True)
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


_BUILDERS = {
    "torchxrayvision": _of_torchxrayvision,
    "timm": _of_timm,
    "torchvision": _of_torchvision,
    "onnx": _of_onnx,
    "python": _of_python,
}
