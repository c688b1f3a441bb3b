"""SCXNN as a system of a table: its members are trained, then answer the tested films together.

SCXNN is the Strictly Chest X-ray Normal Network of Kim's thesis (University of Ulsan, 2024). With
one target the answers are the member's own. With several, a film's score for `normal` is the mean
of the members' P(normal), that for each target its own member's P(target), scaled to sum 1; tested
films with none of the targets but another disease are then left out of answers.csv. Cells that
differ only in what is asked of the members share one training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from classify.dataset import (
    NO_REGION,
    FilmDataset,
    build_cache,
    cache_of,
    cases_of,
    film_loader,
    predict,
)
from classify.ensemble import member_of
from classify.films import Case
from classify.members import FAR_BELOW, TARGET, label_of
from classify.models.multitask import SCXNN
from classify.preprocess import to_input
from classify.screener import CLEARED, FitConfig, calibrate, fit_screener
from classify.screening.guarantee import ScreeningFilms
from classify.screening.reading import TIERS, RiskRow, risk_table
from classify.tasks.member import load_cases, member_logits, train_ensemble
from classify.tasks.settings import TrainConfig
from cxr.bundle import load_bundle
from cxr.cli import from_plain
from cxr.draw import (
    draw_contour,
    fit,
    new_figure,
    overlay_saliency,
    to_rgb,
    write_figure,
    write_sheet,
)
from cxr.films_table import has_disease, is_abnormal, is_among
from cxr.ledger import Answer, write_answers
from cxr.rules import require
from cxr.stats import Figure, figure_of, ratio, share_figure, softmax, weighted_auc, with_draws
from cxr.workdir import log, replacing, write_json
from reproducing.runners import SplitOf, digest, shared_folder

LEAST = 1e-12  # a sum of scores must not be 0


@dataclass(frozen=True)
class ScxnnConfig(TrainConfig):
    """Train an ensemble and answer the tested films.

    Args:
        tested: sources whose films, all of them, are answered in place of the split's test part;
            none of them may be trained on (`sources`).
        follow: diseases whose tested films are looked at apart (goes.ANSWER, unseen.png); empty
            takes the `unseen` ones.
        asked: of several targets the one whose member is asked about the followed films; empty
            asks all together.
        tiers: tier → its targets; a screener is then fitted on the validation films, its operating
            point fixed on the calibration films, and kept.TIER and found.TIER are told.
        sensitivity: what the calibration films are to prove.
        confidence: of that proof.
        screen_folds: folds by patient of the screener's fit.
    """

    tested: tuple[str, ...] = ()
    follow: tuple[str, ...] = ()
    asked: str = ""
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
        rule = "classes must be three or target for several targets, and where films are screened"
        several = bool(self.tiers) or len(self.targets) > 1
        require(not several or self.classes != "normal", rule, self.classes)
        rule = f"asked must be one of the targets {', '.join(self.targets)}, or empty"
        require(not self.asked or self.asked in self.targets, rule, self.asked)
        both = [source for source in self.tested if is_among(source, self.sources)]
        rule = "tested must name sources that train nothing, and sources those that do"
        alone = not self.tested or (bool(self.sources) and not both)
        require(alone, rule, *both[:1] or ["all sources"])

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

    The members lie in the folder `shared` beside all cells (`shared_folder`). Raises ValueError or
    OSError for what a user can mend.
    """
    out = Path(config.out)
    with shared_folder(config.out, "scxnn", config.ensemble()) as folder:
        training = replace(config.ensemble(), out=str(folder))
        train_ensemble(training)
        cases, parts = load_cases(training)
        films, logits = _answered(config, training, cases, parts)
        scores = joint_scores(logits["test"])
        figures = _follow(config, films["test"], logits["test"]) if config.followed else {}
        if config.tiers:
            figures |= screen_films(config, films, logits, folder)
            picture = folder / "members.png"
            if not config.tested and not picture.is_file():  # once for all cells of the training
                draw_members(training, films["test"], logits["test"], picture)
    write_json(out / "figures.json", {name: asdict(figure) for name, figure in figures.items()})
    write_answers(out / "answers.csv", config.answers, _answers(config, films["test"], scores))
    return out


