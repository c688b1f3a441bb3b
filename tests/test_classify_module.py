"""classify/tasks/member.py and cxr/training/learner.py: loss, phases, schedules and stop rule."""

from __future__ import annotations

import pytest
import torch

from classify.models.multitask import build_member
from classify.models.settings import MemberConfig
from classify.preprocess import PreprocessConfig
from classify.tasks.member import MemberModule, restoration_loss
from cxr.training.learner import NonFiniteLossError, PlateauHalving, cosine_factor
from cxr.training.recipe import OptimConfig

TINY = MemberConfig("tu-test_efficientnet", "none", decoder_channels=(8, 8, 8, 8))


def build_module(phase: str = "hard", decode: bool = True, **options: float) -> MemberModule:
    torch.manual_seed(0)
    weights = torch.tensor([[1.0, 2.0, 1.0]])
    preprocess = PreprocessConfig(side=32)
    model = build_member(TINY, decode)
    return MemberModule(model, preprocess, OptimConfig(), phase, weights, **options)


def build_batch() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    image = torch.rand(4, 1, 32, 32, generator=random)
    return {
        "image": image,
        "goal": image * 0.5,
        "label": torch.tensor([0, 1, 2, 1]),
        "known": torch.tensor([[1.0], [1.0], [1.0], [0.0]]),
    }


def test_films_with_unknown_region_do_not_count_in_the_restoration() -> None:
    goal = torch.zeros(3, 1, 4, 4)
    restored = torch.stack([torch.full((1, 4, 4), v) for v in (0.5, 0.1, 0.9)])
    loss = restoration_loss(restored, goal, torch.tensor([[1.0], [1.0], [0.0]]))
    assert loss.item() == pytest.approx((0.25 + 0.01) / 2)


def test_no_known_region_means_no_restoration_loss() -> None:
    one = torch.ones(2, 1, 4, 4)
    assert restoration_loss(one, 0 * one, torch.zeros(2, 1)).item() == 0


def test_a_smaller_restoration_is_held_against_the_averaged_goal() -> None:
    goal = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None, None]
    restored = torch.full((1, 1, 1, 1), 0.25)
    assert restoration_loss(restored, goal, torch.ones(1, 1)).item() == 0


def test_loss_is_weighted_ce_plus_its_share_of_mse() -> None:
    module = build_module(restore_weight=0.8).eval()
    batch = build_batch()
    terms, logits = module.losses(batch)
    logp = logits.log_softmax(1)
    picked = torch.stack([logp[i, k] for i, k in enumerate(batch["label"])])
    weights = torch.tensor([1.0, 2.0, 1.0, 2.0])
    assert terms["ce"].item() == pytest.approx(-(weights * picked).sum().item() / 6, rel=1e-4)
    assert terms["mse"] > 0
    assert terms["loss"].item() == pytest.approx((terms["ce"] + 0.8 * terms["mse"]).item())


def test_phase_weak_has_no_restoration_and_moves_the_last_layer_alone() -> None:
    module = build_module("weak")
    terms, _ = module.losses(build_batch())
    assert terms["mse"] == 0
    optimizer = module.configure_optimizers()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    terms["loss"].backward()
    optimizer.step()
    moved = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"model.fc.weight", "model.fc.bias"}


def test_the_encoder_has_a_rate_of_its_own() -> None:
    module = build_module()
    module.optim = OptimConfig(rate=0.01, encoder_rate=0.1)
    encoder, rest = module.configure_optimizers().param_groups
    assert (encoder["lr"], rest["lr"]) == (pytest.approx(0.001), 0.01)
    assert len(encoder["params"]) == len(list(module.model.encoder.parameters()))


def test_a_loss_that_is_not_finite_stops_with_its_terms() -> None:
    module = build_module()
    with torch.no_grad():
        module.model.fc.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"ce nan, mse 0\."):
        module.training_step(build_batch(), 0)


def test_the_rate_is_halved_after_patience_epochs_without_gain() -> None:
    rule = PlateauHalving(1e-3, patience=2, factor=0.5, floor_rate=1e-4)
    rates = [rule.step(loss) for loss in (1.0, 0.9, 0.95, 0.91, 0.8, 0.8, 0.8)]
    assert rates == [1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 2.5e-4]
    assert not rule.finished


def test_training_ends_below_the_floor_only_after_another_patience() -> None:
    rule = PlateauHalving(1e-3, patience=1, factor=0.5, floor_rate=1e-4)
    rule.step(1.0)
    rates = [rule.step(1.0) for _ in range(4)]
    assert rates[-1] == pytest.approx(6.25e-5)  # 1e-3 / 16, the first below 1e-4
    assert not rule.finished
    rule.step(0.9)  # a gain
    assert not rule.finished
    rule.step(1.0)
    assert rule.finished


def test_the_stop_rule_goes_on_from_its_state() -> None:
    rule = PlateauHalving(1e-3, patience=3, factor=0.5, floor_rate=1e-4)
    for loss in (1.0, 1.1, 1.2):
        rule.step(loss)
    other = PlateauHalving(1.0, patience=3, factor=0.5, floor_rate=1e-4)
    other.load_state_dict(rule.state_dict())
    assert other.step(1.3) == rule.step(1.3) == 5e-4


def test_cosine_rises_in_the_warm_up_and_ends_near_nothing() -> None:
    factors = [cosine_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.505)
    assert factors[99] == pytest.approx(0.01, abs=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"optimizer": "lion"}, {"schedule": "step"}, {"rate": 0.0}, {"ema_decay": 1.0}]
)
def test_wrong_optimisation_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimConfig(**wrong)
