"""Which films a training learns from, what it should answer for each, and which parts they form."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from cxr.cli import Several
from cxr.data_folders import Data, DataFolders
from cxr.films_table import FilmNames, FilmRow, is_among, take_films, why_unknown
from cxr.manifest import CropRow, read_manifest
from cxr.rules import require, require_one_of
from cxr.split import Split, make_folds, make_split
from cxr.workdir import log

PARTS = ("train", "val", "test")
PROTOCOLS = ("pooled", "official", "folds", "file")
Parts = Mapping[str, Sequence[int]]  # the indices of the films of each part
DRAWN = ("lesion_masks", "finding_boxes")  # kinds of region that are a target's own


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


@dataclass(frozen=True)
class Shares:
    """Indices of the films of each part of one training, and how many films are in none."""

    parts: dict[str, list[int]]
    dropped: dict[str, int]


@dataclass(frozen=True)
class ProtocolConfig:
    """Which films are trained on, chosen by and tested on. Patients never stand on two sides.

    Args:
        kind: pooled (all films, shared anew by `parts`), official (the test films are those of
            the set's published test folder), folds (cross-validation: each film is tested once)
            or file (a split of python -m cxr.split).
        parts: shares of train, val and test; of official, only that of val beside train counts.
        folds: number of folds, 3 at least: one tests, the next validates, the rest trains.
        split: the file of kind file.
        learn: share of the training part's patients that is learnt from, of each class alike, as
            for learning curves; a smaller share is part of a larger one. All test alike.
        seed: of the shuffle.
    """

    kind: str = "pooled"
    parts: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1})
    folds: int = 5
    split: str = ""
    learn: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rule = f"protocol.kind must be one of {', '.join(PROTOCOLS)}"
        require(self.kind in PROTOCOLS, rule, self.kind)
        shares = list(self.parts.values())
        fits = set(self.parts) == set(PARTS) and min(shares) > 0 and abs(sum(shares) - 1) <= 1e-6
        rule = "protocol.parts must be positive shares of train, val and test that sum to 1"
        require(fits, rule, self.parts)
        rule = "protocol.folds must be at least 3 (train, val, test)"
        require(self.folds >= 3, rule, self.folds)
        require(0 < self.learn <= 1, "protocol.learn must lie in (0, 1]", self.learn)
        rule = "protocol.split must name a split for kind file, and be empty for the others"
        require((self.kind == "file") == bool(self.split), rule, self.split)


@dataclass(frozen=True)
class RegionConfig:
    """Which region the decoder restores where the target is present.

    Args:
        kind: lung_field (the mask column of films.csv), lesion_masks (a folder), finding_boxes (a
            CSV), or none. A film without one takes no part in the reconstruction loss.
        path: the folder (one PNG for each target and film: TARGET/FILM_STEM.png, white where
            diseased), or the CSV with the columns image, finding, x, y, w, h; or several of them.
        dilation: elliptic dilation kernel in px of the network's input; 0 for none.
    """

    kind: str = "lung_field"
    path: Several = ""
    dilation: int = 9

    def __post_init__(self) -> None:
        require_one_of(self, kind=("lung_field", *DRAWN, "none"))
        needs = self.kind in DRAWN and not self.path
        require(not needs, f"region path must be given for the kind {self.kind}", self.path)


def select_cases(
    rows: Sequence[FilmRow],
    data: Data,
    sources: Sequence[str] = (),
    publishable_only: bool = True,
    crops: Data = "",
    unlabelled: bool = False,  # take films of unknown truth, too
    known: Sequence[str] = (),  # labels beside the usual ones
) -> tuple[list[Case], dict[str, int]]:
    """The films that may be used, and how many were left out for which reason. With `crops`
    (folders of detect.crop) each film is matched to its manifest row by the end of its path
    (`cxr.films_table`); films without a crop are left out."""
    data = DataFolders(data)
    cases: list[Case] = []
    out: Counter[str] = Counter()
    cropped: dict[str, tuple[Path, CropRow]] = {}  # by image: the folder of its crop, its row there
    if crops:
        by_film = {r.film: (own, r) for own in DataFolders(crops) for r in read_manifest(own)[1]}
        names = FilmNames(by_film, (row.image for row in rows))
        matched = {row.image: names.find(row.image) for row in rows}
        cropped = {image: by_film[film] for image, film in matched.items() if film is not None}
    for row in rows:
        place, found = cropped.get(row.image, (Path(), None))
        unknown = "" if unlabelled else why_unknown(row, known)
        if sources and not is_among(row.source, sources):
            out["another source"] += 1
        elif publishable_only and not row.publishable:
            out["licence"] += 1
        elif unknown:
            out[unknown] += 1
        elif not crops:
            cases.append(Case(row, data / row.image))
        elif found is None or not found.readable:
            out["no row in the manifest" if found is None else f"no crop: {found.status}"] += 1
        else:
            cases.append(Case(row, data / row.image, place / str(found.crop), found))
    if not cases:
        raise ValueError(
            f"no film is left to learn from (left out: {dict(out)}). "
            "Check sources, publishable_only and the crops' manifest."
        )
    return cases, dict(out)


def read_split(path: str, name: str = "split") -> Split:
    """A split of python -m cxr.split, which the setting `name` gives; raises ValueError."""
    if not Path(path).is_file():
        raise ValueError(f"{name} must be a file of cxr.split. {path} does not exist.")
    return Split.load(path)


def tell_films(parts: Parts, left_out: Mapping[str, int], folds: int = 1) -> None:
    """How many films each part has, and why the others are left out, to the log."""
    log.info(
        "%d films (%s%s), left out: %s",
        sum(map(len, parts.values())),
        ", ".join(f"{name} {len(films)}" for name, films in parts.items()),
        f" in the first of {folds} folds" if folds > 1 else "",
        ", ".join(f"{why} {n}" for why, n in left_out.items()) or "none",
    )


def licence_note(rows: Iterable[FilmRow]) -> str:
    """Under which licences the films are that a network learnt from, for its bundle."""
    return "trained on films under: " + "; ".join(sorted({row.licence for row in rows}))


def require_part(parts: Parts, *names: str) -> None:
    """Raise ValueError where one of these parts has no film."""
    for name in names:
        if not parts.get(name):
            raise ValueError(
                f"the part {name} must have films. Got none: check split or protocol, evaluate, "
                "sources, publishable_only and max_films."
            )


def share_cases(
    cases: Sequence[Case], split: Split, names: Sequence[str], most: int, seed: int
) -> tuple[list[Case], dict[str, list[int]]]:
    """The films of the parts `names`, at most `most` of each, and their indices by part."""
    kept: list[Case] = []
    parts: dict[str, list[int]] = {}
    patients = [case.patient for case in cases]
    for name in names:
        films = [cases[i] for i in split.select(patients, name)]
        strata = [(c.row.source, c.row.label) for c in films]
        chosen = take_films([c.patient for c in films], strata, most, seed)
        parts[name] = list(range(len(kept), len(kept) + len(chosen)))
        kept += [films[i] for i in chosen]
    return kept, parts


def share_films(
    rows: Sequence[FilmRow], labels: Sequence[int], protocol: ProtocolConfig
) -> list[Shares]:
    """The parts of each training: one, or as many as there are folds. Raises ValueError when a part
    would be empty or the training part lack a class."""
    patients = [row.patient_id for row in rows]
    strata = [(row.source, label) for row, label in zip(rows, labels, strict=True)]
    found, splits = list[Shares](), list[Split]()
    if protocol.kind == "official":
        found = [_official(rows, strata, protocol)]
    elif protocol.kind == "file":
        splits = [read_split(protocol.split, "protocol.split")]
    elif protocol.kind == "folds":
        splits = make_folds(patients, strata, protocol.folds, protocol.seed)
    else:
        splits = [make_split(patients, strata, protocol.parts, protocol.seed)]
    for split in splits:
        parts = {name: split.select(patients, name) for name in PARTS}
        others = Counter(part for p in patients if (part := split.part_of[p]) not in PARTS)
        rest = {f"part {name} of the split": n for name, n in sorted(others.items())}
        found.append(Shares(parts, rest))
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
    first_class = {patients[i]: labels[i] for i in reversed(train)}
    kept: set[str] = set()
    for number in sorted(set(first_class.values())):
        names = sorted(p for p, label in first_class.items() if label == number)
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
    rows: Sequence[FilmRow], strata: Sequence[tuple[str, int]], protocol: ProtocolConfig
) -> Shares:
    patients = [row.patient_id for row in rows]
    published = [part_in_path(row.image) for row in rows]
    if "" in published:
        raise ValueError(
            "protocol.kind official must have films in folders train, val or test, as published. "
            f"{rows[published.index('')].image} is in none: give other data, or kind pooled."
        )
    test = [i for i, part in enumerate(published) if part == "test"]
    tested = {patients[i] for i in test}
    # Kermany's own val has 16 films: too few to choose an epoch by, so they join the others
    rest = [i for i, patient in enumerate(patients) if patient not in tested]
    share = {name: protocol.parts[name] for name in ("train", "val")}
    parts = {name: part / sum(share.values()) for name, part in share.items()}
    split = make_split([patients[i] for i in rest], [strata[i] for i in rest], parts, protocol.seed)
    drawn = {name: [i for i in rest if split.part_of[patients[i]] == name] for name in parts}
    dropped = len(rows) - len(test) - len(rest)
    why = {"patient is in the published test part, too": dropped} if dropped else {}
    return Shares({**drawn, "test": test}, why)


def require_more_than_one(films: Sequence[int], batch: int) -> None:
    """Raise ValueError where `train_loader` would find no batch to learn from."""
    if len(films) == 1 and batch > 1:
        raise ValueError(
            "the part train must hold at least 2 films: the last batch is left out when it holds "
            "one. Got 1 instead: check the split, sources and max_films."
        )


def require_two(part: str, labels: Sequence[int], classes: Sequence[str], why: str) -> None:
    """Raise ValueError where a part's films are all of one class, which `why` forbids."""
    if len(set(labels)) < 2:
        only = ", ".join(classes[k] for k in set(labels)) or "none"
        raise ValueError(
            f"the part {part} must hold films of two classes at least: {why}. Got films of {only} "
            "alone: make another split or larger part, or check classes, sources and max_films."
        )


def _check(shares: Shares, patients: Sequence[str], labels: Sequence[int]) -> None:
    sides = [{patients[i] for i in shares.parts[name]} for name in PARTS]
    assert sum(map(len, sides)) == len(set.union(*sides)), "a patient stands on two sides"
    require_part(shares.parts, *PARTS)
    missing = sorted(set(labels) - {labels[i] for i in shares.parts["train"]})
    if missing:
        raise ValueError(
            f"the part train must have films of every class. Got none of class number "
            f"{missing[0]}: check classes, sources and max_films."
        )
