"""Trained networks: their safetensors files, each with all that is needed to use it rightly; and
all members of an ensemble over the same films, decoded and preprocessed once, batched.

ensemble = Ensemble.load("weights/ensemble_crops")
logits = ensemble.predict([film.pixels])  # (1, members, 3)

A single network of K classes may stand in the members' place: each class but normal becomes a
member that seeks it, so that classify.run and classify.audit take any network. From a pretrained
encoder and decoder `classify.models.backbones` starts:

    backbone: {name: unet_cbam_small, weights: runs/pretrain/pretrained.safetensors}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classify.members import (
    FAR_BELOW,
    NORMAL,
    OTHERS,
    TARGET,
    check_together,
    classes_of,
    member_files,
    normal_of,
    targets_of,
)
from classify.models.backbones import build_backbone, build_fusion
from classify.models.multitask import SCXNN, build_member
from classify.models.settings import (
    BackboneConfig,
    CXRNetConfig,
    FusionConfig,
    MemberConfig,
    NetworkConfig,
    UnetCbamConfig,
)
from classify.models.unets import UnetCbam, build_cxrnet
from classify.preprocess import PreprocessConfig, from_input, preprocess_all, to_input
from classify.saliency.hooks import bare_net, pooled_layers, rearranges, watching
from classify.saliency.maps import look, look_pooled, maps_of_all, saliency_maps
from classify.tasks.settings import SingleConfig
from cxr.boxes import Frame
from cxr.bundle import Bundle, bundle_kind, load_bundle, rebuilding, save_bundle
from cxr.cli import from_plain, to_plain
from cxr.engines import inferring, pick_device

Array = np.ndarray
KIND = "pretrained"


class Ensemble:
    """Trained members that share one preprocessing. Targets keep the order of their training.
    `members` maps each target to its network, `weights` to the SHA-256 of its file; `trained_on` is
    `crops` or `films`: what the members must be given."""

    def __init__(
        self,
        members: Mapping[str, nn.Module],
        settings: PreprocessConfig,
        device: str | torch.device = "cpu",
        weights: Mapping[str, str] | None = None,
        trained_on: str = "",
        precision: str = "fp32",
    ) -> None:
        if not members:
            raise ValueError("members must hold at least one. Got none.")
        self.settings, self.precision = settings, precision
        self.targets = tuple(members)
        self.weights = dict(weights or {})
        self.trained_on = trained_on
        self.exported: Any = None  # see `classify.exported.answer_by`
        self.foreign: dict[str, Any] = {}  # of a classifier trained elsewhere, see classify.members
        self.device = torch.device(device)
        self.members: dict[str, nn.Module] = {
            target: net.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for target, net in members.items()
        }

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", precision: str = "fp32") -> Ensemble:
        """All member bundles `TARGET.safetensors` of a folder; or the one bundle of a single
        network (classify.single), each class of which but normal becomes a member. Raises
        ValueError when there is none, or when they do not belong together; the message names the
        file."""
        files = member_files(folder)
        if len(files) == 1 and bundle_kind(files[0]) == "single":
            single = load_single(files[0])
            try:
                members = members_of(single.net, single.classes)
            except ValueError as error:
                raise ValueError(f"{files[0]}: {error}") from error
            weights = dict.fromkeys(members, single.sha256)
            about = (pick_device(device), weights, single.trained_on, precision)
            return cls(members, single.settings, *about)
        bundles = [load_bundle(f, "member") for f in files]
        with rebuilding(folder):
            bundles.sort(key=lambda b: b.meta["order"])
            check_together(folder, {Path(b.path): b.meta for b in bundles})
            own = [(member_of(bundle), targets_of(bundle.meta)) for bundle in bundles]
            if whole := one_network([net for net, _ in own]):
                own = [(whole, tuple(t for _, targets in own for t in targets))]
            nets: dict[str, nn.Module] = {}
            for net, targets in own:
                shared = len(targets) > 1
                nets |= {t: SharedMember(net, k) if shared else net for k, t in enumerate(targets)}
            meta = bundles[0].meta
            return cls(
                nets,
                PreprocessConfig.from_dict(meta["preprocessing"]),
                pick_device(device),
                {t: b.sha256 for b in bundles for t in targets_of(b.meta)},
                meta["trained_on"],
                precision,
            )

    def __len__(self) -> int:
        return len(self.targets)

    def member(self, target: str) -> nn.Module:
        """The network of one target; raises ValueError for a target that has none."""
        if target not in self.members:
            raise ValueError(f"target must be one of {', '.join(self.targets)}. Got {target!r}.")
        return self.members[target]

    def prepare(self, pixels: Sequence[Array]) -> tuple[Tensor, list[Frame]]:
        """N films or crops (H, W) float32 in [0, 1] to the input (N, 3, side, side) of every
        member, and the Frames that lead from it back to each film's or crop's pixels."""
        return prepare_films(pixels, self.settings, self.device)

    def predict(self, pixels: Sequence[Array]) -> Array:
        """N films or crops (H, W) float32 in [0, 1] to (N, members, 3) float32 logits in the order
        NORMAL, TARGET, OTHERS; one forward pass for each network."""
        if not len(pixels):
            return np.zeros((0, len(self), 3), np.float32)
        return self.predict_prepared(self.prepare(pixels)[0])

    @property
    def networks(self) -> list[nn.Module]:
        """The distinct networks behind the members: one that serves several members stands once."""
        return list(dict.fromkeys(map(_network_of, self.members.values())))

    @property
    def pools(self) -> bool:
        """Whether each network names the layers whose maps it pools, as `predict_pooled` needs."""
        return all(map(pooled_layers, self.networks))

    def predict_prepared(self, batch: Tensor) -> Array:
        """(N, members, 3) logits of what `prepare` gave."""
        if self.exported is not None:
            return self.exported.predict_prepared(self._pictures(batch))
        with inferring(self.device, self.precision):
            return self._arranged({net: net(batch) for net in self.networks})

    def predict_pooled(self, batch: Tensor) -> tuple[Array, Array]:
        """`predict_prepared`, and from the same forward passes what a guard knows films by (N, F)
        float32: of each network what `watching` sees, side by side."""
        pooled: list[Tensor] = []
        logits = {}
        with inferring(self.device, self.precision):
            for net in self.networks:
                with watching(net) as seen:
                    logits[net] = net(batch)
                pooled += seen
            return self._arranged(logits), torch.cat(pooled, dim=1).numpy()

    def look_pooled(self, batch: Tensor) -> tuple[list[tuple[Array, Array | None]], Array | None]:
        """Of each member logits (N, 3) and, where its head allows that from the same pass, the
        Grad-CAM of its target (N, h, w) ≥ 0; and what `predict_pooled` gives, where it can."""
        nets = [self.members[target] for target in self.targets]
        with inferring(self.device, self.precision):
            return look_pooled(nets, batch, TARGET)

    def look(self, batch: Tensor, method: str = "grad_cam") -> list[tuple[Array, Array]]:
        """Of each member logits (N, 3) and the map of its target (N, h, w) by a method of
        `classify.saliency`: in one forward pass if the head allows, and for all members
        that are one network."""
        if self.exported is not None and self.exported.draws and method == "grad_cam":
            return self.exported.look_pooled(self._pictures(batch))[0]
        return member_maps([self.members[target] for target in self.targets], batch, method)

    def _pictures(self, batch: Tensor) -> Array:
        """What exported networks take, (N, 1, side, side) in [0, 1]."""
        return from_input(batch, self.settings).cpu().numpy()

    def slow_maps(self, target: str, batch: Tensor) -> Array:
        """Grad-CAM of one member (N, h, w) ≥ 0 by a backward pass; without a layer by occlusion."""
        member, wanted = self.members[target], [TARGET] * len(batch)
        method = "grad_cam" if pooled_layers(member) else "occlusion"
        return saliency_maps(member, batch, wanted, method, closed_form=False)

    def _arranged(self, ran: Mapping[nn.Module, Tensor]) -> Array:
        """(N, members, 3) from the logits (N, K) of each network."""
        logits = []
        for member in self.members.values():
            found = ran[_network_of(member)]
            arranged = member.rearrange(found) if rearranges(member) else found
            logits.append(arranged.float().cpu())
        return torch.stack(logits, dim=1).numpy()


def one_network(nets: Sequence[nn.Module]) -> SCXNN | None:
    """Members that differ in their last layer alone as one network of all their targets, which
    answers for them in one pass; None where there is one, or they differ in more."""
    states, first = [net.state_dict() for net in nets], nets[0]
    alike = all(state.keys() == states[0].keys() for state in states)
    if len(nets) < 2 or not alike or not isinstance(first, SCXNN) or first.decoder is not None:
        return None
    heads = [name for name in states[0] if name.startswith("fc.")]
    for name in states[0].keys() - set(heads):
        if not all(torch.equal(state[name], states[0][name]) for state in states[1:]):
            return None
    both = {name: torch.cat([state[name] for state in states]) for name in heads}
    targets = len(both[heads[0]]) // first.classes
    whole = SCXNN(first.config, False, first.classes, targets)
    whole.load_state_dict({**states[0], **both})
    return whole.eval()


def member_maps(
    members: Sequence[nn.Module], batch: Tensor, method: str
) -> list[tuple[Array, Array]]:
    """`Ensemble.look` for some members."""
    found = look(members, batch, TARGET, method)
    left = [net for net, (_, planes) in zip(members, found, strict=True) if planes is None]
    made = iter(maps_of_all(left, batch, TARGET, method))
    return [(z, next(made) if planes is None else planes) for z, planes in found]


def _network_of(member: nn.Module) -> nn.Module:
    return bare_net(member, [TARGET])[0]


class StandIn(nn.Module):
    """A member that stands for another network, some of whose logits are its own."""

    net: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, h, w) to logits (N, 3): NORMAL, TARGET, OTHERS."""
        return self.rearrange(self.net(x))

    def rearrange(self, logits: Tensor) -> Tensor:
        """The network's logits (N, K) to the member's (N, 3)."""
        raise NotImplementedError

    @property
    def saliency_layer(self) -> nn.Module | None:
        """The network's own; None for one with several backbones."""
        return getattr(self.net, "saliency_layer", None)

    @property
    def saliency_layers(self) -> dict[str, nn.Module] | None:
        """Those of the backbones of a fusion net; None for another."""
        return getattr(self.net, "saliency_layers", None)


