"""tools/guide_study.py: which means of guidance is taken, and one arm from film to table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from guide_study import choose, main, table

from cxr.films_table import read_films_table
from cxr.split import make_split


def arm(as_is: float, blacked: float, swapped: float) -> dict:
    """What was measured of an arm with one question."""
    values = {"as is": as_is, "outside only": blacked, "lungs only": 0.7, "swapped": swapped}
    shown = {k: {"value": v, "low": v, "high": v, "n": 9} for k, v in values.items()}
    figure = {"value": 1.5, "low": 1.4, "high": 1.6, "n": 9}
    return {"questions": {"normal / abnormal": shown}, "lift": figure, "blob": figure}


def test_the_rule_takes_what_needs_lungs_and_loses_little() -> None:
    arms = {
        "plain": arm(0.90, 0.80, 0.80),  # 0.80 − 0.30
        "maps": arm(0.89, 0.70, 0.88),  # 0.88 − 0.20, the best of those that are allowed
        "blanks": arm(0.90, 0.35, 0.70),  # 0.70 − 0.15
        "surroundings": arm(0.88, 0.50, 0.90),  # the best of all, but it loses 0.02
    }
    assert choose(arms) == "maps"
    assert choose({k: v for k, v in arms.items() if k != "plain"}) == ""


def test_the_table_names_every_control() -> None:
    lines = table({"plain": arm(0.9, 0.8, 0.7)})
    assert "another film around" in lines[0]
    assert "0.900 [0.900, 0.900]" in lines[-1] and "1.500 [1.400, 1.600]" in lines[-1]


def test_arms_are_trained_measured_and_not_trained_again(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_films_table(phantom_folder / "films.csv")
    parts = {"train": 0.5, "val": 0.25, "test": 0.25}
    split = tmp_path / "split.json"
    make_split([r.patient_id for r in rows], [r.sublabel for r in rows], parts).save(split)
    recipe = {
        "targets": ["bacterial", "viral"],
        "split": str(split),
        "sources": [],
        "preprocess": {"side": 64},
        "member": {
            "encoder": "tu-test_efficientnet",
            "weights": "none",
            "decoder_channels": [8, 8, 8, 8],
        },
        "batch": 4,
        "device": "cpu",
        "draws": 20,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = [str(tmp_path / "recipe.yaml"), "--data", str(phantom_folder), "--epochs", "1"]
    told += ["--draws", "20", "--out", str(tmp_path / "out")]
    assert main([*told, "--arms", "[plain, surroundings + maps + blanks]"]) == 0
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert list(study["arms"]) == ["plain", "surroundings + maps + blanks"]
    shown = study["arms"]["plain"]["questions"]["normal / abnormal"]
    assert set(shown) == {"as is", "outside only", "lungs only", "swapped"}
    assert all(0 <= figure["value"] <= 1 for figure in shown.values())
    assert study["arms"]["plain"]["lift"]["value"] > 0
    monkeypatch.setattr("guide_study.run", lambda _: pytest.fail("trained again"))
    assert main([*told, "--arms", "[plain]"]) == 0
    assert "| plain |" in (tmp_path / "out" / "table.md").read_text()


def test_an_unknown_arm_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["recipe.yaml", "--arms", "[hope]"])
    assert "arms must be of plain" in capsys.readouterr().err
