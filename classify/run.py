"""The main job: films → thorax box → crop → members → screener → predictions.csv and report.html.

    python -m classify.run FILMS --crops             box and crop each film, then classify the crops
    python -m classify.run --crops runs/crops        classify crops made earlier by detect.crop
    python -m classify.run FILMS                     classify whole films, for comparison

A run that was stopped goes on where it was: films that are done keep their rows and their cards.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from classify.guard import Guard
from classify.inputs import (
    GUARD,
    Item,
    crops_on_disk,
    fresh_crop,
    member_files,
    name_of,
    whole_films,
)
from classify.panel import Panel, find_ensembles, is_for_children
from classify.predictions import PredictionWriter
from classify.report import PICTURES, ReportBook, write_report
from classify.screener import Screener
from classify.screening.doubts import FINE_APART, NOTED
from classify.screening.tiers import read_tiers
from cxr.bundle import bundle_meta
from cxr.cli import as_command, parse_config, to_plain
from cxr.devices import without_compiler
from cxr.engines import ENGINES, PRECISIONS
from cxr.film import FilmList, list_films
from cxr.manifest import ManifestWriter, read_manifest
from cxr.notes import count_notes
from cxr.page.words import printable
from cxr.rules import refusing, require, require_one_of, require_same_settings
from cxr.stream import batched, default_jobs
from cxr.workdir import Workdir, console, log, provenance, read_json, sha256_file

DEFAULT_CROPS = Path("runs/crops")  # where detect.crop puts them
DEFAULT_TIERS = Path("configs/classify/tiers.yaml")
# what a run has in common with detect.crop
_READING = ("jobs", "batch", "for_processing")
_CROPPING = ("field", "box", "turned", "device", "engine", "precision", "margin", *_READING)


@dataclass(frozen=True)
class RunConfig:
    """Box, crop, classify and screen chest films; writes predictions.csv and report.html.

    Args:
        films: files and folders of films (DICOM, PNG, JPEG, TIFF).
        crops: with FILMS, crop them first, into this folder (without a value, into OUT/crops).
            Without FILMS, start from the crops in this folder (without a value, runs/crops).
            Left out: the members see whole films.
        out: folder of the run; a stopped run goes on there. Empty takes runs/classify_crops, or
            runs/classify_films for whole films.
        ensemble: folder of the members, their screener and guard, or of a single network (python -m
            classify.single), whose classes but normal are the members then. Empty takes
            weights/ensemble_crops, or weights/ensemble_films for whole films; where several folders
            in weights/ hold a guard for the same kind of input, all of them: each film is judged by
            the one for its age, or that its guard calls nearest.
        detector: bundle of the thorax detector; empty takes the one that comes with lungfirst.
        field: bundle of the lung field, likewise.
        box: whose box is taken: both (the detector's and the lung field's together, refused or
            flagged where they differ), detector or field.
        turned: a film that lies on its side or upside down is turned upright first (mend), or
            refused (refuse).
        tiers: YAML file that says which target is in which risk tier.
        tier_threshold: a member finds its target from this probability on; left out, when target
            is the largest of its three logits.
        saliency: draw a Grad-CAM of each film's strongest member.
        margin: added to the thorax box on each side, as a fraction of the box's side.
        device: auto, cpu or cuda.
        engine: what runs the networks: auto, onnx, openvino or torch. auto is torch on a GPU, else
            ONNX Runtime where an exported network lies beside each bundle (tools/export.py).
        precision: fp32, or bf16 (openvino and torch): faster where the processor has it, and
            answers differ by about a hundredth of a logit.
        batch: films that the members see at a time.
        jobs: processes that read films; -1 takes up to four, and none for a few films.
        restart: forget an earlier run in this folder.
        for_processing: take films that are FOR PROCESSING (raw detector data) too.
    """

    films: tuple[str, ...] = ()
    crops: str | None = None
    out: str = ""
    ensemble: str = ""
    detector: str = ""
    field: str = ""
    box: str = "both"
    turned: str = "mend"
    tiers: Path = DEFAULT_TIERS
    tier_threshold: float | None = None
    saliency: bool = True
    margin: float = 0.05
    device: str = "auto"
    engine: str = "auto"
    precision: str = "fp32"
    batch: int = 8
    jobs: int = -1
    restart: bool = False
    for_processing: bool = False

    def __post_init__(self) -> None:
        if not self.films and self.crops is None:
            raise ValueError(
                "there is nothing to work on. Give films (python -m classify.run FILMS --crops), "
                "or start from crops made earlier (python -m classify.run --crops DIR)."
            )
        for name, low, high in (("margin", 0, 1), ("batch", 1, 1024), ("jobs", -1, 256)):
            value = getattr(self, name)
            require(low <= value <= high, f"--{name} must lie between {low} and {high}", value)
        require_one_of(self, engine=ENGINES, precision=PRECISIONS)

    @property
    def cropped(self) -> bool:
        """Do the members see crops?"""
        return self.crops is not None

    @property
    def out_path(self) -> Path:
        """The run's folder."""
        return Path(self.out or ("runs/classify_crops" if self.cropped else "runs/classify_films"))

    @property
    def ensemble_paths(self) -> list[Path]:
        """The members' folders: one, or several with a guard each that judge together."""
        kind = "crops" if self.cropped else "films"
        found = [] if self.ensemble else find_ensembles(Path("weights"), kind)
        return found if len(found) > 1 else [Path(self.ensemble or f"weights/ensemble_{kind}")]


