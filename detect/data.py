"""Which films train, validate and measure the detector and the lung field: boxes, masks, licences,
split."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

from cxr.cli import Several, as_list
from cxr.coco import CocoFilm, read_counted
from cxr.data_folders import Data, DataFolders, same_bytes
from cxr.film import FILM_SUFFIXES, Film
from cxr.films_table import FilesOf, FilmNames, FilmRow, film_stem, label_word, take_films
from cxr.rules import require
from cxr.split import Split, make_split
from cxr.training.recipe import free
from cxr.workdir import log

Listed = TypeVar("Listed", CocoFilm, FilmRow)


@dataclass(frozen=True)
class DataConfig:
    """Films and boxes.

    Args:
        data: folder that the annotations' file names are relative to, or several of them (the flag
            again for each); a film that does not lie there is looked for by its base name in the
            folders below.
        annotations: COCO JSON, relative to `data` (each folder's own, where it has one) or a path
            of its own, or several of them; of a film in two files the first file's boxes count.
        split: a split saved by `python -m cxr.split`; empty: made anew from `parts` and the seed,
            by patient and label, and saved in the run's folder.
        parts: shares of a split made anew; train and val are trained with, and
            `detect.film_class` answers the films of test.
        sources: keep these sources only; empty keeps all.
        per_label: keep so many films of each label, such as {normal: 200, pneumonia: 200}.
        rest: a part for the films that `per_label` leaves over, but those of the patients it keeps
            and those of other labels; empty leaves them out.
        class_from: key of each image whose value is its boxes' class, such as label, for
            detect-and-classify; empty: the annotation's own categories.
        publishable_only: leave out films whose licence (films.csv) forbids publishing a model.
        masks: take lung masks (films.csv) to box turned films exactly.
        max_films: keep at most so many films of each part, for a quick look; 0 keeps all.
    """

    data: Several = free("../shared/data")
    annotations: Several = "thorax.json"
    split: str = ""
    parts: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.2})
    sources: list[str] = field(default_factory=list)
    per_label: dict[str, int] = field(default_factory=dict)
    rest: str = ""
    class_from: str = ""
    publishable_only: bool = False
    masks: bool = False
    max_films: int = 0

    def __post_init__(self) -> None:
        named = self.rest not in self.parts and bool(self.per_label) and not self.split
        rule = "data.rest must name a part that data.parts does not, beside data.per_label"
        require(not self.rest or named, rule, self.rest)


@dataclass(frozen=True)
class FieldDataConfig:
    """Films and masks.

    Args:
        data: folder with films.csv, which names each film's mask; several: the flag again for each.
        split: a split saved by `python -m cxr.split`; empty: made anew by patient (0.8 / 0.2).
        sources: keep these sources only; empty keeps all.
        publishable_only: leave out films whose licence forbids publishing a model.
        max_films: keep at most so many films of each part, for a quick look; 0 keeps all.
    """

    data: Several = free("../shared/data")
    split: str = ""
    sources: list[str] = field(default_factory=list)
    publishable_only: bool = True
    max_films: int = 0


class Parts(NamedTuple):
    """The films of each part of the split (train and val are always there, and may be empty), film
    name → mask file where masks are asked for, and a split that was made anew."""

    films: dict[str, list[CocoFilm]]
    masks: dict[str, str]
    made: Split | None


def select_films(
    config: DataConfig, seed: int, classes: Sequence[str] = ("thorax",), trained: bool = True
) -> Parts:
    """The films of a training; with `trained` there must be some to train and to validate. Raises
    ValueError or OSError when files are missing or do not fit together."""
    every, masks = _eligible_films(config, classes)
    films = take_per_label(every, config.per_label, seed) if config.per_label else every
    if not films:
        raise ValueError(
            "data must leave at least one film. Got none: see data.sources, "
            "data.per_label and data.publishable_only."
        )
    parts, made = share_films(films, config.split, config.parts, config.max_films, seed)
    if config.rest:
        known, kinds = {film.patient_id for film in films}, set(map(label_word, config.per_label))
        over = [f for f in every if label_word(f.label) in kinds and f.patient_id not in known]
        parts[config.rest] = at_most(over, config.max_films, seed)
    if trained:
        require_both(parts)
        require_boxes(parts)
    return Parts(parts, masks, made)


def masked_rows(
    data: Data, sources: Sequence[str] = (), publishable_only: bool = False
) -> list[FilmRow]:
    """Rows of films.csv that have a mask; raises ValueError when there is none."""
    data = DataFolders(data)
    rows = [r for r in data.rows() if r.mask]
    rows = [r for r in rows if not sources or r.source in sources]
    if not rows:
        raise ValueError(
            f"{data.named('films.csv')} must name at least one mask (of the sources asked for). "
            "Got none."
        )
    return [r for r in rows if r.publishable or not publishable_only]


def select_rows(
    config: FieldDataConfig, seed: int
) -> tuple[list[FilmRow], list[FilmRow], Split | None]:
    """Rows to train and to validate on, and the split where it was made anew; raises ValueError or
    OSError for what does not fit."""
    rows = masked_rows(config.data, config.sources, config.publishable_only)
    shares = {"train": 0.8, "val": 0.2}
    parts, made = share_films(rows, config.split, shares, config.max_films, seed)
    require_both(parts)
    return parts["train"], parts["val"], made


def share_films(
    films: Sequence[Listed], split_file: str, shares: Mapping[str, float], most: int, seed: int
) -> tuple[dict[str, list[Listed]], Split | None]:
    """Part → at most `most` of its films (0: all), train and val always; and the split, where
    there is no file of one and it was made anew by patient, source and label."""
    patients = [f.patient_id for f in films]
    strata = [(f.source, f.label) for f in films]
    made = None if split_file else make_split(patients, strata, shares, seed)
    split: Split = made or Split.load(split_file)
    names = ("train", "val", *sorted(set(split.part_of.values()) - {"train", "val"}))
    parts = {
        name: at_most([films[i] for i in split.select(patients, name)], most, seed)
        for name in names
    }
    return parts, made


def require_both(parts: Mapping[str, Sequence[Any]]) -> None:
    """Raise ValueError where there is nothing to train or to validate on."""
    train, val = len(parts["train"]), len(parts["val"])
    if not train or not val:
        raise ValueError(
            f"the split must leave films to train and to validate. Got {train} and {val} instead."
        )


def require_boxes(parts: Mapping[str, Sequence[CocoFilm]]) -> None:
    """Raise ValueError where train has no box to learn, or val none to choose thresholds by."""
    for part in ("train", "val"):
        if not any(len(film.boxes_xyxy) for film in parts[part]):
            raise ValueError(
                f"part {part} of the split must hold a film with a box. Got {len(parts[part])} "
                "films, none with one: take another split (data.split, seed), or more films."
            )


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured, and on which films.

    Args:
        weights: the network's bundle; empty takes the one that comes with lungfirst.
        device: auto, cpu, or cuda.
        data: folder of the films, or several of them (the flag again for each); films are looked
            for by their base names where they do not lie as annotated; a films.csv there names
            lung masks.
        annotations: COCO file with the boxes that people drew, in `data` (each folder's own, where
            it has one) or a path of its own; several: the flag again for each, and of a film in two
            files the first file's boxes count.
        split: split of the patients, as `python -m cxr.split` saves it.
        part: part of the split to measure on, or all; what a constant answer would be comes from
            part train.
        sources: only films of these sources; empty takes all.
        max_films: take at most so many films; 0 takes all.
        seed: of the bootstrap, and of the films that are taken.
        out: folder for the results.
    """

    weights: str = ""
    device: str = "auto"
    data: Several = "../shared/data"
    annotations: Several = "thorax.json"
    split: str = "configs/split_seed0.json"
    part: str = "test"
    sources: list[str] = field(default_factory=list)
    max_films: int = 0
    seed: int = 0
    out: str = "runs/evaluate"


def choose_part(
    films: Sequence[Listed], config: MeasureConfig
) -> tuple[list[Listed], list[Listed]]:
    """The films to measure on, and those of part train, from which a constant answer is made: all
    films for part all, where it is fitted on its own test and so a stronger baseline. Raises
    ValueError when no film is left, or a patient is not in the split."""
    chosen = train = list(films)
    if config.part != "all":
        split, patients = Split.load(config.split), [f.patient_id for f in films]
        chosen = [films[i] for i in split.select(patients, config.part)]
        train = [films[i] for i in split.select(patients, "train")]
    if config.sources:
        chosen = [f for f in chosen if f.source in config.sources]
    if not chosen:
        raise ValueError(
            f"--part and --sources must leave a film. Got none for part {config.part!r}"
            + (f" and sources {', '.join(config.sources)}." if config.sources else ".")
        )
    return at_most(chosen, config.max_films, config.seed), train


def at_most(films: Sequence[Listed], most: int, seed: int) -> list[Listed]:
    """At most `most` films, drawn by the seed (see `take_films`); 0 takes all."""
    strata = [(f.source, f.label) for f in films]
    return [films[i] for i in take_films([f.patient_id for f in films], strata, most, seed)]


def _eligible_films(
    config: DataConfig, classes: Sequence[str]
) -> tuple[list[CocoFilm], dict[str, str]]:
    """Films of the wanted licences and sources with their classes, and the masks."""
    films = read_annotations(config.data, config.annotations)
    masks: dict[str, str] = {}
    if config.publishable_only or config.masks:
        data = DataFolders(config.data)
        if not data.files("films.csv"):
            raise ValueError(
                f"data.publishable_only and data.masks need {data.named('films.csv')}, which does "
                "not exist. Set both to false for films without it."
            )
        table = {row.image: row for row in data.rows(unlisted=True)}
        if config.publishable_only:
            films = [f for f in films if f.file_name in table and table[f.file_name].publishable]
        if config.masks:
            masks = {name: row.mask for name, row in table.items() if row.mask}
    if config.sources:
        films = [f for f in films if f.source in config.sources]
    if config.class_from:
        films = [with_class(f, config.class_from, classes) for f in films]
    elif any(label >= len(classes) for f in films for label in f.labels):
        raise ValueError(
            f"model.classes must name each category of {', '.join(as_list(config.annotations))}. "
            f"Got {', '.join(classes)}: fewer than the file's."
        )
    return films, masks


def read_annotations(data: Data, annotations: Several) -> list[CocoFilm]:
    """The films of the COCO files that lie in the folders of `data`, or have a path of their own,
    found in `data`. A film that two files annotate has the boxes of the first. Raises ValueError
    for a file that is missing or faulty, and for films `find_films` cannot tell."""
    data = DataFolders(data)
    found: list[tuple[DataFolders, list[CocoFilm]]] = []
    for path in map(Path, as_list(annotations)):
        places = data.files(str(path)) or ({path: DataFolders(data)} if path.exists() else {})
        if not places:
            inside = data.named(str(path))
            raise ValueError(f"annotations must be COCO files. Neither {inside} nor {path} exists.")
        found += [(own, find_films(read_counted(file), own)) for file, own in places.items()]
    films = data.join(found, lambda film: film.file_name)
    if twice := sum(len(own) for _, own in found) - len(films):
        log.info("%d films are annotated twice: the first file's boxes are taken", twice)
    return films


def find_films(films: list[CocoFilm], data: Data) -> list[CocoFilm]:
    """The films with the names they have under `data`, where their own do not exist.

    A public set lies in other folders on each disk, so a film is looked for in films.csv of `data`
    by the end of its path, then there and in the folder by its base name, last by that without its
    suffix, where one film alone has it. The same bytes in two places are one film; a film that is
    nowhere keeps its name. Raises ValueError for a base name that two different files or two
    missing films have.
    """
    data = DataFolders(data)
    for as_files in map(FilesOf, data):  # another program's `\\`, or no suffix
        films = [replace(f, file_name=as_files.name(f.file_name)) for f in films]
    present = {f.file_name for f in films if (data / f.file_name).exists()}
    if len(present) == len({f.file_name for f in films}):
        return films
    rows = data.rows(unlisted=True)
    listed = [row.image for row in rows]  # films may lie elsewhere
    names = FilmNames(listed, (f.file_name for f in films))
    found: dict[str, str] = {}
    missing = defaultdict(list)
    for film in films:
        if film.file_name not in present:
            name = names.find(film.file_name)
            if name and name not in present and (data / name).is_file():
                found[film.file_name] = name
            else:
                missing[Path(film.file_name).name].append(film.file_name)
    present |= set(found.values())
    masks = {row.mask for row in rows}
    for base, files in _walk_for(missing, data, listed, masks).items():
        others = [f for f in files if f not in present]  # a present file is its own film's
        if others:
            found[missing[base][0]] = _only_file(others, missing[base], data)
    log.info("%d of %d films found in %s by the ends of their names", len(found), len(films), data)
    return [replace(f, file_name=found.get(f.file_name, f.file_name)) for f in films]


def _only_file(files: list[str], names: list[str], data: DataFolders) -> str:
    """The one file for the one film that `names` holds; raises ValueError where it is not one."""
    if len(names) > 1:
        raise ValueError(
            f"each film in {data} must be one of the annotations. {files[0]} may be "
            f"{names[0]} or {names[1]}."
        )
    other = next((f for f in files[1:] if not same_bytes(data / f, data / files[0])), None)
    if other is not None:
        raise ValueError(
            f"{names[0]} must be one film in {data}. Got {files[0]} and {other}, "
            "which differ: give the folder of one of them as data."
        )
    return files[0]


def _walk_for(
    missing: Mapping[str, Sequence[str]], data: DataFolders, listed: Sequence[str], masks: set[str]
) -> dict[str, list[str]]:
    """Base name of missing films → files below `data`, relative to it, and `listed` ones outside of
    it, or the one file of that stem; hidden folders and masks are passed over."""
    places: dict[str, list[str]] = defaultdict(list)
    asked = Counter(film_stem(name) for names in missing.values() for name in names)
    stems: dict[str, set[str]] = {stem: set() for stem in asked}

    def meet(name: str, base: str) -> None:
        if base in missing:
            places[base].append(name)
        elif Path(base).suffix.lower() in FILM_SUFFIXES and film_stem(base) in stems:
            stems[film_stem(base)].add(name)

    for image in listed:
        if Path(image).is_absolute() and Path(image).is_file():
            meet(image, Path(image).name)
    for root, folder, folders, names in ((own, *at) for own in data for at in os.walk(own)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for base in names:
            name = (Path(folder) / base).relative_to(root).as_posix()
            if name not in masks:
                meet(name, base)
    for base in missing.keys() - places.keys():
        stem = film_stem(base)
        if len(stems[stem]) == 1 == asked[stem]:
            places[base] = [*stems[stem]]
    return places


def read_mask(path: str | Path, film: Film) -> np.ndarray:
    """(H, W) bool of a mask file, in the film's pixels; it may be in the stored ones. Raises
    ValueError when it cannot be read or is of another size than its film."""
    raw, size_hw = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), film.pixels.shape
    if raw is not None and raw.shape == film.stored_hw:
        raw = cv2.resize(raw, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    if raw is None or raw.shape != size_hw:
        got = "no picture" if raw is None else f"{raw.shape[1]} × {raw.shape[0]} px"
        raise ValueError(
            f"{path} must be a mask of its film's {size_hw[1]} × {size_hw[0]} px. Got {got}."
        )
    return raw > 127


def with_class(film: CocoFilm, key: str, classes: Sequence[str]) -> CocoFilm:
    """The film with the class that its entry's `key` names for each of its boxes; raises ValueError
    where that is none of `classes`."""
    value, words = film.extra.get(key), [label_word(name) for name in classes]
    word = label_word(str(value or ""))
    rule = f"{film.file_name}: its {key} must be one of model.classes ({', '.join(classes)})"
    require(not film.labels or word in words, rule, value)
    return replace(film, labels=tuple(words.index(word) for _ in film.labels))


def take_per_label(films: list[CocoFilm], per_label: dict[str, int], seed: int) -> list[CocoFilm]:
    """So many films of each label, drawn with `seed`; raises ValueError when there are fewer."""
    rng = np.random.default_rng(seed)
    kept: list[CocoFilm] = []
    for label, number in per_label.items():
        own = [f for f in films if label_word(f.label) == label_word(label)]
        if len(own) < number:
            raise ValueError(
                f"data.per_label asks for {number} films of label {label!r}. Got {len(own)}."
            )
        kept += [own[i] for i in sorted(rng.permutation(len(own))[:number])]
    return kept
