"""The audit's controls on a run's films: lungs blacked out, weights made random, pixels taken away.

Each control is shown the films in the audit's one pass over them, keeps what it needs, and gives
the rows that the page and audit.json show. What those of classify.audit.randomise and
classify.audit.road mean stands there.

Blacking out the lungs, or all but the lungs, asks whether a member needs the lungs at all: after
Maguolo and Nanni 2021 (arXiv 2004.12823), whose networks told films apart without them. It comes
first and the members' own preprocessing after it, so that no contrast step carries what was hidden
into the rest of the film. What is black may look like nothing that a member has learnt; so the
lungs are also shown in the surroundings of another patient's film, whose lungs are painted over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from classify.audit import AuditConfig
from classify.audit.films import AuditFilm, Prepared, RunFilm, Truth, Truths
from classify.audit.metrics import film_seed
from classify.audit.randomise import cascade_rows
from classify.audit.road import road_films
from classify.audit.rows import UNKNOWN, Row, figure_cells
from classify.augment import swap_surroundings
from classify.ensemble import Ensemble, member_maps
from classify.evaluate import QUESTIONS, ensemble_score, may_answer
from classify.films import Case
from classify.members import NORMAL, TARGET
from classify.preprocess import from_input, to_input
from classify.saliency.hooks import bare_net
from classify.screener import Screener
from cxr.boxes import Frame
from cxr.stats import Figure, figure_of, softmax, weighted_auc, weighted_mean, with_draws
from cxr.stream import batched
from cxr.workdir import console, log

HIDDEN = ("outside_only", "lungs_only", "shape_only")
AS_IS, SWAPPED, NO_SOURCE = "as is", "swapped", "unknown"
MARGIN = 0.02  # of the film's longer side: lung that a mask misses lies mostly within it
SEEDS = (0, 1, 2)  # of the random weights
LUNGS_FIRST = "road_lungs"
AREAS = {
    "road_area": ("lerf", "morf"),
    "road_over_random": ("random", "morf"),
    LUNGS_FIRST: ("lerf", "morf"),
}
_GREY = 0.5
_AT_A_TIME = 16  # films
_follow = partial(track, console=console, transient=True)


def hide(
    pixels: np.ndarray,
    lung: np.ndarray,
    control: str,
    margin: float = MARGIN,
    frame: Frame | None = None,
) -> np.ndarray:
    """A copy of a film, or of a crop that `frame` cut out of one, (h, w) float32 in [0, 1], with a
    part of it black, as air is. `lung` (H, W) bool and `margin` of the longer side are of the film.
    outside_only hides the lungs and `margin` round them. lungs_only hides all but the lungs,
    without a margin, so that the rim belongs to neither: what outside_only shows is certainly not
    lung, and what lungs_only shows is. shape_only hides the lungs as outside_only does and paints
    the rest an even grey: what is left is the outline, which outside_only cannot help but show."""
    # The region is grown on the film and cut afterwards: lung just outside a crop hides its edge.
    region = lung if control == "lungs_only" else grow(lung, margin)
    if frame is not None:
        # beyond the film the Frame gives False: there is no lung, and the crop is black already
        region = frame.apply(region.astype(np.uint8), nearest=True).astype(bool)
    shown = region if control == "lungs_only" else ~region
    left = np.float32(_GREY) if control == "shape_only" else pixels
    return np.where(shown, left, np.float32(0.0)).astype(np.float32, copy=False)


def grow(mask: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """(H, W) bool mask and all within `margin` × the longer side of it (Euclidean distance)."""
    radius = margin * max(mask.shape)
    if radius < 1 or not mask.any():
        return mask.copy()
    # by distance and not by a round kernel, whose cost grows with the square of the radius
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away <= radius + 1e-3


class Asked(NamedTuple):
    """A member, a question to all of them, or the screener, which stands in a member's place.
    `name` stands in the table; `positive` (N,) is 1, 0, or NaN for films that are not asked;
    `answer` takes logits (N, M, 3) to (N,) scores, higher meaning rather positive, and (N,)
    decisions, None for a question, which decides nothing."""

    name: str
    positive: np.ndarray
    answer: Callable[[np.ndarray], tuple[np.ndarray, Any]]


def ask_all(
    labels: np.ndarray,
    targets: Sequence[str],
    questions: Sequence[Asked] = (),
    screener: Screener | None = None,
) -> list[Asked]:
    """Each member for its TARGET against the rest, the questions, and the screener for abnormal
    against normal. `labels` (N, M): NORMAL, TARGET, OTHERS for each member, or -1 where unknown."""
    asked = []
    for m, target in enumerate(targets):
        positive = np.where(labels[:, m] == UNKNOWN, np.nan, labels[:, m] == TARGET)
        # the probability, and the decision
        said = partial(lambda m, z: (softmax(z[:, m])[:, TARGET], z[:, m].argmax(1)), m)
        asked.append(Asked(target, positive, said))
    asked += questions
    if screener is not None:
        # members differ in what they call TARGET, but agree on what is normal
        known = (labels != UNKNOWN).all(1)
        positive = np.where(known, (labels != NORMAL).any(1), np.nan)
        asked.append(Asked("screener", positive, lambda logits: screener.decide(logits)[:2]))
    return asked


def control_table(
    logits_by_control: Mapping[str, np.ndarray],
    asked: Sequence[Asked],
    patients: Sequence[str],
    seed: int = 0,
    draws: int = 1000,
    sources: Sequence[str] | None = None,
) -> list[Row]:
    """A row for each source, one of `asked`, and control of `logits_by_control`: name → (N, M, 3),
    with `as is` among them. `auc` is that of the positive films against the others, its interval
    `low` to `high` over `n` films. `difference` is that AUC minus the one of the films as they are,
    on the same drawn patients. `changed` is the share of films with another decision than as they
    are. Of several sources each stands alone and `all` comes last: pooled, which a model that only
    tells sources apart does well on."""
    answers = [
        (one.name, one.positive, {c: one.answer(z) for c, z in logits_by_control.items()})
        for one in asked
    ]
    names = sorted(set(sources or ()))
    groups = {name: np.flatnonzero(np.asarray(sources) == name) for name in names}
    if len(names) != 1:
        groups["all"] = np.arange(len(patients))
    rows: list[Row] = []
    for source, films in groups.items():
        weights = with_draws([patients[int(i)] for i in films], draws, seed)
        for name, positive, said in answers:
            known = ~np.isnan(positive[films])
            right, drawn = positive[films][known] == 1, weights[:, known]
            aucs = {c: weighted_auc(z[films][known], right, drawn) for c, (z, _) in said.items()}
            for control, auc in aucs.items():
                gap = figure_of(auc - aucs[AS_IS], len(right))
                changed = Figure(None, None, None, len(films))
                if said[control][1] is not None:
                    after, before = (np.asarray(said[c][1])[films] for c in (control, AS_IS))
                    changed = figure_of(weighted_mean(after != before, weights), len(films))
                rows.append(
                    {
                        "control": control,
                        "member": name,
                        "source": source,
                        **figure_cells(figure_of(auc, len(right)), "auc"),
                        "difference": gap.value,
                        "difference_low": gap.low,
                        "difference_high": gap.high,
                        **figure_cells(changed, "changed", "changed_"),
                    }
                )
    return rows


@dataclass(frozen=True)
class Known:
    """What is kept of a film that a control was shown, without its pixels."""

    name: str
    patient: str
    truth: Truth
    path: Path

    @classmethod
    def of(cls, film: AuditFilm) -> Known:
        """Of a film that is shown."""
        return cls(film.listed.name, film.patient, film.truth, film.listed.path)


# --- the controls in the audit's pass over the films: `films` are the names of those that one is to
# be shown, `take` keeps what it needs of a batch, which may hold other films too, and `results` are
# its rows by their names in controls.json, once all films were shown


@dataclass(eq=False)
class Masked:
    """Rows of `control_table`, by source and all together, and how many films had no lungs."""

    members: Ensemble
    films: Collection[str]
    screener: Screener | None
    seed: int
    draws: int
    _known: list[Known] = field(default_factory=list)
    _blind: int = 0
    _logits: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @cached_property
    def _kept(self) -> np.ndarray:
        """(N, 2, side, side) of the films that are shown, on disk: pictures and lung fields, as the
        members' input has them, until all are there to swap with."""
        side = self.members.settings.side
        return np.memmap(TemporaryFile(), np.uint8, "w+", shape=(len(self.films), 2, side, side))

    def take(self, shown: Prepared) -> None:
        """Ask the members of each film as it is and with a part of it hidden."""
        lit = [n for n, film in enumerate(shown.films) if film.lung is not None and film.lung.any()]
        self._blind += len(shown.films) - len(lit)
        if not lit:
            return
        films = [shown.films[n] for n in lit]
        pictures = from_input(shown.batch[lit], self.members.settings).mul(255).round().byte()
        for n, film, picture in zip(lit, films, pictures.cpu().numpy(), strict=True):
            self._kept[len(self._known)] = picture[0], 255 * _lung_seen(film, shown.frames[n])
            self._known.append(Known.of(film))
        self._ask(AS_IS, shown.batch[lit])
        for control in HIDDEN:
            hidden = [
                hide(film.pixels, film.lung, control, frame=film.listed.crop)
                for film in films
                if film.pixels is not None and film.lung is not None
            ]
            self._ask(control.replace("_", " "), self.members.prepare(hidden)[0])

    def _swap(self) -> None:
        """Ask of each film in the surroundings of another patient's."""
        rng, patients = np.random.default_rng(self.seed), [k.patient for k in self._known]
        donors = draw_donors(patients, rng)
        for some in batched(range(len(donors)), _AT_A_TIME):
            pairs = [(*self._kept[n], *self._kept[donors[n]]) for n in some]
            shown = [swap_surroundings(a, lung, b, hidden, rng) for a, lung, b, hidden in pairs]
            pixels = torch.from_numpy(np.stack(shown)[:, None]).to(self.members.device)
            self._ask(SWAPPED, to_input(pixels.float() / 255, self.members.settings))

    def _ask(self, control: str, batch: Tensor) -> None:
        logits = np.asarray(self.members.predict_prepared(batch), np.float64)
        self._logits.setdefault(control, []).append(logits)

    def results(self) -> dict[str, Any]:
        """`masked`: the rows; `blind`: the films without lungs."""
        rows: list[Row] = []
        if not self._known:
            log.warning("masked: no film has a lung field that could be blacked out")
        else:
            self._swap()
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


