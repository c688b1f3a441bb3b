"""Maps of one method over films, with the pictures that the network saw: one file a method; and
how alike two methods' maps of the same films are.

A file is a safetensors bundle of kind "maps": `picture.N` (H, W) uint8 at most 384 px long and
`map.N` (h, w) float32 from 0 to 1, its highest value 1 (0 everywhere where the map is empty). Maps
lie on the whole picture.

To be compared they are laid on the film's own shape, at most 128 px long, each with its highest
value as 1; the SSIM of `classify.saliency.maps` (Wang et al. 2004) compares. Two methods that both
draw a blob in the middle of every film are alike without having looked: so each film's map is also
compared with the other method's map of another patient's film, and `own_less_other` is what the
films add.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track
from rich.table import Table

from classify.audit.films import Truths
from classify.members import TARGET
from classify.predictions import Item, crops_on_disk, name_of, whole_films
from classify.saliency import check_method
from cxr.cli import Several, to_plain
from cxr.draw import fit
from cxr.film import list_films
from cxr.intensity import to_uint8
from cxr.manifest import read_manifest
from cxr.page import printable
from cxr.rules import require, require_at_least
from cxr.stats import Figure, in_words, mean_figure
from cxr.stream import batched
from cxr.workdir import console, log, provenance, write_json

KIND = "maps"
PICTURE_SIDE, MAP_SIDE = 384, 128


@dataclass(frozen=True, eq=False)
class Explained:
    """One film: its picture (H, W) uint8 and its map (h, w) in [0, 1]; `patient` is the film's
    name where no table tells."""

    film: str
    patient: str
    label: str
    picture: np.ndarray
    plane: np.ndarray

    @property
    def empty(self) -> bool:
        """Is the map 0 everywhere?"""
        return not self.plane.any()


@dataclass(frozen=True, eq=False)
class MapSet:
    """The maps of one method; `sha256` of its file."""

    name: str
    method: str
    target: str
    films: dict[str, Explained]
    sha256: str = ""


@dataclass(frozen=True)
class MapsConfig:
    """Make the maps of one method over films, to be compared.

    Args:
        films: films or folders of them; none with --crops takes that folder's crops.
        out: file of maps (.safetensors).
        name: what the method is called in tables; empty takes --method.
        ensemble: folder of members, or of one single network.
        target: the member to explain; empty takes the first.
        method: one of classify.saliency's methods, explanation (a network's own map, as CXRNet
            draws it) or explanation_class (that map weighed by the gradient of the target).
        crops: folder of detect.crop.
        data: folder with films.csv, or several of them (the flag again for each): patients and
            labels; empty goes without.
        showing: take only films whose label is the target (needs --data).
        most: take at most this many films, drawn by seed; 0 takes all.
        seed: of that draw.
        device: auto, cpu or cuda.
        batch: films at a time.
    """

    films: tuple[str, ...] = ()
    out: str = "runs/maps.safetensors"
    name: str = ""
    ensemble: str = "weights/ensemble_crops"
    target: str = ""
    method: str = "grad_cam"
    crops: str = ""
    data: Several = ""
    showing: bool = False
    most: int = 0
    seed: int = 0
    device: str = "auto"
    batch: int = 8

    def __post_init__(self) -> None:
        if bool(self.films) == bool(self.crops):
            raise ValueError(
                "either FILMS or --crops must be given, and not both. Got "
                f"{len(self.films)} FILMS and --crops {self.crops!r}."
            )
        check_method(self.method, "--method")
        rule = "--showing needs --data, whose films.csv has the labels"
        require(bool(self.data) or not self.showing, rule, self.data)
        require_at_least(self, batch=1, most=0)
        rule = "--out must end in .safetensors"
        require(self.out.endswith(".safetensors"), rule, self.out)


def run_maps(config: MapsConfig) -> int:
    """Make and write the maps; raises ValueError or OSError for what does not fit."""
    from classify.ensemble import Ensemble
    from classify.saliency import to_pixels
    from classify.saliency.maps import check_draws, saliency_maps

    members = Ensemble.load(config.ensemble, config.device)
    target = config.target or members.targets[0]
    net = members.member(target)
    check_draws(config.method, {target: net})
    truths = Truths.load(config.data) if config.data else Truths()
    films: dict[str, Explained] = {}
    names, items = _items(config, truths, target)
    groups, count = batched(items, config.batch), -(-len(names) // config.batch)
    for group in track(groups, "maps", count, console=console, transient=True):
        for item in (i for i in group if i.pixels is None):
            log.warning("%s is left out: %s", item.film, item.reason)
        shown = [(i.film, i.pixels) for i in group if i.pixels is not None]
        if not shown:
            continue
        batch, frames = members.prepare([pixels for _, pixels in shown])
        planes = saliency_maps(net, batch, [TARGET] * len(batch), config.method)
        sizes = [(pixels.shape[0], pixels.shape[1]) for _, pixels in shown]
        for (film, pixels), plane in zip(shown, to_pixels(planes, frames, sizes), strict=True):
            row = truths.of(film).row
            label = ": ".join(filter(None, (row.label, row.sublabel))) if row else ""
            patient = row.patient_id if row else ""
            films[film] = explained(film, patient, printable(label), pixels, plane)
    if not films:
        raise ValueError("none of the films could be read: there is nothing to compare.")
    found = MapSet(config.name or config.method, config.method, target, films)
    save_maps(config.out, found, members.weights)
    empty = sum(f.empty for f in films.values())
    console.print(f"{len(films)} maps ({empty} empty): {config.out}", highlight=False, markup=False)
    return 0


def explained(film: str, patient: str, label: str, pixels: Any, plane: Any) -> Explained:
    """A film (H, W) in [0, 1] and its map (H, W) ≥ 0 at the sizes in which they are kept."""
    pixels, plane = np.asarray(pixels, np.float32), np.asarray(plane, np.float32)
    small = np.maximum(fit(plane, min(MAP_SIDE, max(plane.shape))), 0)
    top = float(small.max())
    picture = to_uint8(np.clip(fit(pixels, min(PICTURE_SIDE, max(pixels.shape))), 0, 1))
    return Explained(film, patient or film, label, picture, small / top if top > 0 else small)


def save_maps(path: str | Path, maps: MapSet, weights: dict[str, str] | None = None) -> Path:
    """Write one method's file atomically."""
    import torch

    from cxr.bundle import save_bundle

    tensors: dict[str, torch.Tensor] = {}
    rows = []
    for number, film in enumerate(maps.films.values()):
        tensors[f"picture.{number}"] = torch.from_numpy(np.ascontiguousarray(film.picture))
        tensors[f"map.{number}"] = torch.from_numpy(np.ascontiguousarray(film.plane, np.float32))
        rows.append({"film": film.film, "patient": film.patient, "label": film.label})
    known = {"name": maps.name, "method": maps.method, "target": maps.target}
    return save_bundle(path, KIND, tensors, half=False, **known, films=rows, weights=weights or {})


