"""tools/reproduce.py: cells are trained once, tables say what they show."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reproduce
import yaml
from reproduce_toy import TOY

from reproducing.runners import RUNNERS

RECIPE: dict[str, Any] = {
    "study": "A report",
    "title": "Rates",
    "about": "They tried rates.",
    "runner": "toy",
    "protocol": "pooled",
    "base": {"side": 299},
    "rows": [{"name": "low", "set": {"rate": 0.1}}, {"name": "high", "set": {"rate": 0.5}}],
    "measures": [{"name": "accuracy"}, {"name": "f1.pneumonia"}],
    "published": [{"row": "low", "figures": {"accuracy": 0.973}}],
    "paper_data": "5,856 films",
    "budgets": {
        "paper": {},
        "small": {"set": {"epochs": 3, "side": 96}, "notes": ["Small for want of time."]},
        "smoke": {"set": {"epochs": 1}},
    },
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one film's table, an empty folder of experiments, and the toy runner."""
    monkeypatch.setitem(RUNNERS, "toy", TOY)
    monkeypatch.chdir(tmp_path)
    for place in ("cxr.workdir", "reproducing.making"):  # asking git is slow
        monkeypatch.setattr(f"{place}.git_commit", lambda: "c0ffee")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "films.csv").write_text(
        "image,mask,source,patient_id,label,sublabel,licence\n"
        "images/0.png,,toy,p0,normal,No Finding,CC BY 4.0\n"
    )
    (tmp_path / "experiments").mkdir()
    return tmp_path


@pytest.fixture
def run(world: Path) -> Callable[..., int]:
    """Write the experiment, make its table at small."""

    def make(recipe: dict[str, Any], *flags: str) -> int:
        (world / "experiments" / "rates.yaml").write_text(yaml.safe_dump(recipe))
        return reproduce.main(
            [
                "rates",
                *(["--data", "data"] * ("--data" not in flags)),
                "--experiments",
                "experiments",
                "--out",
                "out",
                "--draws",
                "50",
                *flags,
            ]
        )

    return make


def trained(world: Path) -> list[str]:
    """A line for each training that was begun."""
    log = world / "out" / "trained.log"
    return log.read_text().splitlines() if log.exists() else []


def text_of(world: Path, name: str = "rates_small_films.md") -> str:
    return (world / "out" / name).read_text()


def test_each_cell_is_trained_once_and_shown_beside_the_paper(
    world: Path, run: Callable[..., int]
) -> None:
    assert run(RECIPE) == 0
    assert trained(world) == ["0.1 3", "0.5 3"]
    row = next(line for line in text_of(world).splitlines() if line.startswith("| low "))
    assert row.startswith("| low | 0.973 | 0.750 [")
    assert "| – | 0.800 [" in row


def test_a_finished_cell_is_not_trained_again(world: Path, run: Callable[..., int]) -> None:
    run(RECIPE)
    assert run(RECIPE) == 0
    assert len(trained(world)) == 2


def test_a_killed_table_goes_on_with_the_cells_that_are_missing(
    world: Path, run: Callable[..., int]
) -> None:
    killed = {**RECIPE, "rows": [RECIPE["rows"][0], {"name": "high", "set": {"fault": "stop"}}]}
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    assert run(RECIPE) == 0
    assert trained(world) == ["0.1 3", "0.1 3", "0.5 3"]  # low, the killed one, high
    low = [
        r
        for r in (world / "out" / "cells").glob("*/result.json")
        if json.loads(r.read_text())["row"] == "low"
    ]
    assert len(low) == 1


def test_other_settings_are_another_cell(world: Path, run: Callable[..., int]) -> None:
    run(RECIPE)
    run({**RECIPE, "base": {"side": 299, "backbone.name": "vgg16"}})
    assert len(trained(world)) == 4


def test_other_films_are_another_cell(world: Path, run: Callable[..., int]) -> None:
    run(RECIPE)
    with (world / "data" / "films.csv").open("a") as file:
        file.write("images/1.png,,toy,p1,normal,No Finding,CC BY 4.0\n")
    run(RECIPE)
    assert len(trained(world)) == 4


def test_free_settings_leave_a_cell_as_it_is(world: Path, run: Callable[..., int]) -> None:
    run(RECIPE)
    (world / "elsewhere").symlink_to(world / "data")
    assert run(RECIPE, "--data", "elsewhere", "--draws", "20") == 0
    assert len(trained(world)) == 2


def test_a_failing_cell_gets_its_reason_and_the_others_go_on(
    world: Path, run: Callable[..., int]
) -> None:
    rows = [{"name": "low", "set": {"fault": "no room | on <the> disk"}}, RECIPE["rows"][1]]
    assert run({**RECIPE, "rows": rows}) == 1
    text = text_of(world)
    assert "failed: no room \\| on &lt;the&gt; disk" in text
    assert "| high | – | 0.750 [" in text
    page = text_of(world, "rates_small_films.html")
    assert "failed: no room | on &lt;the&gt; disk" in page
    assert "<the>" not in page


def test_a_failed_cell_is_tried_again(world: Path, run: Callable[..., int]) -> None:
    rows = [{"name": "low", "set": {"fault": "bad"}}]
    recipe = {**RECIPE, "rows": rows}
    assert run(recipe) == run(recipe) == 1
    assert len(trained(world)) == 2