@dataclass
class Source:
    """The films of a run by name, how the pending ones are turned into items, the settings that a
    resumed run must share, and the folders and weights that are worked with. `fine_apart`: see
    `classify.screening.doubts`."""

    names: list[str]
    items: Callable[[list[str]], Iterator[Item]]
    settings: dict[str, Any]
    passed_over: dict[str, int] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    fine_apart: float = FINE_APART


def open_source(config: RunConfig, stack: ExitStack) -> Source:
    """Films to crop, crops made earlier, or whole films; raises OSError or ValueError."""
    if not config.films:
        return _earlier_crops(config, Path(config.crops or DEFAULT_CROPS))
    found = list_films(config.films)
    if found.films:
        for folder in config.ensemble_paths:
            member_files(folder)  # said before anything large is loaded
    if config.cropped:
        return _films_to_crop(config, found, stack)
    path_of = {name_of(p): p for p in found.films}

    def items(pending: list[str]) -> Iterator[Item]:
        paths = [path_of[n] for n in pending]
        return whole_films(paths, _jobs(config, pending), config.for_processing)

    settings: dict[str, Any] = {"input": "whole films"}
    if config.for_processing:
        settings["for_processing"] = True
    return Source(list(path_of), items, settings, found.passed_over)


def _earlier_crops(config: RunConfig, folder: Path) -> Source:
    if folder.is_file() or (folder.is_dir() and not (folder / "manifest.jsonl").exists()):
        raise ValueError(
            f"--crops must name a folder of detect.crop when no FILMS are given. "
            f"{folder} holds no manifest.jsonl. If it holds films: "
            f"python -m classify.run {folder} --crops"
        )
    header, rows = read_manifest(folder / "manifest.jsonl")
    for members in config.ensemble_paths:
        member_files(members)
    row_of = {name_of(row.film): row for row in rows}

    def items(pending: list[str]) -> Iterator[Item]:
        return crops_on_disk([row_of[n] for n in pending], folder, _jobs(config, pending))

    settings = {"input": "crops", "crops": header.get("settings")}
    boxes_from = (header.get("settings") or {}).get("boxes_from") or {}
    fine = _fine_apart(config.detector, boxes_from)
    folders = {"crops": folder.as_posix()}
    return Source(list(row_of), items, settings, folders=folders, fine_apart=fine)


def _fine_apart(detector: str, boxes_from: Mapping[str, str]) -> float:
    """The 1 − IoU from which on the two opinions on a box disagree, by the rule of the detector
    that the boxes are from; the usual one where its bundle is not at hand."""
    from detect.predict import DEFAULT_WEIGHTS

    path = Path(detector or DEFAULT_WEIGHTS)
    if not path.is_file() or sha256_file(path) not in boxes_from.values():
        return FINE_APART
    return float(bundle_meta(path).get("pair", {}).get("lone_apart", FINE_APART))


def _films_to_crop(config: RunConfig, found: FilmList, stack: ExitStack) -> Source:
    from detect.crop import CropConfig, iter_crops, load_finder, settings_of
    from detect.predict import DEFAULT_WEIGHTS

    folder = Path(config.crops) if config.crops else config.out_path / "crops"
    told = {n: getattr(config, n) for n in _CROPPING}
    cut = CropConfig(out=str(folder), weights=config.detector, **told)
    finder = load_finder(cut)
    settings = settings_of(cut, finder.weights)
    header = {**provenance(finder.weights), "settings": settings}
    restart = config.restart and not config.crops  # crops elsewhere are not this run's to remake
    book = stack.enter_context(ManifestWriter(folder / "manifest.jsonl", header, restart))
    path_of = {name_of(p): p for p in found.films}

    def items(pending: list[str]) -> Iterator[Item]:
        paths = [path_of[name] for name in pending]
        fresh = book.pending(paths, "crop")
        missing = set(fresh)
        done = [book.done[path.as_posix()] for path in paths if path not in missing]
        yield from crops_on_disk(done, folder, _jobs(config, done))
        with closing(iter_crops(fresh, finder, cut)) as crops:  # type: ignore[type-var]
            for row, film, crop in crops:
                book.add(row)
                yield fresh_crop(row, film, crop.pixels if crop else None, folder)

    folders = {
        "crops": folder.as_posix(),
        "detector": Path(config.detector or DEFAULT_WEIGHTS).as_posix(),
    }
    made = {"input": "crops", "crops": settings}
    fine = _fine_apart(config.detector, finder.weights)
    weights = dict(finder.weights)
    return Source(list(path_of), items, made, found.passed_over, folders, weights, fine)


