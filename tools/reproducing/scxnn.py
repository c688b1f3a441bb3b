"""SCXNN as a system of a table: its members are trained, then answer the tested films together.

With one target the answers are the member's own. With several, a film's score for `normal` is the
mean of the members' P(normal), that for each target its own member's P(target), scaled to sum 1;
tested films with none of the targets but another disease are then left out of answers.csv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from classify.bundles import member_of
from classify.films import Case, label_of
from classify.fit import predict
from classify.recipe import TrainConfig
from classify.screening.tiers import TIERS
from classify.train import load_cases, member_job, train_ensemble
from cxr.answers import Answer, write_answers
from cxr.bundle import load_bundle
from cxr.devices import pick_device
from cxr.films_table import has_disease
from cxr.stats import Figure, softmax
from cxr.workdir import log, write_json
from reproducing.goes import Group, draw_goes, goes_of
from reproducing.screening import ScreenJob, screen_films
from reproducing.splits import SplitOf, count_parts

LEAST = 1e-12  # a sum of scores must not be 0


@dataclass(frozen=True)
class ScxnnConfig(TrainConfig):
    """Train an ensemble and answer the tested films.

    Args:
        follow: diseases whose tested films are looked at apart (goes.ANSWER, unseen.png); empty
            takes the `unseen` ones.
        tiers: tier → its targets; a screener is then fitted on the validation films, its operating
            point fixed on the calibration films, and kept.TIER and found.TIER are told.
        sensitivity: what the calibration films are to prove.
        confidence: of that proof.
        screen_folds: folds by patient of the screener's fit.
    """

    follow: tuple[str, ...] = ()
    tiers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sensitivity: float = 0.99
    confidence: float = 0.95
    screen_folds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [tier for tier in self.tiers if tier not in TIERS]
        if unknown:
            raise ValueError(f"tiers must be among {', '.join(TIERS)}. Got {unknown[0]!r}.")
        named = [target for targets in self.tiers.values() for target in targets]
        if len(set(named)) != len(named):
            raise ValueError(f"tiers must name each target once. Got {', '.join(named)} instead.")
        if self.tiers and self.classes != "three":
            raise ValueError(
                f"classes must be three where films are screened (tiers). Got {self.classes}."
            )
        if len(self.targets) > 1 and self.classes != "three":
            raise ValueError(f"classes must be three for several targets. Got {self.classes}.")

    @property
    def followed(self) -> tuple[str, ...]:
        """Diseases whose films are looked at apart."""
        return self.follow or self.unseen

    @property
    def answers(self) -> tuple[str, ...]:
        """Classes of answers.csv."""
        if len(self.targets) > 1:
            return "normal", *self.targets
        return self.class_names(self.targets[0])

    def ensemble(self) -> TrainConfig:
        """What the members are trained by."""
        return TrainConfig(**{f.name: getattr(self, f.name) for f in fields(TrainConfig)})


def train_scxnn(config: ScxnnConfig) -> Path:
    """Train (or go on), answer; returns `config.out` with answers.csv and figures.json.

    Raises ValueError or OSError for what a user can mend.
    """
    training, out = config.ensemble(), Path(config.out)
    train_ensemble(training)
    cases, parts = load_cases(training)
    if not parts.get("test"):
        raise ValueError("the split must have films in its part 'test'. Got none.")
    used = ("test", "val", "calibration") if config.tiers else ("test",)
    logits = member_logits(training, cases, parts, [i for part in used for i in parts[part]])
    tested = [cases[i] for i in parts["test"]]
    scores = joint_scores(np.stack([logits[i] for i in parts["test"]]))
    figures: dict[str, Figure] = {}
    if config.followed:
        figures |= _follow(config, tested, scores)
    if config.tiers:
        films = {part: [cases[i] for i in parts[part]] for part in used}
        known = {part: np.stack([logits[i] for i in parts[part]]) for part in used}
        job = ScreenJob(out, config.targets, config.tiers, films, known, config.seed, config.draws)
        figures |= screen_films(job, config.sensitivity, config.confidence, config.screen_folds)
    write_json(out / "figures.json", {name: asdict(figure) for name, figure in figures.items()})
    write_answers(out / "answers.csv", config.answers, _answers(config, tested, scores))
    return out


def member_logits(
    config: TrainConfig, cases: list[Case], parts: dict[str, list[int]], wanted: Sequence[int]
) -> dict[int, np.ndarray]:
    """Case number → logits (M, K) of the trained members, from the bundles that they left."""
    found = []
    for order, target in enumerate(config.targets):
        job = member_job(config, cases, parts, target, order)
        net = member_of(load_bundle(job.bundle, "member")).eval().to(pick_device(config.device))
        found.append(predict(job, net, wanted))
    return dict(zip(wanted, np.stack(found, axis=1), strict=True))


def joint_scores(logits: np.ndarray) -> np.ndarray:
    """(N, M, K) logits to one row of scores a film, with the sum 1: (N, K) of a member alone, or
    (N, 1 + M): the mean P(normal), then each member's P(target)."""
    chances = softmax(logits)
    if chances.shape[1] == 1:
        return np.asarray(chances[:, 0])
    scores = np.concatenate([chances[..., 0].mean(1, keepdims=True), chances[..., 1]], axis=1)
    scores = scores + LEAST
    return np.asarray(scores / scores.sum(1, keepdims=True))