def test_what_differs_is_told_in_words(world: Path, run: Callable[..., int]) -> None:
    run(RECIPE)
    text = text_of(world)
    assert "96 px (paper 299)" in text
    assert "3 epochs (paper 30)" in text
    assert "films: toy, 1 of 1 patients (paper: 5,856 films)" in text
    assert "Small for want of time." in text
    assert "| a–c |" in text


def test_the_smoke_table_says_that_it_means_nothing(world: Path, run: Callable[..., int]) -> None:
    assert run(RECIPE, "--budget", "smoke") == 0
    text = text_of(world, "rates_smoke_films.md")
    assert "only shows that everything runs" in text
    assert "0.750" not in text and "0.750" not in text_of(world, "rates_smoke_films.html")
    assert "| low | 0.973 | runs |" in text


def test_docs_get_the_markdown_without_local_folders(world: Path, run: Callable[..., int]) -> None:
    rows = [{"name": "low", "set": {"fault": f"no file {world}/data/film.png"}}]
    run({**RECIPE, "rows": rows}, "--docs", "docs")
    text = (world / "docs" / "rates_small_films.md").read_text()
    assert str(world) not in text
    assert "no file …/film.png" in text
    assert "reproduce.py rates --budget small --data DATA" in text


def test_the_command_knows_its_tables(
    world: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run(RECIPE)
    capsys.readouterr()
    flags = ["--data", "data", "--experiments", "experiments", "--out", "out"]
    assert reproduce.main(["LIST", *flags]) == 0
    shown = capsys.readouterr().err
    assert "rates" in shown and "A report" in shown
    assert reproduce.main(["nothing", *flags]) == 2


def test_two_rows_of_the_same_settings_are_one_training(
    world: Path, run: Callable[..., int]
) -> None:
    rows = [{"name": "one", "set": {"rate": 0.1}}, {"name": "two", "set": {"rate": 0.1}}]
    assert run({**RECIPE, "rows": rows, "published": []}) == 0
    assert len(trained(world)) == 1


def test_columns_make_a_grid_for_each_measure(world: Path, run: Callable[..., int]) -> None:
    columns = [{"name": "90 px", "set": {"side": 90}}, {"name": "80 px", "set": {"side": 80}}]
    budgets = {**RECIPE["budgets"], "small": {"set": {"epochs": 3}}}
    published = [{"row": "low", "column": "80 px", "figures": {"accuracy": 0.9}}]
    recipe = {**RECIPE, "columns": columns, "published": published, "budgets": budgets}
    assert run(recipe) == 0
    text = text_of(world)
    assert "## Accuracy" in text and "## F1 of pneumonia" in text
    line = next(t for t in text.splitlines() if t.startswith("| low | – | 0.750 ["))
    assert "| 0.900 | 0.750 [" in line


def test_seeds_are_cells_of_their_own(world: Path, run: Callable[..., int]) -> None:
    run(RECIPE)
    run(RECIPE, "--seed", "1")
    assert len(trained(world)) == 4


def test_a_quoted_row_has_the_papers_figures_alone(world: Path, run: Callable[..., int]) -> None:
    rows = [*RECIPE["rows"], {"name": "a reader", "quoted": True}]
    known = [{"row": "a reader", "figures": {"accuracy": "69/100", "f1.pneumonia": "above 0.6"}}]
    assert run({**RECIPE, "rows": rows, "published": known}) == 0
    assert len(trained(world)) == 2
    text = text_of(world)
    assert "| a reader | 69/100 = 0.690 | – | above 0.6 | – | – |" in text
    assert "2 of 2 cells are trained." in text


def test_a_page_is_made_again_from_kept_figures_without_training(
    world: Path, run: Callable[..., int]
) -> None:
    run(RECIPE, "--docs", "docs")
    before = (world / "docs" / "rates_small_films.md").read_text()
    shutil.rmtree(world / "out")
    published = [*RECIPE["published"], {"row": "high", "figures": {"accuracy": 0.9}}]
    changed = {**RECIPE, "published": published}
    assert run(changed, "--docs", "docs", "--render", "true") == 0
    assert not trained(world)
    after = (world / "docs" / "rates_small_films.md").read_text()
    assert after == before.replace("| high | – | 0.750", "| high | 0.900 | 0.750")
    assert run(changed, "--docs", "docs", "--render", "true") == 0  # again, from what it left


def test_kept_figures_of_other_settings_do_not_count(world: Path, run: Callable[..., int]) -> None:
    run(RECIPE, "--docs", "docs")
    shutil.rmtree(world / "out")
    other = {**RECIPE, "base": {"side": 299, "backbone.name": "vgg16"}}
    run(other, "--docs", "docs", "--render", "true")
    text = (world / "docs" / "rates_small_films.md").read_text()
    assert "| low | 0.973 | not trained yet |" in text and "0 of 2 cells are trained." in text


def test_rendering_needs_a_folder_of_kept_figures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        reproduce.main(["rates", "--render", "true"])
    assert "docs must name a folder" in capsys.readouterr().err
