"""python tools/reproduce.py LIST | TABLE … | all: the papers' tables, made again here.

Each table is a file of configs/experiments. What is finished is not trained again, so the same
command is given after a stop.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from rich.logging import RichHandler

from cxr.cli import parse_config
from cxr.page.words import printable
from cxr.workdir import console, log
from reproducing.cells import list_tables
from reproducing.engine import ENGINES, Engine, import_ray
from reproducing.experiment import BUDGETS, Experiment, find_experiments, read_experiment
from reproducing.place import DRAWN, Place

PROG = "python tools/reproduce.py"
DATA = "../shared/data"


@dataclass(frozen=True)
class ReproduceConfig:
    """Make tables of the papers: LIST shows them, `all` makes every one.

    Writes OUT/TABLE_BUDGET_INPUT.md, .html and .json: for each cell the paper's figure, ours with
    its interval, and what differs; under it the shortcut probe on the same films.

    Args:
        table: LIST, all, or names of tables.
        budget: smoke (minutes; shows only that everything runs), small (about an hour for all on
            two cores) or paper (the full recipe, for GPUs and the papers' films).
        data: folder with films.csv; empty takes ../shared/data, and for smoke drawn films.
        sources: sources of films.csv in place of those of the table's file.
        input: films, or crops of the thorax.
        crops: folder of detect.crop; empty makes the crops with the detector of lungfirst.
        out: folder of the tables and of what was trained.
        docs: copy the Markdown to this folder, too.
        engine: local, or ray (pip install 'lungfirst[ray]').
        cpus: ray: CPUs for one cell.
        gpus: ray: GPUs for one cell; fractions count.
        address: ray: of a running cluster; empty starts one on this machine.
        device: auto, cpu or gpu.
        workers: processes that make training pictures.
        seed: of the split, initial weights, order, augmentation and bootstrap.
        draws: bootstrap draws of patients for the intervals.
        experiments: folder of the tables' files.
    """

    table: tuple[str, ...] = ()
    budget: str = "small"
    data: str = ""
    sources: tuple[str, ...] = ()
    input: str = "films"
    crops: str = ""
    out: str = "runs/tables"
    docs: str = ""
    engine: str = "local"
    cpus: float = 1.0
    gpus: float = 0.0
    address: str = ""
    device: str = "auto"
    workers: int = 0
    seed: int = 0
    draws: int = 1000
    experiments: str = "configs/experiments"

    def __post_init__(self) -> None:
        if not self.table:
            raise ValueError(f"TABLE must name a table, LIST or all. Got none: {PROG} LIST")
        for name, known in (
            ("budget", BUDGETS),
            ("input", ("films", "crops")),
            ("engine", ENGINES),
            ("device", ("auto", "cpu", "gpu")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}. "
                    f"Got {getattr(self, name)!r} instead."
                )
        if self.crops and self.input != "crops":
            raise ValueError(
                f"crops must be empty for --input films. Got {self.crops!r}: add --input crops."
            )
        if min(self.seed, self.workers) < 0 or self.draws < 1:
            raise ValueError(
                "seed and workers must not be negative and draws at least 1. Got "
                f"{self.seed}, {self.workers} and {self.draws} instead."
            )

    @property
    def listing(self) -> bool:
        """Only show what there is?"""
        return len(self.table) == 1 and self.table[0].casefold() == "list"


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all cells of all tables are finished, 1 when some failed, 2 for wrong arguments."""
    config = parse_config(
        ReproduceConfig, argv, PROG, f"{PROG} twostage_fusion --budget smoke", ("table",)
    )
    try:
        engine = Engine(config.engine, config.cpus, config.gpus, config.address)
        if config.engine == "ray":
            import_ray()
        if config.listing:
            return show(config)
        experiments = chosen(config)
        places = {e.name: find_place(config, e) for e in experiments}
    except (ValueError, OSError) as error:
        log.error("%s", printable(str(error)))
        return 2
    with quiet():
        return max([make(config, e, places[e.name], engine) for e in experiments])


@contextmanager
def quiet() -> Iterator[None]:
    """A line a cell is enough on the terminal; what a training says stands in its run.log."""
    before = [(h, h.level) for h in log.handlers if isinstance(h, RichHandler)]
    for handler, level in before:
        handler.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        for handler, level in before:
            handler.setLevel(level)


def chosen(config: ReproduceConfig) -> list[Experiment]:
    """The tables asked for, read and checked before anything is trained."""
    found = find_experiments(config.experiments)
    every = len(config.table) == 1 and config.table[0].casefold() == "all"
    names = list(found) if every else list(dict.fromkeys(config.table))
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(
            f"TABLE must be LIST, all or of {', '.join(found)}. Got {unknown[0]!r} instead."
        )
    return [read_experiment(found[name]) for name in names]


def find_place(config: ReproduceConfig, experiment: Experiment) -> Place:
    """Films, crops and folders of a run; drawn films and missing crops are made."""
    from reproducing.making import drawn_films, find_crops

    place = films_place(config, config.budget)
    if place.drawn:
        drawn_films(Path(place.data))
    if config.input == "films":
        return place
    crops = config.crops or str(find_crops(experiment, place))
    absolute = config.engine == "ray"
    return replace(place, crops=str(Path(crops).absolute()) if absolute else crops)


def films_place(config: ReproduceConfig, budget: str) -> Place:
    """Where the films of a budget are, whole ones; smoke has drawn ones unless data were given."""
    drawn = budget == "smoke" and not config.data
    data = str(Path(config.out) / DRAWN) if drawn else config.data or DATA
    out = config.out
    if config.engine == "ray":  # its workers have another working folder
        data, out = str(Path(data).absolute()), str(Path(out).absolute())
    how = config.device, config.workers, config.seed, config.draws
    return Place(data, "", out, *how, sources=(DRAWN,) if drawn else config.sources)


def make(config: ReproduceConfig, experiment: Experiment, place: Place, engine: Engine) -> int:
    """One table; 1 when cells failed or it could not be made."""
    from reproducing.layout import headline
    from reproducing.making import Order, make_table

    tell = partial(console.print, highlight=False, markup=False)
    tell(f"{experiment.name} at {config.budget}")
    command = command_of(config, experiment)
    order = Order(experiment, config.budget, place, engine, command, config.docs)
    try:
        table = make_table(order, tell)
    except (ValueError, OSError) as error:
        log.error("%s", printable(str(error)))
        return 1
    tell(f"{headline(table)} Open {Path(config.out) / order.stem}.html in a browser.")
    return 1 if table.failed else 0


def command_of(config: ReproduceConfig, experiment: Experiment) -> str:
    """The command that makes this table again, without folders that only this machine has."""
    words = [experiment.name, "--budget", config.budget]
    if config.data:
        words += ["--data", "DATA"]
    if config.sources:
        words += ["--sources", json.dumps(list(config.sources))]
    if config.input == "crops":
        words += ["--input", "crops", *(["--crops", "CROPS"] if config.crops else [])]
    if config.seed:
        words += ["--seed", str(config.seed)]
    return f"{PROG} {shlex.join(words)}"


def show(config: ReproduceConfig) -> int:
    """LIST."""
    experiments = [read_experiment(p) for p in find_experiments(config.experiments).values()]
    places = {b: replace(films_place(config, b), crops=config.crops) for b in BUDGETS}
    console.print(list_tables(experiments, places), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
