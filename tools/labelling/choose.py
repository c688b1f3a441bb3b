"""Which films a session asks for: folders or a table of films, sampled by patient and label."""

from __future__ import annotations

import csv
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr.film import list_films


@dataclass(frozen=True)
class Candidate:
    """A film that may be asked for. `original_hw`: its size in the public set, where known."""

    path: Path
    patient_id: str = ""
    label: str = ""
    sublabel: str = ""
    source: str = ""
    original_hw: tuple[int, int] | None = None


@dataclass(frozen=True)
class Candidates:
    """The films found, the folder their names are relative to, and what was passed over why."""

    films: list[Candidate]
    root: Path
    passed_over: dict[str, int]


def find_candidates(films: Sequence[str], table: str = "", source: str = "") -> Candidates:
    """Films of folders, files and tables (`.csv`); `table` tells the labels of films in folders.

    Args:
        films: folders, files, or tables with the columns image, patient_id and label.
        table: such a table, for films that are given as folders or files.
        source: keep the films of this source only.

    Raises:
        ValueError: for a table without its columns, or when no film is left.
        FileNotFoundError: for a path that does not exist.
    """
    listed: list[Candidate] = []
    tables = [Path(f) for f in films if f.lower().endswith(".csv")]
    for path in tables:
        listed += read_table(path)
    found = list_films([f for f in films if not f.lower().endswith(".csv")])
    known = {_absolute(c.path): c for c in read_table(Path(table))} if table else {}
    listed += [known.get(_absolute(path), Candidate(path)) for path in found.films]
    if source:
        listed = [c for c in listed if c.source == source]
    if not listed:
        rest = f" of the source {source!r}; see the column source of the table" if source else ""
        raise ValueError(
            f"films must hold at least one film{rest}. Got none in {', '.join(films)}."
        )
    folders = {_absolute(c.path).parent for c in listed}
    root = Path(os.path.commonpath(folders))
    if tables or table:  # names as the table has them
        base = _absolute(Path(table) if table else tables[0]).parent
        root = base if all(f.is_relative_to(base) for f in folders) else root
    return Candidates(listed, root, found.passed_over)


def read_table(path: Path) -> list[Candidate]:
    """The films of a CSV. Columns: image (relative to the table), and where known patient_id,
    label, sublabel, source, orig_width, orig_height; raises ValueError without `image`."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "image" not in (reader.fieldnames or []):
            raise ValueError(
                f"{path} must have a column image (and patient_id, label to sample by). "
                f"Got {', '.join(reader.fieldnames or ['no columns'])} instead."
            )
        return [_to_candidate(path, row) for row in reader if row["image"]]


def _to_candidate(path: Path, row: dict[str, str]) -> Candidate:
    width, height = row.get("orig_width") or "", row.get("orig_height") or ""
    size = (int(height), int(width)) if width.isdigit() and height.isdigit() else None
    texts = {k: row.get(k) or "" for k in ("patient_id", "label", "sublabel", "source")}
    return Candidate(path.parent / row["image"], **texts, original_hw=size)


def parse_sample(text: str) -> dict[str, int]:
    """`normal=200,pneumonia=200` as a dict; raises ValueError for anything else."""
    sample: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        label, _, number = part.partition("=")
        if not label.strip() or not number.strip().isdigit() or int(number) < 1:
            raise ValueError(
                "sample must be label=number, with commas between, such as "
                f"normal=200,pneumonia=200. Got {text!r} instead."
            )
        sample[label.strip()] = int(number)
    return sample


def sample_films(films: Sequence[Candidate], sample: dict[str, int], seed: int) -> list[Candidate]:
    """So many films of each label (or sublabel), from as many patients as there are: a patient
    gives a second film only after every patient of the label has given one.

    Raises:
        ValueError: when a label has too few films.
    """
    if not sample:
        return list(films)
    chosen: list[Candidate] = []
    for label, number in sample.items():
        pool = [c for c in films if label in (c.label, c.sublabel) and c not in chosen]
        if len(pool) < number:
            labels = sorted({c.label for c in films} | {c.sublabel for c in films} - {""})
            raise ValueError(
                f"sample asks for {number} films of {label!r}, there are {len(pool)}. "
                f"Labels of these films: {', '.join(labels)[:300]}."
            )
        chosen += _by_patient(pool, seed)[:number]
    return sorted(chosen, key=lambda c: str(c.path))


def _by_patient(pool: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Films in rounds: one of each patient in random order, then a second one of each …"""
    rng = random.Random(seed)
    films_of: dict[str, list[Candidate]] = defaultdict(list)
    for film in sorted(pool, key=lambda c: str(c.path)):
        films_of[film.patient_id or str(film.path)].append(film)
    patients = sorted(films_of)
    rng.shuffle(patients)
    for patient in patients:
        rng.shuffle(films_of[patient])
    rounds = max(map(len, films_of.values()), default=0)
    return [films_of[p][i] for i in range(rounds) for p in patients if i < len(films_of[p])]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
