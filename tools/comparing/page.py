"""A page that asks a reader which of two explanations shows better where the disease is.

One HTML file that needs no other file and no network: pictures are data URIs, style and script are
named by hash in a Content-Security-Policy. The page does not say which method is which: that
stands in the key, a JSON file beside it, which `read` needs and readers should not open. Films, and
the side of each method, are drawn by seed; some films come twice with their sides swapped, to see
whether a reader chooses alike.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from comparing.maps import MapSet, common_films, load_all
from cxr.draw import encode_jpeg, overlay_saliency, to_data_uri, to_rgb
from cxr.page import printable
from cxr.page.build import page_text, to_json
from cxr.rules import require, require_at_least
from cxr.workdir import console, provenance, write_atomic, write_json

QUALITY = 82
QUESTION = "Which picture shows better where the disease is?"
KEY_SCHEMA, VERSION = "lungfirst.comparison", 1


@dataclass(frozen=True)
class PageConfig:
    """Make a page on which readers choose between the explanations of two methods.

    Args:
        maps: two files of maps.
        out: the page (.html); its key is written beside it, as .key.json.
        films: films that are asked about, drawn by seed; 0 takes all that both explain.
        repeats: films that come a second time with their sides swapped.
        question: what is asked.
        seed: of films, order and sides.
    """

    maps: tuple[str, ...] = ()
    out: str = "runs/compare.html"
    films: int = 24
    repeats: int = 4
    question: str = QUESTION
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.maps) == 2, "MAPS must be two files", self.maps)
        require_at_least(self, films=0, repeats=0, seed=0)
        require(self.out.endswith(".html"), "--out must end in .html", self.out)

    @property
    def key_path(self) -> Path:
        """Where the key is written."""
        return Path(self.out).with_suffix(".key.json")


class Trial(NamedTuple):
    """One question: a film, and whether the first method (0) or the second (1) stands left.

    `number` counts from 1 in the order of asking; `repeats` is the number of the trial that asked
    about the same film before, 0 for none.
    """

    number: int
    film: str
    left: int
    repeats: int = 0


def run(config: PageConfig) -> int:
    """Write the page and its key; raises ValueError or OSError."""
    sets = load_all(config.maps)
    trials = draw_trials(common_films(sets), config.films, config.repeats, config.seed)
    page_id = identity(sets, trials, config.question)
    write_json(config.key_path, key_of(sets, trials, page_id, config.question))
    write_atomic(config.out, page_html(sets, trials, page_id, config.question))
    console.print(
        f"{len(trials)} questions: open {config.out} in a browser. The key, not for "
        f"readers: {config.key_path}",
        highlight=False,
        markup=False,
    )
    return 0


def draw_trials(films: list[str], wanted: int, repeats: int, seed: int) -> list[Trial]:
    """Films in random order, each method left in half of them; repeats come after all others."""
    rng = np.random.default_rng(seed)
    count = min(wanted or len(films), len(films))
    chosen = [films[i] for i in rng.permutation(len(films))[:count]]
    sides = rng.permutation([i % 2 for i in range(count)])
    numbered = enumerate(zip(chosen, sides, strict=True), 1)
    first = [Trial(n, film, int(side)) for n, (film, side) in numbered]
    again = enumerate((first[i] for i in rng.permutation(count)[:repeats]), count + 1)
    return [*first, *(Trial(n, t.film, 1 - t.left, t.number) for n, t in again)]


def identity(sets: list[MapSet], trials: list[Trial], question: str) -> str:
    """Id of a page: the same for the same maps, questions and sides."""
    said = [[s.sha256 for s in sets], [[t.film, t.left, t.repeats] for t in trials], question]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def key_of(sets: list[MapSet], trials: list[Trial], page_id: str, question: str) -> dict[str, Any]:
    """What the page does not say: which method stood where."""
    methods = [{k: getattr(s, k) for k in ("name", "method", "target", "sha256")} for s in sets]
    rows = []
    for t in trials:
        film = sets[0].films[t.film]
        who = {"film": t.film, "patient": film.patient, "label": film.label}
        rows.append({"trial": t.number, **who, "left": t.left, "repeats": t.repeats})
    head = {"schema": KEY_SCHEMA, "version": VERSION, **provenance(), "page": page_id}
    return {**head, "question": question, "methods": methods, "trials": rows}


def page_html(sets: list[MapSet], trials: list[Trial], page_id: str, question: str) -> str:
    """The whole page; every text is escaped, control characters are spelt out."""
    shown = []
    for t in trials:
        film = sets[0].films[t.film]
        sides = (sets[k].films[t.film].plane for k in (t.left, 1 - t.left))
        left, right = (overlay_uri(film.picture, plane) for plane in sides)
        pictures = {"film": _uri(film.picture), "left": left, "right": right}
        shown.append({"trial": t.number, **pictures, "label": printable(film.label)})
    data = to_json({"page": page_id, "trials": shown})
    about = {"question": question, "page": page_id, "trials": len(shown), "data": data}
    return page_text(Path(__file__).with_name("page.html"), **about)


def overlay_uri(picture: np.ndarray, plane: np.ndarray) -> str:
    """A map over the film (H, W), in inferno colours."""
    plane = cv2.resize(plane, picture.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return _uri(overlay_saliency(to_rgb(picture), np.maximum(plane, 0)))


def _uri(image: np.ndarray) -> str:
    return to_data_uri(encode_jpeg(image, QUALITY))