def _answered(
    config: ScxnnConfig, training: TrainConfig, cases: list[Case], parts: dict[str, list[int]]
) -> tuple[dict[str, list[Case]], dict[str, np.ndarray]]:
    """Part → its films, and their logits (N, M, K); `test` holds the films of `config.tested`
    where sources are named there."""
    used = ("test", "val", "calibration") if config.tiers else ("test",)
    own = [part for part in used if part != "test" or not config.tested]
    if lost := [part for part in own if not parts.get(part)]:
        raise ValueError(f"the split must have films in its part {lost[0]!r}. Got none.")
    films = {part: [cases[i] for i in parts[part]] for part in own}
    wanted = [i for part in own for i in parts[part]]
    asked = digest([cases[i].row.image for i in wanted])
    kept = Path(training.out) / f"logits-{asked}.npy"  # cells of one training ask the same of it
    if not kept.is_file():
        with replacing(kept) as file:
            known = member_logits(training, cases, parts, wanted) if wanted else np.empty(0)
            np.save(file, known)
    ends = np.cumsum([len(films[part]) for part in own])[:-1]
    logits = dict(zip(own, np.split(np.load(kept), ends), strict=True)) if own else {}
    if config.tested:
        films["test"] = cases_of(replace(training, sources=config.tested))[0]
        logits["test"] = _logits_of(training, films["test"])
    return films, logits


def _logits_of(training: TrainConfig, cases: list[Case]) -> np.ndarray:
    """(N, M, K) of the trained members on films of other sources."""
    side = training.preprocess.side
    cache = build_cache(cases, training.preprocess, NO_REGION, cache_of(training), side)
    films = FilmDataset(cache, [0] * len(cases), range(len(cases)), side)
    found = []
    for net, targets in _members(training):
        logits = predict(net, film_loader(films, training), training)
        found.append(logits.reshape(len(cases), len(targets), -1))
    return np.concatenate(found, axis=1)


def _members(training: TrainConfig) -> Iterator[tuple[SCXNN, Sequence[str]]]:
    """Each trained network with its targets."""
    for name, targets in training.networks.items():
        bundle = load_bundle(Path(training.out) / f"{name}.safetensors", "member")
        yield member_of(bundle), targets


def joint_scores(logits: np.ndarray) -> np.ndarray:
    """(N, M, K) logits to one row of scores a film, with the sum 1: (N, K) of a member alone, or
    (N, 1 + M): the mean of the members' first class (normal, or the rest), then each P(target)."""
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


