"""SCXNN as a system of a table: its members are trained, then answer the tested films together.

With one target the answers are the member's own. With several, a film's score for `normal` is the
mean of the members' P(normal), that for each target its own member's P(target), scaled to sum 1;
tested films with none of the targets but another disease are then left out of answers.csv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classify.films import Case
from classify.labels import label_of
from classify.screener import CLEARED, FitConfig, calibrate, fit_screener
from classify.screening.films import ScreeningFilms
from classify.screening.tiers import TIERS, RiskRow, risk_table
from classify.tasks.member import load_cases, member_logits, train_ensemble
from classify.tasks.settings import TrainConfig
from cxr.answers import Answer, write_answers
from cxr.cli import from_plain
from cxr.films_table import has_disease, is_abnormal
from cxr.plots import new_figure, write_figure
from cxr.rules import require
from cxr.stats import Figure, share_figure, softmax
from cxr.workdir import log, write_json
from reproducing.runners import SplitOf

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
        require(not unknown, f"tiers must be among {', '.join(TIERS)}", *unknown[:1] or [""])
        named = [target for targets in self.tiers.values() for target in targets]
        require(len(set(named)) == len(named), "tiers must name each target once", named)
        three = self.classes == "three"
        rule = "classes must be three where films are screened (tiers)"
        require(three or not self.tiers, rule, self.classes)
        rule = "classes must be three for several targets"
        require(three or len(self.targets) == 1, rule, self.classes)

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
    films = {part: [cases[i] for i in parts[part]] for part in used}
    found = member_logits(training, cases, parts, [i for part in used for i in parts[part]])
    ends = np.cumsum([len(films[part]) for part in used])[:-1]
    logits = dict(zip(used, np.split(found, ends), strict=True))
    scores = joint_scores(logits["test"])
    figures = _follow(config, films["test"], scores) if config.followed else {}
    if config.tiers:
        figures |= screen_films(config, films, logits)
    write_json(out / "figures.json", {name: asdict(figure) for name, figure in figures.items()})
    write_answers(out / "answers.csv", config.answers, _answers(config, films["test"], scores))
    return out


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
        number = label_of(case.row, config.targets[0], config.classes, config.unseen)
        return None if number is None else config.answers[number]
    if case.row.label == "normal":
        return "normal"
    return next((t for t in config.targets if has_disease(case.row, [t])), None)


def _answers(config: ScxnnConfig, cases: Sequence[Case], scores: np.ndarray) -> list[Answer]:
    films = [(truth_of(case, config), case.row) for case in cases]
    out = [
        Answer(film.image, film.patient_id, film.source, truth, tuple(row))
        for (truth, film), row in zip(films, scores.tolist(), strict=True)
        if truth is not None
    ]
    if missing := len(cases) - len(out):
        why = "have no target and are not normal: not in answers.csv"
        log.info("%d tested films %s", missing, why)
    return out


def _follow(config: ScxnnConfig, cases: Sequence[Case], scores: np.ndarray) -> dict[str, Figure]:
    """goes.ANSWER of the followed films, and unseen.png with the other films beside them."""
    said, followed = scores.argmax(1), [has_disease(case.row, config.followed) for case in cases]
    if not any(followed):
        raise ValueError(
            f"follow must name diseases of tested films. Got {', '.join(config.followed)}."
        )
    first = f"{' + '.join(config.followed)} ({'held out' if config.unseen else 'learnt'})"
    names = [
        first if apart else truth_of(case, config) or "none of the targets"
        for case, apart in zip(cases, followed, strict=True)
    ]
    groups = []
    for name in (first, *(n for n in (*config.answers, "none of the targets") if n in names)):
        chosen = [i for i, other in enumerate(names) if other == name]
        patients = [cases[i].patient for i in chosen]
        shares = goes_of(said[chosen], patients, config.answers, config.draws, config.seed)
        groups.append(Group(name, len(chosen), len(set(patients)), shares))
    draw_goes(groups, Path(config.out) / "unseen.png")
    one = config.targets[0] if len(config.targets) == 1 else None
    return {
        f"goes.{'target' if answer == one else answer}": figure
        for answer, figure in groups[0].shares.items()
    }


def split_of(settings: Mapping[str, Any]) -> SplitOf:
    """The films that the members learnt from and those that were answered."""
    config = from_plain(ScxnnConfig, dict(settings))
    cases, parts = load_cases(config.ensemble())
    known = {case.row.image: (case.patient, truth_of(case, config)) for case in cases}
    named = {part: [cases[i].row.image for i in numbers] for part, numbers in parts.items()}
    return SplitOf.of(config.answers, known, [named])


def screen_films(
    config: ScxnnConfig, cases: Mapping[str, Sequence[Case]], logits: Mapping[str, np.ndarray]
) -> dict[str, Figure]:
    """Fit on val, fix the operating point on calibration, measure on test; leaves screener.skops,
    screener.json and risk.json among the members in `config.out`.

    Args:
        config: targets, tiers, and what the calibration films are to prove.
        cases: part → its N films.
        logits: part → (N, M, 3) of the members.

    Returns kept.TIER, found.TIER, the same for each target, and kept.normal: the share of films
    kept for reading, and of those on which the member (of a tier, any of it) said target. A film
    counts in the most pressing tier it has. Raises ValueError for too few patients.
    """

    def films_of(part: str) -> ScreeningFilms:
        rows = [case.row for case in cases[part]]
        return ScreeningFilms(
            config.targets,
            np.asarray(logits[part], dtype=np.float64),
            np.array([is_abnormal(row, config.targets) for row in rows], dtype=bool),
            [row.patient_id for row in rows],
            [row.source for row in rows],
            [row.image for row in rows],
        )

    settings = FitConfig(
        ("the members' own logits",),
        ensemble=Path(config.out),
        sensitivity=config.sensitivity,
        confidence=config.confidence,
        folds=config.screen_folds,
        seed=config.seed,
    )
    fitted, calibration, tested = (films_of(part) for part in ("val", "calibration", "test"))
    meta = {
        "fit_films_by_source": fitted.count_by_source(),
        "calibration_films_by_source": calibration.count_by_source(),
    }
    screener = calibrate(fit_screener(fitted, settings), calibration, settings, meta)
    kept = np.array([d != CLEARED for d in screener.decide(tested.logits)[1]], dtype=bool)
    tier_of = {target: tier for tier, targets in config.tiers.items() for target in targets}
    diseases = [
        frozenset(t for t in config.targets if has_disease(case.row, [t])) for case in cases["test"]
    ]

    def table_of(some: slice) -> list[RiskRow]:
        found = tested.logits[some], kept[some], diseases[some]
        return risk_table(*found, config.targets, tier_of)

    def share(among: Sequence[int], hits: Sequence[bool]) -> Figure:
        patients = [tested.patients[i] for i in among]
        return share_figure(hits, patients, config.draws, config.seed)

    table = table_of(slice(None))
    write_json(Path(config.out) / "risk.json", [asdict(row) for row in table])
    # film by film the table says who counts where: an interval by patient needs to know
    films = [table_of(slice(i, i + 1)) for i in range(len(diseases))]
    figures = {}
    for n, row in enumerate(table):
        among = [i for i, rows in enumerate(films) if rows[n].films]
        for what in ("kept", "found"):
            hits = [bool(getattr(films[i][n], what)) for i in among]
            figures[f"{what}.{row.disease or row.tier}"] = share(among, hits)
    normal = [int(i) for i in np.flatnonzero(~tested.abnormal)]
    figures["kept.normal"] = share(normal, [bool(kept[i]) for i in normal])
    return figures


# normal, the target, others: told apart in grey print and by eyes that see few colours, too
_COLOURS = ("#4c9f70", "#c8553d", "#8d99ae", "#e0a458", "#5b5f97", "#2f4858")
_NARROW = 0.06  # share under which a bar has no room for its text


class Group(NamedTuple):
    """Films that are looked at together; `shares`: answer → share of them that is answered so."""

    name: str
    films: int
    patients: int
    shares: dict[str, Figure]


def goes_of(
    said: np.ndarray,
    patients: Sequence[str],
    classes: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Figure]:
    """Answer → share of N films whose largest score is for it; `said` (N,) are numbers of
    `classes`."""
    return {name: share_figure(said == k, patients, draws, seed) for k, name in enumerate(classes)}


def draw_goes(groups: Sequence[Group], path: Path) -> Path:
    """A bar a group, the first one (the followed films) on top and set apart, cut into the
    answers; each with its share and interval in per cent."""
    picture = new_figure(9.0, 1.5 + 0.72 * len(groups))
    axis = picture.subplots()
    places = [0.0] + [k + 0.35 for k in range(1, len(groups))]
    for place, group in zip(places, groups, strict=True):
        left, opacity = 0.0, 1.0 if place == 0 else 0.72
        look: dict[str, Any] = {"height": 0.74, "alpha": opacity, "ec": "white", "linewidth": 1.2}
        for k, (answer, found) in enumerate(group.shares.items()):
            width, colour = found.value or 0.0, _COLOURS[k % len(_COLOURS)]
            name = answer if place == 0 else None
            axis.barh(place, width, left=left, color=colour, label=name, **look)
            if width >= _NARROW:
                text = f"{100 * width:.0f} %"
                if found.low is not None and found.high is not None:
                    text += f"\n{100 * found.low:.0f}–{100 * found.high:.0f}"
                at: dict[str, Any] = {"ha": "center", "va": "center", "color": "#1b1b1b"}
                axis.text(left + width / 2, place, text, linespacing=1.25, fontsize=9, **at)
            left += width
    if len(groups) > 1:
        axis.axhline(0.675, color="0.75", linewidth=0.8)
    axis.set_yticks(places, [f"{g.name}\n{g.films} films, {g.patients} patients" for g in groups])
    axis.get_yticklabels()[0].set_fontweight("bold")
    axis.set(xlim=(0, 1), ylim=(places[-1] + 0.5, -0.5))
    axis.set_xticks(np.linspace(0, 1, 6), [f"{n} %" for n in range(0, 101, 20)])
    axis.set_xlabel("share of the tested films (95 % interval by patient)")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    handles = axis.get_legend_handles_labels()
    where: dict[str, Any] = {"title": "answered", "frameon": False, "loc": "outside upper right"}
    picture.legend(*handles, ncols=len(groups[0].shares), **where)
    return write_figure(picture, path)
