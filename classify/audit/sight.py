"""From a run's films to what each member saw and where the lungs were, batch by batch.

A Sight holds one film with all that the audit asks of it: the pixels that the members saw, the way
back to the film, the thorax box, the lung field and who drew it. Films are read from where they
lay when the run was made; a film that has changed since is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from classify.audit.truth import Truth, Truths
from classify.inputs import name_of
from classify.predictions import PredictionRow, read_predictions
from cxr.boxes import Frame
from cxr.film import Film, list_films
from cxr.manifest import CropRow, read_manifest
from cxr.stream import batched, read_ahead

LUNG = 0.5  # probability above which a pixel is lung field


class Segments(Protocol):
    """What is needed of a LungField."""

    def segment(self, films: Sequence[np.ndarray]) -> list[np.ndarray]:
        """N films (H, W) to N probabilities (H, W)."""
        ...


class FindsBoxes(Protocol):
    """What is needed of a ThoraxDetector."""

    def predict(self, films: list[np.ndarray]) -> Sequence[Any]:
        """A box with `xyxy` and `status` for each film (H, W)."""
        ...


@dataclass(frozen=True)
class Seen:
    """One film of the run. `crop` is None where the members saw the whole film, or nothing;
    `boxed` is its thorax box as detect.crop found it, None where nobody has looked yet."""

    prediction: PredictionRow
    path: Path
    crop: Frame | None = None
    boxed: CropRow | None = None

    @property
    def name(self) -> str:
        """The film's name in every table."""
        return self.prediction.film


