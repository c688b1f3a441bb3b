"""How many films a table has, in the paper's own tables of films: by class and part, by class and
source, and by target and kind of label."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

from cxr.cli import as_list, load_named
from cxr.data_folders import DataFolders
from cxr.films_table import (
    film_stem,
    has_disease,
    is_among,
    label_word,
    names_of,
    plain_word,
    read_finding_boxes,
)
from cxr.training.recipe import flatten
from cxr.workdir import log
from reproducing.cells import Cell, ReproduceConfig, short_reason
from reproducing.experiment import Experiment, Films
from reproducing.runners import SplitOf, find_runner
from reproducing.table import CountRow

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
