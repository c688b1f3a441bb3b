"""What a run of tools/reproduce.py decides, and the cells of a table, each one training.

A cell is known by the hash of all that its result hangs on. Cells are trained one after the other
in this process, or side by side on the machines of a Ray cluster.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from rich.table import Table as Shown

from cxr.cli import Several, from_plain, load_named, to_plain
from cxr.data_folders import DataFolders
from cxr.ledger import read_answers
from cxr.page import printable
from cxr.rules import require, require_at_least, require_not_negative, require_one_of
from cxr.training.recipe import flatten
from cxr.workdir import log, provenance, read_json, write_json
from reproducing.experiment import BUDGETS, Experiment, merge
from reproducing.runners import (
    DRAWN,
    FREE,
    SPLIT,
    Runner,
    content_of,
    digest,
    find_runner,
    fingerprint,
)

RESULT, FAILED = "result.json", "failed.json"
_LONGEST = 300  # characters of a reason


PROG = "python tools/reproduce.py"
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class ReproduceConfig:
    """Make tables of the papers: LIST shows them, `all` makes every one.

    Writes OUT/TABLE_BUDGET_INPUT.md, .html and .json: for each cell the paper's figure, ours with
    its interval, and what differs; under it the shortcut probe on the same films.

    Args:
        table: LIST, all, or names of tables.
        budget: smoke (minutes; shows only that everything runs), small (about an hour for all on
            two cores) or paper (the full recipe, for GPUs and the papers' films).
        data: folder with films.csv, or several of them (the flag again for each); empty takes
            ../shared/data, and for smoke drawn films.
        sources: sources of films.csv in place of those of the table's file.
        input: films, or crops of the thorax.
        crops: folder of detect.crop; empty makes the crops with the detector of lungfirst.
        out: folder of the tables and of what was trained.
        docs: copy the Markdown and its figures to this folder, too.
        render: train nothing. The figures of cells that are not finished here are those that an
            earlier run left in `docs`, where settings and films are still the same.
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
    data: Several = ""
    sources: tuple[str, ...] = ()
    input: str = "films"
    crops: str = ""
    out: str = "runs/tables"
    docs: str = ""
    render: bool = False
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
        known = {"budget": BUDGETS, "input": ("films", "crops"), "engine": ENGINES}
        require_one_of(self, **known, device=("auto", "cpu", "gpu"))
        if self.crops and self.input != "crops":
            raise ValueError(
                f"crops must be empty for --input films. Got {self.crops!r}: add --input crops."
            )
        require(bool(self.docs) or not self.render, "docs must name a folder to render", self.docs)
        require_not_negative(self, "seed", "workers", "gpus")
        require_at_least(self, draws=1)
        require(self.cpus > 0, "cpus must be above 0", self.cpus)

    @property
    def seen(self) -> str:
        """What the networks see."""
        return "crops" if self.crops else "films"

    @property
    def drawn(self) -> bool:
        """Are these the drawn films of the budget smoke?"""
        return self.sources == (DRAWN,)

    def decides(self, name: str) -> Any:
        """What the run decides for a name of Runner.keys. The shuffle of patients hangs on the
        one seed, too; decoded pixels are shared by all cells."""
        more = {"split_seed": self.seed, "cache": str(Path(self.out) / "cache")}
        return more[name] if name in more else getattr(self, name)


@dataclass(frozen=True)
class Cell:
    """One training. `settings` are resolved: every key of the runner's configuration has its value.

    `paper` are the settings of the same cell at the budget paper, nested as in the file.
    """

    table: str
    row: str
    column: str
    runner: str
    key: str
    folder: Path
    settings: dict[str, Any]
    paper: dict[str, Any]

    @property
    def name(self) -> str:
        """Row and column for a person."""
        return " · ".join(filter(None, (self.row, self.column)))

    @property
    def finished(self) -> bool:
        """Was it trained to its end?"""
        return (self.folder / RESULT).is_file()

    @property
    def result(self) -> dict[str, Any]:
        """result.json of a finished cell."""
        return dict(read_json(self.folder / RESULT))

    @property
    def answers(self) -> Path:
        """Where a finished cell's answers.csv lies."""
        return self.folder / str(self.result["answers"])

    @property
    def failure(self) -> str:
        """Why the last training failed; empty when it did not."""
        path = self.folder / FAILED
        return "" if self.finished or not path.is_file() else str(read_json(path)["reason"])


def make_cells(
    experiment: Experiment, config: ReproduceConfig, with_paper: bool = True
) -> list[Cell]:
    """All cells at the budget; raises ValueError naming the cell whose settings are wrong.

    Resolving takes a while: without `with_paper` the cells' `paper` stays empty.
    """
    runner = check_input(experiment, bool(config.crops))
    marks = fingerprint(config.data, config.crops, runner.files)
    cells = []
    for row, column in experiment.cells():
        try:
            wanted = [experiment.settings(b, row, column) for b in (config.budget, "paper")]
            settings = resolve(runner, wanted[0], config)
            paper = resolve(runner, wanted[1], config) if with_paper else {}
            kind = flatten(settings)[runner.protocol] if runner.protocol else runner.only
            if kind != experiment.protocol:  # defaults included
                raise ValueError(
                    f"protocol must be the table's for every cell, {experiment.protocol}. "
                    f"Got {kind}."
                )
        except ValueError as error:
            where = " ".join(filter(None, (row.name, column.name)))
            raise ValueError(f"{experiment.name}, {where}, {config.budget}: {error}") from error
        key = cell_key(experiment.runner, settings, config.seen, marks)
        folder = Path(config.out) / "cells" / key
        merge(settings, {runner.keys["out"]: str(folder)})
        names = experiment.name, row.name, column.name, experiment.runner
        cells.append(Cell(*names, key, folder, settings, paper))
    return cells


def check_input(experiment: Experiment, cropped: bool) -> Runner:
    """The table's runner; raises ValueError for crops that it does not take."""
    runner = find_runner(experiment.runner)
    if cropped and "crops" not in runner.keys:
        raise ValueError(
            f"input must be films for {experiment.name}: its detector looks at whole "
            "films. Got crops instead."
        )
    return runner


def resolve(runner: Runner, settings: dict[str, Any], config: ReproduceConfig) -> dict[str, Any]:
    """Settings with the run's own put in and every default written out, checked by the runner's
    configuration; raises ValueError."""
    filled: dict[str, Any] = {}
    merge(filled, settings)
    merge(filled, {key: config.decides(name) for name, key in runner.keys.items()})
    if config.sources:
        merge(filled, {runner.sources: list(config.sources)})
    if config.drawn:  # the drawn films' patients are in no other split
        own = str(DataFolders(config.data) / SPLIT)
        merge(filled, {k: own for k in runner.split_files if flatten(filled).get(k)})
    plain: dict[str, Any] = to_plain(from_plain(runner.config_class, filled))
    return plain


def cell_key(runner: str, settings: dict[str, Any], seen: str, marks: Sequence[str]) -> str:
    """16 hex digits of all that a result hangs on: settings, films, the runner and its version."""
    kind = find_runner(runner)
    free = {kind.keys[name] for name in FREE if name in kind.keys} | set(kind.free)
    flat = {k: content_of(k, v) for k, v in flatten(settings).items() if k not in free}
    for name, usual_of in kind.later_in.items():
        flat[name] = [
            {k: v for k, v in one.items() if k not in usual_of or v != usual_of[k]}
            for one in flat[name]
        ]
    if kind.later:
        usual = flatten(_defaults(kind.config_class))
        later = [k for k in flat if any(f"{k}.".startswith(f"{name}.") for name in kind.later)]
        flat = {k: v for k, v in flat.items() if k not in later or v != usual.get(k)}
    return digest(runner, kind.version, seen, list(marks), flat)


def _defaults(config_class: type[Any]) -> dict[str, Any]:
    """The default of each field, as plain values; together they need not make a configuration."""
    found = {}
    for known in fields(config_class):
        if known.default is not MISSING:
            found[known.name] = to_plain(known.default)
        elif known.default_factory is not MISSING:
            found[known.name] = to_plain(known.default_factory())
    return found


def short_reason(error: Exception) -> str:
    """An error as one line for a table."""
    text = " ".join(printable(str(error)).split()) or "it failed without a word"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def list_tables(
    experiments: Sequence[Experiment], place_of: Callable[[str, Experiment], ReproduceConfig]
) -> Shown:
    """A row a table: study, cells, and the finished ones of each budget in its place."""
    shown = Shown("table", "study", "cells", *BUDGETS, highlight=False)
    for experiment in experiments:
        cells = len(list(experiment.cells()))
        done = (finished(experiment, place_of(budget, experiment)) for budget in BUDGETS)
        shown.add_row(experiment.name, experiment.study, str(cells), *done)
    return shown


def finished(experiment: Experiment, config: ReproduceConfig) -> str:
    """How many cells are finished; «–» where there are no films to be trained on."""
    if not DataFolders(config.data).files("films.csv"):
        return "–"
    if not any((Path(config.out) / "cells").glob(f"*/{RESULT}")):
        return "0"
    try:
        return str(sum(cell.finished for cell in make_cells(experiment, config, False)))
    except (ValueError, OSError):
        return "–"


ROOT = Path(__file__).resolve().parent.parent.parent


class Outcome(NamedTuple):
    """How a cell ended: `reason` is empty for success."""

    name: str
    seconds: float
    reason: str = ""


def run_cells(cells: Sequence[Cell], config: ReproduceConfig) -> Iterator[Outcome]:
    """Train the cells that are not finished; each outcome as it comes.

    Two cells of one key are one training. Raises ValueError when Ray is asked for and missing.
    """
    pending = {cell.key: cell for cell in cells if not cell.finished}
    tasks = [(cell, find_runner(cell.runner)) for cell in pending.values()]
    if config.engine == "ray":
        yield from _run_on_ray(tasks, config)
    else:
        yield from (run_cell(*task) for task in tasks)


def import_ray() -> Any:
    """The module; raises ValueError that says how to install it."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "engine must be local where Ray is not installed. Got ray: pip install 'lungfirst[ray]'"
        ) from error
    return ray


def _run_on_ray(tasks: Sequence[tuple[Cell, Runner]], config: ReproduceConfig) -> Iterator[Outcome]:
    """One remote task a cell. Only the outcome travels: what was trained lies in the cell's folder,
    which every machine of the cluster must see under the same path; the project's root and tools/
    must stand in its PYTHONPATH."""
    ray = import_ray()
    if not tasks:
        return
    ours = not ray.is_initialized()
    if ours:
        here = {"include_dashboard": False} if not config.address else {}
        paths = [str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # workers here inherit it
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a busy machine needs it
        try:
            ray.init(address=config.address or "local", log_to_driver=False, **here)
        except Exception as error:  # Ray raises several kinds, a bare Exception among them
            raise ValueError(f"Ray did not start: {short_reason(error)}") from error
    try:
        remote = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=1)(run_cell)
        waiting = {remote.remote(*task): (task[0], time.monotonic()) for task in tasks}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            cell, started = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:  # the worker died: its cell is not finished
                yield Outcome(cell.name, time.monotonic() - started, short_reason(error))
    finally:
        if ours:
            ray.shutdown()


def run_cell(cell: Cell, runner: Runner) -> Outcome:
    """Train a cell unless it is finished, and write result.json; an error becomes the reason.

    A lock keeps two runs that share a folder from training one cell at once. The runner comes with
    the cell, since another process would have to look it up.
    """
    folder, answered, reason = cell.folder, "", ""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if cell.finished:
            return Outcome(cell.name, 0.0)
        started = time.monotonic()
        try:
            answered = _train(cell, runner)
        except Exception as error:  # one cell's fault must not stop the others
            reason = short_reason(error)
            ours = isinstance(error, ValueError | OSError)  # its words say what a user can mend
            log.warning("%s: %s", cell.name, reason, exc_info=not ours)
            write_json(folder / FAILED, {"reason": reason, **provenance()})
        finally:
            gc.collect()
        seconds = time.monotonic() - started
        if not reason:
            record = {
                "schema": "lungfirst.cell",
                "version": 1,
                **{k: getattr(cell, k) for k in ("table", "row", "column", "runner", "key")},
                "answers": answered,
                "seconds": round(seconds, 1),
                "settings": cell.settings,
                **provenance(),
            }
            write_json(folder / RESULT, record)
            (folder / FAILED).unlink(missing_ok=True)
    return Outcome(cell.name, seconds, reason)


def _train(cell: Cell, runner: Runner) -> str:
    """The runner's training; returns where answers.csv lies in the cell's folder."""
    made = Path(load_named(runner.train)(from_plain(runner.config_class, cell.settings)))
    read_answers(made / "answers.csv")  # raises ValueError for a training that left none
    return made.resolve().relative_to(cell.folder.resolve()).as_posix()
