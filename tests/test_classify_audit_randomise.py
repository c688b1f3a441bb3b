"""Stages from head to stem, networks bit for bit as they were, maps that lose their likeness."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from classify.audit import randomise as randomising
from classify.audit.randomise import (
    ANOTHER_FILM,
    Stage,
    cascade_rows,
    likeness,
    randomise,
    rank_correlation,
    stages_of,
)
from classify.audit.rows import Row
from classify.models.multitask import SCXNN
from classify.models.settings import MemberConfig
from classify.saliency.maps import saliency_maps


class TinyNet(nn.Module):
    """Stem, body, neck and head with BatchNorm in the body; the neck's output is pooled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.neck = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU())
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 3)
        with torch.no_grad():  # as if trained: two of the channels speak for class 1
            self.fc.weight[1] = torch.tensor([1.0, 1.0, -0.2, -0.2, -0.2, -0.2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.neck(self.body(self.stem(x))).mean((2, 3))))


def likeness_rows(
    model: nn.Module,
    batch: torch.Tensor,
    classes: Sequence[int],
    method: str,
    maps_of: Callable[..., np.ndarray],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> list[Row]:
    """`cascade_rows` of one map a film."""
    (rows,) = cascade_rows(model, batch, lambda: [maps_of(model, batch, classes, method)], seeds)
    return rows


def maps_of(
    model: nn.Module, batch: torch.Tensor, classes: Sequence[int], method: str
) -> np.ndarray:
    assert method == "grad_cam" and isinstance(model, TinyNet)
    return saliency_maps(model, batch, classes, layer=model.neck, closed_form=False)


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.randn(6, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net(batch: torch.Tensor) -> TinyNet:
    """As after training: BatchNorm knows its films."""
    model = TinyNet().train()
    model(batch)
    model.fc.weight.requires_grad_(False)
    return model.eval()


def state_of(model: nn.Module) -> list[object]:
    tensors = [(k, t.numpy().tobytes()) for k, t in model.state_dict().items()]
    flags = [m.training for m in model.modules()]
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return [*tensors, *flags, *momenta, *(p.requires_grad for p in model.parameters())]


def test_stages_of_any_network_go_from_head_to_stem(net: TinyNet) -> None:
    assert stages_of(net) == [
        Stage("fc", ("fc",)),
        Stage("neck", ("neck.0",)),
        Stage("body", ("body.0", "body.1")),
        Stage("stem", ("stem",)),
    ]


def test_stages_of_a_member_follow_its_encoder() -> None:
    config = MemberConfig("tu-tf_efficientnet_lite0", "none", neck_channels=16)
    model = SCXNN(config, decode=True)
    stages = stages_of(model)
    assert [s.name for s in stages] == [
        "fc",
        "neck",
        *(f"stage {i}" for i in range(7, 0, -1)),
        "stem",
    ]
    assert stages[-1].modules == ("encoder.model.conv_stem", "encoder.model.bn1")
    # every tensor but the decoder's, and none twice
    named = [m for s in stages for m in s.modules]
    owners = {n.rpartition(".")[0] for n in model.shipped_tensors(decoder=False)}
    assert len(named) == len(set(named)) and set(named) == owners


def test_stages_of_an_encoder_of_no_known_family_are_its_children() -> None:
    model = nn.Module()
    model.encoder = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    model.fc = nn.Linear(4, 3)
    assert [s.name for s in stages_of(model)] == ["fc", "encoder.0.2", "encoder.0.0"]


def test_backbones_side_by_side_are_stages_of_their_own() -> None:
    model = nn.Module()
    model.backbones = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)])
    model.head = nn.Linear(9, 2)
    assert [s.name for s in stages_of(model)] == ["head", "backbones.1", "backbones.0"]