def draw_donors(patients: Sequence[str], rng: np.random.Generator) -> list[int]:
    """For each film another patient's, by chance; its own where there is no other patient."""
    names, donors = np.asarray(patients), rng.permutation(len(patients))
    for n in np.flatnonzero(names[donors] == names):
        others = np.flatnonzero(names != names[n])
        donors[n] = rng.choice(others) if len(others) else n
    return donors.tolist()


def _questions(films: Sequence[Known], targets: Sequence[str]) -> Iterator[Asked]:
    """The project's questions that these films hold both answers to."""
    for question in QUESTIONS:
        if not may_answer(question, targets):
            continue
        cases = [film.truth.row and Case(film.truth.row, film.path) for film in films]
        said = [question.truth(case) if case else None for case in cases]
        if {True, False} <= {*said}:
            answer = partial(lambda asked, z: (ensemble_score(z, targets, asked), None), question)
            yield Asked(question.name, np.array(said, float), answer)


@dataclass(eq=False)
class Sample:
    """Films prepared for the members, (N, 3, side, side), and what is known of them: of each film,
    whatever its size, 0.6 MB are kept."""

    members: Ensemble
    films: Collection[str]
    method: str
    seed: int = 0
    draws: int = 2000
    known: list[Known] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    lungs: list[np.ndarray] = field(default_factory=list)
    _parts: list[Tensor] = field(default_factory=list)

    def take(self, shown: Prepared) -> None:
        """Keep the input made of the films of the sample."""
        own = [n for n, film in enumerate(shown.films) if film.listed.name in self.films]
        if own:
            self._parts.append(shown.batch[own])
            self.frames += [shown.frames[n] for n in own]
            self.lungs += [_lung_seen(shown.films[n], shown.frames[n]) for n in own]
            self.known += [Known.of(shown.films[n]) for n in own]

    @property
    def batch(self) -> Tensor:
        """The members' input; raises ValueError where there is no film."""
        if not self._parts:
            raise ValueError("the controls need at least one film that the members saw. Got none.")
        return torch.cat(self._parts)

    def maps(self, *members: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each member logits (N, 3) and maps (N, h, w) of TARGET, some films at a time: the
        activations of all of them, kept for a backward pass, would fill the memory."""
        parts = self.batch.split(_AT_A_TIME)
        found = [member_maps(members, part, self.method) for part in parts]
        return [
            (np.concatenate([z for z, _ in own]), np.concatenate([p for _, p in own]))
            for own in zip(*found, strict=True)
        ]


class Randomised(Sample):
    """Rows of `cascade_rows`, a member after the other; those of one network share the cascade."""

    def results(self) -> dict[str, Any]:
        """`randomised`: a row a member and stage, the head first."""
        batch, members = self.batch, self.members.members
        of_net: dict[nn.Module, list[str]] = {}
        for target, member in members.items():
            of_net.setdefault(bare_net(member, [TARGET])[0], []).append(target)
        found: dict[str, list[Row]] = {}
        for targets in _follow([*of_net.values()], "weights made random"):
            own = [members[target] for target in targets]
            maps = partial(lambda own: [planes for _, planes in self.maps(*own)], own)
            found |= zip(targets, cascade_rows(own[0], batch, maps, SEEDS), strict=True)
        rows = [{"member": target, **row} for target in members for row in found[target]]
        return {"randomised": rows}


class Road(Sample):
    """The curves of `road_films`, and each member's faithfulness, the area between them. A
    probability near 0 cannot fall, so a member is asked of the films that show its target; where no
    film's truth is known, of those that it says do. The lung field in the map's place tells whether
    the answer hangs on lungs, whatever a map shows."""

    def results(self) -> dict[str, Any]:
        """`road`: a row a member and percentile of pixels taken away; `areas`: with intervals."""
        batch, points, areas = self.batch, [], []
        for target in _follow(self.members.targets, "pixels taken away"):
            member = self.members.member(target)
            truth = np.array([film.truth.label_for(target) for film in self.known])
            ((logits, planes),) = self.maps(member)
            known = (truth != UNKNOWN).any()
            chosen = np.flatnonzero((truth if known else logits.argmax(1)) == TARGET).tolist()
            if not chosen:
                continue
            size = (batch.shape[3], batch.shape[2])
            scaled = [cv2.resize(planes[i], size, interpolation=cv2.INTER_LINEAR) for i in chosen]
            taken = partial(
                road_films,
                member,
                batch[chosen],
                classes=[TARGET] * len(chosen),
                seed=self.seed,
                films=[self.known[i].name for i in chosen],
                within=np.stack([_content(self.frames[i]) for i in chosen]),
                cam_hw=(planes.shape[1], planes.shape[2]),
            )
            found = taken(np.stack(scaled))
            points += [{"member": target, **point} for point in found.points()]
            lungs = taken(np.stack([self.lungs[i].astype(np.float32) for i in chosen]))
            patients = [self.known[i].patient for i in chosen]
            for name, ends in AREAS.items():
                curves = lungs if name == LUNGS_FIRST else found
                area = curves.area(patients, *ends, draws=self.draws, seed=self.seed)
                areas.append({"member": target, "source": "", "name": name, **figure_cells(area)})
        return {"road": points, "areas": areas}


Control = Masked | Randomised | Road


def _lung_seen(film: AuditFilm, frame: Frame) -> np.ndarray:
    """(side, side) uint8, 1 where the member's input shows lung; all 0 without a lung field."""
    if film.lung is None:
        return np.zeros(frame.canvas_hw, np.uint8)
    lung = film.lung.astype(np.uint8)
    for own in (film.listed.crop, frame):
        lung = lung if own is None else own.apply(lung, nearest=True)
    return lung


def _content(frame: Frame) -> np.ndarray:
    """(side, side) bool: where the member's input is the film and not padding."""
    inside = np.zeros(frame.canvas_hw, bool)
    height, width = frame.content_hw
    inside[frame.pad_y : frame.pad_y + height, frame.pad_x : frame.pad_x + width] = True
    return inside


def open_controls(
    wanted: Sequence[str],
    config: AuditConfig,
    members: Ensemble,
    films: Sequence[RunFilm],
    truths: Truths,
    screener: Screener | None,
) -> dict[str, Control]:
    """The wanted controls by name. `films` are those that the members saw; of them `masked` takes
    all, `randomised` a sample of so many as are wanted, and `road` one of those that show the
    target of a member, where the truth of any is known."""
    count, seed, draws = config.control_films, config.seed, config.draws
    names = [film.name for film in films]
    ill = [n for n in names if TARGET in [truths.of(n).label_for(t) for t in members.targets]]
    some, shown = (set(draw_sample(among, count, seed)) for among in (names, ill or names))
    controls: dict[str, Control] = {
        "masked": Masked(members, names, screener, seed, draws),
        "randomised": Randomised(members, some, config.method),
        "road": Road(members, shown, config.method, seed, draws),
    }
    return {name: controls[name] for name in wanted}


def draw_sample(names: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of the films, drawn by a hash of the name: the same films in every order and however
    many others stand beside them; 0 takes all."""

    if not count or count >= len(names):
        return list(names)
    chosen = set(sorted(names, key=lambda name: film_seed(name, seed))[:count])
    return [name for name in names if name in chosen]
