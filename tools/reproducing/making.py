"""Makes one table: trains what is not finished, measures, and writes Markdown, HTML and JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path, PurePosixPath

import numpy as np

from cxr.cli import as_list, load_named, to_plain
from cxr.coco import CocoFilm, CocoSet, write_coco
from cxr.data_folders import DataFolders
from cxr.draw import encode_png
from cxr.films_table import (
    film_stem,
    has_disease,
    is_among,
    label_word,
    names_of,
    plain_word,
    read_finding_boxes,
)
from cxr.intensity import to_uint8
from cxr.split import make_split
from cxr.stats import Figure
from cxr.training.recipe import flatten
from cxr.workdir import git_commit, library_versions, log, read_json, write_atomic, write_json
from labelling.demo import draw_chest
from reproducing.cells import (
    Cell,
    ReproduceConfig,
    check_input,
    make_cells,
    run_cells,
    short_reason,
)
from reproducing.experiment import BUDGETS, Experiment, Films
from reproducing.layout import Picture, markdown, page_html, pictures_of
from reproducing.probe import ask_probe
from reproducing.runners import DRAWN, SPLIT, SplitOf, find_runner
from reproducing.table import (
    CountRow,
    ProbeRow,
    Table,
    fill_rows,
    notes_of,
    read_kept,
    stem_of,
    to_keep,
)

_SHOWN = ("python", "torch", "torchvision", "timm", "lightning")
Tell = Callable[[str], None]


def make_table(experiment: Experiment, config: ReproduceConfig, command: str, tell: Tell) -> Table:
    """Train, measure, write; returns the table. `command` is what a reader gives to make it again.
    Raises ValueError for wrong settings or data."""
    cells = make_cells(experiment, config)
    if not config.render:
        train_cells(cells, config, tell)
    table = collect(experiment, config, command, cells)
    pictures = pictures_of(table, cells, Path(config.docs) if config.render else None)
    write_table(config, table, pictures)
    return table


def train_cells(cells: Sequence[Cell], config: ReproduceConfig, tell: Tell) -> None:
    """Train what is not finished, with a line a cell and an estimate of what remains, which takes
    the rest to be like the mean so far."""
    pending = {cell.key for cell in cells if not cell.finished}
    of, done = len(pending), len({cell.key for cell in cells}) - len(pending)
    if done:
        tell(f"{done} of {done + of} cells are finished and are not trained again")
    started = time.monotonic()
    for n, outcome in enumerate(run_cells(cells, config), 1):
        left = (time.monotonic() - started) / n * (of - n)
        how = f"failed: {outcome.reason}" if outcome.reason else f"{outcome.seconds:.0f} s"
        rest = f"; about {left / 60:.1f} min left" if n < of else ""
        tell(f"[{n}/{of}] {outcome.name}: {how}{rest}")


def collect(
    experiment: Experiment, config: ReproduceConfig, command: str, cells: Sequence[Cell]
) -> Table:
    """The table from what is finished, whatever that is."""
    films = films_words(experiment, cells[0], config)
    # what differs in the films, for every cell; never silent, since the films are never those
    data = f"films: {films} (paper: {experiment.paper_data})"
    past = Path(config.docs) / f"{stem_of(experiment, config)}.json"
    kept = read_kept(past, cells) if config.render else {}
    rows, legend = fill_rows(experiment, cells, config, data, kept)
    split = split_of(cells[0])
    probe, reason = ask_probe(experiment, cells, split, config)
    made = {
        "command": command,
        "made": datetime.now(UTC).date().isoformat(),
        "commit": git_commit(),
        "versions": {k: v for k, v in library_versions().items() if k in _SHOWN},
        "seed": config.seed,
        "draws": config.draws,
        "parts": split.parts if split else {},
        "films": films,
    }
    if kept and not any(cell.finished for cell in cells):  # they were measured then, not now
        then = read_json(past)
        made |= {k: then["made"][k] for k in ("made", "commit", "versions")}
        probe = tuple(
            ProbeRow(row["name"], {n: Figure(**f) for n, f in row["figures"].items()})
            for row in then["probe"]
        )
        reason = then["probe_reason"]
    notes, budget = notes_of(experiment, config.budget, cells), config.budget
    about = (experiment, budget, config.seen, rows, legend, probe, reason, notes, made)
    return Table(*about, count_films(experiment, cells[0], split, config))


def films_words(experiment: Experiment, cell: Cell, config: ReproduceConfig) -> str:
    """The films that the table's sources hold, such as «kermany, 833 of 500 patients»."""
    wanted = flatten(cell.settings).get(find_runner(experiment.runner).sources)
    patients: dict[str, list[str]] = {}
    for row in DataFolders(config.data).rows():
        if not wanted or row.source in wanted:
            patients.setdefault(row.source, []).append(row.patient_id)
    return "; ".join(
        f"{source.replace('_', ' ')}, {len(own)} of {len(set(own))} patients"
        for source, own in sorted(patients.items())
    )