def test_the_network_is_as_it_was_bit_for_bit(net: TinyNet, batch: torch.Tensor) -> None:
    before, logits = state_of(net), net(batch)
    with randomise(net, stages_of(net), 0, batch) as random:
        assert random is net and not torch.allclose(net(batch), logits)
    assert state_of(net) == before and torch.equal(net(batch), logits)


def test_the_network_is_as_it_was_after_an_error(net: TinyNet) -> None:
    net.body.train()
    before = state_of(net)
    with pytest.raises(KeyError), randomise(net, stages_of(net)):
        raise KeyError
    with pytest.raises(RuntimeError), randomise(net, stages_of(net), batch=torch.zeros(2, 5, 8, 8)):
        pass  # five channels: the pass for the statistics fails
    assert state_of(net) == before


def test_only_the_given_stages_become_random(net: TinyNet) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with randomise(net, stages_of(net)[:2]):
        changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"fc.weight", "fc.bias", "neck.0.weight", "neck.0.bias"}


def test_a_stage_more_keeps_the_random_weights_before_it(net: TinyNet) -> None:
    stages = stages_of(net)
    with randomise(net, stages[:1], seed=3):
        head = net.fc.weight.clone()
    with randomise(net, stages, seed=3):
        assert torch.equal(net.fc.weight, head)
    with randomise(net, stages, seed=4):
        assert not torch.equal(net.fc.weight, head)


def test_the_global_random_numbers_are_not_touched(net: TinyNet, batch: torch.Tensor) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with randomise(net, stages_of(net), batch=batch):
        assert torch.equal(torch.rand(1), expected)


def test_statistics_of_batchnorm_fit_the_random_weights(net: TinyNet, batch: torch.Tensor) -> None:
    with randomise(net, stages_of(net)), torch.no_grad():
        assert (net.body[1].running_mean == 0).all() and (net.body[1].running_var == 1).all()
    with randomise(net, stages_of(net), batch=batch), torch.no_grad():
        seen = net.body[0](net.stem(batch))
        torch.testing.assert_close(net.body[1].running_mean, seen.mean((0, 2, 3)))
        out = net.body[1](seen)
        torch.testing.assert_close(out.var((0, 2, 3)), torch.ones(8), atol=0.02, rtol=0)


def test_a_layer_that_cannot_be_made_anew_keeps_mean_and_spread() -> None:
    model = nn.Module()
    model.layer = nn.Module()
    model.layer.weight = nn.Parameter(torch.randn(200, 200) * 0.3 + 2)
    weight = model.layer.weight.detach().clone()
    with randomise(model, stages_of(model)), torch.no_grad():
        assert model.layer.weight.mean().item() == pytest.approx(weight.mean().item(), rel=0.02)
        assert model.layer.weight.std().item() == pytest.approx(weight.std().item(), rel=0.02)
        assert abs(np.corrcoef(model.layer.weight.ravel(), weight.ravel())[0, 1]) < 0.02
    assert torch.equal(model.layer.weight, weight)