@dataclass(frozen=True, eq=False)
class Sight:
    """One film as it is judged. All of it in the film's pixels, but for `pixels`.

    `pixels` (h, w) are what the members saw: the film, or its crop; `crop` leads back. `lung`
    (H, W) bool may be empty. `box_xyxy` is None where the detector is not sure of it. `reason` says
    why there is nothing to judge, and then `film` is None.
    """

    seen: Seen
    truth: Truth
    film: Film | None = None
    reason: str = ""
    pixels: np.ndarray | None = None
    crop: Frame | None = None
    lung: np.ndarray | None = None
    lung_by: str = ""
    box_xyxy: tuple[float, float, float, float] | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the film."""
        assert self.film is not None
        return self.film.pixels.shape[0], self.film.pixels.shape[1]

    @property
    def seen_xyxy(self) -> tuple[float, float, float, float]:
        """What the members saw, in film pixels; a crop may reach beyond the film."""
        if self.crop is not None:
            x0, y0, x1, y1 = self.crop.source_xyxy
            return float(x0), float(y0), float(x1), float(y1)
        height, width = self.size_hw
        return 0.0, 0.0, float(width), float(height)

    @property
    def patient(self) -> str:
        """Id to group films by: the table's, the hashed one of the file, or the film's name."""
        known = self.truth.row.patient_id if self.truth.row else ""
        return known or (self.film.patient if self.film else "") or self.seen.name

    def without_pixels(self) -> Sight:
        """What is known of the film, small enough to be kept for every film of a run."""
        film = None if self.film is None else replace(self.film, pixels=np.zeros((0, 0)))
        return replace(self, film=film, pixels=None, lung=None)


@dataclass(frozen=True)
class Run:
    """A folder of classify.run: its films, how it was made, and the SHA-256 of its members."""

    films: list[Seen]
    targets: tuple[str, ...]
    config: Mapping[str, Any]
    members: Mapping[str, str] = field(default_factory=dict)

    @property
    def cropped(self) -> bool:
        """Did the members see crops?"""
        return self.config.get("crops") is not None

    @property
    def ensemble(self) -> Path:
        """The folder of the members that judged it."""
        return Path(
            self.config.get("ensemble")
            or f"weights/ensemble_{'crops' if self.cropped else 'films'}"
        )


def read_run(folder: str | Path, crops: str | Path | None = None) -> Run:
    """Films of a run with their boxes; `crops` is a folder of detect.crop over the same films.

    Raises ValueError for a folder that is none of classify.run, or whose crops are gone.
    """
    folder = Path(folder)
    record = folder / "run.json"
    if not record.is_file():
        raise ValueError(
            f"RUN must be a folder of classify.run. {folder} holds no run.json: make "
            "one with python -m classify.run FILMS --crops"
        )
    made, config = _read_record(record)
    targets, predictions = read_predictions(folder / "predictions.csv")
    cropped = config.get("crops") is not None
    place = crops or (_crops_of(config, folder) if cropped else None)
    boxed = {name_of(r.film): r for r in read_manifest(place)[1]} if place else {}
    paths = {name: Path(row.film) for name, row in boxed.items()}
    if not cropped:  # names spell out odd characters, so they do not lead back to the files
        there = [p for p in config.get("films") or () if Path(p).exists()]
        paths |= {name_of(p): p for p in list_films(there).films}
    if crops and predictions and not boxed.keys() & {row.film for row in predictions}:
        raise ValueError(
            f"--crops must hold the films of {folder} under the same paths. {crops} "
            f"holds none of them, such as {predictions[0].film}."
        )
    films = []
    for row in predictions:
        crop_row = boxed.get(row.film)
        if cropped and row.logits is not None and (crop_row is None or not crop_row.readable):
            raise ValueError(
                f"{place} must hold the crops that {folder} was made from. {row.film} "
                "is not among them: give the right --crops."
            )
        frame = crop_row.to_frame() if cropped and crop_row and crop_row.readable else None
        films.append(Seen(row, paths.get(row.film, Path(row.film)), frame, crop_row))
    return Run(films, targets, config, made.get("settings", {}).get("members", {}))


def _read_record(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run.json and the configuration in it."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        return made, dict(made["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be the run.json of classify.run. It cannot be read "
            f"({type(error).__name__}): make the run again."
        ) from error


def iter_sights(
    films: Sequence[Seen],
    truths: Truths,
    field: Segments,
    detector: FindsBoxes | None,
    jobs: int = 0,
    batch: int = 8,
) -> Iterator[list[Sight]]:
    """Films in batches, each read, boxed and segmented once; at most a batch is held.

    `detector` boxes the films that have no box yet. A human lung mask takes the network's place.
    """
    by_path = iter(films)
    read = read_ahead([f.path for f in films], jobs)
    pairs = ((next(by_path), film) for _, film in read)
    for group in batched(pairs, batch):
        yield list(_to_sights(group, truths, field, detector))


def _to_sights(
    group: Sequence[tuple[Seen, Any]], truths: Truths, field: Segments, detector: FindsBoxes | None
) -> Iterator[Sight]:
    whys = [_refusal(seen, film) for seen, film in group]
    good = [
        (seen, truths.of(seen.name), film)
        for (seen, film), why in zip(group, whys, strict=True)
        if not why
    ]
    lungs = draw_lungs([(truth, film) for _, truth, film in good], field.segment)
    found = iter(zip(good, lungs, _boxes(good, detector), strict=True))
    for (seen, _), why in zip(group, whys, strict=True):
        if why:
            yield Sight(seen, truths.of(seen.name), reason=why)
            continue
        (seen, truth, film), (lung, lung_by), box = next(found)
        shown = film.pixels if seen.crop is None else seen.crop.apply(film.pixels)
        yield Sight(seen, truth, film, "", shown, seen.crop, lung, lung_by, box)


def draw_lungs(
    films: Sequence[tuple[Truth, Film]], segment: Callable[[Sequence[np.ndarray]], list[np.ndarray]]
) -> list[tuple[np.ndarray, str]]:
    """(H, W) bool in each film's pixels, and who drew it (human or lungfield): the network
    (`segment`) is asked only for the films without a human mask."""
    drawn = [truth.read_lungs((f.pixels.shape[0], f.pixels.shape[1])) for truth, f in films]
    rest = [film.pixels for (_, film), mask in zip(films, drawn, strict=True) if mask is None]
    planes = iter(segment(rest) if rest else [])
    return [
        (next(planes) > LUNG, "lungfield") if mask is None else (mask, "human") for mask in drawn
    ]


def _boxes(
    good: Sequence[tuple[Seen, Truth, Film]], detector: FindsBoxes | None
) -> list[tuple[float, float, float, float] | None]:
    """Each film's thorax box where the detector is sure of it; only unboxed films are boxed."""
    rest = [film.pixels for seen, _, film in good if seen.boxed is None]
    fresh = iter(detector.predict(rest) if detector is not None and rest else [])
    found: list[Any] = [next(fresh, None) if s.boxed is None else s.boxed for s, _, _ in good]
    return [_sure_box(box) for box in found]


def _refusal(seen: Seen, film: Any) -> str:
    """Why a film cannot be judged again; "" for one that can."""
    if not isinstance(film, Film):
        return str(film)
    if seen.boxed is not None and seen.boxed.sha256 and seen.boxed.sha256 != film.sha256:
        return "the film has changed since the run was made"
    return ""


def _sure_box(found: Any) -> tuple[float, float, float, float] | None:
    """The box of a manifest's row or of the detector."""
    xyxy = getattr(found, "thorax_xyxy", None) or getattr(found, "xyxy", None)
    if found is None or found.status != "ok" or xyxy is None:
        return None
    x0, y0, x1, y1 = (float(v) for v in xyxy)
    return x0, y0, x1, y1


def _crops_of(config: Mapping[str, Any], folder: Path) -> Path:
    """Where a run on crops keeps them: in its own folder, or where it was told."""
    named = config.get("crops")
    if named:
        return Path(named)
    return folder / "crops" if config.get("films") else Path("runs/crops")
