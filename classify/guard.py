"""The guard: a film unlike those that an ensemble was calibrated on is never cleared.

    python -m classify.guard fit --ensemble weights/ensemble_crops --crops runs/crops_data
    python -m classify.guard measure runs/crops_adults runs/crops_children --ensemble \\
        weights/ensemble_crops

What the screener proves holds for films like those of its calibration. The guard says which films
are: it knows what the members' networks make of the films of the training (maps averaged over
places, see `classify.saliency.hooks.watching`), and how far from these the calibration's films lie.
It sees no label.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from classify.films import Case, read_split, select_cases
from classify.members import GUARD, member_files
from classify.predictions import name_of
from classify.screening.reading import doubts_of
from cxr.bundle import load_arrays, rebuilding, save_bundle
from cxr.cli import Command, Several, as_command, parse_command, to_plain
from cxr.data_folders import DataFolders
from cxr.film import Film, list_films
from cxr.manifest import read_manifest
from cxr.notes import code_of
from cxr.rules import refusing, require, require_between, require_one_of
from cxr.stream import batched, default_jobs, read_ahead
from cxr.training.recipe import require_writable
from cxr.workdir import console, counting, provenance, sha256_file, write_atomic

MOST_AXES, FILMS_AN_AXIS = 64, 5
_TINY = 1e-6  # of the largest spread: less is rounding, not a way in which films differ
PATIENTS = ("", "children", "adults")
_BLUR = 0.02  # standard deviation, of the shorter side


Spoil = Callable[[np.ndarray], np.ndarray]
# ways to spoil a film, (H, W) float32 in [0, 1], by which a guard is tried
SPOILT: dict[str, Spoil] = {
    "blurred": lambda pixels: cv2.GaussianBlur(pixels, (0, 0), _BLUR * min(pixels.shape)),
    "inverted": lambda pixels: 1 - pixels,
    "half covered": lambda pixels: pixels * (np.arange(pixels.shape[1]) >= pixels.shape[1] // 2),
}


@dataclass(frozen=True, eq=False)
class Guard:
    """What an ensemble's networks pool on films of its training: N films, F features each. `mean`
    (F,) is theirs, `axes` (k, F) are the first k = min(64, N // 5) orthonormal principal axes, and
    `spreads` (k,) the standard deviation along each; `rest` is that of what is left of a film
    outside the axes, as a length. A film farther off than `threshold` counts as unlike those of the
    calibration, of whose patients this `share` lies below it. `members` holds the SHA-256 of each
    one's file by its stem, `meta` whom the guard was fitted and calibrated on."""

    mean: np.ndarray
    axes: np.ndarray
    spreads: np.ndarray
    rest: float
    threshold: float = np.inf
    share: float = 0.95
    members: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @classmethod
    def fit(cls, features: np.ndarray) -> Guard:
        """From (N, F) features, without a threshold; raises ValueError for fewer than 10 films."""
        given = np.asarray(features, np.float64)
        rule = f"features of Guard.fit must be of {2 * FILMS_AN_AXIS} films at least"
        require(given.ndim == 2 and len(given) >= 2 * FILMS_AN_AXIS, rule, given.shape)
        mean = given.mean(0)
        _, singular, axes = np.linalg.svd(given - mean, full_matrices=False)
        spreads = singular / np.sqrt(len(given))
        least = max(_TINY * float(spreads[0]), np.finfo(np.float64).tiny)
        k = min(MOST_AXES, len(given) // FILMS_AN_AXIS, int((spreads > least).sum()))
        # as they are stored: the distances of the threshold are those of a guard that is loaded
        guard = cls(_as_stored(mean), _as_stored(axes[:k]), _as_stored(spreads[:k]), 1.0)
        return replace(guard, rest=max(float(guard._split(given)[1].std()), least))

    def _split(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, F) to coordinates along the axes (N, k), and the length of what is left (N,)."""
        moved = np.asarray(features, np.float64) - self.mean
        along = moved @ self.axes.T
        return along, np.linalg.norm(moved - along @ self.axes, axis=1)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """(N, F) features to (N,): the Mahalanobis distance along the axes, and what is left
        outside them in units of its own spread, added up."""
        shape, width = np.shape(features), len(self.mean)
        rule = f"features of a guard must be (N, {width}), what its ensemble's networks pool"
        require(len(shape) == 2 and shape[1] == width, rule, shape)
        along, left = self._split(features)
        return np.linalg.norm(along / self.spreads, axis=1) + left / self.rest

    def far(self, features: np.ndarray) -> np.ndarray:
        """(N, F) features to (N,) distances in units of the threshold: above 1 a film is unlike."""
        return self.distance(features) / self.threshold

    def calibrated(
        self, features: np.ndarray, patients: Sequence[str], share: float = 0.95
    ) -> Guard:
        """The guard whose threshold this share of the patients lies below, of each of whom the
        farthest film counts: (M, F) features and the M films' patients. Raises ValueError for too
        few patients for one to lie above."""
        farthest: dict[str, float] = {}
        for patient, value in zip(patients, self.distance(features), strict=True):
            farthest[patient] = max(farthest.get(patient, 0.0), float(value))
        rule = f"calibration films must be of {_fewest(share)} patients at least for a share of "
        require(len(farthest) >= _fewest(share), f"{rule}{share:g}", len(farthest))
        threshold = float(np.quantile(list(farthest.values()), share))
        return replace(self, threshold=threshold, share=share)

    @property
    def sentence(self) -> str:
        """Which films are never cleared, for people to read."""
        films = self.meta.get("calibration_films_by_source") or {}
        told = ", ".join(f"{n} {source}" for source, n in sorted(films.items()))
        scope = f" ({told})" if told else ""
        return (
            f"Films unlike those of the calibration{scope} are never cleared: "
            f"those farther off than {100 * self.share:g} % of its patients."
        )

    def save(self, folder: str | Path) -> Guard:
        """Write guard.safetensors beside the members; returns the guard with its file's hash."""
        import torch

        told = {"threshold": self.threshold, "share": self.share, "rest": self.rest}
        tensors = {
            name: torch.from_numpy(np.asarray(getattr(self, name), np.float32))
            for name in ("mean", "axes", "spreads")
        }
        meta = {**self.meta, **told, "members": self.members}
        path = save_bundle(Path(folder) / GUARD, "guard", tensors, half=False, **meta)
        return replace(self, sha256=sha256_file(path))

    @classmethod
    def load(cls, folder: str | Path) -> Guard:
        """Read what `save` wrote; raises FileNotFoundError, or ValueError for another file or when
        the members beside it are others than it was fitted for."""
        path = Path(folder) / GUARD
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no guard ({GUARD}). Fit one: python -m classify.guard fit "
                f"--ensemble {folder}"
            )
        arrays, told = load_arrays(path, "guard")
        own = ("schema", "version", "kind", "threshold", "share", "rest", "members")
        with rebuilding(path):
            mean, axes, spreads = (arrays[n].astype(float) for n in ("mean", "axes", "spreads"))
            rest, threshold, share = (float(told[n]) for n in ("rest", "threshold", "share"))
            members = dict(told["members"])
        if members != hash_members(folder):
            raise ValueError(
                f"{path} was not fitted for the members beside it: it does not know what they "
                "pool. Fit it again: python -m classify.guard fit."
            )
        meta = {k: v for k, v in told.items() if k not in own}
        known = (rest, threshold, share, members, meta, sha256_file(path))
        return cls(mean, axes, spreads, *known)


def _as_stored(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float32).astype(np.float64)


def _fewest(share: float) -> int:
    """The least number of patients of whom one lies above this share."""
    return int(np.ceil(1 / (1 - share) - 1e-9))


def hash_members(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each member's file of a folder, by its stem; raises ValueError for none."""
    return {path.stem: sha256_file(path) for path in member_files(folder)}


@dataclass(frozen=True)
class FitConfig:
    """Fits the guard of an ensemble: which films are like those that clearing was calibrated on.

    Args:
        ensemble: folder of the members; guard.safetensors is written there.
        crops: folder of detect.crop, or several of them (the flag again for each), for members
            that see crops; left out for members that see whole films.
        data: folder with films.csv and the films, or several of them.
        split: the split that the members were trained with (JSON).
        part: part of the split whose films are known: those of the training.
        calibration_part: part whose patients fix the threshold; another one.
        sources: films of these sources only; none named: all. Name those of the screener's
            calibration.
        publishable_only: leave out films under licences that forbid to publish what was learnt.
        patients: whom the ensemble is for: children, adults, or empty where that is not told.
            With several ensembles a film whose age is known goes by it.
        share: of the calibration's patients that is to lie below the threshold.
        device: auto, cpu or cuda.
        batch: films that the members see at a time.
    """

    ensemble: Path = Path("weights/ensemble_crops")
    crops: Several = ""
    data: Several = "../shared/data"
    split: str = "configs/split_seed0.json"
    part: str = "train"
    calibration_part: str = "calibration"
    sources: tuple[str, ...] = ()
    publishable_only: bool = True
    patients: str = ""
    share: float = 0.95
    device: str = "auto"
    batch: int = 16

    def __post_init__(self) -> None:
        rule = "calibration_part must be another one than part: films that were fitted on lie near"
        require(self.part != self.calibration_part, rule, self.calibration_part)
        require_between(self, share=(0.5, 0.999), batch=(1, 1024))
        require_one_of(self, patients=PATIENTS)


@dataclass(frozen=True)
class MeasureConfig:
    """Counts the films of each folder that are unlike those of an ensemble's calibration.

    Args:
        folders: folders of detect.crop, or of films for members that see whole films.
        ensemble: folder of the members and their guard.
        out: CSV file: each film with its distance in units of the threshold.
        spoilt: count the films blurred (2 % of the side), inverted, and with their left half black,
            too.
        device: auto, cpu or cuda.
        batch: films that the members see at a time.
    """

    folders: tuple[str, ...] = ()
    ensemble: Path = Path("weights/ensemble_crops")
    out: Path = Path("runs/guard.csv")
    spoilt: bool = False
    device: str = "auto"
    batch: int = 16

    def __post_init__(self) -> None:
        require(bool(self.folders), "FOLDERS must name a folder", self.folders)
        require_between(self, batch=(1, 1024))


def pooled_of(
    members: Any,
    paths: Sequence[Path],
    batch: int,
    what: str,
    ways: Sequence[Spoil | None] = (None,),
) -> Iterator[list[np.ndarray] | str]:
    """Of each film or crop what the networks pool (F,), as it is or spoilt, for each of the ways;
    or why it could not be read."""
    stream = read_ahead(paths, default_jobs(len(paths)))
    for group in batched(counting(stream, what, len(paths)), batch):
        pixels = [film.pixels for _, film in group if isinstance(film, Film)]
        found = []
        for spoil in ways if pixels else ():
            shown = [spoil(p) for p in pixels] if spoil else pixels
            found.append(members.predict_pooled(members.prepare(shown)[0])[1])
        pooled = zip(*found, strict=True)
        for _, film in group:
            yield list(next(pooled)) if isinstance(film, Film) else str(film)


def load_members(folder: Path, device: str) -> Any:
    """The ensemble; raises ValueError where a network pools no maps."""
    from classify.exported import open_ensemble  # when nothing light is wrong

    members = open_ensemble(folder, "auto", "fp32", device)
    if not members.pools:
        raise ValueError(
            f"networks of {folder} must name the layer whose maps they pool (saliency_layer, or "
            "saliency_layers for several backbones). One names none: it can have no guard."
        )
    return members


def run_fit(config: FitConfig) -> Guard:
    """The `fit` command: look at the films, fix the threshold, save."""
    member_files(config.ensemble)  # said before anything large is loaded
    listed = DataFolders(config.data).rows()
    part_of = read_split(config.split).part_of
    chosen = (config.sources, config.publishable_only, config.crops)
    cases, out = select_cases(listed, config.data, *chosen, unlabelled=True)
    left_out, parts = Counter(out), dict[str, list[Case]]()
    for case in cases:
        part = part_of.get(case.patient, "")
        if part not in (config.part, config.calibration_part):
            left_out[f"part {part}" if part else "patient not in the split"] += 1
        elif case.crop_row and doubts_of(case.crop_row):
            left_out["never cleared, like it or not"] += 1
        else:
            parts.setdefault(part, []).append(case)
    for name in (config.part, config.calibration_part):
        require(name in parts, f"the part {name!r} of {config.split} must have films", "none")
    require_writable(config.ensemble, name="--ensemble")
    members = load_members(config.ensemble, config.device)
    _check_kind(config.ensemble, members.trained_on, bool(config.crops))
    features: dict[str, np.ndarray] = {}
    for name, films in parts.items():
        paths = [case.crop or case.film for case in films]
        found = list(pooled_of(members, paths, config.batch, f"looking at {name}"))
        seen = [(c, f[0]) for c, f in zip(films, found, strict=True) if not isinstance(f, str)]
        lost = [why for why in found if isinstance(why, str)]
        left_out.update(f"unreadable: {code_of(why)}" for why in lost)
        require(bool(seen), f"films of the part {name!r} must be readable", lost[:1])
        parts[name], features[name] = [c for c, _ in seen], np.stack([f for _, f in seen])
    calibration = parts[config.calibration_part]
    patients = [case.patient for case in calibration]
    guard = Guard.fit(features[config.part])
    guard = guard.calibrated(features[config.calibration_part], patients, config.share)
    hashes = hash_members(config.ensemble)
    meta = {
        "trained_on": members.trained_on,
        "patients": config.patients,
        "fit_films_by_source": _by_source(parts[config.part]),
        "calibration_films_by_source": _by_source(calibration),
        "calibration_patients": len(set(patients)),
        "left_out": {why: n for why, n in sorted(left_out.items()) if n},
        "config": to_plain(config),
        "provenance": provenance(hashes),
    }
    guard = replace(guard, members=hashes, meta=meta).save(config.ensemble)
    console.print(
        f"{len(parts[config.part])} films known along {len(guard.spreads)} axes, "
        f"{len(calibration)} films of {meta['calibration_patients']} patients for the threshold "
        f"of {guard.threshold:.4g}; left out: {meta['left_out'] or 'none'}",
        highlight=False,
        markup=False,
    )
    return guard


def _by_source(cases: Sequence[Case]) -> dict[str, int]:
    return dict(sorted(Counter(case.row.source for case in cases).items()))


def _check_kind(folder: Path, trained_on: str, crops: bool) -> None:
    """Raises ValueError where the films are not of the kind that the members learnt from."""
    if trained_on and (trained_on == "crops") != crops:
        raise ValueError(
            f"films must be {trained_on}, as the members of {folder} learnt from. Got "
            f"{'crops' if crops else 'whole films'} instead: "
            + ("give folders of detect.crop." if trained_on == "crops" else "give whole films.")
        )


def run_measure(config: MeasureConfig) -> list[dict[str, str]]:
    """The `measure` command: a row for each film, in the order of the folders."""
    guard = Guard.load(config.ensemble)
    listed = {folder: films_of(folder) for folder in config.folders}
    members = load_members(config.ensemble, config.device)
    rows: list[dict[str, str]] = []
    table = Table(title=f"beyond the threshold of {guard.threshold:.4g}")
    for column in ("folder", "films", "beyond", "share", "median", "unread"):
        table.add_column(column, overflow="fold")
    ways = {"": None, **(SPOILT if config.spoilt else {})}
    for folder in listed:
        _check_kind(config.ensemble, members.trained_on, is_cropped(folder))
    for folder, films in listed.items():
        names = [f"{folder}, {way}" if way else folder for way in ways]
        seen: dict[str, list[dict[str, str]]] = {name: [] for name in names}
        paths = [path for _, path in films if isinstance(path, Path)]
        looked = pooled_of(members, paths, config.batch, folder, list(ways.values()))
        for film, path in films:
            pooled = next(looked) if isinstance(path, Path) else path
            each: Sequence[np.ndarray | str]
            each = [pooled] * len(ways) if isinstance(pooled, str) else pooled
            for name, found in zip(names, each, strict=True):
                seen[name].append(_measured(guard, name, name_of(film), found))
        for name, own in seen.items():
            far = np.array([float(row["far"]) for row in own if row["far"]])
            beyond = int((far > 1).sum())
            told = (f"{beyond / len(far):.3f}", f"{np.median(far):.3f}") if len(far) else ("", "")
            table.add_row(name, str(len(far)), str(beyond), *told, str(len(own) - len(far)))
            rows += own
    text = io.StringIO()
    writer = csv.DictWriter(text, ("folder", "film", "far", "beyond", "reason"))
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(config.out, text.getvalue().encode("utf-8", "surrogateescape"))
    console.print(table)
    console.print(f"each film: {config.out}", highlight=False, markup=False)
    return rows


def is_cropped(folder: str | Path) -> bool:
    """Is it a folder of detect.crop?"""
    return (Path(folder) / "manifest.jsonl").is_file()


def films_of(folder: str) -> list[tuple[str, Path | str]]:
    """Films of a folder by name, each with the file to look at, or why there is none; raises
    OSError or ValueError for a folder without films."""
    if is_cropped(folder):
        rows = read_manifest(folder)[1]
        return [(r.film, Path(folder) / r.crop if r.crop else r.reason) for r in rows]
    found = list_films([folder]).films
    require(bool(found), "FOLDERS must hold films, or crops of detect.crop", folder)
    return [(path.as_posix(), path) for path in found]


def _measured(guard: Guard, folder: str, film: str, pooled: np.ndarray | str) -> dict[str, str]:
    row = {"folder": folder, "film": film, "far": "", "beyond": "", "reason": ""}
    if isinstance(pooled, str):
        return {**row, "reason": pooled}
    (far,) = guard.far(pooled[None])
    return {**row, "far": f"{far:.4f}", "beyond": "yes" if far > 1 else "no"}


COMMANDS = {
    "fit": Command(
        FitConfig,
        "python -m classify.guard fit --ensemble weights/ensemble_crops --crops runs/crops_data "
        "--sources '[kermany]'",
    ),
    "measure": Command(
        MeasureConfig,
        "python -m classify.guard measure runs/crops_adults --ensemble weights/ensemble_crops",
        ("folders",),
    ),
}


@as_command
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 2 for wrong arguments, films or files."""
    about = "Knows the films that an ensemble was calibrated on, so that no other one is cleared."
    config = parse_command(COMMANDS, argv, "python -m classify.guard", about)
    with refusing():
        run_fit(config) if isinstance(config, FitConfig) else run_measure(config)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
