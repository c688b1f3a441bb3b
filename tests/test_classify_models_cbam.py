"""classify/models/unets.py: the weights of channels and places, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from classify.models.unets import CBAM, ChannelAttention, SpatialAttention


def maps(channels: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, 6, 5, generator=torch.Generator().manual_seed(0))


def sigmoid(value: float) -> float:
    return float(torch.sigmoid(torch.tensor(value)))


def test_mean_and_maximum_go_through_the_same_small_network() -> None:
    """A network that passes its input on: the weight is sigmoid(mean + maximum)."""
    attention = ChannelAttention(2)
    attention.mlp = nn.Sequential(nn.Identity())
    x = torch.tensor([[[[1.0, 3.0]], [[-4.0, 0.0]]]])
    expected = [sigmoid(2 + 3), sigmoid(-2 + 0)]
    assert attention(x).shape == (1, 2, 1, 1)
    assert attention(x).flatten().tolist() == pytest.approx(expected)


def test_the_hidden_layer_is_reduced_but_not_to_nothing() -> None:
    assert ChannelAttention(512).mlp[0].out_features == 32
    assert ChannelAttention(32).mlp[0].out_features == 4


def test_places_are_weighed_by_mean_and_maximum_of_the_channels() -> None:
    attention = SpatialAttention(1)
    with torch.no_grad():
        attention.conv.weight.copy_(torch.tensor([[[[2.0]], [[1.0]]]]))
        attention.conv.bias.zero_()
    x = torch.tensor([[[[0.0, 1.0]], [[2.0, -3.0]]]])  # means 1 and −1, maxima 2 and 1
    assert attention(x).flatten().tolist() == pytest.approx([sigmoid(4), sigmoid(-1)])


def test_a_place_sees_seven_by_seven_others() -> None:
    attention = SpatialAttention()
    x = torch.zeros(1, 1, 15, 15)
    lit = x.clone()
    lit[0, 0, 7, 7] = 1.0
    rows, columns = torch.nonzero((attention(lit) != attention(x))[0, 0], as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 10, 4, 10)


def test_channels_come_first_and_places_after() -> None:
    block = CBAM(8)
    x = maps()
    inner = x * block.channel(x)
    assert torch.equal(block(x), inner * block.spatial(inner))


def test_attention_only_ever_weakens() -> None:
    x = maps()
    out = CBAM(8)(x)
    assert out.shape == x.shape
    assert (out.abs() <= x.abs()).all() and (out.sign() == x.sign()).all()


def test_all_weights_learn() -> None:
    block = CBAM(8)
    block(maps()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"odd.*Got 4"):
        SpatialAttention(4)
