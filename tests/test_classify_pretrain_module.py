"""classify/tasks/restore.py: which film is distorted how, in which order, in which epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from classify.augment import GenesisConfig
from classify.models.settings import UnetCbamConfig
from classify.models.unets import UnetCbam
from classify.tasks.restore import (
    PANELS,
    DistortedFilms,
    EpochOrder,
    PretrainModule,
    restored_sheet,
)
from cxr.training.recipe import OptimConfig

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32), np.uint8)
FILMS = DistortedFilms(IMAGES, GenesisConfig(shuffle_windows=20), seed=3)


def test_an_item_is_the_film_and_what_the_network_sees() -> None:
    item = FILMS[0, 2]
    assert item["film"].shape == item["seen"].shape == (1, 32, 32)
    assert item["film"].numpy() * 255 == pytest.approx(IMAGES[2][None], abs=1e-4)
    assert not torch.equal(item["film"], item["seen"])


def test_a_film_is_distorted_by_epoch_and_seed_alone() -> None:
    assert torch.equal(FILMS[1, 2]["seen"], FILMS[1, 2]["seen"])
    assert not torch.equal(FILMS[1, 2]["seen"], FILMS[2, 2]["seen"])
    other = DistortedFilms(IMAGES, FILMS.config, seed=4)
    assert not torch.equal(FILMS[1, 2]["seen"], other[1, 2]["seen"])


def test_the_distortions_may_be_named() -> None:
    plain = DistortedFilms(IMAGES, FILMS.config, 0, kinds=())
    assert torch.equal(plain[0, 1]["seen"], plain[0, 1]["film"])


def test_each_epoch_has_every_film_once_in_another_order() -> None:
    order = EpochOrder([1, 3, 5, 7, 9, 11], seed=0)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == [(0, i) for i in (1, 3, 5, 7, 9, 11)]
    assert sorted(second) == [(1, i) for i in (1, 3, 5, 7, 9, 11)]
    assert [i for _, i in first] != [i for _, i in second]
    assert len(order) == 6


def test_a_loader_follows_the_order() -> None:
    order = EpochOrder(range(6), seed=0)
    batch = next(iter(DataLoader(FILMS, 6, sampler=order)))
    expected = np.stack([IMAGES[i] for _, i in order])
    assert batch["film"][:, 0].numpy() * 255 == pytest.approx(expected, abs=1e-4)


def test_the_loss_of_an_untouched_film_that_comes_back_is_0() -> None:
    module = PretrainModule(UnetCbam(UnetCbamConfig(widths=(2, 2))), OptimConfig())
    module.model = torch.nn.Identity()
    film = torch.rand(2, 1, 16, 16)
    terms, _ = module.losses({"film": film, "seen": film})
    assert terms["loss"].item() == pytest.approx(0, abs=1e-6)
    assert terms["mae"].item() == 0


def test_the_sheet_has_two_rows_a_film() -> None:
    net = UnetCbam(UnetCbamConfig(widths=(2, 2))).eval()
    films = [x.astype(np.float32) / 255 for x in IMAGES[:2]]
    one = restored_sheet(net, films[:1], FILMS.config, tile=48)
    two = restored_sheet(net, films, FILMS.config, tile=48)
    assert one.shape[1] == two.shape[1] >= (1 + len(PANELS)) * 48
    assert 2 * 48 < one.shape[0] < two.shape[0]
