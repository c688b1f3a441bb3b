"""Networks that were trained elsewhere, as members: built from what `classify.foreign` names.

Each output that has a name becomes a member, and so everything that asks members (runs, audits, the
screener) can ask them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classify.ensemble import Ensemble, SingleMember, StandIn
from classify.foreign import ForeignConfig, ModelSpec
from classify.labels import FAR_BELOW, TARGET
from classify.models.foreign_nets import build
from classify.preprocess import PreprocessConfig, to_input
from classify.saliency.hooks import left_as_found
from cxr.cli import to_plain
from cxr.engines import pick_device
from cxr.rules import require
from cxr.workdir import log as say

_SURE = 1e-6  # probabilities are taken as no surer than that: their logit must be finite


def open_foreign(
    spec: ModelSpec, config: ForeignConfig, device: str = "auto", precision: str = "fp32"
) -> Ensemble:
    """The classifier as an ensemble of a member for each finding; its `foreign` says which it is.

    Raises OSError, ImportError or ValueError for what is not there or does not fit.
    """
    built = build(spec)
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
            say.warning("all outputs lie in [0, 1]: if they are probabilities, say so in `gives`")
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
        square = isinstance(out, Tensor) and out.ndim == 4 and len(out) == 2
        square = square and not isinstance(module, _NO_MAPS)
        square = square and out.shape[2] == out.shape[3] > 1
        times = ran.pop(module, (0, False))[0] + 1
        ran[module] = (times, bool(square) and times == 1)

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


class SigmoidMember(StandIn):
    """A member for one finding of a network that asks each finding by itself.

    Its P(target) is the network's own, moved so that 0.5 is the finding's threshold; what is left
    is shared between normal and others by the strongest of the other findings, so that the target
    has the largest share where the network says it and nowhere else. Maps explain the finding's
    logit.
    """

    def __init__(self, net: nn.Module, place: int, bars: Mapping[int, float]) -> None:
        """`bars`: output → threshold, of all findings."""
        super().__init__()
        self.net, self.place = net, place
        self.shifts = {n: log(bar / (1 - bar)) for n, bar in bars.items()}

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

    @property
    def bare_logits(self) -> tuple[nn.Module, dict[int, int]]:
        """The network, and its logit of the finding."""
        return self.net, {TARGET: self.place}


class ClassMember(StandIn):
    """A member for one class of a network that has none for normal: all others together are others,
    and normal lies far below."""

    def __init__(self, net: nn.Module, place: int) -> None:
        super().__init__()
        self.net, self.place = net, place

    def rearrange(self, logits: Tensor) -> Tensor:
        """The network's logits (N, K) to the member's (N, 3)."""
        rest = [k for k in range(logits.shape[1]) if k != self.place]
        others, lowest = logits[:, rest].logsumexp(1), logits.amin(1) - FAR_BELOW
        return torch.stack([lowest, logits[:, self.place], others], dim=1)

    @property
    def bare_logits(self) -> tuple[nn.Module, dict[int, int]]:
        """The network, and its logit of the class."""
        return self.net, {TARGET: self.place}
