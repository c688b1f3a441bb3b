"""How alike two methods' maps of the same films are: SSIM, beside that of different films.

Maps are laid on the film's own shape, at most 128 px long, each with its highest value as 1, and
compared by the SSIM of `classify.saliency.maps` (Wang et al. 2004). Two methods that both draw a
blob in the middle of every film are alike without having looked: so each film's map is also
compared with the other method's map of another patient's film, and `own_less_other` is what the
films themselves add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

from comparing.maps import MAP_SIDE, Explained, MapSet, common_films, load_all, show
from cxr.cli import to_plain
from cxr.rules import require_at_least
from cxr.stats import Figure, in_words, mean_figure
from cxr.workdir import provenance, write_json


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


def run(config: SsimConfig) -> int:
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
    """Two methods over the films that both explain; raises ValueError where there are none."""
    films = common_films([first, second])
    if not films:
        raise ValueError(f"{first.name} and {second.name} must have films in common. Got none.")
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
