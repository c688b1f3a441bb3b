"""The main job: films → thorax box → crop → members → screener → predictions.csv and report.html.

    python -m classify.run FILMS --crops             box and crop each film, then classify the crops
    python -m classify.run --crops runs/crops        classify crops made earlier by detect.crop
    python -m classify.run FILMS                     classify whole films, for comparison
    python -m classify.run FILMS --crops --model timm:resnet18@net.safetensors    your classifier

A run that was stopped goes on where it was: films that are done keep their rows and their cards.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from classify.judge import Panel
from classify.members import sentence_of
from classify.predictions import ANSWERS, Item, PredictionWriter, name_of, split_note
from classify.screener import NOT_READ
from classify.screening.reading import TIERS
from classify.work import RunConfig, RunWork, Source, Unit, load_panel, note_panel, open_source
from cxr.cli import as_command, parse_config, to_plain
from cxr.draw import to_data_uri
from cxr.engines import shared_by, without_compiler
from cxr.ledger import FilmRecords
from cxr.manifest import CropRow
from cxr.notes import count_notes
from cxr.page import printable
from cxr.page.build import write_page
from cxr.rules import refusing, require_same_settings
from cxr.stats import softmax
from cxr.stream import LOCAL, spread, written
from cxr.workdir import Workdir, console, log, read_json

HERE = Path(__file__).resolve().parent
PICTURES, PAGES = "pictures", "report"  # folders beside report.jsonl
INLINE, ON_A_PAGE = 500, 200  # films whose pictures one page holds; cards a page of many films
_KINDS = ("picture", "crop", "saliency")
_DECISIONS = ("read", "not_read_by_model", "definitely_normal")
_NO_SCREENER = "nothing is cleared: this ensemble has no screener, so every film is to be read."
_NO_GUARD = "This ensemble has no guard: a film unlike those of its calibration is not held back."


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
        to_plain(config), weights=source.weights, settings=source.settings, folders=source.folders
    )
    return workdir, table, book


def work_through(
    config: RunConfig, source: Source, panel: Panel, table: PredictionWriter, book: ReportBook
) -> bool:
    """Films that have no row yet are judged; False when Ctrl-C came before the end."""
    pending = [name for name in source.names if name not in table.done]
    if done := len(source.names) - len(pending):
        log.info("%d of %d films are done already", done, len(source.names))
    first_of: dict[str, str] = {}  # the bytes of a file, by their hash → the first that holds them

    def write(item: Item) -> None:
        if item.row and source.manifest is not None:
            source.manifest.add(item.row)
        first = first_of.setdefault(item.sha256, item.film) if item.sha256 else item.film
        twin = () if first == item.film else (f"the same file as {first}",)
        # its card comes first: a film whose row stands has it
        book.add(replace(item, facts=(*item.facts, *twin)))
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


def summarise(config: RunConfig, source: Source, panel: Panel, complete: bool) -> dict[str, Any]:
    """What the page's head says."""
    cautions = []  # first on whom the members learnt, where the screener says so
    for judge in panel.judges:
        if judge.screener and (scope := judge.screener.meta.get("scope")):
            cautions.append(f"{judge.name}: {scope}" if len(panel.judges) > 1 else str(scope))
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
        "guarantee": panel.told(lambda j: j.screener.guarantee if j.screener else _NO_SCREENER),
        "guard": panel.told(lambda j: j.guard.sentence if j.guard else _NO_GUARD),
        "proven": all(judge.screener and judge.screener.point.proven for judge in panel.judges),
        "threshold_id": panel.told(lambda j: j.screener.threshold_id if j.screener else "none"),
        "cropped": config.cropped,
        "maps": "Occlusion" if any(k and not k["layer"] for k in answered_by) else "Grad-CAM",
        "targets": panel.targets,
        "cautions": cautions,
        "passed_over": list(source.passed_over.items()),
        "complete": complete,
    }


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


# --- report.html: one page for a run, with every film's box, crop, members, decision and saliency.
#
# Films are kept in report.jsonl, a line each, as they finish, and their pictures as files beside
# it; the page is put together from these piece by piece, so memory holds one film at a time. Up to
# INLINE films it needs no other file and no network. Of more films it lists all; their cards follow
# on pages of their own in report/, and pictures stay where they are.


