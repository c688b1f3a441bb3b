"""Maps that hide parts of the input: where they point on a network whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from classify.ensemble import SingleMember
from classify.saliency.maps import CELLS, maps_of_all, masked_maps, saliency_maps

SIDE = 8 * CELLS  # a cell is 8 px wide
SPOT = (slice(16, 24), slice(40, 48))  # the cell of row 2, column 5


class Spot(nn.Module):
    """Logit 1 is the mean of one cell; it counts how often it is asked, and names no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += len(x)
        level = x[:, 0, *SPOT].mean((1, 2))
        return torch.stack([0 * level, level, 0 * level - 50], dim=1)


@pytest.fixture
def film() -> torch.Tensor:
    """Dark, but for the cell, which is 1."""
    batch = torch.zeros(1, 3, SIDE, SIDE)
    batch[:, :, *SPOT] = 1
    return batch


def test_occlusion_is_the_fall_of_the_answer(film: torch.Tensor) -> None:
    (plane,) = saliency_maps(Spot(), film, [1], "occlusion")
    expected = np.zeros((CELLS, CELLS), np.float32)
    # hidden, the cell takes the film's mean, 1 / 64: the log-odds against logit 0 fall by the rest
    expected[2, 5] = 1 - 1 / CELLS**2
    np.testing.assert_allclose(plane, expected, atol=1e-6)


@pytest.mark.parametrize("method", ["rise", "score_cam"])
def test_a_map_of_answers_alone_points_at_the_cell(method: str, film: torch.Tensor) -> None:
    (plane,) = saliency_maps(Spot(), film, [1], method)
    row, column = np.unravel_index(plane.argmax(), plane.shape)
    cell = plane.shape[0] / CELLS
    assert (int(row // cell), int(column // cell)) == (2, 5)
    again = saliency_maps(Spot(), film, [1], method)[0]
    np.testing.assert_array_equal(plane, again)  # masks are drawn by seed


def test_a_film_answers_alike_alone_and_among_others(film: torch.Tensor) -> None:
    both = torch.cat([film, torch.rand(1, 3, SIDE, SIDE)])
    alone = saliency_maps(Spot(), film, [1], "rise")[0]
    np.testing.assert_allclose(saliency_maps(Spot(), both, [1, 1], "rise")[0], alone, atol=1e-6)


def test_members_of_one_network_ask_it_once(film: torch.Tensor) -> None:
    net = Spot()
    members = [SingleMember(net, 0, 1), SingleMember(net, 0, 2)]
    first, second = maps_of_all(members, film, 1, "occlusion")
    assert net.asked == CELLS**2 + 1
    assert first.max() > 0.9 and first.shape == second.shape == (1, CELLS, CELLS)


def test_a_flat_film_has_an_empty_map() -> None:
    plane = masked_maps([Spot()], torch.full((1, 3, SIDE, SIDE), 0.5), [1], "occlusion")[0]
    assert not plane.any()


def test_grad_cam_still_wants_a_layer(film: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="saliency_layer"):
        saliency_maps(Spot(), film, [1], "grad_cam")
