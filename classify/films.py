"""Which films a member learns from, and what it should answer for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from classify.labels import NORMAL, OTHERS, TARGET
from cxr.films_table import FilmNames, FilmRow, has_disease
from cxr.manifest import CropRow, read_manifest
from cxr.split import Split


@dataclass(frozen=True)
class Case:
    """One film to learn from: its files, group and truth. `crop` is None for whole films."""

    row: FilmRow
    film: Path
    crop: Path | None = None
    crop_row: CropRow | None = None

    @property
    def patient(self) -> str:
        """Films of one patient never stand on two sides of a split."""
        return self.row.patient_id


def label_of(row: FilmRow, target: str, classes: str = "three") -> int | None:
    """What a member should answer: NORMAL (no disease at all), TARGET or OTHERS for three classes;
    with two (`normal` or `target` against all else) 0 or 1, the disease sought being 1. None where
    the film's truth is unknown."""
    if row.label == "unknown":
        return None
    sick, found = row.label != "normal", has_disease(row, [target])
    if classes == "three":
        return TARGET if found else OTHERS if sick else NORMAL
    return int(sick if classes == "normal" else found)


def select_cases(
    rows: Sequence[FilmRow],
    data: Path,
    sources: Sequence[str] = (),
    publishable_only: bool = True,
    crops: Path | None = None,
    unlabelled: bool = False,  # take films of unknown truth, too
) -> tuple[list[Case], dict[str, int]]:
    """The films that may be used, and how many were left out for which reason.

    With `crops` (a folder of detect.crop) each film is matched to its manifest row by the end of
    its path (`cxr.films_table`); films without a crop are left out.
    """
    cases: list[Case] = []
    out: Counter[str] = Counter()
    cropped = _crops_by_image(crops, rows) if crops else {}
    for row in rows:
        if sources and row.source not in sources:
            out["another source"] += 1
        elif publishable_only and not row.publishable:
            out["licence"] += 1
        elif row.label == "unknown" and not unlabelled:
            out["truth unknown"] += 1
        elif crops is None:
            cases.append(Case(row, data / row.image))
        else:
            found = cropped.get(row.image)
            if found is None or not found.readable:
                out["no row in the manifest" if found is None else f"no crop: {found.status}"] += 1
                continue
            cases.append(Case(row, data / row.image, crops / str(found.crop), found))
    if not cases:
        raise ValueError(
            f"no film is left to learn from (left out: {dict(out)}). "
            "Check sources, publishable_only and the crops' manifest."
        )
    return cases, dict(out)


def _crops_by_image(crops: Path, rows: Sequence[FilmRow]) -> dict[str, CropRow]:
    by_film = {row.film: row for row in read_manifest(crops)[1]}
    names = FilmNames(by_film, (row.image for row in rows))
    found = {row.image: names.find(row.image) for row in rows}
    return {image: by_film[film] for image, film in found.items() if film is not None}


def part_of(cases: Sequence[Case], split: Split, part: str) -> list[int]:
    """Indices of the cases whose patient is in that part of the split."""
    return split.select([c.patient for c in cases], part)
