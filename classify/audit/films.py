"""From a run's films to what each member saw and where the lungs were, batch by batch.

Films are read from where they lay when the run was made; one that has changed since is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from classify.audit.truth import Truth, Truths
from classify.inputs import name_of
from classify.predictions import PredictionRow, read_predictions
from cxr.boxes import Frame
from cxr.film import Film, list_films
from cxr.manifest import CropRow, read_manifest
from cxr.stream import Unread, batched, default_jobs, read_ahead
from detect.lungfield.field import LungField, cut_edges, disagreement
from detect.predict import ThoraxDetector

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class RunFilm:
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

    def refusal(self, film: Film | Unread) -> str:
        """Why the film cannot be judged again; "" for one that can."""
        if isinstance(film, Unread):
            return str(film)
        changed = self.boxed and self.boxed.sha256 and self.boxed.sha256 != film.sha256
        return "the film has changed since the run was made" if changed else ""


@dataclass(eq=False)
class AuditFilm:
    """One film as it is judged. All of it in the film's pixels, but for `pixels`.

    `pixels` (h, w) are what the members saw: the film, or its crop; `listed.crop` leads back.
    `lung` (H, W) bool may be empty, and is None where nobody asked for it. `box_xyxy` is None where
    the detector is not sure of it. `reason` says why there is nothing to judge, and then `film` is
    None.
    """

    listed: RunFilm
    truth: Truth
    film: Film | None = None
    reason: str = ""
    pixels: np.ndarray | None = None
    lung: np.ndarray | None = None
    lung_by: str = ""
    box_xyxy: Box | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the film."""
        assert self.film is not None
        return self.film.pixels.shape[0], self.film.pixels.shape[1]

    @property
    def seen_xyxy(self) -> Box:
        """What the members saw, in film pixels; a crop may reach beyond the film."""
        if self.listed.crop is not None:
            x0, y0, x1, y1 = self.listed.crop.source_xyxy
            return float(x0), float(y0), float(x1), float(y1)
        height, width = self.size_hw
        return 0.0, 0.0, float(width), float(height)

    @property
    def patient(self) -> str:
        """Id to group films by: the table's, the hashed one of the file, or the film's name."""
        known = self.truth.row.patient_id if self.truth.row else ""
        return known or (self.film.patient if self.film else "") or self.listed.name

    @property
    def field_disagreement(self) -> float | None:
        """1 − IoU of the lung field's box and the thorax box; None without either."""
        known = self.lung is not None and self.box_xyxy is not None
        return disagreement(self.lung, self.box_xyxy) if known else None  # type: ignore[arg-type]

    @property
    def cut_edges(self) -> tuple[str, ...]:
        """The film's edges into which the lung field runs."""
        return () if self.lung is None else cut_edges(self.lung)


@dataclass(frozen=True)
class Run:
    """A folder of classify.run: its films, whether the members saw crops, the folder of the members
    that judged it, and their SHA-256."""

    films: list[RunFilm]
    targets: tuple[str, ...]
    cropped: bool
    ensemble: Path
    members: Mapping[str, str] = field(default_factory=dict)


def read_run(folder: str | Path, crops: str | Path | None = None) -> Run:
    """Films of a run with their boxes; `crops` is a folder of detect.crop over the same films.

    Raises ValueError for a folder that is none of classify.run, or whose crops are gone.
    """
    folder = Path(folder)
    made = _read_record(folder)
    config, cropped = made["config"], made["config"].get("crops") is not None
    targets, predictions = read_predictions(folder / "predictions.csv")
    place = crops or (_crops_of(made, folder) if cropped else None)
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
        readable = crop_row is not None and crop_row.readable
        if cropped and row.logits is not None and not readable:
            raise ValueError(
                f"{place} must hold the crops that {folder} was made from. {row.film} "
                "is not among them: give the right --crops."
            )
        frame = crop_row.to_frame() if crop_row and cropped and readable else None
        films.append(RunFilm(row, paths.get(row.film, Path(row.film)), frame, crop_row))
    members = made.get("settings", {}).get("members", {})
    return Run(films, targets, cropped, _ensemble_of(made, cropped), members)


