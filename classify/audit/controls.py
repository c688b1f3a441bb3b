"""The audit's controls on a run's films: lungs blacked out, weights made random, pixels taken away.

Each control is shown the films in the audit's one pass over them, keeps what it needs, and gives
the rows that the page and audit.json show. What they mean stands in classify.audit.masking,
classify.audit.randomise and classify.audit.road.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from rich.progress import track

from classify.audit.attention import Prepared, member_maps
from classify.audit.films import AuditFilm, RunFilm, Truth, Truths
from classify.audit.masking import AS_IS, CONTROLS, Asked, apply_control, ask_all, control_table
from classify.audit.randomise import likeness_rows
from classify.audit.road import road_films
from classify.audit.rows import UNKNOWN, Row, figure_cells
from classify.ensemble import Ensemble
from classify.evaluate import QUESTIONS, Question, ensemble_score
from classify.films import Case
from classify.labels import TARGET
from classify.saliency.maps import saliency_maps
from classify.screener import Screener
from cxr.boxes import Frame
from cxr.workdir import console, log

SEEDS = (0, 1, 2)  # of the random weights
AREAS = {"road_area": ("lerf", "morf"), "road_over_random": ("random", "morf")}
NO_SOURCE = "unknown"
_AT_A_TIME = 16  # films


@dataclass(frozen=True)
class Known:
    """What is kept of a film that a control was shown."""

    name: str
    patient: str
    truth: Truth
    path: Path

    @classmethod
    def of(cls, film: AuditFilm) -> Known:
        """The film without its pixels."""
        return cls(film.listed.name, film.patient, film.truth, film.listed.path)


class Control(Protocol):
    """A control in the audit's pass over the films."""

    films: Collection[str]  # the names of those that it is to be shown

    def take(self, shown: Prepared) -> None:
        """Keep what is needed of a batch, which may hold other films too."""
        ...

    def results(self) -> dict[str, Any]:
        """Rows by their names in controls.json, once all films were shown."""
        ...


class Masked:
    """Rows of `control_table`, by source and all together, and how many films had no lungs."""

    def __init__(
        self,
        members: Ensemble,
        films: Collection[str],
        screener: Screener | None,
        seed: int,
        draws: int,
    ) -> None:
        self.members, self.films, self.screener = members, films, screener
        self.seed, self.draws = seed, draws
        self._known: list[Known] = []
        self._blind = 0
        self._logits: dict[str, list[np.ndarray]] = {AS_IS: [], **{_words(c): [] for c in CONTROLS}}

    def take(self, shown: Prepared) -> None:
        """Ask the members of each film as it is and with a part of it hidden."""
        lit = [n for n, film in enumerate(shown.films) if film.lung is not None and film.lung.any()]
        self._blind += len(shown.films) - len(lit)
        if not lit:
            return
        films = [shown.films[n] for n in lit]
        self._known += map(Known.of, films)
        self._ask(AS_IS, shown.batch[lit])
        for control in CONTROLS:
            hidden = [
                apply_control(film.pixels, film.lung, control, frame=film.listed.crop)
                for film in films
                if film.pixels is not None and film.lung is not None
            ]
            self._ask(_words(control), self.members.prepare(hidden)[0])

    def _ask(self, control: str, batch: torch.Tensor) -> None:
        self._logits[control].append(np.asarray(self.members.predict_prepared(batch), np.float64))

    def results(self) -> dict[str, Any]:
        """`masked`: the rows; `blind`: the films without lungs."""
        rows: list[Row] = []
        if not self._known:
            log.warning("masked: no film has a lung field that could be blacked out")
        else:
            targets = self.members.targets
            labels = np.array([[k.truth.label_for(t) for t in targets] for k in self._known])
            asked = list(_questions(self._known, targets))
            sources = [k.truth.row.source if k.truth.row else NO_SOURCE for k in self._known]
            rows = control_table(
                {control: np.concatenate(parts) for control, parts in self._logits.items()},
                ask_all(labels, targets, asked, self.screener),
                [k.patient for k in self._known],
                self.seed,
                self.draws,
                sources if {*sources} != {NO_SOURCE} else None,
            )
        return {"masked": rows, "blind": self._blind}


def _words(control: str) -> str:
    """A control's name in the tables."""
    return control.replace("_", " ")


def _questions(films: Sequence[Known], targets: Sequence[str]) -> Iterator[Asked]:
    """The project's questions that these films hold both answers to."""
    for question in QUESTIONS:
        if not {question.positive, question.negative} <= {*targets, "normal", "pneumonia"}:
            continue
        known = [(film.truth.row, film.path) for film in films]
        said = [question.truth(Case(row, path)) if row else None for row, path in known]
        if {True, False} <= {*said}:
            positive = np.array([np.nan if one is None else one for one in said], float)
            yield Asked(question.name, positive, partial(_answer, question, targets))


def _answer(
    question: Question, targets: Sequence[str], logits: np.ndarray
) -> tuple[np.ndarray, Any]:
    return ensemble_score(logits, targets, question), None


