"""Every table of the papers at smoke: each kind of training runs, every cell is resolved and shown.

Of each table one cell is trained, or one of each kind where its cells are of several; the others
are shown with what that one left. test_tools_reproduce_experiment.py resolves the other budgets.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reproduce
from test_tools_reproduce_experiment import TABLES as DISTINCT

from reproducing import cells as engine
from reproducing.cells import Cell
from reproducing.experiment import read_experiment
from reproducing.runners import Runner

FILES = {p.stem: p for p in Path(__file__).parent.parent.glob("configs/experiments/*.yaml")}
# Row and column (by number) of the cells that are trained; the first one where nothing is said.
TRAINED = {
    "covid_causes": [(0, 0), (1, 0), (2, 0)],  # pretrained, from scratch, a network of ImageNet
    "deck_backbones": [(8, 0)],  # a light one
    "deck_cxrnet": [(0, 0), (1, 0)],  # draws its own map, or not
    "deck_iscore": [(0, 0), (0, 2)],  # the network's own head, kept features
    "scxnn_backbone": [(5, 0)],
    "scxnn_datasets": [(3, 0)],  # of one key with the others, here
    "scxnn_classes": [(0, 0), (1, 0)],  # each another head
    "scxnn_preprocess": [(0, 0), (1, 0), (2, 0)],  # no decoder, a mask's, a film's
    "scxnn_unseen": [(6, 0), (1, 1)],  # two members asked about two diseases
    "twostage_detect": [(0, 0), (1, 0)],  # without and with augmentation
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tables: cells that two tables share are trained once."""
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def left() -> dict[str, str]:
    """Table, and runner → where its last training left its answers, seen from another cell."""
    return {}


# where the first cell is not trained, it is shown with another table's
ORDER = sorted(FILES, key=lambda table: ((0, 0) not in TRAINED.get(table, [(0, 0)]), table))


@pytest.mark.parametrize("table", ORDER)
def test_a_table_of_the_papers_runs(
    table: str, out: Path, left: dict[str, str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = read_experiment(FILES[table])
    lines = [(row.name, column.name) for row, column in experiment.cells()]
    width = max(1, sum(not column.quoted for column in experiment.columns))
    trained = {lines[row * width + column] for row, column in TRAINED.get(table, [(0, 0)])}
    real = engine._train

    def train(cell: Cell, runner: Runner) -> str:
        if (cell.row, cell.column) not in trained:
            return left.get(table) or left[cell.runner]
        answered = real(cell, runner)
        left[table] = left[cell.runner] = f"../{cell.key}/{answered}"
        return answered

    monkeypatch.chdir(root)
    monkeypatch.setattr(engine, "_train", train)
    monkeypatch.setattr(engine.gc, "collect", lambda: 0)  # slow, and these networks are small
    for place in ("cxr.workdir", "reproducing.making"):  # asking git is slow
        monkeypatch.setattr(f"{place}.git_commit", lambda: "c0ffee")
    assert reproduce.main([table, "--budget", "smoke", "--out", str(out), "--draws", "20"]) == 0
    made = json.loads((out / f"{table}_smoke_films.json").read_text())
    rows = [row for row in made["rows"] if row["key"]]  # the others are quoted
    assert [(row["row"], row["column"]) for row in rows] == lines
    assert all(row["seconds"] is not None for row in rows)
    for row in rows:
        states = {e["state"] for e in row["entries"].values()}
        assert "failed" not in states
        assert "ok" in states or (row["row"], row["column"]) not in trained
    assert table not in DISTINCT or len({row["key"] for row in rows}) == len(lines)
    assert made["probe"], made["probe_reason"]
    assert "only shows that everything runs" in (out / f"{table}_smoke_films.md").read_text()
