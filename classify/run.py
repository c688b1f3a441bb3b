"""The main job: films → thorax box → crop → members → screener → predictions.csv and report.html.

    python -m classify.run FILMS --crops             box and crop each film, then classify the crops
    python -m classify.run --crops runs/crops        classify crops made earlier by detect.crop
    python -m classify.run FILMS                     classify whole films, for comparison

A run that was stopped goes on where it was: films that are done keep their rows and their cards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from classify.ensemble import Ensemble
from classify.inputs import Item, Source, crop_on_disk, fresh_crop, name_of, whole_films
from classify.judge import Judge
from classify.predictions import PredictionWriter
from classify.report import ReportBook, ReportSummary, write_report
from classify.run_config import DEFAULT_CROPS, DEFAULT_TIERS, RunConfig
from classify.screener import Screener
from classify.screening.tiers import read_tiers
from cxr.cli import parse_config, to_plain
from cxr.film import FilmList, list_films
from cxr.manifest import ManifestWriter, read_manifest
from cxr.page.words import printable
from cxr.stream import batched, default_jobs
from cxr.workdir import Workdir, console, log, provenance
from detect.crop import CropSettings, find_pending, iter_crops
from detect.predict import ThoraxDetector


def open_source(config: RunConfig, stack: ExitStack) -> Source:
    """Films to crop, crops made earlier, or whole films; raises OSError or ValueError."""
    if not config.films:
        return _earlier_crops(Path(config.crops or DEFAULT_CROPS))
    found = list_films(config.films)
    if config.cropped:
        return _films_to_crop(config, found, stack)
    path_of = {name_of(p): p for p in found.films}

    def items(pending: list[str]) -> Iterator[Item]:
        return whole_films([path_of[n] for n in pending], _jobs(config, pending))

    return Source(list(path_of), items, {"input": "whole films"}, found.passed_over)


def _earlier_crops(folder: Path) -> Source:
    if folder.is_file() or (folder.is_dir() and not (folder / "manifest.jsonl").exists()):
        raise ValueError(
            f"--crops must name a folder of detect.crop when no FILMS are given. "
            f"{folder} holds no manifest.jsonl. If it holds films: "
            f"python -m classify.run {folder} --crops"
        )
    header, rows = read_manifest(folder / "manifest.jsonl")
    row_of = {name_of(row.film): row for row in rows}

    def items(pending: list[str]) -> Iterator[Item]:
        return (crop_on_disk(row_of[name], folder) for name in pending)

    return Source(list(row_of), items, {"input": "crops", "crops": header.get("settings")})


def _films_to_crop(config: RunConfig, found: FilmList, stack: ExitStack) -> Source:
    folder = Path(config.crops) if config.crops else config.out_path / "crops"
    detector = ThoraxDetector.load(config.detector or None, config.device)
    settings = {"margin": config.margin, "square": False, "boxes_from": detector.weights}
    header = {**provenance(detector.weights), "settings": settings}
    restart = config.restart and not config.crops  # crops elsewhere are not this run's to remake
    book = stack.enter_context(ManifestWriter(folder / "manifest.jsonl", header, restart))

    path_of = {name_of(p): p for p in found.films}

    def items(pending: list[str]) -> Iterator[Item]:
        paths = [path_of[name] for name in pending]
        fresh, stale = find_pending(paths, book.done, folder)
        book.drop(stale)
        missing = set(fresh)
        for path in paths:
            if path not in missing:
                yield crop_on_disk(book.done[path.as_posix()], folder)
        cut = CropSettings(folder, config.margin, False, _jobs(config, fresh), config.batch)
        with closing(iter_crops(fresh, detector, cut)) as crops:  # type: ignore[type-var]
            for row, film, crop in crops:
                book.add(row)
                yield fresh_crop(row, film, crop)

    made = {"input": "crops", "crops": settings}
    return Source(list(path_of), items, made, found.passed_over, detector.weights)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. 0 also when films were refused, 1 when none could be read, 2 for wrong arguments
    or files that are not what they should be, 130 when it was stopped."""
    config = parse_config(
        RunConfig,
        argv,
        prog="python -m classify.run",
        example="python -m classify.run ../shared/data/dicom --crops --out runs/first",
        positionals=("films",),
        bare={"crops": ""},
    )
    with ExitStack() as stack:
        try:
            source = open_source(config, stack)
            if not source.names:
                _tell_passed_over(source, "no film was found")
                return 1
            judge, settings, weights = _load_models(config, source)
            workdir = Workdir(config.out_path)
            _check_resumable(config, settings)
            table = stack.enter_context(
                PredictionWriter(workdir / "predictions.csv", judge.members.targets)
            )
            book = stack.enter_context(ReportBook(workdir / "report.jsonl"))
            workdir.start(to_plain(config), weights={**source.weights, **weights})
            workdir.update(settings=settings)
        except (OSError, ValueError) as error:
            log.error("%s", error)
            return 2
        except KeyboardInterrupt:
            return _tell_stopped()
        complete = work_through(config, source, judge, table, book)
        summary = summarise(config, source, judge, complete)
        page = write_report(workdir / "report.html", summary, book)
        counts = dict(book.counts)
        workdir.update(
            complete=complete,
            films=len(book),
            decisions=counts,
            passed_over=source.passed_over,
            guarantee=summary.guarantee,
        )
        console.print(_short_table(book, summary))
        _tell_passed_over(source, f"{len(source.names)} films")
        console.print(f"{summary.guarantee}\npage: {page}", highlight=False, markup=False)
        if not complete:
            return _tell_stopped()
        read = any(table.done[name].status != "unreadable" for name in source.names)
        if not read:
            log.error("none of the %d files could be read as a film", len(source.names))
        return 0 if read else 1


