"""Weights made random stage by stage: a map that stays the same does not show what was learnt.

The cascading randomisation of Adebayo et al. 2018 (arXiv 1810.03292): from the head to the stem
more and more of a network is replaced by random numbers, and its maps are compared with those of
the trained one. They must lose their likeness.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from zlib import crc32

import cv2
import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from classify.audit.rows import Row
from classify.models.multitask import STAGES
from classify.saliency.hooks import left_as_found, rearranges
from classify.saliency.maps import ssim_of

ANOTHER_FILM = "another film"  # the stage of the floor that the maps fall to
_AT_A_TIME = 32  # films
_NO_WAY_TO_LOGITS = ("decoder", "restorer")  # SCXNN's second task: its weights move no map
# (another network names such parts itself, as `no_way_to_logits`)
SIDE = 224  # maps are compared at this size by SSIM, whose window must be small against them


class Stage(NamedTuple):
    """A part of a network that is made random at once. `modules` are names of the modules that
    own parameters or BatchNorm statistics."""

    name: str
    modules: tuple[str, ...]


def stages_of(model: nn.Module) -> list[Stage]:
    """The network's stages from the head to the stem. What stands beside the encoder comes one by
    one, the last first (fc, neck); then the encoder from deep to shallow: by the stages of its
    family where SCXNN knows it, else by its children. A network without an `encoder` goes by its
    own children. Parts that lie side by side, such as the backbones of a fusion net, come one after
    the other. A wrapper round one network is looked through."""
    inner = dict(model.named_children())
    if len(inner) == 1 and (rearranges(model) or hasattr(model, "looked_through")):
        ((outer, net),) = inner.items()
        return [
            Stage(s.name, tuple(f"{outer}.{n}".rstrip(".") for n in s.modules))
            for s in stages_of(net)
        ]
    beside: list[Stage] = []
    deep: list[Stage] = []
    encoder = getattr(model, "encoder", None)
    aside = getattr(model, "no_way_to_logits", _NO_WAY_TO_LOGITS) if encoder is not None else ()
    for name, child in inner.items():
        if child is encoder:
            family = str(getattr(getattr(model, "config", None), "encoder", ""))
            deep = _encoder_stages(name, child, family)
        elif _holds_most(child, model) and encoder is None:
            beside += _by_children(name, child)
        elif isinstance(child, nn.ModuleList) and name not in aside:
            beside += [_stage(c, f"{name}.{n}") for n, c in child.named_children()]
        elif name not in aside:
            beside.append(_stage(child, name))
    own = [Stage("own parameters", ("",))] if _owns(model) else []
    stages = [s for s in [*reversed(beside), *reversed(deep), *own] if s.modules]
    if not stages:
        raise ValueError(f"{type(model).__name__} must have parameters. It has none.")
    return stages


@contextmanager
def randomise(
    model: nn.Module, stages: Sequence[Stage], seed: int = 0, batch: Tensor | None = None
) -> Iterator[nn.Module]:
    """The model with these stages made random; afterwards bit for bit as it was, also after an
    error: parameters, buffers, training flags. The global random numbers are not touched.

    Each layer is drawn as when it is made (`reset_parameters`), BatchNorm's scale, shift and
    statistics included; one that cannot, from the normal distribution with the mean and standard
    deviation of each trained tensor. A module's random weights depend on `seed` and its name alone,
    so that one stage more keeps those of the stages before: give stages[:1], stages[:2], ... for a
    cascade.

    From `batch` (N, 3, h, w), prepared films, BatchNorm statistics of the random stages are taken,
    as training would have. Without it they stay at 0 and 1, which do not fit the random weights:
    over the depth of EfficientNet-Lite0 activations then fade to 0 and every map is empty, so that
    a failure would pass for a success."""
    by_name = dict(model.named_modules())
    names = [name for stage in stages for name in stage.modules]
    modules = [by_name[name] for name in names]
    tensors = [t for module in modules for t in _tensors(module)]
    kept = [(t, t.detach().clone()) for t in tensors]
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            for name, module in zip(names, modules, strict=True):
                torch.manual_seed(crc32(f"{seed}/{name}".encode()))
                _make_random(module)
        if batch is not None and len(batch):
            _fit_statistics(model, modules, batch)
        yield model
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)


def cascade_rows(
    model: nn.Module,
    batch: Tensor,
    maps_of_each: Callable[[], Sequence[np.ndarray]],
    seeds: Sequence[int],
) -> list[list[Row]]:
    """How like the trained net's maps those of the net made random down to each stage are: rows of
    each of several maps (N, h, w) of the N films that `maps_of_each` draws, say one of each
    finding, from one cascade of the model that they all are of.

    A row a stage, the head first: `stage`; `rank_correlation` (Spearman's) and `ssim` of the
    absolute maps, means over films and seeds, None where no pair of maps has a value; `pairs` that
    have one, and `empty` those left out: one of the maps is the same everywhere, so that it has no
    order. The last row, ANOTHER_FILM, is the likeness of each film's map to the next film's: what
    maps share without showing the same thing. A curve that falls to it has lost all that was the
    film's own.

    `batch` (N, 3, h, w) holds at least one film prepared for the model. The whole cascade is done
    once for each of the `seeds`: one random head may by chance weigh the channels like the trained
    one."""
    trained, stages = maps_of_each(), stages_of(model)
    rows: list[list[Row]] = [[] for _ in trained]
    for k, stage in enumerate(stages, start=1):
        found: list[list[Likeness]] = [[] for _ in trained]
        for seed in seeds:
            with randomise(model, stages[:k], seed, batch[:_AT_A_TIME]):
                for own, before, now in zip(found, trained, maps_of_each(), strict=True):
                    own += likeness(before, now)
        for out, own in zip(rows, found, strict=True):
            out.append(_row(stage.name, own))
    for out, own_maps in zip(rows, trained, strict=True):
        out.append(_row(ANOTHER_FILM, likeness(own_maps, np.roll(own_maps, 1, axis=0))))
    return rows


def _row(stage: str, found: Sequence[Likeness]) -> Row:
    known = [f for f in found if not np.isnan(f.rank_correlation)]
    means = np.mean(known, axis=0).tolist() if known else (None, None)
    figures = dict(zip(Likeness._fields, means, strict=True))
    return {"stage": stage, **figures, "pairs": len(known), "empty": len(found) - len(known)}


def _make_random(module: nn.Module) -> None:
    """One module's own tensors, by torch's global random numbers."""
    if callable(reset := getattr(module, "reset_parameters", None)):
        reset()
        return
    for parameter in module.parameters(recurse=False):
        drawn = torch.randn_like(parameter) * parameter.std(correction=0)
        parameter.copy_(drawn + parameter.mean())


def _fit_statistics(model: nn.Module, modules: Sequence[nn.Module], batch: Tensor) -> None:
    """BatchNorm statistics of these modules from one forward pass; all else as it is in use."""
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in modules if isinstance(m, kind) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    try:
        with left_as_found(model), torch.no_grad():
            for norm in norms:
                norm.training, norm.momentum = True, None  # None: the plain mean over what was seen
                norm.reset_running_stats()
            model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _encoder_stages(name: str, encoder: nn.Module, family: str) -> list[Stage]:
    """Shallow to deep."""
    patterns = next((s for start, s in STAGES.items() if family.startswith(start)), ())
    if not patterns:
        return _by_children(name, encoder)
    groups: list[list[str]] = [[] for _ in patterns]
    at = 0
    for owner in _stage(encoder, name).modules:
        inner = owner.removeprefix(f"{name}.") + "."
        # what no pattern knows (a last norm) stays with what stands before it
        at = next((i for i, p in enumerate(patterns) if re.match(p, inner)), at)
        groups[at].append(owner)
    names = ["stem", *(f"stage {i}" for i in range(1, len(patterns)))]
    return [Stage(n, tuple(g)) for n, g in zip(names, groups, strict=True) if g]


def _by_children(name: str, part: nn.Module) -> list[Stage]:
    """A stage a child, from first to last; a wrapper round one child is looked through."""
    children = [(f"{name}.{n}", c) for n, c in part.named_children() if _stage(c, n).modules]
    if len(children) == 1 and not _owns(part) and list(children[0][1].children()):
        return _by_children(*children[0])
    own = [Stage(name, (name,))] if _owns(part) else []
    return own + [_stage(child, n) for n, child in children]


def _stage(part: nn.Module, name: str) -> Stage:
    """All modules of `part` that own tensors, in the order of their definition."""
    return Stage(name, tuple(n for n, m in part.named_modules(prefix=name) if _owns(m)))


def _tensors(module: nn.Module) -> list[Tensor]:
    """A module's own parameters and buffers."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _holds_most(child: nn.Module, model: nn.Module) -> bool:
    """Whether one part is a chain of most of the network: made random at once, it is no cascade."""
    chain = isinstance(child, nn.Sequential)
    return chain and 2 * sum(map(_owns, child.modules())) > sum(map(_owns, model.modules()))


def _owns(module: nn.Module) -> bool:
    return bool(_tensors(module))


# --- how alike two maps are


class Likeness(NamedTuple):
    """Of one pair of maps; both NaN where one of them is the same everywhere."""

    rank_correlation: float
    ssim: float


def likeness(maps_a: np.ndarray, maps_b: np.ndarray) -> list[Likeness]:
    """Likeness of the absolute maps (N, h, w) and (N, h, w), pair by pair. Ranks are taken of the
    maps as they are. For SSIM each is divided by its maximum, since its unit says nothing of where
    it looks, and brought to SIDE × SIDE px."""
    return [
        Likeness(rank_correlation(a, b), ssim_of(_scaled(a), _scaled(b)))
        if min(np.ptp(a), np.ptp(b)) > 0
        else Likeness(float("nan"), float("nan"))
        for a, b in zip(np.abs(maps_a), np.abs(maps_b), strict=True)
    ]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; equal values share their mean rank. NaN where one is the same everywhere."""
    flat = min(np.ptp(a), np.ptp(b)) == 0
    return float("nan") if flat else float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _scaled(plane: np.ndarray) -> np.ndarray:
    scaled = (plane / plane.max()).astype(np.float32)
    return cv2.resize(scaled, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).astype(np.float64)
