"""A single network of K classes in the place of an ensemble's members.

    members = members_of(net, ("normal", "bacterial", "viral"))  # bacterial, viral
    members["viral"](batch)  # (N, 3): z_normal, z_viral, log(exp z_bacterial)

Each class but normal becomes a member that seeks it, so that classify.run and classify.audit take
any single network. The softmax of a member's three logits is the network's own P(normal),
P(target) and P(any other class). With two classes no other is left: its logit lies 30 below the
lower one, a probability of at most 1e-13. Maps explain the network's own logit of the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from classify.labels import NORMAL, TARGET
from classify.saliency.fusion import has_backbones, saliency_layers

NAME_OF_NORMAL = "normal"
_FAR_BELOW = 30.0


class SingleMember(nn.Module):
    """A network (N, 3, h, w) → (N, K) as a member for its class `target`: (N, 3) logits."""

    def __init__(self, net: nn.Module, normal: int, target: int) -> None:
        super().__init__()
        self.net = net
        self.normal, self.target = normal, target

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, h, w) to logits (N, 3): NORMAL, TARGET, OTHERS."""
        return self.rearrange(self.net(x))

    def rearrange(self, logits: torch.Tensor) -> torch.Tensor:
        """The network's logits (N, K) to the member's (N, 3)."""
        rest = [k for k in range(logits.shape[1]) if k not in (self.normal, self.target)]
        lowest = logits.amin(1) - _FAR_BELOW
        others = logits[:, rest].logsumexp(1) if rest else lowest
        return torch.stack([logits[:, self.normal], logits[:, self.target], others], dim=1)

    @property
    def bare_logits(self) -> tuple[nn.Module, dict[int, int]]:
        """The network, and which of its logits NORMAL and TARGET are."""
        return self.net, {NORMAL: self.normal, TARGET: self.target}

    @property
    def saliency_layer(self) -> nn.Module | None:
        """The network's own; None for one with several backbones."""
        return getattr(self.net, "saliency_layer", None)

    @property
    def saliency_layers(self) -> dict[str, nn.Module] | None:
        """Those of the backbones of a fusion net; None for another."""
        return saliency_layers(self.net) if has_backbones(self.net) else None


def members_of(net: nn.Module, classes: Sequence[str]) -> dict[str, SingleMember]:
    """A member for each of the network's `classes` but normal, in their order.

    Raises ValueError where normal is not among them: a member weighs its target against it.
    """
    if NAME_OF_NORMAL not in classes or len(classes) < 2:
        raise ValueError(
            f"classes of the network must hold {NAME_OF_NORMAL!r} and one more, for "
            "runs and audits weigh each class against it. Got "
            f"{', '.join(classes)} instead."
        )
    normal = list(classes).index(NAME_OF_NORMAL)
    return {name: SingleMember(net, normal, k) for k, name in enumerate(classes) if k != normal}


def run_members(members: Iterable[nn.Module], batch: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits (N, 3) of each member; a network that serves several of them runs once."""
    ran: dict[nn.Module, torch.Tensor] = {}
    for member in members:
        if not isinstance(member, SingleMember):
            yield member(batch)
            continue
        if member.net not in ran:
            ran[member.net] = member.net(batch)
        yield member.rearrange(ran[member.net])
