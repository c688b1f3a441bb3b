"""Films for the screener: members' logits from predictions.csv, joined with the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from classify.predictions import read_predictions
from cxr.films_table import FilmNames, FilmRow, read_films_table
from cxr.split import Split


@dataclass(frozen=True)
class ScreeningFilms:
    """N classified films: logits (N, M, 3) of the members `targets`, truth and who they are of."""

    targets: tuple[str, ...]
    logits: np.ndarray
    abnormal: np.ndarray  # (N,) bool
    patients: list[str]
    sources: list[str]
    films: list[str]
    left_out: dict[str, int] = field(default_factory=dict)

    def of_parts(self, split: str | Path, parts: Sequence[str]) -> ScreeningFilms:
        """The films whose patients are in these parts of the split, counting what is left out.

        Raises ValueError when no film is left.
        """
        part_of = Split.load(split).part_of
        chosen = [i for i, p in enumerate(self.patients) if part_of.get(p) in parts]
        if not chosen:
            raise ValueError(
                f"parts {', '.join(parts)} of {split} must hold patients of the predictions. "
                "Got none instead: is it the split that the members were trained with?"
            )
        strangers = sum(p not in part_of for p in self.patients)
        left_out = dict(self.left_out)
        if strangers:
            left_out["patient not in the split"] = strangers
        return ScreeningFilms(
            self.targets,
            self.logits[chosen],
            self.abnormal[chosen],
            [self.patients[i] for i in chosen],
            [self.sources[i] for i in chosen],
            [self.films[i] for i in chosen],
            left_out,
        )

    def count_by_source(self) -> dict[str, int]:
        """Films of each source."""
        return dict(sorted(Counter(self.sources).items()))


def read_screening_films(
    predictions: Sequence[str | Path],
    labels: str | Path,
    normal: str = "normal",
    sources: Sequence[str] = (),
) -> ScreeningFilms:
    """Films of one or more predictions.csv that have logits, a box (`ok`) and a known truth.

    A film with status `fallback` is never cleared, so it neither proves nor teaches anything here.
    Films are matched to films.csv by the longest end of their path that stands there, else by
    `cxr.films_table`. Raises ValueError when the runs have different members or no film is left.
    """
    table = {row.image: row for row in read_films_table(labels)}
    names = FilmNames(table)
    out: Counter[str] = Counter()
    kept: dict[str, tuple[FilmRow, np.ndarray]] = {}
    targets: tuple[str, ...] = ()
    for path in predictions:
        found, rows = read_predictions(path)
        if targets and found != targets:
            raise ValueError(
                f"predictions must all come from the same members. {path} has "
                f"{', '.join(found)}, another has {', '.join(targets)}."
            )
        targets = found
        for row in rows:
            truth = _match(row.film, table, names)
            if row.logits is None or row.status != "ok":
                out[f"status {row.status}"] += 1
            elif truth is None:
                out["not in the labels"] += 1
            elif truth.label == "unknown":
                out["truth unknown"] += 1
            elif sources and truth.source not in sources:
                out["another source"] += 1
            elif truth.image in kept:
                out["film given twice"] += 1
            else:
                kept[truth.image] = (truth, np.asarray(row.logits, dtype=np.float64))
    if not kept:
        raise ValueError(
            f"predictions and {labels} must have films in common. "
            f"Left out: {dict(out) or 'no row at all'}."
        )
    truths = [truth for truth, _ in kept.values()]
    return ScreeningFilms(
        targets,
        np.stack([logits.reshape(len(targets), 3) for _, logits in kept.values()]),
        np.array([t.label != normal for t in truths], dtype=bool),
        [t.patient_id for t in truths],
        [t.source for t in truths],
        [t.image for t in truths],
        dict(out),
    )


def _match(film: str, table: dict[str, FilmRow], names: FilmNames) -> FilmRow | None:
    parts = PurePosixPath(film.replace("\\", "/")).parts
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    found = next((end for end in ends if end in table), None) or names.find(film)
    return None if found is None else table[found]
