"""Weights made random stage by stage: a map that stays the same does not show what was learnt.

The cascading randomisation of Adebayo et al. 2018 (arXiv 1810.03292): from the head to the stem
more and more of a network is replaced by random numbers, and its maps are compared with those of
the trained one. They must lose their likeness.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import nn

from classify.audit.likeness import Likeness, likeness
from classify.models.multitask import STAGES
from classify.saliency.hooks import rearranges

HOWS = ("reset", "normal")
_NO_WAY_TO_LOGITS = ("decoder", "restorer")  # SCXNN's second task: its weights move no map
# (another network names such parts itself, as `no_way_to_logits`)


class Stage(NamedTuple):
    """A part of a network that is made random at once. `modules` are names of the modules that
    own parameters or BatchNorm statistics."""

    name: str
    modules: tuple[str, ...]


class StageLikeness(NamedTuple):
    """Maps with everything from the head down to `stage` random, against the trained net's.

    Means over films and seeds; None where no pair of maps has a value. `empty` is the number of
    pairs left out: one of the maps is the same everywhere, so that it has no order.
    """

    stage: str
    rank_correlation: float | None
    ssim: float | None
    pairs: int
    empty: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON and the audit page."""
        return self._asdict()


MapsOf = Callable[[nn.Module, torch.Tensor, Sequence[int], str], np.ndarray]


def stages_of(model: nn.Module) -> list[Stage]:
    """The network's stages from the head to the stem.

    What stands beside the encoder comes one by one, the last first (fc, neck); then the encoder
    from deep to shallow: by the stages of its family where SCXNN knows it, else by its children. A
    network without an `encoder` goes by its own children. Parts that lie side by side, such as
    the backbones of a fusion net, come one after the other. A wrapper round one network is looked
    through.
    """
    inner = dict(model.named_children())
    if len(inner) == 1 and rearranges(model):
        ((outer, net),) = inner.items()
        return [
            Stage(s.name, tuple(f"{outer}.{n}".rstrip(".") for n in s.modules))
            for s in stages_of(net)
        ]
    beside, deep = [], []
    encoder = getattr(model, "encoder", None)
    aside = getattr(model, "no_way_to_logits", _NO_WAY_TO_LOGITS)
    for name, child in model.named_children():
        if child is encoder:
            deep = _encoder_stages(name, child, str(getattr(_config(model), "encoder", "")))
        elif name in aside and encoder is not None:
            continue
        elif isinstance(child, nn.ModuleList):
            beside += [
                Stage(f"{name}.{n}", _owners(c, f"{name}.{n}")) for n, c in child.named_children()
            ]
        else:
            beside.append(Stage(name, _owners(child, name)))
    own = [Stage("own parameters", ("",))] if _owns(model) else []
    stages = [s for s in [*reversed(beside), *reversed(deep), *own] if s.modules]
    if not stages:
        raise ValueError(f"{type(model).__name__} must have parameters. It has none.")
    return stages


@contextmanager
def randomise(
    model: nn.Module,
    stages: Sequence[Stage],
    seed: int = 0,
    how: str = "reset",
    batch: torch.Tensor | None = None,
) -> Iterator[nn.Module]:
    """The model with these stages made random; afterwards bit for bit as it was, also after an
    error: parameters, buffers, training flags. The global random numbers are not touched.

    A module's random weights depend on `seed` and its name alone, so that one stage more keeps
    those of the stages before: give stages[:1], stages[:2], ... for a cascade.

    Args:
        stages: of `stages_of`, or a choice of one's own.
        how: reset draws as each layer does when it is made (`reset_parameters`; layers without
            one as below), BatchNorm's scale, shift and statistics included. normal draws from
            the normal distribution with the mean and standard deviation of the trained tensor, and
            sets back the statistics.
        batch: (N, 3, h, w) prepared films from which BatchNorm statistics of the random stages are
            taken, as training would have. Without it they stay at 0 and 1, which do not fit the
            random weights: over the depth of EfficientNet-Lite0 activations then fade to 0 and
            every map is empty, so that a failure would pass for a success.
    """
    if how not in HOWS:
        raise ValueError(f"how must be one of {', '.join(HOWS)}. Got {how!r} instead.")
    by_name = dict(model.named_modules())
    names = [name for stage in stages for name in stage.modules]
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(
            f"stages must name modules of the model. Got {unknown[0]!r}, which it "
            "does not have: take them from stages_of(model)."
        )
    modules = [by_name[name] for name in names]
    tensors = [
        t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None
    ]
    kept = [(t, t.detach().clone()) for t in tensors]
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for name, module in zip(names, modules, strict=True):
                torch.manual_seed(crc32(f"{seed}/{name}".encode()))
                _make_random(module, how)
        if batch is not None and len(batch):
            _fit_statistics(model, modules, batch)
        yield model
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)


