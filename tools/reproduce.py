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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an install too

from rich.logging import RichHandler

from cxr.cli import Several, as_list, parse_config
from cxr.page import printable
from cxr.workdir import console, log
from reproducing.cells import PROG, ReproduceConfig, import_ray, list_tables
from reproducing.experiment import Experiment, find_experiments, read_experiment
from reproducing.runners import DRAWN

DATA = "../shared/data"


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all cells of all tables are finished, 1 when some failed, 2 for wrong arguments."""
    example = f"{PROG} twostage_fusion --budget smoke"
    config = parse_config(ReproduceConfig, argv, example, ("table",))
    names = [name.casefold() for name in config.table]
    try:
        if config.engine == "ray":
            import_ray()
        files = find_experiments(config.experiments)
        if names == ["list"]:
            every = [read_experiment(path) for path in files.values()]
            shown = list_tables(every, lambda b, e: placed(replace(config, budget=b), e))
            console.print(shown, markup=False)
            return 0
        wanted = list(files) if names == ["all"] else list(dict.fromkeys(config.table))
        if unknown := [name for name in wanted if name not in files]:
            raise ValueError(
                f"TABLE must be LIST, all or of {', '.join(files)}. Got {unknown[0]!r} instead."
            )
        experiments = [read_experiment(files[name]) for name in wanted]
        orders = [find_films(config, experiment) for experiment in experiments]
    except (ValueError, OSError) as error:
        log.error("%s", printable(str(error)))
        return 2
    with quiet():
        made = zip(experiments, orders, strict=True)
        return max([make(e, order, command_of(config, e)) for e, order in made])


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


def placed(config: ReproduceConfig, experiment: Experiment) -> ReproduceConfig:
    """With the films of the budget; smoke has drawn ones unless data were given."""
    drawn = config.budget == "smoke" and not config.data
    usual: Several = experiment.data or DATA
    data: Several = str(Path(config.out) / DRAWN) if drawn else config.data or usual
    where: dict[str, Any] = {"data": data, "out": config.out, "crops": config.crops}
    if config.engine == "ray":  # its workers have another working folder
        where = {name: _absolute(path) for name, path in where.items()}
    return replace(config, **where, sources=(DRAWN,) if drawn else config.sources)


def _absolute(path: Several) -> Several:
    if not isinstance(path, str):
        return [str(Path(folder).absolute()) for folder in path]
    return path and str(Path(path).absolute())


def find_films(config: ReproduceConfig, experiment: Experiment) -> ReproduceConfig:
    """With films, crops and folders of a run; drawn films and missing crops are made."""
    from reproducing.making import drawn_films, find_crops

    config = placed(config, experiment)
    if config.drawn:
        drawn_films(Path(as_list(config.data)[0]))
    if config.input == "films" or config.crops:
        return config
    return replace(config, crops=str(find_crops(experiment, config)))


def make(experiment: Experiment, config: ReproduceConfig, command: str) -> int:
    """One table; 1 when cells failed or it could not be made."""
    from reproducing.layout import headline
    from reproducing.making import make_table

    tell = partial(console.print, highlight=False, markup=False)
    tell(f"{experiment.name} at {config.budget}")
    try:
        table = make_table(experiment, config, command, tell)
    except (ValueError, OSError) as error:
        log.error("%s", printable(str(error)))
        return 1
    tell(f"{headline(table)} Open {Path(config.out) / table.stem}.html in a browser.")
    return 1 if table.failed else 0


def command_of(config: ReproduceConfig, experiment: Experiment) -> str:
    """The command that makes this table again, without folders that only this machine has."""
    words = [experiment.name, "--budget", config.budget]
    words += ["--data", "DATA"] * len(as_list(config.data))
    if config.sources:
        words += ["--sources", json.dumps(list(config.sources))]
    if config.input == "crops":
        words += ["--input", "crops", *(["--crops", "CROPS"] if config.crops else [])]
    if config.seed:
        words += ["--seed", str(config.seed)]
    return f"{PROG} {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(main())
