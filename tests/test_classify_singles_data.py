"""classify/dataset.py and augment.py: the pictures of an epoch of a single network."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from classify.augment import AUGMENTS, build_change
from classify.dataset import FilmDataset, PixelCache, balance_films, film_loader, train_loader
from classify.models.settings import BackboneConfig
from classify.tasks.settings import SingleConfig

IMAGES = np.arange(10, dtype=np.uint8)[:, None, None].repeat(32, 1).repeat(32, 2)
CACHE = PixelCache(IMAGES, np.zeros((0, 32, 32), np.uint8), np.full((10, 1), -1))
LABELS = [0, 0, 0, 0, 0, 1, 1, 2, 2, 2]
SMALL = BackboneConfig("baseline_cnn", weights="none")


def darken(picture: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return picture + 100, mask


def greys(films: FilmDataset) -> list[tuple[int, int]]:
    """Each item's grey, 0 to 255, and its class."""
    return [(round(255 * float(x["image"][0, 0, 0])), int(x["label"])) for x in films]


def test_the_first_copy_is_the_film_itself_and_the_others_are_changed() -> None:
    films = FilmDataset(CACHE, LABELS, [4, 7], 32, darken, copies=3)
    assert greys(films) == [(4, 0), (104, 0), (104, 0), (7, 2), (107, 2), (107, 2)]


def test_a_film_that_stands_there_once_is_changed_each_time() -> None:
    assert greys(FilmDataset(CACHE, LABELS, [4], 32, darken)) == [(104, 0)]
    assert IMAGES[4, 0, 0] == 4


@pytest.mark.parametrize(("balance", "each"), [("oversample", 5), ("undersample", 2)])
def test_classes_are_made_equal(balance: str, each: int) -> None:
    chosen = balance_films(LABELS, range(10), balance)
    assert Counter(LABELS[i] for i in chosen) == {0: each, 1: each, 2: each}
    assert chosen == balance_films(LABELS, range(10), balance)


def test_oversampling_takes_every_film_before_it_takes_one_again() -> None:
    counts = Counter(balance_films(LABELS, range(10), "oversample"))
    assert [counts[i] for i in (5, 6)] in ([3, 2], [2, 3])
    assert sorted(counts[i] for i in (7, 8, 9)) == [1, 2, 2]
    assert all(counts[i] == 1 for i in range(5))


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_without_sampling_the_films_stay(balance: str) -> None:
    assert balance_films(LABELS, [3, 1, 8], balance) == [3, 1, 8]


@pytest.mark.parametrize(("films", "batches"), [(9, [4, 4]), (10, [4, 4, 2]), (8, [4, 4])])
def test_a_last_batch_of_one_film_is_left_out(films: int, batches: list[int]) -> None:
    config = SingleConfig(batch=4, backbone=SMALL)
    loader = train_loader(FilmDataset(CACHE, LABELS, range(films), 32), config)
    assert [len(batch["label"]) for batch in loader] == batches


def test_films_that_are_tested_come_in_order_and_unchanged() -> None:
    config = SingleConfig(batch=2, backbone=SMALL, augment="rotate")
    (batch,) = film_loader(FilmDataset(CACHE, LABELS, range(10), 32), config)
    assert batch["image"].shape == (10, 1, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert (255 * batch["image"][:, 0, 5, 5]).round().tolist() == list(range(10))
    assert set(batch) == {"image", "label", "index"}  # no goal where nothing is restored


@pytest.mark.parametrize("name", [name for name in AUGMENTS if name != "none"])
def test_a_change_keeps_form_and_follows_its_seed(name: str) -> None:
    picture = np.random.default_rng(0).integers(50, 255, (64, 64), dtype=np.uint8)
    one, other = build_change(name, 3), build_change(name, 3)
    assert one is not None
    assert other is not None
    for _ in range(3):
        changed, _ = one(picture, picture)
        assert changed.shape == (64, 64)
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, picture)
        assert np.array_equal(changed, other(picture, picture)[0])


def test_rotate_turns_and_does_not_shift() -> None:
    picture = np.zeros((65, 65), np.uint8)
    picture[31:34, 31:34] = 255  # in the middle, about which it turns
    change = build_change("rotate")
    assert change is not None
    assert all(change(picture, picture)[0][32, 32] == 255 for _ in range(10))


def test_affine_shifts_within_its_bounds() -> None:
    picture = np.zeros((101, 101), np.uint8)
    picture[49:52, 49:52] = 255
    change = build_change("affine")
    assert change is not None
    seen = [change(picture, picture)[0] for _ in range(60)]
    places = np.array([np.argwhere(film > 60).mean(0) - 50 for film in seen])
    assert 14 < np.abs(places[:, 0]).max() <= 21  # 0.20 of the height, along
    assert 10 < np.abs(places[:, 1]).max() <= 16  # 0.15 of the width, across


def test_none_changes_nothing() -> None:
    assert build_change("none") is None