def randomisation_curve(
    model: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
    method: str,
    maps_of: MapsOf,
    stages: Sequence[Stage] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    how: str = "reset",
    batch_size: int = 32,
) -> list[StageLikeness]:
    """How like the trained net's maps those of the net made random down to each stage are.

    Args:
        batch: (N, 3, h, w), prepared for the model.
        classes: N indices of logits.
        method, maps_of: `maps_of(model, batch, classes, method)` gives maps (N, h', w'), as
            classify.saliency.saliency_maps does.
        stages: from the head down; `stages_of(model)` where it is None.
        seeds: the whole cascade is done once for each: one random head may by chance weigh the
            channels like the trained one.

    Likeness is Spearman's rank correlation and SSIM of the absolute maps: see
    classify.audit.likeness. Read it beside `another_film`, since maps of any two films are alike.
    """
    stages = list(stages_of(model) if stages is None else stages)
    trained = _maps(model, batch, classes, method, maps_of, batch_size)
    curve = []
    for k in range(1, len(stages) + 1):
        found = []
        for seed in seeds:
            with randomise(model, stages[:k], seed, how, batch[:batch_size]) as random:
                maps = _maps(random, batch, classes, method, maps_of, batch_size)
            found += likeness(trained, maps)
        curve.append(_mean_likeness(stages[k - 1].name, found))
    return curve


def another_film(maps: np.ndarray) -> StageLikeness:
    """Likeness of each film's map (N, h, w) to the next film's: what maps share without showing
    the same thing. A curve that falls to it has lost all that was the film's own."""
    return _mean_likeness("another film", likeness(maps, np.roll(maps, 1, axis=0)))


def _mean_likeness(name: str, found: Sequence[Likeness]) -> StageLikeness:
    known = [f for f in found if not np.isnan(f.rank_correlation)]
    ranks, ssims = [f.rank_correlation for f in known], [f.ssim for f in known]
    return StageLikeness(
        name,
        float(np.mean(ranks)) if known else None,
        float(np.mean(ssims)) if known else None,
        len(known),
        len(found) - len(known),
    )


def _maps(
    model: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
    method: str,
    maps_of: MapsOf,
    size: int,
) -> np.ndarray:
    parts = [
        maps_of(model, batch[i : i + size], classes[i : i + size], method)
        for i in range(0, len(batch), size)
    ]
    if not parts:
        raise ValueError("batch must hold at least one film. Got none.")
    return np.concatenate(parts)


def _make_random(module: nn.Module, how: str) -> None:
    """One module's own tensors, by torch's global random numbers."""
    if how == "reset" and callable(getattr(module, "reset_parameters", None)):
        module.reset_parameters()  # type: ignore[operator]
        return
    for parameter in module._parameters.values():
        if parameter is not None:
            drawn = torch.randn_like(parameter) * parameter.std(correction=0)
            parameter.copy_(drawn + parameter.mean())
    if callable(getattr(module, "reset_running_stats", None)):
        module.reset_running_stats()  # type: ignore[operator]


def _fit_statistics(model: nn.Module, modules: Sequence[nn.Module], batch: torch.Tensor) -> None:
    """BatchNorm statistics of these modules from one forward pass; all else as it is in use."""
    norms = [
        m
        for m in modules
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return
    found = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in norms]
    try:
        for module, _ in found:
            module.training = False
        for norm in norms:
            norm.training, norm.momentum = True, None  # None: the plain mean over what was seen
            norm.reset_running_stats()
        with torch.no_grad():
            model(batch)
    finally:
        for module, flag in found:
            module.training = flag
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _config(model: nn.Module) -> Any:
    return getattr(model, "config", None)


def _encoder_stages(name: str, encoder: nn.Module, family: str) -> list[Stage]:
    """Shallow to deep."""
    owners = _owners(encoder, name)
    patterns = next((s for start, s in STAGES.items() if family.startswith(start)), ())
    if not patterns:
        return _by_children(name, encoder)
    groups: list[list[str]] = [[] for _ in patterns]
    at = 0
    for owner in owners:
        inner = owner.removeprefix(f"{name}.") + "."
        # what no pattern knows (a last norm) stays with what stands before it
        at = next((i for i, p in enumerate(patterns) if re.match(p, inner)), at)
        groups[at].append(owner)
    names = ["stem", *(f"stage {i}" for i in range(1, len(patterns)))]
    return [Stage(n, tuple(g)) for n, g in zip(names, groups, strict=True) if g]


def _by_children(name: str, part: nn.Module) -> list[Stage]:
    """A stage a child, from first to last; a wrapper round one child is looked through."""
    children = [(n, c) for n, c in part.named_children() if _owners(c, n)]
    if len(children) == 1 and not _owns(part) and list(children[0][1].children()):
        return _by_children(f"{name}.{children[0][0]}", children[0][1])
    own = [Stage(name, (name,))] if _owns(part) else []
    return own + [Stage(f"{name}.{n}", _owners(c, f"{name}.{n}")) for n, c in children]


def _owners(part: nn.Module, name: str) -> tuple[str, ...]:
    """Names of the modules of `part` that own tensors, in the order of their definition."""
    return tuple(n for n, m in part.named_modules(prefix=name) if _owns(m))


def _owns(module: nn.Module) -> bool:
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return any(t is not None for t in tensors)
