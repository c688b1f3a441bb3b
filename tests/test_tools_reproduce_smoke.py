"""Every table of the papers at smoke: each cell trains, answers and is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reproduce

TABLES = sorted(p.stem for p in Path(__file__).parent.parent.glob("configs/experiments/*.yaml"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tables: cells that two tables share are trained once."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_the_papers_runs(
    table: str, out: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert reproduce.main([table, "--budget", "smoke", "--out", str(out), "--draws", "20"]) == 0
    made = json.loads((out / f"{table}_smoke_films.json").read_text())
    assert made["rows"] and all(row["seconds"] is not None for row in made["rows"])
    assert all(e["state"] != "failed" for row in made["rows"] for e in row["entries"].values())
    assert made["probe"], made["probe_reason"]
    assert "only shows that everything runs" in (out / f"{table}_smoke_films.md").read_text()
