"""The tables' files against what the sources print (papers_figures.py)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from papers_figures import FIGURES, FILMS, STATED, TOLD

from cxr.training.recipe import OptimConfig, flatten
from reproducing.cells import Cell, ReproduceConfig, make_cells
from reproducing.experiment import Experiment, find_experiments, read_experiment

Place = tuple[str, str]


@pytest.fixture(scope="module")
def experiments() -> dict[str, Experiment]:
    folder = Path(__file__).parent.parent / "configs" / "experiments"
    return {name: read_experiment(path) for name, path in find_experiments(folder).items()}


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.replace("_", " ")


def printed(block: str) -> dict[Place, dict[str, float | str]]:
    """(row, column) → measure → figure of one of papers_figures' blocks."""
    head, *lines = block.strip().splitlines()
    found = {}
    for line in lines:
        row, column, values = (part.strip() for part in line.split("|"))
        pairs = zip(head.split(), values.split(), strict=True)
        found[row, column] = {name: number(v) for name, v in pairs if v != "–"}
    return found


@pytest.mark.parametrize("table", FIGURES)
def test_no_figure_of_a_source_is_missing_or_another(
    table: str, experiments: dict[str, Experiment]
) -> None:
    known = {(p.row, p.column): p.figures for p in experiments[table].published}
    assert known == printed(FIGURES[table])


def test_no_table_has_a_figure_that_no_source_prints(experiments: dict[str, Experiment]) -> None:
    assert {name for name, e in experiments.items() if e.published} == set(FIGURES)


def test_every_published_figure_is_shown(experiments: dict[str, Experiment]) -> None:
    for experiment in experiments.values():
        hidden = {m.name for m in experiment.measures if m.ours_only}
        shown = {name for known in experiment.published for name in known.figures}
        assert not hidden & shown, experiment.name


@pytest.mark.parametrize("table", FILMS)
def test_the_sources_films_are_counted(table: str, experiments: dict[str, Experiment]) -> None:
    head, *lines = (line.split() for line in FILMS[table].strip().splitlines())
    wanted = {
        (row, column): int(films)
        for row, *counts in lines
        for column, films in zip(head, counts, strict=True)
        if films != "–"
    }
    assert wanted == {
        (row, column): films
        for counted in experiments[table].films
        for row, known in counted.figures.items()
        for column, films in known.items()
    }


@pytest.mark.parametrize("file", TOLD)
def test_what_is_no_cell_of_a_table_is_told_in_words(file: str, root: Path) -> None:
    text = " ".join((root / file).read_text(encoding="utf-8").split())
    assert [figure for figure in TOLD[file] if figure not in text] == []


@pytest.fixture(scope="module")
def cells(
    experiments: dict[str, Experiment], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str, str], Cell]:
    """(table, row, column) → its cell at the budget paper."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "films.csv").write_text("image\n")
    found = {}
    for table in STATED:
        config = ReproduceConfig((table,), "paper", data=str(folder), out=str(folder))
        for cell in make_cells(experiments[table], config, with_paper=False):
            found[table, cell.row, cell.column] = cell
    return found


def setting(settings: dict[str, Any], key: str) -> Any:
    """A resolved setting; of the phases a value each."""
    if not key.startswith("phases"):
        return flatten(settings)[key]
    phases = [flatten(phase) for phase in settings["phases"]]
    return [phase[key.removeprefix("phases").removeprefix(".") or "name"] for phase in phases]


PLACES = [(table, *place) for table, rows in STATED.items() for place in rows]


@pytest.mark.parametrize(("table", "row", "column"), PLACES)
def test_the_budget_paper_is_what_the_source_states(
    table: str, row: str, column: str, cells: dict[tuple[str, str, str], Cell]
) -> None:
    cell, stated = cells[table, row, column], STATED[table][row, column]
    assert {key: setting(cell.settings, key) for key in stated} == stated


@pytest.mark.parametrize("table", STATED)
def test_nothing_that_a_source_states_counts_as_guessed(
    table: str, experiments: dict[str, Experiment]
) -> None:
    stated = {key for row in STATED[table].values() for key in row}
    # what rows or columns vary: the thesis says that it dilates, not by how much; the Keras report
    # which batch and rate it settled on, not what it tried
    varied = {"region.dilation", *(["batch", "optim.rate"] if table == "keras_grid" else [])}
    assert not stated & set(experiments[table].guessed) - varied


def test_what_is_guessed_is_a_setting_of_the_table(
    experiments: dict[str, Experiment], cells: dict[tuple[str, str, str], Cell]
) -> None:
    for (table, *_), cell in cells.items():
        assert set(experiments[table].guessed) <= set(flatten(cell.settings)), table


def test_adam_has_the_thesis_momentum_and_weight_decay() -> None:
    import torch

    from cxr.training.learner import Learner

    weights = [{"params": [torch.nn.Parameter(torch.zeros(1))], "factor": 1.0}]
    member: Any = SimpleNamespace(optim=OptimConfig(), groups=lambda: weights, nesterov=False)
    adam = Learner.configure_optimizers(member)
    assert type(adam) is torch.optim.Adam
    assert adam.defaults["betas"][0] == 0.9
    assert adam.defaults["weight_decay"] == 5e-4


def test_the_keras_reports_114th_layer_is_half_of_stage_3() -> None:
    """Its count of trainable parameters, 18,894,595, is that of these layers and of its head."""
    from classify.models.backbones import Backbone
    from classify.models.settings import BackboneConfig

    net = Backbone(BackboneConfig("resnet50", 3, freeze_to="layer3_half"))
    learnt = sum(p.numel() for p in net.body.parameters() if p.requires_grad)
    # Keras' convolutions have biases: 3 blocks of 256 + 256 + 1024, then 3 of 512 + 512 + 2048 and
    # the shortcut's 2048
    biases = 3 * (256 + 256 + 1024) + 3 * (512 + 512 + 2048) + 2048
    # 2048 → 256 → 128 → 3 with batch normalisation of the first two inputs
    head = 2048 * 256 + 256 + 256 * 128 + 128 + 128 * 3 + 3 + 2 * (2048 + 256)
    assert learnt + biases + head == 18_894_595
    net.freeze_to("layer3")
    last = sum(p.numel() for p in net.body.parameters() if p.requires_grad)
    assert learnt - last == sum(
        p.numel() for b in (3, 4, 5) for p in net.body.layer3[b].parameters()
    )