def _read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a run; a dict with its `config`."""
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(
            f"RUN must be a folder of classify.run. {folder} holds no run.json: make "
            "one with python -m classify.run FILMS --crops"
        )
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        return {**made, "config": dict(made["config"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be the run.json of classify.run. It cannot be read "
            f"({type(error).__name__}): make the run again."
        ) from error


def _crops_of(made: Mapping[str, Any], folder: Path) -> Path:
    """Where a run on crops keeps them: in its own folder, wherever that lies now, or where run.json
    says; a run that recorded no folders has them where it was told, or where they lie by default.
    """
    config = made["config"]
    if config.get("films") and not config["crops"]:
        return folder / "crops"
    return Path(made.get("folders", {}).get("crops") or config["crops"] or "runs/crops")


def _ensemble_of(made: Mapping[str, Any], cropped: bool) -> Path:
    """The folder of the members, as the run recorded it or was told, or the one by default."""
    named = made.get("folders", {}).get("ensemble") or made["config"].get("ensemble")
    return Path(named or f"weights/ensemble_{'crops' if cropped else 'films'}")


def read_films(
    films: Sequence[RunFilm],
    truths: Truths,
    field: LungField,
    detector: ThoraxDetector | None = None,
    lungs: Container[str] | None = None,
    boxes: Container[str] | None = None,
    jobs: int = -1,
    batch: int = 8,
) -> Iterator[list[AuditFilm]]:
    """Films in batches, each read, boxed and segmented once; at most a batch is held.

    `lungs` and `boxes` name the films whose lung field and thorax box are wanted (None: all). A
    human lung mask takes the network's place, and `detector` boxes the films that have no box yet.
    `jobs` processes read; -1 takes up to four, and none for a few films.
    """
    jobs = default_jobs(len(films)) if jobs < 0 else jobs
    read = zip(films, read_ahead([f.path for f in films], jobs), strict=True)
    for group in batched(((listed, film) for listed, (_, film) in read), batch):
        out = [_audit_film(listed, truths.of(listed.name), film) for listed, film in group]
        good = [(f, f.film) for f in out if f.film is not None]
        wanted = [(f, film) for f, film in good if lungs is None or f.listed.name in lungs]
        drawn = draw_lungs([(f.truth, film) for f, film in wanted], lambda: field)
        for (f, _), (lung, by) in zip(wanted, drawn, strict=True):
            f.lung, f.lung_by = lung, by
        wanted = [(f, film) for f, film in good if boxes is None or f.listed.name in boxes]
        unboxed = [(f, film.pixels) for f, film in wanted if f.listed.boxed is None]
        if detector is not None and unboxed:
            found = detector.predict([pixels for _, pixels in unboxed])
            for (f, _), box in zip(unboxed, found, strict=True):
                f.box_xyxy = _sure_box(box.status, box.xyxy)
        yield out


def _audit_film(listed: RunFilm, truth: Truth, film: Film | Unread) -> AuditFilm:
    why, boxed = listed.refusal(film), listed.boxed
    if why or isinstance(film, Unread):
        return AuditFilm(listed, truth, reason=why)
    shown = film.pixels if listed.crop is None else listed.crop.apply(film.pixels)
    box = None if boxed is None else _sure_box(boxed.status, boxed.thorax_xyxy)
    return AuditFilm(listed, truth, film, "", shown, box_xyxy=box)


def draw_lungs(
    films: Sequence[tuple[Truth, Film]], field: Callable[[], LungField]
) -> list[tuple[np.ndarray, str]]:
    """(H, W) bool in each film's pixels, and who drew it (human or lungfield): the network that
    `field` gives is asked only for the films without a human mask."""
    drawn = [truth.read_lungs((f.pixels.shape[0], f.pixels.shape[1])) for truth, f in films]
    rest = [film.pixels for (_, film), mask in zip(films, drawn, strict=True) if mask is None]
    planes = iter(field().segment(rest) if rest else [])
    return [
        (next(planes) > field().threshold, "lungfield") if mask is None else (mask, "human")
        for mask in drawn
    ]


def _sure_box(status: str, xyxy: Sequence[float] | None) -> Box | None:
    """The box of a manifest's row or of the detector."""
    if status != "ok" or xyxy is None:
        return None
    x0, y0, x1, y1 = (float(v) for v in xyxy)
    return x0, y0, x1, y1
