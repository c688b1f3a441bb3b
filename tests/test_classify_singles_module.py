"""classify/tasks/single.py and cxr/training/learner.py: loss, frozen parts, rates, kept epoch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from classify.ensemble import build_net
from classify.models.settings import BackboneConfig, CXRNetConfig
from classify.models.unets import build_cxrnet
from classify.preprocess import PreprocessConfig, to_input
from classify.tasks.single import SingleModule
from cxr.training.learner import best_epoch
from cxr.training.recipe import OptimConfig

SETTINGS = PreprocessConfig(side=32)
CONSTANT = OptimConfig(rate=0.01, encoder_rate=0.1, schedule="constant", patience=0)


class Fixed(nn.Module):
    """Answers with the logits it was given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 1)
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(x)]


def build_batch(labels: list[int]) -> dict[str, torch.Tensor]:
    images = torch.randint(0, 256, (len(labels), 1, 32, 32), dtype=torch.uint8)
    return {"image": images / 255, "label": torch.tensor(labels)}


def test_the_loss_is_the_mean_over_films_of_the_weighted_cross_entropy() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4)
    net = Fixed(torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]]))
    plain = SingleModule(net, SETTINGS, CONSTANT)
    assert plain.losses(build_batch([0, 1]))[0]["loss"].item() == pytest.approx(
        (math.log(4) + math.log(4 / 3)) / 2
    )
    weighted = SingleModule(net, SETTINGS, CONSTANT, weights=torch.tensor([2.0, 0.5]))
    assert weighted.losses(build_batch([0, 1]))[0]["loss"].item() == pytest.approx(
        (2 * math.log(4) + 0.5 * math.log(4 / 3)) / 2
    )


def test_a_network_that_draws_adds_its_own_terms() -> None:
    torch.manual_seed(0)
    net = build_cxrnet(CXRNetConfig(width=4, depth=2, side=32)).eval()
    weights, batch = torch.tensor([2.0, 0.5]), build_batch([0, 1, 1])
    terms, logits = SingleModule(net, SETTINGS, CONSTANT, weights=weights).losses(batch)
    x = to_input(batch["image"], SETTINGS)
    assert torch.allclose(logits, net(x), atol=1e-6)
    shares, labels = logits.softmax(1), batch["label"]
    answer = (weights[labels] * -shares[torch.arange(3), labels].log()).mean()
    assert terms["answer"].item() == pytest.approx(answer.item(), rel=1e-5)
    extra = net.terms(x, batch["label"], weights)[1]
    assert terms["loss"].item() == pytest.approx((answer + extra).item(), rel=1e-5)
    assert terms["map"].item() == pytest.approx(extra.item(), rel=1e-5)


def test_what_is_frozen_keeps_its_weights_and_its_statistics() -> None:
    net = build_net(BackboneConfig("baseline_cnn", weights="none"))
    net.freeze_to("block2")  # type: ignore[operator]
    module = SingleModule(net, SETTINGS, CONSTANT).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    module.losses(build_batch([0, 1, 0, 1]))[0]["loss"].backward()
    module.configure_optimizers().step()
    moved = {k.split(".")[1] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"2", "3", "1"}  # blocks 3 and 4 of the body, and head.1


def test_the_encoder_has_a_rate_of_its_own() -> None:
    net = build_net(BackboneConfig("baseline_cnn", weights="none"))
    optimizer = SingleModule(net, SETTINGS, CONSTANT).configure_optimizers()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.001, 0.01])


def test_the_kept_epoch_is_the_first_of_the_best() -> None:
    history = [
        {"val_loss": loss, "val_auc": auc}
        for loss, auc in ((0.9, math.nan), (0.5, 0.7), (0.5, 0.8), (0.6, 0.8))
    ]
    assert best_epoch(history, "val_loss") == 1
    assert best_epoch(history, "val_auc") == 2
    assert best_epoch([{"val_auc": math.nan}] * 2, "val_auc") == 0