class ReportBook(FilmRecords):
    """report.jsonl: a line a film; memory holds how urgent each is. A picture's `uri` there is a
    file, relative to the run's folder; in older runs the picture itself as a data URI."""

    def __init__(self, path: str | Path, targets: Sequence[str]) -> None:
        super().__init__(path, _urgency)
        self.targets = tuple(targets)

    def add(self, item: Item) -> None:  # type: ignore[override]
        """Write one film's card; a film that stands there already is replaced by the new one."""
        asked = np.zeros(0, bool) if item.logits is None else ~np.isnan(item.logits).all(axis=1)
        bars = [] if item.logits is None else softmax(item.logits[asked]).tolist()
        targets = [t for t, own in zip(self.targets, asked, strict=bool(asked.size)) if own]
        names = [a.replace("target", "found") for a in ANSWERS]
        told = ("film", "status", "reason", "decision", "tier", "abnormal_score", "doubt")
        super().add(
            {
                **{name: getattr(item, name) for name in told},
                "members": [
                    {"target": target, **dict(zip(names, shares, strict=True))}
                    for target, shares in zip(targets, bars, strict=True)
                ],
                "facts": item.facts,
                **{kind: self._filed(item, kind) for kind in _KINDS},
                "saliency_of": item.saliency_of,
                "ensemble": item.ensemble,
                "far": item.far,
            }
        )

    def _filed(self, item: Item, kind: str) -> dict[str, Any] | None:
        """A picture of a film with its place on disk; one that is only in memory is written."""
        picture = item.pictures.get(kind)
        if picture is None:
            return None
        path, folder = Path(picture.uri), self.path.parent
        if picture.uri.startswith("data:"):
            head, _, text = picture.uri.partition(",")
            key = hashlib.sha256(item.film.encode(errors="surrogatepass")).hexdigest()[:16]
            path = folder / PICTURES / f"{key}_{kind}.{'png' if 'png' in head else 'jpg'}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(base64.b64decode(text))
        return {**asdict(picture), "uri": os.path.relpath(path, folder)}

    @property
    def counts(self) -> Counter[str]:
        """How many films have each decision."""
        return Counter(_DECISIONS[urgency[0]] for urgency in self.kept())

    def cards(
        self, pictures: bool = True, part: slice = slice(None), seen_from: Path | None = None
    ) -> Iterator[dict[str, Any]]:
        """The films as plain values, the most urgent first, each read when asked for; `pictures` as
        data URIs, or as links from a page in the folder `seen_from`; None for one that is gone."""
        for number, card in enumerate(self.records(ranked=True, part=part), 1 + (part.start or 0)):
            for kind in _KINDS if pictures else ():
                card[kind] = self._shown(card[kind], seen_from)
            yield {"number": number, **card}

    def _shown(self, picture: Any, seen_from: Path | None) -> Any:
        if picture is None or picture["uri"].startswith("data:"):
            return picture
        path = self.path.parent / picture["uri"]
        if not path.is_file():
            return None
        if seen_from is not None:
            return {**picture, "uri": quote(os.path.relpath(path, seen_from))}
        return {**picture, "uri": to_data_uri(split_note(path.read_bytes())[0])}


def write_report(
    path: str | Path,
    summary: Mapping[str, Any],
    book: ReportBook,
    inline: int = INLINE,
    on_a_page: int = ON_A_PAGE,
) -> Path:
    """Put the page together from the book, one film at a time, and move it into place whole; with
    more than `inline` films the pages that it leads to first."""
    path, films = Path(path), len(book)
    shutil.rmtree(path.parent / PAGES, ignore_errors=True)
    step = on_a_page if films > inline else max(1, films)
    starts = range(0, max(1, films), step)
    counts = {d: book.counts[d] for d in _DECISIONS}
    for page in reversed(range(len(starts))):
        place = path if page == 0 else path.parent / PAGES / f"{page + 1}.html"
        root = "" if page == 0 else "../"
        # each page with its first and last film
        links = [
            (
                f"{root}{PAGES}/{k + 1}.html" if k else f"{root}{path.name}",
                s + 1,
                min(films, s + step),
            )
            for k, s in enumerate(starts)
        ]
        own = slice(starts[page], starts[page] + step)
        cards = partial(book.cards, part=own, seen_from=place.parent if films > inline else None)
        known = {"summary": summary, "films": films, "counts": counts, "step": step}
        write_page(
            place,
            HERE / "report.html",
            **known,
            rows=partial(book.cards, False),
            cards=cards,
            page=page,
            pages=links,
            linked=films > inline,
        )
    return path


def _urgency(card: Mapping[str, Any]) -> tuple[Any, ...]:
    """Films to be read come first, then refused ones; pressing tiers and high scores before."""
    tier = TIERS.index(card["tier"]) if card["tier"] in TIERS else len(TIERS)
    score = card["abnormal_score"]
    return _DECISIONS.index(card["decision"]), tier, -(score if score is not None else 2.0)


if __name__ == "__main__":
    raise SystemExit(main())
