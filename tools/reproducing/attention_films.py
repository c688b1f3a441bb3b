"""One trained network, film by film: where its map's energy lies, read and measured in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classify.audit.films import draw_lungs
from classify.audit.metrics import Regions, measure
from classify.audit.truth import Truths
from classify.bundles import Single
from classify.ensemble import prepare_films
from classify.films import Case
from classify.saliency.maps import explain, saliency_maps, to_pixels
from classify.saliency.methods import OWN_MAPS
from classify.saliency.own import explains_itself
from cxr.boxes import Frame
from cxr.devices import pick_device
from cxr.film import Film
from cxr.stream import Unread, batched, default_jobs, read_ahead
from detect.lungfield.field import LungField

WHOLE = ""  # the network's own map among those of its nets


@dataclass(frozen=True)
class FilmLook:
    """One film: the lift of the network's map, of each net's own and of those that the network
    draws itself; None without energy or lungs.

    `empty`: the network's map is 0 everywhere.
    """

    patient: str
    lung_by: str
    empty: bool
    lifts: dict[str, float | None]


class Lungs:
    """People's masks, and the network's field where there is none; that is loaded when it is first
    asked for."""

    def __init__(self, truths: Truths, path: str, device: str) -> None:
        self.truths, self.path, self.device = truths, path, device
        self._field: LungField | None = None

    def draw(self, cases: Sequence[Case], films: Sequence[Film]) -> list[tuple[np.ndarray, str]]:
        """(H, W) bool in each film's pixels, and who drew it (human or lungfield)."""
        truths = [self.truths.of(case.row.image) for case in cases]
        return draw_lungs(list(zip(truths, films, strict=True)), self._load)

    def _load(self) -> LungField:
        if self._field is None:
            self._field = LungField.load(self.path, self.device)
        return self._field


def look_at_films(
    single: Single,
    cases: Sequence[Case],
    lungs: Lungs,
    batch: int,
    device: str,
    left_out: Counter[str],
) -> Iterator[FilmLook]:
    """What the network answered on each film and where it looked for it.

    Films are read once each and at most a batch is held; those that cannot be measured are counted
    in `left_out` by reason.
    """
    on = pick_device(device)
    single.net.to(on)
    read = read_ahead([case.film for case in cases], default_jobs(len(cases)))
    pairs = ((case, film) for case, (_, film) in zip(cases, read, strict=True))
    for group in batched(pairs, batch):
        good: list[tuple[Case, Film]] = []
        for case, film in group:
            why = _refusal(case, film)
            if isinstance(film, Film) and not why:
                good.append((case, film))
            else:
                left_out[why] += 1
        if good:
            yield from _look(single, good, lungs, on)


def _look(
    single: Single, good: Sequence[tuple[Case, Film]], lungs: Lungs, device: Any
) -> Iterator[FilmLook]:
    crops = [case.crop_row.to_frame() if case.crop_row else None for case, _ in good]
    shown = [
        film.pixels if crop is None else crop.apply(film.pixels)
        for crop, (_, film) in zip(crops, good, strict=True)
    ]
    sizes = [(p.shape[0], p.shape[1]) for p in shown]
    batch, frames = prepare_films(shown, single.settings, device)
    found = explain(single.net, batch)
    own = OWN_MAPS if explains_itself(single.net) else ()
    every = {WHOLE: found.maps, **found.nets}
    every |= {name: saliency_maps(single.net, batch, found.classes, name) for name in own}
    maps = {name: to_pixels(planes, frames, sizes) for name, planes in every.items()}
    drawn = lungs.draw([case for case, _ in good], [film for _, film in good])
    for n, ((case, _), crop, (lung, who)) in enumerate(zip(good, crops, drawn, strict=True)):
        seen = None if crop is None else crop.source_xyxy
        regions = Regions(lung, seen_xyxy=seen)
        figures = {name: _measure(planes[n], regions, crop) for name, planes in maps.items()}
        yield FilmLook(
            case.patient,
            who,
            bool(figures[WHOLE]["empty"]),
            {name: values["lift"] for name, values in figures.items()},
        )


def _measure(plane: np.ndarray, regions: Regions, crop: Frame | None) -> dict[str, Any]:
    on_film = plane if crop is None else crop.restore(plane, regions.lung.shape)
    return measure(on_film, regions, draws=1)  # the random maps beside the lift are not asked for


def _refusal(case: Case, film: Film | Unread) -> str:
    """Why a film cannot be measured; "" for one that can."""
    if isinstance(film, Unread):
        return f"cannot be read: {film.reason}"
    row = case.crop_row
    changed = row is not None and bool(row.sha256) and row.sha256 != film.sha256
    return "changed since the crop was made" if changed else ""
