"""The shortcut probe: what cross-validated linear models can tell without looking at a lung.

Folds are by patient. A model's scores are compared inside its own fold only, since two folds'
models have two zero points: pooled, even a constant score would be worse than chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from classify.evaluate import fit_shortcut
from cxr.stats import Figure, bootstrap_weights, figure, in_words, weighted_auc
from exploring import ASPECT, CROP, FILM, NUMBERS, OUTSIDE, Entry, Gathered

Array = np.ndarray
FOLDS = 5
WITHOUT_LUNGS = (OUTSIDE, NUMBERS, ASPECT)
_WEIGHTS = 4_000_000  # numbers held at once for the bootstrap


class Question(NamedTuple):
    """Two sides to be told apart: `films` are numbers of films, `positive` (n,) bool their side."""

    name: str
    about: str  # "labels" inside one source, or "sources"
    films: Array
    positive: Array


class Answer(NamedTuple):
    """How well one shortcut answers a question; `why_not` where it was not asked."""

    question: str
    about: str
    what: str
    auc: Figure
    sides: tuple[int, int]  # films: negative, positive
    patients: int
    why_not: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        plain = self._asdict() | {"auc": self.auc.value, "low": self.auc.low, "high": self.auc.high}
        negative, positive = plain.pop("sides")
        return {**plain, "films": sum(self.sides), "negative": negative, "positive": positive}


def questions(entries: Sequence[Entry], seen: Array, smallest: int = 30) -> list[Question]:
    """Label against label inside a source, part against part of one label, and source against
    source: whatever has `smallest` films a side."""
    out = []
    sources = _sides([e.row.source for e in entries], seen, smallest)
    for source, own in sources.items():
        labels = [e.row.label if own[i] and e.is_known else "" for i, e in enumerate(entries)]
        found = _sides(labels, seen, smallest)
        order = sorted(found, key=lambda label: (label != "normal", -found[label].sum(), label))
        out += _pairs("labels", {label: found[label] for label in order}, f"{source}: ")
        for label in order:
            kinds = [e.kind if found[label][i] else "" for i, e in enumerate(entries)]
            parts = _sides(kinds, seen, smallest)
            out += _pairs("labels", dict(sorted(parts.items())), f"{source}: ")
    return out + _pairs("sources", sources)


def answer(
    question: Question, gathered: Gathered, what: str, draws: int, seed: int, smallest: int = 30
) -> Answer:
    """What one shortcut answers, on those films of the question that have it."""
    values = gathered.features[what][question.films]
    known = np.isfinite(values).all(axis=1)
    films, positive = question.films[known], question.positive[known]
    patients = np.array([gathered.entries[i].row.patient_id for i in films])
    sides = (int((~positive).sum()), int(positive.sum()))
    why_not = ""
    if min(sides) < smallest:
        why_not = f"fewer than {smallest} films with a box on one side"
    elif min(len(set(patients[side])) for side in (positive, ~positive)) < FOLDS:
        why_not = f"fewer than {FOLDS} patients on one side"
    found = Figure(None, None, None, len(films))
    if not why_not:
        values = values[known].astype(np.float64)
        found = cross_validated_auc(values, positive, patients.tolist(), draws, seed)
    return Answer(question.name, question.about, what, found, sides, len(set(patients)), why_not)


def cross_validated_auc(
    features: Array, positive: Array, patients: Sequence[str], draws: int = 1000, seed: int = 0
) -> Figure:
    """AUC of a logistic regression over five folds of patients, with its interval by patient.

    `features` (N, F) finite, `positive` (N,) bool. Pairs of films are counted inside their fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    scores = np.full(len(positive), np.nan)
    fold = np.full(len(positive), -1)
    groups = np.asarray(patients)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for number, (train, test) in enumerate(splitter.split(features, positive, groups)):
        if len(np.unique(positive[train])) < 2:
            continue
        fold[test] = number
        scores[test] = fit_shortcut(features[train], positive[train]).decision_function(
            features[test]
        )

    def auc(weights: Array) -> Array:
        return auc_within(scores, positive, fold, weights)

    value = float(auc(np.ones((1, len(positive))))[0])
    return figure(value, _bootstrap(auc, patients, draws, seed), int((fold >= 0).sum()))


