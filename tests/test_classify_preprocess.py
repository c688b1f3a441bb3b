"""classify/preprocess.py: what a member sees of a film."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from classify.preprocess import (
    ForeignPreprocess,
    PreprocessConfig,
    frame_of,
    preprocess,
    preprocess_all,
    to_input,
)


@pytest.mark.parametrize("contrast", ["none", "clahe", "hist-equalization"])
@pytest.mark.parametrize("size", [(90, 150), (150, 90), (700, 640)])
def test_any_film_becomes_a_square_in_range(contrast: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).random(size, np.float32)
    out = preprocess(pixels, PreprocessConfig(side=64, contrast=contrast, work_side=256))
    assert out.shape == (64, 64)
    assert out.dtype == np.float32
    assert 0 <= out.min() < out.max() <= 1


def test_the_padding_is_centred_and_black() -> None:
    pixels = np.random.default_rng(0).uniform(0.4, 1, (60, 120)).astype(np.float32)
    out = preprocess(pixels, PreprocessConfig(side=64))
    assert not out[:15].any()
    assert not out[49:].any()
    assert out[20:44].min(1).max() > 0


@pytest.mark.parametrize("contrast", ["none", "clahe"])
def test_the_frame_leads_from_the_input_back_to_the_film(contrast: str) -> None:
    pixels = np.full((300, 200), 0.2, np.float32)
    pixels[225:235, 45:55] = 1.0  # centre (x 50, y 230)
    config = PreprocessConfig(side=96, contrast=contrast, clip=False)
    out = preprocess(pixels, config)
    y, x = np.unravel_index(out.argmax(), out.shape)
    found = frame_of((300, 200), config).to_original_xyxy([x, y, x + 1, y + 1])[0]
    assert found[[0, 2]].mean() == pytest.approx(50, abs=5)
    assert found[[1, 3]].mean() == pytest.approx(230, abs=5)


def test_the_film_is_stretched_between_its_percentiles() -> None:
    ramp = np.linspace(0.3, 0.6, 64 * 64, dtype=np.float32).reshape(64, 64)
    out = preprocess(ramp, PreprocessConfig(side=64, low_percentile=25, high_percentile=75))
    assert out.flat[64 * 16] == pytest.approx(0, abs=0.01)
    assert out.flat[64 * 32] == pytest.approx(0.5, abs=0.01)
    assert out.flat[64 * 48] == pytest.approx(1, abs=0.01)


def test_resolution_hardly_changes_what_a_member_sees() -> None:
    small = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    film = np.kron(small, np.ones((8, 8), np.float32))
    large = np.kron(film, np.ones((4, 4), np.float32))
    config = PreprocessConfig(side=64, contrast="clahe", work_side=256)
    assert np.abs(preprocess(film, config) - preprocess(large, config)).max() < 0.02


def test_input_is_normalised_as_the_encoder_wants_it() -> None:
    x = to_input(torch.full((2, 1, 32, 32), 0.498), PreprocessConfig(side=32))
    assert x.shape == (2, 3, 32, 32)
    assert x.abs().max() < 1e-6
    assert to_input(torch.ones(1, 1, 4, 4), PreprocessConfig()).mean() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "bad",
    [
        np.ones((8, 8, 3), np.float32),
        np.full((8, 8), 255, np.float32),
        np.full((8, 8), np.nan, np.float32),
    ],
)
def test_pixels_in_another_form_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pixels"):
        preprocess(bad, PreprocessConfig(side=32))


@pytest.mark.parametrize(
    "wrong",
    [{"side": 16}, {"contrast": "gamma"}, {"low_percentile": 99.9}, {"std": (1.0, 0.0, 1.0)}],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PreprocessConfig(**wrong)


def test_settings_come_back_from_a_bundle() -> None:
    config = PreprocessConfig(side=96, mean=(0.1, 0.2, 0.3))
    data = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    assert PreprocessConfig.from_dict(data) == config
    with pytest.raises(ValueError, match="unknown keys"):
        PreprocessConfig.from_dict({**data, "novel": 1})


def test_a_stretched_film_fills_the_square_and_leads_back() -> None:
    config = ForeignPreprocess(side=32, clip=False, work_side=0, fit="stretch")
    film = np.zeros((40, 80), np.float32)
    film[:20] = 1
    (image,), (frame,) = preprocess_all([film], config)
    assert image[0, :16].min() == 1 and image[0, 16:].max() == 0
    back = frame.restore(image[0], (40, 80))
    assert back.shape == film.shape and back[:18].min() == 1 and back[22:].max() == 0
    assert PreprocessConfig(side=32) == PreprocessConfig.from_dict({"side": 32})
    with pytest.raises(ValueError, match="fit must be one of pad, stretch"):
        ForeignPreprocess(fit="squeeze")
