"""What guidance adds to the loss of a training (`classify.augment` says why)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classify.augment import GuideConfig, rim_of
from classify.preprocess import PreprocessConfig, to_input
from classify.saliency.hooks import pooled_layers, saliency_layer
from cxr.training.learner import Batch

_BLACK = 0.7  # of the pictures without lungs; the others are one grey all over
# What an even map adds to each, in units of the logit: a map that is 0 everywhere must not be the
# cheapest, or a network of many targets answers nothing at all.
_LEAST = 0.1
Out = TypeVar("Out", Tensor, tuple[Tensor, Tensor])


class Guide:
    """The terms of one network. `groups` answers of equally many classes stand in its logits, side
    by side: (N, groups × classes), with labels (N, groups). `sought` is the class whose map is
    looked at later whatever a film shows, as a member's target is."""

    def __init__(
        self,
        config: GuideConfig,
        model: nn.Module,
        settings: PreprocessConfig,
        groups: int = 1,
        sought: int | None = None,
    ) -> None:
        self.config, self.settings, self.groups = config, settings, groups
        self.sought = sought
        self.layers: list[nn.Module] = []
        if config.maps or config.silence:
            self.layers = pooled_layers(model) or [saliency_layer(model)]

    def ask(
        self, network: Callable[[Tensor], Out], batch: Batch, training: bool
    ) -> tuple[Out, dict[str, Tensor]]:
        """What the network answers to the N pictures, and the weighed terms by name. `network`
        takes the input (N + n, 3, side, side) to logits, or to logits and what it restores. Without
        `training` there is nothing but the answer."""
        config, count = self.config, len(batch["image"])
        if not (config.on and training):
            return network(to_input(batch["image"], self.settings)), {}
        pictures = batch["image"]
        if config.blank or config.silence:
            some = max(1, round(config.blank_share * count))
            pictures = torch.cat([pictures, without_lungs(pictures[:some], batch["lung"][:some])])
        x = to_input(pictures, self.settings)
        if config.gradient:
            x = x.clone().requires_grad_()
        seen: list[Tensor] = []
        hooks = [layer.register_forward_hook(_keep(seen)) for layer in self.layers]
        try:
            found = network(x)
        finally:
            for hook in hooks:
                hook.remove()
        every = found if isinstance(found, Tensor) else found[0]
        logits = every.float().view(len(x), self.groups, -1)
        labels = batch["label"].view(count, self.groups)
        terms = {}
        if config.maps:
            terms["maps"] = config.maps * self._outside(logits[:count], labels, seen, batch["lung"])
        if config.gradient:
            terms["gradient"] = config.gradient * _leaning(logits, labels, x, batch["lung"])
        if config.silence:
            terms["silence"] = config.silence * _loudness(seen, count)
        if config.blank:
            told = logits[count:].log_softmax(2).flatten(0, 1)
            even = torch.full_like(told, 1 / told.shape[1])
            terms["blank"] = config.blank * F.kl_div(told, even, reduction="batchmean")
        if isinstance(found, Tensor):
            return found[:count], terms
        return (found[0][:count], found[1][:count]), terms

    def _outside(self, logits: Tensor, labels: Tensor, seen: list[Tensor], lung: Tensor) -> Tensor:
        """Mean share of the maps, of the true class and of the one sought, that lies outside the
        lung field, over the films that show one."""
        lit = lung.flatten(1).any(1).float()
        wanted = [labels]
        if self.sought is not None:
            wanted.append(torch.full_like(labels, self.sought))
        away = [1 - near(lung, maps.shape[2:]) for maps in seen]
        # what all classes share decides nothing: a common map in the lungs would be no answer
        apart = logits - logits.mean(2, keepdim=True)
        shares = []
        for chosen in wanted:
            own = apart.gather(2, chosen[..., None])[..., 0]
            for group in range(self.groups):
                slopes = torch.autograd.grad(own[:, group].sum(), seen, create_graph=True)
                for maps, slope, far in zip(seen, slopes, away, strict=True):
                    maps = maps[: len(lung)].float()
                    weights = slope[: len(lung)].float().mean((2, 3), keepdim=True)
                    plane = (weights * maps).sum(1).clamp_min(0) + _LEAST / maps[0, 0].numel()
                    shares.append((plane * far).sum((1, 2)) / plane.sum((1, 2)) * lit)
        return torch.stack(shares).sum(1).mean() / lit.sum().clamp_min(1)


def without_lungs(pictures: Tensor, lung: Tensor) -> Tensor:
    """(N, 1, side, side) in [0, 1]: the lungs and a rim, of another width each time, black, or all
    of a picture one grey, its mean, so that a frame of black is no answer either."""
    grey = pictures.mean((2, 3), keepdim=True).expand_as(pictures)
    black = torch.rand(len(pictures), 1, 1, 1, device=pictures.device) < _BLACK
    black &= lung.amax((1, 2, 3), keepdim=True) > 0  # else the film stood there as it is
    rim = rim_of(lung.shape[-1])
    wider = rim + 2 * int(torch.randint(rim, ()))
    return torch.where(black, pictures * (1 - _grown(lung, wider)), grey)


def near(lung: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    """A lung field (N, 1, side, side) with its rim, on a map's grid: (N, h, w) shares."""
    grown = _grown(lung, rim_of(lung.shape[-1]))
    return F.adaptive_avg_pool2d(grown, (size_hw[0], size_hw[1]))[:, 0]


def _grown(lung: Tensor, rim: int) -> Tensor:
    return F.max_pool2d(lung, rim, 1, rim // 2)


def _loudness(seen: list[Tensor], count: int) -> Tensor:
    """What the layers show of the pictures from the `count`-th on, as a share of the ones before.
    Through a ReLU it becomes exactly nothing, and the answer the same for all such pictures."""
    ratios = [
        maps[count:].abs().mean() / maps[:count].detach().abs().mean().clamp_min(1e-6)
        for maps in seen
    ]
    return torch.stack(ratios).mean()


def _leaning(logits: Tensor, labels: Tensor, x: Tensor, lung: Tensor) -> Tensor:
    """Mean squared gradient of the true classes' log probability by the input's pixels outside the
    lung field, summed over a film."""
    count = len(lung)
    told = logits[:count].log_softmax(2).gather(2, labels[..., None]).sum()
    slope = torch.autograd.grad(told, x, create_graph=True)[0][:count].float().sum(1)
    return (slope * (1 - near(lung, slope.shape[1:]))).square().sum((1, 2)).mean()


def _keep(seen: list[Tensor]) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def keep(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        if not output.requires_grad:  # all before it is frozen
            output = output.detach().requires_grad_()
        seen.append(output)
        return output.clone()  # for what follows may work in place

    return keep
