"""The keys of finished cells: a cell that was trained before must be found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from reproducing.cells import ReproduceConfig, cell_key, resolve
from reproducing.experiment import read_experiment
from reproducing.runners import find_runner, fingerprint

# The first cell of a table of each runner. Where a setting was added to a training, name it in the
# runner's `later`: a key written anew here loses every cell that was ever trained.
KEYS = {
    "keras_depth": "43a5e82c187b2001",
    "covid_labels": "377e917e4fe5e41e",
    "deck_iscore": "d7fe6beb59a75692",
    "scxnn_tiers": "86336389f50a48b0",
    "twostage_detect": "504b50560c52a5d8",
}


@pytest.mark.parametrize("table", KEYS)
def test_a_cells_key_stays_what_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.chdir(root)  # splits count by what is in them
    experiment = read_experiment(root / "configs/experiments" / f"{table}.yaml")
    config = ReproduceConfig((table,), data="data", out="anywhere", workers=2, draws=7)
    wanted = experiment.settings("paper", *next(experiment.cells()))
    settings = resolve(find_runner(experiment.runner), wanted, config)
    assert cell_key(experiment.runner, settings, "films", ["films"]) == KEYS[table]


def test_films_of_several_folders_are_known_by_the_tables_of_each(
    phantom_folders: list[str],
) -> None:
    first, second = (fingerprint(folder) for folder in phantom_folders)
    assert fingerprint(phantom_folders) == [*first, *second] and first != second
