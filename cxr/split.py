"""Splits and folds in which no patient stands on two sides, alike in labels and sources."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxr.cli import Several, as_command, as_list, parse_config
from cxr.films_table import FilmRow, is_among, label_word, read_films_table, tell_unknown
from cxr.rules import refusing, require
from cxr.workdir import console, read_json, write_json

# The parts of the shipped models. `calibration` is for operating points: nothing is fitted on it.
DEFAULT_PARTS: Mapping[str, float] = {"train": 0.64, "val": 0.10, "calibration": 0.11, "test": 0.15}


@dataclass(frozen=True)
class Split:
    """Patient → part, with the seed that made it."""

    seed: int
    part_of: dict[str, str]

    def select(self, patients: Sequence[str], part: str) -> list[int]:
        """Indices of the films whose patient is in `part`; unknown patients are an error."""
        missing = sorted({p for p in patients if p not in self.part_of})
        if missing:
            raise ValueError(
                f"patients must all be in the split. Got {len(missing)} unknown ones instead, such "
                f"as {missing[0]!r}: make the split from all films."
            )
        return [i for i, p in enumerate(patients) if self.part_of[p] == part]

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(
            path,
            {"schema": "lungfirst.split", "version": 1, "seed": self.seed, "part_of": self.part_of},
        )

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read what `save` wrote; raises ValueError for another file."""
        try:
            data = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path} must be a split saved by lungfirst. {error}") from error
        ours = isinstance(data, dict) and data.get("schema") == "lungfirst.split"
        seed: Any = data.get("seed") if ours else None
        parts: Any = data.get("part_of") if ours else None
        sound = isinstance(seed, int) and isinstance(parts, dict)
        if not sound or not all(isinstance(part, str) for part in parts.values()):
            raise ValueError(
                f"{path} must be a split saved by lungfirst (schema lungfirst.split, with a seed "
                "and part_of: a part for each patient). Make it anew: python -m cxr.split."
            )
        return cls(seed, {patient.strip(): part for patient, part in parts.items()})


def make_split(
    patients: Sequence[str],
    strata: Sequence[Hashable],
    parts: Mapping[str, float] = DEFAULT_PARTS,
    seed: int = 0,
    settled: Mapping[str, str] | None = None,
) -> Split:
    """Share the patients of N films among `parts` (name → share, summing to 1). `strata` holds one
    key a film (label, or (source, label)). Patients are shuffled, those with many films first, and
    each goes to the part that lacks most of the patient's strata: so the parts agree in films for
    each stratum without ever splitting a patient. Patients of `settled` (patient → part, one of
    `parts`) stay where they are, and their films count there."""
    if len(patients) != len(strata):
        raise ValueError(
            f"patients and strata must be of one length. Got {len(patients)} and "
            f"{len(strata)} instead."
        )
    whole = np.isclose(sum(parts.values()), 1.0) and min(parts.values()) >= 0
    require(bool(whole), "parts must be shares that sum to 1", dict(parts))
    if any(not p for p in patients):
        raise ValueError(
            "patients must all be named: a film without a patient can leak. "
            "Give each unknown film an id of its own."
        )
    films_of: dict[str, Counter[Hashable]] = defaultdict(Counter)
    for patient, stratum in zip(patients, strata, strict=True):
        films_of[patient][stratum] += 1
    order = sorted(films_of)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda p: -films_of[p].total())  # stable: keeps the shuffle among equals
    wanted = {
        name: {s: share * n for s, n in Counter(strata).items()} for name, share in parts.items()
    }
    part_of = dict(settled or {})
    for patient in sorted(order, key=lambda p: p not in part_of):  # stable: the settled first
        counts = films_of[patient]

        def lack(part: str, counts: Counter[Hashable] = counts) -> float:
            # relative to the part's size, so that a small part fills as evenly as a large one
            need = sum(n * wanted[part][s] for s, n in counts.items())
            return need / parts[part] if parts[part] > 0 else -np.inf

        best = part_of.setdefault(patient, max(parts, key=lack))
        for stratum, n in counts.items():
            wanted[best][stratum] -= n
    return Split(seed, {p: part_of[p] for p in sorted(part_of)})