def write_table(config: ReproduceConfig, table: Table, pictures: Sequence[Picture] = ()) -> None:
    """OUT/<table>_<budget>_<input>.md, .html, .json and pictures; the Markdown and its pictures to
    `docs`, too."""
    out, text = Path(config.out), markdown(table, pictures)
    for folder in (out, Path(config.docs)) if config.docs else (out,):
        for picture in pictures:
            write_atomic(folder / picture.name, picture.png)
        write_atomic(folder / f"{table.stem}.md", text)
    if config.docs:
        probe = [{"name": p.name, "figures": to_plain(p.figures)} for p in table.probe]
        about = {"made": table.made, "probe": probe, "probe_reason": table.probe_reason}
        kept = {"schema": "lungfirst.kept_figures", "version": 1, **about, "rows": to_keep(table)}
        write_json(Path(config.docs) / f"{table.stem}.json", kept)
    write_atomic(out / f"{table.stem}.html", page_html(table, pictures))
    head = {"schema": "lungfirst.table", "version": 1, "means_nothing": table.smoke}
    write_json(out / f"{table.stem}.json", {**head, **to_plain(table)})


_KINDS = (
    ("normal", "No Finding"),
    ("pneumonia", "bacterial"),
    ("pneumonia", "viral"),
    ("covid", "COVID-19"),
)
_BOXED = ("normal", "pneumonia")  # the classes of detect-and-classify, which takes every box
_PARTS = {"train": 0.5, "val": 0.2, "calibration": 0.1, "test": 0.2}
_EACH = 16  # films of each kind: enough for three folds with every class in each part
_SIZE_HW = (128, 112)


def drawn_films(folder: Path) -> Path:
    """A small folder of drawn chests with films.csv, thorax.json and split.json, the same on each
    machine."""
    if (folder / "films.csv").is_file():
        return folder
    films, patients, kinds = [], [], []
    table = "image,mask,source,patient_id,view,label,sublabel,licence,width,height\n"
    for seed in range(_EACH * len(_KINDS)):
        kind, patient = seed // _EACH, f"drawn-{seed // 2}"
        label, sublabel = _KINDS[kind]
        opaque, grain = sublabel in ("bacterial", "COVID-19"), 2.0 if kind > 1 else 1.0
        pixels, box = draw_chest(*_SIZE_HW, seed, opaque=opaque, grain=grain)
        image, (height, width) = f"images/{DRAWN}/{seed:03}.png", _SIZE_HW
        write_atomic(folder / image, encode_png(to_uint8(pixels)))
        known = f"{image},,{DRAWN},{patient},PA,{label},{sublabel},CC BY 4.0"
        table += f"{known},{width},{height}\n"
        patients.append(patient)
        kinds.append(sublabel)
        if label in _BOXED:
            about = {"source": DRAWN, "patient_id": patient, "label": label}
            boxes = np.asarray(box, float).reshape(1, 4)
            films.append(CocoFilm(image, _SIZE_HW, boxes, (0,), about))
    make_split(patients, kinds, _PARTS).save(folder / SPLIT)
    write_coco(folder / "thorax.json", CocoSet(films, ("thorax",)))
    write_atomic(folder / "films.csv", table)  # last: it marks the folder as whole
    return folder


