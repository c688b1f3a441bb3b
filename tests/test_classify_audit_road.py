"""ROAD on nets whose every probability can be worked out by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import nn

from classify.audit import road
from classify.audit import road as imputing
from classify.audit.road import RoadFilms, impute, road_films

SIDE = 16


class LooksLeft(nn.Module):
    """Logits (0, 2 × mean of the film's left half): class 1 lives on the left."""

    def __init__(self, weight: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.drop = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.drop(x[:, :, :, : SIDE // 2].mean((1, 2, 3)))
        return torch.stack([torch.zeros_like(left), self.weight * left], 1)


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


@pytest.fixture
def batch() -> torch.Tensor:
    """Two films: 1 on the left half, 0 on the right."""
    films = torch.zeros(2, 3, SIDE, SIDE)
    films[:, :, :, : SIDE // 2] = 1.0
    return films


@pytest.fixture
def maps() -> np.ndarray:
    """They point at the left half."""
    planes = np.zeros((2, SIDE, SIDE), np.float32)
    planes[:, :, : SIDE // 2] = 1.0
    return planes


def test_a_faithful_map_by_hand(batch: torch.Tensor, maps: np.ndarray) -> None:
    (point,) = road_films(LooksLeft(), batch, maps, [1, 1], [50], noise=0.0).points()
    # the left half gone is filled with the right half's 0, and the right half with the left's 1
    assert point["before"] == pytest.approx(sigmoid(2))
    assert point["morf"] == pytest.approx(0.5, abs=1e-4)
    assert point["lerf"] == pytest.approx(sigmoid(2), abs=1e-4)
    assert point["morf_fall"] == pytest.approx(sigmoid(2) - 0.5, abs=1e-4)
    assert point["lerf_fall"] == pytest.approx(0.0, abs=1e-4)
    assert point["n"] == 2 and point["flat"] == 0


def test_a_faithful_map_falls_faster_than_chance(batch: torch.Tensor, maps: np.ndarray) -> None:
    found = road_films(LooksLeft(), batch.repeat(8, 1, 1, 1), maps.repeat(8, 0), [1] * 16)
    for point in found.points():
        assert point["morf_fall"] is not None and point["lerf_fall"] is not None
        assert point["random_fall"] is not None
        assert point["morf_fall"] > point["random_fall"] > point["lerf_fall"]


def test_a_map_turned_over_falls_the_other_way(batch: torch.Tensor, maps: np.ndarray) -> None:
    right = road_films(LooksLeft(), batch, maps, [1, 1], noise=0.0)
    wrong = road_films(LooksLeft(), batch, 1 - maps, [1, 1], noise=0.0)
    np.testing.assert_allclose(wrong.left["morf"], right.left["lerf"], atol=1e-5)
    value = wrong.area(["a", "b"]).value
    assert value is not None and value < 0


def test_the_class_asked_is_the_one_explained(batch: torch.Tensor, maps: np.ndarray) -> None:
    found = road_films(LooksLeft(), batch, maps, [0, 1], [50], noise=0.0)
    np.testing.assert_allclose(found.before, [1 - sigmoid(2), sigmoid(2)], atol=1e-6)


def test_exactly_the_share_goes_where_many_pixels_are_equal(batch: torch.Tensor) -> None:
    seen: list[torch.Tensor] = []

    class Sees(LooksLeft):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.clone())
            return super().forward(x)

    planes = np.zeros((2, SIDE, SIDE), np.float32)
    planes[:, 3, 3] = 1.0  # all but one pixel are equal
    road_films(Sees(), batch, planes, [1, 1], [25])
    for changed in seen[1:]:  # the noise moves every pixel that went
        assert ((changed != batch)[:, 0].sum((1, 2)) == SIDE * SIDE / 4).all()


def test_pixels_outside_the_film_stay(batch: torch.Tensor, maps: np.ndarray) -> None:
    within = np.zeros(maps.shape, bool)
    within[:, :, SIDE // 2 :] = True  # only what class 1 does not look at
    maps = np.random.default_rng(0).random(maps.shape)
    found = road_films(LooksLeft(), batch, maps, [1, 1], within=within, noise=0.0)
    for left in found.left.values():
        np.testing.assert_allclose(left, sigmoid(2), atol=1e-6)


def test_flat_maps_are_left_out_and_counted(batch: torch.Tensor, maps: np.ndarray) -> None:
    maps[0] = 0.0
    found = road_films(LooksLeft(), batch, maps, [1, 1], [50])
    (point,) = found.points()
    assert found.flat.tolist() == [True, False] and (point["n"], point["flat"]) == (1, 1)
    assert found.area(["a", "b"]).n == 1
    maps[1] = 3.0
    (point,) = road_films(LooksLeft(), batch, maps, [1, 1], [50]).points()
    assert (point["n"], point["flat"], point["morf"], point["morf_fall"]) == (0, 2, None, None)


def test_a_film_gives_the_same_alone_and_among_others(
    batch: torch.Tensor, maps: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = road_films(LooksLeft(), batch, maps, [1, 1], films=["a", "b"], seed=3)
    for i, name in enumerate("ab"):
        alone = road_films(
            LooksLeft(), batch[i : i + 1], maps[i : i + 1], [1], films=[name], seed=3
        )
        for order, left in alone.left.items():
            np.testing.assert_allclose(left[:, 0], together.left[order][:, i], atol=1e-6)
    monkeypatch.setattr(road, "_AT_A_TIME", 1)
    small = road_films(LooksLeft(), batch, maps, [1, 1], films=["a", "b"], seed=3)
    np.testing.assert_allclose(small.left["random"], together.left["random"], atol=1e-6)


def test_seed_and_name_choose_the_random_map(batch: torch.Tensor, maps: np.ndarray) -> None:
    found = [road_films(LooksLeft(), batch, maps, [1, 1], [50], seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(found[0].left["random"], found[1].left["random"])
    assert (found[0].left["random"] != found[2].left["random"]).all()
    assert found[0].left["random"][0, 0] != found[0].left["random"][0, 1]


def test_the_model_the_batch_and_random_numbers_stay(batch: torch.Tensor, maps: np.ndarray) -> None:
    model, kept = LooksLeft().train(), batch.clone()
    state, drawn = torch.random.get_rng_state(), repr(np.random.get_state())
    found = road_films(model, batch, maps, [1, 1], noise=0.0)
    assert found.before == pytest.approx(sigmoid(2))  # without dropout
    assert model.training and model.drop.training and model.weight.requires_grad
    assert torch.equal(batch, kept) and torch.equal(torch.random.get_rng_state(), state)
    assert repr(np.random.get_state()) == drawn
    with pytest.raises(IndexError, match="classes must lie in 0"):
        road_films(model, batch, maps, [1, 2])
    assert model.drop.training


def test_area_by_hand() -> None:
    found = RoadFilms(
        (20.0, 60.0),
        np.ones(2),
        {
            "morf": np.array([[0.5, 0.5], [0.2, 0.6]]),
            "lerf": np.array([[0.9, 0.7], [0.6, 0.8]]),
            "random": np.array([[0.7, 0.5], [0.4, 0.6]]),
        },
    )
    # film 1: gaps 0, 0.4, 0.4, 0 at 0, 20, 60, 100 %: 0.04 + 0.16 + 0.08; film 2 half of it
    assert found.area(["a", "b"]).value == pytest.approx((0.28 + 0.14) / 2)
    # film 1: half of it, film 2: random is no better than morf
    assert found.area(["a", "b"], "random", "morf").value == pytest.approx(0.14 / 2)
    both = found.area(["a", "b"], draws=400)
    assert (both.low, both.high) == pytest.approx((0.14, 0.28))


def test_area_draws_patients() -> None:
    left = {name: np.array([[0.2, 0.4, 0.6]]) for name in ("morf", "random")}
    found = RoadFilms((50.0,), np.ones(3), {"lerf": np.array([[0.2, 0.6, 1.0]]), **left})
    one = found.area(["a", "a", "a"], draws=50)
    assert (one.low, one.high) == pytest.approx((one.value, one.value))


def test_points_are_plain_values_for_the_page() -> None:
    left = {"morf": [[0.5]], "lerf": [[0.875]], "random": [[0.75]]}
    found = RoadFilms((20.0,), np.ones(1), {k: np.array(v) for k, v in left.items()})
    (plain,) = found.points()
    assert {"percentile": 20.0, "morf": 0.5, "lerf": 0.875, "random": 0.75}.items() <= plain.items()
    assert plain["morf_fall"] == 0.5 and plain["lerf_fall"] == 0.125 and plain["n"] == 1


def test_a_class_for_each_film_is_needed(batch: torch.Tensor, maps: np.ndarray) -> None:
    with pytest.raises(ValueError, match="classes must name one logit"):
        road_films(LooksLeft(), batch, maps, [1])


# --- imputed pixels


def holes(kind: str, size_hw: tuple[int, int], share: float) -> np.ndarray:
    """(h, w) bool: single pixels, blobs, or a frame along the edge."""
    rng = np.random.default_rng(5)
    height, width = size_hw
    if kind == "pixels":
        field = rng.random(size_hw)
    elif kind == "blobs":
        field = cv2.resize(rng.random((5, 4)), (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        field = np.hypot(*np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j])
    return field >= np.quantile(field, 1 - share)


def test_a_pixel_is_the_weighted_mean_of_its_neighbours() -> None:
    image = np.array([[[1, 2, 3], [4, 99, 6], [7, 8, 12]]], np.float32)
    gone = np.zeros((3, 3), bool)
    gone[1, 1] = True
    # sides (2 + 4 + 6 + 8) / 6, corners (1 + 3 + 7 + 12) / 12
    assert impute(image, gone)[0, 1, 1] == pytest.approx(20 / 6 + 23 / 12, abs=1e-4)


def test_a_corner_counts_the_neighbours_it_has() -> None:
    image = np.array([[[99, 6, 0], [12, 3, 0], [0, 0, 0]]], np.float32)
    gone = np.zeros((3, 3), bool)
    gone[0, 0] = True
    # (6 / 6 + 12 / 6 + 3 / 12) over 1/6 + 1/6 + 1/12
    assert impute(image, gone)[0, 0, 0] == pytest.approx(3.25 / (5 / 12), abs=1e-4)


def test_what_is_known_stays_as_it_is_and_the_image_too() -> None:
    image = np.random.default_rng(0).normal(size=(3, 20, 24)).astype(np.float32)
    kept, gone = image.copy(), holes("blobs", (20, 24), 0.5)
    found = impute(image, gone, np.ones((3, 20, 24), np.float32))
    np.testing.assert_array_equal(image, kept)
    np.testing.assert_array_equal(found[:, ~gone], image[:, ~gone])


def test_a_constant_is_imputed_exactly() -> None:
    image = np.full((1, 31, 17), -0.7, np.float32)
    np.testing.assert_allclose(impute(image, holes("blobs", (31, 17), 0.9)), image, atol=1e-6)


@pytest.mark.parametrize("kind", ["pixels", "blobs", "frame"])
@pytest.mark.parametrize("share", [0.2, 0.8, 0.97])
@pytest.mark.parametrize("size_hw", [(48, 64), (33, 45), (5, 7)])
def test_pixels_are_those_of_the_library(
    kind: str, share: float, size_hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(plane: np.ndarray, gone: np.ndarray) -> np.ndarray:
        raise AssertionError("conjugate gradients did not arrive")

    monkeypatch.setattr(imputing, "_direct", never)
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.normal(size=size_hw).astype(np.float32), (0, 0), 1.5)[None]
    image, gone = image / image.std(), holes(kind, size_hw, share)
    known = torch.from_numpy((~gone).astype(np.float32))
    theirs = NoisyLinearImputer(noise=0.0)(torch.from_numpy(image), known).numpy()
    np.testing.assert_allclose(impute(image, gone), theirs, atol=1e-3)


def test_the_library_steps_in_where_the_steps_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(2).normal(size=(1, 24, 24)).astype(np.float32)
    gone = holes("blobs", (24, 24), 0.6)
    expected = impute(image, gone)
    monkeypatch.setattr(imputing, "_STEPS", 2)
    np.testing.assert_allclose(impute(image, gone), expected, atol=1e-3)


def test_channels_that_differ_are_imputed_each() -> None:
    plane = np.random.default_rng(3).normal(size=(16, 16)).astype(np.float32)
    gone = holes("blobs", (16, 16), 0.4)
    found = impute(np.stack([plane, plane, 2 * plane + 1]), gone)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_allclose(found[2], 2 * found[0] + 1, atol=1e-3)
