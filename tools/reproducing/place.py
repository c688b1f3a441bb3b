"""Where a run's films and results are, and the marks by which the same films are known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.manifest import read_manifest
from cxr.workdir import sha256_file

DRAWN = "drawn_films"  # folder and source of films that nobody took of anybody
SPLIT = "split.json"  # of the drawn films, in their folder

# None of these changes a result: two cells that differ in nothing else are one.
FREE = ("data", "crops", "out", "cache", "device", "workers", "draws")


@dataclass(frozen=True)
class Place:
    """What a run decides about every cell: where the films are, and on what it is trained.

    Args:
        data: folder with films.csv.
        crops: folder of detect.crop; empty for whole films.
        out: folder of all tables; a cell lies in out/cells/KEY.
        device: auto, cpu or gpu.
        workers: processes that make training pictures.
        seed: of everything random.
        draws: bootstrap draws of the intervals.
        sources: sources of films.csv in place of the table's own; empty leaves those.
    """

    data: str
    crops: str
    out: str
    device: str = "auto"
    workers: int = 0
    seed: int = 0
    draws: int = 1000
    sources: tuple[str, ...] = ()

    @property
    def input(self) -> str:
        """What the networks see."""
        return "crops" if self.crops else "films"

    @property
    def drawn(self) -> bool:
        """Are these the drawn films of the budget smoke?"""
        return self.sources == (DRAWN,)

    @property
    def split_seed(self) -> int:
        """The shuffle of patients hangs on the run's one seed, too."""
        return self.seed

    @property
    def cache(self) -> str:
        """Decoded pixels, shared by all cells."""
        return str(Path(self.out) / "cache")


def content_of(key: str, value: Any) -> Any:
    """A file of first weights, or of a split, counts by what is in it, wherever it lies."""
    is_file = key.rpartition(".")[2] in ("weights", "split") and value and Path(value).is_file()
    return f"sha256:{sha256_file(value)}" if is_file else value


def fingerprint(place: Place, files: Sequence[str]) -> tuple[str, ...]:
    """Hashes of the tables that say which films there are, and of the crops' rows; paths and dates
    are left out, so that a copy of the same data counts as the same."""
    data = Path(place.data)
    if not (data / "films.csv").is_file():
        raise ValueError(
            f"data must be a folder with films.csv. Got {place.data!r} instead: give "
            "--data FOLDER, or see tools/explore.py --source."
        )
    marks = [sha256_file(data / f) for f in files if (data / f).is_file()]
    if place.crops:
        rows = [
            (Path(r.film).name, r.sha256, r.status, r.crop_xyxy)
            for r in read_manifest(Path(place.crops))[1]
        ]
        text = json.dumps(sorted(rows, key=str), default=list)
        marks.append(hashlib.sha256(text.encode()).hexdigest())
    return tuple(marks)


@dataclass(frozen=True)
class SplitOf:
    """The split behind a cell.

    Attributes:
        classes: names of the truths.
        truths: image of films.csv → class.
        folds: the images learnt from and those tested, of each fold; one pair without folds.
        parts: part → films and patients, of the first fold.
    """

    classes: tuple[str, ...]
    truths: dict[str, str]
    folds: list[tuple[list[str], list[str]]]
    parts: dict[str, dict[str, int]]

    @classmethod
    def of(
        cls,
        classes: Sequence[str],
        truths: dict[str, str],
        trainings: Sequence[Mapping[str, Sequence[tuple[str, str]]]],
        tested: str = "test",
    ) -> SplitOf:
        """From each fold's part → (image, patient) of its films."""
        folds = [
            ([image for image, _ in parts["train"]], [image for image, _ in parts[tested]])
            for parts in trainings
        ]
        counts = {
            part: {"films": len(films), "patients": len({patient for _, patient in films})}
            for part, films in trainings[0].items()
        }
        return cls(tuple(classes), truths, folds, counts)