def load_maps(path: str | Path) -> MapSet:
    """One method's file; raises FileNotFoundError or ValueError."""
    from cxr.bundle import load_bundle

    bundle = load_bundle(path, KIND)
    films: dict[str, Explained] = {}
    try:
        for number, row in enumerate(bundle.meta["films"]):
            picture = bundle.tensors[f"picture.{number}"].numpy()
            plane = bundle.tensors[f"map.{number}"].numpy()
            if picture.ndim != 2 or plane.ndim != 2 or plane.min() < 0 or plane.max() > 1:
                raise ValueError(
                    f"picture and map of {row['film']!r} must be (H, W), and the map in [0, 1]."
                )
            known = row["film"], row["patient"], row["label"]
            films[row["film"]] = Explained(*known, picture, plane)
        name, method, target = (bundle.meta[key] for key in ("name", "method", "target"))
        return MapSet(name, method, target, films, bundle.sha256)
    except KeyError as error:
        raise ValueError(
            f"{path} must hold a picture and a map for each of its films. {error} is missing."
        ) from error


def load_all(paths: Sequence[str]) -> list[MapSet]:
    """Two files or more, with different names and films in common; raises ValueError."""
    if len(paths) < 2:
        got = f"Got {len(paths)}: make them with the command maps"
        raise ValueError(f"MAPS must be two files or more. {got}.")
    sets = [load_maps(path) for path in paths]
    names = [s.name for s in sets]
    if len(set(names)) < len(names):
        got = f"Got {', '.join(names)}: make one again with --name"
        raise ValueError(f"MAPS must have different names. {got}.")
    if not common_films(sets):
        raise ValueError(f"MAPS must have films in common. Got none in all of {', '.join(paths)}.")
    return sets


