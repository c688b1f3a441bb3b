"""Burnt-in text: found where letters were written, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import draw_phantom

from classify.audit.metrics import find_text
from cxr.film import read_film
from cxr.films_table import read_films_table


def chest(height: int = 512, width: int = 448, seed: int = 3) -> np.ndarray:
    """A chest without text, at the size that the rules were chosen for."""
    return draw_phantom(height, width, seed)[0]


def write(
    film: np.ndarray,
    text: str,
    at_xy: tuple[int, int],
    size: float = 0.8,
    stroke: int = 2,
    grey: float = 1.0,
    turn: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The film with text whose first base line begins at `at_xy`, and the ink (H, W) bool."""
    ink = np.zeros(film.shape, np.uint8)
    cv2.putText(ink, text, at_xy, cv2.FONT_HERSHEY_SIMPLEX, size, 255, stroke, cv2.LINE_AA)
    if turn:
        turned = cv2.getRotationMatrix2D(at_xy, turn, 1)
        ink = cv2.warpAffine(ink, turned, film.shape[::-1])
    share = ink.astype(np.float32) / 255
    return film * (1 - share) + grey * share, ink > 64


def covered(mask: np.ndarray, ink: np.ndarray) -> float:
    assert ink.any()
    return float(mask[ink].mean())


# --- what is text


