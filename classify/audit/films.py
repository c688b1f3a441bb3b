"""From a run's films to what each member saw and where the lungs were, batch by batch; and what
people know of a film: its label and patient, its lungs, and the findings they boxed.

Films are read from where they lay when the run was made; one that has changed since is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from classify.audit.rows import UNKNOWN
from classify.members import label_of
from classify.predictions import PredictionRow, name_of, read_predictions
from cxr.boxes import Frame, as_boxes, clip_xyxy, turn_xyxy
from cxr.data_folders import Data, DataFolders
from cxr.film import Film, list_films
from cxr.films_table import FilmNames, FilmRow, is_among, read_finding_boxes, tell_unknown
from cxr.manifest import CropRow, read_manifest
from cxr.rules import require
from cxr.split import Split
from cxr.stream import Unread, batched, default_jobs, read_ahead
from cxr.workdir import log, read_json
from detect.finder import ThoraxFinder
from detect.lungfield.field import LungField, cut_edges, disagreement

if TYPE_CHECKING:  # of films alone others ask, who have no need of torch
    import torch

    from classify.ensemble import Ensemble

FINDINGS = "finding_boxes.csv"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Truth:
    """What is known of one film; a film that no table lists has none of it."""

    row: FilmRow | None = None
    mask: Path | None = None
    findings_xyxy: tuple[Box, ...] = ()
    known: tuple[str, ...] = ()  # the members' targets, which are words of the labels too
    turned: int = 0  # degrees by which the film was set upright; mask and findings lie as read

    def label_for(self, target: str) -> int:
        """NORMAL, TARGET or OTHERS for a member, UNKNOWN where the label does not say."""
        found = None if self.row is None else label_of(self.row, target, known=self.known)
        return UNKNOWN if found is None else found

    def read_lungs(self, size_hw: tuple[int, int]) -> np.ndarray | None:
        """The human lung mask (H, W) bool in the film's pixels, or None: where there is none, it
        cannot be read, is empty, or has another shape than the film."""
        if self.mask is None or not self.mask.is_file():
            return None
        raw = np.fromfile(self.mask, np.uint8)
        found = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE) if raw.size else None  # it raises for none
        height, width = self._lay(size_hw)
        why = "cannot be read or is empty"
        if found is not None and (found > 127).any():
            if abs(found.shape[0] * width / (found.shape[1] * height) - 1) <= 0.01:
                scaled = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)
                return np.ascontiguousarray(np.rot90(scaled > 127, self.turned // 90))
            why = "has another shape than its film"
        log.warning("%s %s: the network's lung field is taken", self.mask, why)
        return None

    def findings_on(self, size_hw: tuple[int, int]) -> np.ndarray:
        """(N, 4) radiologists' boxes in the film's pixels; those that miss the film are left out.
        The boxes are in the pixels of the table's picture, which the film must have."""
        lay_hw = self._lay(size_hw)
        boxes = turn_xyxy(clip_xyxy(as_boxes(self.findings_xyxy), lay_hw), lay_hw, self.turned)
        whole = np.rint(boxes)  # as the metrics round them: a box must hold a pixel
        return np.asarray(boxes[(whole[:, 2:] > whole[:, :2]).all(1)])

    def _lay(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the film before it was set upright."""
        return (size_hw[1], size_hw[0]) if self.turned % 180 else size_hw


@dataclass(frozen=True)
class Truths:
    """All that the folders' tables say, by the film's name in them; found by the end of a path."""

    by_name: dict[str, Truth] = field(default_factory=dict)

    @classmethod
    def load(cls, data: Data, human_masks: bool = True, known: Sequence[str] = ()) -> Truths:
        """films.csv of the folders, masks and finding_boxes.csv where there are any; `known` are
        the members' targets. Raises OSError or ValueError."""
        folders = DataFolders(data)
        rows = folders.rows()
        findings: dict[str, tuple[Box, ...]] = {}
        for path in folders.files(FINDINGS):
            own: dict[str, tuple[Box, ...]] = {}
            for image, _, (x, y, w, h) in read_finding_boxes(path):
                own[image] = (*own.get(image, ()), (x, y, x + w, y + h))
            findings = own | findings  # a film of two folders has its boxes once
        by_name = {}
        tell_unknown(rows, folders.named("films.csv"), known)
        for row in rows:
            mask = folders / row.mask if row.mask and human_masks else None
            boxes = findings.get(row.image, ())
            by_name[name_of(row.image)] = Truth(row, mask, boxes, tuple(known))
        return cls(by_name)

    def of(self, film: str) -> Truth:
        """What is known of a film by its name in a run."""
        name = self._names.find(film)
        return Truth() if name is None else self.by_name[name]

    @cached_property
    def _names(self) -> FilmNames:
        return FilmNames(self.by_name)

    def select(
        self, films: Iterable[str], split: Split, part: str, trained_on: Sequence[str]
    ) -> list[str]:
        """The names of the films of one part of the split, in their order. `part` cuts the sources
        that the members were trained on. Every film of other sources is held out, so all are taken,
        but for `train`, which is what the members have seen. Raises ValueError for a part that the
        split does not have."""
        parts = sorted(set(split.part_of.values()))
        require(part in parts, f"--part must be a part of the split: {', '.join(parts)}", part)

        def is_chosen(film: str) -> bool:
            row = self.of(film).row
            if row is None or not is_among(row.source, trained_on):
                return row is not None and part != "train"
            return split.part_of.get(row.patient_id) == part

        return [film for film in films if is_chosen(film)]


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


@dataclass(eq=False)
class AuditFilm:
    """One film as it is judged. All of it in the film's pixels, but for `pixels`; a film that lay
    turned when it was cropped is upright here, for no network knows lungs that lie. `pixels` (h, w)
    are what the members saw: the film, or its crop; `listed.crop` leads back. `lung` (H, W) bool
    may be empty, and is None where nobody asked for it. `box_xyxy` is None where the detector is
    not sure of it. `reason` says why there is nothing to judge, and then `film` is None."""

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


@dataclass(frozen=True, eq=False)
class Prepared:
    """Films that the members saw, and their input (N, 3, side, side) with the Frames back."""

    films: list[AuditFilm]
    batch: torch.Tensor
    frames: list[Frame]

    @classmethod
    def of(cls, films: Sequence[AuditFilm], members: Ensemble) -> Prepared | None:
        """Those of the films that the members saw; None where there is none."""
        seen = [(film, film.pixels) for film in films if film.pixels is not None]
        if not seen:
            return None
        return cls([f for f, _ in seen], *members.prepare([pixels for _, pixels in seen]))

    def only(self, films: Sequence[AuditFilm]) -> Prepared | None:
        """Those of these films; None where there is none."""
        own = [n for n, film in enumerate(self.films) if film in films]
        if not own:
            return None
        frames = [self.frames[n] for n in own]
        return Prepared([self.films[n] for n in own], self.batch[own], frames)


@dataclass(frozen=True)
class Run:
    """A folder of classify.run: its films, whether the members saw crops, the folder of the members
    that judged it, and their SHA-256; and what it recorded of a classifier that was trained
    elsewhere, for which the folder may hold a screener and the thresholds of the flags."""

    films: list[RunFilm]
    targets: tuple[str, ...]
    cropped: bool
    ensemble: Path
    members: Mapping[str, str] = field(default_factory=dict)
    foreign: Mapping[str, Any] = field(default_factory=dict)


def read_run(folder: str | Path, crops: str | Path | None = None) -> Run:
    """Films of a run with their boxes; `crops` is a folder of detect.crop over the same films.
    Raises ValueError for a folder that is none of classify.run, or whose crops are gone."""
    folder = Path(folder)
    made = _read_record(folder)
    if several := made.get("settings", {}).get("ensembles"):
        raise ValueError(
            f"RUN must be judged by one ensemble. {folder} was by {', '.join(several)}: make a run "
            "with --ensemble for each."
        )
    config, folders, cropped = made["config"], made.get("folders", {}), False
    place = crops
    if config.get("crops") is not None:
        # crops of its own lie in the run's folder, wherever that lies now; others where run.json
        # says, or by default
        own = config.get("films") and not config["crops"]
        named = folders.get("crops") or config["crops"] or "runs/crops"
        cropped, place = True, crops or (folder / "crops" if own else Path(named))
    targets, predictions = read_predictions(folder / "predictions.csv")
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
    foreign = made.get("settings", {}).get("model", {})
    named = folders.get("ensemble") or config.get("ensemble")
    usual = folder if foreign else Path(f"weights/ensemble_{'crops' if cropped else 'films'}")
    return Run(films, targets, cropped, Path(named or usual), members, foreign)


def _read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a run; a dict with its `config`."""
    path = folder / "run.json"
    if not path.is_file():
        raise ValueError(
            f"RUN must be a folder of classify.run. {folder} holds no run.json: make "
            "one with python -m classify.run FILMS --crops"
        )
    try:
        made = read_json(path)
        return {**made, "config": dict(made["config"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be the run.json of classify.run. It is not: make the run again."
        ) from error


def read_films(
    films: Sequence[RunFilm],
    truths: Truths,
    field: LungField,
    finder: ThoraxFinder | None = None,
    lungs: Container[str] | None = None,
    boxes: Container[str] | None = None,
    jobs: int = -1,
    batch: int = 8,
) -> Iterator[list[AuditFilm]]:
    """Films in batches, each read, boxed and segmented once; at most a batch is held. `lungs` and
    `boxes` name the films whose lung field and thorax box are wanted (None: all). A human lung mask
    takes the network's place, and `finder` boxes the films that have no box yet. `jobs` processes
    read; -1 takes up to four, and none for a few films."""
    jobs = default_jobs(len(films), jobs)
    stream = read_ahead([f.path for f in films], jobs, for_processing=True)  # as the run let in
    read = zip(films, stream, strict=True)
    for group in batched(((listed, film) for listed, (_, film) in read), batch):
        out = [_audit_film(listed, truths.of(listed.name), film) for listed, film in group]
        good = [(f, f.film) for f in out if f.film is not None]
        wanted = [(f, film) for f, film in good if lungs is None or f.listed.name in lungs]
        drawn = draw_lungs([(f.truth, film) for f, film in wanted], lambda: field)
        for (f, _), (lung, by) in zip(wanted, drawn, strict=True):
            f.lung, f.lung_by = lung, by
        wanted = [(f, film) for f, film in good if boxes is None or f.listed.name in boxes]
        unboxed = [(f, film.pixels) for f, film in wanted if f.listed.boxed is None]
        if finder is not None and unboxed:
            found = finder.predict([pixels for _, pixels in unboxed])
            for (f, _), box in zip(unboxed, found, strict=True):
                f.box_xyxy = _sure_box(box.status, box.xyxy)
        yield out


def _audit_film(listed: RunFilm, truth: Truth, film: Film | Unread) -> AuditFilm:
    boxed = listed.boxed
    if isinstance(film, Unread):
        return AuditFilm(listed, truth, reason=str(film))
    if boxed and boxed.sha256 and boxed.sha256 != film.sha256:
        return AuditFilm(listed, truth, reason="the film has changed since the run was made")
    crop, size_hw = listed.crop, (film.pixels.shape[0], film.pixels.shape[1])
    shown = film.pixels if crop is None else crop.apply(film.pixels)
    at = None if boxed is None else boxed.on_film(boxed.thorax_xyxy, size_hw)
    if crop and crop.turned:
        upright = np.ascontiguousarray(np.rot90(film.pixels, crop.turned // 90))
        film, truth = replace(film, pixels=upright), replace(truth, turned=crop.turned)
        listed = replace(listed, crop=replace(crop, turned=0, film_hw=None))
        at = None if at is None else turn_xyxy(at, size_hw, crop.turned)[0]
    box = None if boxed is None else _sure_box(boxed.status, at)
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


def _sure_box(status: str, xyxy: Any) -> Box | None:
    """The box of a manifest's row or of the detector."""
    found: Any = None if status != "ok" or xyxy is None else tuple(float(v) for v in xyxy)
    return found
