"""Which films train, which choose the epoch and which test: the protocols of the papers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from classify.singles.config import PARTS, ProtocolConfig
from cxr.films_table import FilmRow
from cxr.split import Split, make_folds, make_split


@dataclass(frozen=True)
class Shares:
    """Indices of the films of each part of one training, and how many films are in none."""

    parts: dict[str, list[int]]
    dropped: dict[str, int]


def share_films(
    rows: Sequence[FilmRow], labels: Sequence[int], protocol: ProtocolConfig
) -> list[Shares]:
    """The parts of each training: one, or as many as there are folds.

    Raises ValueError when a part would be empty or the training part lack a class.
    """
    patients = [row.patient_id for row in rows]
    strata = [(row.source, label) for row, label in zip(rows, labels, strict=True)]
    if protocol.kind == "official":
        found = [_official(rows, patients, strata, protocol)]
    elif protocol.kind == "file":
        found = [_of_file(patients, Path(protocol.split))]
    elif protocol.kind == "folds":
        splits = make_folds(patients, strata, protocol.folds, protocol.seed)
        found = [Shares(_select(split, patients), {}) for split in splits]
    else:
        split = make_split(patients, strata, protocol.parts, protocol.seed)
        found = [Shares(_select(split, patients), {})]
    found = [_learn(shares, patients, labels, protocol) for shares in found]
    for shares in found:
        _check(shares, patients, labels)
    return found


def _learn(
    shares: Shares, patients: Sequence[str], labels: Sequence[int], protocol: ProtocolConfig
) -> Shares:
    """The training part cut down to `protocol.learn` of the patients of each class, one at least;
    a patient counts in the class of the first film."""
    if protocol.learn == 1:
        return shares
    train = shares.parts["train"]
    class_of: dict[str, int] = {}
    for i in train:
        class_of.setdefault(patients[i], labels[i])
    kept: set[str] = set()
    for number in sorted(set(class_of.values())):
        names = sorted(p for p, label in class_of.items() if label == number)
        np.random.default_rng([protocol.seed, number]).shuffle(names)
        kept |= set(names[: max(1, round(protocol.learn * len(names)))])
    rest = [i for i in train if patients[i] in kept]
    left = {"not learnt from": len(train) - len(rest)}
    return Shares({**shares.parts, "train": rest}, {**shares.dropped, **left})


def part_in_path(image: str) -> str:
    """The part that a film was published in, by the folder of that name in its path; or ""."""
    folders = [part.casefold() for part in PurePosixPath(image.replace("\\", "/")).parent.parts]
    return next((folder for folder in reversed(folders) if folder in PARTS), "")


def _official(
    rows: Sequence[FilmRow],
    patients: Sequence[str],
    strata: Sequence[tuple[str, int]],
    protocol: ProtocolConfig,
) -> Shares:
    published = [part_in_path(row.image) for row in rows]
    if "" in published:
        raise ValueError(
            "protocol.kind official must have films in folders train, val or test, as published. "
            f"{rows[published.index('')].image} is in none: give other data, or kind pooled."
        )
    test = [i for i, part in enumerate(published) if part == "test"]
    tested = {patients[i] for i in test}
    # Kermany's own val has 16 films: too few to choose an epoch by, so they join the others
    others = [i for i, part in enumerate(published) if part != "test"]
    rest = [i for i in others if patients[i] not in tested]
    share = {name: protocol.parts[name] for name in ("train", "val")}
    parts = {name: part / sum(share.values()) for name, part in share.items()}
    split = make_split([patients[i] for i in rest], [strata[i] for i in rest], parts, protocol.seed)
    drawn = {name: [i for i in rest if split.part_of[patients[i]] == name] for name in parts}
    dropped = len(others) - len(rest)
    why = {"patient is in the published test part, too": dropped} if dropped else {}
    return Shares({**drawn, "test": test}, why)


def _of_file(patients: Sequence[str], path: Path) -> Shares:
    if not path.is_file():
        raise ValueError(f"protocol.split must be a file of cxr.split. {path} does not exist.")
    split = Split.load(path)
    parts = _select(split, patients)
    others = Counter(split.part_of[p] for p in patients)
    return Shares(
        parts,
        {f"part {name} of the split": n for name, n in sorted(others.items()) if name not in PARTS},
    )


def _select(split: Split, patients: Sequence[str]) -> dict[str, list[int]]:
    return {name: split.select(patients, name) for name in PARTS}


def _check(shares: Shares, patients: Sequence[str], labels: Sequence[int]) -> None:
    sides = [{patients[i] for i in shares.parts[name]} for name in PARTS]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2]), (
        "a patient stands on two sides"
    )
    for name in PARTS:
        if not shares.parts[name]:
            raise ValueError(
                f"the part {name} must have films. Got none: check sources, max_films and protocol."
            )
    missing = sorted(set(labels) - {labels[i] for i in shares.parts["train"]})
    if missing:
        raise ValueError(
            f"the part train must have films of every class. Got none of class number "
            f"{missing[0]}: check classes, sources and max_films."
        )
