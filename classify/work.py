"""What classify.run does with each film, in its own process or on workers: reads it, judges it.

The process that writes the tables lists the films (`open_source`). Whoever works turns each unit, a
film's path or the row of a crop made earlier, into a judged Item (`RunWork`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from classify.guard import Guard
from classify.judge import Judge, Panel, find_ensembles, is_for_children
from classify.members import GUARD, ModelSpec, check_model, member_files, settings_for
from classify.predictions import Item, crops_on_disk, fresh_crop, name_of, whole_films
from classify.screener import Screener
from classify.screening.reading import FINE_APART, NOTED, read_tiers
from cxr.bundle import bundle_meta
from cxr.engines import ENGINES, PRECISIONS
from cxr.film import list_films
from cxr.manifest import CropRow, ManifestWriter, read_manifest
from cxr.rules import require, require_one_of
from cxr.stream import LOCAL, ahead, batched, check_workers, default_jobs
from cxr.workdir import log, provenance, sha256_file

DEFAULT_TIERS = Path("configs/classify/tiers.yaml")
# what a run has in common with detect.crop
_READING = ("jobs", "batch", "for_processing")
_CROPPING = ("field", "box", "turned", "device", "engine", "precision", "margin", *_READING)
Unit = Path | CropRow
DEFAULT_CROPS = Path("runs/crops")  # where detect.crop puts them


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
        model: a classifier of your own in the members' place: torchxrayvision:NAME,
            timm:NAME@WEIGHTS, torchvision:NAME@WEIGHTS, onnx:FILE, or python:MODULE:FUNCTION, which
            runs that code (see docs/audit-your-model.md). --ensemble may name a folder with a
            screener that was fitted on its answers.
        model_settings: YAML file that names the model's outputs, and says how it sees a film; empty
            takes the one beside its weights (net.yaml beside net.pth).
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
            ONNX Runtime where an exported network lies beside each bundle (tools/export.py). A
            --model is run by what it is made for.
        precision: fp32, or bf16 (openvino and torch): faster where the processor has it, and
            answers differ, also some decisions (docs/speed.md).
        batch: films that the members see at a time.
        jobs: processes that read films; -1 takes up to four, and none for a few films.
        workers: local; or ray:N, ray:HOST:PORT or ray://HOST:PORT: workers of a Ray cluster, one a
            processor, that read and judge (pip install -e '.[ray]'; see docs/speed.md).
        restart: forget an earlier run in this folder.
        for_processing: take films that are FOR PROCESSING (raw detector data) too.
    """

    films: tuple[str, ...] = ()
    crops: str | None = None
    out: str = ""
    ensemble: str = ""
    model: str = ""
    model_settings: str = ""
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
    workers: str = LOCAL
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
        check_model(self.model, self.model_settings)
        check_workers(self.workers)

    @property
    def cropped(self) -> bool:
        """Do the members see crops?"""
        return self.crops is not None

    @property
    def out_path(self) -> Path:
        """The run's folder."""
        return Path(self.out or ("runs/classify_crops" if self.cropped else "runs/classify_films"))

    @property
    def crops_path(self) -> Path:
        """The folder of the crops, where there are any."""
        return Path(self.crops or (self.out_path / "crops" if self.films else DEFAULT_CROPS))

    @property
    def ensemble_paths(self) -> list[Path]:
        """The members' folders: one, or several with a guard each that judge together; none where
        a model stands in their place."""
        if self.model:
            return []
        kind = "crops" if self.cropped else "films"
        found = [] if self.ensemble else find_ensembles(Path("weights"), kind)
        return found if len(found) > 1 else [Path(self.ensemble or f"weights/ensemble_{kind}")]


class Reader:
    """Units to Items that are not judged yet: crops made earlier come from the disk, films are cut,
    or taken whole. Raises OSError or ValueError for networks that do not fit. `finder`: networks
    that an earlier Reader of the same settings has loaded."""

    def __init__(self, config: RunConfig, finder: Any = None) -> None:
        self.config, self.finder = config, finder
        if config.films and config.cropped:
            from detect.crop import CropConfig, load_finder

            told = {name: getattr(config, name) for name in _CROPPING}
            self.cut = CropConfig(out=str(config.crops_path), weights=config.detector, **told)
            self.finder = finder or load_finder(self.cut)

    def __call__(self, units: Iterable[Unit]) -> Iterator[Item]:
        """An Item for each unit, crops made earlier first."""
        listed, config = list(units), self.config
        rows = [unit for unit in listed if isinstance(unit, CropRow)]
        paths = [unit for unit in listed if isinstance(unit, Path)]
        yield from crops_on_disk(rows, config.crops_path, default_jobs(len(rows), config.jobs))
        if self.finder is None:
            jobs = default_jobs(len(paths), config.jobs)
            yield from whole_films(paths, jobs, config.for_processing)
            return
        from detect.crop import iter_crops

        with closing(iter_crops(paths, self.finder, self.cut)) as crops:  # type: ignore[type-var]
            for row, film, crop in crops:
                yield fresh_crop(row, film, crop.pixels if crop else None, config.crops_path)


