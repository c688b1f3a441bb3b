"""The films of a single network's training and their classes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from classify.films import Case, select_cases
from classify.singles.config import SingleConfig
from classify.singles.parts import part_in_path
from cxr.films_table import class_of, read_films_table, take_films


@dataclass(frozen=True)
class Films:
    """N films, the number of each one's class, and how many were left out for which reason."""

    cases: list[Case]
    labels: list[int]
    left_out: dict[str, int]

    def mark(self) -> str:
        """SHA-256 that changes with the films, their patients and their classes."""
        pairs = zip(self.cases, self.labels, strict=True)
        lines = [f"{case.row.image}\t{case.patient}\t{label}" for case, label in pairs]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_films(config: SingleConfig) -> Films:
    """The films of a configuration; raises ValueError when there are none, or a file is missing."""
    data = Path(config.data)
    table = data / "films.csv"
    if not table.is_file():
        raise ValueError(f"data must be a folder with films.csv. {table} does not exist.")
    crops = Path(config.crops) if config.crops else None
    cases, left_out = select_cases(
        read_films_table(table), data, config.sources, config.publishable_only, crops
    )
    counted = Counter(left_out)
    kept: list[Case] = []
    labels: list[int] = []
    for case in cases:
        label = class_of(case.row, config.classes)
        if label is None:
            counted[f"no class: {case.row.label}"] += 1
            continue
        kept.append(case)
        labels.append(label)
    lacking = [name for k, name in enumerate(config.classes) if k not in labels]
    if lacking:
        raise ValueError(
            "classes must be labels or sublabels of the films that are taken. Got "
            f"{', '.join(lacking)}, which no film has."
        )
    if 0 < config.max_films < len(kept):
        published = [part_in_path(case.row.image) for case in kept]
        strata = list(zip(labels, published, strict=True))
        chosen = take_films([c.patient for c in kept], strata, config.max_films, config.seed)
        counted["over max_films"] += len(kept) - len(chosen)
        kept, labels = [kept[i] for i in chosen], [labels[i] for i in chosen]
    return Films(kept, labels, dict(counted))