def work_through(
    config: RunConfig, source: Source, judge: Judge, table: PredictionWriter, book: ReportBook
) -> bool:
    """Judge the films that have no row yet; False when Ctrl-C came before the end."""
    pending = [name for name in source.names if name not in table.done]
    if len(pending) < len(source.names):
        log.info(
            "%d of %d films are done already", len(source.names) - len(pending), len(source.names)
        )
    first_of: dict[str, str] = {}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("judging", total=len(pending))
            with closing(source.items(pending)) as items:  # type: ignore[type-var]
                for batch in batched(items, config.batch):
                    for row, card in judge.judge([_mark_twin(i, first_of) for i in batch]):
                        book.add(card)  # first: a film whose row stands has its card
                        table.add(row)
                        bar.advance(task)
    except KeyboardInterrupt:
        return False
    return True


def summarise(
    config: RunConfig, source: Source, judge: Judge, complete: bool = True
) -> ReportSummary:
    """What the page's head says."""
    screener = judge.screener
    guarantee = (
        screener.guarantee
        if screener
        else ("nothing is cleared: this ensemble has no screener, so every film is to be read.")
    )
    cautions = [str(screener.meta["scope"])] if screener and screener.meta.get("scope") else []
    wanted = "crops" if config.cropped else "films"
    if judge.trained_on and judge.trained_on != wanted:
        seen = f"{'crops' if config.cropped else 'whole films'}"
        cautions.append(f"The members were trained on {judge.trained_on} but were shown {seen}.")
    return ReportSummary(
        title=config.out_path.as_posix(),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        guarantee=guarantee,
        proven=bool(screener and screener.point.proven),
        threshold_id=screener.threshold_id if screener else "none",
        cropped=config.cropped,
        targets=tuple(judge.members.targets),
        cautions=tuple(cautions),
        passed_over=tuple(source.passed_over.items()),
        complete=complete,
    )


def _load_models(config: RunConfig, source: Source) -> tuple[Judge, dict[str, Any], dict[str, str]]:
    """The judge, the settings that a resumed run must share, and the weights by file."""
    folder = config.ensemble_path
    ensemble = Ensemble.load(folder, config.device)
    screener: Screener | None = None
    if (folder / "screener.json").exists():
        screener = Screener.load(folder)
    else:
        log.warning("%s holds no screener: every film is to be read", folder)
    missing = config.tiers == DEFAULT_TIERS and not config.tiers.exists()  # not run from the root
    tiers = {} if missing else read_tiers(config.tiers)
    judge = Judge(ensemble, screener, tiers, config.cropped, config.saliency, config.tier_threshold)
    settings = {
        **source.settings,
        "members": dict(ensemble.weights),
        "tiers": tiers,
        "threshold": screener.threshold_id if screener else "",
        "tier_threshold": config.tier_threshold,
    }
    return judge, settings, {f"{t}.safetensors": digest for t, digest in ensemble.weights.items()}


def _check_resumable(config: RunConfig, settings: dict[str, Any]) -> None:
    """Drop an earlier run with --restart; raises ValueError when it had other settings."""
    folder = config.out_path
    rows, record = folder / "predictions.csv", folder / "run.json"
    if config.restart:
        for path in (rows, record, folder / "report.jsonl", folder / "report.html"):
            path.unlink(missing_ok=True)
    if not rows.exists():
        (folder / "report.jsonl").unlink(missing_ok=True)  # cards without rows are of no use
        return
    old = json.loads(record.read_text()).get("settings", {}) if record.exists() else {}
    new = json.loads(json.dumps(settings))
    differs = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    if differs:
        raise ValueError(
            f"{folder} holds a run with other settings ({', '.join(differs)}). "
            "Give another --out, or --restart to judge all films anew."
        )


def _jobs(config: RunConfig, films: Sequence[Any]) -> int:
    return default_jobs(len(films)) if config.jobs < 0 else config.jobs


def _mark_twin(item: Item, first_of: dict[str, str]) -> Item:
    """Say on a card that another file of this run holds the same bytes."""
    first = first_of.setdefault(item.sha256, item.film) if item.sha256 else item.film
    if first == item.film:
        return item
    return replace(item, facts=(*item.facts, f"the same file as {first}"))


def _short_table(book: ReportBook, summary: ReportSummary, rows: int = 20) -> Table:
    """The films to be read first, as many as fit a screen."""
    more = len(book) - rows
    caption = f"… and {more} more in report.html" if more > 0 else ""
    counts = ", ".join(f"{n} {d.replace('_', ' ')}" for d, n in sorted(book.counts.items()) if n)
    table = Table(title=f"{len(book)} films: {counts}", caption=caption)
    for column in ("film", "decision", "score", "tier", "box", "why"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for card in islice(book.cards(), rows):
        score = card["abnormal_score"]
        cells = (
            Path(card["film"]).name,
            card["decision"].replace("_", " "),
            "" if score is None else f"{score:.3f}",
            card["tier"].replace("_", " "),
            card["status"].replace("_", " "),
            card["reason"],
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))  # Text: a name is no markup
    return table


def _tell_passed_over(source: Source, head: str) -> None:
    if source.passed_over or not source.names:
        why = ", ".join(f"{n} {reason}" for reason, n in source.passed_over.items())
        log.info("%s; files passed over: %s", head, why or "none")


def _tell_stopped() -> int:
    log.warning("stopped. The same command goes on from here.")
    return 130


if __name__ == "__main__":
    raise SystemExit(main())