@dataclass(frozen=True)
class RunWork:
    """Units to judged Items with their cards' pictures; `overlap`: films are cut meanwhile."""

    reader: Reader
    panel: Panel
    overlap: bool = True

    @classmethod
    def on_worker(cls, config: RunConfig, fine_apart: float) -> RunWork:
        """As a worker of one core has it, which reads by itself."""
        alone = replace(config, jobs=0)
        return cls(Reader(alone), load_panel(alone, fine_apart), overlap=False)

    def __call__(self, units: Iterable[Unit]) -> Iterator[Item]:
        batch = self.reader.config.batch
        read = self.reader(units)
        with closing(ahead(read, batch) if self.overlap else read) as items:  # type: ignore[type-var]
            for group in batched(items, batch):
                yield from self.panel.judge(group)


@dataclass
class Source:
    """The films of a run by name, how the pending ones become units, the settings that a resumed
    run must share, and the folders and weights that are worked with. `fine_apart`: see
    `classify.screening.reading`; `manifest` takes the rows of crops that are cut."""

    names: list[str]
    units: Callable[[list[str]], list[Unit]]
    settings: dict[str, Any]
    passed_over: dict[str, int] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    fine_apart: float = FINE_APART
    manifest: ManifestWriter | None = None
    reader: Reader | None = None


def open_source(config: RunConfig, stack: ExitStack, finder: Any = None) -> Source:
    """Films to crop (with `finder`, where its networks are loaded already), crops made earlier, or
    whole films; raises OSError or ValueError."""
    if not config.films:
        return _earlier_crops(config)
    found = list_films(config.films)
    path_of = {name_of(p): p for p in found.films}
    source = Source(list(path_of), lambda pending: [path_of[n] for n in pending], {})
    source.passed_over = found.passed_over
    if found.films:
        for folder in config.ensemble_paths:
            member_files(folder)  # said before anything large is loaded
    source.reader = Reader(config, finder)
    if config.cropped:
        _films_to_crop(config, source, path_of, stack)
        return source
    source.settings = {"input": "whole films"}
    if config.for_processing:
        source.settings["for_processing"] = True
    return source


def _earlier_crops(config: RunConfig) -> Source:
    folder = config.crops_path
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
    settings = {"input": "crops", "crops": header.get("settings")}
    boxes_from = (header.get("settings") or {}).get("boxes_from") or {}
    return Source(
        list(row_of),
        lambda pending: [row_of[name] for name in pending],
        settings,
        folders={"crops": folder.as_posix()},
        fine_apart=fine_apart_of(config.detector, boxes_from),
        reader=Reader(config),
    )


def _films_to_crop(
    config: RunConfig, source: Source, path_of: Mapping[str, Path], stack: ExitStack
) -> None:
    """What a Source needs where films are cut first: the manifest of their crops, above all."""
    from detect.crop import settings_of
    from detect.predict import DEFAULT_WEIGHTS

    assert source.reader is not None and source.reader.finder is not None
    weights = dict(source.reader.finder.weights)
    settings = settings_of(source.reader.cut, weights)
    header = {**provenance(weights), "settings": settings}
    restart = config.restart and not config.crops  # crops elsewhere are not this run's to remake
    place = config.crops_path / "manifest.jsonl"
    book = stack.enter_context(ManifestWriter(place, header, restart))

    def units(pending: list[str]) -> list[Unit]:
        paths = [path_of[name] for name in pending]
        fresh = book.pending(paths, "crop")
        missing = set(fresh)
        return [*(book.done[p.as_posix()] for p in paths if p not in missing), *fresh]

    source.units, source.manifest, source.weights = units, book, weights
    source.settings = {"input": "crops", "crops": settings}
    source.folders = {
        "crops": config.crops_path.as_posix(),
        "detector": Path(config.detector or DEFAULT_WEIGHTS).as_posix(),
    }
    source.fine_apart = fine_apart_of(config.detector, weights)