def truth_of(case: Case, config: ScxnnConfig) -> str | None:
    """A film's class among `config.answers`; with several targets the first that it has, and None
    for a film that is neither normal nor has one."""
    if len(config.targets) == 1:
        number = label_of(case.row, config.targets[0], config.classes)
        return None if number is None else config.answers[number]
    if case.row.label == "normal":
        return "normal"
    return next((t for t in config.targets if has_disease(case.row, [t])), None)


def _answers(config: ScxnnConfig, cases: Sequence[Case], scores: np.ndarray) -> list[Answer]:
    out = []
    for case, row in zip(cases, scores, strict=True):
        truth = truth_of(case, config)
        if truth is not None:
            film = case.row
            out.append(
                Answer(
                    film.image, film.patient_id, film.source, truth, tuple(float(s) for s in row)
                )
            )
    if len(out) < len(cases):
        log.info(
            "%d tested films have no target and are not normal: not in answers.csv",
            len(cases) - len(out),
        )
    return out


def _follow(config: ScxnnConfig, cases: Sequence[Case], scores: np.ndarray) -> dict[str, Figure]:
    """goes.ANSWER of the followed films, and unseen.png with the other films beside them."""
    followed = [has_disease(case.row, config.followed) for case in cases]
    if not any(followed):
        raise ValueError(
            f"follow must name diseases of tested films. Got {', '.join(config.followed)}."
        )
    held = "held out" if config.unseen else "learnt"
    names = [
        f"{' + '.join(config.followed)} ({held})"
        if apart
        else truth_of(case, config) or "none of the targets"
        for case, apart in zip(cases, followed, strict=True)
    ]
    patients = [case.patient for case in cases]
    said = scores.argmax(1)
    order = [n for n, apart in zip(names, followed, strict=True) if apart][:1]
    order += [n for n in (*config.answers, "none of the targets") if n in names]
    groups = []
    for name in order:
        chosen = [i for i, other in enumerate(names) if other == name]
        shares = goes_of(
            said[chosen], [patients[i] for i in chosen], config.answers, config.draws, config.seed
        )
        groups.append(Group(name, len(chosen), len({patients[i] for i in chosen}), shares))
    draw_goes(groups, Path(config.out) / "unseen.png")
    one = config.targets[0] if len(config.targets) == 1 else None
    return {
        f"goes.{'target' if answer == one else answer}": figure
        for answer, figure in groups[0].shares.items()
    }


def split_of(settings: Mapping[str, Any]) -> SplitOf:
    """The films that the members learnt from and those that were answered."""
    from cxr.cli import from_plain

    config = from_plain(ScxnnConfig, dict(settings))
    cases, parts = load_cases(config.ensemble())
    known = {case.row.image: truth_of(case, config) for case in cases}
    truths = {image: truth for image, truth in known.items() if truth is not None}
    films = {
        part: [
            (cases[i].row.image, cases[i].patient) for i in numbers if cases[i].row.image in truths
        ]
        for part, numbers in parts.items()
    }
    learnt, tested = ([image for image, _ in films[part]] for part in ("train", "test"))
    return SplitOf(config.answers, truths, [(learnt, tested)], count_parts(films))
