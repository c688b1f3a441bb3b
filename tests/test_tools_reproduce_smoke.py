"""Every table of the papers at smoke: its cells train, answer and are shown.

Of a long table three rows and two columns are trained; test_tools_reproduce_experiment.py resolves
the settings of every cell.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import reproduce

from reproducing.experiment import Experiment

TABLES = sorted(p.stem for p in Path(__file__).parent.parent.glob("configs/experiments/*.yaml"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tables: cells that two tables share are trained once."""
    return tmp_path_factory.mktemp("tables")


def shorten(experiment: Experiment) -> Experiment:
    """The first two rows and the last, the first column and the last."""
    rows = [r for n, r in enumerate(experiment.rows) if n in (0, 1, len(experiment.rows) - 1)]
    columns = [c for n, c in enumerate(experiment.columns) if n in (0, len(experiment.columns) - 1)]
    kept = {(r.name, c) for r in rows for c in ([c.name for c in columns] or [""])}
    pictures = [p for p in experiment.pictures if (p.row, p.column) in kept]
    return replace(experiment, rows=rows, columns=columns, pictures=pictures)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_the_papers_runs(
    table: str, out: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    chosen = reproduce.chosen
    monkeypatch.setattr(reproduce, "chosen", lambda c: [shorten(e) for e in chosen(c)])
    assert reproduce.main([table, "--budget", "smoke", "--out", str(out), "--draws", "20"]) == 0
    made = json.loads((out / f"{table}_smoke_films.json").read_text())
    assert made["rows"] and all(row["seconds"] is not None for row in made["rows"])
    assert all(e["state"] != "failed" for row in made["rows"] for e in row["entries"].values())
    assert made["probe"], made["probe_reason"]
    assert "only shows that everything runs" in (out / f"{table}_smoke_films.md").read_text()
