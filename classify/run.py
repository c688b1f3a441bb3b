"""The main job: films → thorax box → crop → members → screener → predictions.csv and report.html.

    python -m classify.run FILMS --crops             box and crop each film, then classify the crops
    python -m classify.run --crops runs/crops        classify crops made earlier by detect.crop
    python -m classify.run FILMS                     classify whole films, for comparison
    python -m classify.run FILMS --crops --model timm:resnet18@net.safetensors    your classifier

A run that was stopped goes on where it was: films that are done keep their rows and their cards.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from classify.foreign import sentence_of
from classify.inputs import Item, name_of
from classify.panel import Panel
from classify.predictions import PredictionWriter
from classify.report import PICTURES, ReportBook, write_report
from classify.screener import NOT_READ
from classify.work import (
    RunConfig,
    RunWork,
    Source,
    Unit,
    load_panel,
    note_panel,
    open_source,
)
from cxr.cli import as_command, parse_config, to_plain
from cxr.engines import shared_by, without_compiler
from cxr.manifest import CropRow
from cxr.notes import count_notes
from cxr.page.words import printable
from cxr.rules import refusing, require_same_settings
from cxr.stream import LOCAL, spread, written
from cxr.workdir import Workdir, console, log, read_json


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """The command. 0 also when films were refused, 1 when none could be read, 2 for wrong arguments
    or files that are not what they should be, 130 when it was stopped."""
    example = "python -m classify.run ../shared/data/dicom --crops --out runs/first"
    config = parse_config(RunConfig, argv, example, ("films",), bare={"crops": ""})
    with ExitStack() as stack:
        with refusing():
            at_once = 2 if config.films and config.cropped else 1  # films are boxed while judged
            with without_compiler(), shared_by(at_once):
                source = open_source(config, stack)
                if not source.names:
                    _tell_passed_over(source, "no film was found")
                    return 1
                panel = load_panel(config, source.fine_apart)
                note_panel(source, panel, config)
            workdir, table, book = begin_run(config, source, panel, stack)
        complete = work_through(config, source, panel, table, book)
        summary = summarise(config, source, panel, complete)
        page = write_report(workdir / "report.html", summary, book)
        workdir.update(
            complete=complete,
            films=len(book),
            decisions=dict(book.counts),
            passed_over=source.passed_over,
            guarantee=summary["guarantee"],
            guard=summary["guard"],
        )
        console.print(_short_table(book))
        noted = count_notes(table.done[n].notes for n in source.names if n in table.done)
        if noted:
            told = ", ".join(f"{code} {films}" for code, films in noted.items())
            console.print(f"noted of films: {told}", highlight=False, markup=False)
        _tell_passed_over(source, f"{len(source.names)} films")
        told = f"{summary['guarantee']}\n{summary['guard']}\npage: {page}"
        console.print(told, highlight=False, markup=False)
        if not complete:
            log.warning("stopped. The same command goes on from here.")
            return 130
        read = any(table.done[name].status != "unreadable" for name in source.names)
        if not read:
            log.error("none of the %d files could be read as a film", len(source.names))
        return 0 if read else 1


def begin_run(
    config: RunConfig, source: Source, panel: Panel, stack: ExitStack
) -> tuple[Workdir, PredictionWriter, ReportBook]:
    """The run's folder with its table and its cards, those of an earlier run included; raises
    OSError, or ValueError where that had other settings."""
    workdir = Workdir(config.out_path)
    _check_resumable(config, source.settings)
    table = stack.enter_context(PredictionWriter(workdir / "predictions.csv", panel.targets))
    book = stack.enter_context(ReportBook(workdir / "report.jsonl", panel.targets))
    workdir.start(
        to_plain(config),
        weights=source.weights,
        settings=source.settings,
        folders=source.folders,
    )
    return workdir, table, book


def work_through(
    config: RunConfig, source: Source, panel: Panel, table: PredictionWriter, book: ReportBook
) -> bool:
    """Films that have no row yet are judged; False when Ctrl-C came before the end."""
    pending = [name for name in source.names if name not in table.done]
    if done := len(source.names) - len(pending):
        log.info("%d of %d films are done already", done, len(source.names))
    first_of: dict[str, str] = {}

    def write(item: Item) -> None:
        if item.row and source.manifest is not None:
            source.manifest.add(item.row)
        book.add(_mark_twin(item, first_of))  # first: a film whose row stands has its card
        table.add(item)

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("judging", total=len(pending))
            with closing(judged(config, source, panel, pending)) as items:
                for _ in written(items, write):
                    bar.advance(task)
    except KeyboardInterrupt:
        return False
    return True


def judged(
    config: RunConfig, source: Source, panel: Panel, pending: list[str]
) -> Generator[Item, None, None]:
    """The pending films, judged here or by workers."""
    units = source.units(pending)
    if config.workers == LOCAL:
        assert source.reader is not None
        yield from RunWork(source.reader, panel)(units)
        return
    make = partial(RunWork.on_worker, config, source.fine_apart)
    yield from spread(config.workers, make, units, config.batch, _lost)


def _lost(unit: Unit, why: str) -> Item:
    name = name_of(unit.film if isinstance(unit, CropRow) else unit)
    return Item(name, "unreadable", f"worker_crashed: {why}.", decision=NOT_READ)


def summarise(config: RunConfig, source: Source, panel: Any, complete: bool) -> dict[str, Any]:
    """What the page's head says."""
    cautions = [c for judge in panel.judges if (c := _scope_of(judge, len(panel.judges) > 1))]
    answered_by = [getattr(judge.members, "foreign", {}) for judge in panel.judges]
    cautions += [sentence_of(known) for known in answered_by if known]
    wanted = "crops" if config.cropped else "films"
    for trained_on in dict.fromkeys(judge.members.trained_on for judge in panel.judges):
        if trained_on and trained_on != wanted:
            seen = "crops" if config.cropped else "whole films"
            cautions.append(f"The members were trained on {trained_on} but were shown {seen}.")
    return {
        "title": config.out_path.as_posix(),
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "guarantee": panel.told(_guarantee_of),
        "guard": panel.told(_guard_of),
        "proven": all(judge.screener and judge.screener.point.proven for judge in panel.judges),
        "threshold_id": panel.told(
            lambda judge: judge.screener.threshold_id if judge.screener else "none"
        ),
        "cropped": config.cropped,
        "maps": "Occlusion" if any(k and not k["layer"] for k in answered_by) else "Grad-CAM",
        "targets": panel.targets,
        "cautions": cautions,
        "passed_over": list(source.passed_over.items()),
        "complete": complete,
    }