def test_maps_of_a_network_that_uses_its_weights_lose_their_likeness(
    net: TinyNet, batch: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(net)
    monkeypatch.setattr(randomising, "_AT_A_TIME", 4)
    *curve, floor = likeness_rows(net, batch, [1] * 6, "grad_cam", maps_of)
    assert floor["stage"] == ANOTHER_FILM and floor["pairs"] == 6
    assert [c["stage"] for c in curve] == ["fc", "neck", "body", "stem"]
    assert all(c["pairs"] + c["empty"] == 30 for c in curve)  # 6 films × 5 seeds
    assert all(c["rank_correlation"] is not None and c["rank_correlation"] < 0.5 for c in curve)
    assert all(c["ssim"] is not None and c["ssim"] < 0.7 for c in curve)
    assert state_of(net) == before
    assert set(curve[0]) == {"stage", "rank_correlation", "ssim", "pairs", "empty"}


def test_maps_that_ignore_the_weights_are_found_out(net: TinyNet, batch: torch.Tensor) -> None:
    def of_the_film_alone(
        _model: nn.Module, films: torch.Tensor, _classes: Sequence[int], _method: str
    ) -> np.ndarray:
        return films.abs().mean(1).numpy()

    *curve, _ = likeness_rows(net, batch, [1] * 6, "edges", of_the_film_alone, seeds=(0,))
    assert all(c["rank_correlation"] == pytest.approx(1.0) for c in curve)
    assert all(c["ssim"] == pytest.approx(1.0) for c in curve)


def test_empty_maps_are_counted_and_not_averaged(net: TinyNet, batch: torch.Tensor) -> None:
    def empty_when_random(
        model: nn.Module, films: torch.Tensor, _classes: Sequence[int], _method: str
    ) -> np.ndarray:
        assert isinstance(model, TinyNet)
        return films.abs().mean(1).numpy() * float(torch.equal(model.fc.weight, trained))

    trained = net.fc.weight.clone()
    *curve, _ = likeness_rows(net, batch, [1] * 6, "", empty_when_random, seeds=(0, 1))
    assert {(c["rank_correlation"], c["ssim"], c["pairs"], c["empty"]) for c in curve} == {
        (None, None, 0, 12)
    }


def test_another_film_is_the_likeness_of_neighbours(net: TinyNet) -> None:
    plane = np.random.default_rng(0).random((7, 7))
    planes = np.stack([plane, plane * 2, plane[::-1]])
    rows = likeness_rows(net, torch.zeros(3, 3, 9, 9), [1] * 3, "", lambda *_: planes, seeds=(0,))
    # the first two are alike, and either is as unlike the third
    unlike = np.corrcoef(plane.ravel().argsort().argsort(), plane[::-1].ravel().argsort().argsort())
    assert rows[-1]["pairs"] == 3
    assert rows[-1]["rank_correlation"] == pytest.approx((1 + 2 * unlike[0, 1]) / 3)
    assert all(row["rank_correlation"] == pytest.approx(1) for row in rows[:-1])


def test_a_network_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="must have parameters"):
        stages_of(nn.ReLU())


# --- how alike two maps are


def test_rank_correlation_by_hand() -> None:
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 × 4 / (4 × 15) = 0.6
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([20.0, 10, 40, 30])) == (
        pytest.approx(0.6)
    )


def test_equal_values_share_their_rank() -> None:
    # ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, variances 1.5 and 2
    found = rank_correlation(np.array([0.0, 0, 5]), np.array([1.0, 2, 3]))
    assert found == pytest.approx(1.5 / np.sqrt(1.5 * 2))


def test_ranks_see_order_alone() -> None:
    plane = np.random.default_rng(0).random((7, 7))
    assert rank_correlation(plane, plane**5) == pytest.approx(1.0)
    assert rank_correlation(plane, -plane) == pytest.approx(-1.0)
    assert np.isnan(rank_correlation(plane, np.ones((7, 7))))


def test_a_map_is_like_itself_in_any_unit() -> None:
    maps = np.random.default_rng(0).random((2, 7, 7)).astype(np.float32)
    for found in likeness(maps, -1e-6 * maps):
        assert found.rank_correlation == pytest.approx(1.0)
        assert found.ssim == pytest.approx(1.0, abs=1e-4)


def test_a_blob_elsewhere_is_not_like_it() -> None:
    here, there = np.zeros((7, 7), np.float32), np.zeros((7, 7), np.float32)
    here[1, 1], there[5, 5] = 1, 1
    here, there = (cv2.GaussianBlur(p, (3, 3), 0.8) for p in (here, there))
    (found,) = likeness(here[None], there[None])
    assert found.rank_correlation < 0 and found.ssim < 0.9


def test_an_even_map_has_no_likeness() -> None:
    maps = np.random.default_rng(0).random((1, 7, 7))
    (found,) = likeness(maps, np.zeros((1, 7, 7)))
    assert np.isnan(found.rank_correlation) and np.isnan(found.ssim)