def fine_apart_of(detector: str, boxes_from: Mapping[str, str]) -> float:
    """The 1 − IoU from which on the two opinions on a box disagree, by the rule of the detector
    that the boxes are from; the usual one where its bundle is not at hand."""
    from detect.predict import DEFAULT_WEIGHTS

    path = Path(detector or DEFAULT_WEIGHTS)
    if not path.is_file() or sha256_file(path) not in boxes_from.values():
        return FINE_APART
    return float(bundle_meta(path).get("pair", {}).get("lone_apart", FINE_APART))


def load_panel(config: RunConfig, fine_apart: float) -> Panel:
    """Members, screeners and guards of a run; raises OSError or ValueError."""
    # the usual file may be missing, as outside the project's root
    missing = config.tiers == DEFAULT_TIERS and not config.tiers.exists()
    tiers = {} if missing else read_tiers(config.tiers)
    if config.model:
        return _foreign_panel(config, tiers, fine_apart)
    light: dict[Path, tuple[Screener | None, Guard | None]] = {}
    for folder in config.ensemble_paths:
        screener = Screener.load(folder) if (folder / "screener.json").exists() else None
        if screener is None:
            log.warning("%s holds no screener: every film is to be read", folder)
        light[folder] = screener, Guard.load(folder) if (folder / GUARD).exists() else None

    from classify.exported import open_ensemble  # what is heavy is loaded when nothing is wrong

    judges = []
    for folder, (screener, guard) in light.items():
        engine = (config.engine, config.precision, config.device)
        members = open_ensemble(folder, *engine, maps=config.saliency)
        how = (config.cropped, config.saliency, config.tier_threshold, guard, fine_apart)
        judges.append(Judge(members, screener, tiers, *how, folder.name))
    return Panel(judges, [folder.name for folder in light if is_for_children(folder)])


def _foreign_panel(config: RunConfig, tiers: Mapping[str, str], fine_apart: float) -> Panel:
    """The one judge of a classifier that was trained elsewhere."""
    from classify.models.foreign import open_foreign

    spec = ModelSpec.parse(config.model)
    known = settings_for(spec, config.model_settings)
    members = open_foreign(spec, known, config.device, config.precision)
    screener = Screener.load(config.ensemble) if config.ensemble else None
    if screener is None:
        log.warning("no screener is fitted on the answers of %s: every film is to be read", spec)
    else:
        screener.require_members(members.weights)
    how = (config.cropped, config.saliency, config.tier_threshold, None, fine_apart)
    return Panel([Judge(members, screener, tiers, *how, spec.title)])


def note_panel(source: Source, panel: Panel, config: RunConfig) -> None:
    """What the judges are, among a run's settings, weights and folders."""
    folders = config.ensemble_paths
    for judge in panel.judges:
        end = "" if config.model else ".safetensors"
        source.weights |= {f"{t}{end}": sha for t, sha in judge.members.weights.items()}
        if judge.guard:
            name = GUARD if len(folders) == 1 else f"{judge.name}/{GUARD}"
            source.weights |= {name: judge.guard.sha256}
    source.settings |= {
        "members": {t: sha for j in panel.judges for t, sha in j.members.weights.items()},
        "tiers": dict(panel.judges[0].tiers),
        "threshold": panel.told(lambda j: j.screener.threshold_id if j.screener else ""),
        "tier_threshold": config.tier_threshold,
        "guard": panel.told(lambda j: j.guard.sha256 if j.guard else ""),
        "never_cleared": {"notes": sorted(NOTED), "apart": source.fine_apart},
    }
    if config.precision != "fp32":
        source.settings["precision"] = config.precision
    if config.model:
        source.settings["model"] = panel.judges[0].members.foreign
        source.folders |= {"ensemble": config.ensemble} if config.ensemble else {}
    elif len(panel.judges) > 1:
        source.settings |= {
            "ensembles": [judge.name for judge in panel.judges],
            "children": [judge.name for judge in panel.children],
        }
        source.folders |= {f"ensemble {folder.name}": folder.as_posix() for folder in folders}
    else:
        source.folders |= {"ensemble": folders[0].as_posix()}
    source.folders |= {"tiers": config.tiers.as_posix()}