def find_crops(experiment: Experiment, config: ReproduceConfig) -> Path:
    """OUT/crops with the thorax of every film that the table takes, cut by the detector that comes
    with lungfirst; films that are there already are not cut again. Raises ValueError."""
    from detect.crop import main as crop

    runner = check_input(experiment, cropped=True)
    wanted = set(config.sources)
    if not wanted:
        for budget, cell in product(BUDGETS, experiment.cells()):
            wanted.update(flatten(experiment.settings(budget, *cell)).get(runner.sources) or ())
    data = DataFolders(config.data)
    out = Path(config.out) / "crops" / "_".join(folder.resolve().name for folder in data)
    films = [str(data / row.image) for row in data.rows() if not wanted or row.source in wanted]
    if not films:
        raise ValueError(
            f"data must hold films of {', '.join(sorted(wanted))}. Got none in "
            f"{data.named('films.csv')}."
        )
    log.info("cutting the thorax out of %d films into %s", len(films), out)
    if crop([*films, "--out", str(out), "--device", config.device]):
        raise ValueError(f"crops could not be made in {out}: see the messages above.")
    return out


ALL, TOTAL = "all", "total"


def split_of(cell: Cell) -> SplitOf | None:
    """The films behind a cell and their parts, which need no training; None where the runner does
    not tell, or the films are not there."""
    known = find_runner(cell.runner).split
    if known is None:
        return None
    try:
        found: SplitOf = load_named(known)(cell.settings)
    except (ValueError, OSError) as error:
        log.warning("%s: no split: %s", cell.name, short_reason(error))
        return None
    return found


def count_films(
    experiment: Experiment, cell: Cell, split: SplitOf | None, config: ReproduceConfig
) -> tuple[CountRow, ...]:
    """A row for each class that the paper counts; ours is None where it is not known."""
    rows = []
    for asked in experiment.films:
        ours = _ours(asked, cell, split, config)
        named = dict.fromkeys(c for known in asked.figures.values() for c in known)
        columns = sorted(named, key=lambda name: name == TOTAL)
        for name, known in asked.figures.items():
            counts = {c: (known.get(c), ours.get((name, c))) for c in columns}
            rows.append(CountRow(asked.title, name, counts))
    return tuple(rows)


def _ours(
    asked: Films, cell: Cell, split: SplitOf | None, config: ReproduceConfig
) -> Counter[tuple[str, str]] | dict[tuple[str, str], int]:
    """(row, column) → films."""
    if asked.by == "label":
        return _by_label(asked, cell, config)
    if split is None:
        return {}
    found: Counter[tuple[str, str]] = Counter()
    place = {image: part for part, images in split.images.items() for image in images}
    for image, truth in split.truths.items():
        # images/SOURCE/NAME, as films.csv has them
        column = place.get(image) if asked.by == "part" else PurePosixPath(image).parts[-2]
        if column:
            for name in (truth, ALL):
                found[name, column] += 1
                found[name, TOTAL] += 1
    return found


def _by_label(asked: Films, cell: Cell, config: ReproduceConfig) -> dict[tuple[str, str], int]:
    """Of each target the films of the table's sources with a finding box, and those without."""
    settings = flatten(cell.settings)
    boxed: set[tuple[str, str]] = set()
    if settings["region.kind"] == "finding_boxes":
        for path in as_list(settings["region.path"]):
            boxed |= {(film_stem(i), label_word(f)) for i, f, _ in read_finding_boxes(path)}
    sources = settings["sources"]
    rows = [
        r for r in DataFolders(config.data).rows() if not sources or is_among(r.source, sources)
    ]
    found = {}
    for name in asked.figures:
        if plain_word(name) == "normal":
            found[name, TOTAL] = sum(row.label == "normal" for row in rows)
            continue
        own = [row for row in rows if has_disease(row, [name])]
        stems = {film_stem(row.image) for row in own}
        hard = {stem for stem, finding in boxed if finding in names_of(name) and stem in stems}
        found |= {(name, "hard"): len(hard), (name, "weak"): len(own) - len(hard)}
        found[name, TOTAL] = len(own)
    return found
