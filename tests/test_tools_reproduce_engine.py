"""tools/reproducing/cells.py: Ray, where it is installed, gives what the local engine gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_tools_reproduce import RECIPE, run, text_of, trained, world  # noqa: F401 - fixtures

from reproducing.cells import ROOT, ReproduceConfig, import_ray


def test_ray_that_is_missing_is_told_with_its_install(
    world: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'lungfirst\[ray\]'"):
        import_ray()
    assert run(RECIPE, "--engine", "ray") == 2
    assert not trained(world)


@pytest.mark.parametrize("wrong", [{"engine": "slurm"}, {"cpus": 0.0}, {"gpus": -1.0}])
def test_a_wrong_engine_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must (not )?be"):
        ReproduceConfig(("rates",), **wrong)


def test_ray_trains_each_cell_once_and_a_failing_one_gets_its_reason(
    world: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))  # where the toy is
    rows = [*RECIPE["rows"], {"name": "bad", "set": {"fault": "no luck"}}]
    recipe = {**RECIPE, "rows": rows}
    assert run(recipe, "--engine", "ray", "--out", str(world / "out")) == 1
    assert sorted(trained(world)) == ["0.1 3", "0.1 3", "0.5 3"]
    text = text_of(world)
    assert "| low | 0.973 | 0.750 [" in text
    assert "failed: no luck" in text
    assert run(RECIPE, "--engine", "ray", "--out", str(world / "out")) == 0
    assert len(trained(world)) == 3