class SharedMember(StandIn):
    """The member of the target of number `place` of a network that answers for several, with three
    logits for each."""

    def __init__(self, net: nn.Module, place: int) -> None:
        super().__init__()
        self.net, self.first = net, 3 * place

    def rearrange(self, logits: Tensor) -> Tensor:
        """The network's logits (N, 3 × targets) to the member's (N, 3)."""
        return logits[:, self.first : self.first + 3]

    @property
    def bare_logits(self) -> tuple[nn.Module, dict[int, int]]:
        """The network, and which of its logits the member's are."""
        return self.net, {k: self.first + k for k in (NORMAL, TARGET, OTHERS)}


class SingleMember(StandIn):
    """A network (N, 3, h, w) → (N, K) as a member for its class `target`: (N, 3) logits. The
    softmax of the three is the network's own P(normal), P(target) and P(any other class). With two
    classes no other is left: its logit lies 30 below the lower one, a probability of at most 1e-13.
    Maps explain the network's own logit of the target."""

    def __init__(self, net: nn.Module, normal: int, target: int) -> None:
        super().__init__()
        self.net = net
        self.normal, self.target = normal, target

    def rearrange(self, logits: Tensor) -> Tensor:
        """The network's logits (N, K) to the member's (N, 3)."""
        rest = [k for k in range(logits.shape[1]) if k not in (self.normal, self.target)]
        lowest = logits.amin(1) - FAR_BELOW
        others = logits[:, rest].logsumexp(1) if rest else lowest
        return torch.stack([logits[:, self.normal], logits[:, self.target], others], dim=1)

    @property
    def bare_logits(self) -> tuple[nn.Module, dict[int, int]]:
        """The network, and which of its logits NORMAL and TARGET are."""
        return self.net, {NORMAL: self.normal, TARGET: self.target}


