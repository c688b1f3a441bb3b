"""The audit's controls on a run's films: lungs blacked out, weights made random, pixels taken away.

Each trial gives the rows that the page and audit.json show. What they mean stands in
classify.audit.masking, classify.audit.randomise and classify.audit.road.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from rich.progress import track

from classify.audit.compare import NO_SOURCE
from classify.audit.controls import Asked, Screens, control_table
from classify.audit.look import member_maps
from classify.audit.masking import MaskedFilm, control_logits
from classify.audit.randomise import another_film, randomisation_curve
from classify.audit.road import road_films
from classify.audit.rows import UNKNOWN
from classify.audit.sight import Sight
from classify.audit.truth import Truth
from classify.ensemble import Ensemble
from classify.evaluate import QUESTIONS, Question, ensemble_score
from classify.films import Case
from classify.labels import TARGET
from classify.saliency.maps import saliency_maps
from cxr.boxes import Frame
from cxr.workdir import console, log

SEEDS = (0, 1, 2)  # of the random weights
_AT_A_TIME = 16  # films
AREAS = {"road_area": ("lerf", "morf"), "road_over_random": ("random", "morf")}
Row = dict[str, Any]
Item = TypeVar("Item")
Batches = Callable[[], Iterable[list[Sight]]]  # every call goes through the films anew


def masked_rows(
    members: Ensemble,
    batches: Batches,
    screener: Screens | None,
    seed: int,
    draws: int,
    total: int | None = None,
) -> tuple[list[Row], int]:
    """Rows of `control_table`, by source and all together, and how many films had no lungs. `total`
    is the number of films, for the progress bar."""
    kept: list[Sight] = []
    blind = 0

    def films() -> Iterator[MaskedFilm]:
        nonlocal blind
        sights = chain.from_iterable(batches())
        for sight in _follow(sights, "lungs blacked out", total):
            if sight.pixels is None or sight.lung is None:
                continue  # refused: its row says why
            if not sight.lung.any():
                blind += 1
                continue
            kept.append(sight.without_pixels())
            yield MaskedFilm(sight.pixels, sight.lung, sight.crop)

    stream = films()
    first = next(stream, None)
    if first is None:
        log.warning("masked: no film has a lung field that could be blacked out")
        return [], blind
    found = control_logits(members, chain([first], stream))
    labels = np.array([[s.truth.label_for(t) for t in members.targets] for s in kept])
    sources = [s.truth.row.source if s.truth.row else NO_SOURCE for s in kept]
    rows = control_table(
        found,
        labels,
        [s.patient for s in kept],
        members.targets,
        seed,
        draws,
        sources if {*sources} != {NO_SOURCE} else None,
        list(_questions(kept, members.targets)),
        screener,
    )
    return [row.to_dict() for row in rows], blind


@dataclass(frozen=True, eq=False)
class Sample:
    """Films prepared for the members, (N, 3, side, side), and what is known of them."""

    batch: torch.Tensor
    frames: list[Frame]
    films: list[str]
    patients: list[str]
    truths: list[Truth]

    @classmethod
    def take(cls, members: Ensemble, batches: Batches) -> Sample:
        """All films that the members saw; of each, whatever its size, 0.6 MB are kept."""
        parts: list[torch.Tensor] = []
        frames: list[Frame] = []
        shown: list[Sight] = []
        for group in batches():
            seen = [s for s in group if s.pixels is not None]
            if seen:
                batch, found = members.prepare([s.pixels for s in seen if s.pixels is not None])
                parts.append(batch)
                frames += found
                shown += [s.without_pixels() for s in seen]
        if not parts:
            raise ValueError("the controls need at least one film that the members saw. Got none.")
        return cls(
            torch.cat(parts),
            frames,
            [s.seen.name for s in shown],
            [s.patient for s in shown],
            [s.truth for s in shown],
        )

    def look(self, member: torch.nn.Module, method: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, 3) and maps (N, h, w) of TARGET, some films at a time: the activations of all
        of them, kept for a backward pass, would fill the memory."""
        found = [member_maps(member, part, method) for part in self.batch.split(_AT_A_TIME)]
        logits, planes = zip(*found, strict=True)
        return np.concatenate(logits), np.concatenate(planes)