class Sample:
    """Films prepared for the members, (N, 3, side, side), and what is known of them: of each film,
    whatever its size, 0.6 MB are kept."""

    def __init__(self, members: Ensemble, films: Collection[str], method: str) -> None:
        self.members, self.films, self.method = members, films, method
        self.known: list[Known] = []
        self.frames: list[Frame] = []
        self._parts: list[torch.Tensor] = []

    def take(self, shown: Prepared) -> None:
        """Keep the input made of the films of the sample."""
        own = [n for n, film in enumerate(shown.films) if film.listed.name in self.films]
        if own:
            self._parts.append(shown.batch[own])
            self.frames += [shown.frames[n] for n in own]
            self.known += [Known.of(shown.films[n]) for n in own]

    @property
    def batch(self) -> torch.Tensor:
        """The members' input; raises ValueError where there is no film."""
        if not self._parts:
            raise ValueError("the controls need at least one film that the members saw. Got none.")
        return torch.cat(self._parts)

    def maps(self, member: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, 3) and maps (N, h, w) of TARGET, some films at a time: the activations of all
        of them, kept for a backward pass, would fill the memory."""
        parts = self.batch.split(_AT_A_TIME)
        found = [member_maps([member], part, self.method)[0] for part in parts]
        logits, planes = zip(*found, strict=True)
        return np.concatenate(logits), np.concatenate(planes)


class Randomised(Sample):
    """Rows of `likeness_rows`, a member after the other."""

    def results(self) -> dict[str, Any]:
        """`randomised`: a row a member and stage, the head first."""
        batch, rows = self.batch, []
        for target in _follow(self.members.targets, "weights made random"):
            member, classes = self.members.member(target), [TARGET] * len(batch)
            found = likeness_rows(member, batch, classes, self.method, saliency_maps, SEEDS)
            rows += [{"member": target, **row} for row in found]
        return {"randomised": rows}


class Road(Sample):
    """The curves of `road_films`, and each member's faithfulness, the area between them.

    A probability near 0 cannot fall, so a member is asked of the films that show its target; where
    no film's truth is known, of those that it says do.
    """

    def __init__(
        self, members: Ensemble, films: Collection[str], method: str, seed: int, draws: int
    ) -> None:
        super().__init__(members, films, method)
        self.seed, self.draws = seed, draws

    def results(self) -> dict[str, Any]:
        """`road`: a row a member and percentile of pixels taken away; `areas`: with intervals."""
        batch, points, areas = self.batch, [], []
        size = (batch.shape[3], batch.shape[2])
        for target in _follow(self.members.targets, "pixels taken away"):
            member = self.members.member(target)
            truth = np.array([film.truth.label_for(target) for film in self.known])
            logits, planes = self.maps(member)
            known = (truth != UNKNOWN).any()
            chosen = np.flatnonzero((truth if known else logits.argmax(1)) == TARGET).tolist()
            if not chosen:
                continue
            scaled = [cv2.resize(planes[i], size, interpolation=cv2.INTER_LINEAR) for i in chosen]
            found = road_films(
                member,
                batch[chosen],
                np.stack(scaled),
                [TARGET] * len(chosen),
                seed=self.seed,
                films=[self.known[i].name for i in chosen],
                within=np.stack([_content(self.frames[i]) for i in chosen]),
                cam_hw=(planes.shape[1], planes.shape[2]),
            )
            points += [{"member": target, **point} for point in found.points()]
            patients = [self.known[i].patient for i in chosen]
            for name, ends in AREAS.items():
                area = found.area(patients, *ends, draws=self.draws, seed=self.seed)
                areas.append({"member": target, "source": "", "name": name, **figure_cells(area)})
        return {"road": points, "areas": areas}


def _content(frame: Frame) -> np.ndarray:
    """(side, side) bool: where the member's input is the film and not padding."""
    inside = np.zeros(frame.canvas_hw, bool)
    height, width = frame.content_hw
    inside[frame.pad_y : frame.pad_y + height, frame.pad_x : frame.pad_x + width] = True
    return inside


def _follow(targets: Iterable[str], words: str) -> Iterable[str]:
    """The members under a progress bar."""
    return track(targets, words, console=console, transient=True)


def open_controls(
    wanted: Sequence[str],
    members: Ensemble,
    films: Sequence[RunFilm],
    truths: Truths,
    screener: Screener | None,
    method: str,
    count: int,
    seed: int,
    draws: int,
) -> dict[str, Control]:
    """The wanted controls by name. `films` are those that the members saw; of them `masked` takes
    all, `randomised` a sample of `count`, and `road` one of those that show the target of a member,
    where the truth of any is known."""
    names = [film.name for film in films]
    ill = [n for n in names if TARGET in [truths.of(n).label_for(t) for t in members.targets]]
    controls: dict[str, Control] = {
        "masked": Masked(members, names, screener, seed, draws),
        "randomised": Randomised(members, set(draw_sample(names, count, seed)), method),
        "road": Road(members, set(draw_sample(ill or names, count, seed)), method, seed, draws),
    }
    return {name: controls[name] for name in wanted}


def draw_sample(names: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of the films, drawn by a hash of the name: the same films in every order and however
    many others stand beside them; 0 takes all."""

    def rank(name: str) -> str:
        return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogatepass")).hexdigest()

    if not count or count >= len(names):
        return list(names)
    chosen = set(sorted(names, key=rank)[:count])
    return [name for name in names if name in chosen]