def _guarantee_of(judge: Any) -> str:
    if judge.screener:
        return str(judge.screener.guarantee)
    return "nothing is cleared: this ensemble has no screener, so every film is to be read."


def _guard_of(judge: Any) -> str:
    if judge.guard:
        return str(judge.guard.sentence)
    return "This ensemble has no guard: a film unlike those of its calibration is not held back."


def _scope_of(judge: Any, named: bool) -> str:
    """On whom the members learnt, where the screener says so."""
    scope = str((judge.screener.meta if judge.screener else {}).get("scope") or "")
    return f"{judge.name}: {scope}" if scope and named else scope


def _check_resumable(config: RunConfig, settings: dict[str, Any]) -> None:
    """Drop an earlier run with --restart; raises ValueError when it had other settings."""
    folder = config.out_path
    rows, record, cards = (folder / n for n in ("predictions.csv", "run.json", "report.jsonl"))
    if config.restart:
        for path in (rows, record, folder / "report.html"):
            path.unlink(missing_ok=True)
    if not rows.exists():  # cards without rows are of no use
        cards.unlink(missing_ok=True)
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        return
    old = read_json(record).get("settings", {}) if record.exists() else {}
    require_same_settings(folder, old, json.loads(json.dumps(settings)))


def _mark_twin(item: Item, first_of: dict[str, str]) -> Item:
    """Say on a card that another file of this run holds the same bytes."""
    first = first_of.setdefault(item.sha256, item.film) if item.sha256 else item.film
    if first == item.film:
        return item
    return replace(item, facts=(*item.facts, f"the same file as {first}"))


def _short_table(book: ReportBook, rows: int = 20) -> Table:
    """The films to be read first, as many as fit a screen."""
    more = len(book) - rows
    caption = f"… and {more} more in report.html" if more > 0 else ""
    counts = ", ".join(f"{n} {d.replace('_', ' ')}" for d, n in sorted(book.counts.items()) if n)
    table = Table(title=f"{len(book)} films: {counts}", caption=caption)
    for column in ("film", "decision", "score", "tier", "box", "why"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for card in islice(book.cards(pictures=False), rows):
        score = card["abnormal_score"]
        cells = (
            Path(card["film"]).name,
            card["decision"].replace("_", " "),
            "" if score is None else f"{score:.3f}",
            card["tier"].replace("_", " "),
            card["status"].replace("_", " "),
            card["reason"] or card.get("doubt", ""),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))  # Text: a name is no markup
    return table


def _tell_passed_over(source: Source, head: str) -> None:
    if source.passed_over or not source.names:
        why = ", ".join(f"{n} {reason}" for reason, n in source.passed_over.items())
        log.info("%s; files passed over: %s", head, why or "none")


if __name__ == "__main__":
    raise SystemExit(main())