def members_of(net: nn.Module, classes: Sequence[str]) -> dict[str, SingleMember]:
    """A member for each of the network's `classes` but normal, in their order. Raises ValueError
    where normal is not among them: a member weighs its target against it."""
    normal = normal_of(classes)
    return {name: SingleMember(net, normal, k) for k, name in enumerate(classes) if k != normal}


def prepare_films(
    pixels: Sequence[Array], settings: PreprocessConfig, device: torch.device
) -> tuple[Tensor, list[Frame]]:
    """N films or crops (H, W) float32 in [0, 1] to a network's input (N, 3, side, side), and the
    Frames that lead from it back to each film's or crop's pixels."""
    images, frames = preprocess_all(pixels, settings)
    return to_input(torch.from_numpy(images).to(device), settings), frames


# --- bundles


@dataclass(frozen=True)
class Pretrained:
    """The network in evaluation mode on the CPU, what it expects, and all that was noted of it."""

    net: UnetCbam
    settings: PreprocessConfig
    sha256: str
    meta: dict[str, Any]


def save_pretrained(
    path: str | Path, net: UnetCbam, settings: PreprocessConfig, half: bool = True, **meta: Any
) -> Path:
    """Write the network with its configuration and preprocessing; `meta` goes along."""
    return save_bundle(
        path,
        KIND,
        dict(net.state_dict()),
        half=half,
        network=to_plain(net.config),
        preprocessing=settings.to_dict(),
        **meta,
    )