def common_films(sets: Sequence[MapSet]) -> list[str]:
    """Films with a map in every set that is not 0 everywhere, in the order of the first."""
    return [f for f in sets[0].films if all(f in s.films and not s.films[f].empty for s in sets)]


def show(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on the terminal."""
    table = Table(*map(printable, head))
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    console.print(table, markup=False)


def _items(config: MapsConfig, truths: Truths, target: str) -> tuple[list[str], Iterator[Item]]:
    """Names and pixels of the films that are wanted; raises ValueError where none is left."""
    every: dict[str, Any] = {}
    if config.crops:
        folder = Path(config.crops)
        every = {name_of(r.film): r for r in read_manifest(folder / "manifest.jsonl")[1]}
    else:
        every = {name_of(p): p for p in list_films(config.films).films}
    names = list(every)
    if config.showing:
        names = [n for n in names if truths.of(n).label_for(target) == TARGET]
    if not names:
        whose = f" whose label is {target}" if config.showing else ""
        raise ValueError(f"no film is left: none was found{whose}.")
    if config.most and config.most < len(names):
        order = np.random.default_rng(config.seed).permutation(len(names))
        names = [names[i] for i in sorted(order[: config.most])]
    wanted = [every[name] for name in names]
    return names, crops_on_disk(wanted, folder) if config.crops else whole_films(wanted, 0)


@dataclass(frozen=True)
class SsimConfig:
    """Compare methods pairwise: the SSIM of their maps of the same films.

    Args:
        maps: two files of maps or more.
        out: file for the figures (.json); empty only prints them.
        draws: bootstrap draws of patients.
        seed: of the draws and of the other films.
    """

    maps: tuple[str, ...] = ()
    out: str = ""
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, draws=1)


@dataclass(frozen=True)
class Likeness:
    """SSIM of two methods: means over films, with intervals by patient. `left_out` films have an
    empty map, or none, under one of the two."""

    first: str
    second: str
    films: int
    left_out: int
    own: Figure
    other: Figure
    own_less_other: Figure


def run_ssim(config: SsimConfig) -> int:
    """Print the table, and write it where asked to; raises ValueError or OSError."""
    sets = load_all(config.maps)
    found = [compare(a, b, config.draws, config.seed) for a, b in combinations(sets, 2)]
    rows = [
        (f"{f.first} – {f.second}", f.films, *map(in_words, (f.own, f.other, f.own_less_other)))
        for f in found
    ]
    show(("methods", "films", "SSIM [95 %]", "with another film", "difference"), rows)
    if config.out:
        about = {"schema": "lungfirst.ssim", "version": 1, **provenance()}
        known = {"maps": {s.name: s.sha256 for s in sets}, "pairs": to_plain(found)}
        write_json(config.out, about | known)
    return 0


def compare(first: MapSet, second: MapSet, draws: int = 1000, seed: int = 0) -> Likeness:
    """Two methods over the films that both explain, of which there must be some."""
    films = common_films([first, second])
    one, two = [first.films[f] for f in films], [second.films[f] for f in films]
    patients = [e.patient for e in one]
    own = np.array([map_ssim(a, b) for a, b in zip(one, two, strict=True)])
    partner = zip(one, other_films(patients, seed), strict=True)
    other = np.array([np.nan if j < 0 else map_ssim(a, two[j]) for a, j in partner])
    means = (mean_figure(values, patients, draws, seed) for values in (own, other, own - other))
    left_out = len({*first.films, *second.films}) - len(films)
    return Likeness(first.name, second.name, len(films), left_out, *means)


def map_ssim(a: Explained, b: Explained) -> float:
    """SSIM of two maps on the picture of `a`."""
    from classify.saliency.maps import WINDOW, ssim_of  # late: it loads torch

    height, width = a.picture.shape
    scale = min(1.0, MAP_SIDE / max(height, width))
    size = max(WINDOW, round(width * scale)), max(WINDOW, round(height * scale))
    planes = [cv2.resize(e.plane, size, interpolation=cv2.INTER_LINEAR) for e in (a, b)]
    return ssim_of(*(p / max(float(p.max()), 1e-12) for p in planes))


def other_films(patients: Sequence[str], seed: int) -> list[int]:
    """For each film another patient's, drawn by seed; -1 where there is none."""
    rng, out = np.random.default_rng(seed), []
    names = np.asarray(patients)
    for name in names:
        others = np.flatnonzero(names != name)
        out.append(int(rng.choice(others)) if len(others) else -1)
    return out
