"""SSIM of classify/saliency/maps.py: against scikit-image's, figures by hand, and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from classify.saliency.maps import ssim, ssim_loss, ssim_map, ssim_of

structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity


def pictures(height: int = 40, width: int = 53, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pairs of (1, H, W) pictures that are alike in parts."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(2, 1, height, width, generator=generator)
    b = (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    return a, b


def theirs(a: torch.Tensor, b: torch.Tensor) -> float:
    return structural_similarity(
        a.numpy().astype(np.float64),
        b.numpy().astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )


def test_the_figure_is_scikit_images() -> None:
    a, b = pictures()
    expected = [theirs(p[0], q[0]) for p, q in zip(a, b, strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0.1 and max(expected) < 0.95  # neither case says nothing


def test_the_figure_is_scikit_images_on_smooth_pictures() -> None:
    """Small variances: what float32 could lose."""
    a = torch.linspace(0.5, 0.52, 40 * 40).view(1, 1, 40, 40)
    b = a.flip(3)
    assert ssim(a, b).item() == pytest.approx(theirs(a[0, 0], b[0, 0]), abs=1e-4)


def test_one_window_by_hand_in_double_precision() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((11, 11)), rng.random((11, 11))
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
    both = (window * (a - mean_a) * (b - mean_b)).sum()
    expected = ((2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)) / (
        (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    )
    assert ssim_of(a, b) == pytest.approx(expected, rel=1e-6)


def test_equal_pictures_have_1() -> None:
    a, _ = pictures()
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert ssim_loss(a, a).item() == pytest.approx(0.0, abs=1e-6)


def test_flat_pictures_are_told_apart_by_their_light_alone() -> None:
    """Grey 0.25 and 0.75: (2 · 0.1875 + 1e-4) / (0.0625 + 0.5625 + 1e-4) = 0.60006."""
    a, b = torch.full((1, 1, 16, 16), 0.25), torch.full((1, 1, 16, 16), 0.75)
    assert ssim(a, b).item() == pytest.approx(0.3751 / 0.6251, abs=1e-4)


def test_a_negative_of_a_fine_pattern_has_less_than_none() -> None:
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2.0
    a = board.view(1, 1, 32, 32)
    assert ssim(a, 1 - a).item() < -0.9


def test_the_window_stays_on_the_picture() -> None:
    a, b = pictures(20, 31)
    assert ssim_map(a, b).shape == (2, 1, 10, 21)


def test_the_order_of_the_pictures_does_not_matter() -> None:
    a, b = pictures()
    assert torch.allclose(ssim(a, b), ssim(b, a))


def test_the_gradient_is_that_of_small_steps() -> None:
    a, b = pictures(14, 13)
    a.requires_grad_()
    ssim_loss(a, b).backward()
    assert a.grad is not None
    step = 5e-3
    for place in [(0, 0, 6, 6), (1, 0, 3, 9), (0, 0, 0, 0)]:
        up, down = a.detach().clone(), a.detach().clone()
        up[place] += step
        down[place] -= step
        slope = (ssim_loss(up, b) - ssim_loss(down, b)).item() / (2 * step)
        assert a.grad[place].item() == pytest.approx(slope, abs=2e-4)


def test_a_step_against_the_gradient_brings_pictures_nearer() -> None:
    a, b = pictures()
    a.requires_grad_()
    before = ssim_loss(a, b)
    before.backward()
    assert a.grad is not None
    after = ssim_loss(a.detach() - 10 * a.grad, b)
    assert after < before


def test_flat_and_equal_pictures_give_no_nan() -> None:
    a = torch.zeros(1, 1, 12, 12, requires_grad=True)
    ssim_loss(a, torch.zeros(1, 1, 12, 12)).backward()
    assert a.grad is not None and torch.isfinite(a.grad).all()


def test_half_precision_is_computed_in_full() -> None:
    a, b = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim(a, b)
    assert inside.dtype == torch.float32 and torch.equal(inside, ssim(a, b))


@pytest.mark.parametrize("shape", [(1, 1, 10, 20), (1, 16, 16)])
def test_pictures_that_the_window_does_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match="of one shape"):
        ssim(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 17))