@pytest.mark.parametrize("size", [0.4, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("at_xy", [(6, 50), (400, 50), (6, 505), (400, 505)])
def test_a_letter_in_any_corner_is_found(size: float, at_xy: tuple[int, int]) -> None:
    film, ink = write(chest(), "R", at_xy, size)
    assert covered(find_text(film), ink) > 0.95


@pytest.mark.parametrize("letter", list("LAPSE"))
def test_other_letters_are_found(letter: str) -> None:
    film, ink = write(chest(), letter, (30, 60))
    assert covered(find_text(film), ink) > 0.95


@pytest.mark.parametrize("turn", [20, 45, 90, 180, 270])
def test_a_letter_at_any_angle_is_found(turn: float) -> None:
    film, ink = write(chest(), "R", (90, 60), turn=turn)
    assert covered(find_text(film), ink) > 0.95


def test_a_letter_that_the_edge_cuts_is_found() -> None:
    film, ink = write(chest(), "R", (-8, 60))
    assert covered(find_text(film), ink) > 0.95


def test_an_arrow_is_found() -> None:
    film, ink = chest(), np.zeros((512, 448), np.uint8)
    cv2.arrowedLine(ink, (30, 30), (60, 40), 255, 2, cv2.LINE_AA, tipLength=0.4)
    film = np.maximum(film, ink / np.float32(255))
    assert covered(find_text(film), ink > 64) > 0.95


@pytest.mark.parametrize("text", ["12:45:07", "PORTABLE"])
def test_a_line_of_text_is_found(text: str) -> None:
    film, ink = write(chest(), text, (30, 60), 0.5, 1)
    assert covered(find_text(film), ink) > 0.9


def test_a_column_of_letters_is_found() -> None:
    film, inks = chest(), []
    for n, letter in enumerate("ABCDE"):
        film, ink = write(film, letter, (20, 60 + 17 * n), 0.5, 1, grey=0.78)
        inks.append(ink)
    assert covered(find_text(film), np.any(inks, axis=0)) > 0.9


def test_a_line_may_be_fainter_than_a_letter_alone() -> None:
    alone, _ = write(chest(), "R", (30, 60), 0.5, 1, grey=0.78)
    line, ink = write(chest(), "12:45:07", (30, 60), 0.5, 1, grey=0.78)
    assert not find_text(alone).any()
    assert covered(find_text(line), ink) > 0.9


def test_the_mask_is_the_letters_and_little_more() -> None:
    film, ink = write(chest(), "R", (30, 60))
    mask = find_text(film)
    x, y, w, h = cv2.boundingRect(ink.astype(np.uint8))
    beyond = np.ones(ink.shape, bool)
    beyond[y - 4 : y + h + 4, x - 4 : x + w + 4] = False
    assert not mask[beyond].any()
    assert mask.sum() < 3 * ink.sum()


def test_text_is_found_beside_what_is_none() -> None:
    film, ink = write(chest(), "R", (30, 60))
    cv2.circle(film, (380, 60), 8, 1.0, -1, cv2.LINE_AA)
    mask = find_text(film)
    assert covered(mask, ink) > 0.95 and not mask[:, 200:].any()


# --- what is none


@pytest.mark.parametrize("size_hw", [(160, 140), (512, 448), (448, 512), (1024, 896)])
def test_a_chest_without_text_has_none(size_hw: tuple[int, int]) -> None:
    assert not any(find_text(chest(*size_hw, seed)).any() for seed in range(4))


@pytest.mark.parametrize("radius", [2, 4, 8, 14, 25])
def test_blobs_are_not_text(radius: int) -> None:
    film = chest()
    for x in (60, 130, 200):
        cv2.circle(film, (x, 60), radius, 1.0, -1, cv2.LINE_AA)
    cv2.ellipse(film, (60, 440), (radius, max(2, radius // 2)), 30, 0, 360, 1.0, -1, cv2.LINE_AA)
    assert not find_text(film).any()


@pytest.mark.parametrize("width", [1, 2, 4])
def test_wires_are_not_text(width: int) -> None:
    film = chest()
    bends = np.array([[20, 500], [100, 400], [140, 200], [300, 180], [440, 20]])
    cv2.polylines(film, [bends], False, 1.0, width, cv2.LINE_AA)
    cv2.line(film, (20, 40), (45, 60), 1.0, width, cv2.LINE_AA)
    assert not find_text(film).any()


@pytest.mark.parametrize("width", [2, 4, 8])
def test_bright_ribs_are_not_text(width: int) -> None:
    film = chest()
    for n in range(6):
        cv2.ellipse(film, (140, 140 + 50 * n), (90, 40), 0, 200, 340, 0.95, width, cv2.LINE_AA)
    assert not find_text(film).any()
    assert not find_text(cv2.GaussianBlur(film, (0, 0), 1.5)).any()


def test_a_bright_edge_and_a_frame_are_not_text() -> None:
    film = chest()
    film[:, :90] = 1.0
    cv2.rectangle(film, (0, 0), (447, 511), 1.0, 2)
    assert not find_text(film).any()


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_an_even_film_has_no_text(grey: float) -> None:
    mask = find_text(np.full((300, 200), grey, np.float32))
    assert mask.shape == (300, 200) and mask.dtype == bool and not mask.any()


# --- sizes


@pytest.mark.parametrize("text", ["R", "12:45:07"])
def test_a_film_twice_as_large_gives_the_same_mask(text: str) -> None:
    masks = []
    for k in (1, 2):
        film = cv2.resize(chest(), (448 * k, 512 * k), interpolation=cv2.INTER_LINEAR)
        film, _ = write(film, text, (30 * k, 60 * k), 0.7 * k, 2 * k)
        mask = find_text(film)
        assert mask.shape == film.shape
        masks.append(cv2.resize(mask.astype(np.uint8), (448, 512), interpolation=cv2.INTER_AREA))
    one, two = (m > 0 for m in masks)
    assert (one & two).sum() / (one | two).sum() > 0.85


def test_a_small_film_is_searched_as_it_is() -> None:
    film, ink = write(chest(256, 224), "R", (12, 30), 0.6, 2)
    assert covered(find_text(film), ink) > 0.9


@pytest.mark.parametrize("size_hw", [(16, 16), (16, 4000), (4000, 16)])
def test_odd_shapes_are_searched(size_hw: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).random(size_hw).astype(np.float32)
    assert find_text(noise).shape == size_hw


def test_the_film_is_not_changed() -> None:
    film, _ = write(chest(), "R", (30, 60))
    before = film.copy()
    find_text(film)
    assert np.array_equal(film, before)


def test_double_precision_gives_the_same_mask() -> None:
    film, _ = write(chest(), "R", (30, 60))
    assert np.array_equal(find_text(film.astype(np.float64)), find_text(film))


# --- errors


@pytest.mark.parametrize("shape", [(15, 300), (300, 15), (300, 300, 3), (300,)])
def test_pixels_that_are_no_film_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 16 px a side"):
        find_text(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5, 255.0])
@pytest.mark.parametrize("size", [64, 600])
def test_pixels_outside_0_1_are_refused(value: float, size: int) -> None:
    film = np.full((size, size), 0.5, np.float32)
    film[:9, :9] = value
    with pytest.raises(ValueError, match=r"finite and lie in \[0, 1\]"):
        find_text(film)


# --- real films

# looked at: an R at (x, y)
WITH_R = {
    "IM-0446-0001": (12, 153),
    "IM-0662-0001": (13, 159),
    "IM-0679-0001": (10, 215),
    "NORMAL2-IM-0669-0001": (19, 108),
    "person281_bacteria_1323": (13, 88),
    "person1343_bacteria_3415": (44, 32),
    "person600_bacteria_2456": (40, 12),
    "person275_bacteria_1293": (38, 12),
    "person586_virus_1130": (16, 100),
    "person849_virus_1494": (8, 32),
    "person467_virus_961": (134, 19),
    "person1023_virus_1714": (10, 8),
    "person1284_virus_2207": (23, 8),
}


def test_the_r_of_real_films_is_found(shared_data: Path) -> None:
    missed = []
    for name, (x, y) in WITH_R.items():
        mask = find_text(read_film(shared_data / f"images/kermany/{name}.jpg").pixels)
        if not mask[y, x] or mask.mean() > 0.008:
            missed.append(name)
    assert not missed


def test_little_of_a_real_film_is_marked(shared_data: Path) -> None:
    rows = [r for r in read_films_table(shared_data / "films.csv") if r.source == "kermany"]
    drawn = np.random.default_rng(11).choice(len(rows), 30, replace=False)
    shares = [find_text(read_film(shared_data / rows[n].image).pixels).mean() for n in drawn]
    assert max(shares) < 0.03 and np.median(shares) < 0.005
    assert np.mean([s > 0 for s in shares]) > 0.7  # most carry an R


def test_text_of_real_films_lies_beside_the_lungs(shared_data: Path) -> None:
    # a rib or a clip taken for a letter would lie in them
    rows = [
        r for r in read_films_table(shared_data / "films.csv") if r.source == "kermany" and r.mask
    ]
    marked = inside = 0
    for n in np.random.default_rng(12).choice(len(rows), 30, replace=False):
        lung = cv2.imread(str(shared_data / str(rows[n].mask)), cv2.IMREAD_GRAYSCALE) > 0
        mask = find_text(read_film(shared_data / rows[n].image).pixels)
        marked, inside = marked + int(mask.sum()), inside + int((mask & lung).sum())
    assert marked > 0 and inside < 0.1 * marked
