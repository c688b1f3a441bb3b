"""Curves and pictures beside a table, figures that a training leaves, and shared trainings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import reproduce_toy
from test_tools_reproduce import RECIPE, run, text_of, world  # noqa: F401

from cxr.draw import encode_png
from reproducing.experiment import read_experiment
from reproducing.layout import row_number
from reproducing.runners import RUNNERS, content_of, shared_folder

CURVE = {
    **RECIPE,
    "plot": "accuracy",
    "rows": [{"name": "10 %", "set": {"rate": 0.1}}, {"name": "50 %", "set": {"rate": 0.5}}],
    "published": [],
}


@dataclass(frozen=True)
class Settings:
    """Of a shared training."""

    data: str
    crops: str = ""
    out: str = ""
    rate: float = 0.1


def test_a_table_with_a_plot_has_its_curve(world: Path, run: Callable[..., int]) -> None:
    assert run(CURVE) == 0
    drawn = cv2.imread(str(world / "out" / "rates_small_films.png"))
    assert drawn is not None and drawn.std() > 5
    assert "](rates_small_films.png)" in text_of(world)
    page = (world / "out" / "rates_small_films.html").read_text()
    assert 'src="data:image/png;base64,' in page and "img-src data:" in page


def test_a_cells_own_picture_and_figures_are_shown(
    world: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: Any) -> Path:
        folder = reproduce_toy.train_toy(config)
        (folder / "seen.png").write_bytes(encode_png(np.full((8, 8), 90, np.uint8)))
        figure = {"value": 0.25, "low": 0.125, "high": 0.5, "n": 4}
        (folder / "figures.json").write_text(json.dumps({"goes.normal": figure}))
        return folder

    monkeypatch.setitem(RUNNERS, "toy", replace(reproduce_toy.TOY, train=train))
    shown = {"file": "seen.png", "caption": "What it saw", "row": "low"}
    measures = [
        *RECIPE["measures"],
        {"name": "goes.normal", "ours_only": True},
        {"name": "goes.others", "ours_only": True},
    ]
    assert run({**RECIPE, "pictures": [shown], "measures": measures}, "--docs", "docs") == 0
    assert "![What it saw](rates_small_films_low_seen.png)" in text_of(world)
    assert (world / "docs" / "rates_small_films_low_seen.png").is_file()
    row = next(line for line in text_of(world).splitlines() if line.startswith("| low "))
    assert "| 0.250 [0.125, 0.500] | does not apply |" in row


def test_a_picture_of_no_cell_is_refused(tmp_path: Path) -> None:
    shown = {"file": "a.png", "caption": "a", "row": "middle"}
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps({**RECIPE, "pictures": [shown]}))
    with pytest.raises(ValueError, match=r"published and pictures must name.*'middle'"):
        read_experiment(path)


def test_a_plot_of_no_measure_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps({**RECIPE, "plot": "macro_auc"}))
    with pytest.raises(ValueError, match="plot must be one of the measures"):
        read_experiment(path)


def test_rows_of_a_plot_are_numbers() -> None:
    assert row_number("12.5 % of the films") == 12.5
    with pytest.raises(ValueError, match=r"named by a number\. Got 'low'"):
        row_number("low")


def test_a_shared_training_is_known_by_its_settings_and_films(world: Path) -> None:
    def folder(**changed: Any) -> Path:
        with shared_folder("out/cells/a", "net", Settings(**{"data": "data", **changed})) as path:
            return path

    first = folder()
    assert first.parent == Path("out/shared") and first.name.startswith("net-")
    assert folder(out="elsewhere") == first
    assert folder(rate=0.2) != first
    with (world / "data" / "films.csv").open("a") as file:
        file.write("images/1.png,,toy,p1,normal,No Finding,CC BY 4.0\n")
    assert folder() != first


def test_first_weights_count_by_their_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"weights")
    keys = [content_of("backbone.weights", str(tmp_path / name)) for name in ("a", "b")]
    assert keys[0] == keys[1] != content_of("backbone.weights", "imagenet") == "imagenet"
    (tmp_path / "b").write_bytes(b"others")
    assert content_of("backbone.weights", str(tmp_path / "b")) != keys[0]


def test_several_measures_of_each_class_stand_in_a_grid_of_their_own(
    world: Path,
    run: Callable[..., int],
) -> None:
    names = [f"{m}.{c}" for m in ("sensitivity", "auc") for c in ("normal", "pneumonia")]
    measures = [{"name": "accuracy"}, *({"name": name} for name in names)]
    assert run({**RECIPE, "measures": measures}) == 0
    text = text_of(world)
    lines = text[text.index("## Each class against the rest") :].splitlines()
    assert lines[2] == "| System | Sensitivity: ours | AUC: ours |"
    assert [line.split(" | ")[0] for line in lines[4:8]] == [
        "| low: normal",
        "| low: pneumonia",
        "| high: normal",
        "| high: pneumonia",
    ]
    assert lines[4].startswith("| low: normal | 0.500 [")
    assert "Sensitivity of normal" not in text