def auc_within(scores: Array, positive: Array, fold: Array, weights: Array) -> Array:
    """(B,) the share of pairs of one fold in which the positive film scores higher, for each row of
    weights (B, N); equal scores count half, films of fold -1 do not count. NaN without a pair."""
    wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for number in range(fold.max(initial=-1) + 1):
        own = fold == number
        mine, side = weights[:, own], positive[own]
        count = mine[:, side].sum(1) * mine[:, ~side].sum(1)
        wins += count * np.nan_to_num(weighted_auc(scores[own], side, mine))
        pairs += count
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _bootstrap(
    auc: Callable[[Array], Array], patients: Sequence[str], draws: int, seed: int
) -> Array:
    """(draws,) values over draws of patients, a block of draws at a time: all weights at once
    would need a gigabyte for 100,000 films."""
    block = max(1, _WEIGHTS // max(1, len(patients)))
    parts = [
        auc(bootstrap_weights(patients, min(block, draws - done), seed + done))
        for done in range(0, draws, block)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _sides(names: Sequence[str], seen: Array, smallest: int) -> dict[str, Array]:
    """Name → (N,) bool of its readable films, for names that are known and have enough films."""
    every = np.asarray(names, dtype=object)
    found = {n: (every == n) & seen for n in dict.fromkeys(names) if n}
    return {name: own for name, own in found.items() if own.sum() >= smallest}


def _pairs(about: str, sides: Mapping[str, Array], where: str = "") -> list[Question]:
    """Every side against every later one."""
    found = []
    for negative, positive in combinations(sides, 2):
        films = np.flatnonzero(sides[negative] | sides[positive])
        name = f"{where}{negative} / {positive}"
        found.append(Question(name, about, films, sides[positive][films]))
    return found


LEVELS = ("warning", "caution", "unknown", "clear")  # the worst first
LIMIT = 0.7  # of the interval's lower end: above, a label can be told without lungs

WHAT = {
    FILM: "8×8 thumbnail of the film and its aspect ratio",
    OUTSIDE: "8×8 thumbnail with the thorax blacked out, and the aspect ratio",
    NUMBERS: "the thorax box's four numbers and the aspect ratio",
    ASPECT: "the aspect ratio alone",
    CROP: "8×8 thumbnail of the thorax crop",
}


class Verdict(NamedTuple):
    """`level`: "warning", "caution" (more than chance, no warning), "unknown" (not enough boxes to
    say) or "clear"."""

    question: str
    about: str
    level: str
    text: str


def verdicts(answers: Sequence[Answer]) -> list[Verdict]:
    """One for each question, in their order."""
    names = dict.fromkeys(a.question for a in answers)
    return [_verdict({a.what: a for a in answers if a.question == name}) for name in names]


def auc_text(found: Figure) -> str:
    """0.979 [0.968, 0.985]"""
    bare = found.value is not None and found.low is None
    return in_words(found, missing="not measured") + ", without an interval" * bare


def headline(found: Sequence[Verdict]) -> str:
    """The page's answer in a sentence or two."""
    labels = [v for v in found if v.about == "labels"]
    warned, caution, unknown, _ = (
        "; ".join(v.question for v in labels if v.level == level) for level in LEVELS
    )
    if not labels:
        return "No two labels of one source have films enough to be asked about."
    parts = []
    if warned:
        parts.append(f"Warning: labels can be told without lungs ({warned}).")
    if caution:
        parts.append(f"Caution: some can be told better than by chance ({caution}).")
    if not warned and not caution and any(v.level == "clear" for v in labels):
        parts.append("No label that could be checked can be told without lungs by these models.")
    if unknown:
        parts.append(f"Not checked for want of thorax boxes: {unknown}.")
    told = sum(v.about == "sources" and v.level == "warning" for v in found)
    if told:
        parts.append(
            "Sources can be told apart without lungs too: never pool sources whose labels differ."
        )
    return " ".join(parts)


def _verdict(by_name: dict[str, Answer]) -> Verdict:
    question, about = next((a.question, a.about) for a in by_name.values())
    blind = [by_name[name] for name in WITHOUT_LUNGS if name in by_name]
    telling = [a for a in blind if a.auc.low is not None and a.auc.low > LIMIT]
    if telling:
        figures = "; ".join(f"{WHAT[a.what]}: {auc_text(a.auc)}" for a in telling)
        end = (
            "A network that does well here has not shown that it looks at lungs: show these "
            "figures beside its own, and prefer a question on which they stay near 0.5."
            if about == "labels"
            else "Films of both in one training set teach the source in the label's place."
        )
        text = (
            f"The {about} can be told without lungs. AUC of linear models that see no lung: "
            f"{figures}. {end}"
        )
        return Verdict(question, about, "warning", text)
    film, outside = by_name.get(FILM), by_name.get(OUTSIDE)
    beside = f" From the {WHAT[FILM]}: {auc_text(film.auc)}." if film else ""
    if outside is None or outside.auc.value is None:
        why = f" ({outside.why_not})" if outside and outside.why_not else ""
        text = (
            f"Without thorax boxes nothing can be blacked out{why}. Give --crops, a folder of "
            f"detect.crop.{beside}"
        )
        return Verdict(question, about, "unknown", text)
    best = max(blind, key=lambda a: a.auc.value or 0)
    more = any(a.auc.low is not None and a.auc.low > 0.5 for a in blind)
    something = " That is more than chance: show it beside a network's figure." if more else ""
    text = (
        f"What sees no lung reaches at most {auc_text(best.auc)} ({WHAT[best.what]}); a warning "
        f"needs an interval above {LIMIT}.{something}{beside}"
    )
    return Verdict(question, about, "caution" if more else "clear", text)
