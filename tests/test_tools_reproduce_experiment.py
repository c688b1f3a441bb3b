"""tools/reproducing/experiment.py and the tables' own files."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_tools_reproduce import RECIPE

from cxr.training.recipe import flatten
from reproducing.cells import ReproduceConfig, make_cells
from reproducing.experiment import find_experiments, merge, read_experiment

TABLES = (
    "deck_backbones",
    "keras_cases",
    "keras_depth",
    "keras_fc",
    "keras_grid",
    "twostage_detect",
    "twostage_fusion",
)


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump({**deepcopy(RECIPE), **changes}))
    return path


def test_later_layers_win_and_groups_are_merged() -> None:
    into: dict[str, Any] = {"optim": {"rate": 0.1, "epochs": 30}, "nets": ["a"]}
    merge(into, {"optim.rate": 0.2, "nets": ["b", "c"]})
    merge(into, {"optim": {"epochs": 3}})
    assert into == {"optim": {"rate": 0.2, "epochs": 3}, "nets": ["b", "c"]}
    assert flatten(into) == {"optim.rate": 0.2, "optim.epochs": 3, "nets": ["b", "c"]}


def test_a_row_wins_over_the_budget_and_its_own_budget_over_both(tmp_path: Path) -> None:
    rows = [{"name": "low", "set": {"rate": 0.1}, "budgets": {"small": {"set": {"rate": 0.3}}}}]
    budgets = {**RECIPE["budgets"], "small": {"set": {"rate": 0.2}}}
    experiment = read_experiment(written(tmp_path, rows=rows, budgets=budgets))
    row, column = next(experiment.cells())
    assert experiment.settings("small", row, column)["rate"] == 0.3
    assert experiment.settings("paper", row, column)["rate"] == 0.1


@pytest.mark.parametrize("place", ["row", "budget", "budget of a row", "base"])
def test_two_kinds_of_split_are_never_mixed(tmp_path: Path, place: str) -> None:
    official = {"protocol.kind": "official"}
    changes: dict[str, Any] = {
        "row": {"rows": [RECIPE["rows"][0], {"name": "high", "set": official}]},
        "budget": {"budgets": {**RECIPE["budgets"], "small": {"set": official}}},
        "budget of a row": {"rows": [{"name": "low", "budgets": {"paper": {"set": official}}}]},
        "base": {"base": official},
    }[place]
    with pytest.raises(ValueError, match="split alike"):
        read_experiment(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": []}, "rows and measures"),
        ({"rows": [{"name": "low"}, {"name": "low"}]}, "a name of their own"),
        ({"measures": [{"name": "luck"}]}, "a measure must be one of"),
        ({"published": [{"row": "none", "figures": {"accuracy": 1.0}}]}, "a row and a column"),
        ({"published": [{"row": "low", "figures": {"macro_auc": 1.0}}]}, "of the measures only"),
        ({"budgets": {"paper": {}}}, "budgets must be"),
        ({"colour": "red"}, "colour"),
        ({"rows": [{"name": "low", "budgets": {"tiny": {}}}]}, "budgets of low"),
    ],
)
def test_a_wrong_file_is_refused_in_words(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read_experiment(written(tmp_path, **changes))


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="experiments must be a folder"):
        find_experiments(tmp_path)


def test_the_papers_tables_are_there(root: Path) -> None:
    assert set(TABLES) <= set(find_experiments(root / "configs" / "experiments"))


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_of_every_table_is_a_configuration_of_its_own(
    root: Path, tmp_path: Path, table: str
) -> None:
    (tmp_path / "films.csv").write_text("image\n")
    experiment = read_experiment(root / "configs" / "experiments" / f"{table}.yaml")
    # those of paper are resolved beside; smoke is test_tools_reproduce_smoke.py
    config = ReproduceConfig((table,), data=str(tmp_path), out=str(tmp_path))
    cells = make_cells(experiment, config)
    assert len({cell.key for cell in cells}) == len(cells)