def _follow(config: ScxnnConfig, cases: Sequence[Case], logits: np.ndarray) -> dict[str, Figure]:
    """goes.ANSWER of the followed films, and unseen.png with the other films beside them."""
    one = config.asked or (config.targets[0] if len(config.targets) == 1 else "")
    member = replace(config, targets=(one,), asked="", tiers={}) if one else config
    mine = slice(config.targets.index(one), config.targets.index(one) + 1) if one else slice(None)
    said = joint_scores(logits[:, mine]).argmax(1)
    followed = [has_disease(case.row, config.followed) for case in cases]
    if not any(followed):
        raise ValueError(
            f"follow must name diseases of tested films. Got {', '.join(config.followed)}."
        )
    first = f"{' + '.join(config.followed)} ({'held out' if config.unseen else 'learnt'})"
    names = [
        first if apart else truth_of(case, member) or "none of the targets"
        for case, apart in zip(cases, followed, strict=True)
    ]
    groups = []
    for name in (first, *(n for n in (*member.answers, "none of the targets") if n in names)):
        chosen = [i for i, other in enumerate(names) if other == name]
        patients = [cases[i].patient for i in chosen]
        shares = goes_of(said[chosen], patients, member.answers, config.draws, config.seed)
        groups.append(Group(name, len(chosen), len(set(patients)), shares))
    draw_goes(groups, Path(config.out) / "unseen.png")
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
    config: ScxnnConfig,
    cases: Mapping[str, Sequence[Case]],
    logits: Mapping[str, np.ndarray],
    folder: Path,
) -> dict[str, Figure]:
    """Fit on val, fix the operating point on calibration, measure on test; leaves screener.skops
    and screener.json among the members in `folder`, risk.json in `config.out`.

    Args:
        config: targets, tiers, and what the calibration films are to prove.
        cases: part → its N films. `folder` holds the members.
        logits: part → (N, M, K) of the members. One with two classes knows no others: that logit
            is put far below.

    Returns the thesis' figures. Of all films: screen.accuracy (the mean of the next two, as in the
    thesis), screen.sensitivity (abnormal films kept for reading), screen.specificity (normal films
    cleared), screen.auc, cleared.normal and cleared.abnormal. Of each tier: normal.TIER (cleared),
    target.TIER (kept, and a member of the tier said target) and others.TIER (kept, and none did);
    kept.TIER and found.TIER, which overlap, also of each target. A film counts in the most pressing
    tier that it has. Raises ValueError for too few patients.
    """

    def films_of(part: str) -> ScreeningFilms:
        rows = [case.row for case in cases[part]]
        known = np.asarray(logits[part], dtype=np.float64)
        if known.shape[-1] == 2:
            known = np.pad(known, ((0, 0), (0, 0), (0, 1)), constant_values=-FAR_BELOW)
        return ScreeningFilms(
            config.targets,
            known,
            np.array([is_abnormal(row, config.targets) for row in rows], dtype=bool),
            [row.patient_id for row in rows],
            [row.source for row in rows],
            [row.image for row in rows],
        )

    settings = FitConfig(
        ("the members' own logits",),
        ensemble=folder,
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
    scores, decisions, _ = screener.decide(tested.logits)
    kept = np.array([d != CLEARED for d in decisions], dtype=bool)
    figures = _screened(config, tested, kept, scores)
    tier_of = {target: tier for tier, targets in config.tiers.items() for target in targets}
    diseases = [
        frozenset(t for t in config.targets if has_disease(case.row, [t])) for case in cases["test"]
    ]

    def table_of(some: slice) -> list[RiskRow]:
        found = tested.logits[some], kept[some], diseases[some]
        return risk_table(*found, config.targets, tier_of)

    table = table_of(slice(None))
    write_json(Path(config.out) / "risk.json", [asdict(row) for row in table])
    # film by film the table says who counts where: an interval by patient needs to know
    films = [table_of(slice(i, i + 1)) for i in range(len(diseases))]
    for n, row in enumerate(table):
        own = np.array([(rows[n].films, rows[n].kept, rows[n].found) for rows in films], bool)
        here, read, said = own.reshape(-1, 3).T
        shares = {"kept": read, "found": said}
        if not row.disease:
            shares |= {"normal": ~read, "target": read & said, "others": read & ~said}
        for what, hits in shares.items():
            figures[f"{what}.{row.disease or row.tier}"] = _share(config, tested, here, hits)
    return figures


def _share(
    config: ScxnnConfig, films: ScreeningFilms, chosen: np.ndarray, hits: np.ndarray
) -> Figure:
    own = [films.patients[i] for i in np.flatnonzero(chosen)]
    return share_figure(hits[chosen], own, config.draws, config.seed)


def _screened(
    config: ScxnnConfig, films: ScreeningFilms, kept: np.ndarray, scores: np.ndarray
) -> dict[str, Figure]:
    """What the screener did to N films, over all diseases."""
    sick, share = films.abnormal, partial(_share, config, films)
    weights = with_draws(films.patients, config.draws, config.seed)
    rates = ratio(kept, sick, weights), ratio(~kept, ~sick, weights)
    return {
        "screen.accuracy": figure_of(np.mean(rates, axis=0), len(kept)),
        "screen.auc": figure_of(weighted_auc(scores, sick, weights), len(kept)),
        "screen.sensitivity": share(sick, kept),
        "screen.specificity": share(~sick, ~kept),
        "cleared.normal": share(~sick, ~kept),
        "cleared.abnormal": share(sick, ~kept),
        "kept.normal": share(~sick, kept),
    }


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


TILE = 320  # px
_TRIED = 24  # films of each target, the surest ones


def draw_members(
    training: TrainConfig, cases: Sequence[Case], logits: np.ndarray, path: Path
) -> None:
    """One PNG with a tile a target: of its tested films the one that its member is surest of, those
    with a drawn region first, with the map over it and the region's outline in blue.

    Args:
        training: of the members, which lie in `training.out`.
        cases, logits: N tested films, and (N, M, K) of the M members, in the order of the targets.
        path: the file.
    """
    chances = softmax(logits)[..., TARGET]
    nets = {  # target → its network, and the number of its target logit there
        target: (net.eval(), m * net.classes + TARGET)
        for net, targets in _members(training)
        for m, target in enumerate(targets)
    }
    tiles, captions = [], []
    for m, target in enumerate(training.targets):
        having = [i for i, case in enumerate(cases) if has_disease(case.row, [target])]
        having = sorted(having, key=lambda i: -chances[i, m])[:_TRIED]
        if not having:
            continue
        side, about = training.preprocess.side, (training.preprocess, training.region)
        own = [cases[i] for i in having]
        cache = build_cache(own, *about, cache_of(training), side, targets=(target,))
        drawn = cache.region_of[:, 0] >= 0
        best = int(drawn.argmax())  # the surest with a region, the surest of all where none has one
        picture = np.asarray(cache.images[best])
        pixels = FilmDataset(cache, [0] * len(having), [best], side)[0]["image"][None]
        net, place = nets[target]
        with torch.inference_mode():
            maps = net.maps(to_input(pixels, training.preprocess))[0]
            found = torch.einsum("c,chw->hw", net.fc.weight[place], maps).clamp(min=0)
        plane = fit(found.numpy().astype(np.float32), TILE)
        tile = overlay_saliency(fit(to_rgb(picture), TILE), plane)
        if drawn[best]:
            region = np.asarray(cache.regions[cache.region_of[best, 0]])
            tile = draw_contour(tile, fit(region, TILE) > 127)
        tiles.append(tile)
        captions.append(f"{target.replace('_', ' ')}: {chances[having[best], m]:.2f}")
    title = "Grad-CAM of each member for its target (blue: the region that a reader drew)"
    write_sheet(path, tiles, captions, TILE, title)