def randomised_rows(members: Ensemble, sample: Sample, method: str) -> list[Row]:
    """A row a member and stage, the head first; `another film` is the floor the maps fall to."""
    rows: list[Row] = []
    classes = [TARGET] * len(sample.batch)
    for target in _follow(members.targets, "weights made random"):
        member = members.member(target)
        curve = randomisation_curve(
            member, sample.batch, classes, method, saliency_maps, seeds=SEEDS
        )
        trained = sample.look(member, method)[1]
        rows += [{"member": target, **p.to_dict()} for p in (*curve, another_film(trained))]
    return rows


def road_rows(
    members: Ensemble, sample: Sample, method: str, seed: int, draws: int
) -> tuple[list[Row], list[Row]]:
    """A row a member and percentile of pixels taken away; and each member's faithfulness, the area
    between the curves, with its interval.

    A probability near 0 cannot fall, so a member is asked of the films that show its target; where
    no film's truth is known, of those that it says do.
    """
    points: list[Row] = []
    areas: list[Row] = []
    for target in _follow(members.targets, "pixels taken away"):
        member = members.member(target)
        truth = np.array([t.label_for(target) for t in sample.truths])
        logits, planes = sample.look(member, method)
        positive = truth == TARGET if (truth != UNKNOWN).any() else logits.argmax(1) == TARGET
        chosen = np.flatnonzero(positive).tolist()
        if not chosen:
            continue
        side = (sample.batch.shape[3], sample.batch.shape[2])
        found = road_films(
            member,
            sample.batch[chosen],
            np.stack([cv2.resize(planes[i], side, interpolation=cv2.INTER_LINEAR) for i in chosen]),
            [TARGET] * len(chosen),
            seed=seed,
            films=[sample.films[i] for i in chosen],
            within=np.stack([_content(sample.frames[i]) for i in chosen]),
            cam_hw=(planes.shape[1], planes.shape[2]),
        )
        points += [{"member": target, **p.to_dict()} for p in found.points()]
        patients = [sample.patients[i] for i in chosen]
        for name, ends in AREAS.items():
            area = found.area(patients, *ends, draws=draws, seed=seed)
            areas.append(
                {
                    "member": target,
                    "source": "",
                    "name": name,
                    "value": area.value,
                    "low": area.low,
                    "high": area.high,
                    "n": area.n,
                }
            )
    return points, areas


def _content(frame: Frame) -> np.ndarray:
    """(side, side) bool: where the member's input is the film and not padding."""
    inside = np.zeros(frame.canvas_hw, bool)
    height, width = frame.content_hw
    inside[frame.pad_y : frame.pad_y + height, frame.pad_x : frame.pad_x + width] = True
    return inside


def _follow(items: Iterable[Item], words: str, total: int | None = None) -> Iterable[Item]:
    """The items under a progress bar."""
    return track(items, words, total, console=console, transient=True)


def draw_sample(names: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of the films, drawn by a hash of the name: the same films in every order and however
    many others stand beside them; 0 takes all."""

    def rank(name: str) -> str:
        return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).hexdigest()

    if not count or count >= len(names):
        return list(names)
    chosen = set(sorted(names, key=rank)[:count])
    return [name for name in names if name in chosen]


def _questions(sights: Sequence[Sight], targets: Sequence[str]) -> Iterator[Asked]:
    """The project's questions that these films hold both answers to."""
    for question in QUESTIONS:
        if not {question.positive, question.negative} <= {*targets, "normal", "pneumonia"}:
            continue
        truth = np.full(len(sights), np.nan)
        for n, sight in enumerate(sights):
            row = sight.truth.row
            said = question.truth(Case(row, sight.seen.path)) if row else None
            truth[n] = np.nan if said is None else said
        if len(np.unique(truth[~np.isnan(truth)])) == 2:
            yield Asked(question.name, truth, partial(_score, targets=targets, question=question))


def _score(logits: np.ndarray, targets: Sequence[str], question: Question) -> np.ndarray:
    return ensemble_score(logits, targets, question)