def strata_of(rows: Sequence[FilmRow]) -> list[tuple[str, str, str]]:
    """What the parts of a split shall be alike in: source, label and sublabel of each film."""
    # finding labels of nih are long combinations: there the plain label is the stratum
    return [
        (r.source, r.label, "" if is_among(r.source, ["nih"]) else label_word(r.sublabel))
        for r in rows
    ]


def make_folds(
    patients: Sequence[str], strata: Sequence[Hashable], folds: int = 5, seed: int = 0
) -> list[Split]:
    """k splits with parts train, val and test: fold i is tested once, fold i + 1 validates."""
    require(folds >= 3, "folds must be at least 3 (train, val, test)", folds)
    base = make_split(patients, strata, {str(i): 1 / folds for i in range(folds)}, seed)
    role = {0: "test", 1: "val"}
    return [
        Split(seed, {p: role.get((int(f) - i) % folds, "train") for p, f in base.part_of.items()})
        for i in range(folds)
    ]


@dataclass(frozen=True)
class SplitConfig:
    """Share the patients of films.csv among train, val, calibration and test.

    Args:
        films: films.csv, or several of them (the flag again for each), with the columns image,
            source, patient_id, label, sublabel.
        out: where to write the split as JSON.
        keep: an earlier split, whose patients stay where they are.
        settle: source → the part that all its other patients go to, such as {unnamed: train}.
        seed: of the shuffle.
        parts: name and share of each part; the shares sum to 1.
        folds: make so many folds instead (train, val, test), written beside `out` as
            NAME_fold0.json, NAME_fold1.json …; 0 makes one split.
    """

    films: Several
    out: str = "configs/split_seed0.json"
    keep: str = ""
    settle: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    parts: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_PARTS))
    folds: int = 0


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """`python -m cxr.split --films ../shared/data/films.csv`; 2 for a table or shares that do not
    fit, or where nothing can be written."""
    example = "python -m cxr.split --films DATA/films.csv"
    config = parse_config(SplitConfig, argv, example)
    with refusing():
        rows = []
        for table in as_list(config.films):
            own = read_films_table(table)
            tell_unknown(own, table)
            rows += own
        strata = strata_of(rows)
        patients, out = [r.patient_id for r in rows], Path(config.out)
        if config.folds:
            splits = make_folds(patients, strata, config.folds, config.seed)
            paths = [out.with_name(f"{out.stem}_fold{n}{out.suffix}") for n in range(config.folds)]
        else:
            settled = settle(rows, config)
            splits = [make_split(patients, strata, config.parts, config.seed, settled)]
            paths = [out]
        for split, path in zip(splits, paths, strict=True):
            split.save(path)
            _tell(split, rows)
    return 0


def settle(rows: Sequence[FilmRow], config: SplitConfig) -> dict[str, str]:
    """Patient → part of those that `keep` and `settle` name; raises ValueError for other parts."""
    asked = {r.patient_id: config.settle[r.source] for r in rows if r.source in config.settle}
    settled = {**asked, **(Split.load(config.keep).part_of if config.keep else {})}
    for part in settled.values():
        require(part in config.parts, "keep and settle must name --parts only", part)
    return settled


def _tell(split: Split, rows: Sequence[FilmRow]) -> None:
    """Patients and films of each part, by source."""
    counts = Counter((split.part_of[r.patient_id], r.source) for r in rows)
    for part in sorted(set(split.part_of.values())):
        films = ", ".join(f"{s} {n}" for (p, s), n in sorted(counts.items()) if p == part)
        console.print(f"{part}: {sum(p == part for p in split.part_of.values())} patients; {films}")


if __name__ == "__main__":
    sys.exit(main())