@as_command
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
        with refusing():
            with without_compiler():
                source = open_source(config, stack)
                if not source.names:
                    _tell_passed_over(source, "no film was found")
                    return 1
                panel = _load_models(config, source)
            workdir = Workdir(config.out_path)
            _check_resumable(config, source.settings)
            targets = panel.targets
            table = stack.enter_context(PredictionWriter(workdir / "predictions.csv", targets))
            book = stack.enter_context(ReportBook(workdir / "report.jsonl", targets))
            workdir.start(
                to_plain(config),
                weights=source.weights,
                settings=source.settings,
                folders=source.folders,
            )
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


def work_through(
    config: RunConfig, source: Source, panel: Any, table: PredictionWriter, book: ReportBook
) -> bool:
    """Films that have no row yet are given to the Panel; False when Ctrl-C came before the end."""
    pending = [name for name in source.names if name not in table.done]
    if done := len(source.names) - len(pending):
        log.info("%d of %d films are done already", done, len(source.names))
    first_of: dict[str, str] = {}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("judging", total=len(pending))
            with closing(source.items(pending)) as items:  # type: ignore[type-var]
                for batch in batched(items, config.batch):
                    for item in panel.judge([_mark_twin(i, first_of) for i in batch]):
                        book.add(item)  # first: a film whose row stands has its card
                        table.add(item)
                        bar.advance(task)
    except KeyboardInterrupt:
        return False
    return True


def summarise(config: RunConfig, source: Source, panel: Any, complete: bool) -> dict[str, Any]:
    """What the page's head says."""
    cautions = [c for judge in panel.judges if (c := _scope_of(judge, len(panel.judges) > 1))]
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


def _load_models(config: RunConfig, source: Source) -> Any:
    """The Panel; notes settings, folders and weights in the source."""
    folders = config.ensemble_paths
    missing = config.tiers == DEFAULT_TIERS and not config.tiers.exists()  # not run from the root
    tiers = {} if missing else read_tiers(config.tiers)
    light = {folder: _light_models(folder) for folder in folders}

    from classify.exported import open_ensemble  # what is heavy is loaded when nothing is wrong
    from classify.judge import Judge

    judges = []
    for folder, (screener, guard) in light.items():
        members = open_ensemble(
            folder, config.engine, config.precision, config.device, maps=config.saliency
        )
        how = (config.cropped, config.saliency, config.tier_threshold, guard, source.fine_apart)
        judges.append(Judge(members, screener, tiers, *how, folder.name))
        source.weights |= {f"{t}.safetensors": digest for t, digest in members.weights.items()}
        if guard:
            name = GUARD if len(folders) == 1 else f"{folder.name}/{GUARD}"
            source.weights |= {name: guard.sha256}
    panel = Panel(judges, [folder.name for folder in folders if is_for_children(folder)])
    source.settings |= {
        "members": {t: digest for j in judges for t, digest in j.members.weights.items()},
        "tiers": tiers,
        "threshold": panel.told(lambda j: j.screener.threshold_id if j.screener else ""),
        "tier_threshold": config.tier_threshold,
        "guard": panel.told(lambda j: j.guard.sha256 if j.guard else ""),
        "never_cleared": {"notes": sorted(NOTED), "apart": source.fine_apart},
    }
    if config.precision != "fp32":
        source.settings["precision"] = config.precision
    if len(judges) > 1:
        source.settings |= {
            "ensembles": [judge.name for judge in judges],
            "children": [judge.name for judge in panel.children],
        }
        source.folders |= {f"ensemble {folder.name}": folder.as_posix() for folder in folders}
    else:
        source.folders |= {"ensemble": folders[0].as_posix()}
    source.folders |= {"tiers": config.tiers.as_posix()}
    return panel


def _light_models(folder: Path) -> tuple[Screener | None, Guard | None]:
    """The screener and the guard of an ensemble, where it has them."""
    screener = Screener.load(folder) if (folder / "screener.json").exists() else None
    if screener is None:
        log.warning("%s holds no screener: every film is to be read", folder)
    return screener, Guard.load(folder) if (folder / GUARD).exists() else None


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


def _jobs(config: RunConfig, films: Sequence[Any]) -> int:
    return default_jobs(len(films)) if config.jobs < 0 else config.jobs


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
