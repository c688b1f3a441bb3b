"""The keys of finished cells: a cell that was trained before must be found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from reproducing.cells import ReproduceConfig, cell_key, resolve
from reproducing.experiment import read_experiment
from reproducing.runners import find_runner, fingerprint

# The first cell of a table of each runner, at the budget that was trained. Where a setting was
# added to a training, name it in the runner's `later`: a key written anew here loses every cell
# that was ever trained.
KEYS = {
    "keras_depth": ("small", "43954b1d6667a3dd"),
    "covid_labels": ("small", "de1c004df855568c"),
    "deck_iscore": ("small", "b8c1ba6a542c6e76"),
    "scxnn_tiers": ("small", "031b7458c5c3be03"),
    "twostage_detect": ("small", "a1332c5f567cf8ce"),
}


@pytest.mark.parametrize("table", KEYS)
def test_a_cells_key_stays_what_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.chdir(root)  # splits count by what is in them
    experiment = read_experiment(root / "configs/experiments" / f"{table}.yaml")
    config = ReproduceConfig((table,), data="data", out="anywhere", workers=2, draws=7)
    budget, key = KEYS[table]
    wanted = experiment.settings(budget, *next(experiment.cells()))
    settings = resolve(find_runner(experiment.runner), wanted, config)
    assert cell_key(experiment.runner, settings, "films", ["films"]) == key


def test_films_of_several_folders_are_known_by_the_tables_of_each(
    phantom_folders: list[str],
) -> None:
    first, second = (fingerprint(folder) for folder in phantom_folders)
    assert fingerprint(phantom_folders) == [*first, *second] and first != second
