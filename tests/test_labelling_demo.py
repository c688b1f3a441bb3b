"""labelling.demo: drawn chests and the pictures made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelling.demo import draw_chest, write_rule_pictures

SIZES_HW = ((160, 120), (120, 200), (64, 64), (300, 300))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_a_chest_fills_its_film_and_its_box_is_a_chest_in_shape(
    size_hw: tuple[int, int], seed: int
) -> None:
    pixels, (x0, y0, x1, y1) = draw_chest(*size_hw, seed)
    height, width = size_hw
    assert (pixels.shape, pixels.dtype) == (size_hw, np.float32)
    assert 0 <= pixels.min() < 0.1
    assert 0.8 < pixels.max() <= 1
    assert 0 < x0 < x1 < width
    assert 0 < y0 < y1 < height
    assert 1.0 < (x1 - x0) / (y1 - y0) < 1.3
    assert (x1 - x0) * (y1 - y0) > 0.2 * height * width


def test_the_same_seed_draws_the_same_film() -> None:
    one, two, other = draw_chest(160, 160, 1), draw_chest(160, 160, 1), draw_chest(160, 160, 2)
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    assert not np.array_equal(one[1], other[1])


def test_lungs_are_darker_than_heart_and_abdomen() -> None:
    pixels, (x0, y0, x1, y1) = draw_chest(400, 400, letter=False)
    across, down = x1 - x0, y1 - y0

    def level(x: float, y: float) -> float:
        row, column = round(y0 + y * down), round(x0 + x * across)
        return float(pixels[row - 8 : row + 9, column - 8 : column + 9].mean())

    right_lung, left_lung = level(0.25, 0.5), level(0.85, 0.6)
    heart, belly = level(0.62, 0.75), level(0.3, 1.05)
    assert max(right_lung, left_lung) + 0.15 < min(heart, belly)


def test_the_heart_lies_on_the_films_right() -> None:
    pixels, (x0, y0, x1, y1) = draw_chest(400, 400, letter=False)
    rows = slice(round(y0 + 0.65 * (y1 - y0)), round(y0 + 0.75 * (y1 - y0)))
    middle, step = (x0 + x1) / 2, 0.2 * (x1 - x0)
    left = pixels[rows, round(middle - step) - 6 : round(middle - step) + 6].mean()
    right = pixels[rows, round(middle + step) - 6 : round(middle + step) + 6].mean()
    assert right > left + 0.15


def test_a_white_lung_keeps_its_box() -> None:
    aired, box = draw_chest(300, 300, 3, letter=False)
    white, same = draw_chest(300, 300, 3, opaque=True, letter=False)
    assert np.array_equal(box, same)
    x0, y0, x1, y1 = box
    part = (
        slice(round(y0 + 0.6 * (y1 - y0)), round(y0 + 0.8 * (y1 - y0))),
        slice(round(x0 + 0.8 * (x1 - x0)), round(x0 + 0.92 * (x1 - x0))),
    )
    assert white[part].mean() > aired[part].mean() + 0.15


def test_a_letter_stands_beside_the_right_shoulder() -> None:
    plain, _ = draw_chest(300, 300, letter=False)
    lettered, _ = draw_chest(300, 300, letter=True)
    changed = np.argwhere(np.abs(lettered - plain) > 0.01)
    assert len(changed) > 50
    assert changed.max(0)[1] < 100


def test_a_film_may_be_without_grain() -> None:
    smooth, _ = draw_chest(200, 200, letter=False, grain=0)
    grainy, _ = draw_chest(200, 200, letter=False)
    corner = (slice(0, 10), slice(0, 10))
    assert smooth[corner].std() < grainy[corner].std()


def test_too_small_a_film_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 64 px. Got 63 × 100"):
        draw_chest(63, 100)


@pytest.fixture(scope="module")
def rule_pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pictures of the rule, written once for all tests: they are large."""
    return write_rule_pictures(tmp_path_factory.mktemp("rule") / "new")


def test_the_rule_has_two_small_pictures(rule_pictures: list[Path]) -> None:
    assert [path.name for path in rule_pictures] == ["rule_box.png", "rule_cases.png"]
    for path in rule_pictures:
        assert path.stat().st_size < 200_000
        with Image.open(path) as image:
            assert min(image.size) > 700


def test_the_pictures_beside_the_rule_are_up_to_date(rule_pictures: list[Path], root: Path) -> None:
    for path in rule_pictures:
        with Image.open(path) as new, Image.open(root / "annotations" / path.name) as kept:
            drawn, stored = (np.asarray(i.convert("RGB"), np.float32) for i in (new, kept))
        assert stored.shape == drawn.shape
        assert np.abs(stored - drawn).mean() < 1  # not equal to the byte on every machine