def load_pretrained(path: str | Path) -> Pretrained:
    """Read what `save_pretrained` wrote; raises FileNotFoundError or ValueError."""
    bundle = load_bundle(path, KIND)
    with rebuilding(path):
        net = UnetCbam(from_plain(UnetCbamConfig, bundle.meta["network"]))
        net.load_state_dict(bundle.tensors)
        settings = PreprocessConfig.from_dict(bundle.meta["preprocessing"])
    return Pretrained(net.eval(), settings, bundle.sha256, bundle.meta)


def member_of(bundle: Bundle) -> SCXNN:
    """The network of a member's bundle with its weights; raises ValueError."""
    known = {f.name for f in fields(MemberConfig)}
    with rebuilding(bundle.path):
        network = {k: v for k, v in bundle.meta["network"].items() if k in known}
        # nothing is fetched, and nothing is frozen: the weights are all in the bundle
        network |= {"weights": "none", "freeze_stages": 0, "frozen_batchnorm": False}
        decoder = bool(bundle.meta["decoder"])
        shape = (len(classes_of(bundle.meta)), len(targets_of(bundle.meta)))
        net = build_member(from_plain(MemberConfig, network), decoder, *shape)
        net.load_state_dict(bundle.tensors)
    return net


@dataclass(frozen=True)
class Single:
    """A trained network for films or crops: (N, 3, side, side) to (N, K) logits of `classes`."""

    net: nn.Module
    classes: tuple[str, ...]
    settings: PreprocessConfig
    trained_on: str
    sha256: str
    meta: dict[str, Any]


def build_net(config: NetworkConfig) -> nn.Module:
    """The network of a configuration with its initial weights."""
    if isinstance(config, BackboneConfig):
        return build_backbone(config)
    if isinstance(config, CXRNetConfig):
        return build_cxrnet(config)
    return build_fusion(config).to(memory_format=torch.channels_last)


def save_single(path: str | Path, net: nn.Module, config: SingleConfig, **meta: Any) -> Path:
    """Write a trained network; as fp16, unless that cannot hold one of its numbers. `meta` is put
    into the metadata: training, metrics, licence_note."""
    tensors = dict(net.state_dict())
    limit = torch.finfo(torch.float16).max
    half = all(t.abs().max() <= limit for t in tensors.values() if t.is_floating_point())
    return save_bundle(
        path,
        "single",
        tensors,
        half=half,
        family=config.kind,
        network=to_plain(config.network()),
        classes=list(config.classes),
        preprocessing=config.preprocess.to_dict(),
        trained_on="crops" if config.crops else "films",
        **meta,
    )


def load_single(path: str | Path) -> Single:
    """A trained network on the CPU in evaluation mode; raises FileNotFoundError or ValueError."""
    bundle = load_bundle(path, "single")
    kinds: dict[str, Any] = {
        "backbone": BackboneConfig,
        "fusion": FusionConfig,
        "cxrnet": CXRNetConfig,
    }
    # nothing is fetched, and nothing is frozen: the weights are all in the bundle
    free = {"weights": "none", "freeze_to": ""}
    with rebuilding(path):
        plain = {k: free.get(k, v) for k, v in bundle.meta["network"].items()}
        net = build_net(from_plain(kinds[bundle.meta["family"]], plain))
        net.load_state_dict(bundle.tensors)
        return Single(
            net.eval(),
            tuple(bundle.meta["classes"]),
            PreprocessConfig.from_dict(bundle.meta["preprocessing"]),
            bundle.meta["trained_on"],
            bundle.sha256,
            bundle.meta,
        )
