"""Score-CAM by hand and against the library, top-k channels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_grad_cam import ScoreCAM
from saliency_nets import (
    HAND_MAPS,
    TARGET,
    HandNet,
    HeadNet,
    as_the_library_has_it,
    films,
    linear_net,
    pooled,
)
from torch import nn

from classify.saliency.maps import saliency_maps


def test_score_cam_worked_out_by_hand() -> None:
    # Mask 1 is (A₁ − 1) / 3: means of the masked channels 5/3 and 1/4, logit 20/3 − 2 = 14/3.
    # Mask 2 is A₂: means 5/4 and 1/2, logit 5 − 4 = 1. Softmax of 14/3 and 1.
    first = 1 / (1 + math.exp(1 - 14 / 3))
    (plane,) = saliency_maps(HandNet(), HAND_MAPS, [TARGET], "score_cam")
    expected = first * HAND_MAPS[0, 0] + (1 - first) * HAND_MAPS[0, 1]
    np.testing.assert_allclose(plane, expected.numpy(), rtol=1e-5)


def test_one_channel_is_the_one_with_the_most_energy() -> None:
    (plane,) = saliency_maps(HandNet(), HAND_MAPS, [TARGET], "score_cam", top_k=1)
    np.testing.assert_allclose(plane, HAND_MAPS[0, 0].numpy())  # 30 against 2


@pytest.mark.parametrize("score_batch", [1, 5, 64])
def test_all_channels_give_the_library_s_map(score_batch: int) -> None:
    net, batch, classes = linear_net(), films(3, 16, 20), [0, 1, 2]
    ours = saliency_maps(net, batch, classes, "score_cam", top_k=None, score_batch=score_batch)
    theirs = as_the_library_has_it(ScoreCAM, net, net.neck, batch, classes)
    assert theirs.max() > 0
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one / one.max(), other / other.max(), atol=1e-3)


def test_dead_channels_count_as_in_the_library() -> None:
    """They mask everything and are asked by one black film for all."""
    torch.manual_seed(0)
    net = HeadNet(pooled(nn.Linear(8, 3)), after=None).eval()
    net.neck.weight.data[2:6] = 0
    net.neck.bias.data[2:6] = 0
    ours = saliency_maps(net, films(), [0, 1, 2], "score_cam", top_k=None)
    theirs = as_the_library_has_it(ScoreCAM, net, net.neck, films(), [0, 1, 2])
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * theirs.max())
    calls = []
    handle = net.register_forward_hook(lambda _m, x, _o: calls.append(len(x[0])))
    saliency_maps(net, films(), [0, 1, 2], "score_cam", top_k=None)
    handle.remove()
    assert sum(calls) == 3 + 1 + 3 * 4  # the films, the black one, four channels of each


def test_masked_films_come_in_batches_across_films() -> None:
    net, calls = linear_net(), []
    handle = net.register_forward_hook(lambda _m, x, _o: calls.append(len(x[0])))
    saliency_maps(net, films(), [1, 1, 1], "score_cam", top_k=4, score_batch=5)
    handle.remove()
    assert calls == [3, 1, 5, 5, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"top_k": 0}, "top_k must be at least 1, or None"), ({"score_batch": 0}, "score_batch must")],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        saliency_maps(linear_net(), films(), [0, 1, 2], "score_cam", **options)
