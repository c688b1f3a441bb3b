"""What is hidden, how far round the lungs, on films and on crops; then what members answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from classify.audit.masking import (
    CONTROLS,
    MaskedFilm,
    apply_control,
    control_logits,
    grow,
    name_of,
)
from cxr.boxes import Frame


@pytest.fixture
def film() -> tuple[np.ndarray, np.ndarray]:
    """A film of 0.5 (40 × 100) with a lung of 0.25 in rows 10–30, columns 20–60."""
    pixels = np.full((40, 100), 0.5, np.float32)
    lung = np.zeros((40, 100), bool)
    lung[10:30, 20:60] = True
    pixels[lung] = 0.25
    return pixels, lung


def test_growing_reaches_the_margin_of_the_longer_side() -> None:
    mask = np.zeros((50, 100), bool)
    mask[20, 30] = True
    grown = grow(mask, 0.02)  # 2 px
    # all within 2 px of one pixel: 5 + 2 × 3 + 2 × 1
    assert grown.sum() == 13 and grown[20, 28] and grown[18, 30] and not grown[18, 29]


def test_no_margin_grows_nothing(film: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(grow(film[1], 0.0), film[1])


def test_outside_only_hides_the_lungs_and_the_margin(film: tuple[np.ndarray, np.ndarray]) -> None:
    hidden = apply_control(*film, "outside_only", margin=0.02)
    assert (hidden[10:30, 18:62] == 0).all() and (hidden[8, 20:60] == 0).all()
    assert (hidden[:7] == 0.5).all() and (hidden[:, 62:] == 0.5).all()
    assert hidden.dtype == np.float32


def test_lungs_only_hides_the_rest_without_a_margin(film: tuple[np.ndarray, np.ndarray]) -> None:
    hidden = apply_control(*film, "lungs_only")
    assert (hidden[film[1]] == 0.25).all() and (hidden[~film[1]] == 0).all()


def test_the_rim_belongs_to_neither(film: tuple[np.ndarray, np.ndarray]) -> None:
    outside, lungs = (apply_control(*film, c) for c in ("outside_only", "lungs_only"))
    rim = grow(film[1]) & ~film[1]
    assert rim.any() and not ((outside > 0) & (lungs > 0)).any()
    assert (outside[rim] == 0).all() and (lungs[rim] == 0).all()


def test_shape_only_keeps_nothing_but_the_outline(film: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lung = film
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 0.1, pixels.shape), 0, 1)
    left = apply_control(pixels, lung, "shape_only")
    np.testing.assert_array_equal(left, apply_control(noisy.astype(np.float32), lung, "shape_only"))
    np.testing.assert_array_equal(left == 0, grow(lung))


def test_mean_is_that_of_what_stays(film: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lung = film
    assert (apply_control(pixels, lung, "outside_only", fill="mean") == 0.5).all()
    assert (apply_control(pixels, lung, "lungs_only", fill="mean") == 0.25).all()


def test_the_film_itself_stays_as_it_was(film: tuple[np.ndarray, np.ndarray]) -> None:
    before = film[0].copy(), film[1].copy()
    for control in CONTROLS:
        apply_control(*film, control)
    np.testing.assert_array_equal(film[0], before[0])
    np.testing.assert_array_equal(film[1], before[1])


@pytest.mark.parametrize("control", CONTROLS)
def test_a_crop_is_hidden_where_its_film_is(
    film: tuple[np.ndarray, np.ndarray], control: str
) -> None:
    frame = Frame.cut((24, 4, 70, 36))
    crop = frame.apply(film[0])
    expected = frame.apply(apply_control(*film, control))
    np.testing.assert_array_equal(apply_control(crop, film[1], control, frame=frame), expected)


def test_lung_just_beyond_a_crop_hides_its_edge(film: tuple[np.ndarray, np.ndarray]) -> None:
    frame = Frame.cut((61, 0, 100, 40))  # begins 1 px right of the lung; the margin is 2 px
    hidden = apply_control(frame.apply(film[0]), film[1], "outside_only", frame=frame)
    assert (hidden[10:30, 0] == 0).all() and (hidden[:, 1:] == 0.5).all()


def test_beyond_the_film_a_crop_stays_black(film: tuple[np.ndarray, np.ndarray]) -> None:
    frame = Frame.cut((-10, 0, 50, 40))
    hidden = apply_control(frame.apply(film[0]), film[1], "outside_only", frame=frame)
    assert (hidden[:, :10] == 0).all() and (hidden[:5, 10:] == 0.5).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"control": "lungs"}, "control must be one of"),
        ({"fill": "white"}, "fill must be one of"),
        ({"margin": 0.5}, "margin must lie in"),
        ({"lung": np.zeros((40, 100), bool)}, "leave the film out"),
        ({"lung": np.ones((40, 100))}, "must be .* bool"),
        ({"lung": np.ones((40, 99), bool)}, "for a crop give its frame"),
        ({"frame": Frame.cut((0, 0, 10, 10))}, "the size of the frame's crop"),
    ],
)
def test_errors_name_the_argument(
    film: tuple[np.ndarray, np.ndarray], wrong: dict[str, object], message: str
) -> None:
    given = {"pixels": film[0], "lung": film[1], "control": "outside_only"} | wrong
    with pytest.raises(ValueError, match=message):
        apply_control(**given)  # type: ignore[arg-type]


class MeanAndMaximum:
    """One member whose logits are the picture's mean, maximum and 0; notes the batches' sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def prepare(self, pixels: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[Frame]]:
        self.sizes.append(len(pixels))
        return torch.tensor([[p.mean(), p.max(), 0.0] for p in pixels]), []

    def predict_prepared(self, batch: torch.Tensor) -> np.ndarray:
        return batch[:, None].numpy()


def test_members_see_each_control_batch_by_batch(film: tuple[np.ndarray, np.ndarray]) -> None:
    members = MeanAndMaximum()
    films = (MaskedFilm(*film) for _ in range(5))
    logits = control_logits(members, films, ("outside_only", "lungs_only"), batch_size=2)
    assert list(logits) == ["as is", "outside only", "lungs only"]
    assert all(v.shape == (5, 1, 3) for v in logits.values())
    assert members.sizes == [2] * 6 + [1] * 3
    assert (logits["lungs only"][:, 0, 1] == 0.25).all()
    np.testing.assert_allclose(logits["as is"][:, 0, 0], film[0].mean(), rtol=1e-6)


def test_another_fill_has_a_name_of_its_own() -> None:
    assert name_of("lungs_only") == "lungs only"
    assert name_of("lungs_only", "mean") == "lungs only, mean"
    assert name_of("shape_only", "mean") == "shape only"


def test_no_film_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one film"):
        control_logits(MeanAndMaximum(), [])
