"""Imputed pixels against values worked out by hand and against pytorch-grad-cam's own."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer

from classify.audit import road as imputing
from classify.audit.road import impute


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
